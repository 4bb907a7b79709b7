"""Trains a classifier, explains how it learned to decide, and refines it by what the explanation found.

For example:

    python run.py
    python run.py --config=experiments/digits.py --workdir=runs/mine --config.train.epochs=30
    python run.py --workdir=runs/mine --stage=train --stage=explain

Stages: train, explain, refine, report; all by default. A stage that needs an earlier one runs it; what is finished is
not done again, and a run that was stopped goes on with the same command. A full run ends with report.html in the run
directory; where that will be is said at the start.

Output: a line for each step and at the end a summary, on stdout; while a step is at work, a bar with count, rate and
time left on stderr, if that is a terminal. With --verbosity=-1 (warnings) or less, the summary alone. With
--verbosity=0 (information) or more, what the libraries report besides.

Exit codes:

    0    done
    1    a bug; its traceback says where
    2    something that was given cannot be used; one line on stderr says what, what is allowed and how to mend it
    130  stopped by Ctrl-C; the same command goes on
"""

import gc
import os
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from i2x_jax import Run
from i2x_jax.config import Config, InputError, from_config_dict
from i2x_jax.devices.host_memory import keep_freed_memory
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.results.files import STAGES, STEPS

ROOT = pathlib.Path(__file__).parent
INTERRUPTED = 130  # 128 and the number of the signal, as shells have it.
PEER_LOST = (
    "another process of this run has ended; allowed: all of them at work; see what it printed, then start all of them "
    "again with the same commands: finished work is kept"
)
DEFAULT_CONFIG = str(ROOT / "experiments" / "digits.py")

# Without a default here: it would be loaded, and its errors raised, before anything can catch them.
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The experiment; any of its values can be set with --config.KEY=VALUE. Default: experiments/digits.py.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run directory. Default: runs/<name of the config file>.")
_STAGE = flags.DEFINE_multi_enum("stage", list(STAGES), list(STAGES), "What to do; may be given several times.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where prepared data sets are. Default: $TFDS_DATA_DIR.")
_TENSORBOARD = flags.DEFINE_bool("tensorboard", False, "Write the metrics as TensorBoard events too (tensorboardX).")
_LIST_TAPS = flags.DEFINE_bool("list_taps", False, "Print where the network can be cut, with map sizes, and end.")
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    "default",
    "Where compiled programs are kept for the next run: a folder, 'default' for i2x_jax in the user's cache, or 'off'.",
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, for a run of several processes.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes the run has.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)
_CLUSTER = flags.DEFINE_bool("cluster", False, "Ask the cluster (SLURM, Cloud TPU) for the three above.")


def parse(argv: list[str]) -> list[str]:
    """Parses the command line; what is wrong with it is an `InputError` instead of a traceback."""
    path = _config_path(argv)
    if path is None:
        argv = [argv[0], f"--config={DEFAULT_CONFIG}", *argv[1:]]
    else:
        check_config_file(path)
    check_overrides(argv)
    try:
        rest = flags.FLAGS(argv)
        from_config_dict(_CONFIG.value)
    except InputError:
        raise
    except flags.IllegalFlagValueError as error:
        check_overrides(argv, str(error))
        raise InputError(f"{_one_line(error)}; see --help") from None
    except (flags.Error, AttributeError, KeyError, NameError, ImportError, TypeError, ValueError, OSError) as error:
        raise InputError(f"{_one_line(error)}; see --help") from None
    if rest[1:]:
        raise InputError(f"unexpected argument {rest[1]!r}; allowed: flags only; see --help")
    return rest


def check_config_file(path: str) -> None:
    """Raises `InputError` for a config file that is not there or is not Python."""
    allowed = "allowed: a Python file with get_config(), such as experiments/digits.py; set --config"
    try:
        # What follows a colon is an argument of get_config.
        code = compile(pathlib.Path(path.split(":")[0]).read_bytes(), path, "exec")
    except OSError as error:
        raise InputError(f"config file {path!r} cannot be read ({error.strerror}); {allowed}") from None
    except (SyntaxError, ValueError) as error:
        raise InputError(f"config file {path!r} is not Python ({_one_line(error)}); {allowed}") from None
    if "get_config" not in code.co_names:
        raise InputError(f"config file {path!r} has no get_config(); {allowed}")


def check_overrides(argv: list[str], refused: str = "") -> None:
    """Raises `InputError` for a --config.KEY that is no setting, or for the one that absl `refused` for its type."""
    for argument in argv[1:]:
        name, _, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name.startswith("config."):
            nested = value
            for key in reversed(name.split(".")[1:]):
                nested = {key: nested}
            try:
                from_config_dict(nested)
            except InputError as error:
                # Everything on a command line is text: the type of the others is for absl to tell.
                if str(error).startswith("unknown config key") or refused.startswith(f"flag --{name}={value}:"):
                    raise


def _config_path(argv):
    for place, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            return value if equals else "".join(argv[place + 1 : place + 2])
    return None


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines) if lines else type(error).__name__


def run(
    config: Config,
    workdir: str,
    stages: list[str],
    data_dir: str | None,
    processes: tuple | None = None,
    events: bool = False,
    quiet: bool = False,
    programs: str | None = None,
) -> None:
    """Runs the stages and prints the summary; a finished run is only summarized, or gets its TensorBoard `events`.

    Args:
      config: all settings.
      workdir: the run directory.
      stages: of `results.files.STAGES`.
      data_dir: where prepared data sets are.
      processes: the arguments of `distributed.start`, for a run of several.
      events: write the metrics as TensorBoard events too.
      quiet: print the summary alone.
      programs: where compiled programs are kept, see `compilation.keep_programs`; None leaves that to JAX.

    Raises:
      InputError: something that was given cannot be used.
    """
    directory = RunDirectory(workdir)
    directory.check_config(config)
    wanted = [step for step, (stage, _) in STEPS.items() if stage in stages]
    if not events and all(directory.complete(step) for step in wanted):
        if not quiet:
            print(f"Nothing to do: {', '.join(stages)} already done.\n")
    else:
        # 400,000 objects that stay to the end: looking for garbage among them, while they are made, later and at exit,
        # took a third of the time of a start.
        gc.disable()
        from i2x_jax.devices import compilation
        from i2x_jax.devices import mesh as distributed
        from i2x_jax.pipeline import stages as pipeline

        gc.freeze()
        gc.enable()
        if programs is not None:
            compilation.keep_programs(programs)
        if processes:
            distributed.start(*processes)
        try:
            pipeline.run(config, workdir, stages, data_dir, events, quiet)
        except Exception as error:
            if not distributed.lost(error):
                raise
            print(f"run.py: error: {PEER_LOST}", file=sys.stderr, flush=True)
            # An orderly end would wait for the process that is gone.
            os._exit(2)
        if not distributed.is_main():
            return
        if not quiet:
            print()
    print(Run(workdir, data_dir).summary())


def main(argv: list[str]) -> None:
    """Flags to config to stages."""
    del argv
    config = from_config_dict(_CONFIG.value)
    workdir = _WORKDIR.value or str(ROOT / "runs" / pathlib.Path(flags.FLAGS["config"].config_filename).stem)
    data_dir = _DATA_DIR.value or os.environ.get("TFDS_DATA_DIR")
    if _LIST_TAPS.value:
        from i2x_jax.report.taps import tap_table

        print(tap_table(config, data_dir))
        return
    processes = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _CLUSTER.value)
    several = processes != (None, None, None, False)
    keep_freed_memory()
    # Without the flag the libraries tell of errors only; that is no wish for silence.
    verbosity = flags.FLAGS["verbosity"]
    quiet = bool(verbosity.present) and verbosity.value < logging.INFO
    run(
        config,
        workdir,
        _STAGE.value,
        data_dir,
        processes if several else None,
        _TENSORBOARD.value,
        quiet,
        _COMPILATION_CACHE.value,
    )


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)
    try:
        app.run(main, flags_parser=parse)
    except BrokenPipeError:
        # Whoever read the output has seen enough, as in `run.py | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except InputError as problem:
        print(f"run.py: error: {_one_line(problem)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("run.py: stopped; the same command goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)
