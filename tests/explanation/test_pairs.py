import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from i2x_jax.explanation import pairs


def confidence_with_areas(areas):
    """Confidence of 20 samples of class 0 and one of class 1, the area under the ROC being a multiple of 1/20."""
    confidence = np.zeros((len(areas), 21, 2))
    for t, area in enumerate(areas):
        confidence[t, : round(20 * area), 0] = 1
        confidence[t, -1, 0] = 0.5
    return confidence, np.array([0] * 20 + [1])


def test_soft_confusion_is_the_mean_confidence_by_class():
    confidence = np.array([[0.6, 0.4, 0.0], [0.8, 0.2, 0.0], [0.1, 0.7, 0.2]], np.float32)
    confusion = pairs.soft_confusion(confidence, np.array([0, 0, 1]))
    np.testing.assert_allclose(confusion[:2], [[0.7, 0.3, 0.0], [0.1, 0.7, 0.2]], rtol=1e-6)
    assert np.isnan(confusion[2]).all()


def test_rank_pairs_sums_both_directions_and_breaks_ties_by_index():
    confusion = np.array([[9, 0.1, 0.2, 0.0], [0.1, 9, 0.3, 0.0], [0.0, 0.2, 9, 0.0], [0.0, 0.0, 0.5, 9]])
    # Sums: (0,1) 0.2, (0,2) 0.2, (0,3) 0, (1,2) 0.5, (1,3) 0, (2,3) 0.5.
    assert pairs.rank_pairs(confusion) == [(1, 2), (2, 3), (0, 1), (0, 2), (0, 3), (1, 3)]


def test_rank_pairs_puts_classes_without_samples_last():
    confusion = np.array([[1, np.nan, 0.0], [np.nan, np.nan, np.nan], [0.0, np.nan, 1]])
    assert pairs.rank_pairs(confusion) == [(0, 2), (0, 1), (1, 2)]


@pytest.mark.parametrize(
    ("areas", "expected"),
    [
        ([0.5, 0.95, 1.0], 10),  # 0.95 itself is enough
        ([1.0, 1.0, 1.0], 0),
        ([0.95, 0.9, 0.95], 100),  # a relapse starts it anew
        ([1.0, 1.0, 0.9], None),
    ],
)
def test_told_apart_from_the_first_checkpoint_that_holds_to_the_end(areas, expected):
    confidence, labels = confidence_with_areas(areas)
    steps = np.array([0, 10, 100], np.int32)
    np.testing.assert_allclose(pairs.auc_over_time(confidence, labels, 0, 1), areas)
    assert pairs.told_apart(confidence, labels, steps, 0, 1) == expected
    assert pairs.told_apart(confidence, labels, steps, 1, 0) == expected


def test_auc_equals_scikit_learns_with_ties():

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    confidence = rng.integers(0, 6, (2, 200, 3)) / 5
    rows = labels != 1
    expected = [roc_auc_score(labels[rows] == 0, at[rows, 0] - at[rows, 2]) for at in confidence]
    np.testing.assert_allclose(pairs.auc_over_time(confidence, labels, 0, 2), expected)


def test_told_apart_needs_samples_of_both():
    confidence, labels = confidence_with_areas([1.0, 1.0])
    assert np.isnan(pairs.auc_over_time(confidence, labels[:-1], 0, 1)).all()
    assert pairs.told_apart(confidence[:, :-1], labels[:-1], np.array([0, 1]), 0, 1) is None
