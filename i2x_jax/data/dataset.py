"""Images and labels: loading, splitting and batching (DESIGN section 1)."""

import functools
import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from i2x_jax.config import InputError
from i2x_jax.data import folders, reading
from i2x_jax.data.pictures import AS_IT_IS, Reading, prepared_array
from i2x_jax.data.source import Display, Images, Shown, blocks, by_rows, chosen, digests, files_of, read_ahead
from i2x_jax.data.sources import EMBEDDED, generated, memory_budget, read_tfds

# Where a set has no test split of its own it is drawn once, the same for every seed of a run.
TEST_SEED = 2603
TEST_FRACTION = 0.2
SPLITS = ("train", "test")
# Five folds of the mapping's cross-validation need a few training samples of every class.
MIN_TRAIN_PER_CLASS = 10


class Dataset(NamedTuple):
    """Labelled images.

    Attributes:
      images: uint8 `[N, H, W, C]`, 0 to 255, or for a network of one's own float32 with any number of channels: an
        array, or anything else that is read by rows (`source.Images`).
      labels: int32 `[N]`, an index into `class_names`.
      class_names: M names.
      rows: int64 `[N]`, the index that each sample had in the data set that this one was taken from; None where it is
        whole. Kept by the program: what a user sets is not looked at.
      display: how images are shown that are not uint8 of 1 or 3 channels, else None.
    """

    images: Images
    labels: np.ndarray
    class_names: tuple[str, ...]
    rows: np.ndarray | None = None
    display: Display | None = None

    @property
    def given_rows(self) -> np.ndarray:
        """`rows`, and of a whole data set the index of each sample: int64 `[N]`."""
        return np.arange(len(self.labels)) if self.rows is None else self.rows

    @property
    def pictures(self) -> Images:
        """The images as they are shown: uint8 of 1 or 3 channels."""
        return self.images if self.display is None else Shown(self.images, self.display)

    def shown(self, image: np.ndarray) -> np.ndarray:
        """One image `[H, W, C]` as these are shown."""
        return self._replace(images=image[None]).pictures[0]

    def take(self, indices: np.ndarray) -> "Dataset":
        """The samples at `indices`, in that order; `rows` remember where they stood in the first data set."""
        rows = self.given_rows[indices]
        return self._replace(images=chosen(self.images, indices), labels=self.labels[indices], rows=rows)


class Batch(NamedTuple):
    """Rows of one static shape `[B, ...]`; `mask` is False where a row only fills the last batch up.

    Of the images there are only those that were asked for.
    """

    images: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    start: int


class Splits(NamedTuple):
    """A data set as a run uses it: validation serves every choice, test only the final figures.

    Where a cue is suspected, or was planted, there may be two sets in which it does not go with the class: `audit` to
    choose by, `unbiased` for final figures.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    audit: Dataset | None = None
    unbiased: Dataset | None = None

    def sets(self) -> dict[str, Dataset]:
        """Those that there are, by name."""
        return {name: each for name, each in self._asdict().items() if each is not None}


def load(name: str, split: str, data_dir: str | None = None, how: Reading = AS_IT_IS) -> Dataset:
    """Loads one split of a data set.

    Args:
      name: 'digits' (embedded), 'parts' or 'parts:SEED' (generated), 'folder:DIR' or 'csv:FILE' (pictures), or an
        image-classification set of TensorFlow Datasets.
      split: 'train' or 'test'.
      data_dir: the folder of prepared sets; the others need none.
      how: images are read.

    Raises:
      InputError: see `sources.read_tfds`, `folders.listing` and `reading.opened`; or an unknown split.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r} of {name}; allowed: {', '.join(SPLITS)}")
    if folders.are_pictures(name):
        sets = picture_sets(name, how)
        if split not in sets:
            raise InputError(f"{name} has no pictures of split {split!r}; allowed: {folders.LAYOUT}; add them")
        return sets[split]
    made = generated(name)
    if name not in EMBEDDED and not made:
        return Dataset(*read_tfds(name, split, data_dir, how))
    images, labels, class_names = made(split) if made else EMBEDDED[name]()
    dataset = Dataset(np.stack([prepared_array(image, how) for image in images]), labels, class_names)
    if made:
        return dataset
    rest, test = hold_out(dataset, TEST_FRACTION, TEST_SEED)
    return test if split == "test" else rest


def picture_sets(name: str, how: Reading = AS_IT_IS) -> dict[str, Dataset]:
    """The splits of a folder or a CSV file of pictures; without one for testing, it is held out of training.

    Arguments and errors as in `load`.
    """
    found = folders.listing(name)
    pictures, rows, labels = reading.opened(found, how, memory_budget())
    sets = {split: Dataset(chosen(pictures, rows[split]), labels[split], found.class_names) for split in rows}
    if "train" in sets and "test" not in sets:
        sets["train"], sets["test"] = hold_out(sets["train"], TEST_FRACTION, TEST_SEED)
    return sets


def load_splits(
    name: str,
    validation: float,
    max_train: int = 0,
    seed: int = 0,
    data_dir: str | None = None,
    how: Reading = AS_IT_IS,
) -> Splits:
    """Loads train, validation and test; the first two are a seeded, stratified split of the set's training part.

    Pictures may have a validation set of their own.

    Args:
      name: see `load`.
      validation: the fraction of the training part that is held out.
      max_train: keep at most so many training samples, stratified by class; 0 keeps all.
      seed: of the split and of the subset.
      data_dir: see `load`.
      how: images are read.

    Raises:
      InputError: see `load`; fewer than two classes, or a class with too few samples for the method.
    """
    sets = picture_sets(name, how) if folders.are_pictures(name) else {}
    train, test = (sets.get(split) or load(name, split, data_dir, how) for split in SPLITS)
    validation_set = sets.get("validation")
    if validation_set is None:
        train, validation_set = hold_out(train, validation, seed)
    if 0 < max_train < len(train.labels):
        train = hold_out(train, max_train / len(train.labels), seed)[1]
    splits = Splits(train, validation_set, test)
    check_classes(splits)
    return splits


def checked(dataset: Dataset, name: str, like: Dataset | None = None) -> Dataset:
    """A data set that a caller made, as NumPy arrays of the types that every step relies on.

    Args:
      dataset: what the caller made.
      name: what it is called in errors.
      like: the data set whose image shape and classes it must have; None for any.

    Raises:
      InputError: it is no `Dataset`, or images, labels or names are not what `Dataset` says.
    """
    if not isinstance(dataset, Dataset):
        raise InputError(
            f"{name} is a {type(dataset).__name__}; allowed: an i2x_jax.Dataset; make one of images, labels and names"
        )
    if dataset.labels is None:
        raise InputError(
            f"{name} has no labels; allowed: integers, one an image; without any, hand over the classes that the "
            "network predicts at the end, set explain.target to 'predicted', and read accuracy as agreement with them"
        )
    images, labels, names = by_rows(dataset.images), np.asarray(dataset.labels), tuple(dataset.class_names)
    display = checked_display(images, dataset.display, name)
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"the labels of {name} are {labels.dtype} {list(labels.shape)}; allowed: integers [{images.shape[0]}], one "
            "an image; convert them"
        )
    if not all(isinstance(each, str) for each in names) or len(set(names)) < len(names):
        raise InputError(f"the class names of {name} are {names!r}; allowed: a different text for each class")
    strange = labels[(labels < 0) | (labels >= len(names))]
    if strange.size:
        raise InputError(
            f"{name} has the label {strange[0]}; allowed: 0 to {len(names) - 1}, an index into its {len(names)} class "
            "names; correct labels or names"
        )
    if like is not None and (images.shape[1:] != like.images.shape[1:] or names != like.class_names):
        raise InputError(
            f"{name} has images of {list(images.shape[1:])} and classes {names!r}; allowed: those of the dataset, "
            f"{list(like.images.shape[1:])} and {like.class_names!r}"
        )
    return Dataset(images, labels.astype(np.int32), names, display=display)


def checked_display(images: Images, display: Display | None, name: str) -> Display | None:
    """How the images of a caller are shown, or `InputError` for images or a display that cannot be used."""
    if images.dtype not in (np.uint8, np.float32) or len(images.shape) != 4 or 0 in images.shape:
        raise InputError(
            f"the images of {name} are {images.dtype} {list(images.shape)}; allowed: uint8 [N, H, W, C] of 0 to 255, "
            "with 1 or 3 channels, or float32 or other channels with a display; convert them"
        )
    if display is None:
        if images.dtype == np.uint8 and images.shape[3] in (1, 3):
            return None
        raise InputError(
            f"the images of {name} are {images.dtype} {list(images.shape)}; allowed without a display: uint8 with 1 or "
            "3 channels; set Dataset.display, such as i2x_jax.Display(channels=(2, 1, 0), low=0.0, high=1.0)"
        )
    channels, low, high = display
    known = all(isinstance(each, (int, np.integer)) and 0 <= each < images.shape[3] for each in channels)
    if len(channels) not in (1, 3) or not known or not -np.inf < low < high < np.inf:
        raise InputError(
            f"the display of {name} is {display}; allowed: 1 or 3 of the channels 0 to {images.shape[3] - 1}, and low "
            "below high; set Dataset.display"
        )
    return Display(tuple(map(int, channels)), float(low), float(high))


def check_classes(splits: Splits) -> None:
    """Raises `InputError` unless there are at least two classes and each has samples enough in every split."""
    names = splits.train.class_names
    if len(names) < 2:
        raise InputError(f"the data set has {len(names)} class; allowed: at least 2; choose another data set")
    for split, least in (("train", MIN_TRAIN_PER_CLASS), ("validation", 1), ("test", 1)):
        counts = np.bincount(getattr(splits, split).labels, minlength=len(names))
        if counts.min() < least:
            name = names[counts.argmin()]
            raise InputError(
                f"class {name!r} has {counts.min()} {split} samples; allowed: at least {least}; "
                "add images, raise data.max_train or change data.validation"
            )
    for split in ("audit", "unbiased"):
        dataset = getattr(splits, split)
        if dataset is not None and len(np.unique(dataset.labels)) < 2:
            raise InputError(
                f"the {split} images are of {len(np.unique(dataset.labels))} class; allowed: at least 2, best all; "
                f"whether a link is broken shows between classes; choose other images for {split}"
            )


def hold_out(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Splits into (rest, held out): stratified by class, seeded, equal images never on both sides.

    Both sides keep the order of the data set.

    Args:
      dataset: N samples.
      fraction: share held out, 0 to 1.
      seed: of the draw.

    Returns:
      The samples that stay, and those held out.
    """
    rng = np.random.default_rng(seed)
    # Equal images are dealt as one card, filed under the class of the first of them.
    first_of, card = {}, np.empty(len(dataset.labels), np.int64)
    for index, digest in enumerate(digests(dataset.images)):
        card[index] = first_of.setdefault(digest, index)
    held = np.zeros(len(dataset.labels), bool)
    for label in range(len(dataset.class_names)):
        cards = np.unique(card[dataset.labels == label])
        cards = cards[dataset.labels[cards] == label]
        held[rng.permutation(cards)[: int(fraction * len(cards))]] = True
    held = held[card]
    return dataset.take(np.flatnonzero(~held)), dataset.take(np.flatnonzero(held))


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 over images, labels and class names, as 64 hexadecimal digits.

    Of pictures in files it is over digests of these: none is decoded for it.
    """
    digest = hashlib.sha256(repr((dataset.images.shape, dataset.class_names)).encode())
    files = files_of(dataset.images)
    for block in blocks(dataset.images) if files is None else files.digests():
        digest.update(np.ascontiguousarray(block) if files is None else block)
    digest.update(np.ascontiguousarray(dataset.labels, "<i4"))
    return digest.hexdigest()


def batches(dataset: Dataset, batch_size: int, own: np.ndarray | slice = slice(None)) -> Iterator[Batch]:
    """All samples in order, in batches of one static shape; the last is filled up and masked.

    Args:
      dataset: N samples.
      batch_size: B.
      own: the rows of a batch whose images are read; labels and mask are of all.

    Yields:
      One `Batch` after the other; its mask is False where a row only fills up.
    """
    count = len(dataset.labels)
    starts = range(0, count, batch_size)
    filled = [np.where(rows < count, rows, 0) for rows in (np.arange(start, start + batch_size) for start in starts)]
    read = read_ahead(dataset.images, (rows[own] for rows in filled))
    for start, rows, (_, images) in zip(starts, filled, read, strict=True):
        yield Batch(images, dataset.labels[rows], np.arange(start, start + batch_size) < count, start)


def steps_per_pass(count: int, batch_size: int) -> int:
    """Batches that a pass over `count` samples takes."""
    return -(-count // batch_size)


def training_indices(count: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """The rows of training batch `step`: a fresh seeded permutation per pass, batches always full.

    A function of the step alone, so that training can go on from any step. A batch may straddle two passes.

    Args:
      count: samples in the set.
      batch_size: rows wanted.
      step: 0 for the first batch.
      seed: of the permutations.

    Returns:
      int64 `[batch_size]`.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    passes, places = positions // count, positions % count
    rows = np.empty(batch_size, np.int64)
    for number in np.unique(passes):
        here = passes == number
        rows[here] = _permutation(count, seed, int(number))[places[here]]
    return rows


@functools.lru_cache(maxsize=2)
def _permutation(count, seed, number):
    return np.random.default_rng((seed, number)).permutation(count)
