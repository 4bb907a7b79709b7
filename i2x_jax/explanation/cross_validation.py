"""Nested cross-validation of ridge regression from sums of products alone (DESIGN section 2.6).

The samples are passed over once; every training set of every fold, every penalty and every permutation of the null is
then a matter of matrices of the size of the prototypes.
"""

import functools
import itertools
from typing import NamedTuple

import numpy as np

# The ridge penalties tried, as fractions of the rows of a fit; the strongest first, so that it wins a tie.
FRACTIONS = np.logspace(1, -5, 9)
# What is left of a column's mean square once its mean is removed counts as variance above this share of it.
ROUNDING = 1e-12


class Moments(NamedTuple):
    """Sums over rows, by fold, of x = dP, y = dY and t = change of total saliency, all without their overall mean.

    Q counts versions of dY: version 0 is dY itself, the others are permuted within class.
    """

    n: np.ndarray  # [F]
    x: np.ndarray  # [F,K]
    xx: np.ndarray  # [F,K,K]
    y: np.ndarray  # [F,Q,M]
    yy: np.ndarray  # [F,Q], summed over outputs
    xy: np.ndarray  # [F,K,Q,M]
    t: np.ndarray  # [F]
    tt: np.ndarray  # [F]
    ty: np.ndarray  # [F,M], of dY itself


def class_moments(x, y, t, folds, num_folds, permutations, rng):
    """The `Moments` of one class. dY is permuted instead of dP: the same null, and the Gram of dP stays as it is.

    Args:
      x: changes of intensity [n,K], all columns about an overall mean, as y and t.
      y: changes of confidence [n,M].
      t: change of total saliency [n].
      folds: int [n].
      num_folds: F.
      permutations: Q - 1.
      rng: of the permutations.
    """
    order = np.argsort(folds, kind="stable")
    x, y, t = x[order], y[order], t[order]
    bounds = np.searchsorted(folds[order], np.arange(num_folds + 1))
    fold_rows = [slice(*pair) for pair in itertools.pairwise(bounds)]
    (n, width), outputs, versions = x.shape, y.shape[1], permutations + 1
    # A column of ones beside dP and one of squares beside dY bring the sums along in the same product.
    left = np.column_stack([x, np.ones(n)])
    right = np.column_stack([y, np.sum(y**2, axis=1)])
    cross = np.zeros((num_folds, width + 1, versions, outputs + 1))
    block = max(1, 2**22 // max(right.size, 1))
    for start in range(0, versions, block):
        shuffled = rng.permuted(np.tile(np.arange(n), (min(block, versions - start), 1)), axis=1)
        if start == 0:
            shuffled[0] = np.arange(n)
        picked = np.ascontiguousarray(shuffled.T)
        for fold, rows in enumerate(fold_rows):
            products = left[rows].T @ np.take(right, picked[rows], axis=0).reshape(-1, picked.shape[1] * (outputs + 1))
            cross[fold, :, start : start + block] = products.reshape(width + 1, -1, outputs + 1)
    return Moments(
        n=np.diff(bounds).astype(np.float64),
        x=np.stack([x[rows].sum(0) for rows in fold_rows]),
        xx=np.stack([x[rows].T @ x[rows] for rows in fold_rows]),
        y=cross[:, -1, :, :-1].copy(),
        yy=cross[:, -1, :, -1].copy(),
        xy=cross[:, :-1, :, :-1].copy(),
        t=np.stack([t[rows].sum() for rows in fold_rows]),
        tt=np.stack([t[rows] @ t[rows] for rows in fold_rows]),
        ty=np.stack([t[rows] @ y[rows] for rows in fold_rows]),
    )


def inverse_deviation(spread, squares, rows):
    """1 / standard deviation of columns from their sums of squares with and without the mean; 0 without variance."""
    alive = spread > ROUNDING * squares
    return np.where(alive, 1 / np.sqrt(np.where(alive, spread, 1) / rows), 0)


def ridge(gram, target, squares, rows, penalty):
    """Coefficients in units of the columns and which are estimable; leading axes are separate fits.

    Args:
      gram: [...,K,K] products of the columns about their means.
      target: [...,K,M] products of the columns with the outputs, about their means.
      squares: [...,K] sums of squares of the columns as they are, to tell variance from rounding.
      rows: number of rows.
      penalty: on columns scaled to unit deviation.
    """
    scale = inverse_deviation(np.diagonal(gram, axis1=-2, axis2=-1), squares, rows)
    system = gram * scale[..., :, None] * scale[..., None, :] + penalty * np.eye(gram.shape[-1])
    return scale[..., None] * np.linalg.solve(system, scale[..., None] * target), scale > 0


def cross_validate(pooled, members):
    """Nested cross-validation of the ridge of dY on dP, both centred by the training rows' means of each member.

    Args:
      pooled: `Moments` of all rows.
      members: `Moments` of the parts that have a mean of their own: [pooled], or one for each class.

    Returns:
      Held-out SSE [Q] with the penalty chosen inside the training folds for each version of dY, held-out SSE [Q] of
      the means alone, and the fraction of the rows that is the best penalty for all folds.
    """
    num_folds, width, versions, outputs = pooled.xy.shape
    n, x, yy = (np.stack(parts, axis=1) for parts in zip(*((m.n, m.x, m.yy) for m in members), strict=True))
    # The members' sums of dY stand below the products with dP, so that one product projects and centres both.
    sums = [pooled.xy.reshape(num_folds, width, -1), *(m.y.reshape(num_folds, 1, -1) for m in members)]
    by_fold = (n, x, pooled.xx, np.concatenate(sums, axis=1))
    errors, references = {}, np.zeros(versions)
    for left_out in [(f,) for f in range(num_folds)] + list(itertools.combinations(range(num_folds), 2)):
        # Added up, not taken off the whole: what is left of a column that only held-out rows have must be exact.
        train = [f for f in range(num_folds) if f not in left_out]
        n_train, x_train, xx_train, xy_train = (functools.reduce(np.add, (part[f] for f in train)) for part in by_fold)
        rows = max(n_train.sum(), 1)
        x_mean, y_mean = (a / np.maximum(n_train, 1)[:, None] for a in (x_train, xy_train[width:]))
        gram = xx_train - x_train.T @ x_mean
        scale = inverse_deviation(np.diagonal(gram), np.diagonal(xx_train), rows)
        eigenvalues, eigenvectors = np.linalg.eigh(gram * scale * scale[:, None])
        # With these columns the coefficients for any penalty are basis @ (shrink * loadings).
        basis = scale[:, None] * eigenvectors
        centring = np.vstack([basis, -x_mean @ basis]).T
        shrink = 1 / (np.maximum(eigenvalues, 0)[:, None] + rows * FRACTIONS)
        loadings = (centring @ xy_train).reshape(width, versions, outputs)
        y_mean_by_version = y_mean.reshape(-1, versions, outputs)
        kernels = []
        for f in left_out:
            # Held-out sums around the training means: squares of dY, products with dY, and the Gram of dP.
            y = by_fold[3][f, width:].reshape(y_mean_by_version.shape)
            shift = n[f][:, None, None] * y_mean_by_version - 2 * y
            reference = yy[f].sum(0) + np.einsum("cqm,cqm->q", y_mean_by_version, shift)
            offset = x[f] - n[f][:, None] * x_mean
            products = centring @ by_fold[3][f] - (offset @ basis).T @ y_mean
            linear = np.einsum("kqm,kqm->qk", loadings, products.reshape(loadings.shape)) @ shrink
            errors[left_out, f] = reference[:, None] - 2 * linear
            held_gram = pooled.xx[f] - x[f].T @ x_mean - x_mean.T @ offset
            kernel = (basis.T @ held_gram @ basis)[:, :, None] * shrink[:, None] * shrink[None]
            kernels.append(kernel.reshape(width**2, -1))
            if len(left_out) == 1:
                references += reference
        squares = np.split(quadratic_forms(loadings, np.hstack(kernels)), len(left_out), axis=1)
        for f, square in zip(left_out, squares, strict=True):
            errors[left_out, f] += square
    sse = np.zeros(versions)
    for f in range(num_folds):
        inner = sum(errors[tuple(sorted((f, g))), g] for g in range(num_folds) if g != f)
        sse += np.take_along_axis(errors[(f,), f], np.argmin(inner, axis=1)[:, None], axis=1)[:, 0]
    fraction = FRACTIONS[np.argmin(sum(errors[(f,), f][0] for f in range(num_folds)))]
    return sse, references, fraction


def quadratic_forms(loadings, kernels):
    """Sum over outputs m of l_m' A l_m for each version of l [K,Q,M] and each A of kernels [K*K,A], as [Q,A].

    The sum over outputs of l_m l_m' is formed once and serves all penalties and held-out folds.
    """
    width, versions, _ = loadings.shape
    forms, block = [], max(1, 2**20 // max(width, 1) ** 2)
    for start in range(0, versions, block):
        part = loadings[:, start : start + block]
        # A separate copy keeps NumPy off its routine for A A', which is slow where A has few columns.
        products = part.transpose(1, 0, 2) @ np.ascontiguousarray(part.transpose(1, 2, 0))
        forms.append(products.reshape(len(products), -1) @ kernels)
    return np.concatenate(forms)


def total_slope_sse(moments):
    """Held-out SSE of one class's mean and slope on the change of total saliency (0 where that does not vary)."""
    n, t, tt, ty, y, yy = moments.n, moments.t, moments.tt, moments.ty, moments.y[:, 0], moments.yy[:, 0]
    others = 1 - np.eye(len(n))
    n_train, t_train, tt_train, ty_train, y_train = (others @ a for a in (n, t, tt, ty, y))
    t_mean = t_train / np.maximum(n_train, 1)
    y_mean = y_train / np.maximum(n_train, 1)[:, None]
    spread = tt_train - t_train * t_mean
    alive = spread > ROUNDING * tt_train
    slope = (ty_train - t_train[:, None] * y_mean) * (alive / np.where(alive, spread, 1))[:, None]
    held_tt = tt - 2 * t_mean * t + n * t_mean**2
    held_ty = ty - t_mean[:, None] * y - (t - n * t_mean)[:, None] * y_mean
    held_yy = yy + np.sum(y_mean * (n[:, None] * y_mean - 2 * y), axis=1)
    return np.sum(held_yy) + np.sum(slope * (slope * held_tt[:, None] - 2 * held_ty))
