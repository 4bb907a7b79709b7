"""Whether a user's two functions do what the steps of a run take for granted."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from i2x_jax.config import InputError
from i2x_jax.devices.compilation import jit
from i2x_jax.devices.mesh import fetch, replicate
from i2x_jax.models.model import Model

# So many images are looked at together, and each alone.
IMAGES_TRIED = 32
# What rounding may do: half precision keeps 8 bits, and a batch of another size is summed in another order. BatchNorm
# by the batch and dropout are beyond it by far.
SAME = 0.05
# Sums of 1 that were rounded, in half precision too.
ADDS_UP = 1e-2


def check_promises(model: Model, variables: Any, images: np.ndarray) -> None:
    """Raises `InputError` where a user's functions are not those of a network in use, which returns logits.

    Args:
      model: whose features and head are tried.
      variables: of one checkpoint.
      images: uint8 `[N, H, W, C]`, of which a few all over are tried.
    """
    count = images.shape[0]
    tried = images[np.linspace(0, count - 1, min(count, IMAGES_TRIED)).astype(int)]
    variables = replicate(variables)

    def both():
        """Traced anew with each call: what is drawn outside of JAX is then drawn anew."""

        def tapped_and_logits(variables, images):
            tapped = model.cut(variables, images)
            return tapped, model.logits_of(variables, tapped)

        return jit(tapped_and_logits, inference=True)

    tapped, logits = _compared(both(), variables, tried, both)
    if not np.isfinite(logits).all():
        return  # said of the step at which it happens, with its number
    if logits.shape[1] > 1 and are_probabilities(logits):
        raise InputError(
            f"`head` returned probabilities for all of {len(tried)} images: none is negative, and those of an image "
            "add up to 1; allowed: logits; leave the softmax out of `head`"
        )
    if logits.shape[1] > 1 and are_shares(logits):
        raise InputError(
            f"`head` returned {logits.min():.3g} to {logits.max():.3g} for {len(tried)} images, all within 0 and 1, as "
            "a sigmoid does; allowed: logits whose softmax is the confidence; leave the sigmoid out of `head`; a "
            "network that may see several classes in an image cannot be explained"
        )
    heads = jit(model.logits_of, inference=True)
    each = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], tapped) for i in range(len(tried))]
    alone = np.concatenate([fetch(heads(variables, one)) for one in each])
    if _differ(alone, logits):
        raise InputError(
            f"`head` returns other logits for an image alone than beside others: {_moved(alone, logits)}; allowed: "
            "each sample for itself; switch training off in `head` (dropout, BatchNorm by the batch)"
        )
    if not _sees_the_map(model, variables, tapped):
        raise InputError(
            f"`head` does not depend on the map that it is given, for any of {len(tried)} images; allowed: logits of "
            "that map; cut the network where all that decides passes through"
        )


def _compared(program, variables, tried, again: Callable[[], Callable]):
    """What crosses the tap, and logits, of all images together, once they are known to be those of each image alone."""
    tapped, logits = fetch(program(variables, tried))
    alone = [fetch(program(variables, tried[i : i + 1])) for i in range(len(tried))]
    each_tapped, each_logits = jax.tree.map(lambda *parts: np.concatenate(parts), *alone)
    if not _any_differs(each_tapped, tapped):
        return tapped, logits
    repeated = fetch(again()(variables, tried))
    if _any_differs(repeated[0], tapped):
        raise InputError(
            f"`features` returns another map for the same images the second time: {_moved(repeated[1], logits)}; "
            "allowed: a function without chance; switch dropout and random augmentation off in `features`"
        )
    raise InputError(
        f"`features` returns another map for an image alone than beside others: {_moved(each_logits, logits)}; "
        "allowed: the network as it is used; switch training off in `features` (BatchNorm with running averages, no "
        "dropout)"
    )


def are_probabilities(logits: np.ndarray) -> bool:
    """Whether no number of `[B, M]` is negative and every row adds up to one."""
    return bool((logits >= 0).all() and np.allclose(logits.sum(1), 1, rtol=0, atol=ADDS_UP))


def are_shares(logits: np.ndarray) -> bool:
    """Whether all numbers of `[B, M]` lie from 0 to 1, and are not all the same."""
    return bool((logits >= 0).all() and (logits <= 1).all() and np.ptp(logits) > 0)


def _sees_the_map(model, variables, tapped):
    """Whether any logit has a gradient to the map; a network whose logits are all the same is let pass."""
    logits, pull = jax.vjp(model.head_of(variables, tapped.beside), jnp.asarray(tapped.features))
    # Classes weigh differently: what all logits have in common is no logit's own.
    (gradient,) = pull(jnp.broadcast_to(jnp.arange(1.0, logits.shape[1] + 1), logits.shape))
    return bool(np.asarray(gradient).any()) or not np.ptp(np.asarray(logits))


def _any_differs(one, other):
    return any(map(_differ, jax.tree.leaves(one), jax.tree.leaves(other)))


def _differ(one, other):
    """Whether arrays `[B, ...]` differ in some sample by more than rounding does, measured by their lengths."""
    one, other = (np.asarray(each, np.float64).reshape(len(each), -1) for each in (one, other))
    # An image whose own map is about zero is measured by the others.
    size = np.maximum(np.linalg.norm(other, axis=1), np.sqrt((other**2).sum(1).mean()))
    return bool((np.linalg.norm(one - other, axis=1) > SAME * size).any())


def _moved(one, other):
    confidence = (np.asarray(jax.nn.softmax(jnp.asarray(logits))) for logits in (one, other))
    moved = np.abs(np.subtract(*confidence)).max()
    return f"the confidence in a class moves by up to {moved:.2f}"
