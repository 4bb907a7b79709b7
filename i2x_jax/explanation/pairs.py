"""Pairs of classes: how far they are confused, and since when they are told apart (DESIGN 2.7, 2.8). NumPy only."""

import numpy as np

TOLD_APART = 0.95
"""Area under the ROC from which two classes are told apart."""


def soft_confusion(confidence: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean confidence in every class over the samples of every class (DESIGN 2.8).

    Args:
      confidence: [N,M] in [0,1].
      labels: int [N].

    Returns:
      float64 [M,M]; entry (a,b) is the mean of Y_b over the samples of a. NaN in the row of a class without samples.
    """
    return class_means(confidence, labels, np.shape(confidence)[1])


def class_means(values: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Means [M,...] over the samples of every class, float64, from [N,...]; NaN for a class without samples."""
    values, labels = np.asarray(values, np.float64), np.asarray(labels)
    means = np.full((num_classes, *values.shape[1:]), np.nan)
    for label in np.unique(labels):
        means[label] = values[labels == label].mean(axis=0)
    return means


def rank_pairs(confusion: np.ndarray) -> list[tuple[int, int]]:
    """All pairs of classes (a,b), a<b, most confused first; the first is the default pair (DESIGN 2.8).

    Args:
      confusion: [M,M], soft or counted; a pair is ranked by entry (a,b) plus entry (b,a).

    Returns:
      M(M-1)/2 pairs; equal sums in the order of the indices, pairs whose sum is NaN last.
    """
    confusion = np.asarray(confusion)
    both = confusion + confusion.T
    first, second = np.triu_indices(len(confusion), k=1)
    order = np.argsort(-both[first, second], kind="stable")  # NaN sorts last
    return [(int(first[i]), int(second[i])) for i in order]


def auc_over_time(confidence: np.ndarray, labels: np.ndarray, a: int, b: int) -> np.ndarray:
    """Area under the ROC of Y_a - Y_b between the samples of a and of b, at every checkpoint (DESIGN 2.7).

    Args:
      confidence: [T,Nv,M] in [0,1], of the validation set.
      labels: int [Nv].
      a: class whose samples should have the larger difference.
      b: the other class.

    Returns:
      float64 [T] in [0,1]: the chance that a sample of a has a larger difference than a sample of b, equal differences
      counting one half. NaN throughout if either class has no samples.
    """
    labels = np.asarray(labels)
    rows_a, rows_b = np.flatnonzero(labels == a), np.flatnonzero(labels == b)
    areas = np.full(len(confidence), np.nan)
    if len(rows_a) == 0 or len(rows_b) == 0:
        return areas
    for t, at in enumerate(confidence):
        margin = np.asarray(at[:, a], np.float64) - at[:, b]
        of_b = np.sort(margin[rows_b])
        below = np.searchsorted(of_b, margin[rows_a], side="left")
        below_or_equal = np.searchsorted(of_b, margin[rows_a], side="right")
        areas[t] = (below + below_or_equal).sum() / (2 * len(rows_a) * len(rows_b))
    return areas


def told_apart(confidence: np.ndarray, labels: np.ndarray, steps: np.ndarray, a: int, b: int) -> int | None:
    """The first checkpoint's step from which `auc_over_time` stays at least 0.95 to the end (DESIGN 2.7).

    Args:
      confidence: [T,Nv,M] in [0,1], of the validation set.
      labels: int [Nv].
      steps: int [T].
      a: one class.
      b: the other class; the order does not matter.

    Returns:
      A step, or None if the last checkpoint does not tell the two apart, or either class has no samples.
    """
    apart = auc_over_time(confidence, labels, a, b) >= TOLD_APART
    run = int(np.logical_and.accumulate(apart[::-1]).sum())
    return int(steps[len(apart) - run]) if run else None
