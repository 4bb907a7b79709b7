"""How the C library handles the memory that XLA asks it for on a CPU, and pages of files that are mapped."""

import ctypes
import mmap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # The start of the program does without it.
    import numpy as np

# Parameters of mallopt(3), from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Has glibc keep what is freed for the next allocation; elsewhere it does nothing.

    A training step on a CPU allocates and frees hundreds of megabytes. By default glibc hands them back to the system,
    which clears every page again before the next step: up to a third of the time of a small network's step
    (experiments/benchmarks/convolutions.py, `--nokeep_memory`). To be called before threads are started.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_ARENA_MAX, 1)


def release(array: "np.memmap") -> None:
    """Has a process let go of the pages of a mapped file, all of which are on disk; they are read again when needed.

    Otherwise everything that was once looked at counts as the process's memory, which grows with the number of images.
    """
    if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        array.base.madvise(mmap.MADV_DONTNEED)
