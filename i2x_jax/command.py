"""Trains a classifier, explains how it learned to decide, and refines it by what the explanation found.

Stages: train, explain, refine, report, all of them by default, and trust: how far the explanation of a run can be
trusted, in trust.json and in its report. A stage that needs an earlier one runs it; what is finished is
not done again, and a run that was stopped goes on with the same command. A full run ends with report.html in the run
directory; where that will be is said at the start.

Settings come from the file that --config names, else from the run directory, if --workdir has one, else they are the
defaults, which are those of the digits experiment. Any of them can be set with --config.KEY=VALUE. Names in a list are
separated by commas; one that contains a comma, a quote or outer spaces is put in double quotes, and a double quote in
it is doubled: --config.refine.pair='"Pepper, bell",Tomato'

Output: a line for each step and at the end a summary, on stdout; while a step is at work, a bar with count, rate and
time left on stderr, if that is a terminal. With --verbosity=-1 (warnings) or less, the summary alone. With
--verbosity=0 (information) or more, what the libraries report besides.

Exit codes:

    0    done
    1    a bug; its traceback says where
    2    something that was given cannot be used; one line on stderr says what, what is allowed and how to mend it
    130  stopped by Ctrl-C; the same command goes on
"""

import ast
import dataclasses
import gc
import os
import pathlib
import re
import sys
import types
from collections.abc import Sequence
from typing import Any

from absl import flags, logging

from i2x_jax import config as config_lib
from i2x_jax.config import OWN, Config, InputError, from_config_dict, printable
from i2x_jax.devices.host_memory import keep_freed_memory
from i2x_jax.results.files import ASKED_STAGES, CONFIG, STAGES, read_header, steps_of
from i2x_jax.streams import check_surroundings, drop_output, say

NAME = "i2x-jax"
INTERRUPTED = 130  # 128 and the number of the signal, as shells have it.
PEER_LOST = (
    "another process of this run has ended; allowed: all of them at work; see what it printed, then start all of them "
    "again with the same commands: finished work is kept"
)
HELP = ("--help", "-help", "-h", "-?", "--helpshort", "--helpfull")
# A name in a list: in double quotes, in which a double quote is doubled, or as it is up to the next comma.
LISTED = re.compile(r'\s*+(?:"((?:[^"]|"")*)"|((?!")[^,]*?))\s*(,|$)')

_CONFIG = flags.DEFINE_string("config", None, "A Python file with get_config(), which returns settings, all or some.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run directory. Default: runs/<name of the config file, or else of the data set>."
)
_STAGE = flags.DEFINE_multi_enum(
    "stage", list(STAGES), [*STAGES, *ASKED_STAGES], "What to do; may be given several times. Default: all but trust."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where prepared data sets are. Default: $TFDS_DATA_DIR.")
_TENSORBOARD = flags.DEFINE_bool("tensorboard", False, "Write the metrics as TensorBoard events too (tensorboardX).")
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print what the run would read, hold in memory, write and take, by step, and end."
)
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
# What --config.KEY=VALUE becomes: such names are settings, not flags.
_SETTING = flags.DEFINE_multi_string("setting", [], "KEY=VALUE")


def main() -> None:
    """Does what the command line asks for and ends the process with an exit code (see above)."""
    sys.exit(exit_code(sys.argv))


def exit_code(argv: list[str]) -> int:
    """Does what a command line asks for; whatever cannot be used becomes one line on stderr."""
    try:
        check_surroundings()
        if any(argument in HELP for argument in argv[1:]):
            say(usage(argv[0]))
        else:
            logging.set_verbosity(logging.ERROR)
            logging.use_absl_handler()
            parse(argv)
            work()
        return 0
    except BrokenPipeError:
        # Whoever read the output has seen enough, as in `run.py | head`.
        drop_output()
        return 0
    except InputError as problem:
        return refused(str(problem))
    except KeyboardInterrupt:
        print(f"{program()}: stopped; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        # Files and folders are not this program's: what is wrong with them is no bug.
        what = "a file or folder" if error.filename is None else os.fsdecode(error.filename)
        return refused(
            f"{what} cannot be used ({error.strerror or one_line(error)}); allowed: one that is there, with "
            "permission and space; check the paths that were given"
        )


def refused(reason: str) -> int:
    """Says on stderr, if anybody is there, why nothing came of it; returns the exit code."""
    try:
        print(f"{program()}: error: {one_line(reason)}", file=sys.stderr, flush=True)
    except OSError:
        drop_output(sys.stderr)
    return 2


def program() -> str:
    """What this program was started as: run.py, or i2x-jax."""
    name = pathlib.Path(sys.argv[0] if sys.argv else "").name
    return name if name.endswith(".py") and name != "__main__.py" else NAME


def usage(name: str) -> str:
    """What --help prints: this module's docstring, the flags, and every setting with its help and range."""
    lines = [f"usage: {pathlib.Path(name).name if name.endswith('run.py') else NAME} [--FLAG=VALUE ...]", ""]
    lines += [__doc__.strip(), "", "Flags:", ""]
    for flag in flags.FLAGS.get_flags_for_module(sys.modules[__name__]):
        if flag.name != _SETTING.name:
            lines += [f"  --{flag.name}", f"      {' '.join(flag.help.split())}"]
    lines += ["  --verbosity", "      How much is said, from -3 to 1 (see above)."]
    lines += ["", "Settings, with their defaults:", ""]
    for key, field in config_lib.declared():
        default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        lines += [
            f"  --config.{key}={default}",
            f"      {field.metadata['help']} Allowed: {config_lib.allowed(field)}.",
        ]
    return "\n".join(lines)


def parse(argv: list[str]) -> list[str]:
    """Parses a command line into absl's flags; what is wrong with it is an `InputError`. See `config`."""
    try:
        rest = flags.FLAGS(as_flags(flags.FLAGS.read_flags_from_files(argv, force_gnu=False)))
    except (flags.Error, OSError) as error:
        raise InputError(f"{one_line(error)}; see --help") from None
    config()
    if rest[1:]:
        raise InputError(f"unexpected argument {rest[1]!r}; allowed: flags only; see --help")
    return rest


def as_flags(argv: Sequence[str]) -> list[str]:
    """The command line with each --config.KEY=VALUE as a value of one flag: settings are no flags."""
    fields, given = dict(config_lib.declared()), iter(argv)
    made = [next(given)]
    for argument in given:
        name, equals, value = argument.partition("=")
        if argument == "--":
            made += [argument, *given]
        elif not re.match("--?config[.]", name):
            made.append(argument)
        else:
            key = name.lstrip("-").removeprefix("config.")
            if not equals:
                value = "True" if key in fields and fields[key].type is bool else next(given, None)
            if value is None:
                raise InputError(f"--config.{key} has no value; allowed: --config.KEY=VALUE; see --help")
            made.append(f"--{_SETTING.name}={key}={value}")
    return made


def config() -> Config:
    """The settings that the parsed command line asks for."""
    return chosen(expanded(_CONFIG.value), expanded(_WORKDIR.value), _SETTING.value)


def data_dir() -> str | None:
    """Where the parsed command line, or the environment, says that prepared data sets are."""
    return expanded(_DATA_DIR.value or os.environ.get("TFDS_DATA_DIR"))


def chosen(config_file: str | None, workdir: str | None, changes: Sequence[str]) -> Config:
    """Settings from a file, else those of a run directory, else the defaults, with changes.

    Args:
      config_file: a Python file with get_config().
      workdir: a run directory, which need not be there.
      changes: 'KEY=VALUE' each, as on the command line.

    Raises:
      InputError: the file or the directory cannot be read, or a setting cannot be used.
    """
    if config_file:
        settings = from_file(config_file)
    elif workdir and os.path.lexists(pathlib.Path(workdir, CONFIG)):
        settings = read_header(pathlib.Path(workdir).absolute())["config"]
    else:
        settings = {}
    fields = dict(config_lib.declared())
    # Checked before the changes, so that what is said of the file is about the file.
    settings = config_lib.to_dict(from_config_dict(settings))
    for change in changes:
        key, _, text = change.partition("=")
        *groups, name = key.split(".")
        group = settings
        for each in groups:
            group = group.setdefault(each, {}) if isinstance(group, dict) else {}
        if isinstance(group, dict):
            group[name] = from_text(fields[key], text) if key in fields else text
    return from_config_dict(settings)


def from_file(path: str) -> Any:
    """What get_config() of a config file returns; what follows a colon in `path` is its argument.

    Raises:
      InputError: the file is not there, is not Python, has no get_config(), or fails.
    """
    allowed = "allowed: a Python file with get_config(), such as experiments/mnist_cnn.py; set --config"
    name, colon, argument = path.partition(":")
    try:
        code = compile(pathlib.Path(name).read_bytes(), name, "exec")
    except OSError as error:
        raise InputError(f"config file {path!r} cannot be read ({error.strerror}); {allowed}") from None
    except (SyntaxError, ValueError) as error:
        raise InputError(f"config file {path!r} is not Python ({one_line(error)}); {allowed}") from None
    # Dataclasses look for the module that they are made in.
    module = sys.modules["i2x_jax_config"] = types.ModuleType("i2x_jax_config")
    module.__file__ = name
    try:
        exec(code, vars(module))
        if not callable(getattr(module, "get_config", None)):
            raise InputError(f"config file {path!r} has no get_config(); {allowed}")
        return module.get_config(*([argument] if colon else []))
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"config file {path!r} fails ({type(error).__name__}: {one_line(error)}); {allowed}") from None


def from_text(field: dataclasses.Field, text: str) -> Any:
    """The value that text on a command line stands for; where it stands for none of its type, the text itself."""
    if field.metadata.get("path"):
        return expanded(text)
    if field.metadata.get("parse") == "checkpoints" and text in field.metadata["choices"]:
        return text
    try:
        if field.metadata.get("parse") == "images":
            return int(text)
        if field.metadata.get("parse") in ("checkpoints", "ids"):
            return tuple(int(number) if isinstance(number, str) else number for number in listed(text))
        if "parse" in field.metadata:
            return listed(text)
        if field.type is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return field.type(text)
    except (KeyError, ValueError):
        return text


def listed(text: str) -> tuple:
    """A list as written on a command line: a,b or "a,b",c (see above), or as Python has it, such as ('a,b', 'c').

    Raises:
      ValueError: something stands behind a closing quote.
    """
    if text[:1] in ("(", "[", "'"):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
        if isinstance(value, (tuple, list)):
            return tuple(value)
        if isinstance(value, str):
            return (value,)
    names, place = [], 0
    while text.strip():
        found = LISTED.match(text, place)
        if not found:
            raise ValueError(f"{text[place:]!r} is no list")
        quoted, plain, comma = found.groups()
        if quoted is not None or plain:
            names.append(plain if quoted is None else quoted.replace('""', '"'))
        place = found.end()
        if not comma:
            break
    return tuple(names)


def expanded(path: str | None) -> str | None:
    """The path with ~ as the user's folder: shells do not see it behind an equals sign."""
    return os.path.expanduser(path) if path else path


def default_workdir(config_file: str | None, settings: Config) -> str:
    """Where a run goes that was given no --workdir: under runs, in the current folder."""
    kind, _, path = settings.data.name.partition(":")
    if config_file:
        name = pathlib.Path(config_file.partition(":")[0]).stem
    else:
        # Of pictures the folder or file is what they are called.
        name = pathlib.Path(path).stem if kind in ("folder", "csv") else settings.data.name
    return os.path.join("runs", re.sub(r"[^\w.-]", "-", name).lstrip(".") or NAME)


def one_line(error: Any) -> str:
    """What an exception says, or its kind where it says nothing."""
    text = printable(" ".join(str(error).split()))
    return text or type(error).__name__


def work() -> None:
    """Does what the parsed command line asks for."""
    settings = config()
    if _LIST_TAPS.value:
        start_jax().check_devices()
        from i2x_jax.report.taps import tap_table

        say(tap_table(settings, data_dir()))
        return
    processes = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _CLUSTER.value)
    keep_freed_memory()
    several = processes != (None, None, None, False)
    if _DRY_RUN.value:
        workdir = expanded(_WORKDIR.value) or default_workdir(_CONFIG.value, settings)
        dry_run(settings, workdir, _STAGE.value, processes if several else None)
        return
    # Without the flag the libraries tell of errors only; that is no wish for silence.
    verbosity = flags.FLAGS["verbosity"]
    quiet = bool(verbosity.present) and verbosity.value < logging.INFO
    run(
        settings,
        expanded(_WORKDIR.value) or default_workdir(_CONFIG.value, settings),
        _STAGE.value,
        data_dir(),
        processes if several else None,
        _TENSORBOARD.value,
        quiet,
        expanded(_COMPILATION_CACHE.value),
    )


def dry_run(config: Config, workdir: str, stages: Sequence[str], processes: tuple | None) -> None:
    """Prints what a run would take; arguments and errors as in `run`, and a run that does not fit is an error."""
    from i2x_jax.pipeline.directory import RunDirectory

    RunDirectory(workdir, refinement=config.refine.name).check_config(config)
    refuse_own(config, workdir)
    mesh = start_jax()
    from i2x_jax.pipeline import stages as pipeline

    if processes:
        mesh.start(*processes)
    mesh.check_devices()
    found = pipeline.dry_run(config, workdir, stages, data_dir())
    if mesh.is_main():
        say(found)


def refuse_own(config: Config, workdir: str) -> None:
    """Raises `InputError` for a run of a user's own model, which is not here."""
    if config.model.name == OWN:
        raise InputError(
            f"{pathlib.Path(workdir).absolute()} explains a model and images of your own, which it does not hold; "
            "allowed: a run of this program; call i2x_jax.explain again, with what is asked for (trust=True)"
        )


def start_jax() -> types.ModuleType:
    """Imports JAX and returns `devices.mesh`; a JAX that cannot be imported, or misled, is an `InputError`."""
    try:
        import jax  # noqa: F401
    except (ImportError, ValueError, RuntimeError) as error:
        raise InputError(
            f"JAX cannot be started ({one_line(error)}); allowed: jax and jaxlib as in requirements.txt, and in "
            "variables named JAX_... what JAX allows; install them, or unset the variable"
        ) from None
    from i2x_jax.devices import mesh

    return mesh


def run(
    config: Config,
    workdir: str,
    stages: Sequence[str],
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
      stages: of `results.files.STAGES` and `ASKED_STAGES`.
      data_dir: where prepared data sets are.
      processes: the arguments of `mesh.start`, for a run of several.
      events: write the metrics as TensorBoard events too.
      quiet: print the summary alone.
      programs: where compiled programs are kept, see `compilation.keep_programs`; None leaves that to JAX.

    Raises:
      InputError: something that was given cannot be used.
    """
    from i2x_jax.pipeline.directory import RunDirectory
    from i2x_jax.results.opened_run import Run

    directory = RunDirectory(workdir, refinement=config.refine.name)
    directory.check_config(config)
    if not events and all(directory.complete(step) for step in steps_of(stages)):
        if not quiet:
            say(f"Nothing to do: {', '.join(stages)} already done.\n")
    else:
        refuse_own(config, workdir)
        if not run_stages(config, workdir, stages, data_dir, processes, events, quiet, programs):
            return
        if not quiet:
            say("")
    say(Run(workdir, data_dir).summary())


def run_stages(
    config: Config,
    workdir: str,
    stages: Sequence[str],
    data_dir: str | None,
    processes: tuple | None,
    events: bool,
    quiet: bool,
    programs: str | None,
) -> bool:
    """Starts JAX and runs the stages; whether this is the process that speaks. Arguments as for `run`."""
    # 400,000 objects that stay to the end: looking for garbage among them, while they are made, later and at exit,
    # took a third of the time of a start.
    gc.disable()
    mesh = start_jax()
    from i2x_jax.devices import compilation
    from i2x_jax.pipeline import stages as pipeline

    gc.freeze()
    gc.enable()
    if programs is not None:
        compilation.keep_programs(programs)
    if processes:
        mesh.start(*processes)
    mesh.check_devices()
    try:
        pipeline.run(config, workdir, stages, data_dir, events, quiet)
    except Exception as error:
        if not mesh.lost(error):
            raise
        refused(PEER_LOST)
        # An orderly end would wait for the process that is gone.
        os._exit(2)
    return mesh.is_main()
