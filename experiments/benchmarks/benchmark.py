"""How fast the explain stage is beside PyTorch and scikit-learn, and whether both compute the same.

    pip install -r requirements-baseline.txt
    python run.py --config=experiments/mnist_cnn.py --workdir=runs/mnist
    python experiments/benchmarks/benchmark.py --config=experiments/mnist_cnn.py --workdir=runs/mnist \
        --num_images=20000 --json=mnist.json

It takes the checkpoints of a finished run. Each implementation works in a process of its own, one at a time and in
turns, with as many threads; cold is the first call, compilation included (ours forgets its programs before), warm the
--repeats after it. Stages behind the first are given the same upstream outputs (ours), and what they return is
compared. K-means makes the same number of iterations from the same start. `explain` does all of it from images and
checkpoints, each side with its own K-means, fitted on all locations. Ours assigns locations to prototypes while it
measures, and not in K-means as the baseline does, so that only sums of parts compare; and wherever it measures it
computes contributions to all classes too, which the baseline lacks. Ours keeps freed memory, as in run.py
(host_memory.py), and its peak of memory contains that. Rows marked with * are not equal work:

  explain_as_run      ours: `explain` as in a run, fitted on a sample of locations, and the ledger computed besides
  kmeans_fit          each side's K-means from its own starts until it converges
  kmeans_subsampled   ours fitted on some of the rows, the baseline on all
  grouping_global     ours by class, the baseline by one HDBSCAN call over all rows of one interval
  mapping_null        ours with 200 permutations and 200 bootstrap refits; the baseline has neither
  explain_complete    ours as run.py does it: nulls, bootstrap, pairs of classes, held-out groups, explanation, pictures

--growth prints how the cost grows instead: with images, prototypes, checkpoints and feature channels.
"""

import contextlib
import datetime
import importlib.util
import json
import os
import pathlib
import platform
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np
from absl import app, flags, logging

from experiments.benchmarks import benchmark_stages, benchmark_tables
from experiments.benchmarks.benchmark_worker import Side
from experiments.benchmarks.quiet_runs import NOT_HERE, refuse_flags
from i2x_jax import command as program
from i2x_jax.config import InputError
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.pipeline.stages import git_revision

SIDES = ("ours", "baseline")

_NUM_IMAGES = flags.DEFINE_integer("num_images", 20_000, "Training images used, at most.", lower_bound=100)
_JSON = flags.DEFINE_string("json", None, "The file that the figures are written to.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Warm runs of each stage.", lower_bound=1)
_TRAIN_STEPS = flags.DEFINE_integer("train_steps", 10, "Training steps that are timed together.", lower_bound=1)
_GROWTH = flags.DEFINE_bool("growth", False, "Print how the cost grows instead.")


def check(workdir: str, json_path: str | None) -> None:
    """Raises `InputError` for what the benchmark cannot work with, before it starts."""
    refuse_flags(NOT_HERE, "for the benchmark")
    missing = [name for name in ("torch", "captum") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{' and '.join(missing)} cannot be imported; allowed: an environment with the baseline's packages; "
            "pip install -r requirements-baseline.txt"
        )
    directory = RunDirectory(workdir)
    config = program.config()
    directory.check_config(config)
    if not directory.complete("train"):
        raise InputError(
            f"{directory.path} holds no finished training; allowed: a --workdir of run.py with the same --config; "
            "run that first"
        )
    if config.explain.cam != "gradcam":
        raise InputError(
            f"config key explain.cam is {config.explain.cam!r}; allowed: 'gradcam', what the baseline computes; "
            "choose another --workdir"
        )
    if json_path and not pathlib.Path(json_path).absolute().parent.is_dir():
        raise InputError(f"--json is {json_path!r}; allowed: a file in a folder that exists; make the folder first")


def machine() -> dict:
    """Where and with what this is measured."""
    from importlib import metadata

    told = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in told if line.startswith("model name")), platform.machine())
    packages = ("jax", "jaxlib", "torch", "scikit-learn", "numpy", "scipy")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
        "revision": git_revision(),
        "command": " ".join(sys.argv),
    }


def main(argv: list[str]) -> None:
    """Starts both processes, measures, prints, writes."""
    del argv
    workdir = program.expanded(flags.FLAGS["workdir"].value)
    if workdir is None:
        raise InputError("--workdir is missing; allowed: the directory of a finished run; set --workdir")
    check(workdir, _JSON.value)
    data_dir = program.data_dir() or ""
    report = {"machine": machine()}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, contextlib.ExitStack() as stack:
        folder = pathlib.Path(folder)
        arguments = [str(pathlib.Path(workdir).absolute()), data_dir, str(_NUM_IMAGES.value), str(folder / "weights")]

        def started(name, batch_size=0):
            side = Side(name, [*arguments, str(batch_size)], folder / f"{name}.log")
            stack.callback(side.close)
            return side

        # Weights are converted and batches tuned in processes of their own, which leave no mark on those measured.
        first = {"ours": started("ours")}
        first["ours"].call("export")
        first["baseline"] = started("baseline")
        report["sides"] = {name: side.call("describe")["result"] for name, side in first.items()}
        stack.close()
        sides = {name: started(name, report["sides"][name]["batch_size"]) for name in SIDES}
        for side in sides.values():
            side.call("describe")
        config = program.config()
        if _GROWTH.value:
            report["growth"] = benchmark_stages.growth(sides, config, folder)
            print(benchmark_tables.growth(report))
        else:
            report |= benchmark_stages.measure(sides, config, folder, data_dir, _REPEATS.value, _TRAIN_STEPS.value)
            print(benchmark_tables.stages(report))
    if _JSON.value:
        temporary = pathlib.Path(f"{_JSON.value}.tmp")
        temporary.write_text(json.dumps(report, indent=1, allow_nan=False, default=np.ndarray.tolist) + "\n")
        os.replace(temporary, _JSON.value)


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)
    try:
        app.run(main, flags_parser=program.parse)
    except InputError as problem:
        print(f"benchmark.py: error: {problem}", file=sys.stderr)
        sys.exit(2)
