"""Kills a run at random moments and shows that the same command finishes it as if nothing had happened.

    python experiments/tools/kill_and_resume.py

About 5 minutes on two cores for the ten kills of the default. An uninterrupted run is the reference. Each trial starts
the same run in a fresh folder, kills it (SIGKILL) at a moment drawn over the time that one of the three stages takes
(each in turn), runs the same command again, and compares every array, every JSON file (but for time and memory), the
picture and the weights with the reference. One line per trial and a summary; exit code 1 if anything differs.
"""

import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import app, flags, logging

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Small, but every stage has something to do: groups form, prototypes waver, samples are left out.
SMALL = (
    "--config.train.epochs=8",
    "--config.train.learning_rate=0.02",
    "--config.train.batch_size=32",
    "--config.train.num_checkpoints=8",
    "--config.train.resume_every=30",
    "--config.data.max_train=400",
    "--config.data.augment=none",
    "--config.model.width=4",
    "--config.explain.num_prototypes=8",
    "--config.explain.pca_dims=4",
    "--config.explain.restarts=1",
    "--config.explain.max_pairs=1",
    "--config.refine.pair=6,7",
    "--config.refine.seeds=2",
    "--config.refine.max_left_out=0.9",
)
STEPS = ("train", "prototypes", "evidence", "ranking", "mapping", "contact_sheet", "refine", "report")
# The file whose appearance says that a stage has begun, and the last one of all.
BEGINS = {"train": "config.json", "explain": "steps.npy", "refine": "contact_sheet.png", "report": "refinement.json"}
END = "report.html"
DONE = re.compile(r"^\[\d+/\d+\] (\w+): done", re.MULTILINE)

_TRIALS = flags.DEFINE_integer("trials", 10, "How often the run is killed.", lower_bound=1)
_DRAW = flags.DEFINE_integer("draw", 0, "Seed of the moments.")
_KEEP = flags.DEFINE_bool("keep", False, "Keep the folders of trials that differ, and say where they are.")


def differing(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """What differs between two run directories, time and memory apart: files, members of .npz files, weights."""
    return differing_files(one, other) + _differing_weights(one, other)


def differing_files(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """`differing` but for the weights."""
    names = {file.name for folder in (one, other) for file in folder.iterdir()}
    found = []
    for name in sorted(names - {"checkpoints"}):
        if not (one / name).exists() or not (other / name).exists():
            found.append(f"{name} (missing)")
        elif name.endswith(".npz"):
            found += _differing_members(name, one / name, other / name)
        elif name.endswith(".npy"):
            found += [] if _equal(*(np.load(each / name, allow_pickle=False) for each in (one, other))) else [name]
        elif name.endswith(".json"):
            left, right = (json.loads((each / name).read_text()) for each in (one, other))
            for value in (left, right):
                value.pop("timing", None)
                value.pop("peak_memory", None)
            found += [] if left == right else [name]
        else:
            found += [] if (one / name).read_bytes() == (other / name).read_bytes() else [name]
    return found


def _differing_members(name, one, other):
    with np.load(one, allow_pickle=False) as left, np.load(other, allow_pickle=False) as right:
        members = sorted({*left, *right})
        same = [key in left and key in right and _equal(left[key], right[key]) for key in members]
    return [f"{name}:{key}" for key, fine in zip(members, same, strict=True) if not fine]


def _differing_weights(one, other):
    # JAX starts slowly: only who compares weights waits for it.
    import jax

    from i2x_jax import Run

    runs, folders = [Run(one), Run(other)], [one / "checkpoints", other / "checkpoints"]
    steps = [sorted(int(step.name) for step in folder.iterdir()) for folder in folders]
    if steps[0] != steps[1]:
        return [f"checkpoints (steps {steps[0]} and {steps[1]})"]

    def same(step):
        leaves = [jax.tree.leaves(run.variables(step)) for run in runs]
        return all(_equal(np.asarray(a), np.asarray(b)) for a, b in zip(*leaves, strict=True))

    return [f"checkpoints/{step}" for step in steps[0] if not same(step)]


def _equal(left, right):
    if left.dtype != right.dtype:
        return False
    return np.array_equal(left, right, equal_nan=np.issubdtype(left.dtype, np.floating))


def command(workdir: pathlib.Path) -> list[str]:
    """The command of every run here."""
    return [sys.executable, str(ROOT / "run.py"), f"--workdir={workdir}", *SMALL]


def run_timed(workdir: pathlib.Path, environment: dict[str, str]) -> dict[str, float]:
    """Runs to the end, and returns how long each stage took, in seconds.

    Raises:
      RuntimeError: the run failed.
    """
    seen = {}
    with subprocess.Popen(command(workdir), stdout=subprocess.DEVNULL, env=environment) as process:
        while process.poll() is None:
            for name in (*BEGINS.values(), END):
                if name not in seen and (workdir / name).exists():
                    seen[name] = time.monotonic()
            time.sleep(0.005)
    if process.returncode:
        raise RuntimeError(f"the uninterrupted run ended with exit code {process.returncode}")
    moments = [seen[name] for name in (*BEGINS.values(), END)]
    return {stage: after - before for stage, before, after in zip(BEGINS, moments, moments[1:], strict=False)}


def run_killed(workdir: pathlib.Path, stage: str, moment: float, environment: dict[str, str]) -> str:
    """Starts a run, kills it `moment` seconds after a stage began, and returns the step it was at."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command(workdir), stdout=output, stderr=subprocess.STDOUT, env=environment)
        while not (workdir / BEGINS[stage]).exists() and process.poll() is None:
            time.sleep(0.005)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        output.seek(0)
        finished = DONE.findall(output.read())
    return next((step for step in STEPS if step not in finished), "end")


def trial(number: int, stage: str, moment: float, reference: pathlib.Path, environment: dict[str, str]) -> bool:
    """One kill and its resumption; prints a line, and returns whether everything is equal."""
    workdir = reference.parent / f"trial-{number}"
    while (at := run_killed(workdir, stage, moment, environment)) == "end":
        # The reference was slower, and this run is over: nothing was killed.
        shutil.rmtree(workdir)
        moment /= 2
    again = subprocess.run(command(workdir), capture_output=True, text=True, env=environment)
    wrong = differing(workdir, reference) if again.returncode == 0 else [f"exit code {again.returncode}"]
    skipped = again.stdout.count("already done")
    verdict = f"differs: {', '.join(wrong)}" if wrong else "equal"
    print(
        f"kill {number:>2}: {moment:5.2f} s into {stage:<8} at {at:<14} {skipped} steps kept   {verdict}",
        flush=True,
    )
    if not (wrong and _KEEP.value):
        shutil.rmtree(workdir, ignore_errors=True)
    return not wrong


def main(argv: list[str]) -> None:
    """Reference, trials, summary."""
    del argv
    sys.path.insert(0, str(ROOT))
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kill_and_resume-"))
    # Compiled programs are kept between the runs: the time goes into kills, not into compiling.
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    run_timed(folder / "compiling", environment)
    lasting = run_timed(folder / "reference", environment)
    print("reference: " + ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in lasting.items()))
    wrong = differing(folder / "compiling", folder / "reference")
    print(f"uninterrupted twice: {'differs: ' + ', '.join(wrong) if wrong else 'equal'}", flush=True)
    rng = np.random.default_rng(_DRAW.value)
    good = [not wrong]
    for number, stage in zip(range(1, _TRIALS.value + 1), itertools.cycle(lasting), strict=False):
        good.append(trial(number, stage, rng.uniform(0, lasting[stage]), folder / "reference", environment))
    print(f"{sum(good[1:])} of {_TRIALS.value} killed runs ended equal to the uninterrupted one")
    if all(good) or not _KEEP.value:
        shutil.rmtree(folder)
    else:
        print(f"kept: {folder}")
    if not all(good):
        sys.exit(1)


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)
    app.run(main)
