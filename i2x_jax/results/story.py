"""What a run says of one prototype, one image, and two classes: crops, stories, since when (DESIGN 2.4, 2.7, 2.8)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from i2x_jax.explanation import pairs, uncertainty
from i2x_jax.results import asked

if TYPE_CHECKING:
    from i2x_jax.evidence.one_image import ImageEvidence
    from i2x_jax.evidence.pixels import PixelEvidence
    from i2x_jax.models.places import Places

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


class Contribution(NamedTuple):
    """What a prototype adds to a logit in one image at the last checkpoint, signed, in logits."""

    prototype: int
    contribution: float


class Seen(NamedTuple):
    """What is known of an image before its story is told.

    Attributes:
      split: 'train', 'validation' or 'test'; 'own' for an image that is in none.
      image: its row in that split; None for an own image.
      label: its class; None for an own image.
      confidence: float32 `[T, M]`.
      intensity: float32 `[T, K]`; None where the network is not at hand.
      assignments: int `[h, w]`, the prototype of every location; None as above.
      measure: measures the image, or raises `InputError` where the network is not at hand.
      row: looks up its index in the data that were handed over, or raises `InputError` where they are not at hand.
      path: sends evidence down to the pixels, from weights `[M]` on the logits, and a prototype or None; raises as
        `measure`.
    """

    split: str
    image: int | None
    label: int | None
    confidence: np.ndarray
    intensity: np.ndarray | None
    assignments: np.ndarray | None
    measure: Callable[[], "ImageEvidence"]
    row: Callable[[], int | None]
    path: Callable[[np.ndarray, int | None], "PixelEvidence"]


@dataclasses.dataclass(frozen=True, eq=False)
class Story:
    """How the network came to see one image as it does.

    What needs the network is measured when it is first asked for, at all checkpoints (`contributions`, `bias`,
    `logits`, `maps`, `why`), or at the last (`pixels`); with an own model whose run was opened without it, that raises
    `InputError`.

    Attributes:
      image: row in the arrays of its split; None for an image that was handed over.
      split: 'train', 'validation' or 'test'; 'own' for an image that was handed over.
      label: name of its class; None for an image that was handed over.
      predicted: name of the class of highest confidence at the last checkpoint.
      classes: M names, in the order of the logits.
      steps: int32 `[T]`.
      confidence: float32 `[T, M]`.
      prototypes: those that the image has, by share of the saliency, largest first. Empty where they are not in the
        files and the network is not at hand; `reason` then says so.
      left_out: whether the curated set leaves the image out.
      reason: why it does or does not, in a sentence.
    """

    image: int | None
    split: str
    label: str | None
    predicted: str
    classes: tuple[str, ...]
    steps: np.ndarray
    confidence: np.ndarray
    prototypes: tuple[StoryPrototype, ...]
    left_out: bool
    reason: str
    _seen: Seen = dataclasses.field(repr=False)

    @functools.cached_property
    def row(self) -> int | None:
        """Index of the image in the data that were handed over, or in the data set's own split; None for an own image.

        Raises:
          InputError: an own model, whose run was opened without its images.
        """
        return self._seen.row()

    @functools.cached_property
    def _measured(self):
        return self._seen.measure()

    @property
    def contributions(self) -> np.ndarray:
        """Of every prototype to every logit, signed, float32 `[T, K, M]`, in logits; exact behind a linear head."""
        return self._measured.contributions

    @property
    def bias(self) -> np.ndarray:
        """What no location contributes, float32 `[T, M]`, in logits."""
        return self._measured.bias

    @property
    def logits(self) -> np.ndarray:
        """Float32 `[T, M]`; `contributions.sum(1) + bias` behind a linear head."""
        return self._measured.logits

    @property
    def maps(self) -> np.ndarray:
        """Saliency float32 `[T, h, w]` of the label (without one: of the predicted class), in logits."""
        return self._measured.maps

    @property
    def assignments(self) -> np.ndarray | None:
        """The prototype of every location, int `[h, w]`; None where it takes a network that is not at hand."""
        return self._seen.assignments

    def why(self, name: str | None = None) -> tuple[Contribution, ...]:
        """The prototypes of the image, by what they add to the logit of a class at the last checkpoint.

        Args:
          name: of the class; None for the predicted one.

        Returns:
          Largest absolute contribution first.

        Raises:
          InputError: an unknown class, or the network is not at hand.
        """
        name = self.predicted if name is None else self._known(name)
        final = self.contributions[-1][:, self.classes.index(name)]
        present = np.array([each.prototype for each in self.prototypes], int)
        order = present[np.argsort(-abs(final[present]), kind="stable")]
        return tuple(Contribution(int(k), float(final[k])) for k in order)

    def pixels(
        self, name: str | None = None, against: str | None = None, prototype: int | None = None
    ) -> "PixelEvidence":
        """Evidence for a class sent down to the pixels, at the last checkpoint (DESIGN 2.4).

        A location sees more than its place. So where pixels matter this says more than contributions do, at 16 forward
        and backward passes of the image where those cost one forward pass; it is measured anew at each call.

        Args:
          name: of the class; None for the predicted one.
          against: of another, whose logit is taken away; None for the logit as it is.
          prototype: only what passes the places of this prototype; None for all places.

        Returns:
          Signed, in logits; all of it adds up to the logit less that of an image of this one's median level.

        Raises:
          InputError: an unknown class or prototype, or the network is not at hand, or takes no images in floats.
        """
        toward = np.zeros(len(self.classes), np.float32)
        toward[self.classes.index(self.predicted if name is None else self._known(name))] = 1
        if against is not None:
            toward[self.classes.index(self._known(against))] -= 1
        return self._seen.path(toward, prototype)

    def _known(self, name):
        return asked.one_of(str(name), "class", self.classes)


@dataclasses.dataclass(frozen=True, eq=False)
class ToldApart:
    """Since when the network tells two classes apart, on validation images.

    Attributes:
      a: one class.
      b: the other.
      step: of the first checkpoint from which `auc` stays at least 0.95 to the end; None for never.
      before: step of the last checkpoint at which it was lower; None where there is none. It happened in between.
      steps: int32 `[T]`.
      auc: float64 `[T]`, area under the ROC of the difference of the two confidences, 0 to 1; one half is chance.
    """

    a: str
    b: str
    step: int | None
    before: int | None
    steps: np.ndarray
    auc: np.ndarray


def told_apart(
    names: tuple[str, str], pair: tuple[int, int], steps: np.ndarray, labels: np.ndarray, confidence: np.ndarray
) -> ToldApart:
    """Since when two classes are told apart.

    Args:
      names: of the two classes.
      pair: their labels.
      steps: int `[T]`.
      labels: int `[n]`, of validation samples.
      confidence: `[T, n, M]`.
    """
    step = pairs.told_apart(confidence, labels, steps, *pair)
    earlier = [int(each) for each in steps if step is None or each < step]
    auc = pairs.auc_over_time(confidence, labels, *pair)
    return ToldApart(*names, step, earlier[-1] if earlier else None, steps, auc)


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


def crops(
    prototype: int,
    count: int,
    images: np.ndarray,
    assignments: np.ndarray,
    intensity: np.ndarray,
    maps_of: Callable[[np.ndarray], np.ndarray],
    places: "Places",
    side: int,
) -> Crops:
    """The places where a prototype is strongest.

    Args:
      prototype: its id.
      count: how many at most.
      images: uint8 `[N, H, W, C]`.
      assignments: int `[N, h, w]`.
      intensity: `[N, K]` at the last checkpoint.
      maps_of: rows `[n]` to their saliency maps `[n, h, w]` at the last checkpoint.
      places: of the locations of the map.
      side: of a crop, in pixels.
    """
    from i2x_jax.evidence.geometry import crops_at, peaks_of

    final = np.array(intensity[:, prototype])
    rows = strongest_members((assignments == prototype).sum((1, 2)), final, count)
    peaks = peaks_of(assignments, maps_of, prototype, rows)
    return Crops(crops_at(images[rows], peaks, places, side), rows, peaks, final[rows])


def maps_of(model, cam: str, target: str, variables: dict, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Saliency maps float32 `[n, h, w]`, in logits, with the weights of one checkpoint (DESIGN 2.3).

    Args:
      model: the classifier.
      cam: one of `saliency.RULES`.
      target: 'label' or 'predicted', the logit that is explained.
      variables: of the checkpoint.
      images: uint8 `[n, H, W, C]`.
      labels: int32 `[n]`.
    """
    batch_maps = _batch_maps(model, cam, target)
    parts = [np.zeros((0, *model.feature_shape[:2]), np.float32)]
    for start in range(0, len(images), MAPS_PER_BATCH):
        size = len(images[start : start + MAPS_PER_BATCH])
        filled = np.pad(np.arange(start, start + size), (0, MAPS_PER_BATCH - size), mode="edge")
        parts.append(np.asarray(batch_maps(variables, images[filled], labels[filled]))[:size])
    return np.concatenate(parts)


@functools.lru_cache(maxsize=2)
def _batch_maps(model, cam, target):
    from i2x_jax.devices.compilation import jit
    from i2x_jax.evidence.saliency import saliency_maps

    @functools.partial(jit, inference=True)
    def batch_maps(variables, images, labels):
        tapped = model.cut(variables, images)
        classes = labels if target == "label" else model.logits_of(variables, tapped).argmax(-1)
        return saliency_maps(model, variables, tapped.features, classes, cam=cam, beside=tapped.beside)

    return batch_maps


def tell(seen: Seen, classes: Sequence[str], steps: np.ndarray, curated: Mapping[str, np.ndarray]) -> Story:
    """The story of an image.

    Args:
      seen: what is known of it.
      classes: M names.
      steps: int32 `[T]`.
      curated: the members of curated.npz.
    """
    prototypes, share = (), None
    if seen.intensity is not None:
        prototypes, share = _prototypes(seen.intensity, seen.assignments)
    if seen.split != "train":
        left_out, reason = False, "Not a training image: only training images can be left out."
    else:
        left_out, reason = _verdict(classes, seen.label, seen.image, share, curated)
    if seen.intensity is None:
        reason += " Its prototypes are not in the files of the run: they take the model and the images."
    return Story(
        image=seen.image,
        split=seen.split,
        label=None if seen.label is None else classes[seen.label],
        predicted=classes[seen.confidence[-1].argmax()],
        classes=tuple(classes),
        steps=steps,
        confidence=seen.confidence,
        prototypes=prototypes,
        left_out=left_out,
        reason=reason,
        _seen=seen,
    )


def _prototypes(intensity, assignments):
    """`StoryPrototype`s of intensity `[T, K]` and assignments `[h, w]`, and the share of the saliency `[K]`."""
    area = uncertainty.prototype_area(np.asarray(assignments)[None], intensity.shape[1])[0]
    mass = uncertainty.saliency_mass(intensity[-1], area)
    share = mass / mass.sum() if mass.sum() > 0 else np.zeros_like(mass)
    present = np.flatnonzero(area)
    present = present[np.argsort(-share[present], kind="stable")]
    found = (StoryPrototype(int(k), intensity[:, k], float(share[k]), float(area[k] / area.sum())) for k in present)
    return tuple(found), share


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
