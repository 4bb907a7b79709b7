"""A run that is killed in one stage after another, goes on each time, and is made once for all who ask about it."""

import itertools
import pathlib
import shutil

from i2x_jax import Run
from i2x_jax.results.files import CHECKPOINTS, STEPS, TENSORBOARD
from tests.programs import contents, kill_when, made_once, run, steps_printed


def steps_before(step: str) -> list[str]:
    return list(itertools.takewhile(lambda name: name != step, STEPS))


def files_of_steps(workdir: pathlib.Path, steps: list[str]) -> dict:
    """Bytes and time of change of the files that these steps have made."""
    every = contents(workdir)
    return {name: every[name] for step in steps for name in STEPS[step][1]}


def kill_inside(base: pathlib.Path, workdir: pathlib.Path, begun: str, ended: str, *more: str) -> None:
    """Kills a run while the first of these files is there and the second not yet.

    On a busy machine the kill may come too late; then once more, from where it started.
    """
    before = base / "killed-before"
    shutil.copytree(workdir, before)
    for _ in range(5):
        kill_when(base, workdir, (workdir / begun).exists, *more)
        if not (workdir / ended).exists():
            break
        shutil.rmtree(workdir)
        shutil.copytree(before, workdir)
    shutil.rmtree(before)
    assert (workdir / begun).exists()
    assert not (workdir / ended).exists()


def kill_in_each_stage(base: pathlib.Path, workdir: pathlib.Path, third: str) -> None:
    """Kills a run, with TensorBoard's events, in three of its stages (`third` is a checkpoint), then lets it finish."""
    workdir.mkdir()
    # A stage runs those before it.
    kill_inside(base, workdir, f"{CHECKPOINTS}/{third}", "steps.npy", "--tensorboard", "--stage=explain")
    assert list((workdir / TENSORBOARD).iterdir())
    kept = {path.name: path.stat().st_mtime_ns for path in (workdir / CHECKPOINTS).glob("[0-9]*")}
    assert len(kept) >= 3

    evidence = ".partial-evidence/intensity.npy", "intensity.npy"
    kill_inside(base, workdir, *evidence, "--tensorboard", "--stage=explain")
    assert {name: (workdir / CHECKPOINTS / name).stat().st_mtime_ns for name in kept} == kept
    trained = files_of_steps(workdir, steps_before("evidence"))

    kill_inside(base, workdir, ".refine-seed-0.json", "refinement.json")
    explained = files_of_steps(workdir, steps_before("refine"))
    assert trained.items() <= explained.items()

    output = run(base, workdir)
    assert steps_printed(output, "already done") == steps_before("refine")
    assert steps_printed(output, "done") == ["refine", "report"]
    assert files_of_steps(workdir, steps_before("refine")) == explained


def killed_run(base: pathlib.Path, finished: pathlib.Path) -> pathlib.Path:
    """The run directory, not to be changed; its settings are those of the run `finished`."""
    workdir = base / "killed"
    third = str(Run(finished).steps[2])
    made_once(base, "killed", lambda: kill_in_each_stage(base, workdir, third))
    return workdir
