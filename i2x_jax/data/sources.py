"""Where images come from: sets that are embedded or generated, and TensorFlow Datasets read without TensorFlow."""

import difflib
import functools
import glob
import os
import re
from collections.abc import Callable

import numpy as np

from i2x_jax.config import MAX_SEED, InputError
from i2x_jax.data import folders, parts, reading
from i2x_jax.data.pictures import AS_IT_IS, Reading, prepared_array, size_of

# Images, labels, class names.
Samples = tuple[np.ndarray, np.ndarray, tuple[str, ...]]

# What TFDS calls its own sets: name, perhaps a config, perhaps a version.
NAME = re.compile(r"[A-Za-z]\w*(/\w[\w.+-]*)?(:[\d.*]+)?", re.ASCII)
READ_AT_ONCE = 1024
MEMORY_SHARE = 0.5  # of the machine's memory that images may fill


def digits() -> Samples:
    """Scikit-learn's handwritten digits: 1,797 images of 8x8 (Alpaydin and Kaynak, UCI 1998)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # The original grey levels are 0 to 16.
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    return images, bunch.target.astype(np.int32), tuple(str(name) for name in bunch.target_names)


EMBEDDED: dict[str, Callable[[], Samples]] = {"digits": digits}
# Sets that are made, of a split and a seed; NAME:SEED asks for another seed than 0.
GENERATED: dict[str, Callable[[str, int], Samples]] = {"parts": parts.samples}
OFFLINE = (*EMBEDDED, *GENERATED)


def generated(name: str) -> Callable[[str], Samples] | None:
    """From a split to the samples of a set that is made, 'parts' or 'parts:SEED'; None for any other name.

    Raises:
      InputError: what stands behind the colon is no seed.
    """
    kind, colon, seed = name.partition(":")
    if kind not in GENERATED:
        return None
    if colon and not (seed.isdecimal() and seed.isascii() and int(seed[:11]) <= MAX_SEED):
        raise InputError(
            f"data set {name!r} has no seed behind its colon; allowed: {kind}, or {kind}:SEED with 0 to {MAX_SEED}; "
            "set data.name"
        )
    return functools.partial(GENERATED[kind], seed=int(seed or 0))


def read_tfds(
    name: str, split: str, data_dir: str | None, how: Reading = AS_IT_IS, budget: int | None = None
) -> Samples:
    """Reads an image-classification set prepared by TensorFlow Datasets as array_record.

    Args:
      name: as TFDS knows it, such as 'mnist', 'cifar10' or 'imagenette/160px'.
      split: 'train' or 'test'; where a set has no 'test', its 'validation' is read for it.
      data_dir: the folder of prepared sets; None for TFDS's own default.
      how: images are prepared while they are read.
      budget: bytes that the images may take; None for `memory_budget`.

    Raises:
      InputError: unknown set or split, not prepared or damaged, not images with one label, images of several sizes,
        labels that are no class, or too large for the memory.
    """
    builder = _builder(name, data_dir)
    folder, root = os.fspath(builder.data_path), os.fspath(builder._data_dir_root)
    if not os.path.isdir(folder):
        raise InputError(
            f"data set {name!r} is not prepared in {root}; allowed: a folder that holds it (--data_dir or "
            f"TFDS_DATA_DIR); prepare it once, which needs TensorFlow: pip install tensorflow && "
            f"tfds build {name} --file_format=array_record --data_dir={root}"
        )
    image_key, label_key = _keys(name, builder.info.features)
    wanted = "validation" if split == "test" and "test" not in builder.info.splits else split
    if wanted not in builder.info.splits:
        raise InputError(
            f"data set {name!r} has no split {split!r}; allowed: {', '.join(builder.info.splits)}; "
            "set another data.name"
        )
    shape = builder.info.features[image_key].shape
    count = builder.info.splits[wanted].num_examples
    height, width, channels = _shape_read(name, shape, how)
    needed = count * height * width * channels
    budget = budget or memory_budget()
    if needed > budget:
        raise InputError(
            f"split {wanted!r} of {name!r} takes {needed:,} bytes of memory as {count:,} images of "
            f"{height}x{width}x{channels}; allowed: {budget:,} bytes; set a smaller data.image_size"
        )
    try:
        images, labels = np.empty((count, height, width, channels), np.uint8), np.empty(count, np.int32)
        source = builder.as_data_source(wanted)
        for start in range(0, count, READ_AT_ONCE):
            rows = range(start, min(start + READ_AT_ONCE, count))
            for row, sample in zip(rows, source.__getitems__(list(rows)), strict=True):
                images[row] = prepared_array(sample[image_key], how)
                labels[row] = sample[label_key]
    except NotImplementedError:
        raise InputError(
            f"data set {name!r} in {folder} is not stored as array_record; allowed: array_record, which is read "
            f"without TensorFlow; prepare it again in another folder: tfds build {name} --file_format=array_record"
        ) from None
    # Damaged files show as RuntimeError (array_record), ValueError (protocol buffers), OSError or KeyError.
    except (RuntimeError, ValueError, OSError, KeyError, IndexError) as error:
        raise InputError(
            f"data set {name!r} in {folder} cannot be read ({_reason(error)}); allowed: complete array_record files; "
            "copy or prepare it again"
        ) from None
    class_names = tuple(builder.info.features[label_key].names)
    # Some sets mark samples whose label is kept secret by -1.
    strange = labels[(labels < 0) | (labels >= len(class_names))]
    if strange.size:
        raise InputError(
            f"data set {name!r} in {folder} has {strange.size:,} samples without a class in split {wanted!r} (label "
            f"{strange[0]}); allowed: 0 to {len(class_names) - 1}; choose another data.name"
        )
    return images, labels, class_names


def memory_budget() -> int:
    """Bytes that images may take in the memory of this machine."""
    return int(MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def describe(name: str, data_dir: str | None, how: Reading = AS_IT_IS) -> tuple[tuple[int, int, int], int]:
    """The shape (H, W, C) of a set's images as they are read, and its number of classes; a prepared set is not read.

    Of pictures some are looked at, to know whether there is colour in them.

    Arguments and errors as in `read_tfds`, but for those about what is prepared.
    """
    if folders.are_pictures(name):
        return reading.described(folders.listing(name), how)
    if name in EMBEDDED or generated(name):
        images, _, class_names = EMBEDDED[name]() if name in EMBEDDED else generated(name)("test")
        return _shape_read(name, images.shape[1:], how), len(class_names)
    features = _builder(name, data_dir).info.features
    image_key, label_key = _keys(name, features)
    return _shape_read(name, features[image_key].shape, how), features[label_key].num_classes


def _shape_read(name, shape, how):
    channels = how.channels or shape[2]
    if None not in shape[:2]:
        size = size_of(how, *shape[:2])
        if 0 in size:
            raise InputError(
                f"data set {name!r} has images of {shape[0]}x{shape[1]}, too small for data.crop {how.crop}; allowed: "
                "a crop that fits; set data.crop"
            )
        return (*size, channels)
    side = how.size or how.crop
    if not side:
        raise InputError(
            f"data set {name!r} has images of several sizes; allowed: one size; set data.image_size or data.preprocess"
        )
    return (side, side, channels)


def _builder(name, data_dir):
    """The set as TFDS knows it, prepared or not."""
    # Paths and community sets have names as well: neither is opened, nor a network asked.
    if not NAME.fullmatch(name):
        raise _unknown(name, ())
    tfds = _tfds(name)
    try:
        return tfds.builder(name, data_dir=data_dir)
    except ImportError as error:
        raise InputError(
            f"data set {name!r} cannot be read ({str(error).splitlines()[0]}); allowed: an image-classification set "
            "that needs no further package; choose another data.name"
        ) from None
    # Whatever TFDS and protocol buffers raise for a name or a description of a set: they share no class of errors.
    except Exception as error:
        if damaged := _description(name, data_dir or tfds.core.constants.DATA_DIR):
            raise InputError(
                f"data set {name!r} in {os.path.dirname(damaged)} cannot be read ({_reason(error)}); allowed: complete "
                "dataset_info.json and features.json; copy or prepare it again"
            ) from None
        raise _unknown(name, tfds.list_builders(with_community_datasets=False)) from None


def _tfds(name):
    """TensorFlow Datasets, which takes most of a second to import, and which the embedded sets do without."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        if difflib.get_close_matches(name, OFFLINE):
            raise _unknown(name, ()) from None
        reason = str(error).splitlines()[0]
        raise InputError(
            f"data set {name!r} is read with TensorFlow Datasets, which is not installed ({reason}); "
            f"allowed without it: {', '.join(OFFLINE)}; pip install 'i2x_jax[tfds]', or in a checkout pip install -r "
            "requirements-tfds.txt"
        ) from None
    return tfds


def _unknown(name, others):
    close = difflib.get_close_matches(name, [*OFFLINE, *others], n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "set data.name"
    allowed = (
        f"{', '.join(OFFLINE)}, folder:DIR, csv:FILE, or an image set of TensorFlow Datasets such as mnist or cifar10"
    )
    return InputError(f"unknown data set {name!r}; allowed: {allowed}; {hint}")


def _description(name, data_dir):
    """The dataset_info.json of a set that somebody has prepared, or None."""
    set_name = name.partition("/")[0].partition(":")[0]
    if not set_name.isidentifier():
        return None
    folder = os.path.join(glob.escape(os.path.expanduser(data_dir)), set_name)
    return next(glob.iglob(os.path.join(folder, "**", "dataset_info.json"), recursive=True), None)


def _reason(error):
    # TFDS puts what it was doing before what went wrong.
    text = str(error).rpartition('}": ')[2].strip()
    return (text.splitlines() or [type(error).__name__])[0][:320]


def _keys(name, features):
    """The names of the one image and the one label of a set."""
    tfds = _tfds(name)
    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    if len(images) != 1 or len(labels) != 1 or features[images[0]].np_dtype != np.uint8:
        raise InputError(
            f"data set {name!r} has {len(images)} images and {len(labels)} class labels a sample; allowed: one 8-bit "
            "image and one label; choose another data.name"
        )
    return images[0], labels[0]
