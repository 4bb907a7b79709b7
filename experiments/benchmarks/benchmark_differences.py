"""How far two implementations of a stage are apart, from the same upstream outputs; and end to end."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference relative to the second's largest absolute value; undefined in both counts as equal."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if (np.isfinite(ours) != np.isfinite(theirs)).any():
        return float("inf")
    scale = np.nanmax(np.abs(theirs), initial=0)
    return float(np.nanmax(np.abs(ours - theirs), initial=0) / scale) if scale else 0.0


def of_pca(ours: dict, theirs: dict) -> dict:
    """Points up to the sign of each component, and the sine of the largest angle between the two subspaces."""
    one, two = (each["components"].astype(np.float64) for each in (ours, theirs))
    signs = np.sign((one * two).sum(1))
    # What of our components lies outside theirs: an arc cosine would lose half of the digits.
    outside = one - one @ two.T @ two
    return {
        "points": relative(ours["points"] * signs, theirs["points"]),
        "angle": float(np.linalg.norm(outside, 2)),
    }


def rand_by_interval(ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray) -> list[float]:
    """Adjusted Rand of the groups of every interval; a group belongs to one class."""
    return [
        float(adjusted_rand_score(one * labels.size + labels, two * labels.size + labels))
        for one, two in zip(ours.astype(np.int64), theirs.astype(np.int64), strict=True)
    ]


def end_to_end(ours: dict, theirs: dict, labels: np.ndarray) -> dict:
    """Two whole explain stages, each with its own K-means optimum; centroids in feature space, about the mean."""
    cosines = unit(ours["centroids"]) @ unit(theirs["centroids"]).T
    matched = cosines[linear_sum_assignment(-cosines)]
    return {
        "assignments_adjusted_rand": float(
            adjusted_rand_score(ours["assignments"].reshape(-1), theirs["assignments"].reshape(-1))
        ),
        "centroid_cosine_mean": float(matched.mean()),
        "centroid_cosine_least": float(matched.min()),
        "confidence": relative(ours["confidence"], theirs["confidence"]),
        "groups_adjusted_rand": rand_by_interval(ours["groups"], theirs["groups"], labels),
        "r2_ours": ours["r2"].tolist(),
        "r2_baseline": theirs["r2"].tolist(),
    }


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
