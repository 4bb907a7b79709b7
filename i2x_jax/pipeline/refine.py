"""The stage `refine`: curated samples to the refinement table (DESIGN 2.9)."""

import pathlib

import numpy as np

from i2x_jax.data.dataset import steps_per_pass
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.refinement import strategies as refinement
from i2x_jax.refinement.table import summarize
from i2x_jax.results.files import REFINEMENT, read, read_json
from i2x_jax.results.opened_run import Run
from i2x_jax.training import loop as training


def refine(directory: RunDirectory, work: Run) -> None:
    """Fine-tunes by every strategy and seed, and writes the table: refinement.json (DESIGN 2.9)."""
    config, model, splits = work.config, work.model, work.splits
    settings, labels = config.refine, splits.train.labels
    curated = work.arrays("curated")
    pair = tuple(int(label) for label in curated["pair"])
    variables = work.variables(work.steps[-1])
    steps = steps_per_pass(len(labels), config.train.batch_size)
    optimizer = training.make_optimizer(
        config.train.optimizer, settings.learning_rate, config.train.weight_decay, steps, config.train.warmup
    )
    refining = refinement.Refining(
        recipe=training.Recipe(model, optimizer, config.data.augment, config.train.batch_size, config.seed),
        variables=variables,
        train=splits.train,
        test=splits.test,
        calibration=training.batch_norm_images(splits.train, config.seed),
        pair=pair,
    )
    applicable = [
        name for name in settings.strategies if len(curated["left_out"]) or set(refinement.phases(name)) == {"full"}
    ]
    phases = refinement.count_phases(applicable) * settings.seeds
    runs = []
    with directory.progress_bar("refining", phases * steps * config.train.batch_size, "image") as bar:
        for seed in range(settings.seeds):
            bar.set_description(f"refining, seed {seed + 1} of {settings.seeds}")
            partial = f".refine-seed-{seed}.json"
            if (directory.path / partial).exists():
                runs.append(read(directory.path / partial, lambda path: finished_seed(path, applicable)))
                bar.update(refinement.count_phases(applicable) * steps * config.train.batch_size)
                continue
            draws = np.random.default_rng((config.seed, seed))
            left_out = refinement.left_out_sets(curated["left_out"], labels, work.array("confidence"), draws)
            phase_seeds = [int(number) for number in draws.integers(2**31, size=2)]
            result = refinement.refine_seed(refining, left_out, applicable, phase_seeds, bar.update)
            # Kept until the table is written, so that a killed run does not repeat finished seeds.
            directory.write_json(partial, result, "refine_seed")
            runs.append(result)
    before = refinement.outcome(
        training.predict(model, variables, splits.test, config.explain.batch_size), splits.test, pair
    )
    table = summarize(
        runs,
        before,
        settings.strategies,
        "every uncertain prototype would leave out more than refine.max_left_out"
        if len(curated["skipped"])
        else "no sample contains a prototype that is uncertain for this pair",
        {splits.train.class_names[label]: int((labels[curated["left_out"]] == label).sum()) for label in pair},
    )
    names = [splits.train.class_names[label] for label in pair]
    table = {"schema": 1, "pair": names, "seeds": settings.seeds, **table}
    directory.write_json(REFINEMENT, table, "refinement")
    directory.discard(".refine-seed-*.json")


def finished_seed(path: pathlib.Path, applicable: list[str]) -> dict[str, dict]:
    """What an earlier process found for one seed; raises `ValueError` where these are not the strategies."""
    result = read_json(path, "refine_seed")
    if result.keys() != set(applicable):
        raise ValueError(f"it holds {', '.join(sorted(result))[:100]} instead of {', '.join(applicable)}")
    return result
