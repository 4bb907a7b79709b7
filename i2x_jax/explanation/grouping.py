"""Groups: samples whose confidence changed alike between two checkpoints (DESIGN section 2.5). Host only."""

from typing import NamedTuple

import joblib
import numpy as np
from sklearn.cluster import HDBSCAN

from i2x_jax.config import InputError

NOISE, UNCHANGED = -1, -2

# Changes of confidence below this are no change, and changes are told apart in steps of it.
RESOLUTION = 1e-3

# From so many rows on, classes are dealt over processes: fewer are grouped sooner than a process has started.
# (Threads would wait for one another: most of HDBSCAN's time goes to one loop that lets no other thread run.)
ROWS_FOR_PROCESSES = 10_000


class Groups(NamedTuple):
    """Groups of one set of rows."""

    ids: np.ndarray  # int32 [n]: 0.. by falling size, -1 noise, -2 unchanged
    # How the groups came about:
    #   ''         by HDBSCAN;
    #   'none'     fewer changed rows than min_cluster_size: no group;
    #   'too_few'  fewer than twice min_cluster_size: all changed rows are one group;
    #   'single'   HDBSCAN found no group until one alone was allowed;
    #   'all'      it found none even then (or one under min_cluster_size): all changed rows are one group.
    fallback: str


def group_interval(
    dY: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    group_by: str = "class",
    min_cluster_size: int = 0,
    min_samples: int = 5,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Groups the samples of one interval, within each class or all together (DESIGN 2.5).

    Args:
      dY: changes of confidence [N,M], in -1..1.
      labels: classes [N], 0..M-1.
      num_classes: M.
      group_by: 'class' or 'global'.
      min_cluster_size: rows of the smallest group; 0 takes the larger of 5 and 1 % of the rows (of the class).
      min_samples: HDBSCAN's neighbourhood, the row itself included.

    Returns:
      ids int32 [N] as in `Groups`, counted from 0 in each class unless 'global', and the fallback of each class [M]
      (of all rows [1] if 'global').

    Raises:
      InputError: non-finite dY, another `group_by`, or `min_cluster_size` 1.
    """
    if group_by == "class":
        return group_by_class(dY, labels, num_classes, min_cluster_size, min_samples)
    if group_by == "global":
        groups = group_changes(dY, min_cluster_size, min_samples)
        return groups.ids, (groups.fallback,)
    raise InputError(f"grouping is by {group_by!r}; allowed: 'class', 'global'; set explain.group_by")


def group_by_class(
    dY: np.ndarray, labels: np.ndarray, num_classes: int, min_cluster_size: int = 0, min_samples: int = 5
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Groups the rows of every class by themselves: ids within the class int32 [N], and fallbacks [M].

    Arguments and errors as in `group_interval`.
    """
    members = [np.flatnonzero(labels == label) for label in range(num_classes)]
    with joblib.parallel_config("loky", n_jobs=-1 if len(dY) >= ROWS_FOR_PROCESSES else 1):
        found = joblib.Parallel()(
            joblib.delayed(group_changes)(dY[rows], min_cluster_size, min_samples) for rows in members
        )
    ids = np.full(len(dY), NOISE, np.int32)
    for rows, groups in zip(members, found, strict=True):
        ids[rows] = groups.ids
    return ids, tuple(groups.fallback for groups in found)


def group_changes(dY: np.ndarray, min_cluster_size: int = 0, min_samples: int = 5) -> Groups:
    """Groups rows of confidence changes dY [n,M] by HDBSCAN (DESIGN 2.5); arguments as in `group_interval`.

    The order of the rows does not matter: HDBSCAN sees them sorted. Of equal rows it sees a few copies only, and all
    of them take the label that most of these copies got (ties: the lowest, noise first), because HDBSCAN may cut
    through equal rows.

    Raises:
      InputError: non-finite dY, or `min_cluster_size` 1, which HDBSCAN cannot do.
    """
    dY = np.asarray(dY, np.float64)
    if not np.isfinite(dY).all():
        bad = (~np.isfinite(dY).all(axis=1)).sum()
        raise InputError(
            f"confidence changes are non-finite in {bad} of {len(dY)} rows; allowed: finite values; check the training"
        )
    if min_cluster_size == 1:
        raise InputError(
            "config key explain.min_cluster_size is 1; allowed: 0 (chosen from the class size) or at least 2; "
            "set explain.min_cluster_size"
        )
    size = min_cluster_size or max(5, len(dY) // 100)
    changed = np.abs(dY).max(axis=1, initial=0) >= RESOLUTION
    ids = np.where(changed, NOISE, UNCHANGED).astype(np.int32)
    if changed.sum() < size:
        return Groups(ids, "none")
    if changed.sum() < 2 * size:
        ids[changed] = 0
        return Groups(ids, "too_few")
    # Whole steps: they have no -0.0, and `unique` sorts them lexicographically.
    steps = np.rint(dY[changed] / RESOLUTION).astype(np.int32)
    rows, inverse, counts = np.unique(steps, axis=0, return_inverse=True, return_counts=True)
    labels, fallback = _labels(rows * RESOLUTION, counts, size, min_samples)
    ids[changed] = _by_size(labels, counts)[inverse.reshape(-1)]
    return Groups(ids, fallback)


def _labels(rows, counts, size, min_samples):
    """Labels of distinct, sorted rows [u,M] that occur `counts` [u] times, and the fallback."""
    # Enough copies for a group, and for a neighbourhood: with fewer than `min_samples`, a mode would look as sparse
    # as its surroundings.
    copies = np.minimum(counts, max(size, min_samples))
    owner = np.repeat(np.arange(len(rows)), copies)
    for single in (False, True):
        clusters = HDBSCAN(
            min_cluster_size=size,
            min_samples=min(min_samples, len(owner)),  # more than the rows is an error
            allow_single_cluster=single,
            copy=True,
        ).fit_predict(rows[owner])
        labels = _majority(clusters, owner, len(rows))
        # A single cluster is cut at its densest level and may come out smaller than a group.
        if counts[labels >= 0].sum() >= size:
            return labels, "single" if single else ""
    return np.zeros(len(rows), np.int32), "all"


def _majority(clusters, owner, num_rows):
    """The commonest cluster of each row's copies; ties to the lowest, noise first."""
    votes = np.zeros((num_rows, clusters.max() + 2), np.int32)
    np.add.at(votes, (owner, clusters + 1), 1)
    return votes.argmax(axis=1).astype(np.int32) - 1


def _by_size(labels, counts):
    """Labels renumbered by falling number of rows; ties by their first row, which is the lexicographically first."""
    found, first, group = np.unique(labels, return_index=True, return_inverse=True)
    sizes = np.bincount(group.reshape(-1), weights=counts)
    groups = np.flatnonzero(found >= 0)
    order = groups[np.lexsort((first[groups], -sizes[groups]))]
    renumbered = np.full(len(found), NOISE, np.int32)
    renumbered[order] = np.arange(len(order))
    return renumbered[group.reshape(-1)]
