"""One picture of all prototypes: the crops where each is strongest, beside crops drawn at random."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from i2x_jax.explanation import Explanation
from i2x_jax.saliency import crops_at

STRONGEST, RANDOM = 10, 6
TILE, GAP, LABEL_WIDTH, HEADER = 48, 4, 250, 44
INK, FAINT, PAPER = (30, 30, 30), (110, 110, 110), (255, 255, 255)


def contact_sheet(
    explanation: Explanation,
    images: np.ndarray,
    assignments: np.ndarray,
    intensity: np.ndarray,
    maps_of: Callable[[np.ndarray], np.ndarray],
    crop_side: int,
    seed: int,
) -> Image.Image:
    """Draws a row for each prototype: what it supports, its strongest crops, and random ones against cherry-picking.

    Args:
      explanation: what is written beside the crops.
      images: uint8 `[N, H, W, C]`, C 1 or 3.
      assignments: `[N, h, w]`.
      intensity: `[N, K]` at the last checkpoint.
      maps_of: rows `[n]` to their saliency maps `[n, h, w]` at the last checkpoint.
      crop_side: pixels of a crop, before it is enlarged.
      seed: of the random crops.
    """
    rng = np.random.default_rng(seed)
    row_height = TILE + GAP
    width = LABEL_WIDTH + (STRONGEST + RANDOM + 1) * (TILE + GAP)
    sheet = Image.new("RGB", (width, HEADER + row_height * len(explanation.prototypes)), PAPER)
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(15), ImageFont.load_default(12)
    random_left = LABEL_WIDTH + (STRONGEST + 1) * (TILE + GAP)
    draw.text((8, 14), "prototype, share, supports", INK, large)
    draw.text((LABEL_WIDTH, 14), "strongest saliency at the last checkpoint", INK, large)
    draw.text((random_left, 14), "random members", INK, large)
    for row, prototype in enumerate(explanation.prototypes):
        top = HEADER + row * row_height
        supports = ", ".join(f"{each.name} {each.contribution:+.2f}" for each in prototype.supports)
        draw.text((8, top + 4), f"{prototype.id}   {100 * (prototype.share or 0):.1f} %", INK, large)
        draw.text((8, top + 25), _fitted(supports or "supports no class", small), FAINT, small)
        members = np.flatnonzero((assignments == prototype.id).any(axis=(1, 2)))
        strongest = members[np.argsort(-intensity[members, prototype.id], kind="stable")[:STRONGEST]]
        drawn = rng.permutation(members)[:RANDOM]
        for left, rows in ((LABEL_WIDTH, strongest), (random_left, drawn)):
            for place, tile in enumerate(prototype_crops(images, assignments, maps_of, prototype.id, rows, crop_side)):
                picture = Image.fromarray(tile.squeeze(-1) if tile.shape[-1] == 1 else tile).convert("RGB")
                sheet.paste(picture.resize((TILE, TILE), Image.Resampling.NEAREST), (left + place * (TILE + GAP), top))
    return sheet


def prototype_crops(
    images: np.ndarray,
    assignments: np.ndarray,
    maps_of: Callable[[np.ndarray], np.ndarray],
    prototype: int,
    rows: np.ndarray,
    crop_side: int,
) -> np.ndarray:
    """The crop of each of these samples where the prototype's saliency peaks: `[n, crop_side, crop_side, C]`.

    Every row must have a location of the prototype.
    """
    if not len(rows):
        return np.zeros((0, crop_side, crop_side, images.shape[-1]), images.dtype)
    here = assignments[rows] == prototype
    peak = np.where(here, maps_of(rows), -np.inf).reshape(len(rows), -1).argmax(-1)
    locations = np.stack(np.unravel_index(peak, here.shape[1:]), -1)
    return crops_at(images[rows], locations, here.shape[1:], crop_side)


def _fitted(text, font):
    while font.getlength(text) > LABEL_WIDTH - 16:
        text = text[:-2] + "…"
    return text
