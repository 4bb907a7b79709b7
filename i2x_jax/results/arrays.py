"""What the arrays of a run may hold, and reading them (DESIGN section 4)."""

import math
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from i2x_jax.config import InputError
from i2x_jax.devices.host_memory import release
from i2x_jax.results.files import read

CHECKED_AT_A_TIME = 2**22  # values of an array


class Spec(NamedTuple):
    """What an array must be.

    Attributes:
      dtype: exactly.
      shape: sizes, or symbols of DESIGN section 1; I is T - 1, J is T - 2, A is K + 1, R is the classes kept of each
        class's samples and Y those of which confidence.npy tells, C the channels of an image, W the samples that the
        ledger is of, V, E, G and B are the validation, test, audit and unbiased samples, P the training samples of a
        pair, and U, S, L, Q are as many as it happens to be.
      low: the smallest value allowed.
      below: every value is less than this size.
      nan: whether NaN may stand for what was not measured.
    """

    dtype: str
    shape: tuple[str | int, ...]
    low: int | None = None
    below: str | None = None
    nan: bool = False


def _spec(dtype, shape="", **rules):
    return Spec(dtype, tuple(int(size) if size.isdigit() else size for size in shape.split()), **rules)


# A .npy file is its own only member.
ARRAYS: dict[str, dict[str, Spec]] = {
    "steps.npy": {"": _spec("int32", "T", low=0)},
    "labels.npy": {"": _spec("int32", "N", low=0, below="M")},
    "rows.npy": {"": _spec("int64", "N", low=0)},
    "assignments.npy": {"": _spec("int16", "N h w", low=0, below="K")},
    "intensity.npy": {"": _spec("float32", "T N K", low=0)},
    "account.npy": {"": _spec("float32", "I W A")},
    "accounted.npy": {"": _spec("int64", "W", low=0, below="N")},
    "pair_intensity.npy": {"": _spec("float32", "T P K")},
    "rivals.npy": {"": _spec("int32", "M R", low=0, below="M")},
    "confidence.npy": {"": _spec("float32", "T N Y", low=0)},
    "groups.npy": {"": _spec("int32", "I N", low=-2)},
    "prototypes.npz": {
        "mean": _spec("float32", "d"),
        "components": _spec("float32", "D d"),
        "centroids": _spec("float32", "K D"),
        "explained_variance_ratio": _spec("float32", "D", low=0),
        "inertia": _spec("float64", low=0),
        "fitted_locations": _spec("int64", low=1),
        "blank": _spec("float32", "C"),
    },
    "contributions.npz": {
        "mean": _spec("float32", "T M K R"),
        "std": _spec("float32", "T M K R", low=0),
        "bias": _spec("float32", "T M"),
        "completeness_error": _spec("float64", "T", low=0),
        "blank": _spec("float32", "T M K R"),
    },
    "ledger.npz": {
        **{name: _spec("float32", "I M K R") for name in ("seeing", "weighing")},
        **{name: _spec("float32", "I M K R", low=0) for name in ("seeing_error", "weighing_error")},
        "bias": _spec("float32", "I M R"),
        "residual": _spec("float64", "I", low=0),
        "largest_logit": _spec("float64", "I", low=0),
        "path_difference": _spec("float64", "J", low=0),
        "path_error": _spec("float64", "T", low=0),
    },
    "prototype_features.npz": {
        "counts": _spec("int64", "K", low=0),
        "sums": _spec("float32", "T K d"),
    },
    "ranking.npz": {
        "evidence": _spec("float32", "K M"),
        "course": _spec("float32", "T K"),
        "label": _spec("int32", "K", low=0, below="M"),
        "ranked": _spec("bool", "K"),
        "exclusivity": _spec("float64", "K", low=0, nan=True),
        "exclusive_label": _spec("int32", "K", low=0, below="M"),
        "present": _spec("float64", "K M", low=0, nan=True),
        "entropy": _spec("float64", "K", low=0, nan=True),
        "since": _spec("int32", "K", low=-1, below="T"),
        "top_over_median": _spec("float64", low=0, nan=True),
        "samples": _spec("int64", "Q", low=1),
        "right": _spec("int64", "Q", low=0),
        "gained": _spec("int64", "Q K", low=0),
        "lost": _spec("int64", "Q K", low=0),
    },
    "validation.npz": {
        "labels": _spec("int32", "V", low=0, below="M"),
        "confidence": _spec("float32", "T V M", low=0),
    },
    "test.npz": {
        "labels": _spec("int32", "E", low=0, below="M"),
        "confidence": _spec("float32", "T E M", low=0),
    },
    "audit.npz": {
        "labels": _spec("int32", "G", low=0, below="M"),
        "confidence": _spec("float32", "T G M", low=0),
    },
    "unbiased.npz": {
        "labels": _spec("int32", "B", low=0, below="M"),
        "confidence": _spec("float32", "T B M", low=0),
    },
    "mapping.npz": {
        **{name: _spec("float64", "I K M", nan=True) for name in ("beta", "beta_groups", "sign_agreement")},
        **{name: _spec("float64", "I M K R", nan=True) for name in ("beta_by_class", "beta_groups_by_class")},
        "intercept": _spec("float64", "I M", nan=True),
        "intercept_by_class": _spec("float64", "I M R", nan=True),
        "estimable": _spec("bool", "I K"),
        **{
            name: _spec("float64", "I", nan=True)
            for name in (
                *("ridge_lambda", "ridge_lambda_groups"),
                *("r2", "r2_class", "r2_total", "r2_groups", "gain", "gain_total"),
            )
        },
        **{
            name: _spec("float64", "I M", nan=True)
            for name in (
                *("ridge_lambda_by_class", "ridge_lambda_groups_by_class"),
                *("r2_by_class", "r2_groups_by_class", "gain_total_by_class"),
            )
        },
        "gain_null": _spec("float64", "I 3", nan=True),
        "gain_null_by_class": _spec("float64", "I M 3", nan=True),
    },
    "curated.npz": {
        "pair": _spec("int32", "2", low=0, below="M"),
        "pair_s": _spec("float64", "I K", nan=True),
        "pair_s_ci": _spec("float64", "I K 2", nan=True),
        "pair_r2": _spec("float64", "I", nan=True),
        "pair_r2_null": _spec("float64", "I", nan=True),
        "prototypes": _spec("int64", "U", low=0, below="K"),
        "scores": _spec("float64", "U", low=0),
        "left_out": _spec("int64", "L", low=0, below="N"),
        "skipped": _spec("int64", "S", low=0, below="K"),
    },
}


def read_array(path: pathlib.Path, sizes: Mapping[str, int]) -> np.ndarray:
    """A .npy file of a run, mapped into memory and checked; `sizes` are the symbols that are known. Errors: `read`."""
    return read(path, lambda path: _load_array(path, dict(sizes)))


def _load_array(path, bound):
    # A size beyond 64 bits would only warn, and pass for another.
    with np.errstate(over="raise"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.memmap):
        raise ValueError("it is not an array")
    check_array("", array, ARRAYS[path.name][""], bound)
    release(array)
    if path.name == "steps.npy" and (len(array) < 2 or (np.diff(array) <= 0).any()):
        raise ValueError("its steps do not rise")
    return array


def read_arrays(path: pathlib.Path, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The known members of a .npz file of a run, checked; others stay unread. Arguments and errors: `read_array`."""
    return read(path, lambda path: _load_arrays(path, dict(sizes)))


def _load_arrays(path, bound):
    found = {}
    # NumPy leaves a file it opened itself open when it turns out not to be a .npz.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as members:
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.zip.infolist()):
            raise ValueError("it is compressed")
        for name, spec in ARRAYS[path.name].items():
            if name not in members.files:
                raise ValueError(f"it has no member {name}")
            found[name] = members[name]
            check_array(name, found[name], spec, bound)
    if path.name == "ranking.npz":
        _check_changes(found)
    return found


def _check_changes(found):
    """Raises `ValueError` unless images that were lost were right before, and those gained were wrong."""
    right = found["right"][:, None]
    if (found["lost"] > right).any() or (found["gained"] > found["samples"][:, None] - right).any():
        raise ValueError("more images changed than there are")


# What the numbers of a file are about, for who has never heard of the file.
QUANTITIES = {
    "intensity.npy": "the saliency",
    "pair_intensity.npy": "the saliency of the pair",
    "confidence.npy": "the confidence",
    "prototypes.npz": "what was found among the feature vectors of the last checkpoint",
    "assignments.npy": "what was found among the feature vectors of the last checkpoint",
    "contributions.npz": "the contributions to the logits",
    "ranking.npz": "the evidence per location",
    "validation.npz": "the confidence in validation images",
    "test.npz": "the confidence in test images",
    "audit.npz": "the confidence in audit images",
    "unbiased.npz": "the confidence in unbiased images",
}


def refuse_unreadable(folder: pathlib.Path, steps: Sequence[int] = ()) -> None:
    """Holds files that are about to get their names against the rules by which they will be read.

    Args:
      folder: whose files of `ARRAYS` are checked, all of one step of a run.
      steps: of the analysed checkpoints, where they are known.

    Raises:
      InputError: numbers that were computed from what was given are no numbers that a run may hold; one line says what
        they are about, and at which step it begins.
    """
    bound = {"T": len(steps), "I": len(steps) - 1} if len(steps) else {}
    for path in sorted(path for path in folder.iterdir() if path.name in ARRAYS):
        try:
            (_load_array if path.suffix == ".npy" else _load_arrays)(path, bound)
        except ValueError as error:
            what = QUANTITIES.get(path.name, f"what was computed for {path.name}")
            raise InputError(
                f"{what}{_since(path, steps)} cannot be kept ({error}); allowed: finite numbers that float32 holds; "
                "look at the weights and images of this run, or at how large `features` and `head` are"
            ) from None


def _since(path, steps):
    """Since which step an array is not finite, in words; nothing where no step can be named."""
    array = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
    members = {"": array} if path.suffix == ".npy" else dict(array)
    firsts = [
        next((t for t, values in enumerate(members[name]) if not np.isfinite(values).all()), len(steps))
        for name, spec in ARRAYS[path.name].items()
        if spec.shape[:1] == ("T",) and not spec.nan and len(members[name]) == len(steps)
    ]
    first = min(firsts, default=len(steps))
    return f" at step {steps[first]}" if first < len(steps) else ""


def check_array(name: str, array: np.ndarray, spec: Spec, sizes: dict[str, int]) -> None:
    """Raises `ValueError` unless an array is what it should be; symbols that were not known are added to `sizes`."""
    name = f"{name} is" if name else "it is"
    expected = " x ".join(f"{size}={sizes[size]}" if size in sizes else str(size) for size in spec.shape)
    fits = array.ndim == len(spec.shape) and all(
        size == (wanted if isinstance(wanted, int) else sizes.setdefault(wanted, size))
        for size, wanted in zip(array.shape, spec.shape, strict=True)
    )
    if array.dtype != np.dtype(spec.dtype) or not fits:
        found = " x ".join(map(str, array.shape))
        raise ValueError(f"{name} {array.dtype} [{found}] instead of {spec.dtype} [{expected}]")
    if array.dtype == bool:
        return
    above = sizes.get(spec.below, math.inf)
    # In the order of the file and some at a time: a memory map need not fit in memory.
    values = np.asarray(array).ravel(order="K")
    for start in range(0, values.size, CHECKED_AT_A_TIME):
        part = values[start : start + CHECKED_AT_A_TIME]
        present = part[~np.isnan(part)] if spec.nan else part
        if not np.isfinite(present).all():
            raise ValueError(f"{name} not finite everywhere")
        if present.size and ((spec.low is not None and present.min() < spec.low) or present.max() >= above):
            upper = f" and below {above}" if above < math.inf else ""
            raise ValueError(f"{name} somewhere outside of what it can be: at least {spec.low}{upper}")
