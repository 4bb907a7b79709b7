"""Instruments that say how far to trust an explanation: ideal on planted truth, nothing on noise, and by other code."""

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import adjusted_rand_score, r2_score

from i2x_jax.explanation import trust


def test_rank_correlation_is_that_of_scipy_with_and_without_ties():
    rng = np.random.default_rng(0)
    for one, other in (rng.normal(size=(2, 30)), rng.integers(0, 4, (2, 30))):
        assert np.isclose(trust.spearman(one, other), stats.spearmanr(one, other).statistic)
        np.testing.assert_array_equal(trust.ranks(one), stats.rankdata(one))


def test_rank_correlation_is_ideal_null_and_zero_for_what_orders_nothing():
    values = np.random.default_rng(0).normal(size=40)
    assert np.isclose(trust.spearman(values, np.exp(values)), 1)
    assert np.isclose(trust.spearman(values, -values), -1)
    assert trust.spearman(values, np.ones(40)) == 0
    noise = [trust.spearman(*np.random.default_rng(seed).normal(size=(2, 40))) for seed in range(200)]
    assert abs(np.mean(noise)) < 0.03  # four standard errors of 1/sqrt(39 * 200)
    assert np.std(noise) > 0.1


def test_what_a_third_explains_is_taken_away():
    rng = np.random.default_rng(1)
    ink, own = rng.normal(size=(2, 4000))
    claim, drop = ink + 0.3 * rng.normal(size=4000), ink + 0.3 * rng.normal(size=4000)
    assert trust.spearman(claim, drop) > 0.8
    assert abs(trust.partial_spearman(claim, drop, ink)) < 0.06
    assert trust.partial_spearman(ink + own, ink + own + 0.1 * rng.normal(size=4000), ink) > 0.9
    assert trust.partial_spearman(ink, drop, 2 * ink) == 0
    # As the correlation of what regressions on the ranks of the third leave.
    rows = [trust.ranks(each) for each in (claim, drop, ink)]
    left = [each - np.polyval(np.polyfit(rows[2], each, 1), rows[2]) for each in rows[:2]]
    assert np.isclose(trust.partial_spearman(claim, drop, ink), np.corrcoef(*left)[0, 1])


def test_numbers_are_held_against_drops_as_they_stand():
    rng = np.random.default_rng(0)
    drop, claim = rng.normal(size=(2, 50))
    assert trust.r_squared(drop, drop) == 1
    assert trust.r_squared(2 * drop, drop) < 0.1
    assert np.isclose(trust.r_squared(claim, drop), r2_score(drop, claim))
    assert np.isnan(trust.r_squared(claim, np.ones(50)))


def test_the_interval_holds_the_mean_as_often_as_it_says():
    found = [trust.mean_interval(np.random.default_rng(seed).normal(size=60), seed) for seed in range(200)]
    held = np.mean([each.low <= 0 <= each.high for each in found])
    assert 0.88 < held < 0.99
    assert trust.mean_interval(np.full(5, 0.25), 0) == (0.25, 0.25, 0.25)


class TestRand:
    def test_as_scikit_learn_where_all_weigh_the_same(self):
        rng = np.random.default_rng(0)
        one, other = rng.integers(0, 3, 40), rng.integers(0, 4, 40)
        other[:20] = one[:20]
        assert np.isclose(trust.adjusted_rand(one, other), adjusted_rand_score(one, other))
        assert np.isclose(trust.adjusted_rand(one, other, np.full(40, 3.0)), adjusted_rand_score(one, other))

    def test_by_pairs_where_they_do_not(self):
        rng = np.random.default_rng(0)
        one, other, weights = rng.integers(0, 3, 40), rng.integers(0, 4, 40), rng.uniform(0, 2, 40)
        other[:20] = one[:20]
        sums = np.zeros(4)
        for i, j in itertools.combinations(range(40), 2):
            same = one[i] == one[j], other[i] == other[j]
            sums += weights[i] * weights[j] * np.array([all(same), *same, 1])
        both, rows, columns, pairs = sums
        chance = rows * columns / pairs
        expected = (both - chance) / ((rows + columns) / 2 - chance)
        assert np.isclose(trust.adjusted_rand(one, other, weights), expected)

    def test_renamed_is_the_same_and_noise_is_nothing(self):
        rng = np.random.default_rng(0)
        one, weights = rng.integers(0, 8, 5000), rng.uniform(0, 1, 5000)
        assert np.isclose(trust.adjusted_rand(one, rng.permutation(8)[one], weights), 1)
        assert abs(trust.adjusted_rand(one, rng.permutation(one), weights)) < 0.01
        assert np.isnan(trust.adjusted_rand(one * 0, one * 0))
        assert np.isnan(trust.adjusted_rand(one, one, one * 0.0))


def test_places_are_kept_whole_by_halves_or_not_at_all():
    one, other = np.array([0, 0, 0, 0, 1, 1, 2, 2]), np.array([3, 3, 3, 3, 0, 0, 1, 0])
    np.testing.assert_allclose(trust.overlaps(one, other, np.array([0, 1, 2, 3]), 4), [1, 2 / 3, 1 / 2, 0])


class TestWithinImages:
    @pytest.fixture
    def parts(self):
        rng = np.random.default_rng(0)
        return rng.normal(size=(300, 8)), rng.uniform(size=(300, 8)) < 0.7

    def test_truth_is_ideal_and_noise_is_nothing(self, parts):
        drops, present = parts
        claims = np.where(present, 3 * drops, 99)  # what an image does not have is not looked at
        found = trust.agreement(claims, drops, present)
        assert len(found) == (present.sum(1) >= trust.LEAST_PARTS).sum() < 300
        np.testing.assert_allclose(found, 1)
        noise = trust.agreement(np.random.default_rng(1).normal(size=drops.shape), drops, present)
        assert abs(noise.mean()) < 0.1

    def test_a_claim_that_is_ink_says_nothing_beyond_it(self, parts):
        ink, present = parts
        drops = ink + np.random.default_rng(1).normal(size=ink.shape)
        assert trust.agreement(ink, drops, present).mean() > 0.5
        np.testing.assert_array_equal(trust.agreement_given(ink, drops, ink, present), 0)
        noisy = ink + 0.5 * np.random.default_rng(2).normal(size=ink.shape)
        assert abs(trust.agreement_given(noisy, drops, ink, present).mean()) < 0.1
        assert trust.agreement_given(drops - ink, drops, ink, present).mean() > 0.7
