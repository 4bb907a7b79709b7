"""Where checkpoints should lie: how far the ledger hangs on which are analysed, for 'log' against 'moved', at equal T.

    python experiments/benchmarks/checkpoints.py --seeds=3 --json=digits.json
    python experiments/benchmarks/checkpoints.py --config=experiments/mnist_cnn.py --config.data.max_train=8000

A config is trained once for each seed, from `config.seed` on, with the steps of 'log' and the candidates of 'moved' all
kept; then the same training is measured with each choice of T checkpoints, as a run measures them, up to the ledger
(DESIGN 2.1, 2.10). The final network is the same, and so are its prototypes. Test images are not used.

`path_difference` compares the account over two intervals with the sum of the accounts over each (relative L1); there
are T-2 of them. The criterion, named before anything was measured, is their mean *weighted by movement*: by what
confidences moved in the two intervals, half the absolute change summed over classes, mean over the training images. So
an interval in which nothing happens counts for nothing, whether one choice has many of them or few. Shown beside it:
the plain mean; and, with all steps that were kept, how far the account of each interval is from the sum of those of the
fine intervals within it (relative L1 over all images, intervals and prototypes).

Measured at T = 8, in %, log and moved: by the criterion 2.91 and 3.13 on digits (3 seeds), 6.51 and 5.72 on 3,995
images of MNIST (the CNN, batches of 64, 2 seeds), 18.5 and 20.7 on 3,000 of CIFAR-10 (ResNet-20 of width 8, 6 epochs in
batches of 64, K = 32, one seed). Not lower on all three, so 'log' stays the default. From the fine account, which was
not the criterion, moved is nearer on all three: 4.38 and 2.45, 5.98 and 4.47, 21.2 and 19.3. Why the two disagree was
not looked into; halves of which one is quiet agree with the whole whatever the path was, which may favour 'log'.
"""

import dataclasses
import itertools
import json
import pathlib
import shutil
import statistics
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np
from absl import flags

from experiments.benchmarks.quiet_runs import NOT_HERE, made, refuse_flags, start
from i2x_jax import Run
from i2x_jax import command as program
from i2x_jax.config import Config, InputError
from i2x_jax.devices.compilation import keep_programs
from i2x_jax.pipeline.train import checkpoint_steps
from i2x_jax.results.files import CHECKPOINTS, METRICS
from i2x_jax.results.opened_run import dataset_of
from i2x_jax.training.checkpoints import movement

SPACINGS = ("log", "moved")
STEPS = ("train", "prototypes", "evidence")
# What is compared, in the order of the table; the first is the criterion.
FIGURES = {"weighted": "weighted by movement", "mean": "plain mean", "fine": "from the fine account"}


_SEEDS = flags.DEFINE_integer("seeds", 3, "How many seeds.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "The file that the figures are written to.")


def spaced(config: Config, spacing: str | tuple[int, ...]) -> Config:
    """The config with its checkpoints spaced so."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, checkpoints=spacing))


def path_figures(difference: np.ndarray, moved: np.ndarray) -> dict[str, float]:
    """Means of `path_difference`.

    Args:
      difference: `[T-2]`.
      moved: `[T-1]`, what confidences moved in each interval.
    """
    weights = moved[:-1] + moved[1:]
    return {"weighted": float(np.average(difference, weights=weights)), "mean": float(difference.mean())}


def fine_difference(account: np.ndarray, steps: np.ndarray, fine: np.ndarray, fine_steps: np.ndarray) -> float:
    """How far accounts are from the sums of finer ones, in relative L1 over everything.

    Args:
      account: `[T-1, N, K+1]`.
      steps: int `[T]`, all of them among `fine_steps`, with the same first and last.
      fine: `[T'-1, N, K+1]`.
      fine_steps: int `[T']`.
    """
    summed = np.add.reduceat(np.asarray(fine, np.float64), np.searchsorted(fine_steps, steps[:-1]), axis=0)
    return float(np.abs(account - summed).sum() / np.abs(summed).sum())


def measured(run: Run) -> dict:
    """Steps, what moved between them, and path differences of a run."""
    moved = np.array([movement(*pair) for pair in itertools.pairwise(run.array("confidence"))])
    difference = run.arrays("ledger")["path_difference"]
    found = {"steps": run.steps.tolist(), "moved": moved.tolist(), "path_difference": difference.tolist()}
    return found | path_figures(difference, moved)


def adopt(trained: Run, steps: tuple[int, ...], folder: pathlib.Path) -> None:
    """Copies those checkpoints of a finished training, from which another one goes on: it has only to choose."""
    folder.mkdir()
    for name in ("config.json", METRICS, "prototypes.npz"):
        shutil.copy(trained.path / name, folder / name)
    for step in steps:
        shutil.copytree(trained.path / CHECKPOINTS / str(step), folder / CHECKPOINTS / str(step))


def compare(config: Config, data_dir: str | None, folder: pathlib.Path) -> dict:
    """The figures of one seed, by spacing."""
    splits = dataset_of(config, data_dir)
    # Nothing here is told of test images, and measuring them at each fine step would take most of the time.
    splits = splits._replace(test=splits.validation)
    planned = {spacing: checkpoint_steps(spaced(config, spacing), splits.train) for spacing in SPACINGS}
    every = tuple(sorted({*itertools.chain.from_iterable(planned.values())}))
    fine = made(spaced(config, every), folder / "fine", splits, STEPS)
    found = {"seed": config.seed, "fine": measured(fine), "spacings": {}}
    found["validation_accuracy"] = [line["accuracy"] for line in fine.metrics if line["split"] == "validation"][-1]
    for spacing, steps in planned.items():
        adopt(fine, steps, folder / spacing)
        header = json.loads((folder / spacing / "config.json").read_text())
        header["config"]["train"]["checkpoints"] = spacing
        (folder / spacing / "config.json").write_text(json.dumps(header))
        run = made(spaced(config, spacing), folder / spacing, splits, STEPS)
        figures = measured(run)
        figures["fine"] = fine_difference(run.array("account"), run.steps, fine.array("account"), fine.steps)
        found["spacings"][spacing] = figures
    return found


def table(found: dict) -> str:
    """The figures as text, in %."""
    lines = [f"{found['name']}: {found['images']} images, T = {found['count']}; relative L1 in %"]
    lines.append(f"{'seed':>4} {'':<6}" + "".join(f"{title:>24}" for title in FIGURES.values()) + "   steps")
    for seed in found["seeds"]:
        for spacing in SPACINGS:
            figures = seed["spacings"][spacing]
            values = "".join(f"{100 * figures[name]:>24.2f}" for name in FIGURES)
            lines.append(f"{seed['seed']:>4} {spacing:<6}{values}   {' '.join(map(str, figures['steps']))}")
    for spacing in SPACINGS:
        means = (statistics.mean(seed["spacings"][spacing][name] for seed in found["seeds"]) for name in FIGURES)
        lines.append(f"mean {spacing:<6}" + "".join(f"{100 * value:>24.2f}" for value in means))
    return "\n".join(lines)


def main(_):
    """Trains, measures, prints, writes."""
    refuse_flags(("workdir", *NOT_HERE))
    keep_programs("default")
    config, data_dir = program.config(), program.data_dir()
    if config.train.num_checkpoints < 3:
        raise InputError(
            f"config key train.num_checkpoints is {config.train.num_checkpoints}; allowed here: at least 3, two "
            "intervals; set --config.train.num_checkpoints"
        )
    found = {"name": f"{config.data.name}, {config.model.name}", "count": config.train.num_checkpoints, "seeds": []}
    for seed in range(config.seed, config.seed + _SEEDS.value):
        with tempfile.TemporaryDirectory() as folder:
            found["seeds"].append(compare(dataclasses.replace(config, seed=seed), data_dir, pathlib.Path(folder)))
            print(f"seed {seed} measured", file=sys.stderr, flush=True)
    found["images"] = len(dataset_of(config, data_dir).train.labels)
    print(table(found))
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    start(main, program.parse)
