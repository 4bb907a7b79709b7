"""How changes of prototype intensity map to changes of confidence, and how much they explain (DESIGN section 2.6).

Two fits of one interval: `ridge_groups` is the paper's, on the means of groups of samples; `map_samples` is ours, on
all samples, with cross-validation, a permutation null and a bootstrap. The second passes over the samples once: what
ridge, its errors and its null need are sums and cross-products by class and fold, shared by all sets of classes.
"""

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from i2x_jax.config import InputError
from i2x_jax.explanation.cross_validation import FoldSums, class_moments, cross_validate, means, means_and_slopes, ridge

NUM_FOLDS = 5
# SST (per held-out row, summed over classes) below this leaves nothing to explain.
NOTHING_TO_EXPLAIN = 1e-4
# Rows that a class needs before it takes part: with three, every nested training set still holds one of them.
MIN_ROWS = 3
# One random stream per purpose and class, so that a class's draws do not depend on what else is asked for.
FOLD_STREAM, NULL_STREAM, BOOTSTRAP_STREAM = range(3)


class Draws(NamedTuple):
    """What a fit draws at random, and how often.

    Attributes:
      seed: of the folds (`stratified_folds`), the null and the bootstrap.
      permutations: permutations of the null; with 0 it is NaN.
      resamples: refits of the bootstrap.
      num_folds: at least 3, because the penalty is chosen inside the training folds.
    """

    seed: int
    permutations: int = 200
    resamples: int = 200
    num_folds: int = NUM_FOLDS


class SampleFit(NamedTuple):
    """Ridge of dY on dP over the samples of some classes, and how much of dY it explains (DESIGN section 2.6).

    Every ratio is 1 - SSE/SSE of a reference, pooled over outputs and over the held-out rows of all folds; all are NaN
    where SST, the error of the training folds' mean, is below 1e-4 per held-out row.
    """

    beta: np.ndarray  # float64 [K,M], confidence per unit of intensity; exactly 0 where not estimable
    intercept: np.ndarray  # float64 [M], confidence at dP = 0
    ridge_lambda: float  # penalty on columns scaled to unit deviation, as scikit-learn's Ridge(alpha)
    estimable: np.ndarray  # bool [K], False where the column has no variance in these rows
    r2: float  # of dP, over the training folds' mean; at most 1
    r2_class: float  # of the class mean, over the training folds' mean
    r2_total: float  # of class mean + one slope per class on the change of total saliency, over the same
    gain: float  # of class mean + dP, over the class mean
    gain_total: float  # of class mean + that slope + dP, over the model of r2_total: what dP adds to it
    gain_null: np.ndarray  # float64 [3], gain when dP is permuted within class: mean, 95th and 99th percentile
    r2_null: np.ndarray  # float64 [3], the same for r2
    bootstrap: np.ndarray  # float64 [R,K,M], beta refitted to rows drawn with replacement within class


def group_ids(groups: np.ndarray, labels: np.ndarray, group_by: str) -> np.ndarray:
    """One id per group of an interval, whatever the groups were formed within (DESIGN section 2.5).

    Args:
      groups: int [N], ids within the class of the sample ('class') or of all samples ('global'); negative for none.
      labels: int [N].
      group_by: 'class' or 'global'.

    Returns:
      int64 [N]: for 'class' one id per pair (class, id), ascending with the class; negative ids stay as they are.
    """
    groups = np.asarray(groups, np.int64)
    if group_by == "global":
        return groups
    return np.where(groups < 0, groups, np.asarray(labels, np.int64) * (groups.max(initial=0) + 1) + groups)


def group_means(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Unweighted mean of each group's rows, ids ascending: [N,X], int [N] -> float64 [G,X]; ids below 0 left out."""
    kept = groups >= 0
    ids, index = np.unique(groups[kept], return_inverse=True)
    sums = np.zeros((len(ids), rows.shape[1]))
    np.add.at(sums, index, rows[kept].astype(np.float64))
    return sums / np.bincount(index, minlength=len(ids))[:, None]


def ridge_groups(
    dP: np.ndarray, dY: np.ndarray, groups: np.ndarray, ridge_lambda: float = 0.0
) -> tuple[np.ndarray, float]:
    """The paper's ridge of group-mean confidence change on group-mean intensity change (DESIGN section 2.6).

    Args:
      dP: [N,K] change of intensity.
      dY: [N,M] change of confidence.
      groups: int [N], unique over the rows passed in (see `group_ids`); negative for rows of no group.
      ridge_lambda: the penalty; 0 for 1e-2 trace(pi pi')/G.

    Returns:
      beta float64 [K,M], without scaling or intercept, and the penalty used; both NaN where there is no group, and
      beta exactly 0 where no group's intensity changes.

    Raises:
      InputError: a value is not finite.
    """
    _require_finite(dP=dP, dY=dY)
    pi, changes = group_means(dP, groups), group_means(dY, groups)
    if not len(pi):
        return np.full((dP.shape[1], dY.shape[1]), np.nan), float("nan")
    penalty = float(ridge_lambda) if ridge_lambda > 0 else 1e-2 * float(np.sum(pi**2)) / len(pi)
    if penalty == 0:
        return np.zeros((dP.shape[1], dY.shape[1])), 0.0
    return np.linalg.solve(pi.T @ pi + penalty * np.eye(pi.shape[1]), pi.T @ changes), penalty


def r2_groups(
    dP: np.ndarray,
    dY: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray,
    make_groups: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ridge_lambda: float = 0.0,
) -> tuple[float, np.ndarray]:
    """Held-out R^2 of the paper's fit; grouping and fit see training folds only (DESIGN section 2.6).

    Args:
      dP: [N,K] change of intensity.
      dY: [N,M] change of confidence.
      labels: int [N], 0..M-1.
      folds: int [N], see `stratified_folds`.
      make_groups: (dY, labels) of the training rows -> their group ids, unique over these rows. Called once a fold.
      ridge_lambda: as for `ridge_groups`.

    Returns:
      r2 over all rows and r2_by_class float64 [M], each at most 1, against the training folds' mean of the same rows.
      A fold whose training rows form no group is not scored; NaN where no fold is, or SST per scored row < 1e-4.

    Raises:
      InputError: a value is not finite.
    """
    _require_finite(dP=dP, dY=dY)
    num_classes = dY.shape[1]
    tally = np.zeros((num_classes + 1, 3))  # SSE, SST, rows; the last entry is for all classes together
    for fold in np.unique(folds):
        train, held = folds != fold, folds == fold
        if not train.any():
            continue
        groups = np.full(len(dY), -1)
        groups[train] = make_groups(dY[train], labels[train])
        for entry in range(num_classes + 1):
            member = labels == entry if entry < num_classes else np.full(len(labels), True)
            fit, scored = member & train, member & held
            beta, _ = ridge_groups(dP[fit], dY[fit], groups[fit], ridge_lambda)
            if scored.any() and np.isfinite(beta).all():
                error = dY[scored] - dP[scored] @ beta
                spread = dY[scored] - dY[fit].mean(0, dtype=np.float64)
                tally[entry] += np.sum(error**2), np.sum(spread**2), scored.sum()
    r2 = np.array([_explained(sse, sst, rows > 0 and sst >= NOTHING_TO_EXPLAIN * rows) for sse, sst, rows in tally])
    return float(r2[-1]), r2[:-1]


def stratified_folds(labels: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """Folds 0..num_folds-1 of equal shares of every class, int [N]; a class's do not depend on the other classes."""
    folds = np.zeros(len(labels), int)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rng = np.random.default_rng([seed, FOLD_STREAM, int(label)])
        folds[rows] = rng.permutation(np.arange(len(rows)) % num_folds)
    return folds


def map_samples(
    dP: np.ndarray,
    dY: np.ndarray,
    total: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    subsets: Sequence[tuple[int, ...]],
    draws: Draws,
) -> list[SampleFit]:
    """Fits dY on dP over the samples of each set of classes, and measures what the fit explains (DESIGN section 2.6).

    The penalty is chosen by cross-validation: over the folds for beta, and inside the training folds (centring and
    scaling included) for every error reported, each permutation of the null choosing its own. A class with fewer than
    three rows is left out.

    Args:
      dP: [N,K] change of intensity.
      dY: [N,M] change of confidence, -1..1.
      total: [N] change of total saliency.
      labels: int [N], 0..num_classes-1.
      num_classes: number of classes.
      subsets: sets of classes; one fit each. A set's result does not depend on the other sets.
      draws: what is drawn at random, and how often.

    Raises:
      InputError: a value is not finite, fewer than 3 folds, or a set that names no class or an unknown one.
    """
    _require_finite(dP=dP, dY=dY, total=total)
    seed, permutations, resamples, num_folds = draws
    if num_folds < 3:
        raise InputError(f"num_folds is {num_folds}; allowed: at least 3; the penalty is chosen inside training folds")
    for subset in subsets:
        if not subset or not set(subset) <= set(range(num_classes)):
            raise InputError(f"a set of classes is {subset!r}; allowed: some of 0 to {num_classes - 1}; name those")
    # Without their overall mean, sums of products keep the digits that a large common offset would take.
    x, y, t = (np.asarray(a, np.float64) for a in (dP, dY, total))
    x_mean, y_mean = (a.mean(0) if len(a) else np.zeros(a.shape[1:]) for a in (x, y))
    x, y = x - x_mean, y - y_mean
    folds = stratified_folds(labels, num_folds, seed)
    rows_of = [np.flatnonzero(labels == label) for label in range(num_classes)]
    rows_of = [rows if len(rows) >= MIN_ROWS else rows[:0] for rows in rows_of]

    def moments_of(label):
        rows, rng = rows_of[label], np.random.default_rng([seed, NULL_STREAM, label])
        # Its mean over the class is no part of a slope within the class, and would cost it digits.
        about_mean = t[rows] - (t[rows].mean() if len(rows) else 0)
        return class_moments(x[rows], y[rows], about_mean, folds[rows], num_folds, permutations, rng)

    # With many classes the permuted products outgrow memory; made again from their stream they are the same.
    class_bytes = 8 * num_folds * x.shape[1] * (permutations + 1) * y.shape[1]
    capacity = max(2, 2**30 // max(class_bytes, 1))
    cached = functools.lru_cache(capacity)(moments_of)
    # The matrices are small: one thread for each set of classes, where BLAS would share out each product.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        list(pool.map(cached, sorted(set().union(*subsets))[:capacity]))
        # Classes left out would change the last digit: they are rows of zeros in a product.
        present = [[label for label in subset if len(rows_of[label])] or subset[:1] for subset in subsets]
        fits = list(pool.map(lambda labels: _fit_subset(map(cached, labels)), present))
        counts = [max(sum(len(rows_of[label]) for label in subset), 1) for subset in subsets]
        fractions = [fit.ridge_lambda / count for fit, count in zip(fits, counts, strict=True)]
        refits = _bootstrap(x, y, rows_of, subsets, fractions, seed, resamples, pool)
    return [
        fit._replace(intercept=fit.intercept + y_mean - x_mean @ fit.beta, bootstrap=refit)
        for fit, refit in zip(fits, refits, strict=True)
    ]


def sign_agreement(fit: SampleFit) -> np.ndarray:
    """Share of the bootstrap refits whose sign is that of beta, [K,M], 0..1: 0 where beta is 0, NaN without refits."""
    if not len(fit.bootstrap):
        return np.full(fit.beta.shape, np.nan)
    return np.where(fit.beta == 0, 0.0, np.mean(np.sign(fit.bootstrap) == np.sign(fit.beta), axis=0))


def _require_finite(**arrays):
    for name, array in arrays.items():
        bad = array.size - int(np.isfinite(array).sum())
        if bad:
            raise InputError(
                f"{name} holds {bad} values that are not finite of {array.size}; allowed: finite numbers; "
                "a network whose training diverged gives these: lower train.learning_rate"
            )


def _explained(sse, reference, measurable):
    """1 - SSE/reference; NaN where nothing is measurable, or the reference is perfect."""
    sse, reference = np.asarray(sse), np.asarray(reference)
    ratio = sse / np.where(reference > 0, reference, np.nan)
    return 1 - ratio if measurable else np.full(sse.shape, np.nan)


def _fit_subset(classes):
    """The `SampleFit` of some classes' moments; its intercept still lacks the overall means, its bootstrap is empty."""
    class_means, class_slopes, pooled = [], [], None
    for moments in classes:
        class_means.append(means(moments))
        class_slopes.append(means_and_slopes(moments))
        pooled = moments if pooled is None else FoldSums(*map(np.add, pooled, moments))
    rows = pooled.n.sum()
    sse, sst, fraction = cross_validate(pooled.xx, pooled.xy, [means(pooled)])
    # Within one class both models are the same.
    within = cross_validate(pooled.xx, pooled.xy, class_means) if len(class_means) > 1 else (sse, sst)
    over_total = cross_validate(pooled.xx, pooled.xy[:, :, :1], class_slopes)
    measurable = rows > 0 and sst[0] >= NOTHING_TO_EXPLAIN * rows
    r2, gain, gain_total = (_explained(*sums[:2], measurable) for sums in ((sse, sst), within, over_total))

    x, y, xx = pooled.x.sum(0), pooled.y[:, 0].sum(0), pooled.xx.sum(0)
    count = max(rows, 1)
    gram, target = xx - np.outer(x, x) / count, pooled.xy[:, :, 0].sum(0) - np.outer(x, y) / count
    beta, estimable = ridge(gram, target, np.diagonal(xx), count, fraction * count)
    return SampleFit(
        beta=beta,
        intercept=(y - x @ beta) / count,
        ridge_lambda=float(fraction * count),
        estimable=estimable,
        r2=float(r2[0]),
        r2_class=float(_explained(within[1][0], sst[0], measurable)),
        r2_total=float(_explained(over_total[1][0], sst[0], measurable)),
        gain=float(gain[0]),
        gain_total=float(gain_total[0]),
        gain_null=_summary(gain[1:]),
        r2_null=_summary(r2[1:]),
        bootstrap=np.zeros((0, *beta.shape)),
    )


def _summary(null):
    return np.array([null.mean(), *np.percentile(null, (95, 99))]) if len(null) else np.full(3, np.nan)


def _bootstrap(x, y, rows_of, subsets, fractions, seed, resamples, pool):
    """Coefficients refitted to rows drawn with replacement within class: one [R,K,M] for each set of classes."""
    width, outputs = x.shape[1], y.shape[1]
    classes = sorted(set().union(*subsets))
    joint = {c: np.vstack([x[rows_of[c]].T, np.ones(len(rows_of[c])), y[rows_of[c]].T]) for c in classes}
    rngs = {c: np.random.default_rng([seed, BOOTSTRAP_STREAM, c]) for c in classes}
    refits = [np.zeros((resamples, width, outputs)) for _ in subsets]
    # As many resamples at a time as keep the products of all classes in some 130 MB.
    block = max(1, 2**24 // (len(rows_of) * (width + 1) * (width + 1 + outputs)))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        made = pool.map(lambda c, size=size: _resampled(joint[c], rngs[c], size, width), classes)
        products = dict(zip(classes, made, strict=True))
        parts = ([products[label] for label in subset] for subset in subsets)
        for refit, betas in zip(refits, pool.map(_refit, parts, fractions), strict=True):
            refit[start : start + size] = betas
    return refits


def _refit(parts, fraction):
    """Coefficients [R,K,M] from each class's sums of products of rows [dP, 1, dY], [R,K+1,K+1+M]."""
    sums = sum(parts)
    width = sums.shape[1] - 1
    rows = np.maximum(sums[0, width, width], 1)  # the same in every resample
    centred = sums[:, :-1] - sums[:, :-1, width, None] * sums[:, -1, None] / rows
    gram, target = centred[..., :width], centred[..., width + 1 :]
    return ridge(gram, target, np.diagonal(sums[:, :-1], axis1=1, axis2=2), rows, fraction * rows)[0]


def _resampled(joint, rng, size, width):
    """Sums of products of rows [dP, 1, dY] drawn with replacement: [K+1+M,n] -> [size, K+1, K+1+M]."""
    n = joint.shape[1]
    products, weighted = np.zeros((size, width + 1, len(joint))), np.empty_like(joint)
    for resample in products if n else ():
        # The square root on both sides lets BLAS compute one triangle only.
        np.multiply(joint, np.sqrt(np.bincount(rng.integers(n, size=n), minlength=n)), out=weighted)
        resample[:] = (weighted @ weighted.T)[: width + 1]
    return products
