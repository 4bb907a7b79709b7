"""What the files of a run may hold, and reading them (DESIGN section 4).

A run directory may be damaged, or come from somebody else: every file is checked against what it should be before it is
used, nothing in it is ever unpickled, and no link is followed.
"""

import os
import pathlib
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Collection
from typing import Any

from i2x_jax import config as config_lib
from i2x_jax.config import FILE_NAME, Config, InputError
from i2x_jax.schema import check_json, strict_json

CONFIG, METRICS = "config.json", "metrics.jsonl"
CHECKPOINTS, EXPLANATION, TENSORBOARD = "checkpoints", "explanation.json", "tensorboard"
LEDGER, ACCOUNT, RANKING = "ledger.npz", "account.npy", "ranking.npz"
# The rows that the ledger is of, where it is not of all.
ACCOUNTED = "accounted.npy"
REFINEMENT, REFINEMENTS, REPAIRED = "refinement.json", "refinements", "repaired"
CONTACT_SHEET, REPORT, TRUST = "contact_sheet.png", "report.html", "trust.json"
# What is known of the files that images are read from, so that they need not be decoded to be known again.
PICTURES = "pictures.npy"

# The steps of a run in order: the stage each belongs to and the files it makes. A step whose files are all there is
# complete, because files only ever get their names when they are.
STEPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "train": ("train", ("labels.npy", "steps.npy")),
    "prototypes": ("explain", ("prototypes.npz",)),
    "evidence": (
        "explain",
        (
            *("rivals.npy", "assignments.npy", "intensity.npy", "confidence.npy", ACCOUNT),
            *("contributions.npz", LEDGER, "prototype_features.npz", "validation.npz", "test.npz"),
        ),
    ),
    "ranking": ("explain", (RANKING,)),
    "mapping": ("explain", ("groups.npy", "mapping.npz", "curated.npz", EXPLANATION)),
    "contact_sheet": ("explain", (CONTACT_SHEET,)),
    "refine": ("refine", (REFINEMENT,)),
    "report": ("report", (REPORT,)),
}
STAGES = tuple(dict.fromkeys(stage for stage, _ in STEPS.values()))
# What is made only when it is asked for by name, of a run that is explained; no step needs it.
ASKED: dict[str, tuple[str, tuple[str, ...]]] = {"trust": ("trust", (TRUST,))}
ASKED_STAGES = tuple(stage for stage, _ in ASKED.values())
# The order in which all of them are made: the report tells of what was asked for.
IN_ORDER = (*(step for step in STEPS if step != "report"), *ASKED, "report")


def steps_of(stages: Collection[str]) -> list[str]:
    """The steps of some stages, in the order in which they are made."""
    return [step for step in IN_ORDER if (STEPS | ASKED)[step][0] in stages]


def files_of(step: str, refinement: str = "", ledger: bool = True) -> tuple[str, ...]:
    """The files that a step makes; those of the step `refine` depend on what the refinement is called."""
    if step == "refine":
        return (refinement_file(refinement),)
    return tuple(name for name in (STEPS | ASKED)[step][1] if ledger or name not in (LEDGER, ACCOUNT))


def refinement_file(name: str) -> str:
    """Where the table of a refinement is; the one without a name is shown first."""
    return f"{REFINEMENTS}/{name}.json" if name else REFINEMENT


def repaired_folder(name: str, action: str) -> str:
    """Where the model is that an action of a refinement left."""
    return f"{REPAIRED}/{name}.{action}" if name else f"{REPAIRED}/{action}"


def repaired_weights(name: str, action: str) -> str:
    """Where the weights of that model are under torchvision's names; 'drop' has none but those of the run."""
    return f"{repaired_folder(name, action)}.safetensors"


def refinement_names(folder: pathlib.Path) -> list[str]:
    """The refinements that a run directory holds, '' for the one without a name, which comes first."""
    named = (path.stem for path in folder.glob(f"{REFINEMENTS}/*.json") if re.fullmatch(FILE_NAME, path.stem))
    return [""] * (folder / REFINEMENT).exists() + sorted(named)


def seed_file(name: str, seed: int | str) -> str:
    """What one seed of a refinement gave, until all have; a pattern of such files where `seed` is '*'."""
    return f"{REFINEMENTS}/.{name}-seed-{seed}.json" if name else f".refine-seed-{seed}.json"


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
        value = strict_json(path.read_text(encoding="utf-8"))
        if schema:
            check_json(value, schema)
        return value

    return read(path, load)


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
        if not (lines := path.read_text(encoding="utf-8").splitlines()):
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
