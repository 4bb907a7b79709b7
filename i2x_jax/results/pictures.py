"""Images, crops and saliency as small pictures, compressed and ready to be embedded in a page."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Of Okabe and Ito (2008), which people with any colour vision tell apart.
HEAT = (230, 97, 0)
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (0, 114, 178))
FRAME, SEEN = (230, 97, 0), (86, 180, 233)
GAP = 2


def tile_size(image_shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """Width and height in pixels of a tile whose longer side is `side`, from an image's shape (H, W, ...)."""
    height, width = image_shape[:2]
    scale = side / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def tile(pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Pixels uint8 `[H, W, C]`, C 1 or 3, at another size; what is enlarged keeps its pixels to be seen."""
    picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).convert("RGB")
    larger = size[0] >= picture.width
    return picture.resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS)


def framed(
    pixels: np.ndarray, size: tuple[int, int], location: np.ndarray, map_shape: tuple[int, int], sides: tuple[int, int]
) -> Image.Image:
    """An image as a tile, with what a location of the feature map can see, and the crop around it, framed.

    Args:
      pixels: uint8 `[H, W, C]`.
      size: of the tile, width and height.
      location: row and column in the feature map.
      map_shape: (h, w).
      sides: of the crop and of the receptive field, in pixels of the image.
    """
    picture = tile(pixels, size)
    draw = ImageDraw.Draw(picture)
    scale = np.array(size[::-1]) / pixels.shape[:2]
    centre = (np.asarray(location) + 0.5) / map_shape * size[::-1]
    for side, colour in zip(sides[::-1], (SEEN, FRAME), strict=True):
        reach = side * scale / 2
        top, left = np.clip(np.round(centre - reach), 0, np.array(size[::-1]) - 1)
        bottom, right = np.clip(np.round(centre + reach) - 1, 0, np.array(size[::-1]) - 1)
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour)
    return picture


def overlaid(picture: Image.Image, saliency: np.ndarray, largest: float) -> Image.Image:
    """A tile in grey under its saliency: the more salient, the more opaque the colour.

    Args:
      picture: the tile.
      saliency: `[h, w]`; what is below 0 counts as 0.
      largest: the value that is drawn in full.
    """
    strength = np.clip(np.asarray(saliency, np.float64) / largest if largest > 0 else 0 * saliency, 0, 1)
    mask = Image.fromarray(np.uint8(np.round(220 * strength))).resize(picture.size, Image.Resampling.BILINEAR)
    grey = picture.convert("L").convert("RGB")
    return Image.composite(Image.new("RGB", picture.size, HEAT), grey, mask)


def outlined(picture: Image.Image, assignments: np.ndarray, prototypes: Sequence[int]) -> Image.Image:
    """A tile in grey with the locations of some prototypes coloured and numbered.

    Args:
      picture: the tile.
      assignments: `[h, w]`, the prototype of every location.
      prototypes: at most as many as there are `COLOURS`; the first has the first colour.
    """
    picture = picture.convert("L").convert("RGB")
    h, w = assignments.shape
    cell = picture.width / w, picture.height / h
    shade = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(shade)
    font = ImageFont.load_default(max(8, min(15, int(min(cell) * 0.55))))
    for prototype, colour in zip(prototypes, COLOURS, strict=False):
        for row, column in np.argwhere(assignments == prototype):
            left, top = column * cell[0], row * cell[1]
            draw.rectangle((left, top, left + cell[0] - 1, top + cell[1] - 1), (*colour, 110), (*colour, 255))
            if min(cell) >= 14:
                centre = left + cell[0] / 2, top + cell[1] / 2
                draw.text(centre, str(prototype), "white", font, "mm", stroke_width=2, stroke_fill="black")
    return Image.alpha_composite(picture.convert("RGBA"), shade).convert("RGB")


def row_of(tiles: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Tiles of one size side by side; the gaps between them are transparent."""
    width, height = tiles[0].size
    sheet = Image.new("RGBA", (len(tiles) * (width + gap) - gap, height))
    for place, picture in enumerate(tiles):
        sheet.paste(picture, (place * (width + gap), 0))
    return sheet


def grid_of(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    """Tiles of one size, row by row, without gaps."""
    width, height = tiles[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height))
    for place, picture in enumerate(tiles):
        sheet.paste(picture, (place % columns * width, place // columns * height))
    return sheet


def data_uri(picture: Image.Image) -> str:
    """A picture as a WebP `data:` address; lossless where that is smaller."""
    return "data:image/webp;base64," + base64.b64encode(min(_encoded(picture), key=len)).decode()


def _encoded(picture):
    for options in ({"lossless": True, "method": 1, "quality": 40}, {"method": 2, "quality": 80}):
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", **options)
        yield buffer.getvalue()
