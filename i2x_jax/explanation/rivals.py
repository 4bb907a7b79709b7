"""The classes that are kept of each class's samples, where there are too many to keep all (DESIGN 2.4). NumPy only.

What has a class of the sample and a class of the logit or confidence holds R columns for each class of the sample:
those of `rivals [M,R]`. With R = M that is every class, in order.
"""

from collections.abc import Iterable

import numpy as np

# R, unless pairs need more or there are fewer classes.
RIVALS = 10
# Classes above which confidence.npy, too, holds the kept ones only.
MANY_CLASSES = 64


def choose_rivals(confusion: np.ndarray, pairs: Iterable[tuple[int, int]], wanted: int = 0) -> np.ndarray:
    """The rivals of each class: itself, the classes it is most taken for, and those it is paired with.

    Args:
      confusion: [M,M] of `pairs.soft_confusion`; a class without samples has those that are taken for it.
      pairs: of classes, each of which keeps the other whatever their confusion.
      wanted: R, at most M; 0 for 10. It grows where a class is in more pairs than that leaves room for.

    Returns:
      int32 [M,R], ascending in each row; with R = M each row is 0 to M-1.
    """
    confusion = np.asarray(confusion, np.float64)
    score = np.where(np.isnan(confusion), np.nan_to_num(confusion.T), confusion)
    for a, b in pairs:
        score[a, b] = score[b, a] = 2  # more than any confidence
    np.fill_diagonal(score, 3)
    needed = int((score >= 2).sum(1).max())
    kept = min(max(wanted or RIVALS, needed), len(score))
    return np.sort(np.argsort(-score, axis=1, kind="stable")[:, :kept], axis=1).astype(np.int32)


def is_narrow(rivals: np.ndarray) -> bool:
    """Whether confidence.npy holds [T,N,R+1]: the rivals of the sample's class, and the sum of all others."""
    num_classes, kept = rivals.shape
    return num_classes > MANY_CLASSES and kept + 1 < num_classes


def own_columns(rivals: np.ndarray) -> np.ndarray:
    """Where each class is among its rivals: int [M]."""
    return (rivals == np.arange(len(rivals))[:, None]).argmax(1)


def column_of(rivals: np.ndarray, label: int, other: int) -> int:
    """Where a class is among the rivals of another.

    Raises:
      KeyError: it is none of them.
    """
    found = np.flatnonzero(rivals[label] == other)
    if not len(found):
        raise KeyError(f"class {other} is no rival of class {label}")
    return int(found[0])


def of_own_class(values: np.ndarray, rivals: np.ndarray) -> np.ndarray:
    """What samples of each class have for their own class: [...,M,K,R] to [...,M,K]."""
    columns = own_columns(rivals).reshape(*(1,) * (values.ndim - 3), len(rivals), 1, 1)
    return np.take_along_axis(values, columns, axis=-1)[..., 0]


def rival_pairs(rivals: np.ndarray) -> set[tuple[int, int]]:
    """The pairs (a,b), a<b, of which either is a rival of the other."""
    return {(min(a, int(b)), max(a, int(b))) for a, row in enumerate(rivals) for b in row if a != b}


def mutual(rivals: np.ndarray, a: int, b: int) -> bool:
    """Whether two classes are rivals of each other."""
    return b in rivals[a] and a in rivals[b]


def column_in_confidence(rivals: np.ndarray, label: int, other: int) -> int:
    """The column of confidence.npy for class `other`, of samples of class `label`.

    Raises:
      KeyError: as `column_of`, where confidences of rivals alone are kept.
    """
    return column_of(rivals, label, other) if is_narrow(rivals) else other


def confidence_in_label(confidence: np.ndarray, labels: np.ndarray, rivals: np.ndarray) -> np.ndarray:
    """Every sample's confidence in its own class: [T,N] from confidence.npy, which may be a memory map."""
    columns = own_columns(rivals)[labels] if is_narrow(rivals) else labels
    rows = np.arange(len(labels))
    return np.stack([np.asarray(step)[rows, columns] for step in confidence])


def widened(values: np.ndarray, kept: np.ndarray, num_classes: int) -> np.ndarray:
    """Values [...,R], or [...,R+1] with the rest's, of some classes [R] as [...,M]; 0 for the others."""
    result = np.zeros((*values.shape[:-1], num_classes), values.dtype)
    result[..., kept] = values[..., : len(kept)]
    return result
