"""Which locations PCA and K-means are fitted on (DESIGN 2.2). NumPy only."""

import numpy as np

from i2x_jax.data.part import hashes

# Locations that are looked at together.
LOCATIONS_AT_ONCE = 2**22


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
        smallest = np.concatenate([smallest, hashes(np.arange(start, stop), seed)])
        if len(kept) > wanted:
            # Distinct numbers have distinct hashes: SplitMix64 is one to one.
            chosen = np.argpartition(smallest, wanted - 1)[:wanted]
            kept, smallest = kept[chosen], smallest[chosen]
    return np.sort(kept)
