"""How long each program of a run takes to compile.

    python experiments/compile_times.py --config=experiments/mnist_cnn.py

Runs the config from training to the refinement of one seed, on fewer images, with two checkpoints and one pass over the
data, in a folder that is thrown away, and prints what JAX itself reports of every program: how often it was compiled
(once for each shape), and the seconds for tracing it, lowering it and compiling it. Sizes of batches are the config's;
nothing is taken from a cache.
"""

import collections
import dataclasses
import os
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
from absl import app, flags, logging

import run as program
from i2x_jax import pipeline
from i2x_jax.compilation import keep_programs
from i2x_jax.config import Config, InputError, from_config_dict

# What JAX calls the three parts (jax/_src/dispatch.py).
PARTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}
# Enough that K-means and BatchNorm work on full blocks.
IMAGES = 4096

_LEAST = flags.DEFINE_float("least", 0.1, "Programs that took fewer seconds in all are summed up in one line.")


class Programs:
    """What JAX reports of its programs, by their names."""

    def __init__(self):
        self.seconds = collections.defaultdict(collections.Counter)
        self.compiled = collections.Counter()
        jax.monitoring.register_event_duration_secs_listener(self.note)

    def note(self, event: str, seconds: float, fun_name: str = "", **_) -> None:
        """Takes one of JAX's events."""
        if event in PARTS:
            name = fun_name.removeprefix("jit(").removesuffix(")").removeprefix("jit_")
            self.seconds[name][PARTS[event]] += seconds
            self.compiled[name] += PARTS[event] == "compile"

    def table(self, least: float) -> str:
        """One line for each program, slowest first; what is part of another program counts there."""
        rows = {name: parts for name, parts in self.seconds.items() if self.compiled[name]}
        slow = sorted((name for name in rows if rows[name].total() >= least), key=lambda name: -rows[name].total())
        lines = [(name, self.compiled[name], rows[name]) for name in slow]
        rest = [name for name in rows if name not in slow]
        others = sum((rows[name] for name in rest), collections.Counter())
        lines.append((f"{len(rest)} others", sum(self.compiled[name] for name in rest), others))
        lines.append(("all", self.compiled.total(), sum(rows.values(), collections.Counter())))
        head = f"{'program':<28}{'compiled':>9}" + "".join(f"{part:>9}" for part in PARTS.values())
        body = (
            f"{name:<28}{count:>9}" + "".join(f"{parts[part]:>9.2f}" for part in PARTS.values())
            for name, count, parts in lines
        )
        return "\n".join((head, *body))


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
    keep_programs("off")
    programs = Programs()
    config = shortened(from_config_dict(flags.FLAGS["config"].value))
    data_dir = flags.FLAGS["data_dir"].value or os.environ.get("TFDS_DATA_DIR")
    with tempfile.TemporaryDirectory() as folder:
        pipeline.run(config, folder, ["train", "explain", "refine"], data_dir)
    print(f"\njax {jax.__version__}, {jax.devices()[0]}, {len(os.sched_getaffinity(0))} cores; seconds")
    print(programs.table(_LEAST.value))


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)
    try:
        app.run(main, flags_parser=program.parse)
    except InputError as problem:
        print(f"compile_times.py: error: {problem}", file=sys.stderr)
        sys.exit(2)
