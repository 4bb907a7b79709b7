"""Acting on prototypes: where their cue is in the pixels, and what training does to it there (DESIGN 2.13).

Masks are made on the host, from the assignments of the run; what is done to a batch is done on its device, inside the
training step and before the augmentation, which would move the cue off its mask. No image is rewritten on disk.

Acting on what a saliency method found after Anders et al. 2022 (arXiv:1912.11425), who add a direction to features or
project it away; here pixels are exchanged.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2x_jax.data.source import Images
from i2x_jax.evidence.geometry import location_centres
from i2x_jax.models.places import Places

# What may be done to the images of a batch; an action is known inside a program by its number here.
KINDS = ("plain", "swap", "paste", "fill_mean", "fill_blur", "random_patch", "cutout")
# Of the union of a cue's locations, the share that a place holds.
PLACE_SHARE = 0.9
# Share of the image that a mask may cover: beyond it, images would have another image's content and the old label.
MOST_COVERED = 0.5
# Side in pixels of the square whose mean a blurred pixel is.
BLUR = 7

# From rows of a data set to where their cue is in the pixels, bool `[n, H, W]`.
Masks = Callable[[np.ndarray], np.ndarray]


def dilated(cells: np.ndarray) -> np.ndarray:
    """Cells bool `[..., h, w]` and the eight around each: what a cue reaches into is not always assigned to it."""
    for axis in (-2, -1):
        before, after = np.zeros_like(cells), np.zeros_like(cells)
        low, high = ([slice(None)] * cells.ndim for _ in range(2))
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        before[tuple(low)], after[tuple(high)] = cells[tuple(high)], cells[tuple(low)]
        cells = cells | before | after
    return cells


def place_cells(cells: np.ndarray) -> np.ndarray:
    """The fewest cells that hold `PLACE_SHARE` of all that are set in cells bool `[N, h, w]`: bool `[h, w]`.

    Of cells that hold as many, those first by row and column; no cell where nothing is set.
    """
    counts = cells.sum(0, dtype=np.int64).ravel()
    ranked = np.argsort(-counts, kind="stable")
    held = np.cumsum(counts[ranked])
    found = np.zeros(counts.shape, bool)
    if held[-1]:
        found[ranked[: 1 + int(np.argmax(held >= PLACE_SHARE * held[-1]))]] = True
    return found.reshape(cells.shape[1:])


def pixel_masks(cells: np.ndarray, places: Places, image_shape: tuple[int, ...]) -> np.ndarray:
    """Where cells bool `[..., h, w]` of the map are in the image: bool `[..., H, W]`.

    Along each axis a location has the pixels from one stride before its centre up to, and without, one stride behind.

    Args:
      cells: of the map.
      places: where its locations are centred.
      image_shape: (H, W, ...).
    """
    centres = location_centres(places, cells.shape[-2:])
    rows, columns = (
        inside_boxes(np.arange(length), middle, span.stride)
        for length, middle, span in zip(image_shape[:2], (centres[:, 0, 0], centres[0, :, 1]), places, strict=True)
    )
    return (np.float32(rows) @ cells @ np.float32(columns).T) > 0


def inside_boxes(pixels: np.ndarray, centres: np.ndarray, stride: float) -> np.ndarray:
    """Which pixels `[L]` are within `[centre - stride, centre + stride)` of which centre `[n]`: bool `[L, n]`."""
    offset = pixels[:, None] - centres
    return (-stride <= offset) & (offset < stride)


def masks_of(mask: str, cells: np.ndarray, trained: np.ndarray, places: Places, image_shape: tuple[int, ...]) -> Masks:
    """Where a cue is in the pixels of a set.

    Args:
      mask: 'pattern', its own locations in each image and those around them; or 'place', the same in all images.
      cells: bool `[n, h, w]`, its locations in the images of the set.
      trained: those in the training images, which say what its place is.
      places: of the map.
      image_shape: (H, W, ...).
    """
    if mask == "pattern":
        wide = dilated(cells)
        return lambda rows: pixel_masks(wide[rows], places, image_shape)
    place = pixel_masks(place_cells(trained), places, image_shape)
    return lambda rows: np.broadcast_to(place, (len(rows), *place.shape))


def exchanged(images: jax.Array, others: jax.Array, masks: jax.Array) -> jax.Array:
    """Images `[B, H, W, C]` with the pixels of others where masks bool `[B, H, W]` are set."""
    return jnp.where(masks[..., None], others, images)


def swap(images: jax.Array, masks: jax.Array, donors: jax.Array) -> jax.Array:
    """Every image with its donor's pixels where the mask of either is set; labels stay, so that the cue tells none.

    Args:
      images: `[B, H, W, C]`.
      masks: bool `[B, H, W]`.
      donors: int `[B]`, a permutation of the batch.
    """
    return exchanged(images, images[donors], masks | masks[donors])


def paste(images: jax.Array, masks: jax.Array, donors: jax.Array) -> jax.Array:
    """Every image with its donor's pixels where the donor's mask is set; its own cue stays. Arguments as in `swap`."""
    return exchanged(images, images[donors], masks[donors])


def fill(images: jax.Array, masks: jax.Array, colour: jax.Array) -> jax.Array:
    """Images with one colour `[B, C]`, 0 to 255, where masks are set."""
    return exchanged(images, jnp.round(colour)[:, None, None].astype(images.dtype), masks)


def blurred(images: jax.Array) -> jax.Array:
    """Images `[B, H, W, C]`, each pixel the mean of a square of `BLUR` pixels, edges replicated."""
    reach = BLUR // 2
    padded = jnp.pad(images.astype(jnp.float32), ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    for axis in (1, 2):
        length = images.shape[axis]
        padded = sum(jax.lax.slice_in_dim(padded, i, i + length, axis=axis) for i in range(BLUR)) / BLUR
    return jnp.round(padded).astype(images.dtype)


def patches(key: jax.Array, areas: jax.Array, height: int, width: int) -> jax.Array:
    """Squares of about so many pixels, each at a random place inside its image: bool `[B, height, width]`.

    Args:
      key: a jax random key.
      areas: int `[B]`; the side is the rounded root, at most that of the image; 0 for no square.
      height: of the images.
      width: of the images.
    """
    side = jnp.minimum(jnp.round(jnp.sqrt(areas.astype(jnp.float32))).astype(jnp.int32), min(height, width))
    draws = jax.random.uniform(key, (2, len(areas)))
    inside = []
    for draw, length in zip(draws, (height, width), strict=True):
        first = jnp.floor(draw * (length - side + 1)).astype(jnp.int32)[:, None]
        inside.append((jnp.arange(length) >= first) & (jnp.arange(length) < first + side[:, None]))
    return inside[0][:, :, None] & inside[1][:, None, :]


class Acting(NamedTuple):
    """A batch of images, and what a training step does to them before it augments them.

    One program serves all actions: which it is, is a number.

    Attributes:
      images: uint8 `[B, H, W, C]`.
      masks: bool `[B, H, W]`, where the cue is.
      areas: int32 `[B]`, pixels of the squares that 'random_patch' and 'cutout' draw.
      colour: float32 `[B, C]`, what is filled in.
      kind: int32 `[B]`, an index into `KINDS`, the same of all.
    """

    images: jax.Array
    masks: jax.Array
    areas: jax.Array
    colour: jax.Array
    kind: jax.Array

    def changed(self, key: jax.Array) -> jax.Array:
        """The images uint8 `[B, H, W, C]` as the action leaves them; donors and squares are drawn with the key."""
        images, masks = self.images, self.masks
        donors, squares = donors_of(key, len(images)), patches(squares_key(key), self.areas, *images.shape[1:3])
        made = {
            "swap": swap(images, masks, donors),
            "paste": paste(images, masks, donors),
            "fill_mean": fill(images, masks, self.colour),
            "fill_blur": exchanged(images, blurred(images), masks),
            "random_patch": swap(images, squares, donors),
            "cutout": fill(images, squares, self.colour),
        }
        for name, others in made.items():
            images = jnp.where((self.kind == KINDS.index(name))[:, None, None, None], others, images)
        return images


def donors_of(key: jax.Array, count: int) -> jax.Array:
    """The donor of each image of a batch: int `[count]`, a permutation."""
    return jax.random.permutation(jax.random.fold_in(key, 0), count)


def squares_key(key: jax.Array) -> jax.Array:
    """The key that squares are drawn with: donors are drawn with another."""
    return jax.random.fold_in(key, 1)


class Acted:
    """Images by row, each with what is done to it in training: rows give an `Acting` of NumPy arrays.

    Attributes:
      shape: (N, H, W, C).
      dtype: uint8.
    """

    def __init__(
        self, images: Images, kind: str, masks: Masks | None = None, colour: np.ndarray | float = 0, area: int = 0
    ):
        """What every batch needs.

        Args:
          images: N of them.
          kind: one of `KINDS`.
          masks: where the cue is; None where nothing is done.
          colour: `[C]` or one number, what is filled in.
          area: pixels of the squares that are drawn; 0 for as many as the image's own mask has.
        """
        self._images, self._kind, self._masks, self._colour, self._area = images, kind, masks, colour, area
        self.shape, self.dtype = images.shape, images.dtype

    def __getitem__(self, rows: np.ndarray) -> Acting:
        """The images of some rows, and what is done to them."""
        images = self._images[rows]
        count, height, width, channels = images.shape
        masks = np.zeros((count, height, width), bool) if self._masks is None else self._masks(rows)
        areas = np.full(count, self._area) if self._area else masks.sum((1, 2))
        colour = np.broadcast_to(np.float32(self._colour), (count, channels))
        return Acting(images, masks, np.int32(areas), colour, np.full(count, KINDS.index(self._kind), np.int32))


class Swapped:
    """Images as the swap leaves them, each with a donor of its own, drawn once; see `source.Images`."""

    def __init__(self, images: Images, masks: Masks, donors: np.ndarray):
        self._images, self._masks, self._donors = images, masks, donors
        self.shape, self.dtype = images.shape, images.dtype

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        """See `Images`."""
        rows = np.arange(self.shape[0])[rows]
        both = self._masks(rows) | self._masks(self._donors[rows])
        return np.where(both[..., None], self._images[self._donors[rows]], self._images[rows])


def balanced_rows(labels: np.ndarray, holds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows int `[N]`, drawn so that holding the cue does not depend on the class.

    Each class keeps its number of samples; in each, as large a share holds the cue as in all classes together. Of a
    class in which none, or all, hold it, nothing can be drawn to make that so: it keeps its own.

    Args:
      labels: int `[N]`.
      holds: bool `[N]`, whether a sample holds the cue.
      rng: draws, with replacement.
    """
    rows, share = np.arange(len(labels)), holds.mean()
    drawn = []
    for label in np.unique(labels):
        own = rows[labels == label]
        with_cue, without = own[holds[own]], own[~holds[own]]
        if len(with_cue) and len(without):
            wanted = round(share * len(own))
            own = np.concatenate([rng.choice(with_cue, wanted), rng.choice(without, len(own) - wanted)])
        drawn.append(own)
    return np.concatenate(drawn)


def holding_rows(cells: np.ndarray, labels: np.ndarray, most: float) -> np.ndarray:
    """The samples of each class that hold most of the cue, ascending: those that 'leave_out' leaves out.

    Args:
      cells: bool `[N, h, w]`, its locations.
      labels: int `[N]`.
      most: share of a class that may be left out, at most.
    """
    size, found = cells.sum((1, 2)), []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        ranked = own[np.argsort(-size[own], kind="stable")]
        found.append(ranked[: int(most * len(own))])
    rows = np.sort(np.concatenate(found))
    return rows[size[rows] > 0]
