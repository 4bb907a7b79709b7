"""Which of the training images are explained: all, or some classes, or as many of each class as may be (DESIGN 2.2).

NumPy only.
"""

import difflib
from collections.abc import Sequence

import numpy as np

from i2x_jax.config import ExplainConfig, InputError, listed
from i2x_jax.data.dataset import MIN_TRAIN_PER_CLASS, Dataset

# The constants of SplitMix64 (Steele, Lea, Flood 2014): from numbers in a row to numbers without any pattern.
GAMMA, FIRST, SECOND = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
MAX_NAMED = 20  # classes that a message lists


def hashes(numbers: np.ndarray, seed: int) -> np.ndarray:
    """uint64 of the same shape, without pattern, of whole numbers from 0; SplitMix64 of (seed, number)."""
    with np.errstate(over="ignore"):
        mixed = _mixed(np.uint64(seed) * GAMMA + GAMMA)
        return _mixed(mixed + np.asarray(numbers, np.uint64) * GAMMA)


def _mixed(values):
    values = (values ^ (values >> np.uint64(30))) * FIRST
    values = (values ^ (values >> np.uint64(27))) * SECOND
    return values ^ (values >> np.uint64(31))


def turns(hashed: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """In which turn each sample comes where every class draws one a turn, by the smallest hash: int64 `[N]`, from 0."""
    turn, order = np.empty(len(labels), np.int64), np.lexsort((hashed, labels))
    starts = np.concatenate([[0], np.cumsum(np.bincount(labels))])
    turn[order] = np.arange(len(labels)) - starts[labels[order]]
    return turn


def explained(train: Dataset, settings: ExplainConfig, seed: int) -> Dataset:
    """The training images that are explained, in their order; the whole set, as it is, where nothing is left out.

    Arguments as in `explained_rows`.
    """
    rows = explained_rows(train, settings, seed)
    return train if len(rows) == len(train.labels) else train.take(rows)


def explained_rows(train: Dataset, settings: ExplainConfig, seed: int) -> np.ndarray:
    """Which of the training images are explained: int64, ascending.

    Of `explain.max_images` each class gets as many as any other, as far as it has them: those whose hashes of (seed,
    index in the user's data) are smallest. So fewer images are some of those of more.

    Args:
      train: the training images.
      settings: `classes` and `max_images` are used; classes that are not there count for nothing.
      seed: of the hash.
    """
    names = set(settings.classes or train.class_names)
    wanted = np.array([name in names for name in train.class_names], bool)[train.labels]
    rows, most = np.flatnonzero(wanted), settings.max_images
    if 0 < most < len(rows):
        hashed, labels = hashes(train.given_rows[rows], seed), train.labels[rows]
        # In the last turn the hash decides which classes still draw.
        rows = np.sort(rows[np.lexsort((hashed, turns(hashed, labels)))[:most]])
    return rows


def check_part(train: Dataset, settings: ExplainConfig, pair: Sequence[str], seed: int) -> None:
    """Raises `InputError` for classes that there are not, and for too few images to explain a class by.

    Args:
      train: the training images.
      settings: `classes` and `max_images` are used.
      pair: the two classes of `refine.pair`, or none.
      seed: of the choice.
    """
    for name in settings.classes:
        if name not in train.class_names:
            close = difflib.get_close_matches(name, train.class_names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "set explain.classes"
            raise InputError(
                f"config key explain.classes names {name!r}; allowed: {listed(train.class_names, MAX_NAMED)}; {hint}"
            )
    for name in pair:
        if settings.classes and name not in settings.classes:
            raise InputError(
                f"config key refine.pair names {name!r}, which is not explained; allowed: "
                f"{listed(settings.classes, MAX_NAMED)}, those of explain.classes; set one or the other"
            )
    names = settings.classes or train.class_names
    if settings.max_images and settings.max_images < MIN_TRAIN_PER_CLASS * len(names):
        raise InputError(
            f"config key explain.max_images is {settings.max_images} for {len(names)} classes; allowed: 0 for all, or "
            f"at least {MIN_TRAIN_PER_CLASS * len(names)}, {MIN_TRAIN_PER_CLASS} of each; set explain.max_images, or "
            "fewer explain.classes"
        )
    part = explained(train, settings, seed)
    counts = np.bincount(part.labels, minlength=len(train.class_names))
    for label, name in enumerate(train.class_names):
        if name in names and counts[label] < MIN_TRAIN_PER_CLASS:
            raise InputError(
                f"{counts[label]} images of class {name!r} would be explained; allowed: at least "
                f"{MIN_TRAIN_PER_CLASS}; raise explain.max_images"
            )
