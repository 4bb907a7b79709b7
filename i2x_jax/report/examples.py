"""Which images the report shows: the most telling ones, and as many drawn at random."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from i2x_jax.explanation.rivals import MANY_CLASSES

MOST = 24  # images of each telling kind
RANDOM_IMAGES, RANDOM_PER_CLASS = 120, 6  # images drawn at random: at most so many, and so many of a class
MOST_OF_MANY, RANDOM_OF_MANY = 16, 24  # the same above `MANY_CLASSES` classes, where other pictures take more room
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
    most, drawn_most = (MOST, RANDOM_IMAGES) if len(classes) <= MANY_CLASSES else (MOST_OF_MANY, RANDOM_OF_MANY)
    # Of so many classes that not each has its turn, those that do lie evenly among them.
    classes = classes[np.unique(np.linspace(0, len(classes) - 1, min(len(classes), drawn_most)).astype(int))]
    each = min(RANDOM_PER_CLASS, max(1, drawn_most // len(classes)))
    drawn = [rng.permutation(np.flatnonzero(labels == label))[:each] for label in classes]
    return Chosen(
        confused=np.argsort(own[-1], kind="stable")[:most],
        changed=np.argsort(-path, kind="stable")[:most],
        left_out=np.sort(rng.permutation(left_out)[:LEFT_OUT]).astype(np.int64),
        random=np.concatenate(drawn)[:drawn_most],
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
      For each class and interval its groups, largest first; noise (id -1) comes last. Of so many classes that there
      are not `GROUP_TILES` for a group and noise in each interval, there are members in those intervals alone in which
      the confidence moved most.
    """
    cells = num_classes * len(groups)
    pictured = int(np.clip(GROUP_TILES // (2 * max(num_classes, 1)), 1, max(len(groups), 1)))
    most = int(np.clip(GROUP_TILES // (2 * max(cells, 1)), 1, MAX_GROUPS))
    members = int(np.clip(GROUP_TILES // max(cells * (most + 1), 1), 1, MAX_MEMBERS))
    found = []
    for label in range(num_classes):
        rows = np.flatnonzero(labels == label)
        changes = np.diff(np.asarray(own[:, rows], np.float64), axis=0)
        found.append([])
        moved = np.abs(changes.sum(1))
        with_members = set(np.argsort(-moved, kind="stable")[:pictured].tolist())
        for t, (ids, change) in enumerate(zip(groups[:, rows], changes, strict=True)):
            names, sizes = np.unique(ids[ids >= 0], return_counts=True)
            names = list(names[np.argsort(-sizes, kind="stable")][:most])
            named, shown = names + [-1] * bool((ids == -1).any()), members if t in with_members else 0
            found[-1].append(list(_groups(named, ids, rows, change, shown, rng)))
    return found


def _groups(names: Iterable[int], ids, rows, change, members, rng):
    for name in names:
        inside = ids == name
        drawn = rng.permutation(rows[inside])[:members]
        yield Group(int(name), int(inside.sum()), drawn, float(change[inside].mean()))
