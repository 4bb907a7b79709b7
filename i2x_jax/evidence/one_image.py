"""What one image takes from each prototype, over the checkpoints, measured when it is asked for (DESIGN 2.2 to 2.4)."""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from i2x_jax.config import ExplainConfig
from i2x_jax.devices.compilation import jit
from i2x_jax.devices.mesh import fetch
from i2x_jax.evidence import ledger, measuring, prototypes
from i2x_jax.evidence.saliency import saliency_maps
from i2x_jax.models.model import Model, Variables


class ImageEvidence(NamedTuple):
    """One image at T checkpoints; float32.

    Attributes:
      contributions: signed, `[T, K, M]`, in logits: of each prototype to the logit of each class.
      bias: `[T, M]`, what no location contributes.
      logits: `[T, M]`; contributions and bias add up to them.
      confidence: `[T, M]`, softmax.
      intensity: `[T, K]`, in logits.
      maps: saliency `[T, h, w]`, in logits.
    """

    contributions: np.ndarray
    bias: np.ndarray
    logits: np.ndarray
    confidence: np.ndarray
    intensity: np.ndarray
    maps: np.ndarray


def measure_image(
    model: Model,
    checkpoints: Iterable[Variables],
    image: np.ndarray,
    label: int,
    assignments: np.ndarray,
    settings: ExplainConfig,
    blank: np.ndarray,
) -> ImageEvidence:
    """Measures one image at every checkpoint.

    Args:
      model: the classifier.
      checkpoints: T variables of it.
      image: uint8 `[H, W, C]`.
      label: the class whose logit saliency explains, unless `settings.target` is 'predicted'.
      assignments: int `[h, w]`, the prototype of every location.
      settings: `num_prototypes`, `cam` and `target` are used.
      blank: the colour `[C]` of the blank image, 0 to 255.
    """
    both = np.concatenate([image[None], measuring.blank_image(blank, image[None])])
    labels, places = np.array([label], np.int32), np.array(assignments)[None]
    how = measuring.Measuring(settings.num_prototypes, settings.cam, settings.target)
    parts = [fetch(_evidence(model, how, variables, both, labels, places)) for variables in checkpoints]
    return ImageEvidence(*(np.stack(member) for member in zip(*parts, strict=True)))


@functools.partial(jit, inference=True, static_argnames=("model", "settings"))
def _evidence(model, settings, variables, images, labels, assignments):
    """`ImageEvidence` without its first dimension, of an image and the blank one."""
    tapped, blank = (
        jax.tree.map(lambda each, row=row: each[row : row + 1], model.cut(variables, images)) for row in (0, 1)
    )
    with jax.default_matmul_precision("highest"):
        logits = model.logits_of(variables, tapped)
    classes = labels if settings.target == "label" else logits.argmax(-1)
    maps = saliency_maps(model, variables, tapped.features, classes, cam=settings.cam, beside=tapped.beside)
    k = settings.num_prototypes
    owed = measuring.evidence_of(model, variables, tapped, assignments, blank.features, k)
    intensity = prototypes.intensity(maps, assignments, k)
    found = owed.evidence, owed.start, logits, jax.nn.softmax(logits), intensity, maps
    return ImageEvidence(*(each[0] for each in found))


def place_image(
    model: Model, variables: Variables, found: dict[str, np.ndarray], image: np.ndarray
) -> tuple[np.ndarray, int]:
    """Which prototype each location of an image belongs to, and the class that is predicted.

    Args:
      model: the classifier.
      variables: of the last checkpoint, on which prototypes are defined.
      found: the run's prototypes: `mean`, `components`, `explained_variance_ratio` and `centroids`.
      image: uint8 `[H, W, C]`.

    Returns:
      int16 `[h, w]` and a label.
    """
    features, logits = fetch(_features_and_logits(model, variables, image[None]))
    pca = prototypes.pca_of(found)
    points = prototypes.project(pca, features.reshape(-1, features.shape[-1]))
    places = fetch(prototypes.assign(points, found["centroids"]))
    return places.reshape(features.shape[1:3]).astype(np.int16), int(logits[0].argmax())


@functools.partial(jit, inference=True, static_argnames=("model",))
def _features_and_logits(model, variables, images):
    tapped = model.cut(variables, images)
    with jax.default_matmul_precision("highest"):
        return tapped.features, model.logits_of(variables, tapped)


def account_image(
    model: Model,
    checkpoints: Sequence[Variables],
    image: np.ndarray,
    assignments: np.ndarray,
    blank: np.ndarray,
    num_prototypes: int,
) -> ledger.Parts:
    """The ledger of one image: parts of the change of every confidence, in every interval (DESIGN 2.10).

    Args:
      model: the classifier.
      checkpoints: T variables of it.
      image: uint8 `[H, W, C]`.
      assignments: int `[h, w]`, the prototype of every location.
      blank: the colour `[C]` of the blank image, 0 to 255.
      num_prototypes: K.

    Returns:
      `seeing` and `weighing` float32 `[T-1, K, M]`, `bias` `[T-1, M]`.
    """
    settings, places = measuring.Measuring(num_prototypes), np.array(assignments)[None]
    nobody, empty = np.zeros(1, np.int32), measuring.blank_image(blank, image[None])
    blanks = [measuring.batch_features(model, variables, empty) for variables in checkpoints]
    seen = [measuring.batch_tapped(model, variables, image[None]) for variables in checkpoints]
    ends = [
        measuring.take(model, settings, variables, tapped, nobody, places, features).end
        for variables, tapped, features in zip(checkpoints, seen, blanks, strict=True)
    ]
    parts = [
        fetch(_parts(model, measuring.Between(checkpoints[t : t + 2], blanks[t : t + 2], ends[t : t + 2]), places))
        for t in range(len(checkpoints) - 1)
    ]
    return ledger.Parts(*(np.stack([part[0] for part in member]) for member in zip(*parts, strict=True)))


@functools.partial(jit, inference=True, static_argnames="model")
def _parts(model, between, assignments):
    return measuring.parts_between(model, between, assignments)
