"""How long each program of a run takes to compile.

    python experiments/benchmarks/compile_times.py --config=experiments/mnist_cnn.py

Runs the config from training to report on fewer images, with two checkpoints, one pass over the data and one seed of
refinement, in a folder that is thrown away. Prints what JAX itself reports of every program: how often it was compiled
(once for each shape), and the seconds it took to trace, to lower and to compile. Batches have the config's sizes, and
nothing comes from a cache.
"""

import collections
import dataclasses
import os
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
from absl import app, flags, logging

from experiments.benchmarks.quiet_runs import NOT_HERE, refuse_flags
from i2x_jax import command as program
from i2x_jax.config import Config, InputError
from i2x_jax.devices.compilation import keep_programs
from i2x_jax.pipeline import stages as pipeline
from i2x_jax.results.files import STAGES

# What JAX calls the three parts (jax/_src/dispatch.py).
PARTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}
IMAGES = 4096  # enough that K-means and BatchNorm work on full blocks

_LEAST = flags.DEFINE_float("least", 0.1, "Programs that took fewer seconds in all are summed up in one line.")


class Programs:
    """What JAX reports of its programs, by their names."""

    def __init__(self):
        self.rows = collections.defaultdict(collections.Counter)
        jax.monitoring.register_event_duration_secs_listener(self.note)

    def note(self, event: str, seconds: float, fun_name: str = "", **_) -> None:
        """Takes one of JAX's events."""
        if event in PARTS:
            row = self.rows[fun_name.removeprefix("jit(").removesuffix(")")]
            row.update({PARTS[event]: seconds, "seconds": seconds, "compiled": PARTS[event] == "compile"})

    def table(self, least: float) -> str:
        """One line for each program, slowest first; what is part of another program counts there."""
        rows = sorted(self.rows.items(), key=lambda item: -item[1]["seconds"])
        rows = [(name, row) for name, row in rows if row["compiled"]]
        few = [row for _, row in rows if row["seconds"] < least]
        shown = [(name, row) for name, row in rows if row["seconds"] >= least]
        shown.append((f"{len(few)} others", sum(few, collections.Counter())))
        shown.append(("all", sum((row for _, row in rows), collections.Counter())))
        head = f"{'program':<28}{'compiled':>9}{'trace':>9}{'lower':>9}{'compile':>9}"
        lines = (
            f"{name:<28}{row['compiled']:>9}{row['trace']:>9.2f}{row['lower']:>9.2f}{row['compile']:>9.2f}"
            for name, row in shown
        )
        return "\n".join((head, *lines))


def shortened(config: Config) -> Config:
    """The same programs in less time."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, max_train=min(config.data.max_train or IMAGES, IMAGES)),
        train=dataclasses.replace(config.train, epochs=1, num_checkpoints=2, checkpoints="log", resume_every=0),
        explain=dataclasses.replace(config.explain, max_pairs=0),
        refine=dataclasses.replace(config.refine, seeds=1),
    )


def main(_):
    """Runs and prints."""
    refuse_flags(("workdir", *NOT_HERE))
    keep_programs("off")
    programs = Programs()
    config = shortened(program.config())
    data_dir = program.data_dir()
    with tempfile.TemporaryDirectory() as folder:
        pipeline.run(config, folder, STAGES, data_dir)
    print(f"\njax {jax.__version__}, {jax.devices()[0]}, {len(os.sched_getaffinity(0))} cores; seconds")
    print(programs.table(_LEAST.value))


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)
    try:
        app.run(main, flags_parser=program.parse)
    except InputError as problem:
        print(f"compile_times.py: error: {problem}", file=sys.stderr)
        sys.exit(2)
