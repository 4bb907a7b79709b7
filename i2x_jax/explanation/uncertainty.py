"""Which prototypes waver between two classes, and which samples contain them (DESIGN 2.7, 2.8). NumPy only."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

STABLE = 0.9
"""Share of the bootstrap refits that must agree with a sign before the sign counts."""

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


def pair_scores(deviation: np.ndarray, fits: Sequence, a: int, b: int) -> PairScores:
    """Scores of every prototype in every interval, for the pair (a,b) (DESIGN 2.8).

    Args:
      deviation: [T-1,K] standard deviation of the change of intensity over the samples of a and b.
      fits: T-1 `mapping.SampleFit`, each fitted on those rows of its interval.
      a: class towards which s is positive.
      b: class towards which s is negative.

    Raises:
      ValueError: not one fit per interval, or deviations that are not finite, as those of no samples are.
    """
    deviation = np.asarray(deviation, np.float64)
    if len(fits) != len(deviation) or not np.isfinite(deviation).all():
        raise ValueError(f"{len(fits)} fits for deviations {deviation.shape}; one fit per interval, and finite ones")
    num_intervals, num_prototypes = deviation.shape
    s = np.full((num_intervals, num_prototypes), np.nan)
    ci = np.full((num_intervals, num_prototypes, 2), np.nan)
    stable = np.zeros((num_intervals, num_prototypes), bool)
    for t, fit in enumerate(fits):
        in_a, in_b = (a, b) if fit.outputs is None else np.searchsorted(fit.outputs, (a, b))
        s[t] = deviation[t] * (fit.beta[:, in_a] - fit.beta[:, in_b])
        if len(fit.bootstrap):
            refits = deviation[t] * (fit.bootstrap[:, :, in_a] - fit.bootstrap[:, :, in_b])
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
