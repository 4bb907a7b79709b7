"""Trains a classifier, explains how it learned to decide, and refines it by what the explanation found.

Examples:

    python run.py
    python run.py --config=experiments/digits.py --workdir=runs/mine --config.train.epochs=30
    python run.py --workdir=runs/mine --stage=train --stage=explain

Stages: train, explain, refine; all by default. A stage that needs an earlier one runs it; what is finished is not done
again, and a run that was stopped goes on with the same command. Exit codes: 0 done, 1 a bug, 2 something that was given
cannot be used (one line says what).
"""

import os
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from i2x_jax.config import Config, InputError, from_config_dict
from i2x_jax.run_directory import STAGES, STEPS, Run, RunDirectory

ROOT = pathlib.Path(__file__).parent
DEFAULT_CONFIG = str(ROOT / "experiments" / "digits.py")

_CONFIG = config_flags.DEFINE_config_file(
    "config", DEFAULT_CONFIG, "The experiment; any of its values can be set with --config.KEY=VALUE."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run directory. Default: runs/<name of the config file>.")
_STAGE = flags.DEFINE_multi_enum("stage", list(STAGES), list(STAGES), "What to do; may be given several times.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where prepared data sets are. Default: $TFDS_DATA_DIR.")


def parse(argv: list[str]) -> list[str]:
    """Parses the command line; what is wrong with it is an `InputError` instead of a traceback."""
    try:
        rest = flags.FLAGS(argv)
        from_config_dict(_CONFIG.value)
    except InputError:
        raise
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, SyntaxError) as error:
        raise InputError(_one_line(error)) from None
    if rest[1:]:
        raise InputError(f"unexpected argument {rest[1]!r}; allowed: flags only; see --help")
    return rest


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines) if lines else type(error).__name__


def run(config: Config, workdir: str, stages: list[str], data_dir: str | None) -> None:
    """Runs the stages and prints the summary; a finished run is only summarized."""
    from i2x_jax.report.summary import summary

    directory = RunDirectory(workdir)
    directory.check_config(config)
    wanted = [step for step, (stage, _) in STEPS.items() if stage in stages]
    if all(directory.complete(step) for step in wanted):
        print(f"Nothing to do: {', '.join(stages)} already done.")
    else:
        from i2x_jax import pipeline

        pipeline.run(config, workdir, stages, data_dir)
    print(f"\n{summary(Run(workdir, data_dir))}")


def main(argv: list[str]) -> None:
    """Flags to config to stages."""
    del argv
    workdir = _WORKDIR.value or str(ROOT / "runs" / pathlib.Path(flags.FLAGS["config"].config_filename).stem)
    data_dir = _DATA_DIR.value or os.environ.get("TFDS_DATA_DIR")
    run(from_config_dict(_CONFIG.value), workdir, _STAGE.value, data_dir)


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)
    try:
        app.run(main, flags_parser=parse)
    except BrokenPipeError:
        # Whoever read the output has seen enough, as in `run.py | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as problem:
        print(f"run.py: error: {_one_line(problem)}", file=sys.stderr)
        sys.exit(2)
