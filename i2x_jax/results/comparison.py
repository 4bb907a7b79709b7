"""Two ledgers side by side: runs of several seeds, or before and after a repair. NumPy and SciPy."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

# Samples that are looked at together.
ROWS_AT_ONCE = 4096


class Side(NamedTuple):
    """What of a run is compared.

    Attributes:
      classes: M names.
      labels: int `[N]`.
      assignments: int `[N, h, w]`.
      ledger: `seeing` and `weighing` `[T-1, M, K, M]` of ledger.npz.
    """

    classes: tuple[str, ...]
    labels: np.ndarray
    assignments: np.ndarray
    ledger: Mapping[str, np.ndarray]


class Compared(NamedTuple):
    """A prototype of one run beside the one of the other run that has most of its places, in one class.

    Attributes:
      name: of the class.
      prototype: in the one run.
      other: its match in the other run; None where that has fewer prototypes.
      overlap: locations that both have, as a share of those that either has, 0 to 1.
      change: what it added to the mean confidence in the class over the whole training.
      other_change: the same of its match.
    """

    name: str
    prototype: int
    other: int | None
    overlap: float
    change: float
    other_change: float | None


def overlaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Locations that two prototypes share, as a share of those that either has: `[K, K']`.

    Args:
      one: int `[N, h, w]`, assignments of one run, a location at a time.
      other: int `[N, h', w']`, of the other; of a map of another size, the nearest location counts.
    """
    counts = np.zeros((one.max() + 1, other.max() + 1))
    rows, columns = (
        (np.arange(mine) * theirs // mine) for mine, theirs in zip(one.shape[1:], other.shape[1:], strict=True)
    )
    for start in range(0, len(one), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        np.add.at(counts, (one[part].ravel(), other[part][:, rows][:, :, columns].ravel()), 1)
    either = counts.sum(1)[:, None] + counts.sum(0) - counts
    return counts / np.maximum(either, 1)


def compare(one: Side, other: Side) -> tuple[Compared, ...]:
    """Every prototype of a run beside its match in another run, class by class; the largest change first."""
    shared = overlaps(np.asarray(one.assignments), np.asarray(other.assignments))
    match = dict(zip(*(found.tolist() for found in linear_sum_assignment(-shared)), strict=True))
    changes = [np.einsum("tckc->ck", side.ledger["seeing"] + side.ledger["weighing"]) for side in (one, other)]
    rows = []
    for c, name in enumerate(one.classes):
        for k in np.argsort(-np.abs(changes[0][c]), kind="stable").tolist():
            j = match.get(k)
            overlap, theirs = (0.0, None) if j is None else (float(shared[k, j]), float(changes[1][c, j]))
            rows.append(Compared(name, k, j, overlap, float(changes[0][c, k]), theirs))
    return tuple(rows)
