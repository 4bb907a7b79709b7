"""What the programs here that make runs share: flags of run.py that mean nothing to them, and a run without words."""

import pathlib
from collections.abc import Iterable, Sequence

from absl import flags

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
