"""What every step reads images through, whether they are in memory or not.

Labels and class names are at hand at once; images are read by rows: `images[rows]`, as of an array. So an array in
memory, a memory map, and whatever decodes or changes images while they are read are all the same to the steps.
"""

import collections
import concurrent.futures
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

# Images, and bytes of them, that are read at a time where all are passed over on the host.
ROWS_AT_A_TIME, BYTES_AT_A_TIME = 1024, 2**26
# Batches that are read before they are asked for, where images are not in memory.
READ_AHEAD = 2


class Images(Protocol):
    """Images by row."""

    # Properties, since NumPy's own cannot be set and an array has to do.
    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Of what is read: uint8, 0 to 255; or float32."""
        ...

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        """The images `[n, H, W, C]` of some rows, in that order; equal rows always give equal images."""
        ...

    # And perhaps `files`, a `reading.Files` of the N files that they are read from, which then stand for the pixels
    # where images are told apart.


class Chosen:
    """Some rows of images, in any order; read when they are asked for."""

    def __init__(self, images: Images, rows: np.ndarray):
        self._images, self._rows = images, np.asarray(rows)
        self.shape, self.dtype = (len(self._rows), *images.shape[1:]), images.dtype

    @property
    def files(self) -> Any:
        """Of these rows; None for images that are not read from files."""
        files = files_of(self._images)
        return None if files is None else files.take(self._rows)

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        """See `Images`."""
        return self._images[self._rows[rows]]


class Display(NamedTuple):
    """How images that are no levels of grey or colour are shown.

    Attributes:
      channels: one channel, or three that stand for red, green and blue, by their numbers.
      low: the value that is shown black.
      high: the value that is shown white.
    """

    channels: tuple[int, ...] = (0,)
    low: float = 0.0
    high: float = 1.0


class Shown:
    """Images as they are displayed, uint8 of 1 or 3 channels; made while they are read."""

    def __init__(self, images: Images, display: Display):
        self._images, self._display = images, display
        self.shape, self.dtype = (*images.shape[:3], len(display.channels)), np.dtype(np.uint8)

    def __getitem__(self, rows: np.ndarray | slice | int) -> np.ndarray:
        """See `Images`."""
        channels, low, high = self._display
        levels = (np.float32(self._images[rows][..., list(channels)]) - low) / (high - low)
        return np.round(255 * np.clip(levels, 0, 1)).astype(np.uint8)


def by_rows(images: Any) -> Images:
    """Images that can be read by rows: as they are, or made an array of (lists, and arrays of other libraries)."""
    if isinstance(images, np.ndarray) or (hasattr(images, "shape") and not hasattr(images, "__array__")):
        return images
    return np.asarray(images)


def chosen(images: Images, rows: np.ndarray) -> Images:
    """Some rows of images: a copy of what is in memory, otherwise a view of what is not."""
    return (
        images[rows] if isinstance(images, np.ndarray) and not isinstance(images, np.memmap) else Chosen(images, rows)
    )


def files_of(images: Images) -> Any:
    """The `reading.Files` that images are read from; None for others."""
    return getattr(images, "files", None)


def blocks(images: Images) -> Iterator[np.ndarray]:
    """All images in order, some at a time: `[n, H, W, C]` each."""
    rows = max(1, min(ROWS_AT_A_TIME, BYTES_AT_A_TIME // max(1, int(np.prod(images.shape[1:])))))
    several = (slice(start, start + rows) for start in range(0, images.shape[0], rows))
    return (block for _, block in read_ahead(images, several))


def digests(images: Images) -> Iterator[bytes]:
    """What tells equal images, one of each image: of its file where there is one, which is not decoded for that."""
    if (files := files_of(images)) is not None:
        yield from files.digests()
        return
    for block in blocks(images):
        for image in block:
            yield hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).digest()


def read_ahead(images: Images, several: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """`(rows, images[rows])` of one `rows` after the other; what is not in memory is read before it is asked for."""
    if isinstance(images, np.ndarray):
        for rows in several:
            yield rows, images[rows]
        return
    waiting: collections.deque = collections.deque()
    # Two at a time: what decodes has threads of its own, which have nothing to do while the last images of a batch end.
    pool = concurrent.futures.ThreadPoolExecutor(READ_AHEAD, "read-ahead")
    try:
        for rows in several:
            waiting.append((rows, pool.submit(images.__getitem__, rows)))
            if len(waiting) > READ_AHEAD:
                before, read = waiting.popleft()
                yield before, read.result()
        for before, read in waiting:
            yield before, read.result()
    finally:
        # Whoever looks at no more of them waits for none.
        pool.shutdown(wait=False, cancel_futures=True)
