"""What a notebook shows of one prototype, one image, and two classes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from i2x_jax.config import printable
from i2x_jax.explanation.pairs import TOLD_APART
from i2x_jax.explanation.types import PairExplanation
from i2x_jax.models.places import Places
from i2x_jax.results import pictures
from i2x_jax.results.story import Crops, ToldApart

if TYPE_CHECKING:
    import altair

TILE, LARGE = 72, 224  # longer side in pixels: of one among many, and of the image that is looked at
GAP = 6
WIDTH, HEIGHT = 420, 200
# Okabe and Ito (2008), which people with any colour vision tell apart.
FIRST, SECOND, LIMIT = "#0072B2", "#D55E00", "#8a8f98"


def prototype_picture(crops: Crops, images: np.ndarray, drawn: np.ndarray, places: Places) -> Image.Image:
    """Three rows: the strongest crops, the images they are from with crop and seen part framed, and others.

    Args:
      crops: of the prototype, n of them.
      images: uint8 `[n, H, W, C]`, those the crops are from.
      drawn: uint8 `[m, H, W, C]`, members drawn at random, so that nobody has to trust a choice of examples.
      places: of the locations of the map.
    """
    size = pictures.tile_size(images.shape[1:], TILE)
    framed = [
        pictures.framed(image, size, place, places, crops.images.shape[1])
        for image, place in zip(images, crops.locations, strict=True)
    ]
    rows = [
        [pictures.tile(crop, (TILE, TILE)) for crop in crops.images],
        framed,
        [pictures.tile(image, size) for image in drawn],
    ]
    return _stacked([pictures.row_of(row, GAP) for row in rows if row])


def image_picture(
    pixels: np.ndarray,
    assignments: np.ndarray,
    prototypes: Sequence[int],
    maps: np.ndarray,
    evidence: np.ndarray,
    places: Places,
) -> Image.Image:
    """The image beside its strongest prototypes and its pixels' evidence; below, saliency at every checkpoint.

    Args:
      pixels: uint8 `[H, W, C]`.
      assignments: int `[h, w]`.
      prototypes: those that are coloured, strongest first.
      maps: saliency `[T, h, w]`, drawn on one scale.
      evidence: signed, `[H, W]`.
      places: of the locations of the map.
    """
    large = pictures.tile(pixels, pictures.tile_size(pixels.shape, LARGE))
    plain = pictures.tile(pixels, pictures.tile_size(pixels.shape, TILE))
    colours = prototypes[: len(pictures.COLOURS)]
    outlined = pictures.outlined(large, assignments, colours, places, pixels.shape)
    beside = pictures.row_of([large, outlined, pictures.tinted(large, evidence)], GAP)
    overlays = [pictures.overlaid(plain, each, maps.max(), places, pixels.shape) for each in maps]
    return _stacked([beside, pictures.row_of(overlays, GAP)])


def pair_chart(apart: ToldApart, pair: PairExplanation) -> "altair.VConcatChart":
    """Since when two classes are told apart, and the prototypes that separate them at the end."""
    import altair as alt

    a, b = printable(apart.a), printable(apart.b)
    curve = [{"step": int(step), "auc": float(auc)} for step, auc in zip(apart.steps, apart.auc, strict=True)]
    since = "never told apart for good" if apart.step is None else f"told apart from step {apart.step}"
    line = (
        alt.Chart(alt.Data(values=curve))
        .mark_line(point=True, color=FIRST)
        .encode(
            x=alt.X("step:O", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("auc:Q", title="area under the ROC", scale=alt.Scale(domain=(0, 1))),
            tooltip=["step:O", alt.Tooltip("auc:Q", format=".3f")],
        )
    )
    limit = (
        alt.Chart(alt.Data(values=[{"auc": TOLD_APART}])).mark_rule(strokeDash=[4, 3], color=LIMIT).encode(y="auc:Q")
    )
    names = [f"in images of {a}", f"in images of {b}"]
    order = [str(each.prototype) for each in pair.separating]
    evidence = [
        {"prototype": str(each.prototype), "images": name, "evidence": value}
        for each in pair.separating
        for name, value in zip(
            names,
            (each.evidence_a, each.evidence_b) if pair.a == apart.a else (each.evidence_b, each.evidence_a),
            strict=True,
        )
    ]
    bars = (
        alt.Chart(alt.Data(values=evidence))
        .mark_bar()
        .encode(
            y=alt.Y("prototype:N", sort=order),
            yOffset=alt.YOffset("images:N", sort=names),
            x=alt.X("evidence:Q", title="evidence for the right one of the two, logits"),
            color=alt.Color("images:N", sort=names, title=None, scale=alt.Scale(domain=names, range=[FIRST, SECOND])),
            tooltip=["prototype:N", "images:N", alt.Tooltip("evidence:Q", format="+.2f")],
        )
    )
    return alt.vconcat(
        alt.layer(line, limit.encode(y="auc:Q")).properties(width=WIDTH, height=HEIGHT, title=f"{a} and {b}: {since}"),
        bars.properties(width=WIDTH, title="Prototypes that separate them"),
    )


def _stacked(rows):
    """Pictures below each other."""
    sheet = Image.new("RGBA", (max(row.width for row in rows), sum(row.height + GAP for row in rows) - GAP))
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + GAP
    return sheet
