"""What a run says of one prototype and of one image: crops and stories (DESIGN 2.4, 2.8)."""

import dataclasses
import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from i2x_jax.config import InputError
from i2x_jax.explanation import uncertainty

if TYPE_CHECKING:
    from i2x_jax.results.opened_run import Run

# One static shape for every call, so that the program is compiled once.
MAPS_PER_BATCH = 128


class Crops(NamedTuple):
    """Places of a prototype, cut out of their images.

    Attributes:
      images: uint8 `[n, side, side, C]`.
      rows: int64 `[n]`, the images they are from, as rows of every array of the run.
      locations: int64 `[n, 2]`, row and column in the feature map.
      intensity: float32 `[n]`, of the prototype in these images at the last checkpoint, in logits.
    """

    images: np.ndarray
    rows: np.ndarray
    locations: np.ndarray
    intensity: np.ndarray


@dataclasses.dataclass(frozen=True)
class StoryPrototype:
    """A prototype in one image.

    Attributes:
      prototype: its id.
      intensity: float32 `[T]`, in logits.
      share: of the image's saliency at the last checkpoint, 0 to 1.
      area: share of the image's locations, 0 to 1.
    """

    prototype: int
    intensity: np.ndarray
    share: float
    area: float


@dataclasses.dataclass(frozen=True)
class Story:
    """How the network came to see one training image as it does.

    Attributes:
      image: row in every array of the run.
      label: name of its class.
      predicted: name of the class of highest confidence at the last checkpoint.
      steps: int32 `[T]`.
      confidence: float32 `[T, M]`.
      prototypes: those that the image has, by share of the saliency, largest first.
      left_out: whether the curated set leaves the image out.
      reason: why it does or does not, in a sentence.
    """

    image: int
    label: str
    predicted: str
    steps: np.ndarray
    confidence: np.ndarray
    prototypes: tuple[StoryPrototype, ...]
    left_out: bool
    reason: str


def strongest_members(area: np.ndarray, intensity: np.ndarray, count: int) -> np.ndarray:
    """The images that have a prototype, by its intensity, largest first, at most `count`.

    Args:
      area: `[N]` locations of the prototype in each image.
      intensity: `[N]` at the last checkpoint.
      count: how many at most.

    Returns:
      Their rows, int64.
    """
    members = np.flatnonzero(area)
    return members[np.argsort(-intensity[members], kind="stable")[:count]]


def crops(run: "Run", prototype: int, count: int) -> Crops:
    """See `Run.crops`."""
    from i2x_jax.evidence.geometry import crop_size, crops_at, peaks_of

    assignments, final = run.array("assignments"), run.array("intensity")[-1]
    if not 0 <= prototype < final.shape[1]:
        raise InputError(f"unknown prototype {prototype}; allowed: 0 to {final.shape[1] - 1}; check the number")
    if count < 1:
        raise InputError(f"{count} crops asked for; allowed: at least 1; raise n")
    final = np.array(final[:, prototype])
    rows = strongest_members((assignments == prototype).sum((1, 2)), final, count)
    variables = run.variables(run.steps[-1])
    peaks = peaks_of(assignments, lambda chosen: maps_of(run, variables, chosen), prototype, rows)
    images = run.dataset.images
    side = crop_size(run.model, images.shape[1:])
    return Crops(crops_at(images[rows], peaks, run.model.places, side), rows, peaks, final[rows])


def maps_of(run: "Run", variables: dict, rows: np.ndarray) -> np.ndarray:
    """Saliency maps float32 `[n, h, w]`, in logits, of some images with the weights of one checkpoint (DESIGN 2.3).

    What is explained is the logit that the run explains, of the label or of the predicted class.
    """
    settings, dataset = run.config.explain, run.dataset
    batch_maps = _batch_maps(run.model, settings.cam, settings.target)
    parts = [np.zeros((0, *run.model.feature_shape[:2]), np.float32)]
    for start in range(0, len(rows), MAPS_PER_BATCH):
        part = rows[start : start + MAPS_PER_BATCH]
        filled = np.pad(part, (0, MAPS_PER_BATCH - len(part)), mode="edge")
        parts.append(np.asarray(batch_maps(variables, dataset.images[filled], dataset.labels[filled]))[: len(part)])
    return np.concatenate(parts)


@functools.lru_cache(maxsize=2)
def _batch_maps(model, cam, target):
    from i2x_jax.devices.compilation import jit
    from i2x_jax.evidence.saliency import saliency_maps

    @functools.partial(jit, inference=True)
    def batch_maps(variables, images, labels):
        features = model.features(variables, images)
        classes = labels if target == "label" else model.head(variables, features).argmax(-1)
        return saliency_maps(model, variables, features, classes, cam=cam)

    return batch_maps


def story(run: "Run", image: int) -> Story:
    """See `Run.story`."""
    labels, classes = run.array("labels"), run.explanation.classes
    if not 0 <= image < len(labels):
        raise InputError(f"unknown image {image}; allowed: 0 to {len(labels) - 1}; check the number")
    intensity = np.array(run.array("intensity")[:, image])
    confidence = np.array(run.array("confidence")[:, image])
    area = uncertainty.prototype_area(run.array("assignments")[image][None], intensity.shape[1])[0]
    mass = uncertainty.saliency_mass(intensity[-1], area)
    share = mass / mass.sum() if mass.sum() > 0 else np.zeros_like(mass)
    present = np.flatnonzero(area)
    present = present[np.argsort(-share[present], kind="stable")]
    label = int(labels[image])
    left_out, reason = _verdict(classes, label, image, share, run.arrays("curated"))
    return Story(
        image=image,
        label=classes[label],
        predicted=classes[confidence[-1].argmax()],
        steps=run.steps,
        confidence=confidence,
        prototypes=tuple(
            StoryPrototype(int(k), intensity[:, k], float(share[k]), float(area[k] / area.sum())) for k in present
        ),
        left_out=left_out,
        reason=reason,
    )


def _verdict(classes, label, image, share, curated):
    """Whether the curated set leaves an image out, and a sentence that says why."""
    names = " and ".join(classes[each] for each in curated["pair"])
    if label not in curated["pair"]:
        return False, f"Kept: only images of {names}, the pair that is refined, can be left out."
    contained = {
        kind: [f"{k} ({100 * share[k]:.0f} %)" for k in curated[kind] if share[k] >= uncertainty.CONTAINED]
        for kind in ("prototypes", "skipped")
    }
    least = f"at least {100 * uncertainty.CONTAINED:.0f} % of its saliency"
    if image in curated["left_out"]:
        return True, (
            f"Left out: {least} lies on prototypes that wavered between {names}: {', '.join(contained['prototypes'])}."
        )
    if contained["skipped"]:
        return False, (
            f"Kept: it contains prototypes that wavered between {names}, {', '.join(contained['skipped'])}, but "
            "leaving out all that contain them would take more of a class than refine.max_left_out allows."
        )
    if not len(curated["prototypes"]) and not len(curated["skipped"]):
        return False, f"Kept: no prototype is uncertain for {names}."
    return False, f"Kept: no prototype that wavered between {names} holds {least}."
