"""Which pictures a folder or a CSV file names, of which class and split; nothing is decoded here.

Classes are in the order of their names, as with torchvision's ImageFolder. The pictures of a split are in the order of
their names within the class folders, and then of the classes: what was written out with numbered names keeps its order.
"""

import csv
import io
import os
import unicodedata
from typing import NamedTuple

import numpy as np

from i2x_jax.config import InputError
from i2x_jax.data.pictures import ENDINGS, LARGEST_FILE, OTHER_ENDINGS

FOLDER, CSV = "folder:", "csv:"
# What folders and the third column of a CSV file may be called.
SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
LAYOUT = "DIR/{train,validation,test}/CLASS/ with pictures in them, or DIR/CLASS/"


class Part(NamedTuple):
    """The pictures of one split.

    Attributes:
      paths: of the n files, below `Listing.root`.
      labels: int32 `[n]`.
    """

    paths: list[str]
    labels: np.ndarray


class Listing(NamedTuple):
    """What a folder or a CSV file names.

    Attributes:
      root: the folder that all paths are below.
      class_names: M names.
      parts: by split, those that there are.
      unusable: paths that are not followed or not read, with the reason.
    """

    root: str
    class_names: tuple[str, ...]
    parts: dict[str, Part]
    unusable: list[tuple[str, str]]


def are_pictures(name: str) -> bool:
    """Whether a `data.name` is a folder or a CSV file of pictures."""
    return name.startswith((FOLDER, CSV))


def listing(name: str) -> Listing:
    """What 'folder:DIR' or 'csv:FILE' names.

    Raises:
      InputError: there is no such folder or file, or it is not laid out as one of pictures.
    """
    kind, _, path = name.partition(":")
    path = os.path.abspath(os.path.expanduser(path)) if path else ""
    return of_folder(path) if f"{kind}:" == FOLDER else of_csv(path)


def of_folder(root: str) -> Listing:
    """The pictures of `LAYOUT`; hidden files, files that are no pictures by their names and links out are not."""
    if not os.path.isdir(root):
        raise InputError(f"data.name names the folder {root!r}, which is none; allowed: {LAYOUT}; set data.name")
    unusable: list[tuple[str, str]] = []
    top = _folders(root, "")
    splits = {name: SPLITS[name] for name in top if name in SPLITS}
    if not {"train", "test"} & set(splits):
        splits = {"": "train"}
    elif others := [name for name in top if name not in splits]:
        raise InputError(
            f"{root} has the folder {others[0]!r} beside {next(iter(splits))!r}; allowed: {LAYOUT}; move it away, or "
            "rename a class that is called as a split"
        )
    elif len(set(splits.values())) < len(splits):
        raise InputError(f"{root} has two folders for one split: {', '.join(splits)}; allowed: one; merge them")
    found = {
        split: {each: _pictures(root, os.path.join(folder, each), unusable) for each in _folders(root, folder)}
        for folder, split in splits.items()
    }
    names = _class_names(root, found)
    numbers = {name: number for number, name in enumerate(names)}
    parts = {}
    for folder, split in splits.items():
        rows = sorted((path, each) for each, paths in found[split].items() for path in paths)
        labels = np.array([numbers[each] for _, each in rows], np.int32)
        parts[split] = Part([os.path.join(folder, each, path) for path, each in rows], labels)
    if not any(part.paths for part in parts.values()) and not unusable:
        raise InputError(f"{root} holds no pictures; allowed: {LAYOUT}, of {', '.join(ENDINGS)}; set data.name")
    return Listing(root, names, parts, unusable)


def _class_names(root, found):
    """The classes of the training folder, or of the only one there is; others may have no more."""
    leading = "train" if "train" in found else next(iter(found))
    names = tuple(sorted(found[leading]))
    for name in names:
        _check_name(name, root)
    for split, classes in found.items():
        for name in classes:
            if name not in names:
                alike = {unicodedata.normalize("NFC", each) for each in names}
                hint = (
                    "it is written with other code points there" if unicodedata.normalize("NFC", name) in alike else ""
                )
                raise InputError(
                    f"{root} has the class {name!r} in {split}, but not in {leading}; allowed: the classes of {leading}"
                    f"; {hint or 'rename or move it'}"
                )
    return names


def _check_name(name, where):
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where} has a class {name!r}; allowed: a name in Unicode; rename it") from None


def _entries(root, below, unusable):
    """What is in a folder and not hidden, by name; links are followed to files below the root alone."""
    try:
        with os.scandir(os.path.join(root, below)) as found:
            entries = sorted((each for each in found if not each.name.startswith(".")), key=lambda each: each.name)
    except OSError as error:
        unusable.append((below, f"cannot be opened ({error.strerror})"))
        return
    for entry in entries:
        path = os.path.join(below, entry.name)
        if entry.is_symlink() and (entry.is_dir() or _of_pictures(entry.name)):
            if not _is_below(os.path.realpath(entry.path), os.path.realpath(root)):
                unusable.append((path, "is a link that leads out of the folder"))
                continue
            if entry.is_dir():
                unusable.append((path, "is a link to a folder"))
                continue
        yield entry, path


def _is_below(path, root):
    return os.path.commonpath([path, root]) == root


def _of_pictures(name):
    return name.lower().endswith((*ENDINGS, *OTHER_ENDINGS))


def _folders(root, below):
    """The names of the folders in a folder, in which no pictures may be: they would be of no class."""
    names, unusable = [], []
    for entry, path in _entries(root, below, unusable):
        if entry.is_dir():
            names.append(entry.name)
        elif _of_pictures(entry.name):
            raise InputError(f"{os.path.join(root, path)} is in no folder of a class; allowed: {LAYOUT}; move it there")
    for path, reason in unusable:
        raise InputError(
            f"{os.path.join(root, path)} {reason}; allowed: {LAYOUT}, which are folders of their own; copy it, or name "
            "its pictures in a CSV file beside them"
        )
    return names


def _pictures(root, folder, unusable):
    """The pictures anywhere in the folder of a class, by their paths in it."""
    found, waiting = [], [folder]
    while waiting:
        for entry, path in _entries(root, waiting.pop(), unusable):
            if entry.is_dir():
                waiting.append(path)
            elif entry.name.lower().endswith(OTHER_ENDINGS):
                unusable.append((path, "is a picture of a kind that is not read"))
            elif _of_pictures(entry.name):
                found.append(os.path.relpath(path, folder))
    return found


def of_csv(file: str) -> Listing:
    """The pictures of a CSV file: a path below its folder, a class and perhaps a split a row.

    A first row `path,label` or `path,label,split` is a heading. An empty split is `train`.
    """
    root, unusable = os.path.dirname(file), []
    rows = _csv_rows(file)
    if not rows:
        raise InputError(f"{file} names no pictures; allowed: path,label or path,label,split a row; set data.name")
    names = tuple(sorted({row[1] for _, row in rows}))
    numbers, seen, real_root = {name: number for number, name in enumerate(names)}, set(), os.path.realpath(root)
    paths: dict[str, list] = {}
    labels: dict[str, list] = {}
    for number, (path, label, split) in rows:
        if split not in SPLITS:
            raise InputError(
                f"{file}, line {number}, has the split {split!r}; allowed: {', '.join(SPLITS)}, or nothing for train; "
                "correct it"
            )
        below = os.path.normpath(path)
        if below in seen:
            raise InputError(f"{file}, line {number}, names {path!r} again; allowed: a picture once; remove the line")
        seen.add(below)
        if "\0" not in below and not _is_below(os.path.realpath(os.path.join(root, below)), real_root):
            unusable.append((path, f"is not below the folder of {os.path.basename(file)}"))
            continue
        paths.setdefault(SPLITS[split], []).append(below)
        labels.setdefault(SPLITS[split], []).append(numbers[label])
    parts = {split: Part(paths[split], np.array(labels[split], np.int32)) for split in paths}
    return Listing(root, names, parts, unusable)


def _csv_rows(file):
    """The rows of a CSV file as (line, (path, label, split))."""
    allowed = "allowed: a CSV file in UTF-8 of path,label or path,label,split a row"
    try:
        if os.path.getsize(file) > LARGEST_FILE:
            raise InputError(f"{file!r} has more than {LARGEST_FILE:,} bytes; {allowed}; set data.name")
        with open(file, "rb") as opened:
            reader = csv.reader(
                io.StringIO(opened.read().decode("utf-8-sig"), newline=""), skipinitialspace=True, strict=True
            )
        rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"data.name names {file!r}, which cannot be read ({reason}); {allowed}; set data.name"
        ) from None
    if rows and [each.strip().lower() for each in rows[0][1]] in (["path", "label"], ["path", "label", "split"]):
        rows = rows[1:]
    for number, row in rows:
        if len(row) not in (2, 3) or not row[0] or not row[1]:
            raise InputError(f"{file}, line {number}, is {row!r}; {allowed}; correct it")
        _check_name(row[1], f"{file}, line {number},")
    return [
        (number, (row[0], row[1], row[2].strip() if row[2:] and row[2].strip() else "train")) for number, row in rows
    ]
