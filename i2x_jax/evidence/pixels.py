"""Evidence sent down to the pixels: integrated gradients through the whole network (DESIGN 2.4).

Sundararajan, Taly, Yan 2017, arXiv:1703.01365. The way begins at an image that is nothing but the median level of the
image itself, so that neither black nor any other colour counts as nothing. What passes one prototype alone is the
conductance of its locations (Dhamdhere, Sundararajan, Yan 2018, arXiv:1805.12233): over all prototypes it adds up to
the whole, behind any head, and behind a pool and a linear layer each is a prototype's contribution sent down.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2x_jax.devices.compilation import jit
from i2x_jax.models.model import Model, Variables

# Of the midpoint rule: each is one forward and one backward pass of the whole network.
POINTS = 16


class PixelEvidence(NamedTuple):
    """What each pixel of an image tells the network.

    Attributes:
      evidence: float32 `[H, W]`, signed, in logits, summed over the channels.
      before: the logit, or the difference of two, of an image of nothing but this one's median level.
      after: that of the image itself. All of `evidence` adds up to `after - before`, less what the points of the way
        missed; where only a prototype's share was asked for, the shares of all prototypes do.
    """

    evidence: np.ndarray
    before: float
    after: float


def level_of(images: np.ndarray) -> np.ndarray:
    """Images of nothing but the median level of each, channel by channel: float32, as images `[B, H, W, C]`."""
    level = np.median(images, axis=(1, 2), keepdims=True).astype(np.float32)
    return np.broadcast_to(level, images.shape)


@functools.partial(jit, inference=True, static_argnames="model")
def path_pixels(
    model: Model,
    variables: Variables,
    start: jax.Array,
    images: jax.Array,
    toward: jax.Array,
    held: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Integrated gradients of weighted logits along the straight line between images, by midpoints.

    Args:
      model: the classifier, which must take images in floats.
      variables: of it.
      start: float `[B, H, W, C]`, 0 to 255, where the lines begin.
      images: float `[B, H, W, C]`, 0 to 255, where they end.
      toward: `[B, M]`, weights on the logits: one of a class, or 1 and -1 of two.
      held: bool `[B, h, w]`, the locations of the map that count; None for all.

    Returns:
      Evidence float32 `[B, H, W]`, and the weighted logits `[B]` of both ends.
    """

    def weighted(images):
        tapped = model.cut(variables, images)
        if held is not None:
            stopped = jax.lax.stop_gradient(tapped)
            tapped = stopped._replace(features=jnp.where(held[..., None], tapped.features, stopped.features))
        return (model.logits_of(variables, tapped) * toward).sum(-1)

    away = images - start

    def add_point(total, place):
        return total + jax.grad(lambda images: weighted(images).sum())(start + place * away), None

    with jax.default_matmul_precision("highest"):
        places = (jnp.arange(POINTS, dtype=images.dtype) + 0.5) / POINTS
        total, _ = jax.lax.scan(add_point, jnp.zeros_like(images), places)
        return (total * away / POINTS).sum(-1), weighted(start), weighted(images)
