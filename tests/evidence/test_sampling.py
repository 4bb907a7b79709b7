"""The sample of locations that prototypes are fitted on: by hash, so that nothing but seed and images decides it."""

import numpy as np
import pytest

from i2x_jax.data.part import hashes
from i2x_jax.evidence import sampling
from i2x_jax.evidence.sampling import sample_locations

COUNT, WANTED = 100_000, 5_000


def splitmix64(state):
    """The next number of the generator, in whole numbers of any size, after Steele, Lea and Flood (2014)."""
    mask = 2**64 - 1
    z = state & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_hashes_are_splitmix64_of_seed_and_number(seed):
    gamma = 0x9E3779B97F4A7C15
    begin = splitmix64((seed + 1) * gamma)
    expected = [splitmix64(begin + number * gamma) for number in range(2**40, 2**40 + 20)]
    found = hashes(np.arange(2**40, 2**40 + 20), seed)
    assert found.dtype == np.uint64
    assert found.tolist() == expected


def test_the_first_number_is_that_of_the_published_generator():
    # Of seed 0, the generator's first output is 0xE220A8397B1DCDAF, which is also how a seed is mixed here.
    assert splitmix64(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


def test_is_the_smallest_hashes():
    found = sample_locations(COUNT, WANTED, 3)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, np.sort(np.argsort(hashes(np.arange(COUNT), 3))[:WANTED]))
    np.testing.assert_array_equal(found, sample_locations(COUNT, WANTED, 3))


@pytest.mark.parametrize("at_once", [1, 999, 5_000, 64_000, COUNT, 10**6])
def test_does_not_depend_on_how_many_are_looked_at_together(monkeypatch, at_once):
    count = COUNT if at_once > 1 else 300
    expected = sample_locations(count, count // 20, 0)
    monkeypatch.setattr(sampling, "LOCATIONS_AT_ONCE", at_once)
    np.testing.assert_array_equal(sample_locations(count, count // 20, 0), expected)


@pytest.mark.parametrize("more", [1, 100, COUNT])
def test_with_more_images_what_is_kept_was_there_before(more):
    before, after = sample_locations(COUNT, WANTED, 0), sample_locations(COUNT + more, WANTED, 0)
    old = after[after < COUNT]
    assert set(old) <= set(before)
    # Each of the new ones takes the place of an old one, in proportion to how many there are of either.
    expected = WANTED * COUNT / (COUNT + more)
    assert abs(len(old) - expected) <= 5 * np.sqrt(WANTED * more / (COUNT + more)) + 1


def test_a_smaller_sample_is_part_of_a_larger_one():
    assert set(sample_locations(COUNT, 100, 0)) < set(sample_locations(COUNT, WANTED, 0))


def test_other_seeds_give_other_samples():
    samples = [set(sample_locations(COUNT, WANTED, seed)) for seed in range(4)]
    common = [len(one & other) for i, one in enumerate(samples) for other in samples[:i]]
    # Of two that know nothing of each other, 250 are the same; five deviations are 77.
    assert all(abs(number - WANTED**2 / COUNT) < 77 for number in common)


def test_is_uniform():
    found = sample_locations(COUNT, WANTED, 0)
    # Over stretches of numbers, and over places within an image: 49 of them, or a power of 2.
    for cells in (found * 20 // COUNT, found % 49, found % 64, found % 7):
        counts = np.bincount(cells)
        expected = len(found) / len(counts)
        chi2 = ((counts - expected) ** 2 / expected).sum()
        # The mean of the statistic is its degrees of freedom, its deviation the root of twice that.
        assert chi2 < len(counts) - 1 + 5 * np.sqrt(2 * len(counts))
    assert abs(found.mean() / COUNT - 0.5) < 5 / np.sqrt(12 * WANTED)


@pytest.mark.parametrize("wanted", [10, 11, 10**9])
def test_all_where_there_are_not_more(wanted):
    np.testing.assert_array_equal(sample_locations(10, wanted, 0), np.arange(10))


@pytest.mark.parametrize("wanted", [1, 9])
def test_few(wanted):
    found = sample_locations(10, wanted, 0)
    assert len(set(found)) == wanted
    assert 0 <= found.min() <= found.max() < 10
