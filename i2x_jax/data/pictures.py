"""One picture: decoded by Pillow, turned upright, brought to the size and the channels that are asked for.

What cannot be read right is refused, never guessed. Sizes are torchvision's: equal to `Resize` and `CenterCrop` of
torchvision.transforms.v2 on a Pillow image.
"""

import hashlib
import io
import os
import stat
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from i2x_jax.config import DataConfig, InputError

# Pillow knows others, some of which run programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
# Pictures too, which this program does not read: said, where any other file is passed over.
OTHER_ENDINGS = (".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".psd", ".eps", ".dng", ".cr2", ".nef", ".dcm")
LARGEST_FILE = 2**30
DIGEST_BYTES = 16
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
# What data.preprocess stands for: shorter side, and side of the central square.
PREPROCESS = {"imagenet": (256, 224)}


class Reading(NamedTuple):
    """How images are read, and made what a network takes.

    Attributes:
      size: every image is scaled to a square of so many pixels, whatever its proportions; 0 for not.
      resize: the shorter side is scaled to so many pixels, proportions kept; 0 for not.
      crop: the central square of so many pixels is kept; 0 for all.
      interpolation: of `INTERPOLATIONS`, antialiased where it shrinks.
      channels: 1 for grey, 3 for RGB, 0 for what the set has.
      skip_broken: leave out files that cannot be read, instead of refusing them.
      known: the path of a .npy file of `reading.known_of` the same files, which are then not decoded to be known.
    """

    size: int = 0
    resize: int = 0
    crop: int = 0
    interpolation: str = "bilinear"
    channels: int = 0
    skip_broken: bool = False
    known: str | None = None


AS_IT_IS = Reading()


class UnusableError(Exception):
    """A file that is no picture, or none that can be read right; its text says why."""


class Look(NamedTuple):
    """What is known of a file once it was decoded.

    Attributes:
      size: bytes.
      changed: when it was last changed, in nanoseconds.
      digest: `DIGEST_BYTES` of BLAKE2b over its content.
      height: in pixels, upright.
      width: in pixels, upright.
      grey: whether it has one channel.
    """

    size: int
    changed: int
    digest: bytes
    height: int
    width: int
    grey: bool


def reading_of(settings: DataConfig, known: str | None = None) -> Reading:
    """How the settings want images read."""
    resize, crop = PREPROCESS.get(settings.preprocess, (settings.resize, settings.crop))
    return Reading(
        settings.image_size,
        resize,
        crop,
        settings.interpolation,
        settings.channels,
        settings.skip_broken,
        known,
    )


def read_file(path: str) -> tuple[bytes, os.stat_result]:
    """The content of a file and its state; raises `UnusableError` for what is no file, or is too large."""
    try:
        # A pipe would be waited for, for ever.
        with open(path, "rb", opener=lambda path, how: os.open(path, how | os.O_NONBLOCK)) as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise UnusableError("is no file")
            if state.st_size > LARGEST_FILE:
                raise UnusableError(f"has {state.st_size:,} bytes, more than {LARGEST_FILE:,}")
            return file.read(), state
    # The second of a name that holds a zero byte.
    except (OSError, ValueError) as error:
        raise UnusableError(f"cannot be opened ({getattr(error, 'strerror', None) or error})") from None


def decoded(content: bytes) -> Image.Image:
    """The picture in a file's content, upright, in Pillow's mode 'L' or 'RGB'.

    Transparent pixels are laid on white; of 16 bits the upper 8 are kept; palettes, CMYK and YCbCr become RGB.

    Raises:
      UnusableError: broken, truncated, animated, over Pillow's limit of pixels, or of another kind.
    """
    if not content:
        raise UnusableError("is empty")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit and image.width * image.height > limit:
                raise UnusableError(f"has {image.width}x{image.height} pixels, more than Pillow's limit of {limit:,}")
            frames = getattr(image, "n_frames", 1)
            # The further pictures of a camera's MPO are previews and other views of the first.
            if frames > 1 and image.format != "MPO":
                raise UnusableError(f"has {frames} frames, where one is allowed")
            kind = image.format
            # In place: most pictures need nothing of this, and a copy would take a while.
            ImageOps.exif_transpose(image, in_place=True)
            image.load()
            return _levels(image, kind)
    except UnusableError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = f"{Image.MAX_IMAGE_PIXELS:,}"
        raise UnusableError(f"has more pixels than Pillow's limit of {limit}") from None
    except Image.UnidentifiedImageError:
        raise UnusableError("is no picture of a kind that is read") from None
    # Whatever Pillow's readers raise for what they did not expect: they share no class of errors.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UnusableError(f"cannot be decoded ({reason})") from None


def _levels(image, kind):
    """The picture with 8 bits a channel, without transparency, grey or RGB."""
    if image.mode in ("I;16", "I;16L", "I;16B") or (image.mode == "I" and kind in ("PNG", "PPM")):
        # Pillow would cut off at 255; these formats have at most 16 bits.
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    if image.mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"):
        raise UnusableError(f"has pixels of Pillow's mode {image.mode!r}, where 8 or 16 bits a channel are allowed")
    grey = image.mode in ("1", "L", "LA", "La") or (image.mode == "P" and _is_grey(image.getpalette()))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        # There is no way from these straight to RGBA.
        straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
        image = (image.convert(straight) if straight else image).convert("RGBA")
        if image.getextrema()[3][0] < 255:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    wanted = "L" if grey else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _is_grey(palette):
    levels = np.reshape(palette, (-1, 3))
    return bool((levels == levels[:, :1]).all())


def size_of(how: Reading, height: int, width: int) -> tuple[int, int]:
    """Height and width of an image of this size once it is prepared; 0 and 0 where the crop does not fit."""
    if how.size:
        return how.size, how.size
    height, width = _scaled(how, height, width)
    if not how.crop:
        return height, width
    return (how.crop, how.crop) if how.crop <= min(height, width) else (0, 0)


def _scaled(how, height, width):
    if not how.resize:
        return height, width
    short, long = min(height, width), max(height, width)
    other = max(1, int(how.resize * long / short))
    return (how.resize, other) if height <= width else (other, how.resize)


def prepared(image: Image.Image, how: Reading) -> np.ndarray:
    """A picture of mode 'L' or 'RGB' as a network takes it, uint8 `[H, W, C]`."""
    if how.channels and how.channels != len(image.getbands()):
        image = image.convert("L" if how.channels == 1 else "RGB")
    height, width = (how.size, how.size) if how.size else _scaled(how, image.height, image.width)
    if (width, height) != image.size:
        image = image.resize((width, height), INTERPOLATIONS[how.interpolation])
    if how.crop:
        # torchvision's own rounding.
        top, left = round((height - how.crop) / 2), round((width - how.crop) / 2)
        image = image.crop((left, top, left + how.crop, top + how.crop))
    levels = np.asarray(image)
    return levels if levels.ndim == 3 else levels[..., None]


def prepared_array(image: np.ndarray, how: Reading) -> np.ndarray:
    """As `prepared`, of an image uint8 `[H, W, C]` with 1 or 3 channels."""
    if not (how.size or how.resize or how.crop or how.channels):
        return image
    if how.crop and 0 in size_of(how, *image.shape[:2]):
        raise InputError(
            f"an image has {image.shape[0]}x{image.shape[1]} pixels; allowed: at least {how.crop} after data.resize; "
            "set data.resize or a smaller data.crop"
        )
    return prepared(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), how)


def look(path: str) -> Look:
    """Decodes a file once, to know what is in it; raises `UnusableError` as `read_file` and `decoded`."""
    content, state = read_file(path)
    image = decoded(content)
    digest = hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
    return Look(state.st_size, state.st_mtime_ns, digest, image.height, image.width, image.mode == "L")
