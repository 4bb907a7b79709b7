"""The stage `refine`: curated samples, or prototypes to act on, to the refinement table (DESIGN 2.9, 2.13)."""

import pathlib

import numpy as np

from i2x_jax.config import InputError, RefineConfig, listed, printable, to_dict
from i2x_jax.data.dataset import steps_per_pass
from i2x_jax.explanation import uncertainty
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.pipeline.repair import Plan, guarded, plan_repair
from i2x_jax.refinement import strategies as refinement
from i2x_jax.refinement.table import summarize
from i2x_jax.results.files import REPORT, read, read_json, refinement_file, seed_file
from i2x_jax.results.opened_run import Run
from i2x_jax.training import loop as training

# Of the pairs that were analysed, how many a message names.
MAX_NAMED = 20


def refine(directory: RunDirectory, work: Run, settings: RefineConfig | None = None) -> None:
    """Fine-tunes by every strategy and seed, and writes the table: refinement.json or refinements/ (DESIGN 2.9, 2.13).

    Args:
      directory: where it goes.
      work: the same, to read from.
      settings: of this refinement; None for those that the run was begun with.
    """
    settings = settings or work.config.refine
    pair, curated = curation(work, settings)
    refining = shared(work, settings, pair)
    if settings.acts:
        plan = plan_repair(directory, work, settings, refining, curated.prototypes)
    else:
        plan = plan_leaving_out(work, settings, refining, curated)
    runs = fine_tune(directory, work, settings, plan)
    before = refinement.judge(plan.refining, work.model, plan.refining.variables)
    table = summarize(runs, before, plan.names, plan.reasons, plan.left_out, plan.refining.phases)
    head = {"schema": 1, "settings": to_dict(settings), "pair": [work.dataset.class_names[label] for label in pair]}
    if directory.main:
        # One that does not tell of this refinement; the stage `report` makes it again.
        (directory.path / REPORT).unlink(missing_ok=True)
    table = {**head, "seeds": settings.seeds, **plan.told, **table}
    if settings.acts:
        table = guarded(directory, settings.name, table)
    directory.write_json(refinement_file(settings.name), table, "refinement")
    directory.discard_seeds(settings.name)


def shared(work: Run, settings: RefineConfig, pair: tuple[int, int]) -> refinement.Refining:
    """What all strategies and seeds of a refinement share."""
    config, splits = work.config, work.splits
    steps = steps_per_pass(len(splits.train.labels), config.train.batch_size)
    optimizer = training.make_optimizer(
        config.train.optimizer, settings.learning_rate, config.train.weight_decay, steps, config.train.warmup
    )
    unbiased = {} if splits.unbiased is None else {"unbiased_accuracy": splits.unbiased}
    return refinement.Refining(
        recipe=training.Recipe(work.model, optimizer, config.data.augment, config.train.batch_size, config.seed),
        variables=work.variables(work.steps[-1]),
        train=splits.train,
        test=splits.test,
        calibration=training.batch_norm_images(splits.train, config.seed),
        pair=pair,
        rivals=work.rivals,
        judged=unbiased,
    )


def plan_leaving_out(
    work: Run, settings: RefineConfig, refining: refinement.Refining, curated: uncertainty.Curated
) -> Plan:
    """The strategies that leave out samples of the pair, and their controls (DESIGN 2.9)."""
    reason = (
        "every uncertain prototype would leave out more than refine.max_left_out"
        if len(curated.skipped)
        else "no sample contains a prototype that is uncertain for this pair"
    )
    idle = [] if len(curated.left_out) else settings.strategies
    reasons = {name: reason for name in idle if set(refinement.phases(name)) != {"full"}}

    # Where a part was explained, only images of that part can be left out; training is on the others too.
    trained = work.explained_rows

    def sets(draws):
        left_out = refinement.left_out_sets(curated.left_out, work.dataset.labels, work.own_confidence, draws)
        return refinement.without(work.splits.train, {name: trained[rows] for name, rows in left_out.items()})

    labels, classes = work.dataset.labels, work.dataset.class_names
    counts = {classes[label]: int((labels[curated.left_out] == label).sum()) for label in refining.pair}
    told = {"curated": {name: values.tolist() for name, values in curated._asdict().items()}}
    return Plan(settings.strategies, reasons, sets, refining, counts, told)


def curation(work: Run, settings: RefineConfig) -> tuple[tuple[int, int], uncertainty.Curated]:
    """The pair that is refined, smaller label first, and what the curated set leaves out of it (DESIGN 2.8).

    For the pair and the limit that the run was begun with that is in curated.npz; for others it is computed anew, from
    the scores of the explanation.

    Raises:
      InputError: the pair was not analysed.
    """
    own, classes, stored = work.config.refine, work.dataset.class_names, work.arrays("curated")
    if settings.pair:
        pair = tuple(sorted(classes.index(name) for name in settings.pair))
    elif own.pair:
        pair = tuple(sorted(classes.index(name) for name in (work.explanation.pairs[0].a, work.explanation.pairs[0].b)))
    else:
        pair = tuple(stored["pair"].tolist())
    if pair == tuple(stored["pair"].tolist()) and settings.max_left_out == own.max_left_out:
        return pair, uncertainty.Curated(*(stored[name] for name in uncertainty.Curated._fields))
    wavering = work.explanation.pair(*(classes[label] for label in pair)).uncertain
    if wavering is None:
        analysed = [f"{each.a},{each.b}" for each in work.explanation.pairs if each.uncertain is not None]
        raise InputError(
            f"config key refine.pair is {tuple(classes[label] for label in pair)!r}, which the explanation did not "
            f"analyse; allowed: {printable(listed(analysed, MAX_NAMED, '; '))}; choose one of them, or explain in "
            "another --workdir with this pair"
        )
    scores = np.zeros(work.config.explain.num_prototypes)
    for each in wavering:
        scores[each.prototype] = each.score
    area = uncertainty.prototype_area(work.array("assignments"), len(scores))
    contained = uncertainty.contains(work.array("intensity")[-1], area)
    return pair, uncertainty.curate(scores, contained, work.dataset.labels, pair, settings.max_left_out)


def fine_tune(directory: RunDirectory, work: Run, settings: RefineConfig, plan: Plan) -> list[dict[str, dict]]:
    """What `refinement.refine_seed` returns for each seed; finished seeds of a killed run are not done again.

    Args:
      directory: where finished seeds are kept until the table is written.
      work: the run.
      settings: of this refinement.
      plan: what is run.
    """
    applicable, refining = plan.run(), plan.refining
    steps = steps_per_pass(len(refining.train.labels), refining.recipe.batch_size)
    images = refinement.count_phases(applicable, refining.phases) * steps * refining.recipe.batch_size
    runs = []
    with directory.progress_bar("refining", images * settings.seeds, "image") as bar:
        for seed in range(settings.seeds):
            bar.set_description(f"refining, seed {seed + 1} of {settings.seeds}")
            kept = seed_file(settings.name, seed)
            result = finished_seed(directory.path / kept, settings, applicable)
            if result is not None:
                bar.update(images)
            else:
                draws = np.random.default_rng((work.config.seed, seed))
                sets = plan.sets(draws)
                phase_seeds = [int(number) for number in draws.integers(2**31, size=max(2, refining.phases))]
                keep = {} if seed else {"keep": plan.keep}
                result = refinement.refine_seed(refining, sets, applicable, phase_seeds, bar.update, **keep)
                directory.write_json(kept, {"settings": to_dict(settings), "outcomes": result}, "refine_seed")
            runs.append(result)
    return runs


def finished_seed(path: pathlib.Path, settings: RefineConfig, applicable: list[str]) -> dict[str, dict] | None:
    """What an earlier process found for one seed; None where it found nothing, or with other settings.

    Raises:
      InputError: the file is damaged, or these are not the strategies.
    """
    if not path.exists():
        return None

    def load(path):
        found = read_json(path, "refine_seed")
        if found["settings"] != to_dict(settings):
            return None
        if found["outcomes"].keys() != set(applicable):
            raise ValueError(
                f"it holds {', '.join(sorted(found['outcomes']))[:100]} instead of {', '.join(applicable)}"
            )
        return found["outcomes"]

    return read(path, load)
