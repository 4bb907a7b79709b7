import numpy as np
import pytest

from i2x_jax.explanation import uncertainty
from i2x_jax.explanation.mapping import SampleFit
from i2x_jax.explanation.uncertainty import PairScores


def sample_fit(beta, bootstrap, r2=0.5, r2_null=(0.0, 0.1, 0.2)):
    values = dict.fromkeys(SampleFit._fields)
    values |= {"beta": np.asarray(beta, float), "bootstrap": np.asarray(bootstrap, float), "r2": r2}
    return SampleFit(**values | {"r2_null": np.asarray(r2_null)})


def scores_of(s, stable=None, counted=None):
    """PairScores of s [T-1,K], stable and counted everywhere unless told."""
    s = np.asarray(s, float)
    stable = np.ones(s.shape, bool) if stable is None else np.asarray(stable)
    counted = np.ones(len(s), bool) if counted is None else np.asarray(counted)
    return PairScores(s, np.stack([s, s], -1), stable, np.ones(len(s)), np.zeros(len(s)), counted)


def test_pair_scores_are_deviation_times_difference_of_coefficients():
    dP = np.array([[[1.0, 0.0], [-1.0, 4.0]]])  # deviations 1 and 2
    beta = [[0.1, 9.0, 0.4], [0.3, 9.0, 0.1]]
    scores = uncertainty.pair_scores(dP.std(1), [sample_fit(beta, np.tile(beta, (10, 1, 1)))], a=2, b=0)
    np.testing.assert_allclose(scores.s, [[0.3, -0.4]])
    np.testing.assert_allclose(scores.ci, [[[0.3, 0.3], [-0.4, -0.4]]])
    assert scores.stable.all()
    assert scores.counted.tolist() == [True]
    np.testing.assert_array_equal((scores.r2, scores.r2_null), [[0.5], [0.1]])


def test_pair_scores_call_a_sign_stable_from_exactly_nine_refits_in_ten():
    refits = np.zeros((10, 3, 2))
    refits[:, 0, 0] = [1] * 9 + [-1]
    refits[:, 1, 0] = [1] * 8 + [-1] * 2
    refits[:, 2, 0] = -1  # all refits against the sign of the fit itself
    dP = np.array([[[1.0] * 3, [-1.0] * 3]])
    scores = uncertainty.pair_scores(dP.std(1), [sample_fit([[1, 0]] * 3, refits)], 0, 1)
    assert scores.stable.tolist() == [[True, False, False]]
    np.testing.assert_allclose(scores.ci[0, 0], np.percentile(refits[:, 0, 0], [5, 95]))


def test_pair_scores_without_variance_or_coefficient_have_no_sign():
    dP = np.array([[[0.5, 1.0], [0.5, -1.0]]])
    fit = sample_fit([[1.0, 0.0], [0.0, 0.0]], np.zeros((10, 2, 2)))
    scores = uncertainty.pair_scores(dP.std(1), [fit], 0, 1)
    assert scores.s.tolist() == [[0.0, 0.0]]
    assert not scores.stable.any()


@pytest.mark.parametrize("refits", [0, 4])
def test_pair_scores_where_nothing_was_fit(refits):
    fit = sample_fit(np.full((2, 2), np.nan), np.full((refits, 2, 2), np.nan), np.nan, [np.nan] * 3)
    scores = uncertainty.pair_scores(np.zeros((1, 2)), [fit], 0, 1)
    assert np.isnan(scores.s).all()
    assert np.isnan(scores.ci).all()
    assert not scores.stable.any()
    assert not scores.counted.any()


def test_pair_scores_count_an_interval_only_above_its_null():
    fits = [sample_fit(np.zeros((1, 2)), np.zeros((2, 1, 2)), r2) for r2 in (0.1, 0.1001, -1.0, np.nan)]
    assert uncertainty.pair_scores(np.zeros((4, 1)), fits, 0, 1).counted.tolist() == [False, True, False, False]


@pytest.mark.parametrize("deviation", [np.ones((2, 1)), np.full((1, 1), np.nan)])
def test_pair_scores_refuse_other_shapes_and_no_samples(deviation):
    with pytest.raises(ValueError, match="one fit per interval"):
        uncertainty.pair_scores(deviation, [sample_fit(np.zeros((1, 2)), np.zeros((2, 1, 2)))], 0, 1)


def test_planted_sign_flips_add_the_smaller_magnitude():
    s = [[0.3, 0.3, 0.1], [-0.1, 0.2, -0.1], [0.2, 0.1, 0.1]]
    u, flips = uncertainty.uncertain_scores(scores_of(s))
    np.testing.assert_allclose(u, [0.1 + 0.1, 0.0, 0.2])
    assert flips.tolist() == [2, 0, 2]


def test_unstable_signs_are_passed_over_for_their_prototype_alone():
    s = [[0.3, 0.3], [-0.1, -0.1], [0.2, 0.2]]
    u, flips = uncertainty.uncertain_scores(scores_of(s, stable=np.array([[1, 1], [0, 1], [1, 1]], bool)))
    np.testing.assert_allclose(u, [0.0, 0.2])
    assert flips.tolist() == [2, 2]


def test_intervals_below_their_null_are_passed_over_and_their_neighbours_compared():
    s = [[0.3, 0.3], [-0.2, 0.2], [0.1, -0.1]]
    u, flips = uncertainty.uncertain_scores(scores_of(s, counted=[True, False, True]))
    np.testing.assert_allclose(u, [0.0, 0.1])
    assert flips.tolist() == [2, 1]


def test_raw_flips_skip_zeros_and_nan():
    s = [[1.0, 1.0], [0.0, np.nan], [-1.0, 1.0], [np.nan, -1.0]]
    u, flips = uncertainty.uncertain_scores(scores_of(s, stable=np.zeros((4, 2), bool)))
    assert u.tolist() == [0.0, 0.0]
    assert flips.tolist() == [1, 1]


def test_scores_without_a_counted_interval_are_zero():
    u, _ = uncertainty.uncertain_scores(scores_of([[1.0], [-1.0]], counted=[False, False]))
    assert u.tolist() == [0.0]


def test_prototype_area_counts_locations():
    assignments = np.array([[[0, 0], [2, 1]], [[1, 1], [1, 1]]], np.int16)
    assert uncertainty.prototype_area(assignments, 4).tolist() == [[2, 1, 1, 0], [0, 4, 0, 0]]


def test_contains_from_exactly_15_percent_of_the_mass():
    area = np.array([[3, 17, 0], [29, 171, 0], [5, 5, 0]])
    intensity = np.ones((3, 3), np.float32)
    intensity[2] = 0
    # Shares of the first prototype: 15 %, 14.5 %, and no mass at all.
    assert uncertainty.contains(intensity, area).tolist() == [[True, True, False], [False, True, False], [False] * 3]


def test_contains_weighs_intensity_by_area_and_takes_signed_saliency_by_magnitude():
    assert uncertainty.contains(np.array([[1.0, 9.0]]), np.array([[18, 1]]), share=0.6).tolist() == [[True, False]]
    assert uncertainty.contains(np.array([[-1.0, 1.0]]), np.array([[1, 1]]), share=0.5).tolist() == [[True, True]]


LABELS = np.array([0] * 10 + [1] * 10 + [2] * 5)


def contained_in(*rows_of_prototypes):
    contained = np.zeros((len(LABELS), len(rows_of_prototypes)), bool)
    for k, rows in enumerate(rows_of_prototypes):
        contained[list(rows), k] = True
    return contained


def test_curate_leaves_out_the_pairs_samples_in_order_of_score():
    contained = contained_in([0, 22], [1, 10], [5])
    curated = uncertainty.curate(np.array([0.1, 0.2, 0.0]), contained, LABELS, (0, 1), 0.3)
    assert curated.prototypes.tolist() == [1, 0]
    assert curated.scores.tolist() == [0.2, 0.1]
    assert curated.left_out.tolist() == [0, 1, 10]  # row 22 is of neither class
    assert curated.skipped.tolist() == []


def test_curate_accepts_exactly_30_percent_and_skips_what_exceeds_it():
    contained = contained_in([0, 1, 2], [3], [2, 12], [13, 14, 15])
    curated = uncertainty.curate(np.array([0.4, 0.3, 0.2, 0.1]), contained, LABELS, (0, 1), 0.3)
    assert curated.prototypes.tolist() == [0, 2]  # 1 exceeds class 0; 3 with 12 left out exceeds class 1
    assert curated.skipped.tolist() == [1, 3]
    assert curated.left_out.tolist() == [0, 1, 2, 12]


def test_curate_breaks_ties_by_id_and_lists_a_prototype_that_adds_no_sample():
    curated = uncertainty.curate(np.array([0.1, 0.1, 0.1]), contained_in([4], [4], []), LABELS, (0, 1), 0.3)
    assert curated.prototypes.tolist() == [0, 1, 2]
    assert curated.left_out.tolist() == [4]


@pytest.mark.parametrize("score", [0.0, np.nan])
def test_curate_without_an_uncertain_prototype_is_empty(score):
    curated = uncertainty.curate(np.array([score]), contained_in([0]), LABELS, (0, 1), 0.3)
    assert [len(part) for part in curated] == [0, 0, 0, 0]
