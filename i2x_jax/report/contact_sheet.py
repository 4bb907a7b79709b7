"""One picture of all prototypes: where each is strongest, beside places drawn at random."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from i2x_jax.config import printable
from i2x_jax.evidence.saliency import crop_corners, crops_at
from i2x_jax.explanation.types import Explanation, Prototype

SHOWN = 6  # samples in each of the three blocks
TILE, GAP, MARGIN, LABEL_WIDTH, HEADER = 56, 6, 24, 236, 52
INK, FAINT, PAPER, FRAME = (30, 30, 30), (100, 100, 100), (255, 255, 255), (230, 97, 0)


def contact_sheet(
    explanation: Explanation,
    images: np.ndarray,
    assignments: np.ndarray,
    intensity: np.ndarray,
    maps_of: Callable[[np.ndarray], np.ndarray],
    crop_side: int,
    seed: int,
) -> Image.Image:
    """Draws a row for each prototype: what it supports, its strongest crops, these in their images, and random ones.

    The random members are there so that nobody has to trust a choice of examples.

    Args:
      explanation: what is written beside the crops.
      images: uint8 `[N, H, W, C]`, C 1 or 3.
      assignments: `[N, h, w]`.
      intensity: `[N, K]` at the last checkpoint.
      maps_of: rows `[n]` to their saliency maps `[n, h, w]` at the last checkpoint.
      crop_side: pixels of a crop, before it is enlarged.
      seed: of the random members.
    """
    rng = np.random.default_rng(seed)
    block = SHOWN * (TILE + GAP) + MARGIN
    lefts = [LABEL_WIDTH + place * block for place in range(3)]
    sheet = Image.new("RGB", (lefts[-1] + block, HEADER + (TILE + GAP) * len(explanation.prototypes)), PAPER)
    draw = ImageDraw.Draw(sheet)
    heading = ImageFont.load_default(14)
    for left, text in zip(
        (8, *lefts), ("prototype, share", "strongest crops", "in their images", "random members"), strict=True
    ):
        draw.text((left, 8), text, INK, heading)
    draw.text((8, 28), "raises the logit of, by", FAINT, ImageFont.load_default(12))
    for row, prototype in enumerate(explanation.prototypes):
        top = HEADER + row * (TILE + GAP)
        write_label(draw, prototype, top)
        members = np.flatnonzero((assignments == prototype.id).any(axis=(1, 2)))
        strongest = members[np.argsort(-intensity[members, prototype.id], kind="stable")[:SHOWN]]
        drawn = rng.permutation(members)[:SHOWN]
        peaks = peaks_of(assignments, maps_of, prototype.id, strongest)
        tiles = (
            [enlarged(crop) for crop in crops_at(images[strongest], peaks, assignments.shape[1:], crop_side)],
            framed(images[strongest], peaks, assignments.shape[1:], crop_side),
            framed(
                images[drawn], peaks_of(assignments, maps_of, prototype.id, drawn), assignments.shape[1:], crop_side
            ),
        )
        for left, pictures in zip(lefts, tiles, strict=True):
            for place, picture in enumerate(pictures):
                sheet.paste(picture, (left + place * (TILE + GAP), top))
    return sheet


def peaks_of(
    assignments: np.ndarray, maps_of: Callable[[np.ndarray], np.ndarray], prototype: int, rows: np.ndarray
) -> np.ndarray:
    """Where, among the locations of a prototype, each of these samples is most salient: int `[n, 2]`.

    Every sample must have a location of the prototype.

    Args:
      assignments: int `[N, h, w]`.
      maps_of: from rows to their saliency maps `[n, h, w]`.
      prototype: its id.
      rows: int `[n]`, which samples.

    Returns:
      Row and column on the feature map.
    """
    here = assignments[rows] == prototype
    if not len(rows):
        return np.zeros((0, 2), int)
    peak = np.where(here, maps_of(rows), -np.inf).reshape(len(rows), -1).argmax(-1)
    return np.stack(np.unravel_index(peak, here.shape[1:]), -1)


def enlarged(pixels: np.ndarray) -> Image.Image:
    """Pixels `[h, w, C]` as a square tile, each pixel still to be seen."""
    picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).convert("RGB")
    return picture.resize((TILE, TILE), Image.Resampling.NEAREST)


def framed(images: np.ndarray, peaks: np.ndarray, map_shape: tuple[int, int], crop_side: int) -> list[Image.Image]:
    """Whole images as tiles, with a frame around the crop at each peak."""
    corners = crop_corners(peaks, map_shape, images.shape[1:3], crop_side)
    scale = TILE / np.array(images.shape[1:3])
    tiles = []
    for image, corner in zip(images, corners, strict=True):
        tile = enlarged(image)
        (top, left), (bottom, right) = np.clip(
            np.round([corner * scale, (corner + crop_side) * scale - 1]), 0, TILE - 1
        )
        ImageDraw.Draw(tile).rectangle((left, top, right, bottom), outline=FRAME, width=2)
        tiles.append(tile)
    return tiles


def write_label(draw: ImageDraw.ImageDraw, prototype: Prototype, top: int) -> None:
    """Number, share of locations, and the classes whose logit the prototype raises most, in logits."""
    # The classes come strongest first; a trace beside a strong one would only distract.
    strong = [each for each in prototype.supports if each.contribution >= 0.05 * prototype.supports[0].contribution]
    supports = ", ".join(f"{printable(each.name)} {each.contribution:+.2f}" for each in strong) or "no class"
    small = ImageFont.load_default(12)
    while small.getlength(supports) > LABEL_WIDTH - 20:
        supports = supports[:-2] + "…"
    draw.text((8, top + 8), f"{prototype.id}    {100 * (prototype.share or 0):.1f} %", INK, ImageFont.load_default(15))
    draw.text((8, top + 32), supports, FAINT, small)
