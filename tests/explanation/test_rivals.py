"""Which classes are kept of each class's samples, and reading what is kept."""

import numpy as np
import pytest

from i2x_jax.explanation import mapping, rivals

CONFUSION = np.array(
    [
        [0.7, 0.2, 0.1, 0.0],
        [0.1, 0.6, 0.0, 0.3],
        [np.nan, np.nan, np.nan, np.nan],
        [0.2, 0.0, 0.1, 0.7],
    ]
)


def test_with_room_for_all_each_row_is_all_in_order():
    for wanted in (0, 4):
        np.testing.assert_array_equal(rivals.choose_rivals(CONFUSION, (), wanted), np.tile(np.arange(4), (4, 1)))


def test_itself_and_what_it_is_taken_for():
    # Of class 2 there is no sample: those count that are taken for it, class 0 and class 3 alike, the first of equals.
    expected = [[0, 1], [1, 3], [0, 2], [0, 3]]
    np.testing.assert_array_equal(rivals.choose_rivals(CONFUSION, (), 2), expected)


def test_a_pair_keeps_each_other_and_makes_room():
    found = rivals.choose_rivals(CONFUSION, [(0, 2), (0, 3)], 2)
    assert found.shape == (4, 3)
    assert found[0].tolist() == [0, 2, 3]
    assert all(rivals.mutual(found, *pair) for pair in ((0, 2), (0, 3)))
    assert found.dtype == np.int32


def test_a_thousand_classes_keep_ten():
    confusion = np.random.default_rng(0).dirichlet(np.ones(1000), 1000)
    found = rivals.choose_rivals(confusion, [(3, 700)])
    assert found.shape == (1000, 10)
    assert (np.diff(found, axis=1) > 0).all()
    assert (rivals.own_columns(found) >= 0).all()
    assert rivals.is_narrow(found)
    assert not rivals.is_narrow(found[:64, :10])


def test_reading_what_is_kept():
    kept = np.array([[0, 1], [1, 3], [0, 2], [0, 3]], np.int32)
    values = np.arange(2 * 4 * 3 * 2.0).reshape(2, 4, 3, 2)
    own = rivals.of_own_class(values, kept)
    for label, column in enumerate((0, 0, 1, 1)):
        np.testing.assert_array_equal(own[:, label], values[:, label, :, column])
        assert rivals.column_of(kept, label, label) == column
    with pytest.raises(KeyError, match="class 2 is no rival of class 1"):
        rivals.column_of(kept, 1, 2)
    assert rivals.rival_pairs(kept) == {(0, 1), (1, 3), (0, 2), (0, 3)}
    assert not rivals.mutual(kept, 0, 1)
    np.testing.assert_array_equal(rivals.widened(np.array([[0.2, 0.3, 0.5]]), kept[1], 4), [[0, 0.2, 0, 0.3]])


class TestMapping:
    """Fits on the kept classes are those on all, with 0 in the others."""

    CLASSES, KEPT, K, ROWS = 8, 3, 5, 240

    def changes(self):
        rng = np.random.default_rng(0)
        labels = np.arange(self.ROWS) % self.CLASSES
        kept = rivals.choose_rivals(rng.dirichlet(np.ones(8), 8), [(1, 6)], self.KEPT)
        dP = rng.normal(size=(self.ROWS, self.K))
        slopes = rng.normal(size=(self.CLASSES, self.K, self.KEPT))
        dY = 0.1 * np.einsum("nk,nkr->nr", dP, slopes[labels]) + 0.05 * rng.normal(size=(self.ROWS, self.KEPT))
        narrow = mapping.Changes(dP, dY, labels, self.CLASSES, kept)
        return narrow, narrow._replace(dY=mapping.spread(dY, labels, kept, self.CLASSES), columns=None)

    def test_of_samples(self):
        narrow, whole = self.changes()
        subsets = [mapping.Subset(tuple(range(8)), null=False), mapping.Subset((2,)), mapping.Subset((1, 6))]
        draws = mapping.Draws(0, permutations=10, resamples=12)
        total = narrow.dP.sum(1)
        fits = [mapping.map_samples(each, total, subsets, draws) for each in (narrow, whole)]
        for subset, one, all_classes in zip(subsets, *fits, strict=True):
            others = np.setdiff1d(np.arange(8), one.outputs)
            np.testing.assert_allclose(all_classes.beta[:, others], 0, atol=1e-12)
            for name in ("beta", "intercept", "bootstrap"):
                np.testing.assert_allclose(getattr(one, name), getattr(all_classes, name)[..., one.outputs], atol=1e-9)
            for name in ("ridge_lambda", "estimable", "r2", "r2_class", "r2_total", "gain", "gain_total"):
                np.testing.assert_allclose(getattr(one, name), getattr(all_classes, name), atol=1e-9, err_msg=name)
            np.testing.assert_allclose(one.gain_null, all_classes.gain_null, atol=1e-9)
            assert np.isfinite(one.gain_null).all() == subset.null

    def test_a_fit_that_is_not_validated_takes_the_penalty_of_the_first(self):
        narrow, _ = self.changes()
        subsets = [mapping.Subset(tuple(range(8)), null=False), mapping.Subset((2,), False, False, False)]
        first, own = mapping.map_samples(narrow, narrow.dP.sum(1), subsets, mapping.Draws(0, 0, 3))
        rows = narrow.labels == 2
        assert own.ridge_lambda == pytest.approx(first.ridge_lambda / len(rows) * rows.sum())
        x = narrow.dP[rows] - narrow.dP[rows].mean(0)
        scale = x.std(0)
        y = narrow.dY[rows] - narrow.dY[rows].mean(0)
        gram = (x / scale).T @ (x / scale) + own.ridge_lambda * np.eye(self.K)
        np.testing.assert_allclose(own.beta, np.linalg.solve(gram, (x / scale).T @ y) / scale[:, None], rtol=1e-6)
        assert np.isnan([own.r2, own.gain, own.gain_total, *own.gain_null]).all()
        assert own.bootstrap.shape == (0, self.K, self.KEPT)
        assert np.isfinite(first.gain)

    def test_of_groups(self):
        narrow, whole = self.changes()
        groups = mapping.group_ids(np.random.default_rng(1).integers(-1, 3, self.ROWS), narrow.labels, "class")
        for one, all_classes in zip(
            mapping.ridge_all_groups(narrow, groups), mapping.ridge_all_groups(whole, groups), strict=True
        ):
            np.testing.assert_allclose(one, all_classes, atol=1e-12)
        folds = mapping.stratified_folds(narrow.labels, 5, 0)
        found = [mapping.r2_groups(each, folds, lambda train: groups[train]) for each in (narrow, whole)]
        assert found[0][0] == pytest.approx(found[1][0])
        np.testing.assert_allclose(found[0][1], found[1][1])
        assert np.isfinite(found[0][1]).all()
