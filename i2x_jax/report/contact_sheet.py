"""One picture of all prototypes: where each is strongest, beside places drawn at random."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from i2x_jax.config import printable
from i2x_jax.evidence.geometry import crop_corners, crops_at, peaks_of
from i2x_jax.explanation.ranking import Ranked
from i2x_jax.explanation.types import Prototype
from i2x_jax.models.places import Places
from i2x_jax.results import pictures
from i2x_jax.results.story import strongest_members

SHOWN = 6  # samples in each of the three blocks
TILE, GAP, MARGIN, LABEL_WIDTH, HEADER = 56, 6, 24, 236, 52
INK, FAINT, PAPER = (30, 30, 30), (100, 100, 100), (255, 255, 255)


def contact_sheet(
    prototypes: Sequence[tuple[Prototype, Ranked | None]],
    images: np.ndarray,
    assignments: np.ndarray,
    intensity: np.ndarray,
    maps_of: Callable[[np.ndarray], np.ndarray],
    places: Places,
    crop_side: int,
    seed: int,
) -> Image.Image:
    """Draws a row for each prototype: what it supports, its strongest crops, these in their images, and random ones.

    The random members are there so that nobody has to trust a choice of examples.

    Args:
      prototypes: what is written beside the crops; a row each, in this order.
      images: uint8 `[N, H, W, C]`, C 1 or 3.
      assignments: `[N, h, w]`.
      intensity: `[N, K]` at the last checkpoint.
      maps_of: rows `[n]` to their saliency maps `[n, h, w]` at the last checkpoint; called once.
      places: of the map.
      crop_side: pixels of a crop, before it is enlarged.
      seed: of the random members.
    """
    chosen = members_of([each for each, _ in prototypes], assignments, intensity, np.random.default_rng(seed))
    shown = np.unique(np.concatenate([rows for each in chosen for rows in each]))
    maps = maps_of(shown)

    def peaks(prototype, rows):
        return peaks_of(assignments, lambda rows: maps[np.searchsorted(shown, rows)], prototype, rows)

    size = sheet_tile(images.shape[1:])
    blocks = [SHOWN * (width + GAP) + MARGIN for width in (TILE, size[0], size[0])]
    lefts = [LABEL_WIDTH, LABEL_WIDTH + blocks[0], LABEL_WIDTH + sum(blocks[:2])]
    row_height = max(TILE, size[1]) + GAP
    sheet = Image.new("RGB", (LABEL_WIDTH + sum(blocks), HEADER + row_height * len(prototypes)), PAPER)
    draw = ImageDraw.Draw(sheet)
    write_headings(draw, lefts)

    for row, ((prototype, ranked), (strongest, drawn)) in enumerate(zip(prototypes, chosen, strict=True)):
        top = HEADER + row * row_height
        write_label(draw, prototype, ranked, top)
        at = peaks(prototype.id, strongest)
        tiles = (
            [pictures.tile(crop, (TILE, TILE)) for crop in crops_at(images[strongest], at, places, crop_side)],
            framed(images[strongest], at, places, crop_side),
            framed(images[drawn], peaks(prototype.id, drawn), places, crop_side),
        )
        for left, of_block in zip(lefts, tiles, strict=True):
            for place, picture in enumerate(of_block):
                sheet.paste(picture, (left + place * (picture.width + GAP), top))
    return sheet


def framed(images: np.ndarray, peaks: np.ndarray, places: Places, crop_side: int) -> list[Image.Image]:
    """Whole images as tiles, with a frame around the crop at each peak."""
    tiles = [pictures.tile(image, sheet_tile(image.shape)) for image in images]
    for tile, corner in zip(tiles, crop_corners(peaks, places, crop_side), strict=True):
        pictures.draw_frame(tile, images.shape[1:], corner, crop_side, pictures.FRAME, width=2)
    return tiles


def sheet_tile(image_shape: tuple[int, ...]) -> tuple[int, int]:
    """Width and height of an image on the sheet; there is more room for long images than for others."""
    height, width = image_shape[:2]
    ratio = max(height, width) / min(height, width)
    return pictures.tile_size(image_shape, round(TILE * min(2, ratio**0.5)))


def members_of(
    prototypes: Sequence[Prototype], assignments: np.ndarray, intensity: np.ndarray, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each prototype the rows that show it: of highest intensity, and drawn at random; `SHOWN` at most."""
    chosen = []
    for prototype in prototypes:
        area = (assignments == prototype.id).sum((1, 2))
        strongest = strongest_members(area, intensity[:, prototype.id], SHOWN)
        chosen.append((strongest, rng.permutation(np.flatnonzero(area))[:SHOWN]))
    return chosen


def write_headings(draw: ImageDraw.ImageDraw, lefts: Sequence[int]) -> None:
    """What stands in the labels, and in the blocks that begin there."""
    heading = ImageFont.load_default(14)
    texts = ("prototype, share of locations", "strongest crops", "in their images", "random members")
    for left, text in zip((8, *lefts), texts, strict=True):
        draw.text((left, 5), text, INK, heading)
    for top, text in ((24, "one place gives, in logits"), (37, "raises the logit of, by")):
        draw.text((8, top), text, FAINT, ImageFont.load_default(12))


def write_label(draw: ImageDraw.ImageDraw, prototype: Prototype, ranked: Ranked | None, top: int) -> None:
    """Number, share of locations, evidence per location, and the classes whose logit it raises most, in logits."""
    # The classes come strongest first; a trace beside a strong one would only distract.
    strong = [each for each in prototype.supports if each.contribution >= 0.05 * prototype.supports[0].contribution]
    supports = ", ".join(f"{printable(each.name)} {each.contribution:+.2f}" for each in strong) or "no class"
    gives = f"one place {printable(ranked.name)} {ranked.evidence:+.2f}" if ranked else ""
    draw.text((8, top + 2), f"{prototype.id}    {100 * (prototype.share or 0):.1f} %", INK, ImageFont.load_default(15))
    small = ImageFont.load_default(12)
    for line, text in enumerate((gives, supports)):
        while small.getlength(text) > LABEL_WIDTH - 20:
            text = text[:-2] + "…"
        draw.text((8, top + 22 + 16 * line), text, FAINT, small)
