"""Which images the report shows: the most telling ones, and as many drawn at random."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

MOST = 24  # images of each telling kind
RANDOM_IMAGES, RANDOM_PER_CLASS = 120, 6  # images drawn at random: at most so many, and so many of a class
LEFT_OUT = 16
GROUP_TILES = 3000  # small pictures of members of groups, in the whole page
MAX_GROUPS, MAX_MEMBERS = 4, 6  # of a class in one interval; of a group


class Chosen(NamedTuple):
    """Rows of the run by why they are shown; a row may be of several kinds."""

    confused: np.ndarray  # least confidence in their label at the last checkpoint, least first
    changed: np.ndarray  # whose confidence in their label moved most on the way, most first
    left_out: np.ndarray  # drawn from those that the curated set leaves out
    random: np.ndarray  # drawn from each class

    def rows(self) -> np.ndarray:
        """All of them once, ascending."""
        return np.unique(np.concatenate(self))


def choose_images(own: np.ndarray, labels: np.ndarray, left_out: np.ndarray, rng: np.random.Generator) -> Chosen:
    """Chooses the images whose story the report tells.

    Args:
      own: `[T, N]`, confidence in the label.
      labels: int `[N]`.
      left_out: rows that the curated set leaves out.
      rng: draws the random ones.
    """
    path = np.abs(np.diff(own, axis=0)).sum(0)
    classes = np.unique(labels)
    each = min(RANDOM_PER_CLASS, max(1, RANDOM_IMAGES // len(classes)))
    drawn = [rng.permutation(np.flatnonzero(labels == label))[:each] for label in classes]
    return Chosen(
        confused=np.argsort(own[-1], kind="stable")[:MOST],
        changed=np.argsort(-path, kind="stable")[:MOST],
        left_out=np.sort(rng.permutation(left_out)[:LEFT_OUT]).astype(np.int64),
        random=np.concatenate(drawn)[:RANDOM_IMAGES],
    )


class Group(NamedTuple):
    """A group of one class in one interval; `members` are some of its rows, drawn at random."""

    id: int
    size: int
    members: np.ndarray
    change: float  # of the mean confidence in the class, over the interval


def choose_groups(
    groups: np.ndarray, labels: np.ndarray, own: np.ndarray, num_classes: int, rng: np.random.Generator
) -> list[list[list[Group]]]:
    """The largest groups of each class in each interval, and its noise, with members drawn at random.

    Args:
      groups: int `[T-1, N]`.
      labels: int `[N]`.
      own: `[T, N]`, confidence in the label.
      num_classes: M.
      rng: draws the members.

    Returns:
      For each class and interval its groups, largest first; noise (id -1) comes last.
    """
    cells = num_classes * len(groups)
    most = int(np.clip(GROUP_TILES // (2 * max(cells, 1)), 1, MAX_GROUPS))
    members = int(np.clip(GROUP_TILES // max(cells * (most + 1), 1), 1, MAX_MEMBERS))
    found = []
    for label in range(num_classes):
        rows = np.flatnonzero(labels == label)
        changes = np.diff(np.asarray(own[:, rows], np.float64), axis=0)
        found.append([])
        for ids, change in zip(groups[:, rows], changes, strict=True):
            names, sizes = np.unique(ids[ids >= 0], return_counts=True)
            names = list(names[np.argsort(-sizes, kind="stable")][:most])
            found[-1].append(list(_groups(names + [-1] * bool((ids == -1).any()), ids, rows, change, members, rng)))
    return found


def _groups(names: Iterable[int], ids, rows, change, members, rng):
    for name in names:
        inside = ids == name
        drawn = rng.permutation(rows[inside])[:members]
        yield Group(int(name), int(inside.sum()), drawn, float(change[inside].mean()))
