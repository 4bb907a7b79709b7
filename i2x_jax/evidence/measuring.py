"""What each checkpoint takes from each prototype: intensity, confidence, contributions (DESIGN 2.4).

One jitted program per batch; whatever grows with the number of samples is written straight to its place.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2x_jax.config import InputError
from i2x_jax.data.dataset import Dataset, batches
from i2x_jax.devices.compilation import jit
from i2x_jax.devices.mesh import ahead, divisible, fetch, own_rows, shard
from i2x_jax.evidence import prototypes
from i2x_jax.evidence.saliency import bias, contributions, saliency_maps
from i2x_jax.models.model import Model, Variables

# Contributions above are squared in other units: a batch of these squares still fits float32.
LARGEST_SQUARED = 2.0**50


class Measuring(NamedTuple):
    """What is measured, and how.

    Attributes:
      num_prototypes: K.
      cam: one of `saliency.RULES`.
      target: 'label' or 'predicted', the logit that saliency explains.
      batch_size: samples at a time; results do not depend on it.
      contributions: whether they are measured too: behind a head that is not linear they take M backward passes, all
        else takes one.
    """

    num_prototypes: int
    cam: str = "gradcam"
    target: str = "label"
    batch_size: int = 256
    contributions: bool = True


class BatchEvidence(NamedTuple):
    """Evidence in one batch.

    Attributes:
      intensity: `[B, K]`, in logits.
      confidence: `[B, M]`, softmax.
      maps: saliency `[B, h, w]`.
      finite: whether intensity and confidence hold neither NaN nor infinity.
      contribution_sum: `[M, K, M]`: class of the sample, prototype, class of the logit; over the unmasked samples, in
        units of `contribution_scale`.
      contribution_square: the same of the squares, in units of its square.
      contribution_scale: 1, unless contributions are so large that their squares would overflow.
      completeness_error: the largest |sum of contributions + bias - logit| relative to the largest |logit|.

    Without contributions the four that tell of them are None.
    """

    intensity: jax.Array
    confidence: jax.Array
    maps: jax.Array
    finite: jax.Array
    contribution_sum: jax.Array | None = None
    contribution_square: jax.Array | None = None
    contribution_scale: jax.Array | None = None
    completeness_error: jax.Array | None = None


class Contributions(NamedTuple):
    """Contributions at one checkpoint by class of the sample, in logits.

    Attributes:
      mean: float32 `[M, K, M]`: class of the sample, prototype, class of the logit.
      std: the same, population standard deviation.
      bias: float32 `[M]`, what no location contributes.
      completeness_error: the largest relative error of `sum + bias = logit` over all samples.
    """

    mean: np.ndarray
    std: np.ndarray
    bias: np.ndarray
    completeness_error: float


@functools.partial(jit, inference=True, static_argnames=("model", "settings"))
def batch_evidence(
    model: Model,
    settings: Measuring,
    variables: Variables,
    images: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    assignments: jax.Array,
) -> BatchEvidence:
    """Everything that is measured on a batch, from one forward pass of the backbone.

    Args:
      model: the classifier.
      settings: what is measured.
      variables: of the checkpoint.
      images: `[B, H, W, C]`.
      labels: int32 `[B]`.
      mask: bool `[B]`, False for rows that do not count.
      assignments: int `[B, h, w]`, the prototype of every location.
    """
    features = model.features(variables, images)
    with jax.default_matmul_precision("highest"):
        # Logits as numbers: fused into what follows, they may differ from their own maximum by rounding, which is much
        # where they are huge.
        logits = jax.lax.optimization_barrier(model.head(variables, features))
    classes = labels if settings.target == "label" else logits.argmax(-1)
    maps = saliency_maps(model, variables, features, classes, cam=settings.cam)
    with jax.default_matmul_precision("highest"):
        intensity = prototypes.intensity(maps, assignments, settings.num_prototypes)
        confidence = jax.nn.softmax(logits)
        finite = jnp.isfinite(intensity).all() & jnp.isfinite(confidence).all()
        measured = BatchEvidence(intensity, confidence, maps, finite)
        if not settings.contributions:
            return measured
        members = jax.nn.one_hot(assignments, settings.num_prototypes)
        evidence = jnp.einsum("bhwk,bhwm->bkm", members, contributions(model, variables, features))
        of_class = jax.nn.one_hot(labels, logits.shape[-1]) * mask[:, None]
        error = jnp.abs(evidence.sum(1) + bias(model, variables) - logits).max(-1)
        error = error / jnp.maximum(jnp.abs(logits).max(-1), 1e-6)
        largest = jnp.abs(evidence).max(where=mask[:, None, None], initial=0.0)
        # Within these bounds dividing by 1 changes no bit; beyond, what is large or small at once is lost.
        scale = jnp.where((largest > LARGEST_SQUARED) & jnp.isfinite(largest), largest, 1.0)
        scaled = evidence / scale
        return measured._replace(
            contribution_sum=jnp.einsum("bs,bkm->skm", of_class, scaled),
            contribution_square=jnp.einsum("bs,bkm->skm", of_class, scaled**2),
            contribution_scale=scale,
            completeness_error=jnp.where(mask, error, 0.0).max(),
        )


def measure_checkpoint(
    model: Model,
    variables: Variables,
    dataset: Dataset,
    assignments: np.ndarray,
    settings: Measuring,
    intensity: np.ndarray,
    confidence: np.ndarray,
    progress: Callable[[int], Any] = lambda count: None,
) -> Contributions | None:
    """Measures one checkpoint over all samples.

    Args:
      model: the classifier.
      variables: of the checkpoint.
      dataset: N samples.
      assignments: int16 `[N, h, w]`.
      settings: what is measured.
      intensity: float32 `[N, K]`, written to; may be a memory map.
      confidence: float32 `[N, M]`, written to; may be a memory map. Of both, each process writes its own rows.
      progress: told after every batch how many samples it held.

    Returns:
      The contributions; None without them.

    Raises:
      InputError: intensities or confidences that are not finite.
    """
    num_classes = len(dataset.class_names)
    total = np.zeros((num_classes, settings.num_prototypes, num_classes))
    square = np.zeros_like(total)
    worst = 0.0

    def measured():
        for batch in batches(dataset, divisible(settings.batch_size)):
            rows = slice(batch.start, batch.start + int(batch.mask.sum()))
            # Rows that fill the batch up repeat sample 0; their assignments do not matter.
            places = np.zeros((len(batch.labels), *assignments.shape[1:]), assignments.dtype)
            places[: rows.stop - rows.start] = assignments[rows]
            arrays = shard((batch.images, batch.labels, batch.mask, places))
            yield rows, batch_evidence(model, settings, variables, *arrays)

    for rows, found in ahead(measured()):
        write_rows(intensity[rows], found.intensity)
        write_rows(confidence[rows], found.confidence)
        if not fetch(found.finite):
            raise InputError(
                f"saliency or confidence of samples {rows.start} to {rows.stop - 1} is not finite; allowed: finite "
                "numbers; look at the weights and the images of this run"
            )
        if settings.contributions:
            scale = np.float64(fetch(found.contribution_scale))
            total += scale * fetch(found.contribution_sum)
            square += scale**2 * fetch(found.contribution_square)
            # As `max` would not, this hands NaN on.
            worst = float(np.maximum(worst, fetch(found.completeness_error)))
        progress(rows.stop - rows.start)
    if not settings.contributions:
        return None
    counts = np.maximum(np.bincount(dataset.labels, minlength=num_classes), 1)[:, None, None]
    mean = total / counts
    std = np.sqrt(np.maximum(square / counts - mean**2, 0))
    return Contributions(mean.astype(np.float32), std.astype(np.float32), fetch(batch_bias(model, variables)), worst)


def write_rows(target: np.ndarray, rows: jax.Array) -> None:
    """Writes the rows `[B, ...]` that this process has to `target` `[n, ...]`; those beyond n filled the batch up."""
    for place, values in own_rows(rows):
        inside = target[place]
        inside[:] = values[: len(inside)]


@functools.partial(jax.jit, static_argnames="model")
def batch_bias(model: Model, variables: Variables) -> jax.Array:
    """`saliency.bias`, jitted."""
    return bias(model, variables)


@functools.partial(jit, inference=True, static_argnames=("model", "settings"))
def batch_margin_intensity(
    model: Model,
    settings: Measuring,
    variables: Variables,
    images: jax.Array,
    assignments: jax.Array,
    pair: jax.Array,
) -> jax.Array:
    """Intensity `[B, K]` of the signed margin of class `pair[0]` over `pair[1]` (DESIGN 2.8), jitted."""
    features = model.features(variables, images)
    classes = jnp.broadcast_to(pair[:, None], (2, len(images)))
    maps = saliency_maps(model, variables, features, classes[0], against=classes[1], cam=settings.cam)
    return prototypes.intensity(maps, assignments, settings.num_prototypes)


def margin_intensity(
    model: Model,
    variables: Variables,
    dataset: Dataset,
    assignments: np.ndarray,
    settings: Measuring,
    pair: tuple[int, int],
) -> np.ndarray:
    """Intensity float32 `[N, K]` of the margin of one class over another, for all samples given.

    Args:
      model: the classifier.
      variables: of the checkpoint.
      dataset: N samples.
      assignments: int `[N, h, w]`, the prototype of every location.
      settings: what is measured; `cam` is one of `config.SIGNED_CAMS`.
      pair: the class whose logit counts, and the one whose logit is taken from it.

    Returns:
      Signed, in logits.
    """
    size = divisible(settings.batch_size)
    rows = (
        batch_margin_intensity(
            model,
            settings,
            variables,
            shard(batch.images),
            shard(np.take(assignments, np.arange(batch.start, batch.start + size), axis=0, mode="clip")),
            np.array(pair, np.int32),
        )
        for batch in batches(dataset, size)
    )
    return np.concatenate([fetch(part) for part in ahead(rows)])[: len(dataset.labels)]
