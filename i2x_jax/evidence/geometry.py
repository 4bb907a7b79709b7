"""Where locations of the feature map lie in the image: centres, receptive fields, crops around peaks (DESIGN 2.3).

Pixel i stands at i, as in `models.places`: a crop of an odd side around an integral centre is centred exactly.
"""

import itertools
from collections.abc import Callable

import jax
import numpy as np

from i2x_jax.models.model import Model, Variables
from i2x_jax.models.places import Places, Span

# Locations at either end of an axis whose gradient is taken. There the far side of a field is cut last, and two fields
# that are not cut there give the stride.
PROBED = 3
NOISE = ((0, 1), (0, 0.25), (0.75, 1))  # shares of the range of levels; what is closed to one may be open to another
# Pixels are added in multiples of this, so that strides of 2, 3 and their products still meet the border as before:
# padding that depends on what is left over by a stride ('SAME') stays the same.
ADDED = 96


def location_centres(places: Places, map_shape: tuple[int, int]) -> np.ndarray:
    """Centre of every location of a map, in pixels (row, column): float `[h, w, 2]`.

    Args:
      places: of the map.
      map_shape: (h, w).
    """
    return centres_of(places, np.stack(np.indices(map_shape), -1))


def centres_of(places: Places, locations: np.ndarray) -> np.ndarray:
    """Centre of what each location `[..., 2]` (row, column of the map) sees, in pixels: float `[..., 2]`."""
    return np.array([span.start for span in places]) + np.array([span.stride for span in places]) * locations


def cell_edges(span: Span, count: int, length: int) -> np.ndarray:
    """Where, along one axis, the pixels that are nearest to a location end and those nearest to the next begin.

    Args:
      span: of the axis.
      count: locations along it.
      length: of the image along it, in pixels.

    Returns:
      Rising float `[count + 1]`, from 0, before the first pixel, to `length`, behind the last.
    """
    # An edge lies between the centres of two locations; pixel i reaches from i to i + 1 when counted by edges.
    between = span.start + span.stride * (np.arange(1, count) - 0.5) + 0.5
    return np.concatenate([[0], np.clip(between, 0, length), [length]])


def peaks_of(
    assignments: np.ndarray, maps_of: Callable[[np.ndarray], np.ndarray], prototype: int, rows: np.ndarray
) -> np.ndarray:
    """Where, among the locations of a prototype, each of these samples is most salient: int `[n, 2]`.

    Every sample must have a location of the prototype.

    Args:
      assignments: int `[N, h, w]`.
      maps_of: from rows to their saliency maps `[n, h, w]`.
      prototype: its id.
      rows: int `[n]`, which samples.

    Returns:
      Row and column on the feature map.
    """
    here = assignments[rows] == prototype
    if not len(rows):
        return np.zeros((0, 2), int)
    peak = np.where(here, maps_of(rows), -np.inf).reshape(len(rows), -1).argmax(-1)
    return np.stack(np.unravel_index(peak, here.shape[1:]), -1)


def saliency_crops(images: np.ndarray, maps: np.ndarray, places: Places, size: int) -> np.ndarray:
    """For each image the square centred on the map's largest location, edges padded by replication.

    Args:
      images: `[B, H, W, C]`.
      maps: `[B, h, w]`; the first of equal maxima counts.
      places: of the map.
      size: side in pixels: the receptive field of the tap, capped at half the image (`crop_size`).

    Returns:
      `[B, size, size, C]`, dtype of `images`.
    """
    peaks = np.unravel_index(np.asarray(maps).reshape(len(maps), -1).argmax(-1), maps.shape[1:])
    return crops_at(images, np.stack(peaks, -1), places, size)


def crops_at(images: np.ndarray, locations: np.ndarray, places: Places, size: int) -> np.ndarray:
    """Squares centred on given locations `[B, 2]` (row, column) of the feature map; see `saliency_crops`."""
    _, height, width, _ = images.shape
    corners = crop_corners(locations, places, size)
    reach = np.arange(size)
    rows = np.clip(corners[:, :1] + reach, 0, height - 1)
    columns = np.clip(corners[:, 1:] + reach, 0, width - 1)
    return images[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]


def crop_corners(locations: np.ndarray, places: Places, size: int) -> np.ndarray:
    """First row and column, in pixels, of the squares of `size` centred on locations `[B, 2]`: int `[B, 2]`.

    They may lie outside the image, where a crop is padded. Where no square of whole pixels has that centre, it is the
    one half a pixel farther.
    """
    return np.floor(centres_of(places, locations) - (size - 1) / 2 + 0.5).astype(int)


def crop_size(model: Model, image_shape: tuple[int, ...]) -> int:
    """Side in pixels of the crops: the receptive field of the tap, capped at half the image."""
    return max(1, min(model.receptive_field, min(image_shape[:2]) // 2))


def by_cells(image_shape: tuple[int, ...], map_shape: tuple[int, int]) -> Places:
    """Locations as equal cells that fill the image, each of which may see all of it: where no more is known."""
    strides = [pixels / count for pixels, count in zip(image_shape[:2], map_shape, strict=True)]
    return Places(*(Span((s - 1) / 2, s, pixels) for s, pixels in zip(strides, image_shape[:2], strict=True)))


def measured_places(
    features: Callable[[Variables, jax.Array], jax.Array], variables: Variables, images: np.ndarray
) -> Places:
    """Centres and receptive fields of any network, from where the gradient of its map is not zero.

    The first and last locations of an axis tell where fields end and begin, if no border cuts them. If one does, larger
    images are tried, which most networks can be given. Where that does not help either (a statistic over the whole map,
    attention, no gradient at all), the axis is taken `by_cells`.

    Args:
      features: `(variables, float images [B, H, W, C]) -> [B, h, w, d]`.
      variables: which leave some ReLU open on any path: best those of the last checkpoint.
      images: `[n, H, W, C]`, a few of those that the network is used on; noise is looked at beside them.
    """
    variables = jax.device_put(variables)

    @jax.jit
    def slope(variables, image, weights):
        return jax.grad(lambda image: (features(variables, image[None])[0] * weights).sum())(image)

    def map_shape(images):
        return jax.eval_shape(features, variables, jax.ShapeDtypeStruct(images[:1].shape, images.dtype)).shape[1:]

    def measured(axis, added):
        probes = _probes(images, axis, added)
        shape = map_shape(probes)
        places = [i for i in range(shape[axis]) if min(i, shape[axis] - 1 - i) < PROBED]
        touched = []
        for place in places:
            # All channels, and all locations along the other axis: with weights at random, slopes do not cancel.
            chosen = np.arange(shape[axis]) == place
            weights = np.float32(np.random.default_rng(0).normal(size=shape)) * np.expand_dims(chosen, (1 - axis, 2))
            slopes = [np.asarray(slope(variables, image, weights)) for image in probes]
            nonzero = np.isfinite(slopes) & (np.array(slopes) != 0)
            touched.append(np.moveaxis(nonzero, axis + 1, 0).any((1, 2, 3)))
        span = span_of_support(np.array(places), np.array(touched))
        # A map of a size that does not follow from the image's says nothing of images of another size.
        grown = shape[axis] - own_shape[axis]
        return span if span and grown * span.stride == added else None

    own_shape = map_shape(images)
    spans = list(by_cells(images.shape[1:], own_shape[:2]))
    for axis in (0, 1):
        for added in (0, -(-2 * images.shape[1 + axis] // ADDED) * ADDED):
            try:
                span = measured(axis, added)
            except Exception:
                # The network is somebody else's: it may take no floats, or no images but those of its own shape.
                continue
            if span:
                spans[axis] = span
                break
    return Places(*spans)


def span_of_support(places: np.ndarray, touched: np.ndarray) -> Span | None:
    """The span of an axis from what some of its locations were seen to depend on.

    A pixel may be missing where a ReLU was closed; none is there too many. So fields are as wide as they were seen to
    be at any location whose field no border cuts.

    Args:
      places: int `[n]`, rising, the locations.
      touched: bool `[n, L]`, on which of the L pixels of the axis each depends.

    Returns:
      None where borders, or closed ReLUs, leave stride or field open.
    """
    length = touched.shape[1]
    places, touched = places[touched.any(1)], touched[touched.any(1)]
    first, last = touched.argmax(1), length - 1 - touched[:, ::-1].argmax(1)
    begin, end = first > 0, last < length - 1
    slopes = [
        (edge[j] - edge[i]) / (places[j] - places[i])
        for edge, seen in ((first, begin), (last, end))
        for i, j in itertools.combinations(np.flatnonzero(seen), 2)
    ]
    if not slopes or not begin.any() or not end.any():
        return None
    # The median of all pairs: one edge that was not seen does not move it.
    stride = float(np.median(slopes))
    low, high = (first - stride * places)[begin].min(), (last - stride * places)[end].max()
    return Span(float(low + high) / 2, stride, round(high - low) + 1) if stride > 0 and high >= low else None


def _probes(images, axis, added):
    """Float images `[n, H, W, C]`, repeated along an axis until so many pixels are added, and noise of their shape."""
    larger = np.pad(images, [(0, added * (place == axis + 1)) for place in range(4)], mode="wrap").astype(np.float32)
    rng = np.random.default_rng(0)
    least, most = (0, 255) if images.dtype == np.uint8 else (images.min(), images.max())
    noise = [least + (most - least) * rng.uniform(low, high, larger.shape[1:]) for low, high in NOISE]
    return np.concatenate([larger, np.float32(noise)])
