"""Reading the files of a run: what cannot be read is one line that says which file and how to mend it."""

import json
import pathlib
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from i2x_jax.config import InputError

CONFIG, METRICS = "config.json", "metrics.jsonl"


def read_json(path: pathlib.Path) -> Any:
    """A JSON file of a run, or `InputError`."""
    return checked(path, lambda: json.loads(path.read_text()))


def read_array(path: pathlib.Path) -> np.ndarray:
    """A .npy file of a run, mapped into memory, or `InputError`; never unpickles."""
    return checked(path, lambda: np.load(path, mmap_mode="r", allow_pickle=False))


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All members of a .npz file of a run, or `InputError`; never unpickles."""

    def load():
        # NumPy leaves a file it opened itself open when it turns out not to be a .npz.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as members:
            return dict(members)

    return checked(path, load)


def checked(path: pathlib.Path, read: Callable[[], Any]) -> Any:
    """What `read` returns, or `InputError` where the file is missing, damaged or of another kind."""
    try:
        return read()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; run the stage that makes it, or check the directory") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0].split("; allowed:")[0]
        lost = path.name in (CONFIG, METRICS)
        mend = (
            "restore it or choose another --workdir"
            if lost
            else "move it away and run the same command to make it again"
        )
        raise InputError(f"{path} cannot be read ({reason}); allowed: a file made by this program; {mend}") from None
