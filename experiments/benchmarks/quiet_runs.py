"""What the programs here that make runs share: how they start, flags of run.py that mean nothing there, quiet runs."""

import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence

from absl import app, flags, logging

from i2x_jax import Run
from i2x_jax.config import Config, InputError
from i2x_jax.data.dataset import Splits
from i2x_jax.devices.mesh import barrier
from i2x_jax.pipeline import stages as pipeline
from i2x_jax.pipeline.directory import RunDirectory

# Flags of run.py, whose reader of command lines is used, that mean nothing here.
NOT_HERE = (
    *("stage", "coordinator", "num_processes", "process_id", "cluster"),
    *("list_taps", "tensorboard", "compilation_cache"),
)


def start(main: Callable[[list[str]], None], parse: Callable[[list[str]], list[str]] | None = None) -> None:
    """Runs a program; what cannot be used is one line, and exit code 2.

    Args:
      main: told the command line.
      parse: reads it first; None for absl's own way. That of run.py is left to those whose flags are its.
    """
    logging.set_verbosity(logging.ERROR)
    try:
        app.run(main, **({"flags_parser": parse} if parse else {}))
    except InputError as problem:
        print(f"{pathlib.Path(sys.argv[0]).name}: error: {problem}", file=sys.stderr)
        sys.exit(2)


def refuse_flags(names: Iterable[str], where: str = "here") -> None:
    """Raises `InputError` if any of these flags was given."""
    for name in names:
        if flags.FLAGS[name].present:
            raise InputError(f"--{name} has no meaning {where}; allowed: see --help; leave it out")


def made(config: Config, folder: pathlib.Path, splits: Splits, steps: Sequence[str]) -> Run:
    """A run with some steps of `results.files.STEPS`, gone on with where it was stopped."""
    directory = RunDirectory(folder, True, barrier, config.refine.name)
    directory.quiet = True
    return pipeline.run_steps(config, directory, steps, splits, lambda line: None)
