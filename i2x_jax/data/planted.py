"""Planted truth: a cue that tells the class, drawn into any images while they are read, and where it is (DESIGN 2.11).

What is drawn into an image follows from the seed and the image's row in its data set alone: neither splits nor batches
nor devices change it. Nothing is written anywhere; the images themselves stay as they are.
"""

import itertools
from typing import NamedTuple

import numpy as np

from i2x_jax.config import DataConfig, InputError
from i2x_jax.data.dataset import Dataset, Splits, check_classes, checked, hold_out, load
from i2x_jax.data.pictures import reading_of
from i2x_jax.data.source import Images

# Side in pixels where none is set.
SIZES = {"tag": 5, "tag_anywhere": 5, "colour": 4}
# Share of the other classes' images that have the tag as well.
ELSEWHERE = 0.005
# A cue with a place stands at this distance from both edges, moved by up to as much either way.
MARGIN = 1
# Images of the audit set, where the training set is large enough for it: of a small one, a fifth.
AUDIT_IMAGES, AUDIT_SHARE = 200, 0.2
# Colours, no two of them alike: the full and half levels of three channels, without the greys; bright and pure first.
COLOURS = sorted(
    (colour for colour in itertools.product((0, 128, 255), repeat=3) if len(set(colour)) > 1),
    key=lambda colour: (255 not in colour, colour.count(128), colour),
)
# What is drawn of each image, each from its own row of random numbers.
SHOWN, ROW, COLUMN, CODE = range(4)


class Cues(NamedTuple):
    """What is drawn into N images.

    Attributes:
      shown: bool `[N]`, whether an image has the cue.
      corners: int64 `[N, 2]`, row and column of its upper left pixel.
      codes: int64 `[N]`, which of the patches it is.
      patches: uint8 `[P, size, size, C]`.
    """

    shown: np.ndarray
    corners: np.ndarray
    codes: np.ndarray
    patches: np.ndarray


class Planted:
    """Images with a cue drawn in; see `source.Images`. Grey images become RGB where the patches have colours."""

    def __init__(self, images: Images, cues: Cues):
        self._images, self._cues = images, cues
        self.shape, self.dtype = (*images.shape[:3], cues.patches.shape[-1]), images.dtype

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        """See `Images`."""
        rows = np.arange(self.shape[0])[rows]
        several = np.atleast_1d(rows)
        images = np.array(np.broadcast_to(self._images[several], (len(several), *self.shape[1:])))
        shown, corners, codes, patches = self._cues
        inside = shown[several]
        images[_pixels(inside, corners[several], patches.shape[1])] = patches[codes[several][inside]]
        return images if rows.ndim else images[0]

    def masks(self) -> np.ndarray:
        """Where the cue is: bool `[N, H, W]`, True in its square."""
        masks = np.zeros(self.shape[:3], bool)
        masks[_pixels(self._cues.shown, self._cues.corners, self._cues.patches.shape[1])] = True
        return masks


def _pixels(shown, corners, size):
    """What picks the squares of the cue out of `[n, H, W, ...]`: those of the images that have it."""
    rows, columns = (corners[shown, axis, None, None] + np.arange(size) for axis in (0, 1))
    return np.flatnonzero(shown)[:, None, None], rows.reshape(-1, size, 1), columns


def cued_class(settings: DataConfig, num_classes: int) -> int:
    """The class that a tag stands for: the seed of the cue, modulo the number of classes."""
    return settings.plant_seed % num_classes


def draw_cues(dataset: Dataset, settings: DataConfig, biased: bool) -> Cues:
    """Draws what is planted into a data set.

    Args:
      dataset: N samples; the row that each had in the data set it was taken from decides what is drawn.
      settings: what is planted, `data.plant` and the settings that begin with it.
      biased: whether the cue goes with the class; otherwise it is drawn independently of it, the tag in half of the
        images.

    Raises:
      InputError: the cue does not fit the images, or more classes than there are colours.
    """
    check_plant(settings, dataset.images.shape[1:], len(dataset.class_names))
    rows = dataset.given_rows
    draws = {what: _uniform(settings.plant_seed, biased, what, rows) for what in (SHOWN, ROW, COLUMN, CODE)}
    size, classes = _size(settings), len(dataset.class_names)
    corners = np.stack([_places(settings, draws, axis, dataset.images.shape[1 + axis]) for axis in (0, 1)], -1)
    if settings.plant != "colour":
        share = np.where(dataset.labels == cued_class(settings, classes), settings.plant_strength, ELSEWHERE)
        checker = np.where(np.indices((size, size)).sum(0) % 2, 0, 255).astype(np.uint8)
        patches = np.repeat(checker[None, ..., None], dataset.images.shape[3], -1)
        return Cues(draws[SHOWN] < (share if biased else 0.5), corners, np.zeros(len(rows), np.int64), patches)
    codes = (draws[CODE] * classes).astype(np.int64)
    if biased:
        another = (dataset.labels + 1 + (draws[CODE] * (classes - 1)).astype(np.int64)) % classes
        codes = np.where(draws[SHOWN] < settings.plant_strength, dataset.labels, another)
    patches = np.broadcast_to(np.uint8(COLOURS[:classes])[:, None, None], (classes, size, size, 3))
    return Cues(np.ones(len(rows), bool), corners, codes, patches)


def _uniform(seed, biased, what, rows):
    """A number from 0 to 1 for each row, the same however many rows there are."""
    return np.random.default_rng((seed, int(biased), what)).random(rows.max(initial=-1) + 1)[rows]


def _places(settings, draws, axis, side):
    draw, room = draws[(ROW, COLUMN)[axis]], side - _size(settings)
    if settings.plant == "tag_anywhere":
        return (draw * (room + 1)).astype(np.int64)
    moved = (draw * (2 * MARGIN + 1)).astype(np.int64)
    return room - moved if ("bottom", "right")[axis] in settings.plant_place else moved


def _size(settings):
    return settings.plant_size or SIZES[settings.plant]


def planted_channels(settings: DataConfig, channels: int) -> int:
    """Channels of the images once the cue is in them."""
    return 3 if settings.plant == "colour" else channels


def check_plant(settings: DataConfig, image_shape: tuple[int, ...], num_classes: int) -> None:
    """Raises `InputError` for a cue that images of this shape (H, W, C) or so many classes cannot have."""
    most = min(image_shape[:2]) - 2 * MARGIN
    if _size(settings) > most:
        raise InputError(
            f"config key data.plant_size is {_size(settings)}; allowed: 1 to {most}, for images of "
            f"{image_shape[0]}x{image_shape[1]}; set --config.data.plant_size or a larger data.image_size"
        )
    if settings.plant == "colour" and num_classes > len(COLOURS):
        raise InputError(
            f"config key data.plant is 'colour' with {num_classes} classes; allowed: at most {len(COLOURS)}, one a "
            "colour; set --config.data.plant=tag"
        )


def plant(dataset: Dataset, settings: DataConfig, biased: bool = True) -> Dataset:
    """A data set as seen with the cue in its images; arguments and errors as in `draw_cues`."""
    return dataset._replace(images=Planted(dataset.images, draw_cues(dataset, settings, biased)))


def masks(dataset: Dataset) -> np.ndarray | None:
    """Where the cue is, bool `[N, H, W]`; None for a data set that nothing was planted into."""
    return dataset.images.masks() if isinstance(dataset.images, Planted) else None


def completed(
    splits: Splits, settings: DataConfig, seed: int, data_dir: str | None = None, known: str | None = None
) -> Splits:
    """The splits with the cue that the settings ask for, and with audit and unbiased sets, planted or named.

    The audit set is held out of the training set; the unbiased one has the images of the test set. In both the cue is
    drawn independently of the class.

    Args:
      splits: as loaded or handed over; an audit or unbiased set that is there already stays.
      settings: `data.plant` and what belongs to it, `data.audit` and `data.unbiased`.
      seed: of what is held out.
      data_dir: see `dataset.load`.
      known: see `pictures.Reading`.

    Raises:
      InputError: see `draw_cues` and `dataset.load`; two of the sets would be the same images; a class has too few
        samples left.
    """
    if not settings.plant:
        return _with_named(splits, settings, data_dir, known)
    given = [name for name in ("audit", "unbiased") if getattr(settings, name) or getattr(splits, name) is not None]
    if given:
        raise InputError(
            f"{given[0]} images are given with data.plant {settings.plant!r}; allowed: the ones that it makes; leave "
            f"{given[0]} out, or data.plant"
        )
    check_plant(settings, splits.train.images.shape[1:], len(splits.train.class_names))
    share = min(max(AUDIT_IMAGES, 2 * len(splits.train.class_names)) / len(splits.train.labels), AUDIT_SHARE)
    train, audit = hold_out(splits.train, share, seed)
    made = Splits(
        *(plant(each, settings) for each in (train, splits.validation, splits.test)),
        *(plant(each, settings, biased=False) for each in (audit, splits.test)),
    )
    check_classes(made)
    return made


def _with_named(splits, settings, data_dir, known):
    """The splits with the sets that `data.audit` and `data.unbiased` name: the test images of each."""
    taken = {"name": settings.name}
    for key in ("audit", "unbiased"):
        if name := getattr(settings, key):
            if name in taken.values():
                raise InputError(
                    f"config key data.{key} is {name!r}, whose test images serve as another set already; allowed: "
                    f"images of their own; set --config.data.{key}"
                )
            taken[key] = name
            found = load(name, "test", data_dir, reading_of(settings, known))
            splits = splits._replace(**{key: checked(found, f"data.{key}", like=splits.train)})
    check_classes(splits)
    return splits
