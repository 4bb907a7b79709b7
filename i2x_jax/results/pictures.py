"""Images, crops and saliency as small pictures, compressed and ready to be embedded in a page."""

import base64
import functools
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from i2x_jax.evidence.geometry import cell_edges, centres_of, crop_corners
from i2x_jax.models.places import Places

# Of Okabe and Ito (2008), which people with any colour vision tell apart.
HEAT = (230, 97, 0)
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (0, 114, 178))
FRAME, SEEN = (230, 97, 0), (86, 180, 233)
GAP = 2
# A tile is no longer than so many times its other side: of an image of 16x512 it would else be a line.
LONGEST = 4
WEBP_SIDE = 16383  # pixels, the most that WebP can hold


def tile_size(image_shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """Width and height in pixels of a tile whose longer side is `side`, from an image's shape (H, W, ...).

    It keeps the proportions of the image, up to `LONGEST`.
    """
    height, width = image_shape[:2]
    scale, shortest = side / max(height, width), max(1, round(side / LONGEST))
    return max(shortest, round(width * scale)), max(shortest, round(height * scale))


def tile(pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Pixels uint8 `[H, W, C]`, C 1 or 3, at another size; what is enlarged keeps its pixels to be seen."""
    picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).convert("RGB")
    # Either side for itself: an image may be longer than the tile and not as high.
    smaller = min(size[0], picture.width), min(size[1], picture.height)
    return picture.resize(smaller, Image.Resampling.LANCZOS).resize(size, Image.Resampling.NEAREST)


def framed(
    pixels: np.ndarray, size: tuple[int, int], location: np.ndarray, places: Places, crop_side: int
) -> Image.Image:
    """An image as a tile, with what a location of the feature map can see, and the crop around it, framed.

    Args:
      pixels: uint8 `[H, W, C]`.
      size: of the tile, width and height.
      location: row and column in the feature map.
      places: of the map.
      crop_side: of the crop, in pixels of the image.
    """
    picture, location = tile(pixels, size), np.asarray(location)
    sides = np.array([span.side for span in places])
    # Pixel i reaches from i to i + 1 when counted by edges, as frames are.
    draw_frame(picture, pixels.shape, centres_of(places, location) + 0.5 - sides / 2, sides, SEEN)
    draw_frame(picture, pixels.shape, crop_corners(location, places, crop_side), crop_side, FRAME)
    return picture


def draw_frame(
    picture: Image.Image,
    image_shape: tuple[int, ...],
    corner: np.ndarray,
    sides: np.ndarray | int,
    colour: tuple[int, int, int],
    width: int = 1,
) -> None:
    """Frames pixels of an image on its tile; what lies outside is cut off, and at least a pixel is drawn.

    Args:
      picture: the tile.
      image_shape: (H, W, ...).
      corner: where the first row and the first column begin, in pixels of the image.
      sides: how many rows and columns.
      colour: of the frame.
      width: of its line, in pixels of the tile.
    """
    tile_shape = np.array(picture.size[::-1])
    scale = tile_shape / image_shape[:2]
    first = np.clip(np.round(corner * scale), 0, tile_shape - 1)
    end = np.clip(np.round((corner + sides) * scale), first + 1, tile_shape)
    (top, left), (bottom, right) = first.astype(int).tolist(), end.astype(int).tolist()
    # Four bars: `ImageDraw.rectangle` leaves one that is narrower than its line.
    across, down = min(width, right - left), min(width, bottom - top)
    picture.paste(colour, (left, top, right, top + down))
    picture.paste(colour, (left, bottom - down, right, bottom))
    picture.paste(colour, (left, top, left + across, bottom))
    picture.paste(colour, (right - across, top, right, bottom))


def overlaid(
    picture: Image.Image, saliency: np.ndarray, largest: float, places: Places, image_shape: tuple[int, ...]
) -> Image.Image:
    """A tile in grey under its saliency: the more salient, the more opaque the colour.

    Args:
      picture: the tile.
      saliency: `[h, w]`; what is below 0 counts as 0. Between the centres of locations it is interpolated.
      largest: the value that is drawn in full.
      places: of the map.
      image_shape: (H, W, ...).
    """
    strength = np.clip(np.asarray(saliency, np.float64) / largest if largest > 0 else 0 * saliency, 0, 1)
    for axis, (span, pixels) in enumerate(zip(places, image_shape[:2], strict=True)):
        length = picture.size[1 - axis]
        # The centre of each pixel of the tile, on the map.
        at = ((np.arange(length) + 0.5) * pixels / length - 0.5 - span.start) / span.stride
        at = np.clip(at, 0, strength.shape[axis] - 1)
        below = at.astype(int)
        above = np.minimum(below + 1, strength.shape[axis] - 1)
        share = np.expand_dims(at - below, 1 - axis)
        strength = (1 - share) * strength.take(below, axis) + share * strength.take(above, axis)
    mask = Image.fromarray(np.uint8(np.round(220 * strength)))
    grey = picture.convert("L").convert("RGB")
    return Image.composite(Image.new("RGB", picture.size, HEAT), grey, mask)


def tinted(picture: Image.Image, evidence: np.ndarray) -> Image.Image:
    """A tile in pale grey under the evidence of its pixels: orange for it, blue against it, the more the more opaque.

    Args:
      picture: the tile.
      evidence: signed, `[H, W]`; the largest is drawn in full. What is smaller than a pixel of the tile is averaged.
    """
    largest = np.abs(evidence).max()
    share = Image.fromarray(np.float32(evidence / largest if largest > 0 else evidence))
    share = np.asarray(share.resize(picture.size, Image.Resampling.BOX))
    grey = np.float32(picture.convert("L"))[..., None] / 2 + 127
    colour = np.where(share[..., None] > 0, HEAT, COLOURS[-1])
    strength = np.abs(share)[..., None]
    return Image.fromarray(np.uint8(np.round((1 - strength) * grey + strength * colour)))


def outlined(
    picture: Image.Image,
    assignments: np.ndarray,
    prototypes: Sequence[int],
    places: Places,
    image_shape: tuple[int, ...],
) -> Image.Image:
    """A tile in grey with the locations of some prototypes coloured and numbered.

    A location is drawn as the pixels that are nearer to it than to any other.

    Args:
      picture: the tile.
      assignments: `[h, w]`, the prototype of every location.
      prototypes: at most as many as there are `COLOURS`; the first has the first colour.
      places: of the map.
      image_shape: (H, W, ...).
    """
    picture = picture.convert("L").convert("RGB")
    rows, columns = (
        np.round(cell_edges(span, count, pixels) * length / pixels)
        for span, count, pixels, length in zip(
            places, assignments.shape, image_shape[:2], picture.size[::-1], strict=True
        )
    )
    shade = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(shade)
    for prototype, colour in zip(prototypes, COLOURS, strict=False):
        for row, column in np.argwhere(assignments == prototype):
            top, left, bottom, right = rows[row], columns[column], rows[row + 1], columns[column + 1]
            if bottom <= top or right <= left:  # no pixel of the tile is nearest to this location
                continue
            draw.rectangle((left, top, right - 1, bottom - 1), (*colour, 110), (*colour, 255))
            if (room := min(bottom - top, right - left)) >= 14:
                centre, font = ((left + right) / 2, (top + bottom) / 2), _font(max(8, min(15, int(room * 0.55))))
                draw.text(centre, str(prototype), "white", font, "mm", stroke_width=2, stroke_fill="black")
    return Image.alpha_composite(picture.convert("RGBA"), shade).convert("RGB")


@functools.cache
def _font(size):
    return ImageFont.load_default(size)


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
    """A picture as a WebP `data:` address, lossless where that is smaller; as PNG what is too long for WebP."""
    if max(picture.size) > WEBP_SIDE:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return "data:image/webp;base64," + base64.b64encode(min(_encoded(picture), key=len)).decode()


def _encoded(picture):
    for options in ({"lossless": True, "method": 1, "quality": 40}, {"method": 2, "quality": 80}):
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", **options)
        yield buffer.getvalue()
