"""What the files of a run may hold, and reading them (DESIGN section 4).

A run directory may be damaged, or come from somebody else: every file is checked against what it should be before it is
used, nothing in it is ever unpickled, and no link is followed.
"""

import json
import math
import os
import pathlib
import stat
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

from i2x_jax import config as config_lib
from i2x_jax.config import Config, InputError

CONFIG, METRICS = "config.json", "metrics.jsonl"
CHECKPOINTS, EXPLANATION, TENSORBOARD = "checkpoints", "explanation.json", "tensorboard"
REFINEMENT, CONTACT_SHEET, REPORT = "refinement.json", "contact_sheet.png", "report.html"

# The steps of a run in order: the stage each belongs to and the files it makes. A step whose files are all there is
# complete, because files only ever get their names when they are.
STEPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "train": ("train", ("labels.npy", "steps.npy")),
    "prototypes": ("explain", ("prototypes.npz",)),
    "evidence": (
        "explain",
        (
            *("assignments.npy", "intensity.npy", "confidence.npy", "account.npy"),
            *("contributions.npz", "ledger.npz", "prototype_features.npz", "validation.npz", "test.npz"),
        ),
    ),
    "mapping": ("explain", ("groups.npy", "mapping.npz", "curated.npz", EXPLANATION)),
    "contact_sheet": ("explain", (CONTACT_SHEET,)),
    "refine": ("refine", (REFINEMENT,)),
    "report": ("report", (REPORT,)),
}
STAGES = tuple(dict.fromkeys(stage for stage, _ in STEPS.values()))
SCHEMAS = pathlib.Path(__file__).parent / "schemas"
# More digits are no number that a run could have written.
MAX_DIGITS = 19


def read(path: pathlib.Path, read_from: Callable[[pathlib.Path], Any]) -> Any:
    """What `read_from(path)` returns.

    Raises:
      InputError: there is no such file, it is a link or no file, or reading it failed; one line with the mend.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ValueError("it is not a file of its own")
        return read_from(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; run the stage that makes it, or check the directory") from None
    # The last three are what absurd sizes and endless nesting end in.
    except (
        *(OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error),
        *(ArithmeticError, MemoryError, RecursionError),
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].split("; allowed:")[0]
        lost = path.name in (CONFIG, METRICS)
        mend = (
            "restore it or choose another workdir" if lost else "move it away and run the same command to make it again"
        )
        raise InputError(f"{path} cannot be read ({reason}); allowed: a file made by this program; {mend}") from None


def file_state(path: pathlib.Path) -> tuple[int, ...] | None:
    """What changes when a file is replaced or written to; None where there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def read_json(path: pathlib.Path, schema: str = "") -> Any:
    """A JSON file of a run, valid by one of `schemas/` if named. Errors as in `read`."""

    def load(path):
        value = strict_json(path.read_text())
        if schema:
            check_json(value, schema)
        return value

    return read(path, load)


def strict_json(text: str) -> Any:
    """JSON in which every key stands once and every number is finite; raises `ValueError` or `RecursionError`."""
    return json.loads(
        text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite, parse_int=_whole_number
    )


def _unique(pairs):
    keys = dict(pairs)
    if len(keys) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return keys


def _finite(text):
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def _whole_number(text):
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def check_json(value: Any, schema: str) -> None:
    """Raises `ValueError` unless a JSON value is valid by `schemas/<schema>.schema.json`."""
    # Its import takes a quarter of a second.
    import jsonschema

    rules = json.loads((SCHEMAS / f"{schema}.schema.json").read_text())
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(rules).iter_errors(value))
    if error is not None:
        raise ValueError(f"{error.json_path} {error.message[:160]}")


def refuse_links(folder: pathlib.Path) -> None:
    """Raises `InputError` for anything below a run directory that is neither a file nor a folder of its own."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = pathlib.Path(parent, name)
            try:
                kind = path.lstat().st_mode
            except FileNotFoundError:
                # Another process of this run has just renamed it.
                continue
            if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                what = f"a link to {os.readlink(path)}" if stat.S_ISLNK(kind) else "neither a file nor a folder"
                raise InputError(
                    f"{path} is {what}; allowed in a run directory: files and folders of its own; put a copy in its "
                    "place or choose another workdir"
                )


def metrics_line(text: str) -> dict:
    """A line of metrics.jsonl; raises `ValueError` for anything else."""
    line = strict_json(text)
    check_json(line, "metrics")
    return line


def read_metrics(path: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl, at least one, or `InputError`."""

    def load(path):
        if not (lines := path.read_text().splitlines()):
            raise ValueError("it is empty")
        return [metrics_line(line) for line in lines]

    return read(path, load)


def read_header(path: pathlib.Path) -> dict:
    """The content of a run directory's config.json.

    Raises:
      InputError: it is not there, or not what this program writes.
    """
    header = read_json(path / CONFIG)
    if not isinstance(header, dict) or "config" not in header:
        raise InputError(f"{path / CONFIG} has no member 'config'; allowed: a file made by this program")
    # Its own lines say more about a setting; and settings that are left out take their defaults.
    config = config_lib.to_dict(config_lib.from_config_dict(header["config"]))
    read(path / CONFIG, lambda _: check_json({**header, "config": config}, "config"))
    return header


def read_config(path: pathlib.Path) -> Config:
    """The config that a run directory was made with."""
    return config_lib.from_config_dict(read_header(path)["config"])
