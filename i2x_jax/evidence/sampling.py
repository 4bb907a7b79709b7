"""Which locations PCA and K-means are fitted on (DESIGN 2.2). NumPy only."""

import numpy as np

# Locations that are looked at together.
LOCATIONS_AT_ONCE = 2**22
# The constants of SplitMix64 (Steele, Lea, Flood 2014): from numbers in a row to numbers without any pattern.
GAMMA, FIRST, SECOND = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def hashes(start: int, stop: int, seed: int) -> np.ndarray:
    """uint64 `[stop - start]`, without pattern, of the whole numbers from `start`; SplitMix64 of (seed, number)."""
    with np.errstate(over="ignore"):
        mixed = _mixed(np.uint64(seed) * GAMMA + GAMMA)
        return _mixed(mixed + np.arange(start, stop, dtype=np.uint64) * GAMMA)


def _mixed(values):
    values = (values ^ (values >> np.uint64(30))) * FIRST
    values = (values ^ (values >> np.uint64(27))) * SECOND
    return values ^ (values >> np.uint64(31))


def sample_locations(count: int, wanted: int, seed: int) -> np.ndarray:
    """The locations whose hashes are the smallest: a sample that depends on nothing but the seed and the images.

    Neither batches nor devices nor processes change it, and with more images most of it stays.

    Args:
      count: locations that there are; location j of image i is number `i * h * w + j`.
      wanted: how many; all where there are not more.
      seed: of the hash.

    Returns:
      Their numbers, int64, ascending.
    """
    if wanted >= count:
        return np.arange(count)
    kept, smallest = np.zeros(0, np.int64), np.zeros(0, np.uint64)
    for start in range(0, count, LOCATIONS_AT_ONCE):
        stop = min(start + LOCATIONS_AT_ONCE, count)
        kept = np.concatenate([kept, np.arange(start, stop)])
        smallest = np.concatenate([smallest, hashes(start, stop, seed)])
        if len(kept) > wanted:
            # Distinct numbers have distinct hashes: SplitMix64 is one to one.
            chosen = np.argpartition(smallest, wanted - 1)[:wanted]
            kept, smallest = kept[chosen], smallest[chosen]
    return np.sort(kept)
