"""What acting on a prototype restores of the accuracy that a planted cue cost, beside its controls.

    python experiments/benchmarks/repair.py --models=3 --json=parts.json
    python experiments/benchmarks/repair.py --config=experiments/mnist_cnn.py --config.data.max_train=4000 \
        --config.data.plant=tag --config.train.batch_size=64 --config.refine.pick=evidence

Without --config the one that is used is experiments/planted.py. It is trained for --models seeds, from `config.seed`
on, explained, and acted on as its `refine` settings say; and so is its *twin*, the same network trained without the
link (no cue; of `colour`, colours drawn without the class), which is then fine-tuned plainly by as many steps (DESIGN
2.13). On the unbiased images of the planted run,

    restored = (after - before) / (twin, fine-tuned - before)

so that 100 % is a network that never knew the cue, and a negative value is further harm. A model counts where the cue
did harm, at least 5 points. Nothing is chosen here: what the run chooses, it chooses on its audit images. With --person
prototypes are named as by a person who sees the cue: up to so many, of those that lie on it those of most images.
With --workdir networks are kept, and another refinement of them (--config.refine.name) is measured without training.

What was found is in repair.md.
"""

import dataclasses
import json
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np
from absl import flags

from experiments.benchmarks import quiet_runs, truth_cues
from experiments.benchmarks.quiet_runs import NOT_HERE, refuse_flags, start
from i2x_jax import Run
from i2x_jax import command as program
from i2x_jax.config import Config, InputError
from i2x_jax.data.dataset import Dataset
from i2x_jax.devices.compilation import keep_programs
from i2x_jax.pipeline import refine as stage
from i2x_jax.pipeline import stages as pipeline
from i2x_jax.refinement import strategies as refinement
from i2x_jax.results.opened_run import dataset_of

DEFAULT = pathlib.Path(__file__).resolve().parents[1] / "planted.py"
LEAST_HARM = 0.05
# Share of a prototype's locations on the cue from which it is seen to be the cue.
LEAST_PURE = 0.5

_MODELS = flags.DEFINE_integer("models", 1, "How many networks are trained.", lower_bound=1)
_PERSON = flags.DEFINE_integer("person", 0, "How many prototypes a person names, at most; 0 for none.", lower_bound=0)
_JSON = flags.DEFINE_string("json", None, "The file that the figures are written to.")


def restored(before: float, after: float, twin: float) -> float:
    """The share of the accuracy that a cue cost which has returned; 1 is all of it."""
    return (after - before) / (twin - before)


def made(config: Config, folder: pathlib.Path, data_dir: str | None, last: str) -> Run:
    """A run up to the end of a stage."""
    steps = [step for step in pipeline.needed_steps([last]) if step != "contact_sheet"]
    return quiet_runs.made(config, folder, dataset_of(config, data_dir), steps)


def named(run: Run, most: int) -> tuple[int, ...]:
    """The prototypes that one who sees the cue would name: those on it, of most images first; else the purest."""
    on_cue = truth_cues.on_cue(run.truth(), run)
    labels, count = np.asarray(run.array("labels")), run.config.explain.num_prototypes
    found = truth_cues.standing(run.array("assignments"), on_cue, labels, count)
    pure = [int(k) for k in np.argsort(-found.recall, kind="stable") if found.purity[k] >= LEAST_PURE]
    return tuple(pure[:most]) or (int(found.purity.argmax()),)


def without_link(config: Config, num_classes: int) -> Config:
    """The config of the twin, whose images are of the same shape."""
    linked = config.data.plant == "colour"
    changed = {"plant_strength": 1 / num_classes} if linked else {"plant": ""}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changed))


def twin_accuracy(twin: Run, unbiased: Dataset, phases: int, seeds: int) -> tuple[float, float]:
    """Accuracy of the twin on the unbiased images of the planted run: as trained, and fine-tuned plainly (mean)."""
    refining = stage.shared(twin, twin.config.refine, (0, 1))
    refining = refining._replace(phases=phases, judged={"unbiased_accuracy": unbiased}, test=unbiased)
    plain, after = {"plain": twin.dataset}, []
    for seed in range(seeds):
        numbers = [1000 * seed + phase for phase in range(phases)]
        after.append(refinement.refine_seed(refining, plain, ["plain"], numbers)["plain"]["unbiased_accuracy"])
    return refinement.judge(refining, twin.model, refining.variables)["unbiased_accuracy"], statistics.mean(after)


def measured(config: Config, data_dir: str | None, folder: pathlib.Path) -> dict:
    """The figures of one network."""
    started = time.perf_counter()
    if _PERSON.value:
        run = made(config, folder / "planted", data_dir, "explain")
        acted = dataclasses.replace(config.refine, prototypes=named(run, _PERSON.value))
        config = dataclasses.replace(config, refine=acted)
    run = made(config, folder / "planted", data_dir, "refine")
    table = run.refinements[config.refine.name]
    classes = len(run.dataset.class_names)
    twin = made(without_link(config, classes), folder / "twin", data_dir, "train")
    # It was not explained; nothing is told of single classes here.
    twin.rivals = run.rivals
    phases, before = table["repair"].get("phases", 1), table["before"]["unbiased_accuracy"]
    trained, tuned = twin_accuracy(twin, run.splits.unbiased, phases, config.refine.seeds)
    found = {"seed": config.seed, "images": len(run.dataset.labels), "repair": table["repair"], "before": before}
    found |= {"twin": trained, "twin_tuned": tuned, "harm": trained - before >= LEAST_HARM, "restored": {}, "after": {}}
    for name, entry in table["strategies"].items():
        after = [each["unbiased_accuracy"] for each in entry["seeds"]]
        found["after"][name] = after
        found["restored"][name] = [restored(before, value, tuned) for value in after]
    return found | {"seconds": time.perf_counter() - started}


def table_of(found: dict) -> str:
    """The figures as text, in %."""
    counted = [each for each in found["models"] if each["harm"]]
    lines = [
        f"{found['name']}: {found['models'][0]['images']} images, {len(found['models'])} networks, {len(counted)} of "
        f"them harmed by {100 * LEAST_HARM:.0f} points or more; {found['refine']['seeds']} seeds each"
    ]
    for each in found["models"]:
        told = each["repair"]
        lines.append(
            f"  seed {each['seed']}: unbiased {100 * each['before']:.1f} %, twin {100 * each['twin']:.1f} %, "
            f"fine-tuned {100 * each['twin_tuned']:.1f} %; prototypes {told['prototypes']}, ranks {told['ranks']}, "
            f"{told.get('mask')}, {told.get('phases')} phases, refused {[one['action'] for one in told['refused']]}; "
            f"{each['seconds']:.0f} s"
        )
    lines.append(f"  {'restored, %':<18}{'median':>8}{'least':>8}{'most':>8}   each")
    for name in counted[0]["restored"] if counted else ():
        values = [100 * value for each in counted for value in each["restored"][name]]
        if values:
            lines.append(
                f"  {name:<18}{statistics.median(values):>8.0f}{min(values):>8.0f}{max(values):>8.0f}   "
                + " ".join(f"{value:.0f}" for value in values)
            )
    return "\n".join(lines)


def main(_):
    """Trains, acts, prints, writes."""
    refuse_flags(NOT_HERE)
    keep_programs("default")
    if not flags.FLAGS["config"].present:
        flags.FLAGS.config = str(DEFAULT)
    config, data_dir = program.config(), program.data_dir()
    if not config.data.plant or not (config.refine.acts or _PERSON.value):
        raise InputError(
            f"config keys data.plant and refine.pick are {config.data.plant!r} and {config.refine.pick!r}; allowed "
            "here: a cue, and prototypes to act on; set --config.data.plant, and --config.refine.pick or --person"
        )
    found = {"name": f"{config.data.name}, {config.model.name}, {config.data.plant}", "models": []}
    found["refine"] = dataclasses.asdict(config.refine)
    for seed in range(config.seed, config.seed + _MODELS.value):
        with tempfile.TemporaryDirectory() as folder:
            kept = pathlib.Path(flags.FLAGS.workdir or folder) / str(seed)
            found["models"].append(measured(dataclasses.replace(config, seed=seed), data_dir, kept))
        print(f"seed {seed} measured", file=sys.stderr, flush=True)
    print(table_of(found))
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    start(main, program.parse)
