"""How far an explanation may be trusted: claims against interventions, and agreement (DESIGN 2.14); on the host.

A *claim* says of each part of an image how much the network owes to it, a *drop* what taking the part away did.
"""

from typing import NamedTuple

import numpy as np

# Parts that an image must have for an order among them to mean anything; where a third thing is given, three
# would leave nothing to vary.
LEAST_PARTS, LEAST_GIVEN = 3, 4
# Of the bootstrap over images.
DRAWS, LEVEL = 1000, 0.95


class Interval(NamedTuple):
    """A mean over images with its bootstrap interval of 95 %."""

    mean: float
    low: float
    high: float


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of values `[n]` from 1, ties at their mean: float64 `[n]`."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation (Spearman 1904) of two `[n]`, -1 to 1; 0 where either is constant: it orders nothing."""
    first, second = (ranks(each) - (len(each) + 1) / 2 for each in (one, other))
    size = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / size) if size > 0 else 0.0


def partial_spearman(one: np.ndarray, other: np.ndarray, given: np.ndarray) -> float:
    """Rank correlation of two `[n]` that a third does not explain, -1 to 1; 0 where it explains either wholly."""
    plain, first, second = spearman(one, other), spearman(one, given), spearman(other, given)
    left = (1 - first**2) * (1 - second**2)
    # Rounding leaves a little of what is explained wholly.
    return float((plain - first * second) / np.sqrt(left)) if left > 1e-9 else 0.0


def r_squared(claim: np.ndarray, drop: np.ndarray) -> float:
    """How much of the spread of drops `[n]` claims `[n]` explain as they stand, unscaled: 1 all, below 0 worse than 0.

    NaN where drops are all the same.
    """
    spread = ((drop - np.mean(drop)) ** 2).sum()
    return float(1 - ((np.asarray(drop) - claim) ** 2).sum() / spread) if spread > 0 else float("nan")


def mean_interval(values: np.ndarray, seed: int) -> Interval:
    """The mean of one value an image `[n]`, n at least 1, and its interval by percentiles of resampled images."""
    values = np.asarray(values, np.float64)
    drawn = np.random.default_rng(seed).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.quantile(values[drawn].mean(1), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(float(values.mean()), float(low), float(high))


def adjusted_rand(one: np.ndarray, other: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The adjusted Rand index (Hubert & Arabie 1985) of two partitions, 1 where they are the same, about 0 by chance.

    Args:
      one: int `[n]`, at least 0.
      other: int `[n]`, at least 0.
      weights: `[n]`, at least 0, a pair counting by the product of both; None for the usual index.

    Returns:
      NaN where neither partition has anything to agree on: a single cluster each, or no weight.
    """
    weights = np.ones(len(one)) if weights is None else np.asarray(weights, np.float64)
    table = np.zeros((one.max() + 1, other.max() + 1))
    np.add.at(table, (one, other), weights)
    alone = (weights**2).sum()
    together, rows, columns, pairs = (
        ((sums**2).sum() - alone) / 2 for sums in (table, table.sum(1), table.sum(0), table.sum())
    )
    chance = rows * columns / pairs if pairs > 0 else 0.0
    most = (rows + columns) / 2 - chance
    return float((together - chance) / most) if most > 0 else float("nan")


def overlaps(one: np.ndarray, other: np.ndarray, chosen: np.ndarray, num_prototypes: int) -> np.ndarray:
    """How well the places of some prototypes are kept by another clustering.

    Args:
      one: int `[n]`, the prototype of every location.
      other: int `[n]`, that of the other clustering.
      chosen: int `[c]`, of the first.
      num_prototypes: K, of both.

    Returns:
      float `[c]`, 0 to 1: locations shared with the most similar prototype of the other, over those of either.
    """
    both = np.zeros((num_prototypes, num_prototypes))
    np.add.at(both, (one, other), 1)
    union = both.sum(1)[:, None] + both.sum(0) - both
    shared = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
    return shared[chosen].max(1)


def agreement(claims: np.ndarray, drops: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Rank correlation of claims and drops within each image that has parts enough.

    Args:
      claims: `[n, K]`.
      drops: `[n, K]`.
      present: bool `[n, K]`, the parts that each image has.

    Returns:
      float64 `[m]`, of the m images with at least `LEAST_PARTS`.
    """
    rows = np.flatnonzero(present.sum(1) >= LEAST_PARTS)
    return np.array([spearman(claims[i, present[i]], drops[i, present[i]]) for i in rows])


def agreement_given(claims: np.ndarray, drops: np.ndarray, given: np.ndarray, present: np.ndarray) -> np.ndarray:
    """As `agreement`, of what a third `[n, K]` (ink, area) does not explain of either, from `LEAST_GIVEN` parts on."""
    rows = np.flatnonzero(present.sum(1) >= LEAST_GIVEN)
    triples = ([each[i, present[i]] for each in (claims, drops, given)] for i in rows)
    return np.array([partial_spearman(*each) for each in triples])
