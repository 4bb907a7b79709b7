"""The ledger: a change of confidence, accounted for exactly over prototypes (DESIGN 2.10).

Between two checkpoints the features at a prototype's places change (it is *seen* better or worse), and the head makes
something else of them (it is *weighed* otherwise). In logits both add up, with the change of the bias, to the change
of every logit. A confidence is no sum of logits; but the logarithmic mean of the two confidences turns a change of
log-confidence into a change of confidence exactly. So each additive part of the logits has a share of the change of
confidence, and the shares add up to it: the additive log-mean index of Vartia (1976) and Sato (1976), "LMDI" in
energy accounting. It needs no quadrature, changes its sign in reversed time, does not see a constant added to all
logits, and adds up to zero over the classes.

Pure functions of one batch, to be called under `jax.jit`; products are in float32 at the highest precision.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Below this a change of log-confidence is so small that its exponential is taken by its series.
SMALL_CHANGE = 1e-4
# Points of the midpoint rule on the straight line from the blank image's features to an image's own.
PATH_POINTS = 16


class Kept(NamedTuple):
    """Which classes of each sample are accounted for, where that is not all of them.

    A share is about the mean over all classes; so that mean is carried along, as one more column.

    Attributes:
      classes: int `[B, R]`.
      mean: `[B, M]`, the weights of that mean, which add up to one.
    """

    classes: jax.Array
    mean: jax.Array


class End(NamedTuple):
    """One end of an interval, of a batch, behind a global average pool and a linear head.

    Attributes:
      sums: `[B, K, d]`, features summed over the locations of each prototype and divided by the number of locations.
      logits: `[B, M]`.
      weights: `[d, M]` of the head, or `[B, d, R+1]` of `columns`.
      bias: `[M]` of the head, or `[B, R+1]`.
    """

    sums: jax.Array
    logits: jax.Array
    weights: jax.Array
    bias: jax.Array


class Parts(NamedTuple):
    """Additive parts of a change of logits, or, by `shares`, of confidence.

    With `Kept` classes logits have R+1 columns, the last of which is their mean over all classes, and confidences R.

    Attributes:
      seeing: `[B, K, M]`, because the features at a prototype's places changed.
      weighing: `[B, K, M]`, because the head changed what it makes of them.
      bias: `[B, M]` or `[1, M]`, what belongs to no place.
    """

    seeing: jax.Array
    weighing: jax.Array
    bias: jax.Array


def prototype_sums(features: jax.Array, assignments: jax.Array, num_prototypes: int) -> jax.Array:
    """Features summed over the locations of each prototype, over the number of locations: `[B, K, d]`.

    Args:
      features: `[B, h, w, d]`.
      assignments: int `[B, h, w]`; ids outside 0..K-1 belong to none.
      num_prototypes: K, static under jit.
    """
    count, height, width, channels = features.shape
    members = jax.nn.one_hot(assignments.reshape(count, -1), num_prototypes, dtype=features.dtype)
    flat = features.reshape(count, -1, channels)
    return jnp.einsum("bnk,bnd->bkd", members, flat, precision="highest") / (height * width)


def keep(classes: jax.Array, before: jax.Array, after: jax.Array) -> Kept:
    """Accounts for some classes of each sample, between two sets of logits.

    Args:
      classes: int `[B, R]`.
      before: logits `[B, M]` at the first end.
      after: logits `[B, M]` at the other.
    """
    means = logarithmic_means(before, after)
    return Kept(classes, means / means.sum(-1, keepdims=True))


def columns(weights: jax.Array, bias: jax.Array, kept: Kept) -> tuple[jax.Array, jax.Array]:
    """A linear head `[d, M]`, `[M]` for the kept classes of each sample and their mean: `[B, d, R+1]`, `[B, R+1]`."""
    with jax.default_matmul_precision("highest"):
        means = (kept.mean @ weights.T)[:, None], (kept.mean @ bias)[:, None]
    rows = jnp.concatenate([weights.T[kept.classes], means[0]], axis=1)
    return jnp.swapaxes(rows, 1, 2), jnp.concatenate([bias[kept.classes], means[1]], axis=1)


def directions(kept: Kept) -> jax.Array:
    """Weights on the logits that give those of the kept classes, and their mean: `[R+1, B, M]`."""
    classes = jax.nn.one_hot(kept.classes.T, kept.mean.shape[1], dtype=kept.mean.dtype)
    return jnp.concatenate([classes, kept.mean[None]])


def toward(head: Callable, features: jax.Array, classes: jax.Array | None) -> jax.Array | None:
    """Weights `[R, B, M]` on the logits of a head that give those of some classes int `[B, R]`; None for all."""
    if classes is None:
        return None
    logits = jax.eval_shape(head, features)
    return jax.nn.one_hot(classes.T, logits.shape[1], dtype=logits.dtype)


def linear_parts(before: End, after: End) -> Parts:
    """Parts of the change of logits between two ends of an interval (DESIGN 2.10); their sum is exact.

    Each is the mean over the two orders in which features and head may change: with X(t,u) the features of t under the
    head of u, seeing is half of X(t+1,t) - X(t,t) + X(t+1,t+1) - X(t,t+1).
    """
    change, mean = after.sums - before.sums, (after.sums + before.sums) / 2
    weights, weights_change = (after.weights + before.weights) / 2, after.weights - before.weights
    return Parts(
        seeing=jnp.matmul(change, weights, precision="highest"),
        weighing=jnp.matmul(mean, weights_change, precision="highest"),
        bias=jnp.atleast_2d(after.bias - before.bias),
    )


def logarithmic_means(before: jax.Array, after: jax.Array) -> jax.Array:
    """Logarithmic means `[B, M]` of the confidences of two sets of logits `[B, M]`, each 0 to 1.

    The logarithmic mean of y and y' is (y' - y) / (log y' - log y), and y where they are equal.
    """
    before, after = jax.nn.log_softmax(before), jax.nn.log_softmax(after)
    change, larger = jnp.abs(after - before), jnp.maximum(before, after)
    small = change < SMALL_CHANGE
    ratio = -jnp.expm1(-change) / jnp.where(small, 1, change)
    return jnp.exp(larger) * jnp.where(small, 1 - change / 2 + change**2 / 6, ratio)


def shares(parts: jax.Array, means: jax.Array, about: jax.Array | None = None) -> jax.Array:
    """The shares in the changes of confidence of additive parts of the changes of logits.

    A class's confidence rises by what raises its logit beyond the mean of all logits, weighted by logarithmic means:
    so a constant added to all logits has no share, and shares add up to zero over the classes.

    Args:
      parts: `[B, ..., M]`, in logits; or of some classes.
      means: `[B, M]` of `logarithmic_means`, of the same classes.
      about: `[B, ..., 1]`, the mean of the parts over all classes, where these are not all.

    Returns:
      As `parts`, in confidence.
    """
    means = means.reshape(len(means), *(1,) * (parts.ndim - 2), means.shape[-1])
    if about is None:
        about = (parts * means).sum(-1, keepdims=True) / means.sum(-1, keepdims=True)
    return means * (parts - about)


def confidence_parts(parts: Parts, before: jax.Array, after: jax.Array, kept: Kept | None = None) -> Parts:
    """Parts of the change of logits as parts of the change of confidence, which they add up to.

    Args:
      parts: in logits.
      before: logits `[B, M]` at the first end.
      after: logits `[B, M]` at the other.
      kept: the classes that `parts` are of; None for all.
    """
    means = logarithmic_means(before, after)
    if kept is None:
        bias = jnp.broadcast_to(parts.bias, means.shape)
        return Parts(shares(parts.seeing, means), shares(parts.weighing, means), shares(bias, means))
    means = jnp.take_along_axis(means, kept.classes, axis=1)
    return Parts(*(shares(each[..., :-1], means, each[..., -1:]) for each in parts))


def residual(parts: Parts, before: jax.Array, after: jax.Array, kept: Kept | None = None) -> jax.Array:
    """How far `confidence_parts` miss the change of confidence: `[B]`, the largest over their classes."""
    change = jax.nn.softmax(after) - jax.nn.softmax(before)
    if kept is not None:
        change = jnp.take_along_axis(change, kept.classes, axis=1)
    return jnp.abs((parts.seeing + parts.weighing).sum(1) + parts.bias - change).max(-1)


def account_of(parts: Parts, labels: jax.Array) -> jax.Array:
    """What each prototype, and last what belongs to no place, added to a confidence: `[B, K+1]`.

    Args:
      parts: of `confidence_parts`.
      labels: int `[B]`, which of their classes' confidence is accounted for, by its number among them.
    """
    both = jnp.concatenate([parts.seeing + parts.weighing, parts.bias[:, None]], axis=1)
    return jnp.take_along_axis(both, labels[:, None, None], axis=2)[:, :, 0]


class Path(NamedTuple):
    """Evidence of locations under a head that is not linear, along the line from the blank image's features.

    Attributes:
      evidence: `[B, K, M]`, by prototype; with `start` it adds up to the logits. Or of R+1 `directions`.
      start: `[B, M]`, the logits at the blank's features, and what could not be spread.
      error: `[B]`, how far the points of the path missed the logits before what was missing was spread.
    """

    evidence: jax.Array
    start: jax.Array
    error: jax.Array


def path_evidence(
    head: Callable[[jax.Array], jax.Array],
    features: jax.Array,
    blank: jax.Array,
    assignments: jax.Array,
    num_prototypes: int,
    toward: jax.Array | None = None,
) -> Path:
    """Integrated gradients of every logit along the straight line from a blank image's features (DESIGN 2.10).

    Sundararajan, Taly, Yan 2017, arXiv:1703.01365, with the midpoint rule. What the points miss is spread in proportion
    to the size of the evidence, and belongs to no place where there is none. The line does not start at zero: a head
    that normalises its input is constant along that one.

    Args:
      head: `[B, h, w, d] -> [B, M]`, each sample for itself.
      features: `[B, h, w, d]`.
      blank: `[1, h, w, d]`, of the blank image at the same checkpoint.
      assignments: int `[B, h, w]`.
      num_prototypes: K, static under jit.
      toward: `[C, B, M]`, weights on the logits, such as `directions`; None for each logit.
    """
    with jax.default_matmul_precision("highest"):
        start, logits = head(blank), head(features)
        away = features - blank
        classes = jnp.eye(logits.shape[-1], dtype=logits.dtype) if toward is None else toward

        def add_point(total, place):
            _, gradient = jax.vjp(head, blank + place * away)

            def of_class(weights):
                return (away * gradient(jnp.broadcast_to(weights, logits.shape))[0]).sum(-1)

            return total + jax.lax.map(of_class, classes) / PATH_POINTS, None

        places = (jnp.arange(PATH_POINTS, dtype=features.dtype) + 0.5) / PATH_POINTS
        nothing = jnp.zeros((len(classes), *features.shape[:3]), logits.dtype)
        by_location, _ = jax.lax.scan(add_point, nothing, places)
        members = jax.nn.one_hot(assignments, num_prototypes, dtype=logits.dtype)
        evidence = jnp.einsum("bhwk,mbhw->bkm", members, by_location)
        if toward is not None:
            start = jnp.broadcast_to(start, logits.shape)
            start, logits = (jnp.einsum("bm,cbm->bc", each, toward) for each in (start, logits))
        missing = logits - start - evidence.sum(1)
        size = jnp.abs(evidence).sum(1)
        spread = jnp.where(size > 0, missing / jnp.where(size > 0, size, 1), 0)
        evidence = evidence + spread[:, None] * jnp.abs(evidence)
        return Path(evidence, start + jnp.where(size > 0, 0, missing), jnp.abs(missing).max(-1))


def path_parts(before: tuple[Path, Path], after: tuple[Path, Path]) -> Parts:
    """Parts of the change of logits behind a head that is not linear; as `linear_parts`.

    Args:
      before: the features of the first end under the head of the first end, and of the other.
      after: the features of the other end under the head of the first end, and of the other.
    """
    (first_own, first_other), (second_other, second_own) = (
        [path.evidence for path in before],
        [path.evidence for path in after],
    )
    return Parts(
        seeing=(second_other - first_own + second_own - first_other) / 2,
        weighing=(first_other - first_own + second_own - second_other) / 2,
        bias=after[1].start - before[0].start,
    )
