"""Where the locations of a feature map lie in the image, and what each of them sees (DESIGN 2.3)."""

import functools
from typing import NamedTuple


class Span(NamedTuple):
    """What the locations of a map see along one axis of its input, away from the borders.

    Location i sees the `side` pixels around `start + stride * i`. Pixel 0 stands at 0, so that an even number of pixels
    lies around a half.

    Attributes:
      start: centre of what location 0 sees, in pixels.
      stride: from the centre of a location to the next, in pixels.
      side: pixels that a location sees, inside the image or not.
    """

    start: float
    stride: float
    side: int


class Places(NamedTuple):
    """What the locations of a map see, along the rows and along the columns of its input."""

    rows: Span
    columns: Span

    @property
    def side(self) -> int:
        """Side in pixels of the square that holds all that a location sees."""
        return max(self.rows.side, self.columns.side)


def window(kernel: int, stride: int = 1, padding: int = 0) -> Span:
    """Of a convolution or a pool, from its kernel, its stride and its padding before the first pixel."""
    return Span((kernel - 1) / 2 - padding, stride, kernel)


def in_a_row(parts: list[Places]) -> Places:
    """Of layers one after the other."""
    return Places(*(functools.reduce(_behind, spans) for spans in zip(*parts, strict=True)))


def side_by_side(parts: list[Places]) -> Places:
    """Of layers on one input whose outputs are joined or added: all that any of them sees. Their strides are equal."""
    return Places(*map(_union, zip(*parts, strict=True)))


def _behind(first, second):
    return Span(
        start=first.start + first.stride * second.start,
        stride=first.stride * second.stride,
        side=first.side + first.stride * (second.side - 1),
    )


def _union(spans):
    (stride,) = {span.stride for span in spans}
    first = min(span.start - (span.side - 1) / 2 for span in spans)
    last = max(span.start + (span.side - 1) / 2 for span in spans)
    return Span((first + last) / 2, stride, int(last - first) + 1)
