"""Nested cross-validation of ridge regression from sums of products alone (DESIGN section 2.6).

The samples are passed over once; every training set of every fold, every penalty and every permutation of the null is
then a matter of matrices of the size of the prototypes.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# The ridge penalties tried, as fractions of the rows of a fit; the strongest first, so that it wins a tie.
FRACTIONS = np.logspace(1, -5, 9)
# What is left of a column's mean square once its mean is removed counts as variance above this share of it.
ROUNDING = 1e-12


class FoldSums(NamedTuple):
    """Sums over rows, by fold, of x = dP, y = dY and t = change of total saliency.

    x and y are without their overall mean, t without that of its class: sums of t of several classes mean nothing.
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
    tx: np.ndarray  # [F,K]
    ty: np.ndarray  # [F,M], of dY itself


class Unpenalised(NamedTuple):
    """Sums over one class's rows, by fold, of products with z, the p columns that take no penalty.

    The first of them is 1, the mean of the class; a second one is t, a slope on the change of total saliency.
    """

    zz: np.ndarray  # [F,p,p]
    zx: np.ndarray  # [F,p,K]
    zy: np.ndarray  # [F,p,Q,M]
    yy: np.ndarray  # [F,Q], summed over outputs


def means(moments: FoldSums) -> Unpenalised:
    """A mean for all rows of the moments."""
    return Unpenalised(moments.n[:, None, None], moments.x[:, None], moments.y[:, None], moments.yy)


def means_and_slopes(moments: FoldSums) -> Unpenalised:
    """A mean and a slope on t for the rows of one class; of dY itself only, without the permuted versions."""
    n, t, tt = moments.n, moments.t, moments.tt
    return Unpenalised(
        zz=np.stack([n, t, t, tt], axis=-1).reshape(-1, 2, 2),
        zx=np.stack([moments.x, moments.tx], axis=1),
        zy=np.stack([moments.y[:, 0], moments.ty], axis=1)[:, :, None],
        yy=moments.yy[:, :1],
    )


def fit_of_unpenalised(zz: np.ndarray) -> np.ndarray:
    """What gives least squares on z: [C,p,p] such that it times the products of z with y are the coefficients of z.

    A class without rows has coefficients of 0, and so has a slope where t does not vary.

    Args:
      zz: [C,p,p] products of z by class, p at most 2.
    """
    inverse = np.zeros_like(zz)
    inverse[:, 0, 0] = 1 / np.maximum(zz[:, 0, 0], 1)
    if zz.shape[1] == 2:
        mean = zz[:, 0, 1] * inverse[:, 0, 0]
        spread = zz[:, 1, 1] - zz[:, 0, 1] * mean
        alive = spread > ROUNDING * zz[:, 1, 1]
        about_mean = np.stack([-mean, np.ones_like(mean)], axis=1)
        weight = alive / np.where(alive, spread, 1)
        inverse += weight[:, None, None] * about_mean[:, :, None] * about_mean[:, None]
    return inverse


def class_moments(x, y, t, folds, num_folds, permutations, rng):
    """The `FoldSums` of one class. dY is permuted instead of dP: the same null, and the Gram of dP stays as it is.

    Args:
      x: changes of intensity [n,K], all columns about an overall mean, as y and t.
      y: changes of confidence [n,M].
      t: change of total saliency [n], about its mean over these rows.
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
    return FoldSums(
        n=np.diff(bounds).astype(np.float64),
        x=np.stack([x[rows].sum(0) for rows in fold_rows]),
        xx=np.stack([x[rows].T @ x[rows] for rows in fold_rows]),
        y=cross[:, -1, :, :-1].copy(),
        yy=cross[:, -1, :, -1].copy(),
        xy=cross[:, :-1, :, :-1].copy(),
        t=np.stack([t[rows].sum() for rows in fold_rows]),
        tt=np.stack([t[rows] @ t[rows] for rows in fold_rows]),
        tx=np.stack([t[rows] @ x[rows] for rows in fold_rows]),
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


def cross_validate(
    xx: np.ndarray, xy: np.ndarray, members: Sequence[Unpenalised]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Nested cross-validation of the ridge of dY on dP beside columns that take no penalty.

    Both dP and dY are taken about what the unpenalised columns of each member make of them on the training rows; by
    the theorem of Frisch, Waugh and Lovell that is the joint fit. The penalty is on columns of unit deviation about it.

    Args:
      xx: [F,K,K] sums of products of dP over all rows, by fold.
      xy: [F,K,Q,M] the same with dY.
      members: `Unpenalised` of the parts that have coefficients of their own: of all rows, or one for each class.

    Returns:
      Held-out SSE [Q] with the penalty chosen inside the training folds for each version of dY, held-out SSE [Q] of
      the unpenalised columns alone, and the fraction of the rows that is the best penalty for all folds.
    """
    num_folds, width, versions, _ = xy.shape
    zz, zx, zy, yy = (np.stack(parts, axis=1) for parts in zip(*members, strict=True))
    # The members' products with z stand below those with dP, so that one product projects and centres both.
    below = zy.reshape(num_folds, zy.shape[1] * zy.shape[2], -1)
    joint = np.concatenate([xy.reshape(num_folds, width, -1), below], axis=1)
    by_fold = (zz, zx.reshape(num_folds, -1, width), xx, joint, yy.sum(1))
    errors, references = {}, np.zeros(versions)
    for left_out in [(f,) for f in range(num_folds)] + list(itertools.combinations(range(num_folds), 2)):
        for f, (error, reference) in zip(left_out, _held_out_errors(by_fold, left_out), strict=True):
            errors[left_out, f] = error
            if len(left_out) == 1:
                references += reference
    sse = np.zeros(versions)
    for f in range(num_folds):
        inner = sum(errors[tuple(sorted((f, g))), g] for g in range(num_folds) if g != f)
        sse += np.take_along_axis(errors[(f,), f], np.argmin(inner, axis=1)[:, None], axis=1)[:, 0]
    fraction = FRACTIONS[np.argmin(sum(errors[(f,), f][0] for f in range(num_folds)))]
    return sse, references, fraction


def _held_out_errors(by_fold, left_out):
    """SSE [Q,A] for all penalties, and [Q] without dP, of each fold left out, from the fit to all other folds."""
    zz, zx, xx, joint, yy = by_fold
    num_members, p = zz.shape[1:3]
    versions, width = yy.shape[1], xx.shape[1]

    def of_members(matrices, rows):
        """Products of one matrix [p,p] for each member with that member's rows."""
        return (matrices @ rows.reshape(num_members, p, -1)).reshape(rows.shape)

    # Added up, not taken off the whole: what is left of a column that only held-out rows have must be exact.
    train = [f for f in range(len(zz)) if f not in left_out]
    sums = (functools.reduce(np.add, (part[f] for f in train)) for part in by_fold[:4])
    zz_train, zx_train, xx_train, joint_train = sums
    rows = max(zz_train[:, 0, 0].sum(), 1)
    inverse = fit_of_unpenalised(zz_train)
    x_fit, y_fit = of_members(inverse, zx_train), of_members(inverse, joint_train[width:])
    gram = xx_train - zx_train.T @ x_fit
    scale = inverse_deviation(np.diagonal(gram), np.diagonal(xx_train), rows)
    eigenvalues, eigenvectors = np.linalg.eigh(gram * scale * scale[:, None])
    # With these columns the coefficients for any penalty are basis @ (shrink * loadings).
    basis = scale[:, None] * eigenvectors
    centring = np.vstack([basis, -x_fit @ basis]).T
    shrink = 1 / (np.maximum(eigenvalues, 0)[:, None] + rows * FRACTIONS)
    loadings = (centring @ joint_train).reshape(width, versions, -1)
    references, linear, kernels = [], [], []
    for f in left_out:
        # Held-out sums about the training rows' fit: squares of dY, products with dY, and the Gram of dP.
        shift = of_members(zz[f], y_fit) - 2 * joint[f, width:]
        by_version = (len(shift), versions, -1)
        references.append(yy[f] + np.einsum("cqm,cqm->q", y_fit.reshape(by_version), shift.reshape(by_version)))
        offset = zx[f] - of_members(zz[f], x_fit)
        products = centring @ joint[f] - (offset @ basis).T @ y_fit
        linear.append(np.einsum("kqm,kqm->qk", loadings, products.reshape(loadings.shape)) @ shrink)
        held_gram = xx[f] - zx[f].T @ x_fit - x_fit.T @ offset
        kernel = (basis.T @ held_gram @ basis)[:, :, None] * shrink[:, None] * shrink[None]
        kernels.append(kernel.reshape(width**2, -1))
    squares = np.split(quadratic_forms(loadings, np.hstack(kernels)), len(left_out), axis=1)
    return [
        (reference[:, None] - 2 * cross + square, reference)
        for reference, cross, square in zip(references, linear, squares, strict=True)
    ]


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
