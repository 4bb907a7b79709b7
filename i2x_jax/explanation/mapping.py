"""How changes of prototype intensity map to changes of confidence, and how much they explain (DESIGN section 2.6).

Two fits of one interval: `ridge_groups` is the paper's, on the means of groups of samples; `map_samples` is ours, on
all samples, with cross-validation, a permutation null and a bootstrap. The second passes over the samples once: what
ridge, its errors and its null need are sums and cross-products by class and fold, shared by all sets of classes.

Of many classes dY holds, for each sample, the rivals of its class only (DESIGN 2.4): `columns [M,C]` says which classes
these are. In the others confidence counts as unchanged.
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
# Numbers that are computed with at a time, where there may be many.
VALUES_AT_A_TIME = 2**24
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
    outputs: np.ndarray | None  # int [O], the classes of the outputs, ascending; O then stands for M; None: all of them


class Subset(NamedTuple):
    """Classes that get a fit together.

    Attributes:
      labels: of the classes.
      null: whether the fit is held against its null, and so on; what it takes grows with each.
      bootstrap: whether it is refitted to resampled rows.
      validated: whether the penalty is chosen, and what the fit explains measured, by cross-validation; if not, the
        penalty is as strong as that of the first subset that is, and nothing is measured.
    """

    labels: tuple[int, ...]
    null: bool = True
    bootstrap: bool = True
    validated: bool = True


def spread(values: np.ndarray, labels: np.ndarray, columns: np.ndarray | None, num_classes: int) -> np.ndarray:
    """Rows [n,C] for the rivals of the classes `labels` [n] as rows [n,M] for all classes, 0 for the others."""
    if columns is None:
        return values
    result = np.zeros((len(values), num_classes))
    np.put_along_axis(result, columns[labels], values, axis=1)
    return result


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
    return ridge_means(group_means(dP, groups), group_means(dY, groups), ridge_lambda)


def ridge_means(pi: np.ndarray, changes: np.ndarray, ridge_lambda: float = 0.0) -> tuple[np.ndarray, float]:
    """`ridge_groups` from the means of the groups, [G,K] and [G,M]."""
    if not len(pi):
        return np.full((pi.shape[1], changes.shape[1]), np.nan), float("nan")
    penalty = float(ridge_lambda) if ridge_lambda > 0 else 1e-2 * float(np.sum(pi**2)) / len(pi)
    if penalty == 0:
        return np.zeros((pi.shape[1], changes.shape[1])), 0.0
    if len(pi) < pi.shape[1]:
        # (X'X + c)^-1 X' is X' (XX' + c)^-1: with few groups and many prototypes, as of one class, the smaller system.
        return pi.T @ np.linalg.solve(pi @ pi.T + penalty * np.eye(len(pi)), changes), penalty
    return np.linalg.solve(pi.T @ pi + penalty * np.eye(pi.shape[1]), pi.T @ changes), penalty


class Changes(NamedTuple):
    """What changed over an interval.

    Attributes:
      dP: [N,K] change of intensity.
      dY: [N,M] change of confidence, -1..1; or [N,C].
      labels: int [N], 0..M-1.
      num_classes: M.
      columns: int [M,C], the classes of the columns of dY, by class of the sample; None for all in order.
    """

    dP: np.ndarray
    dY: np.ndarray
    labels: np.ndarray
    num_classes: int
    columns: np.ndarray | None = None

    def of(self, rows: np.ndarray) -> "Changes":
        """Those of some rows."""
        return self._replace(dP=self.dP[rows], dY=self.dY[rows], labels=self.labels[rows])


def ridge_all_groups(changes: Changes, groups: np.ndarray, ridge_lambda: float = 0.0) -> tuple[np.ndarray, float]:
    """`ridge_groups` over the samples of all classes: beta [K,M]; a group is of one class where `columns` are given."""
    if changes.columns is None:
        return ridge_groups(changes.dP, changes.dY, groups, ridge_lambda)
    _require_finite(dP=changes.dP, dY=changes.dY)
    of_group = group_means(changes.labels[:, None], groups)[:, 0].astype(int)
    moved = spread(group_means(changes.dY, groups), of_group, changes.columns, changes.num_classes)
    return ridge_means(group_means(changes.dP, groups), moved, ridge_lambda)


def r2_groups(
    changes: Changes,
    folds: np.ndarray,
    make_groups: Callable[[np.ndarray], np.ndarray],
    ridge_lambda: float = 0.0,
) -> tuple[float, np.ndarray]:
    """Held-out R^2 of the paper's fit; grouping and fit see training folds only (DESIGN section 2.6).

    Args:
      changes: over the interval.
      folds: int [N], see `stratified_folds`.
      make_groups: bool [N], the training rows -> their group ids, unique over these rows. Called once a fold.
      ridge_lambda: as for `ridge_groups`.

    Returns:
      r2 over all rows and r2_by_class float64 [M], each at most 1, against the training folds' mean of the same rows.
      A fold whose training rows form no group is not scored; NaN where no fold is, or SST per scored row < 1e-4.

    Raises:
      InputError: a value is not finite.
    """
    _require_finite(dP=changes.dP, dY=changes.dY)
    labels, num_classes = changes.labels, changes.num_classes
    tally = np.zeros((num_classes + 1, 3))  # SSE, SST, rows; the last entry is for all classes together
    members = [np.flatnonzero(labels == label) for label in range(num_classes)]
    for fold in np.unique(folds):
        held = folds == fold
        if held.all():
            continue
        groups = np.full(len(labels), -1)
        groups[~held] = make_groups(~held)
        for label, rows in enumerate(members):
            # Of one class every row has the same outputs.
            one, train = changes.of(rows)._replace(columns=None), ~held[rows]
            beta, _ = ridge_groups(one.dP[train], one.dY[train], groups[rows][train], ridge_lambda)
            tally[label] += _scored(one, beta, ~train)
        beta, _ = ridge_all_groups(changes.of(~held), groups[~held], ridge_lambda)
        tally[-1] += _scored(changes, beta, held)
    r2 = np.array([_explained(sse, sst, rows > 0 and sst >= NOTHING_TO_EXPLAIN * rows) for sse, sst, rows in tally])
    return float(r2[-1]), r2[:-1]


def _scored(changes, beta, held):
    """SSE, SST about the mean of the rows not held out, and how many rows are held out; zeros without coefficients."""
    if not held.any() or not np.isfinite(beta).all():
        return np.zeros(3)
    mean, sse, sst = _mean_of(changes.of(~held)), 0.0, 0.0
    # Some rows at a time: with all classes side by side they may be many numbers.
    rows = np.flatnonzero(held)
    for part in np.array_split(rows, -(-len(rows) * beta.shape[1] // VALUES_AT_A_TIME)):
        some = changes.of(part)
        dY = spread(some.dY, some.labels, some.columns, some.num_classes)
        sse, sst = sse + np.sum((dY - some.dP @ beta) ** 2), sst + np.sum((dY - mean) ** 2)
    return np.array([sse, sst, len(rows)])


def _mean_of(changes):
    """Mean change of confidence [M], float64."""
    if changes.columns is None:
        return changes.dY.mean(0, dtype=np.float64)
    sums = np.zeros(changes.num_classes)
    np.add.at(sums, changes.columns[changes.labels], changes.dY)
    return sums / max(len(changes.labels), 1)


def stratified_folds(labels: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """Folds 0..num_folds-1 of equal shares of every class, int [N]; a class's do not depend on the other classes."""
    folds = np.zeros(len(labels), int)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rng = np.random.default_rng([seed, FOLD_STREAM, int(label)])
        folds[rows] = rng.permutation(np.arange(len(rows)) % num_folds)
    return folds


def map_samples(changes: Changes, total: np.ndarray, subsets: Sequence[Subset], draws: Draws) -> list[SampleFit]:
    """Fits dY on dP over the samples of each set of classes, and measures what the fit explains (DESIGN section 2.6).

    The penalty is chosen by cross-validation: over the folds for beta, and inside the training folds (centring and
    scaling included) for every error reported, each permutation of the null choosing its own. A class with fewer than
    three rows is left out.

    Args:
      changes: over the interval.
      total: [N] change of total saliency.
      subsets: sets of classes; one fit each. A set's result does not depend on the other sets.
      draws: what is drawn at random, and how often.

    Returns:
      One fit for each subset; with `columns` its outputs are the rivals of its classes.

    Raises:
      InputError: a value is not finite, fewer than 3 folds, or a set that names no class or an unknown one.
    """
    dP, dY, labels, num_classes, columns = changes
    _require_finite(dP=dP, dY=dY, total=total)
    seed, permutations, resamples, num_folds = draws
    if num_folds < 3:
        raise InputError(f"num_folds is {num_folds}; allowed: at least 3; the penalty is chosen inside training folds")
    for subset in subsets:
        if not subset.labels or not set(subset.labels) <= set(range(num_classes)):
            raise InputError(
                f"a set of classes is {subset.labels!r}; allowed: some of 0 to {num_classes - 1}; name those"
            )
    # Without their overall mean, sums of products keep the digits that a large common offset would take. Of many
    # classes what is not kept is 0, and has to stay so.
    x, y, t = (np.asarray(a, np.float64) for a in (dP, dY, total))
    x_mean, y_mean = (a.mean(0) if len(a) else np.zeros(a.shape[1:]) for a in (x, y))
    x, y = x - x_mean, y - y_mean if columns is None else y
    folds = stratified_folds(labels, num_folds, seed)
    rows_of = [np.flatnonzero(labels == label) for label in range(num_classes)]
    rows_of = [rows if len(rows) >= MIN_ROWS else rows[:0] for rows in rows_of]
    tested = {label for subset in subsets if subset.null for label in subset.labels}

    def moments_of(label):
        rows, rng = rows_of[label], np.random.default_rng([seed, NULL_STREAM, label])
        # Its mean over the class is no part of a slope within the class, and would cost it digits.
        about_mean = t[rows] - (t[rows].mean() if len(rows) else 0)
        versions = permutations if label in tested else 0
        return class_moments(x[rows], y[rows], about_mean, folds[rows], num_folds, versions, rng)

    # With many classes the permuted products outgrow memory; made again from their stream they are the same.
    class_bytes = 8 * num_folds * x.shape[1] * (permutations + 1 if tested else 1) * y.shape[1]
    capacity = max(2, 2**30 // max(class_bytes, 1))
    cached = functools.lru_cache(capacity)(moments_of)
    # The matrices are small: one thread for each set of classes, where BLAS would share out each product.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        list(pool.map(cached, sorted(set().union(*(subset.labels for subset in subsets)))[:capacity]))
        # Classes left out would change the last digit: they are rows of zeros in a product.
        present = [[label for label in each.labels if len(rows_of[label])] or each.labels[:1] for each in subsets]
        counts = [max(sum(len(rows_of[label]) for label in subset.labels), 1) for subset in subsets]

        def fit(number, fraction=None):
            return _fit_subset(_parts(cached, present[number], columns, subsets[number]), fraction)

        validated = [number for number, subset in enumerate(subsets) if subset.validated]
        found = dict(zip(validated, pool.map(fit, validated), strict=True))
        others = [number for number in range(len(subsets)) if number not in found]
        common = found[validated[0]].ridge_lambda / counts[validated[0]]
        found |= zip(others, pool.map(functools.partial(fit, fraction=common), others), strict=True)
        fits = [found[number] for number in range(len(subsets))]
        fractions = [fit.ridge_lambda / count for fit, count in zip(fits, counts, strict=True)]
        refits = _bootstrap(Rows(x, y, rows_of, columns), subsets, fractions, seed, resamples, pool)
    centre = y_mean if columns is None else 0
    return [
        fit._replace(
            intercept=fit.intercept + centre - x_mean @ fit.beta,
            bootstrap=refit,
            outputs=None if columns is None else _outputs(columns, subset.labels),
        )
        for fit, refit, subset in zip(fits, refits, subsets, strict=True)
    ]


def _outputs(columns, labels):
    """The classes that any of some classes keeps, ascending."""
    return np.unique(columns[list(labels)])


def _parts(moments_of, labels, columns, subset):
    """The moments of each class of a subset, all with the same outputs and versions of dY."""
    outputs = None if columns is None else _outputs(columns, subset.labels)
    for label in labels:
        moments = moments_of(label)
        if not subset.null:
            moments = moments._replace(y=moments.y[:, :1], yy=moments.yy[:, :1], xy=moments.xy[:, :, :1])
        if columns is not None and len(outputs) > columns.shape[1]:
            place = np.searchsorted(outputs, columns[label])
            wide = {name: _widened(getattr(moments, name), place, len(outputs)) for name in ("y", "xy", "ty")}
            moments = moments._replace(**wide)
        yield moments


def _widened(values, place, size):
    result = np.zeros((*values.shape[:-1], size))
    result[..., place] = values
    return result


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


def _fit_subset(classes, fraction):
    """The `SampleFit` of some classes' moments; its intercept still lacks the overall means, its bootstrap is empty.

    Given a penalty as a `fraction` of the rows, nothing is measured.
    """
    class_means, class_slopes, pooled = [], [], None
    for moments in classes:
        class_means.append(means(moments))
        class_slopes.append(means_and_slopes(moments))
        pooled = moments if pooled is None else FoldSums(*map(np.add, pooled, moments))
    rows = pooled.n.sum()
    nothing = float("nan")
    ratios = dict.fromkeys(("r2", "r2_class", "r2_total", "gain", "gain_total"), nothing)
    nulls = dict.fromkeys(("gain_null", "r2_null"), np.full(3, nothing))
    if fraction is None:
        sse, sst, fraction = cross_validate(pooled.xx, pooled.xy, [means(pooled)])
        # Within one class both models are the same.
        within = cross_validate(pooled.xx, pooled.xy, class_means) if len(class_means) > 1 else (sse, sst)
        over_total = cross_validate(pooled.xx, pooled.xy[:, :, :1], class_slopes)
        measurable = rows > 0 and sst[0] >= NOTHING_TO_EXPLAIN * rows
        r2, gain, gain_total = (_explained(*sums[:2], measurable) for sums in ((sse, sst), within, over_total))
        of_class, of_total = (_explained(sums[1][0], sst[0], measurable) for sums in (within, over_total))
        ratios = {"r2": r2[0], "r2_class": of_class, "r2_total": of_total, "gain": gain[0], "gain_total": gain_total[0]}
        nulls = {"gain_null": _summary(gain[1:]), "r2_null": _summary(r2[1:])}

    x, y, xx = pooled.x.sum(0), pooled.y[:, 0].sum(0), pooled.xx.sum(0)
    count = max(rows, 1)
    gram, target = xx - np.outer(x, x) / count, pooled.xy[:, :, 0].sum(0) - np.outer(x, y) / count
    beta, estimable = ridge(gram, target, np.diagonal(xx), count, fraction * count)
    return SampleFit(
        beta=beta,
        intercept=(y - x @ beta) / count,
        ridge_lambda=float(fraction * count),
        estimable=estimable,
        **{name: float(value) for name, value in ratios.items()},
        **nulls,
        bootstrap=np.zeros((0, *beta.shape)),
        outputs=None,
    )


def _summary(null):
    return np.array([null.mean(), *np.percentile(null, (95, 99))]) if len(null) else np.full(3, np.nan)


class Rows(NamedTuple):
    """The rows that are resampled: x [N,K] and y [N,M or C], those of each class, and `columns` (`Changes`)."""

    x: np.ndarray
    y: np.ndarray
    rows_of: Sequence[np.ndarray]
    columns: np.ndarray | None


def _bootstrap(rows, subsets, fractions, seed, resamples, pool):
    """Coefficients refitted to rows drawn with replacement within class: one [R,K,O] for each set of classes."""
    x, y, rows_of, columns = rows
    width = x.shape[1]
    resampled = [number for number, subset in enumerate(subsets) if subset.bootstrap]
    classes = sorted(set().union(*(subsets[number].labels for number in resampled)))
    joint = {c: np.vstack([x[rows_of[c]].T, np.ones(len(rows_of[c])), y[rows_of[c]].T]) for c in classes}
    rngs = {c: np.random.default_rng([seed, BOOTSTRAP_STREAM, c]) for c in classes}
    outputs = [np.arange(y.shape[1]) if columns is None else _outputs(columns, each.labels) for each in subsets]
    counts = [resamples if subset.bootstrap else 0 for subset in subsets]
    refits = [np.zeros((count, width, len(wide))) for count, wide in zip(counts, outputs, strict=True)]
    # As many resamples at a time as keep the products of all classes in some 130 MB.
    block = max(1, 2**24 // (len(rows_of) * (width + 1) * (width + 1 + y.shape[1])))

    def refit(number):
        labels, wide = subsets[number].labels, outputs[number]
        parts = (products[label] for label in labels)
        if columns is not None and len(wide) > columns.shape[1]:
            places = (np.searchsorted(wide, columns[label]) for label in labels)
            return _refit(_added(parts, places, width + 1, len(wide)), fractions[number])
        return _refit(sum(parts), fractions[number])

    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        made = pool.map(lambda c, size=size: _resampled(joint[c], rngs[c], size, width), classes)
        products = dict(zip(classes, made, strict=True))
        for number, betas in zip(resampled, pool.map(refit, resampled), strict=True):
            refits[number][start : start + size] = betas
    return refits


def _added(parts, places, width, size):
    """Products [R, width, width + C] of several classes as one sum [R, width, width + size]."""
    total = 0
    for part, place in zip(parts, places, strict=True):
        if not isinstance(total, np.ndarray):
            total = np.zeros((*part.shape[:2], width + size))
        total[..., :width] += part[..., :width]
        total[..., width + place] += part[..., width:]
    return total


def _refit(sums, fraction):
    """Coefficients [R,K,M] from sums of products of rows [dP, 1, dY], [R,K+1,K+1+M]."""
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
