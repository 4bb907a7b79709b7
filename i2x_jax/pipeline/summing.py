"""From what all samples add up to, to what the files of the step `evidence` hold (DESIGN section 4). NumPy only."""

from collections.abc import Callable, Sequence

import numpy as np

# Samples that are looked at together.
ROWS_AT_ONCE = 4096


def ledger_members(stacked: Callable[[str, int], np.ndarray], steps: int, counts: np.ndarray) -> dict[str, np.ndarray]:
    """The members of ledger.npz (DESIGN section 4).

    Args:
      stacked: from a name and a number of intervals or checkpoints to sums over all samples.
      steps: T.
      counts: int `[M]`, samples of each class, at least 1.
    """
    samples, members = counts[:, None, None], {}
    for name in ("seeing", "weighing"):
        mean, std = moments_of(stacked(name, steps - 1), stacked(f"{name}_square", steps - 1), samples)
        members |= {name: np.float32(mean), f"{name}_error": np.float32(std / np.sqrt(samples))}
    missed, whole = (stacked(name, steps - 2) if steps > 2 else np.zeros(0) for name in ("coarse_missed", "coarse"))
    return members | {
        "bias": np.float32(stacked("bias", steps - 1) / counts[:, None]),
        "residual": stacked("largest_residual", steps - 1),
        "largest_logit": stacked("largest_logit", steps - 1),
        "path_difference": np.divide(missed, whole, out=np.zeros_like(missed), where=whole > 0),
        "path_error": stacked("path_error", steps) / counts.sum(),
    }


def moments_of(first: np.ndarray, second: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population standard deviation, from sums and sums of squares over so many samples."""
    mean = first / counts
    return mean, np.sqrt(np.maximum(second / counts - mean**2, 0))


def blank_contributions(
    evidence: Sequence[np.ndarray],
    assignments: np.ndarray,
    labels: np.ndarray,
    rivals: np.ndarray,
    num_prototypes: int,
) -> np.ndarray:
    """What a blank image would contribute at the places of each prototype, mean over each class: `[T, M, K, R]`.

    Args:
      evidence: T times `[h, w, M]`, what each location of the blank image contributes.
      assignments: int `[N, h, w]`.
      labels: int `[N]`.
      rivals: int `[M, R]`, the classes of the logits.
      num_prototypes: K.
    """
    places, counts = np.prod(assignments.shape[1:]), np.maximum(np.bincount(labels, minlength=len(rivals)), 1)
    members = np.zeros((len(counts), num_prototypes, places))
    for start in range(0, len(labels), ROWS_AT_ONCE):
        part = np.asarray(assignments[start : start + ROWS_AT_ONCE], np.int64).reshape(-1, places)
        flat = (labels[start : start + len(part), None] * num_prototypes + part) * places + np.arange(places)
        members += np.bincount(flat.ravel(), minlength=members.size).reshape(members.shape)
    share = members / counts[:, None, None]
    flat = (np.float64(each).reshape(places, -1) for each in evidence)
    return np.stack([share @ np.moveaxis(each[:, rivals], 0, 1) for each in flat])
