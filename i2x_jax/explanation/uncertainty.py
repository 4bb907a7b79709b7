"""Which prototypes waver between two classes, and which samples contain them (DESIGN 2.7, 2.8). NumPy only."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

STABLE = 0.9
"""Share of the bootstrap refits that must agree with a sign before the sign counts."""

TOLD_APART = 0.95
"""Area under the ROC from which two classes are told apart."""

CONTAINED = 0.15
"""Share of a sample's saliency mass from which the sample contains a prototype."""


class PairScores(NamedTuple):
    """How each prototype's change moved the confidence from class b to class a, for one pair (DESIGN 2.8).

    Intervals without a fit hold NaN in `s`, `ci`, `r2` and `r2_null`, and False in `stable` and `counted`.
    """

    s: np.ndarray  # [T-1,K] in confidence: one deviation of the prototype's change, times (beta_a - beta_b)
    ci: np.ndarray  # [T-1,K,2] 5th and 95th percentile of s over the bootstrap refits
    stable: np.ndarray  # bool [T-1,K] at least 90 % of the refits share the sign of s
    r2: np.ndarray  # [T-1] of the pair's fit, on held-out rows
    r2_null: np.ndarray  # [T-1] 95th percentile of r2 with the rows permuted within class
    counted: np.ndarray  # bool [T-1] r2 is above r2_null


class Curated(NamedTuple):
    """What the curated set leaves out, and on whose account (DESIGN 2.8, 2.9)."""

    prototypes: np.ndarray  # int [P] uncertain prototypes whose samples are left out, by score descending
    scores: np.ndarray  # [P] their scores, in confidence
    left_out: np.ndarray  # int [L] rows of the training set, ascending
    skipped: np.ndarray  # int [S] uncertain prototypes that would have left out too much of a class


def soft_confusion(confidence: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean confidence in every class over the samples of every class (DESIGN 2.8).

    Args:
      confidence: [N,M] in [0,1].
      labels: int [N].

    Returns:
      float64 [M,M]; entry (a,b) is the mean of Y_b over the samples of a. NaN in the row of a class without samples.
    """
    confidence, labels = np.asarray(confidence, np.float64), np.asarray(labels)
    num_classes = confidence.shape[1]
    confusion = np.full((num_classes, num_classes), np.nan)
    for label in np.unique(labels):
        confusion[label] = confidence[labels == label].mean(axis=0)
    return confusion


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


def pair_scores(dP: np.ndarray, fits: Sequence, a: int, b: int) -> PairScores:
    """Scores of every prototype in every interval, for the pair (a,b) (DESIGN 2.8).

    Args:
      dP: [T-1,n,K] change of intensity of the n samples of a and b, n at least 1.
      fits: T-1 `mapping.SampleFit`, each fitted on those rows of its interval.
      a: class towards which s is positive.
      b: class towards which s is negative.

    Raises:
      ValueError: not one fit per interval, or no rows.
    """
    dP = np.asarray(dP)
    if len(fits) != len(dP) or dP.shape[1] == 0:
        raise ValueError(f"{len(fits)} fits for changes of shape {dP.shape}; one fit per interval and a row are needed")
    num_intervals, _, num_prototypes = dP.shape
    s = np.full((num_intervals, num_prototypes), np.nan)
    ci = np.full((num_intervals, num_prototypes, 2), np.nan)
    stable = np.zeros((num_intervals, num_prototypes), bool)
    for t, fit in enumerate(fits):
        deviation = dP[t].std(axis=0, dtype=np.float64)
        s[t] = deviation * (fit.beta[:, a] - fit.beta[:, b])
        if len(fit.bootstrap):
            refits = deviation * (fit.bootstrap[:, :, a] - fit.bootstrap[:, :, b])
            ci[t] = np.percentile(refits, [5, 95], axis=0).T
            agreement = (np.sign(refits) == np.sign(s[t])).mean(axis=0)  # NaN equals nothing
            stable[t] = (agreement >= STABLE) & (s[t] != 0)
    r2 = np.array([fit.r2 for fit in fits], np.float64)
    r2_null = np.array([fit.r2_null[1] for fit in fits], np.float64)
    return PairScores(s, ci, stable, r2, r2_null, counted=r2 > r2_null)


def uncertain_scores(scores: PairScores) -> tuple[np.ndarray, np.ndarray]:
    """How much each prototype wavered between the pair's classes (DESIGN 2.8).

    Returns:
      u: float64 [K] >= 0, in confidence. For each prototype, its counted intervals with a stable sign are put in
        order; every two neighbours of differing sign add the smaller of their |s|.
      raw_flips: int [K], sign changes of s over all intervals, whether counted and stable or not; zeros and NaN are
        passed over.
    """
    num_prototypes = scores.s.shape[1]
    u, raw_flips = np.zeros(num_prototypes), np.zeros(num_prototypes, int)
    for k, s in enumerate(scores.s.T):
        sure = s[scores.counted & scores.stable[:, k]]
        u[k] = np.where(flips(sure), np.minimum(abs(sure[:-1]), abs(sure[1:])), 0).sum()
        raw_flips[k] = flips(s[(s != 0) & ~np.isnan(s)]).sum()
    return u, raw_flips


def flips(values: np.ndarray) -> np.ndarray:
    """Bool [n-1] (empty for n < 2): whether neighbours among values [n], none of them 0 or NaN, differ in sign."""
    signs = np.sign(values)
    return signs[:-1] != signs[1:]


def prototype_area(assignments: np.ndarray, num_prototypes: int) -> np.ndarray:
    """Locations of each prototype in each sample: int64 [N,K] from assignments [N,h,w] in 0..K-1 (DESIGN 2.2)."""
    rows = np.arange(len(assignments))[:, None] * num_prototypes
    flat = rows + np.asarray(assignments, np.int64).reshape(len(assignments), -1)
    counts = np.bincount(flat.ravel(), minlength=len(assignments) * num_prototypes)
    return counts.reshape(len(assignments), num_prototypes)


def saliency_mass(intensity: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Saliency that each prototype holds in each sample: mean times area (DESIGN 2.4, 2.7).

    Args:
      intensity: [N,K] mean saliency over a prototype's locations. Signed values (target `margin`) count by their
        absolute value, so that evidence for one class does not cancel evidence for the other.
      area: [N,K] number of locations.

    Returns:
      float64 [N,K] >= 0, in units of saliency times locations.
    """
    return abs(np.asarray(intensity, np.float64)) * area


def contains(intensity: np.ndarray, area: np.ndarray, share: float = CONTAINED) -> np.ndarray:
    """Which samples contain which prototypes: those holding at least `share` of the saliency mass (DESIGN 2.8).

    Args:
      intensity: [N,K] at the last checkpoint; signed values count by their absolute value.
      area: [N,K] number of locations.
      share: in (0,1].

    Returns:
      bool [N,K]; a sample without any mass contains none.
    """
    mass = saliency_mass(intensity, area)
    total = mass.sum(axis=1, keepdims=True)
    return np.divide(mass, total, out=np.zeros_like(mass), where=total > 0) >= share


def curate(
    u: np.ndarray, contained: np.ndarray, labels: np.ndarray, pair: tuple[int, int], max_left_out: float
) -> Curated:
    """Leaves out the pair's samples that contain an uncertain prototype (DESIGN 2.8, 2.9).

    Prototypes with u > 0 are tried by score, ties by id. One that would bring the share left out of either class of the
    pair above `max_left_out` is skipped; one that adds no sample is listed all the same.

    Args:
      u: [K] scores, in confidence.
      contained: bool [N,K], see `contains`.
      labels: int [N] of the training set.
      pair: two classes.
      max_left_out: in [0,1], largest share of a class that may be left out.
    """
    u, labels = np.asarray(u, np.float64), np.asarray(labels)
    members = [labels == label for label in pair]
    of_pair = members[0] | members[1]
    left_out = np.zeros(len(labels), bool)
    accepted, skipped = [], []
    for k in np.argsort(-u, kind="stable"):
        if not u[k] > 0:  # NaN is no score
            continue
        union = left_out | (of_pair & contained[:, k])
        # A class without samples has nothing to lose.
        if any(union[member].sum() / max(member.sum(), 1) > max_left_out for member in members):
            skipped.append(k)
        else:
            accepted.append(k)
            left_out = union
    prototypes = np.array(accepted, int)
    return Curated(prototypes, u[prototypes], np.flatnonzero(left_out), np.array(skipped, int))


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
