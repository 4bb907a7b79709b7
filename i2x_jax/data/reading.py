"""Many pictures: what is known of each file, and their pixels by row, decoded when they are asked for.

A file is decoded once to be known, and then again when it is read; where all fit the memory, pixels stay there. Either
way the same rows give the same pixels. Threads decode: Pillow lets others run meanwhile.
"""

import concurrent.futures
import functools
import hashlib
import os
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from i2x_jax.config import InputError
from i2x_jax.data.folders import Listing
from i2x_jax.data.pictures import (
    DIGEST_BYTES,
    ENDINGS,
    Look,
    Reading,
    UnusableError,
    decoded,
    look,
    prepared,
    read_file,
    size_of,
)

# Of `pictures.Look`; `key` stands for the path.
KNOWN = np.dtype(
    [
        ("key", "<u8"),
        ("size", "<i8"),
        ("changed", "<i8"),
        ("digest", "u1", (DIGEST_BYTES,)),
        ("height", "<i4"),
        ("width", "<i4"),
        ("grey", "?"),
    ]
)
FILES_AT_A_TIME = 1024
# Of each call for rows, a thread's share is dealt out in so many pieces.
PIECES_A_THREAD = 4
# Files that tell the shape of a set whose files are not to be decoded.
PROBED = 64


class Files(NamedTuple):
    """What is known of n pictures.

    Attributes:
      root: the folder that they are below.
      paths: of each file, below the root.
      known: `KNOWN` `[n]`.
      left_out: paths that were left out, with the reason.
      whole: all pictures of the folder or file, of which these are some; None where they are all.
    """

    root: str
    paths: np.ndarray
    known: np.ndarray
    left_out: tuple[tuple[str, str], ...] = ()
    whole: "Files | None" = None

    def take(self, rows: np.ndarray) -> "Files":
        """Those at some rows."""
        return self._replace(paths=self.paths[rows], known=self.known[rows], whole=self.whole or self)

    def path(self, row: int) -> str:
        """Where the file of a row is."""
        return os.path.join(self.root, self.paths[row])

    def digests(self) -> list[bytes]:
        """What tells equal files, one of each."""
        return [each.tobytes() for each in self.known["digest"]]


class Pictures:
    """The pixels of files by row; see `source.Images`.

    Attributes:
      files: what is known of them.
      shape: (N, H, W, C).
      dtype: uint8.
    """

    def __init__(self, files: Files, how: Reading, shape: tuple[int, ...], keep: bool):
        """Nothing is read yet.

        Args:
          files: N of them.
          how: they are prepared.
          shape: (N, H, W, C), once they are.
          keep: whether what was read stays in memory.
        """
        self.files, self.shape, self.dtype = files, shape, np.dtype(np.uint8)
        self._how = how._replace(channels=shape[3])
        self._kept = np.empty(shape, np.uint8) if keep else None
        self._have = np.zeros(shape[0], bool)

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        """See `Images`; raises `InputError` for a file that has changed since it was looked at."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self.shape[0]))
        rows = np.asarray(rows)
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        several = rows.ravel()
        found = self._decode(several) if self._kept is None else self._from_memory(several)
        return found.reshape(*rows.shape, *self.shape[1:])

    def _from_memory(self, rows):
        missing = np.unique(rows[~self._have[rows]])
        if missing.size:
            self._kept[missing] = self._decode(missing)
            self._have[missing] = True
        return self._kept[rows]

    def _decode(self, rows):
        found = np.empty((len(rows), *self.shape[1:]), np.uint8)

        def fill(places):
            for place in places:
                found[place] = self._read(rows[place])

        _dealt(fill, len(rows))
        return found

    def _read(self, row):
        path, known = self.files.path(row), self.files.known[row]
        try:
            content, state = read_file(path)
            if (state.st_size, state.st_mtime_ns) != (known["size"], known["changed"]):
                raise UnusableError("has changed")
            return prepared(decoded(content), self._how)
        except UnusableError as error:
            raise InputError(
                f"{path} {error}, but was looked at before; allowed: pictures that stay as they are while a run reads "
                "them; restore it, or choose another workdir"
            ) from None


def threads() -> int:
    """How many decode at a time: as many as there are cores for this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _pool():
    return concurrent.futures.ThreadPoolExecutor(threads(), "pictures")


def _dealt(work, count):
    """Has `work(places)` done for all of `range(count)`, in pieces that threads take one after the other."""
    pieces = np.array_split(np.arange(count), min(count, PIECES_A_THREAD * threads())) if count else []
    if len(pieces) < 2:
        return [work(piece) for piece in pieces]
    return list(_pool().map(work, pieces))


def opened(found: Listing, how: Reading, budget: int) -> tuple[Pictures, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The pictures of a listing, every file of which is known or decoded once.

    Args:
      found: what a folder or a CSV file names.
      how: they are read.
      budget: bytes that they may take in memory; where they would take more, they are decoded whenever they are read.

    Returns:
      All of them; and by split their rows and their labels.

    Raises:
      InputError: a file cannot be read, or pictures differ in size, or do not fit their crop.
    """
    paths = [path for part in found.parts.values() for path in part.paths]
    known, wrong = examined(found.root, paths, read_known(how.known))
    unusable = found.unusable + [(paths[row], reason) for row, reason in wrong.items()]
    refused = _too_small(known, how)
    unusable += [(paths[row], reason) for row, reason in refused.items() if row not in wrong]
    if unusable and not how.skip_broken:
        more = f" (and {len(unusable) - 1} more such files)" if len(unusable) > 1 else ""
        path, reason = unusable[0]
        raise InputError(
            f"{os.path.join(found.root, path)} {reason}{more}; allowed: {', '.join(ENDINGS)}, whole, upright or with "
            "EXIF, of one frame; mend or remove it, or leave such files out with --config.data.skip_broken=true"
        )
    good = np.array([row not in wrong and row not in refused for row in range(len(paths))], bool)
    files = Files(found.root, np.array(paths, object)[good], known[good], tuple(unusable))
    shape = (len(files.paths), *shape_of(files, how))
    rows, labels, start = {}, {}, 0
    place = np.cumsum(good) - 1
    for split, part in found.parts.items():
        here = np.arange(start, start + len(part.paths))
        kept = good[here]
        rows[split], labels[split] = place[here[kept]], part.labels[kept]
        start += len(part.paths)
    return Pictures(files, how, shape, int(np.prod(shape, dtype=np.int64)) <= budget), rows, labels


def examined(root: str, paths: list[str], before: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
    """What is known of each file.

    Args:
      root: the folder that they are below.
      paths: of n files.
      before: `KNOWN`, sorted by key: what was known of some of them; whose size or time of change is another now is
        looked at anew, and so is what is not among them.

    Returns:
      `KNOWN` `[n]`, zeros for a file that cannot be read; and of these the reasons, by row.
    """
    known, wrong = np.zeros(len(paths), KNOWN), {}
    known["key"] = [_key(os.path.join(root, path)) for path in paths]
    new = np.flatnonzero(~_recalled(known, root, paths, before))

    def examine(row):
        try:
            return look(os.path.join(root, paths[row]))
        except UnusableError as error:
            return str(error)

    with tqdm(total=len(new), desc="looking at pictures", unit=" file", leave=False, disable=None) as bar:
        # What Pillow only warns of, such as damaged EXIF data, leaves the picture as it is; but for one thing. Set
        # around the threads and not in them: it counts for all of a process.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            for start in range(0, len(new), FILES_AT_A_TIME):
                block = new[start : start + FILES_AT_A_TIME]
                for row, found in zip(block, _pool().map(examine, block), strict=True):
                    if isinstance(found, Look):
                        known[row] = (known["key"][row], *found._replace(digest=np.frombuffer(found.digest, np.uint8)))
                    else:
                        wrong[int(row)] = found
                bar.update(len(block))
    return known, wrong


def _key(path):
    return int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=8).digest(), "little")


def _recalled(known, root, paths, before):
    """Fills in what is known of files that have not changed since; True for these."""
    same = np.zeros(len(known), bool)
    if not len(before):
        return same
    place = np.minimum(np.searchsorted(before["key"], known["key"]), len(before) - 1)
    for row in np.flatnonzero(before["key"][place] == known["key"]):
        try:
            state = os.stat(os.path.join(root, paths[row]))
        except OSError:
            continue
        was = before[place[row]]
        if (state.st_size, state.st_mtime_ns) == (was["size"], was["changed"]):
            known[row], same[row] = was, True
    return same


def read_known(path: str | None) -> np.ndarray:
    """What an earlier process knew of files, `KNOWN` by key; nothing where that is not to be had: it is only a help."""
    try:
        # A run directory may come from anywhere: a link in it is not followed.
        found = np.load(path, allow_pickle=False) if path and not os.path.islink(path) else None
    except (OSError, ValueError, EOFError, MemoryError):
        found = None
    good = isinstance(found, np.ndarray) and found.dtype == KNOWN and found.ndim == 1
    return np.sort(found, order="key") if good else np.zeros(0, KNOWN)


def known_of(several: list[Files]) -> np.ndarray:
    """What is known of all of these and of those they are some of, `KNOWN` by key."""
    known = np.concatenate([(files.whole or files).known for files in several])
    return known[np.unique(known["key"], return_index=True)[1]]


def changes(before: np.ndarray, several: list[Files]) -> str:
    """In words, how files differ from what was known of them, such as '1 changed, as cat/3.png; 2 are new, ...'."""
    was = {int(each["key"]): each["digest"].tobytes() for each in before}
    found = {}
    for files in (each.whole or each for each in several):
        found |= {
            int(each["key"]): (path, each["digest"].tobytes())
            for path, each in zip(files.paths, files.known, strict=True)
        }
    changed = [path for key, (path, digest) in found.items() if key in was and was[key] != digest]
    new = [path for key, (path, _) in found.items() if key not in was]
    gone = len(was.keys() - found.keys())
    said = [f"{len(each)} {what}, as {each[0]}" for each, what in ((changed, "changed"), (new, "new")) if each]
    return "; ".join([*said, *([f"{gone} gone"] if gone else [])])


def shape_of(files: Files, how: Reading) -> tuple[int, int, int]:
    """Height, width and channels of pictures once they are prepared; raises `InputError` where sizes differ."""
    known = files.known
    if not len(known):
        raise InputError(f"{files.root} holds no picture that can be read; allowed: at least two classes of them")
    sizes, first = np.unique(np.stack([known["height"], known["width"]], -1), axis=0, return_index=True)
    made = [size_of(how, *map(int, size)) for size in sizes]
    if len(set(made)) > 1:
        two = [made.index(size) for size in sorted(set(made))[:2]]
        said = " and ".join(f"{files.paths[first[row]]} with {made[row][0]}x{made[row][1]}" for row in two)
        raise InputError(
            f"{files.root} has pictures of several sizes, as {said}; allowed: one size; set data.image_size, data.crop "
            "or --config.data.preprocess=imagenet"
        )
    return (*made[0], how.channels or (1 if known["grey"].all() else 3))


def _too_small(known, how):
    """Rows of pictures that their crop does not fit into, with the reason."""
    if not how.crop:
        return {}
    sizes, inverse = np.unique(np.stack([known["height"], known["width"]], -1), axis=0, return_inverse=True)
    small = np.array([0 not in size and 0 in size_of(how, *map(int, size)) for size in sizes], bool)
    rows = np.flatnonzero(small[inverse.reshape(-1)])
    return {
        int(row): f"has {known['height'][row]}x{known['width'][row]} pixels, too few for data.crop {how.crop}"
        for row in rows
    }


def described(found: Listing, how: Reading) -> tuple[tuple[int, int, int], int]:
    """The shape of the pictures and the number of classes, from a look at some of them; see `sources.describe`."""
    paths = [path for part in found.parts.values() for path in part.paths]
    some = [paths[row] for row in np.unique(np.linspace(0, len(paths) - 1, min(PROBED, len(paths)), dtype=int))]
    known, wrong = examined(found.root, some, read_known(how.known))
    good = np.array([row not in wrong for row in range(len(some))], bool)
    files = Files(found.root, np.array(some, object)[good], known[good])
    return shape_of(files, how), len(found.class_names)
