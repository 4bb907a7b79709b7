"""A classifier cut in two: the type that every step takes (DESIGN 2.1)."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from i2x_jax.models.places import Places

Variables = dict[str, Any]  # {"params": ..., "batch_stats": ...}, nested dicts of arrays


class Tapped(NamedTuple):
    """What crosses the tap of a network, of a batch: all that the head is given.

    Attributes:
      features: float32 `[B, h, w, d]`.
      beside: `[B, ...]`, what goes round the map, such as a class token; None where nothing does.
    """

    features: jax.Array
    beside: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Model:
    """A classifier cut in two at its tap; pure functions of plain dicts, to be jitted by the caller.

    Attributes:
      features: `(variables, images) -> float32 [B, h, w, d]`; images are 0 to 255, uint8 or float; BatchNorm uses the
        statistics in `variables`.
      head: `(variables, features) -> float32 logits [B, M]`; of a network that has `tapped` `(variables, features,
        beside)`.
      init: `key -> variables`.
      train_logits: `(variables, images) -> (logits, batch_stats)` with the batch's own statistics, and the running
        averages (momentum 0.9) that follow from them.
      batch_statistics: `(variables, images) -> batch_stats`: exactly the mean and variance of every BatchNorm input
        over these images.
      linear_head: `variables -> (weights [d, M], bias [M])` where the head is a global average pool and a linear layer,
        else None.
      feature_shape: (h, w, d).
      places: where in the image the locations of the map lie, and what they see.
      tap: the stage after which the network is cut.
      tapped: `(variables, images) -> Tapped`, of a network of which something goes round the map; else None.

    A network of a user's own, which is not trained here, has no `init`, `train_logits` and `batch_statistics`.
    """

    features: Callable[[Variables, jax.Array], jax.Array]
    head: Callable[[Variables, jax.Array], jax.Array]
    init: Callable[[jax.Array], Variables] | None
    train_logits: Callable[[Variables, jax.Array], tuple[jax.Array, dict]] | None
    batch_statistics: Callable[[Variables, jax.Array], dict] | None
    linear_head: Callable[[Variables], tuple[jax.Array, jax.Array]] | None
    feature_shape: tuple[int, int, int]
    places: Places
    tap: str
    tapped: Callable[[Variables, jax.Array], Tapped] | None = None

    def cut(self, variables: Variables, images: jax.Array) -> Tapped:
        """All that the head takes of these images."""
        return self.tapped(variables, images) if self.tapped else Tapped(self.features(variables, images))

    def logits_of(self, variables: Variables, tapped: Tapped) -> jax.Array:
        """Logits float32 `[B, M]` of what crosses the tap."""
        return self.head_of(variables, tapped.beside)(tapped.features)

    def logits(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Logits float32 `[B, M]` of images."""
        return self.logits_of(variables, self.cut(variables, images))

    def head_of(self, variables: Variables, beside: jax.Array | None) -> Callable[[jax.Array], jax.Array]:
        """The head as a function of the map alone, `[B, h, w, d] -> [B, M]`; of a single map `[1, h, w, d]` too."""
        if beside is None:
            return lambda features: self.head(variables, features)
        return lambda features: self.head(
            variables, jnp.broadcast_to(features, (len(beside), *features.shape[1:])), beside
        )

    @property
    def receptive_field(self) -> int:
        """Side in pixels of the square that holds all that one location of the map depends on."""
        return self.places.side


class Tap(NamedTuple):
    """A place where a network can be cut in two.

    Attributes:
      name: of the stage after which it is cut.
      feature_shape: (h, w, d) of the map there.
      places: where in the image its locations lie, and what they see.
    """

    name: str
    feature_shape: tuple[int, int, int]
    places: Places
