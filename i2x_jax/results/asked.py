"""What was asked of a run, held against what there is: a number, a class, an image of one's own."""

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from i2x_jax.config import InputError
from i2x_jax.data.source import Images

# Of what somebody gave, in an error.
SHOWN = 60


def whole(value: Any, what: str, low: int, high: int | None = None) -> int:
    """A whole number as an `int`.

    Args:
      value: what was given.
      what: what it stands for, in errors.
      low: the smallest allowed.
      high: the largest allowed; None for any.

    Raises:
      InputError: something else, `True` and 3.0 among it, or out of range.
    """
    allowed = f"at least {low}" if high is None else f"{low} to {high}"
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        raise InputError(
            f"{what} is {shown(value)} of type {type(value).__name__}; allowed: a whole number, {allowed}; "
            "check the number"
        )
    if value < low or (high is not None and value > high):
        raise InputError(f"{what} is {shown(value)}; allowed: {allowed}; check the number")
    return int(value)


def one_of(value: Any, what: str, allowed: Sequence[str]) -> str:
    """A text that is one of those allowed, or `InputError`."""
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"unknown {what} {shown(value)}; allowed: {', '.join(allowed)}; check the spelling")
    return value


def pixels(value: Any, like: Images) -> np.ndarray:
    """An image of the user's own, as the network takes it.

    Args:
      value: `[H, W, C]`, or `[H, W]` where C is 1; of NumPy, or anything that NumPy takes for an array.
      like: the images of the run, whose type and shape it must have.

    Returns:
      `[H, W, C]`.

    Raises:
      InputError: another type or shape; nothing is scaled or resized.
    """
    shape, dtype = tuple(like.shape[1:]), np.dtype(like.dtype)
    array = np.asarray(value) if hasattr(value, "__array__") else None
    found = f"a {type(value).__name__}" if array is None else f"{array.dtype} {list(array.shape)}"
    if array is not None and array.dtype == dtype and array.shape in (shape, shape[:2]):
        # Of a colour network a grey image is not its first channel.
        if array.ndim == 3 or shape[2] == 1:
            return array.reshape(shape)
    levels = " of 0 to 255" if dtype == np.uint8 else ""
    grey = f" or {list(shape[:2])}" if shape[2] == 1 else ""
    raise InputError(
        f"the image is {found}; allowed: a row of the run, or an array {dtype} {list(shape)}{grey}{levels}, the "
        "size that the network was given; convert it"
    )


def shown(value: Any) -> str:
    """What somebody gave, short enough for one line."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
