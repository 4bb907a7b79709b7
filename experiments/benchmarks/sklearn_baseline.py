"""The parts of the baseline that need no PyTorch: scikit-learn on NumPy arrays."""

import numpy as np
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.preprocessing import StandardScaler

RESOLUTION = 1e-3  # smaller changes of confidence are none (DESIGN 2.5)
PENALTIES = np.logspace(1, -5, 9)  # fractions of the rows (DESIGN 2.6)


def fitted(model: KMeans) -> dict:
    """What is kept of a K-means."""
    return {"centroids": model.cluster_centers_, "inertia": model.inertia_, "iterations": model.n_iter_}


def group(dY: np.ndarray, min_cluster_size: int, min_samples: int) -> np.ndarray:
    """HDBSCAN of the rows that changed: ids, -1 for noise, -2 for unchanged; one group where it finds none."""
    changed = np.abs(dY).max(1, initial=0) >= RESOLUTION
    ids = np.where(changed, -1, -2).astype(np.int32)
    size = min_cluster_size or max(5, len(dY) // 100)
    rows = dY[changed]
    if len(rows) < size:
        return ids
    labels = np.zeros(len(rows), np.int32)
    if len(rows) >= 2 * size:
        for single in (False, True):
            found = HDBSCAN(size, min_samples=min_samples, allow_single_cluster=single, copy=True).fit_predict(rows)
            if (found >= 0).any():
                labels = found
                break
    ids[changed] = labels
    return ids


def ridge_groups(dP: np.ndarray, dY: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The paper's fit: ridge of group means on group means, without intercept, penalty 1 % of the mean square."""
    named, index = np.unique(ids[ids >= 0], return_inverse=True)
    if not len(named):
        return np.full((dP.shape[1], dY.shape[1]), np.nan)
    counts = np.bincount(index)[:, None]
    pi, changes = np.zeros((len(named), dP.shape[1])), np.zeros((len(named), dY.shape[1]))
    np.add.at(pi, index, dP[ids >= 0])
    np.add.at(changes, index, dY[ids >= 0])
    pi, changes = pi / counts, changes / counts
    penalty = 1e-2 * (pi**2).sum() / len(pi)
    if not penalty:
        return np.zeros((dP.shape[1], dY.shape[1]))
    return Ridge(penalty, fit_intercept=False).fit(pi, changes).coef_.T


def ridge_samples(dP: np.ndarray, dY: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, float]:
    """Ridge on standardised columns, its penalty by leave-one-out: coefficients, and R^2 over held-out folds."""

    def fit(rows):
        scaler = StandardScaler().fit(dP[rows])
        return scaler, RidgeCV(PENALTIES * rows.sum()).fit(scaler.transform(dP[rows]), dY[rows])

    scaler, model = fit(np.ones(len(dP), bool))
    error, spread = 0.0, 0.0
    for fold in np.unique(folds):
        held = folds == fold
        inner_scaler, inner = fit(~held)
        error += ((dY[held] - inner.predict(inner_scaler.transform(dP[held]))) ** 2).sum()
        spread += ((dY[held] - dY[~held].mean(0)) ** 2).sum()
    return model.coef_.T / scaler.scale_[:, None], 1 - error / spread if spread else np.nan
