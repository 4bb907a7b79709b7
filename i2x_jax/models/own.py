"""What is found out about a network of a user's own: whether its head is pooled and linear, where a layer cuts it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from i2x_jax.config import InputError

# Rounding of a head that is called another way; a layer that others go round misses by far more.
SAME_LOGITS = 1e-2


def linear_head_of(
    head: Callable[[Any, jax.Array], jax.Array], feature_shape: tuple[int, int, int]
) -> Callable[[Any], tuple[jax.Array, jax.Array]]:
    """`variables -> (weights [d, M], bias [M])` of a head, were it a global average pool and a linear layer.

    Whether it is one shows on images: then both give its logits.

    Args:
      head: `(variables, features [B, h, w, d]) -> logits [B, M]`.
      feature_shape: (h, w, d).
    """

    def closed(variables):
        nothing = jnp.zeros((1, *feature_shape))
        with jax.default_matmul_precision("highest"):
            # Every location at one level: the gradient is the sum over all of them.
            bias, pull = jax.vjp(lambda level: head(variables, nothing + level)[0], nothing[0, 0, 0])
            # One class at a time: of many, the maps of all would not fit.
            rows = jax.lax.map(lambda one: pull(one)[0], jnp.eye(len(bias)))
        return rows.T, bias

    return closed


def pooled(closed: Callable) -> Callable[[Any, jax.Array], jax.Array]:
    """The head `(variables, features) -> logits` that a closed form stands for, in float32."""

    def head(variables, features):
        weights, bias = closed(variables)
        return jnp.matmul(features.mean((1, 2)), weights, precision="highest") + bias

    return head


def nnx_functions(net: nnx.Module, layer: str, images: np.ndarray) -> tuple[Callable, Callable]:
    """`features` and `head` of a Flax NNX network in use, cut behind one of its layers.

    Args:
      net: called with images it returns logits; it is left as it is.
      layer: its name, such as 'conv2' or 'blocks.3'.
      images: `[n, H, W, C]`, a few, on which it is tried.

    Returns:
      `(variables, images) -> map` and `(variables, map) -> logits`; variables are `nnx.state(net,
      nnx.Not(nnx.RngState))`, what is drawn at random left out.

    Raises:
      InputError: no such layer, or one that is not all that the logits depend on.
    """
    graph, chance, variables = nnx.split(net, nnx.RngState, ...)
    names = [".".join(map(str, path)) for path, _ in nnx.iter_modules(net) if path]
    if layer not in names:
        raise InputError(f"unknown layer {layer!r}; allowed: {', '.join(sorted(names))}; name one of them")
    shape = images.shape[1:]

    def run(variables, images, given=None):
        """Logits, and what the layer returned; or what the network makes of another return of the layer."""
        whole, seen = nnx.merge(graph, chance, variables), []
        whole.eval()
        *path, name = layer.split(".")
        parent = functools.reduce(_child, path, whole)
        own = _child(parent, name)

        def instead(*arguments, **named):
            seen.append(own(*arguments, **named) if given is None else given)
            return seen[-1]

        if name.isdigit():
            parent[int(name)] = instead
        else:
            setattr(parent, name, instead)
        return whole(images), seen

    def features(variables, images):
        return run(variables, images)[1][-1]

    def head(variables, map_):
        # What lies before the layer is computed of nothing, and not used.
        return run(variables, jnp.zeros((len(map_), *shape), images.dtype), map_)[0]

    logits, seen = run(variables, images)
    cut = head(variables, seen[-1]) if len(seen) == 1 else None
    if cut is None or not np.allclose(cut, logits, rtol=SAME_LOGITS, atol=SAME_LOGITS * np.abs(logits).max()):
        what = f"is passed {len(seen)} times" if cut is None else "is not all that the logits depend on"
        raise InputError(
            f"layer {layer!r} {what}; allowed: a layer that is passed once and by everything; name another, or give "
            "OwnModel `features` and `head` of your own"
        )
    return features, head


def _child(parent, name):
    return parent[int(name)] if name.isdigit() else getattr(parent, name)
