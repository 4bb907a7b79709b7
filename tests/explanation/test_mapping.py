"""The mapping from dP to dY: against scikit-learn and plain loops, and on data whose answer was planted."""

import itertools

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.preprocessing import StandardScaler

from i2x_jax.config import InputError
from i2x_jax.explanation import cross_validation, mapping

FOLDS = mapping.NUM_FOLDS


def planted(seed=0, rows=300, width=6, classes=3, slope=1.0, noise=0.05):
    """dP depends on the class; dY on the class, and on dP by `slope` times a fixed beta with a clear order."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=rows)
    dP = rng.normal(size=(rows, width)) * np.linspace(0.2, 3, width) + rng.normal(size=(classes, width))[labels]
    beta = slope * np.linspace(-0.3, 0.4, width * classes).reshape(width, classes) / np.linspace(0.2, 3, width)[:, None]
    dY = dP @ beta + rng.normal(size=(classes, classes))[labels] * 0.3 + rng.normal(size=(rows, classes)) * noise
    total = dP.sum(1) + rng.normal(size=rows)
    return dP, dY, total, labels, beta


def fit(data, subsets, seed=0, **options):
    dP, dY, total, labels = data[:4]
    options = {"permutations": 0, "resamples": 0, **options}
    changes = mapping.Changes(dP, dY, labels, dY.shape[1])
    return mapping.map_samples(changes, total, list(map(mapping.Subset, subsets)), mapping.Draws(seed, **options))


def class_means(values, labels, train):
    return {c: values[train & (labels == c)].mean(0) for c in np.unique(labels)}


def minus(values, labels, means):
    return values - np.stack([means[c] for c in labels])


def plain_errors(dP, dY, labels, train, held, fraction):
    """Held-out squared error of scikit-learn's ridge, and of the training mean."""
    scaler = StandardScaler().fit(dP[train])
    model = Ridge(alpha=fraction * train.sum()).fit(scaler.transform(dP[train]), dY[train])
    return np.sum((dY[held] - model.predict(scaler.transform(dP[held]))) ** 2)


def within_errors(dP, dY, labels, train, held, fraction):
    """The same with both sides centred by the training folds' class means."""
    dP, dY = (minus(a, labels, class_means(a, labels, train)) for a in (dP, dY))
    scale = dP[train].std(0)
    model = Ridge(alpha=fraction * train.sum(), fit_intercept=False).fit(dP[train] / scale, dY[train])
    return np.sum((dY[held] - model.predict(dP[held] / scale)) ** 2)


def over_total_errors(dP, dY, total, labels, train, held, fraction):
    """The same with a mean and a slope on `total` for each class, in one fit that penalises the slopes on dP alone."""
    own = labels[:, None] == np.unique(labels)
    free = np.hstack([own, own * total[:, None]])
    residual = dP - free @ np.linalg.lstsq(free[train], dP[train])[0]
    joint = np.hstack([free, dP / residual[train].std(0)])
    weights = np.repeat([0.0, fraction * train.sum()], [free.shape[1], dP.shape[1]])
    gram = joint[train].T @ joint[train] + np.diag(weights)
    return np.sum((dY[held] - joint[held] @ np.linalg.solve(gram, joint[train].T @ dY[train])) ** 2)


def nested(errors, dP, dY, labels, folds):
    """Pooled held-out error with the penalty chosen inside the training folds by explicit loops."""
    sse = 0.0
    for f in range(FOLDS):
        inner = [
            sum(
                errors(dP, dY, labels, (folds != f) & (folds != g), folds == g, fraction)
                for g in range(FOLDS)
                if g != f
            )
            for fraction in cross_validation.FRACTIONS
        ]
        sse += errors(dP, dY, labels, folds != f, folds == f, cross_validation.FRACTIONS[np.argmin(inner)])
    return sse


def reference_ratios(dP, dY, total, labels, folds):
    sst = sse_class = sse_total = 0.0
    for f in range(FOLDS):
        train, held = folds != f, folds == f
        sst += np.sum((dY[held] - dY[train].mean(0)) ** 2)
        sse_class += np.sum(minus(dY, labels, class_means(dY, labels, train))[held] ** 2)
        for c in np.unique(labels):
            own = labels == c
            line = LinearRegression().fit(total[train & own, None], dY[train & own])
            sse_total += np.sum((dY[held & own] - line.predict(total[held & own, None])) ** 2)
    sse = nested(plain_errors, dP, dY, labels, folds)
    sse_within = nested(within_errors, dP, dY, labels, folds)

    def with_total(dP, dY, labels, train, held, fraction):
        return over_total_errors(dP, dY, total, labels, train, held, fraction)

    return {
        "r2": 1 - sse / sst,
        "r2_class": 1 - sse_class / sst,
        "r2_total": 1 - sse_total / sst,
        "gain": 1 - sse_within / sse_class,
        "gain_total": 1 - nested(with_total, dP, dY, labels, folds) / sse_total,
    }


def test_group_means_leave_out_noise_and_unchanged():
    rows = np.array([[1.0, 2], [3, 4], [5, 6], [100, 100], [200, 200]], np.float32)
    means = mapping.group_means(rows, np.array([7, 2, 7, -1, -2]))
    np.testing.assert_array_equal(means, [[3, 4], [3, 4]])
    assert means.dtype == np.float64


def test_group_ids_are_one_per_class_and_id():
    groups, labels = np.array([0, 1, 0, -1, -2, 1]), np.array([0, 0, 1, 1, 0, 2])
    ids = mapping.group_ids(groups, labels, "class")
    assert len(set(ids[ids >= 0])) == 4
    np.testing.assert_array_equal(ids[[3, 4]], [-1, -2])
    np.testing.assert_array_equal(np.argsort(ids[[0, 1, 2, 5]]), np.arange(4))
    np.testing.assert_array_equal(mapping.group_ids(groups, labels, "global"), groups)


@pytest.mark.parametrize(("given", "count"), [(0.0, 12), (0.7, 12), (0.0, 2), (0.7, 2)])
def test_ridge_groups_equals_sklearn(given, count):
    """With fewer groups than prototypes too, where another system is solved."""
    dP, dY, *_ = planted()
    assert 2 < dP.shape[1] < 12
    groups = np.random.default_rng(1).integers(-2, count, len(dP))
    beta, penalty = mapping.ridge_groups(dP.astype(np.float32), dY.astype(np.float32), groups, given)
    pi = np.stack([dP[groups == g].mean(0) for g in range(count)])
    changes = np.stack([dY[groups == g].mean(0) for g in range(count)])
    assert penalty == pytest.approx(given or 1e-2 * np.trace(pi @ pi.T) / count, rel=1e-5)
    expected = Ridge(alpha=penalty, fit_intercept=False).fit(pi, changes).coef_.T
    np.testing.assert_allclose(beta, expected, atol=1e-5)


def test_ridge_groups_of_nothing():
    dP, dY, *_ = planted()
    beta, penalty = mapping.ridge_groups(dP, dY, np.full(len(dP), -1))
    assert np.isnan(beta).all()
    assert np.isnan(penalty)
    beta, penalty = mapping.ridge_groups(np.zeros_like(dP), dY, np.zeros(len(dP), int))
    assert penalty == 0
    assert not beta.any()


def test_r2_groups_shows_make_groups_training_rows_only():
    dP, dY, _, labels, _ = planted()
    folds = mapping.stratified_folds(labels, FOLDS, 0)
    seen = []

    def make_groups(train, order=slice(None)):
        seen.append(train)
        return mapping.group_ids((dY[order][train, 0] * 8).astype(int) % 6, labels[order][train], "class")

    changes = mapping.Changes(dP, dY, labels, 3)
    r2, by_class = mapping.r2_groups(changes, folds, make_groups)
    assert len(seen) == FOLDS
    for f, train in enumerate(seen):
        np.testing.assert_array_equal(train, folds != f)

    def by_loop(keep):
        sse = sst = 0.0
        for f in range(FOLDS):
            train, held = (folds != f) & keep, (folds == f) & keep
            groups = np.full(len(dY), -1)
            groups[folds != f] = make_groups(folds != f)
            beta, _ = mapping.ridge_groups(dP[train], dY[train], groups[train])
            sse += np.sum((dY[held] - dP[held] @ beta) ** 2)
            sst += np.sum((dY[held] - dY[train].mean(0)) ** 2)
        return 1 - sse / sst

    assert r2 == pytest.approx(by_loop(labels >= 0))
    np.testing.assert_allclose(by_class, [by_loop(labels == c) for c in range(3)])

    order = np.random.default_rng(0).permutation(len(dY))
    again, _ = mapping.r2_groups(changes.of(order), folds[order], lambda train: make_groups(train, order))
    assert again == pytest.approx(r2)


def test_r2_groups_without_groups_or_change_is_nan():
    dP, dY, _, labels, _ = planted()
    folds = mapping.stratified_folds(labels, FOLDS, 0)
    for change, group in ((dY, -1), (np.zeros_like(dY), 0)):
        changes = mapping.Changes(dP, change, labels, 3)
        r2, by_class = mapping.r2_groups(changes, folds, lambda train, g=group: np.full(train.sum(), g))
        assert np.isnan(r2)
        assert np.isnan(by_class).all()


def test_folds_are_stratified_and_blind_to_other_classes():
    labels = np.repeat([0, 1, 2], [50, 33, 4])
    folds = mapping.stratified_folds(labels, FOLDS, 3)
    for c in range(3):
        counts = np.bincount(folds[labels == c], minlength=FOLDS)
        assert counts.max() - counts.min() <= 1
    order = np.argsort(labels == 1, kind="stable")
    np.testing.assert_array_equal(mapping.stratified_folds(labels[order], FOLDS, 3), folds[order])
    assert (mapping.stratified_folds(labels, FOLDS, 4) != folds).any()


@pytest.mark.parametrize("subset", [(0, 1, 2), (1,), (0, 2)])
def test_coefficients_equal_sklearn(subset):
    data = planted()
    result = fit(data, [subset])[0]
    rows = np.isin(data[3], subset)
    scaler = StandardScaler().fit(data[0][rows])
    model = Ridge(alpha=result.ridge_lambda).fit(scaler.transform(data[0][rows]), data[1][rows])
    beta = model.coef_.T / scaler.scale_[:, None]
    np.testing.assert_allclose(result.beta, beta, atol=1e-9)
    np.testing.assert_allclose(result.intercept, model.intercept_ - scaler.mean_ @ beta, atol=1e-9)
    assert result.estimable.all()


@pytest.mark.parametrize("subset", [(0, 1, 2), (0, 2), (1,)])
def test_ratios_equal_plain_loops(subset):
    # Noisy, so that the penalties chosen differ and matter.
    data = planted(seed=2, rows=90, slope=0.15, noise=0.3)
    dP, dY, total, labels = data[:4]
    result = fit(data, [subset], seed=5)[0]
    rows = np.isin(labels, subset)
    folds = mapping.stratified_folds(labels, FOLDS, 5)
    expected = reference_ratios(dP[rows], dY[rows], total[rows], labels[rows], folds[rows])
    for name, value in expected.items():
        assert getattr(result, name) == pytest.approx(value, abs=1e-6), name
    chosen = [
        sum(plain_errors(dP[rows], dY[rows], None, (folds != f)[rows], (folds == f)[rows], q) for f in range(FOLDS))
        for q in cross_validation.FRACTIONS
    ]
    assert result.ridge_lambda == pytest.approx(cross_validation.FRACTIONS[np.argmin(chosen)] * rows.sum())
    if len(subset) == 1:
        assert result.gain == result.r2
        np.testing.assert_array_equal(result.gain_null, result.r2_null)


@pytest.mark.parametrize("subset", [(0, 1, 2), (1,)])
def test_the_null_is_the_fit_of_rows_permuted_within_class(subset):
    """With one permutation the null is one number: the ratio of dY permuted by the same draw, penalty chosen anew."""
    data = planted(seed=4, rows=90, slope=0.2, noise=0.3)
    dP, dY, total, labels = data[:4]
    folds = mapping.stratified_folds(labels, FOLDS, 7)
    shuffled = dY.copy()
    for c in range(3):
        own = np.flatnonzero(labels == c)
        own = own[np.argsort(folds[own], kind="stable")]
        rng = np.random.default_rng([7, mapping.NULL_STREAM, c])
        shuffled[own] = dY[own[rng.permuted(np.tile(np.arange(len(own)), (2, 1)), axis=1)[1]]]
    result = fit(data, [subset], seed=7, permutations=1)[0]
    expected = fit((dP, shuffled, total, labels), [subset], seed=7)[0]
    assert result.gain != expected.gain
    np.testing.assert_allclose(result.gain_null, expected.gain, atol=1e-9)
    np.testing.assert_allclose(result.r2_null, expected.r2, atol=1e-9)


def test_null_summary_is_ordered_and_blocks_of_permutations_agree(monkeypatch):
    data = planted(seed=4, rows=90)
    before = fit(data, [(0, 1)], permutations=100)[0]
    assert before.gain_null[0] < before.gain_null[1] < before.gain_null[2]
    forms = cross_validation.quadratic_forms
    monkeypatch.setattr(
        cross_validation,
        "quadratic_forms",
        lambda loadings, kernels: np.concatenate(
            [forms(loadings[:, q : q + 1], kernels) for q in range(loadings.shape[1])]
        ),
    )
    np.testing.assert_allclose(fit(data, [(0, 1)], permutations=100)[0].gain_null, before.gain_null, atol=1e-9)


def test_planted_beta_is_recovered_in_sign_rank_and_interval():
    data = planted(rows=600)
    result = fit(data, [(0, 1, 2)], permutations=100, resamples=200)[0]
    beta = data[4]
    large = np.abs(beta) > 0.05
    # Class offsets in dY are not part of the planted slopes; within one class nothing confounds them.
    single = fit(data, [(0,)], resamples=200)[0]
    assert (np.sign(single.beta) == np.sign(beta))[large].all()
    for c in range(3):
        np.testing.assert_array_equal(np.argsort(single.beta[:, c]), np.argsort(beta[:, c]))
    assert (mapping.sign_agreement(single)[large] >= 0.9).all()
    low, high = np.percentile(single.bootstrap, (0.5, 99.5), axis=0)
    assert np.mean((low <= beta) & (beta <= high)) >= 0.85
    assert np.corrcoef(result.beta.ravel(), beta.ravel())[0, 1] > 0.9


def test_bootstrap_refits_resampled_rows():
    """Mean and spread of the refits are those of scikit-learn refitted to rows drawn with replacement."""
    data = planted(seed=3, rows=120, noise=0.3)
    result = fit(data, [(0, 2)], resamples=400)[0]
    own = [np.flatnonzero(data[3] == c) for c in (0, 2)]
    rng, refits = np.random.default_rng(0), []
    for _ in range(400):
        rows = np.concatenate([rng.choice(r, len(r)) for r in own])
        scaler = StandardScaler().fit(data[0][rows])
        model = Ridge(alpha=result.ridge_lambda).fit(scaler.transform(data[0][rows]), data[1][rows])
        refits.append(model.coef_.T / scaler.scale_[:, None])
    spread = np.std(refits, axis=0)
    np.testing.assert_allclose(result.bootstrap.mean(0), np.mean(refits, axis=0), atol=0.35 * spread.max())
    np.testing.assert_allclose(result.bootstrap.std(0), spread, rtol=0.25)


def test_gain_beats_its_null_only_where_dP_tells_more_than_the_class():
    result = fit(planted(rows=200), [(0, 1, 2), (1,)], permutations=200)
    assert all(each.gain > each.gain_null[2] and each.r2 > each.r2_null[2] for each in result)
    beyond = []
    for seed in range(8):
        dP, dY, total, labels, _ = planted(seed=seed, rows=200, slope=0.0, noise=0.1)
        each = fit((dP, dY, total, labels), [(0, 1, 2)], permutations=200)[0]
        assert each.r2 > 0.2  # dP knows the label, and the label predicts dY
        beyond.append(each.gain > each.gain_null[1])
    assert sum(beyond) <= 2


def test_prototype_ids_only_name_the_rows_of_beta():
    data = planted(seed=1)
    order = np.random.default_rng(0).permutation(data[0].shape[1])
    options = {"permutations": 20, "resamples": 5}
    before = fit(data, [(0, 1, 2)], **options)[0]
    after = fit((data[0][:, order], *data[1:]), [(0, 1, 2)], **options)[0]
    np.testing.assert_allclose(after.beta, before.beta[order], atol=1e-9)
    np.testing.assert_allclose(after.bootstrap, before.bootstrap[:, order], atol=1e-9)
    np.testing.assert_allclose(after.gain_null, before.gain_null, atol=1e-9)


def test_interleaving_of_classes_does_not_matter():
    data = planted(seed=1)
    order = np.argsort(data[3], kind="stable")
    options = {"permutations": 20, "resamples": 5}
    before = fit(data, [(0, 1, 2), (0, 1)], **options)
    after = fit([a[order] for a in data[:4]], [(0, 1, 2), (0, 1)], **options)
    for one, other in zip(before, after, strict=True):
        for field, a, b in zip(one._fields[:-1], one, other, strict=False):
            np.testing.assert_allclose(a, b, atol=1e-9, err_msg=field)


def test_same_seed_same_result_whatever_else_is_fitted():
    data = planted(seed=1)
    options = {"permutations": 20, "resamples": 7}
    alone = fit(data, [(1, 2)], **options)[0]
    among = fit(data, [(0, 1, 2), *((c,) for c in range(3)), *itertools.combinations(range(3), 2)], **options)[-1]
    other = fit(data, [(1, 2)], seed=1, **options)[0]
    for field, a, b in zip(alone._fields[:-1], alone, among, strict=False):
        np.testing.assert_array_equal(a, b, err_msg=field)
    assert (alone.gain_null != other.gain_null).all()
    assert (alone.bootstrap != other.bootstrap).any()


def test_no_change_gives_zero_beta_and_no_ratios():
    dP, dY, total, labels, _ = planted()
    for result in fit((0 * dP, 0 * dY, 0 * total, labels), [(0, 1, 2), (1,)], permutations=10, resamples=4):
        for zero in (result.beta, result.intercept, result.bootstrap, result.estimable):
            assert not zero.any()
        ratios = (result.r2, result.r2_class, result.r2_total, result.gain, result.gain_total)
        assert np.isnan([*ratios, *result.gain_null, *result.r2_null]).all()
        assert not mapping.sign_agreement(result).any()


@pytest.mark.parametrize(("per_row", "measured"), [(0.99e-4, False), (1.01e-4, True)])
def test_there_must_be_enough_to_explain_in_a_row_however_many_rows_there_are(per_row, measured):
    dP, dY, total, labels, _ = planted(rows=400)
    folds = mapping.stratified_folds(labels, FOLDS, 0)
    for subset in [(0, 1, 2), (1,), (0, 2)]:
        rows = np.isin(labels, subset)
        sst = sum(np.sum((dY[rows & (folds == f)] - dY[rows & (folds != f)].mean(0)) ** 2) for f in range(FOLDS))
        change = dY * np.sqrt(per_row * rows.sum() / sst)
        result = fit((dP, change, total, labels), [subset], permutations=3)[0]
        ratios = [result.r2, result.r2_class, result.r2_total, result.gain, result.gain_total]
        assert np.isfinite([*ratios, *result.gain_null, *result.r2_null]).tolist() == [measured] * 11
        changes = mapping.Changes(dP, change, labels, 3)
        r2, by_class = mapping.r2_groups(changes, folds, lambda train: np.arange(train.sum()) % 7)
        found = {(0, 1, 2): r2, (1,): by_class[1]}
        assert np.isfinite(found.get(subset, 0)) == (measured or subset == (0, 2))


def test_column_without_variance_is_not_estimable():
    data = planted(rows=200)
    dP = np.column_stack([data[0], np.zeros(200), np.full(200, 0.1), data[0][:, 0], (data[3] == 1) * 0.3])
    everything, single = fit((dP, *data[1:]), [(0, 1, 2), (1,)], permutations=10, resamples=10)
    np.testing.assert_array_equal(everything.estimable, [True] * 6 + [False, False, True, True])
    np.testing.assert_array_equal(single.estimable, [True] * 6 + [False, False, True, False])
    for result in (everything, single):
        assert not result.beta[~result.estimable].any()
        assert not result.bootstrap[:, ~result.estimable].any()
        np.testing.assert_allclose(result.beta[0], result.beta[8], atol=1e-8)  # copies share a coefficient
        assert result.gain > 0.5
        agreement = mapping.sign_agreement(result)
        assert agreement[~result.estimable].max() == 0
        assert agreement.max() <= 1


def test_gain_total_is_what_dP_adds_to_a_slope_on_total_saliency_for_each_class():
    rng = np.random.default_rng(0)
    dP, _, total, labels, beta = planted(rows=600)
    own = total[:, None] * np.array([[2.0, -1, 0], [-1, 3, 1], [0, 1, -2]])[labels]
    noise = 0.01 * rng.normal(size=own.shape)
    subsets = [(0, 1, 2), (1,)]
    # The slopes differ by class: dP, whose sum is nearly the total, cannot say the same with one slope for all.
    everything, single = fit((dP, own + noise, total, labels), subsets)
    assert everything.gain < 0.5 < everything.r2_total
    for result in (everything, single):
        assert abs(result.gain_total) < 0.02
    # What dP says beside it is all gain, however little it is beside the total.
    for result in fit((dP, own + dP @ beta, total, labels), subsets):
        assert result.gain_total == pytest.approx(1, abs=1e-6)
        assert result.r2_total < 1
    # Without a change of total saliency there is a mean of the class to add to, and no more.
    for result in fit((dP, own + dP @ beta, 0 * total + 3, labels), subsets):
        assert result.gain_total == pytest.approx(result.gain, abs=1e-12)
        assert result.r2_total == pytest.approx(result.r2_class, abs=1e-12)


def test_a_prototype_that_is_the_total_adds_nothing_to_it():
    """Beside the total its column has no variance left, down to the last digit."""
    _, dY, total, labels, _ = planted(rows=200)
    columns = total[:, None] * np.array([1.0, -7]) + 100
    for result in fit((columns, dY + 0.3 * total[:, None], total, labels), [(0, 1, 2), (1,)]):
        assert result.gain > 0.5
        assert result.gain_total == 0


def test_column_that_only_one_row_has():
    """Held out with that row, the column has no variance left to train on, down to the last digit."""
    dP, dY, total, labels, _ = planted(seed=1, rows=20_000, width=2)
    lone = np.where(np.arange(len(dP)) == 17, 50.0, 0.0)
    subsets = [(0, 1, 2), (int(labels[17]),)]
    without = fit((dP, dY, 0 * total, labels), subsets)
    among = fit((np.column_stack([dP, lone]), dY, lone, labels), subsets)
    for one, other in zip(without, among, strict=True):
        for name in ("r2", "gain", "r2_total", "gain_total"):
            assert getattr(other, name) == pytest.approx(getattr(one, name), abs=1e-3), name
        assert one.r2_total == pytest.approx(one.r2_class, abs=1e-12)


def test_classes_with_few_rows_or_none():
    dP, dY, total, labels, _ = planted(rows=200)
    labels = np.where(labels == 2, 0, labels)
    labels[:2] = 2
    options = {"permutations": 10, "resamples": 3}
    pair, triple, alone = fit((dP, dY, total, labels), [(0, 1), (0, 1, 2), (2,)], **options)
    for field, a, b in zip(pair._fields, pair, triple, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=field)
    assert not alone.beta.any()
    assert not alone.estimable.any()
    assert np.isnan([alone.r2, alone.gain, alone.gain_total, *alone.gain_null]).all()


def test_without_permutations_or_resamples():
    result = fit(planted(), [(0, 1)])[0]
    assert np.isnan([*result.gain_null, *result.r2_null, *mapping.sign_agreement(result).ravel()]).all()
    assert np.isfinite(result.gain)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_not_finite_values_are_refused(place):
    data = [a.copy() for a in planted()[:4]]
    data[place][(3,) + (0,) * (data[place].ndim - 1)] = np.nan
    with pytest.raises(InputError, match=rf"^{('dP', 'dY', 'total')[place]} holds 1 values that are not finite.*$"):
        fit(data, [(0,)])


def test_bad_arguments_are_refused():
    data = planted()
    with pytest.raises(InputError, match="num_folds is 2"):
        fit(data, [(0,)], num_folds=2)
    for subset in [(), (3,), (0, -1)]:
        with pytest.raises(InputError, match="set of classes"):
            fit(data, [subset])
