import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from i2x_jax.config import InputError
from i2x_jax.explanation import grouping
from i2x_jax.explanation.grouping import group_by_class, group_changes, group_interval


def random(seed=0):
    return np.random.default_rng(seed)


def blob(rows, centre, spread=0.01, seed=0):
    return np.asarray(centre) + spread * random(seed).normal(size=(rows, len(centre)))


@pytest.fixture
def modes():
    """3,000 equal rows beside two blobs of 300."""
    equal = np.tile([0.5, -0.25, -0.25], (3000, 1))
    return np.concatenate([blob(300, [-0.3, 0.3, 0.0]), equal, blob(300, [0.0, -0.4, 0.4], seed=1)])


def test_equal_rows_form_a_group_of_their_own(modes):
    groups = group_changes(modes)
    assert groups.fallback == ""
    assert groups.ids.dtype == np.int32
    np.testing.assert_array_equal(groups.ids[300:3300], 0)
    planted = np.repeat([1, 0, 2], [300, 3000, 300])
    assert adjusted_rand_score(planted, groups.ids) > 0.98


@pytest.mark.parametrize(("size", "neighbours"), [(0, 5), (10, 40), (5, 5), (300, 15)])
def test_row_order_does_not_matter(modes, size, neighbours):
    rows = np.concatenate([modes, np.zeros((50, 3)), random(5).uniform(-1, 1, (40, 3))])
    order = random(3).permutation(len(rows))
    groups, permuted = group_changes(rows, size, neighbours), group_changes(rows[order], size, neighbours)
    np.testing.assert_array_equal(permuted.ids, groups.ids[order])
    assert permuted.fallback == groups.fallback


def test_a_mode_survives_a_neighbourhood_beyond_the_group_size(modes):
    groups = group_changes(modes, min_cluster_size=10, min_samples=40)
    np.testing.assert_array_equal(groups.ids == 0, (np.arange(3600) >= 300) & (np.arange(3600) < 3300))


@pytest.mark.parametrize("seed", range(5))
def test_planted_blobs_are_recovered(seed):
    centres = np.array([[0.5, -0.5, 0], [-0.5, 0.5, 0], [0, 0.4, -0.4], [-0.2, -0.2, 0.4]])
    planted = random(seed).choice(4, size=800, p=[0.4, 0.3, 0.2, 0.1])
    groups = group_changes(centres[planted] + 0.01 * random(seed).normal(size=(800, 3)), min_cluster_size=20)
    assert adjusted_rand_score(planted[groups.ids >= 0], groups.ids[groups.ids >= 0]) == 1
    assert (groups.ids >= 0).mean() > 0.95
    assert (np.diff(np.bincount(groups.ids[groups.ids >= 0])) <= 0).all()


def test_unchanged_rows_are_not_clustered(modes):
    still = random(4).uniform(-0.9e-3, 0.9e-3, (500, 3))
    groups = group_changes(np.concatenate([modes, still]), min_cluster_size=36)
    np.testing.assert_array_equal(groups.ids[3600:], -2)
    np.testing.assert_array_equal(groups.ids[:3600], group_changes(modes, min_cluster_size=36).ids)
    assert (groups.ids[:3600] > -2).all()


def test_the_smallest_change_counts():
    np.testing.assert_array_equal(group_changes(np.tile([1e-3, 0], (10, 1))).ids, 0)
    np.testing.assert_array_equal(group_changes(np.tile([-0.99e-3, 0], (10, 1))).ids, -2)


def test_no_changed_row():
    groups = group_changes(np.zeros((100, 4)))
    np.testing.assert_array_equal(groups.ids, -2)
    assert groups.fallback == "none"
    assert group_changes(np.zeros((0, 4))).ids.shape == (0,)


@pytest.mark.parametrize(("changed", "fallback", "label"), [(4, "none", -1), (5, "too_few", 0), (9, "too_few", 0)])
def test_few_changed_rows(changed, fallback, label):
    rows = np.zeros((100, 2))
    rows[:changed] = random().uniform(0.1, 1, (changed, 2))
    groups = group_changes(rows)
    assert groups.fallback == fallback
    np.testing.assert_array_equal(groups.ids[:changed], label)
    np.testing.assert_array_equal(groups.ids[changed:], -2)


@pytest.mark.parametrize("rows", [10, 50, 5000])
def test_all_rows_equal(rows):
    groups = group_changes(np.tile([0.2, -0.2], (rows, 1)))
    assert groups.fallback == "single"
    np.testing.assert_array_equal(groups.ids, 0)


def test_nothing_dense_enough_is_one_group(monkeypatch):
    rows = random().normal(size=(60, 3))
    monkeypatch.setattr(grouping.HDBSCAN, "fit_predict", lambda self, rows: np.full(len(rows), -1))
    groups = group_changes(rows)
    assert groups.fallback == "all"
    np.testing.assert_array_equal(groups.ids, 0)


@pytest.mark.parametrize(("rows", "fallback"), [(4, "all"), (5, "single"), (6, "single")])
def test_a_single_cluster_smaller_than_a_group_is_none(rows, fallback, monkeypatch):
    """HDBSCAN cuts a lone cluster at its densest level, however few rows that leaves."""

    def clusters(self, given):
        return np.where(np.arange(len(given)) < (rows if self.allow_single_cluster else 0), 0, -1)

    monkeypatch.setattr(grouping.HDBSCAN, "fit_predict", clusters)
    changes = np.linspace(0.1, 0.9, 60)[:, None] * [1.0, -1.0]
    groups = group_changes(changes, min_cluster_size=5)
    assert groups.fallback == fallback
    np.testing.assert_array_equal(np.sum(groups.ids == 0), 60 if fallback == "all" else rows)


def test_equal_rows_share_a_label_by_majority(monkeypatch):
    rows = np.repeat([[0.1, 0], [0.2, 0], [0.3, 0]], 5, axis=0)
    labels = np.array([[0, 0, 0, 1, 1], [-1, -1, 1, 1, -1], [1, 1, -1, -1, 1]])
    monkeypatch.setattr(grouping.HDBSCAN, "fit_predict", lambda self, rows: labels.ravel())
    np.testing.assert_array_equal(group_changes(rows).ids, np.repeat([0, -1, 1], 5))
    labels = np.array([[0, 0, 1, 1, -1], [-1, -1, 0, 0, 1], [1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(group_changes(rows).ids, np.repeat([0, -1, 1], 5))


@pytest.mark.parametrize("seed", range(30))
def test_copies_always_share_a_label(seed):
    generator = random(seed)
    parts = [
        generator.uniform(-0.5, 0.5, 3) + generator.choice([0, 0.0005, 0.01, 0.2]) * generator.normal(size=(count, 3))
        for count in generator.integers(2, 100, size=4)
    ]
    rows = np.round(np.concatenate(parts), 3)
    groups = group_changes(rows, int(generator.choice([0, 2, 30])), int(generator.choice([1, 5, 20])))
    _, inverse = np.unique(rows, axis=0, return_inverse=True)
    for distinct in np.unique(inverse):
        assert len(set(groups.ids[inverse.reshape(-1) == distinct])) == 1
    found = np.unique(groups.ids[groups.ids >= 0])
    np.testing.assert_array_equal(found, np.arange(len(found)))


def test_equal_sizes_follow_the_first_row():
    rows = np.repeat([[0.5, 0], [-0.5, 0], [0.1, 0]], 20, axis=0)
    np.testing.assert_array_equal(group_changes(rows).ids, np.repeat([2, 0, 1], 20))


def test_negative_zero_is_zero():
    rows = np.tile([0.2, 0.0001], (40, 1))
    rows[::2, 1] *= -1
    np.testing.assert_array_equal(group_changes(rows).ids, 0)


def test_min_samples_beyond_the_rows():
    rows = np.concatenate([blob(10, [0.3, 0]), blob(10, [-0.3, 0])])
    groups = group_changes(rows, min_samples=500)
    assert groups.ids.max() == 0


def test_inputs_that_cannot_be_grouped():
    rows = np.zeros((10, 2))
    rows[3] = np.nan
    with pytest.raises(InputError, match="non-finite in 1 of 10 rows"):
        group_changes(rows)
    with pytest.raises(InputError, match=r"explain\.min_cluster_size is 1"):
        group_changes(np.ones((10, 2)), min_cluster_size=1)
    with pytest.raises(InputError, match=r"'image'.*'class', 'global'"):
        group_interval(np.ones((10, 2)), np.zeros(10), 1, group_by="image")


def test_by_class_and_global(modes):
    labels = random().integers(2, size=len(modes))
    labels[modes[:, 0] < -0.1] = 2
    ids, fallbacks = group_interval(modes, labels, 4)
    assert ids.dtype == np.int32
    assert len(fallbacks) == 4
    assert fallbacks[3] == "none"
    for label in range(3):
        np.testing.assert_array_equal(ids[labels == label], group_changes(modes[labels == label]).ids)
    np.testing.assert_array_equal(ids, group_by_class(modes, labels, 4)[0])
    ids, fallbacks = group_interval(modes, labels, 4, group_by="global")
    np.testing.assert_array_equal(ids, group_changes(modes).ids)
    assert fallbacks == ("",)


def test_processes_change_nothing_but_the_time(modes, monkeypatch):
    labels = random().integers(3, size=len(modes))
    expected = group_by_class(modes, labels, 4)
    monkeypatch.setattr(grouping, "ROWS_FOR_PROCESSES", 0)
    ids, fallbacks = group_by_class(modes, labels, 4)
    np.testing.assert_array_equal(ids, expected[0])
    assert fallbacks == expected[1]
    modes[3] = np.nan
    with pytest.raises(InputError, match="non-finite in 1 of"):
        group_by_class(modes, labels, 4)
