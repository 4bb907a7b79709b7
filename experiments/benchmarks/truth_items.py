"""What claims about the items of scenes are held against beside single deletion (`truth_parts.py`). NumPy only.

The vocabulary is that of FunnyBirds (Hesse, Schaub-Meyer, Roth 2023), for the five items of a scene of `parts`; what
the network does without any items is known exactly, because the scene is drawn again without them.
"""

import itertools

import numpy as np

from i2x_jax import parts
from i2x_jax.explanation import trust

# As many items as a class has parts.
BEST = parts.CLASSES.shape[1]


def preserved(claim: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Whether the three items with the largest claims are what the network goes by.

    Args:
      claim: `[n, 5]`.
      predicted: int `[n, 32]`, the class of each scene with some of its items: item j is there where bit j is set.

    Returns:
      `kept`, the share of scenes whose class stays where only these items do; `removed`, of those whose class changes
      where they go.
    """
    alone = (1 << np.argsort(-claim, axis=1, kind="stable")[:, :BEST]).sum(1)
    rows, everything = np.arange(len(claim)), predicted.shape[1] - 1
    whole = predicted[:, everything]
    return {
        "kept": float((predicted[rows, alone] == whole).mean()),
        "removed": float((predicted[rows, everything ^ alone] != whole).mean()),
    }


def distracted(claim: np.ndarray) -> float:
    """The share of the absolute claims `[n, 5]` of a scene that is on the neutral shape, mean over scenes."""
    size = np.abs(claim)
    return float((size[:, parts.NEUTRAL_ITEM] / np.maximum(size.sum(1), np.finfo(float).tiny)).mean())


def own_cells(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean values of the parts of each class, over its scenes: `[M, 3]` from `[n, 5]`; NaN for a class without any."""
    found = np.full(parts.CLASSES.shape, np.nan)
    for label in np.unique(labels):
        found[label] = values[labels == label, :BEST].mean(0)
    return found


def own_table(claim: np.ndarray, drop: np.ndarray, labels: np.ndarray) -> float:
    """Rank correlation of `own_cells` of claims and of drops."""
    cells = [own_cells(values, labels) for values in (claim, drop)]
    known = np.isfinite(cells[0])
    return trust.spearman(*(each[known] for each in cells))


def target_signs(claim: np.ndarray, kinds: np.ndarray, labels: np.ndarray, others: np.ndarray) -> float:
    """Whether claims about a margin know the two classes: the share of right signs.

    Looked at are items that belong to one of the two classes only: evidence for the one, against the other.

    Args:
      claim: `[n, 5]`, of the logit of `labels` less that of `others`.
      kinds: int `[n, 5]`, what the items are.
      labels: int `[n]`.
      others: int `[n]`.
    """
    own, other = ((kinds[..., None] == parts.CLASSES[each][:, None]).any(-1) for each in (labels, others))
    told = own != other
    return float((np.sign(claim) == np.where(own, 1, -1))[told].mean())


def pairs_right(owed: np.ndarray, on: np.ndarray, kinds: np.ndarray, labels: np.ndarray) -> float:
    """In what share of the pairs of classes the first separating prototype lies on a part of one of the two alone.

    Args:
      owed: `[n, K, M]`, contributions of the prototypes.
      on: bool `[n, K, 5]`, the items that each prototype stands on.
      kinds: int `[n, 5]`, what the items are.
      labels: int `[n]`.
    """
    means = np.stack([owed[labels == label].mean(0) for label in range(len(parts.CLASSES))])
    right = []
    for a, b in itertools.combinations(range(len(means)), 2):
        # As the explanation has it (DESIGN 2.7): the largest difference of the contributions to the two logits.
        evidence = abs(means[a, :, a] - means[a, :, b]) + abs(means[b, :, b] - means[b, :, a])
        seen = np.isin(labels, (a, b))
        there = kinds[seen][on[seen, evidence.argmax()]]
        most = np.bincount(there, minlength=len(parts.SHAPES)).argmax() if len(there) else -1
        right.append((most in parts.CLASSES[a]) != (most in parts.CLASSES[b]))
    return float(np.mean(right))


def half_step(course: np.ndarray, steps: np.ndarray) -> float:
    """Since when a course `[T]` stays at half of its last value or more, in log2 of the step plus one.

    Between two checkpoints it is taken to go straight; NaN where the last value is not above zero.
    """
    if course[-1] <= 0:
        return float("nan")
    at, below = np.log2(np.asarray(steps) + 1.0), np.flatnonzero(course < course[-1] / 2)
    if not len(below):
        return float(at[0])
    t = below[-1]
    share = (course[-1] / 2 - course[t]) / (course[t + 1] - course[t])
    return float(at[t] + share * (at[t + 1] - at[t]))


def dated(claims: np.ndarray, drops: np.ndarray, steps: np.ndarray) -> dict[str, float]:
    """How well claims date the parts.

    Args:
      claims: `[T, 8]`, the mean claim of each part.
      drops: `[T, 8]`, what taking it away did, at the same checkpoints.
      steps: int `[T]`.

    Returns:
      `order`, the rank correlation of the half steps, and `off`, the median of how far they are apart, in log2.
    """
    claimed, true = (np.array([half_step(course, steps) for course in each.T]) for each in (claims, drops))
    known = np.isfinite(claimed) & np.isfinite(true)
    apart = np.abs(claimed - true)[known]
    return {
        "order": trust.spearman(claimed[known], true[known]),
        "off": float(np.median(apart)) if known.any() else float("nan"),
    }
