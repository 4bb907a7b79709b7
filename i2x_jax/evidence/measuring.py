"""What every checkpoint takes from every prototype, in one pass over the images (DESIGN 2.4, 2.10).

While a batch is on the device all checkpoints see it, the last one first: its features say which prototype each
location belongs to. Whatever grows with the number of samples leaves the device at once; sums by class are added up.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2x_jax.data.source import Images
from i2x_jax.devices.compilation import jit
from i2x_jax.evidence import ledger, prototypes
from i2x_jax.evidence.saliency import bias, contributions, saliency_maps
from i2x_jax.models.model import Model, Tapped, Variables

# Logits smaller than this are no scale for an error.
LEAST_LOGIT = 1e-6
# Values above are added up and squared in other units: a batch of these squares still fits float32.
LARGEST_SQUARED = 2.0**50


class Measuring(NamedTuple):
    """What is measured, and how.

    Attributes:
      num_prototypes: K.
      cam: one of `saliency.RULES`; with a pair one of `config.SIGNED_CAMS`.
      target: 'label' or 'predicted', the logit that saliency explains.
      pair: two classes whose margin's signed intensity is measured too (DESIGN 2.8), as labels; () for none.
      ledger: whether changes of confidence are accounted for; behind a head that is not linear that takes 32 M backward
        passes of the head a checkpoint, all else 16 M + 1.
      narrow: whether confidences are those in the kept classes, and the sum of the others.
    """

    num_prototypes: int
    cam: str = "gradcam"
    target: str = "label"
    pair: tuple[int, ...] = ()
    ledger: bool = True
    narrow: bool = False


class Taken(NamedTuple):
    """What a checkpoint takes from a batch; where only some classes are kept for each sample, M is R below.

    Attributes:
      intensity: `[B, K]`, in logits.
      confidence: `[B, M]`, softmax of all classes; if `narrow` `[B, R+1]`.
      margin: `[B, K]`, signed intensity of the pair's margin, in logits; None without a pair.
      maps: saliency `[B, h, w]`.
      evidence: `[B, K, M]`, contributions, in logits.
      sums: `[B, K, d]` of `ledger.prototype_sums`.
      error: `[B]`, how far contributions and bias miss the logits, relative to the largest |logit|.
      finite: whether intensity and confidence hold neither NaN nor infinity.
      end: what the ledger needs of the checkpoint; None without a ledger.
    """

    intensity: jax.Array
    confidence: jax.Array
    margin: jax.Array | None
    maps: jax.Array
    evidence: jax.Array
    sums: jax.Array
    error: jax.Array
    finite: jax.Array
    end: "End | None"


class End(NamedTuple):
    """What the ledger needs of the checkpoint at one end of an interval.

    Attributes:
      logits: `[B, M]`, always of all classes.
      own: `[B, K, M]`, evidence under the checkpoint's own head, which adds up with `start` to the logits.
      start: `[B or 1, M]`, what belongs to no place.
      sums: `[B, K, d]` of `ledger.prototype_sums`.
      tapped: what the head was given, behind one that is not linear, otherwise None.
      path_error: `[B]`, how far the path missed the logits before what was missing was spread; 0 for a linear head.
    """

    logits: jax.Array
    own: jax.Array
    start: jax.Array
    sums: jax.Array
    tapped: Tapped | None
    path_error: jax.Array


class ClassSums(NamedTuple):
    """Sums over the samples of each class.

    Attributes:
      total: `[M, ...]`, in units of `scale`.
      squares: `[M, ...]`, of the squares, in units of its square.
      scale: 1, unless values are so large that their squares would overflow.
    """

    total: jax.Array
    squares: jax.Array
    scale: jax.Array


class Account(NamedTuple):
    """What the ledger of an interval says of a batch.

    Attributes:
      account: `[B, K+1]`, of the label's confidence: prototypes, and last what belongs to no place.
      seeing: `ClassSums` of `[M, K, M or R]`: class of the sample, prototype, class of the confidence; so `weighing`.
      weighing: see `seeing`.
      bias: `[M, M or R]`, sums over the samples of each class.
      residual: the largest over the samples, see `ledger.residual`.
      logit: the largest absolute logit at either end.
    """

    account: jax.Array
    seeing: ClassSums
    weighing: ClassSums
    bias: jax.Array
    residual: jax.Array
    logit: jax.Array


@functools.partial(jit, inference=True, static_argnames="model")
def batch_tapped(model: Model, variables: Variables, images: jax.Array) -> Tapped:
    """All that the head takes of a batch, jitted."""
    return model.cut(variables, images)


def batch_features(model: Model, variables: Variables, images: jax.Array) -> jax.Array:
    """Features float32 `[B, h, w, d]`, by the program of `batch_tapped`."""
    return batch_tapped(model, variables, images).features


@jax.jit
def assign_locations(pca: prototypes.Pca, centroids: jax.Array, features: jax.Array) -> jax.Array:
    """The prototype of every location, int32 `[B, h, w]`, from features `[B, h, w, d]` of the final model."""
    points = prototypes.project(pca, features.reshape(-1, features.shape[-1]))
    return prototypes.assign(points, centroids).reshape(features.shape[:3])


@functools.partial(jit, inference=True, static_argnames=("model", "settings"))
def take(
    model: Model,
    settings: Measuring,
    variables: Variables,
    tapped: Tapped,
    labels: jax.Array,
    assignments: jax.Array,
    blank: jax.Array,
    kept: jax.Array | None = None,
) -> Taken:
    """Everything that is measured on a batch at one checkpoint, from one forward pass of the backbone.

    What the head takes is given, so that there is one program for the backbone at all checkpoints: that of the last one
    has to be done before locations are assigned, and another program would round otherwise.

    Args:
      model: the classifier.
      settings: what is measured.
      variables: of the checkpoint.
      tapped: of `batch_tapped`.
      labels: int32 `[B]`.
      assignments: int `[B, h, w]`, the prototype of every location.
      blank: `[1, h, w, d]`, features of the blank image at this checkpoint.
      kept: int `[B, R]`, the classes that contributions are to and that are accounted for; None for all.
    """
    features, beside = tapped
    with jax.default_matmul_precision("highest"):
        # Logits as numbers: fused into what follows, they may differ from their own maximum by rounding, which is much
        # where they are huge.
        logits = jax.lax.optimization_barrier(model.logits_of(variables, tapped))
    classes = labels if settings.target == "label" else logits.argmax(-1)
    maps = saliency_maps(model, variables, features, classes, cam=settings.cam, beside=beside)
    with jax.default_matmul_precision("highest"):
        sums = ledger.prototype_sums(features, assignments, settings.num_prototypes)
        if model.linear_head:
            path = _linear_evidence(model, variables, sums, logits, kept)
        else:
            path = _path(model, variables, tapped, blank, assignments, settings.num_prototypes, kept)
        error = path.error / jnp.maximum(jnp.abs(logits).max(-1), LEAST_LOGIT)
    margin = None
    if settings.pair:
        pair = jnp.broadcast_to(jnp.array(settings.pair)[:, None], (2, len(labels)))
        signed = saliency_maps(model, variables, features, pair[0], against=pair[1], cam=settings.cam, beside=beside)
        margin = prototypes.intensity(signed, assignments, settings.num_prototypes)
    intensity, confidence = prototypes.intensity(maps, assignments, settings.num_prototypes), jax.nn.softmax(logits)
    if settings.narrow:
        confidence = jnp.take_along_axis(confidence, kept, axis=1)
        confidence = jnp.concatenate([confidence, jnp.maximum(1 - confidence.sum(1, keepdims=True), 0)], axis=1)
    end = None
    if settings.ledger and model.linear_head:
        end = End(logits, path.evidence, path.start, sums, None, jnp.zeros(len(logits)))
    elif settings.ledger:
        end = End(logits, path.evidence, path.start, sums, tapped, path.error)
    return Taken(
        intensity=intensity,
        confidence=confidence,
        margin=margin,
        maps=maps,
        evidence=path.evidence,
        sums=sums,
        error=error,
        finite=jnp.isfinite(intensity).all() & jnp.isfinite(confidence).all(),
        end=end,
    )


def _linear_evidence(model, variables, sums, logits, kept):
    """Contributions `[B, K, M or R]` to the logits, the bias, and by how much both miss the logits."""
    weights, start = model.linear_head(variables)
    if kept is None:
        evidence = jnp.matmul(sums, weights)
        missed = evidence.sum(1) + start - logits
    else:
        # All logits are held against the sums; only the kept ones are split.
        evidence = jnp.einsum("bkd,brd->bkr", sums, weights.T[kept])
        missed = sums.sum(1) @ weights + start - logits
    return ledger.Path(evidence, start[None], jnp.abs(missed).max(-1))


def _path(model, variables, tapped, blank, assignments, num_prototypes, kept):
    head = model.head_of(variables, tapped.beside)
    toward = ledger.toward(head, tapped.features, kept)
    return ledger.path_evidence(head, tapped.features, blank, assignments, num_prototypes, toward)


def evidence_of(
    model: Model,
    variables: Variables,
    tapped: Tapped,
    assignments: jax.Array,
    blank: jax.Array,
    num_prototypes: int,
) -> ledger.Path:
    """What each prototype adds to each logit, and what belongs to no place; both add up to the logits (DESIGN 2.4).

    Args:
      model: the classifier.
      variables: of the checkpoint.
      tapped: of a batch.
      assignments: int `[B, h, w]`.
      blank: `[1, h, w, d]`, features of the blank image.
      num_prototypes: K.
    """
    with jax.default_matmul_precision("highest"):
        if not model.linear_head:
            return _path(model, variables, tapped, blank, assignments, num_prototypes, None)
        sums = ledger.prototype_sums(tapped.features, assignments, num_prototypes)
        return _linear_evidence(model, variables, sums, model.logits_of(variables, tapped), None)


class Between(NamedTuple):
    """What lies between two checkpoints, the earlier first, of a batch.

    Attributes:
      variables: of the two.
      blanks: `[1, h, w, d]` each, features of the blank image.
      ends: of `take`.
    """

    variables: Sequence[Variables]
    blanks: Sequence[jax.Array]
    ends: Sequence[End]


@functools.partial(jit, inference=True, static_argnames="model")
def account(
    model: Model,
    between: Between,
    assignments: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    kept: jax.Array | None = None,
) -> Account:
    """The ledger of one interval of a batch.

    Args:
      model: the classifier.
      between: the two checkpoints.
      assignments: int `[B, h, w]`.
      labels: int32 `[B]`.
      mask: bool `[B]`, False for rows that do not count.
      kept: int `[B, R]`, the classes that are accounted for, the label among them; None for all.
    """
    logits = [end.logits for end in between.ends]
    focus = None if kept is None else ledger.keep(kept, *logits)
    parts = parts_between(model, between, assignments, focus)
    missed = ledger.residual(parts, *logits, focus)
    size = jnp.maximum(*map(jnp.abs, logits)).max(-1)
    own = labels if kept is None else jnp.argmax(kept == labels[:, None], axis=1)
    num_classes = logits[0].shape[1]
    return Account(
        account=ledger.account_of(parts, own),
        seeing=class_sums(parts.seeing, labels, mask, num_classes),
        weighing=class_sums(parts.weighing, labels, mask, num_classes),
        bias=_by_class(parts.bias, labels, mask, num_classes),
        residual=jnp.where(mask, missed, 0).max(),
        logit=jnp.where(mask, size, 0).max(),
    )


def parts_between(
    model: Model, between: Between, assignments: jax.Array, kept: ledger.Kept | None = None
) -> ledger.Parts:
    """Parts of the change of confidence between two checkpoints, sample by sample.

    Args:
      model: the classifier.
      between: the two checkpoints.
      assignments: int `[B, h, w]`.
      kept: the classes that are accounted for; None for all.
    """
    (before, after), k = between.ends, between.ends[0].sums.shape[1]
    if model.linear_head:
        heads = [model.linear_head(held) for held in between.variables]
        if kept is not None:
            heads = [ledger.columns(*head, kept) for head in heads]
        ends = [ledger.End(end.sums, end.logits, *head) for end, head in zip(between.ends, heads, strict=True)]
        logits = ledger.linear_parts(*ends)
    else:
        toward = None if kept is None else ledger.directions(kept)

        def under(variables):
            """What either end saw, under a head each; what goes round the map stays with its end."""
            return [
                ledger.path_evidence(
                    model.head_of(held, end.tapped.beside), end.tapped.features, blank, assignments, k, toward
                )
                for held, end, blank in zip(variables, between.ends, between.blanks, strict=True)
            ]

        crossed = under(tuple(reversed(between.variables)))
        if kept is None:
            own = [ledger.Path(end.own, end.start, end.path_error) for end in between.ends]
        else:
            # The mean over all classes is weighted by both ends: what a checkpoint took alone does not hold it.
            own = under(between.variables)
        logits = ledger.path_parts((own[0], crossed[0]), (crossed[1], own[1]))
    return ledger.confidence_parts(logits, before.logits, after.logits, kept)


def coarse_account(
    model: Model, between: Between, assignments: jax.Array, labels: jax.Array, all_kept: bool = True
) -> jax.Array:
    """`ledger.account_of` between checkpoints that others lie between: `[B, K+1]`; the split is left out.

    Args:
      model: the classifier.
      between: the two checkpoints.
      assignments: int `[B, h, w]`.
      labels: int32 `[B]`.
      all_kept: whether `End.own` is of all classes.
    """
    before, after = between.ends
    if all_kept:
        nothing = jnp.zeros_like(before.own)
        parts = ledger.Parts(after.own - before.own, nothing, jnp.atleast_2d(after.start - before.start))
        return ledger.account_of(ledger.confidence_parts(parts, before.logits, after.logits), labels)
    only = ledger.keep(labels[:, None], before.logits, after.logits)
    return ledger.account_of(parts_between(model, between, assignments, only), jnp.zeros_like(labels))


@functools.partial(jax.jit, static_argnames="num_classes")
def class_sums(values: jax.Array, labels: jax.Array, mask: jax.Array, num_classes: int) -> ClassSums:
    """Sums of `[B, K, C]` over the samples of each class, and of the squares: `[M, K, C]` each.

    Args:
      values: of the samples.
      labels: int32 `[B]`.
      mask: bool `[B]`, False for rows that do not count.
      num_classes: M.
    """
    size = jnp.abs(values).max(where=mask[:, None, None], initial=0.0)
    # Within these bounds dividing by 1 changes no bit; beyond, what is small beside what is large is lost.
    scale = jnp.where((size > LARGEST_SQUARED) & jnp.isfinite(size), size, 1.0)
    scaled = values / scale
    return ClassSums(
        _by_class(scaled, labels, mask, num_classes), _by_class(scaled**2, labels, mask, num_classes), scale
    )


def _by_class(values, labels, mask, num_classes):
    of_class = jax.nn.one_hot(labels, num_classes) * mask[:, None]
    return jnp.einsum("bs,b...->s...", of_class, values, precision="highest")


@jax.jit
def summed(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Sum over the rows `[B, ...]` that count."""
    return jnp.einsum("b,b...->...", mask.astype(values.dtype), values, precision="highest")


@jax.jit
def largest(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The largest of `[B]` among the rows that count, at least 0."""
    return jnp.where(mask, values, 0).max()


@functools.partial(jax.jit, donate_argnums=0)
def added(totals: dict[str, jax.Array | ClassSums], sums: dict[str, jax.Array | ClassSums]) -> dict:
    """Sums by name with those of another batch added; of those called `largest_` the larger."""

    def both(name, one, other):
        if name.startswith("largest_"):
            return jnp.maximum(one, other)
        if not isinstance(one, ClassSums):
            return one + other
        scale = jnp.maximum(one.scale, other.scale)
        share, more = one.scale / scale, other.scale / scale
        return ClassSums(
            share * one.total + more * other.total, share**2 * one.squares + more**2 * other.squares, scale
        )

    return {name: both(name, one, sums[name]) for name, one in totals.items()}


@jax.jit
def path_error(end: End, mask: jax.Array) -> jax.Array:
    """How far the path missed the logits, as a share of their spread, summed over the samples that count."""
    spread = end.logits.max(-1) - end.logits.min(-1)
    return jnp.where(mask, end.path_error / jnp.maximum(spread, LEAST_LOGIT), 0).sum()


@functools.partial(jit, inference=True, static_argnames=("model", "all_kept"))
def path_differences(
    model: Model,
    between: Between,
    assignments: jax.Array,
    halves: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    all_kept: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """How far the account over two intervals at once is from the sum of both, in L1, and its own size; summed.

    Args:
      model: the classifier.
      between: a checkpoint, and the one after the next.
      assignments: int `[B, h, w]`.
      halves: `[B, K+1]`, the sum of the accounts of both intervals.
      labels: int32 `[B]`.
      mask: bool `[B]`, False for rows that do not count.
      all_kept: whether `End.own` is of all classes.
    """
    coarse = coarse_account(model, between, assignments, labels, all_kept)
    return jnp.abs(coarse - halves).sum(-1) @ mask, jnp.abs(coarse).sum(-1) @ mask


@functools.partial(jit, inference=True, static_argnames="model")
def blank_evidence(model: Model, variables: Variables, blank: Tapped) -> jax.Array:
    """What each location of the blank image adds to each logit: `[h, w, M]`; nothing behind a head not linear."""
    return contributions(model, variables, blank, blank.features)[0]


@functools.partial(jax.jit, static_argnames="model")
def batch_bias(model: Model, variables: Variables, blank: Tapped) -> jax.Array:
    """`saliency.bias`, jitted."""
    return bias(model, variables, blank)


def blank_image(mean: np.ndarray, like: Images) -> np.ndarray:
    """An image of one colour, `[1, H, W, C]`: the mean `[C]` of images, as they are levels or float32."""
    return np.broadcast_to(in_type(mean, like.dtype), (1, *like.shape[1:])).copy()


def in_type(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Values of pixels in the type of the images: rounded, if they are levels."""
    return (np.round(values) if np.issubdtype(dtype, np.integer) else np.asarray(values)).astype(dtype)
