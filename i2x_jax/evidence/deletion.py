"""Taking the places of a prototype out of an image's pixels, and what may be put there instead (DESIGN 2.14)."""

import functools

import jax
import numpy as np

from i2x_jax.devices.compilation import jit
from i2x_jax.evidence.geometry import cell_edges
from i2x_jax.evidence.measuring import in_type
from i2x_jax.evidence.saliency import contributions, saliency_maps
from i2x_jax.models.model import Model, Tapped, Variables
from i2x_jax.models.places import Places

# What is put where something is taken away: nothing, the mean colour, the image itself blurred, another image.
FILLS = ("black", "mean", "blur", "other")
# Deviation of the Gaussian that blurs, in sides of the image.
BLUR = 0.15


def pixel_locations(
    places: Places, map_shape: tuple[int, int], image_shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The location nearest to each pixel: rows int `[H]` and columns int `[W]` of the map.

    Args:
      places: where the locations lie.
      map_shape: (h, w).
      image_shape: (H, W).
    """
    rows, columns = (
        np.searchsorted(cell_edges(span, count, length)[1:-1], np.arange(length) + 0.5, side="right")
        for span, count, length in zip(places, map_shape, image_shape, strict=True)
    )
    return rows, columns


def pixel_prototypes(assignments: np.ndarray, places: Places, image_shape: tuple[int, int]) -> np.ndarray:
    """The prototype of every pixel, that of the location nearest to it: int `[n, H, W]`.

    Args:
      assignments: int `[n, h, w]`.
      places: where the locations lie.
      image_shape: (H, W).
    """
    rows, columns = pixel_locations(places, assignments.shape[1:], image_shape)
    return np.asarray(assignments)[:, rows[:, None], columns]


def filling(images: np.ndarray, fill: str, colour: np.ndarray) -> np.ndarray:
    """What is put into images where something is taken away, of their shape and type.

    Args:
      images: `[n, H, W, C]`.
      fill: of `FILLS`; 'other' is the image half of them farther on, itself where there is one alone.
      colour: `[C]`, the mean colour.
    """
    if fill == "black":
        return np.zeros_like(images)
    if fill == "mean":
        return np.broadcast_to(in_type(colour, images.dtype), images.shape)
    if fill == "other":
        return np.roll(images, -(len(images) // 2), axis=0)
    from scipy.ndimage import gaussian_filter

    wide = BLUR * min(images.shape[1:3])
    return in_type(gaussian_filter(images.astype(np.float32), (0, wide, wide, 0)), images.dtype)


def deleted(images: np.ndarray, gone: np.ndarray, put: np.ndarray) -> np.ndarray:
    """Images `[n, H, W, C]` with the pixels `gone` (bool `[n, H, W]`) replaced by those of `put`, of the same shape."""
    return np.where(gone[..., None], put, images)


def ink(images: np.ndarray) -> np.ndarray:
    """How far each pixel is from the median level of its image, summed over channels: float32 `[n, H, W]`."""
    levels = np.asarray(images, np.float32)
    return abs(levels - np.median(levels, axis=(1, 2), keepdims=True)).sum(-1)


def by_prototype(values: np.ndarray, of: np.ndarray, num_prototypes: int) -> np.ndarray:
    """Sums of pixel values `[n, H, W]` by the prototype `of` each pixel: float64 `[n, K]`."""
    n = len(values)
    cells = of.reshape(n, -1) + num_prototypes * np.arange(n)[:, None]
    sums = np.bincount(cells.ravel(), np.asarray(values, np.float64).ravel(), n * num_prototypes)
    return sums.reshape(n, num_prototypes)


@functools.partial(jit, inference=True, static_argnames="model")
def logits_of(model: Model, variables: Variables, tapped: Tapped) -> jax.Array:
    """Logits float32 `[B, M]` of what crosses the tap, jitted."""
    with jax.default_matmul_precision("highest"):
        return model.logits_of(variables, tapped)


@functools.partial(jit, inference=True, static_argnames=("model", "cam"))
def owed(
    model: Model, variables: Variables, tapped: Tapped, blank: jax.Array, kept: jax.Array, cam: str
) -> tuple[jax.Array, jax.Array]:
    """What the logits of some classes owe to each location, and saliency of the first of them.

    Args:
      model: the classifier.
      variables: of it.
      tapped: of a batch.
      blank: `[1, h, w, d]`, features of the blank image.
      kept: int `[B, R]`, the classes.
      cam: one of `saliency.RULES`.

    Returns:
      `[B, h, w, R]` and `[B, h, w]`, in logits.
    """
    maps = saliency_maps(model, variables, tapped.features, kept[:, 0], cam=cam, beside=tapped.beside)
    return contributions(model, variables, tapped, blank, kept), maps
