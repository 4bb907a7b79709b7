"""One picture at a time: what Pillow's kinds become, what is refused, and sizes beside torchvision's."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from i2x_jax.config import DataConfig, InputError
from i2x_jax.data import pictures
from i2x_jax.data.pictures import Reading, UnusableError, decoded, prepared, prepared_array, reading_of, size_of

GREY = np.arange(0, 240, 5, dtype=np.uint8).reshape(6, 8)
COLOUR = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def levels(content):
    return np.asarray(decoded(content))


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


class TestKinds:
    @pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
    def test_colour_and_grey_are_as_stored(self, kind):
        np.testing.assert_array_equal(levels(saved(Image.fromarray(COLOUR), kind)), COLOUR)
        np.testing.assert_array_equal(levels(saved(Image.fromarray(GREY), kind)), GREY)

    @pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
    def test_kinds_with_losses_are_as_pillow_has_them(self, kind):
        content = saved(Image.fromarray(COLOUR), kind)
        np.testing.assert_array_equal(levels(content), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))

    def test_a_single_gif_is_its_picture(self):
        np.testing.assert_array_equal(levels(saved(Image.fromarray(GREY), "GIF")), GREY)

    def test_palettes_become_colours(self):
        image = Image.fromarray(COLOUR).quantize(16)
        np.testing.assert_array_equal(levels(saved(image)), np.asarray(image.convert("RGB")))

    def test_one_bit_becomes_black_and_white(self):
        image = Image.fromarray(GREY).point(lambda level: 255 * (level > 100)).convert("1")
        np.testing.assert_array_equal(levels(saved(image)), 255 * (GREY > 100))

    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
    def test_of_16_bits_the_upper_8_are_kept(self, kind):
        wide = GREY.astype(np.uint16) * 256 + 77
        np.testing.assert_array_equal(levels(saved(Image.fromarray(wide), kind)), GREY)

    def test_what_is_opaque_only_loses_its_alpha(self):
        opaque = np.dstack([COLOUR, np.full((6, 8), 255, np.uint8)])
        np.testing.assert_array_equal(levels(saved(Image.fromarray(opaque))), COLOUR)

    def test_what_is_transparent_lies_on_white(self):
        alpha = np.zeros((6, 8), np.uint8)
        alpha[:3] = 255
        found = levels(saved(Image.fromarray(np.dstack([COLOUR, alpha]))))
        np.testing.assert_array_equal(found[:3], COLOUR[:3])
        assert (found[3:] == 255).all()
        found = levels(saved(Image.fromarray(np.dstack([GREY, alpha]), "LA")))
        np.testing.assert_array_equal(found[:3], GREY[:3])
        assert (found[3:] == 255).all()

    def test_a_transparent_colour_of_a_palette_lies_on_white(self):
        image = Image.fromarray(np.uint8([[0, 1]]), "P")
        image.putpalette([10, 20, 30, 40, 50, 60])
        assert levels(saved(image, transparency=0)).tolist() == [[[255, 255, 255], [40, 50, 60]]]

    def test_cmyk_becomes_rgb(self):
        image = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
        red = levels(saved(image, "JPEG", quality=95))
        assert red.shape == (4, 4, 3)
        assert np.abs(red.astype(int) - (255, 0, 0)).max() < 8

    @pytest.mark.parametrize(
        ("orientation", "upright"),
        [(1, GREY), (2, GREY[:, ::-1]), (3, GREY[::-1, ::-1]), (6, np.rot90(GREY, -1)), (8, np.rot90(GREY))],
    )
    def test_exif_turns_it_upright(self, orientation, upright):
        content = saved(Image.fromarray(GREY), exif=turned(orientation))
        np.testing.assert_array_equal(levels(content), upright)


def animated(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:])


def truncated(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))
    content = saved(noise, kind)
    return content[: len(content) // 2]


def damaged():
    content = bytearray(saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))))
    content[len(content) // 2] ^= 255
    return bytes(content)


def large():
    # A header that promises more than Pillow's limit.
    content = bytearray(saved(Image.new("1", (8, 8)), "BMP"))
    content[18:26] = np.array([20_000, 20_000], "<i4").tobytes()
    return bytes(content)


UNUSABLE = {
    "empty": (lambda: b"", "is empty"),
    "text": (lambda: b"not a picture", "is no picture of a kind that is read"),
    "a page": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is no picture of a kind that is read"),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no picture of a kind"),
    "half a PNG": (lambda: truncated("PNG"), "cannot be decoded (image file is truncated"),
    "half a JPEG": (lambda: truncated("JPEG"), "cannot be decoded (image file is truncated"),
    "half a BMP": (lambda: truncated("BMP"), "cannot be decoded (image file is truncated"),
    "half a WEBP": (lambda: truncated("WEBP"), "c"),
    "a PNG's head": (lambda: truncated("PNG")[:20], "cannot be decoded (Truncated File Read)"),
    "a flipped byte": (damaged, "cannot be decoded ("),
    "moving GIF": (lambda: animated("GIF"), "has 3 frames, where one is allowed"),
    "moving PNG": (lambda: animated("PNG"), "has 3 frames, where one is allowed"),
    "moving WEBP": (lambda: animated("WEBP"), "has 3 frames, where one is allowed"),
    "pages of a TIFF": (lambda: animated("TIFF"), "has 3 frames, where one is allowed"),
    "floats": (lambda: saved(Image.new("F", (4, 4)), "TIFF"), "mode 'F', where 8 or 16 bits"),
    "32 bits": (lambda: saved(Image.new("I", (4, 4)), "TIFF"), "mode 'I', where 8 or 16 bits"),
    "Lab": (lambda: saved(Image.new("LAB", (4, 4)), "TIFF"), "mode 'LAB', where 8 or 16 bits"),
    "a bomb": (large, "pixels than Pillow's limit of 89,478,485"),
}


@pytest.mark.parametrize(("make", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_cannot_be_read_right_says_why(make, reason):
    with pytest.raises(UnusableError) as error:
        decoded(make())
    assert reason in str(error.value)
    assert len(str(error.value).splitlines()) == 1


class TestSizes:
    @pytest.fixture
    def photographs(self):
        """Smooth pictures with edges, of several proportions."""
        rng = np.random.default_rng(1)
        made = []
        for height, width in ((300, 400), (500, 333), (224, 900), (256, 256), (301, 301), (64, 80)):
            small = Image.fromarray(rng.integers(0, 256, (9, 12, 3)).astype(np.uint8))
            made.append(small.resize((width, height), Image.Resampling.BICUBIC))
        return made

    def test_imagenet_is_torchvisions_evaluation_transform_to_a_grey_level(self, photographs):
        transforms = pytest.importorskip("torchvision.transforms.v2")
        theirs = transforms.Compose([transforms.Resize(256, antialias=True), transforms.CenterCrop(224)])
        how = reading_of(DataConfig(preprocess="imagenet"))
        for image in photographs:
            found = prepared(image, how)
            assert found.shape == (224, 224, 3)
            assert np.abs(found.astype(int) - np.asarray(theirs(image))).max() <= 1

    @pytest.mark.parametrize(("interpolation", "side"), [("bicubic", 96), ("nearest", 50), ("bilinear", 330)])
    def test_other_sizes_are_torchvisions_too(self, photographs, interpolation, side):
        transforms = pytest.importorskip("torchvision.transforms.v2")
        mode = transforms.InterpolationMode(interpolation)
        theirs = transforms.Compose([transforms.Resize(side, mode, antialias=True), transforms.CenterCrop(side - 7)])
        how = reading_of(DataConfig(resize=side, crop=side - 7, interpolation=interpolation))
        for image in photographs:
            assert np.abs(prepared(image, how).astype(int) - np.asarray(theirs(image))).max() <= 1

    def test_golden_values(self):
        # As torchvision 0.29.1 gave them.
        image = Image.fromarray((np.add.outer(np.arange(12) * 7, np.arange(20) * 11) % 256).astype(np.uint8))
        found = prepared(image, Reading(resize=6, crop=4))[..., 0]
        assert found.tolist() == [[90, 112, 134, 156], [104, 126, 148, 170], [118, 140, 162, 184], [132, 154, 176, 198]]

    def test_size_of_foresees_the_size(self, photographs):
        for how in (Reading(), Reading(size=9), Reading(resize=40), Reading(resize=40, crop=33), Reading(crop=64)):
            for image in photographs:
                assert size_of(how, image.height, image.width) == prepared(image, how).shape[:2]

    def test_a_crop_that_does_not_fit_is_foreseen_and_refused(self):
        assert size_of(Reading(crop=9), 20, 8) == (0, 0)
        with pytest.raises(InputError, match=r"an image has 6x8 pixels; allowed: at least 7 after data\.resize"):
            prepared_array(COLOUR, Reading(crop=7))

    def test_channels(self):
        assert prepared_array(COLOUR, Reading(channels=1)).shape == (6, 8, 1)
        grey = prepared_array(GREY[..., None], Reading(channels=3))
        np.testing.assert_array_equal(grey, np.repeat(GREY[..., None], 3, -1))

    def test_arrays_and_files_are_prepared_alike(self):
        for image in (COLOUR, GREY[..., None]):
            for how in (Reading(), Reading(size=5), Reading(resize=4, crop=3), Reading(channels=3)):
                found = prepared(decoded(saved(Image.fromarray(image.squeeze()))), how)
                np.testing.assert_array_equal(found, prepared_array(image, how))


class TestSettings:
    def test_a_word_stands_for_two(self):
        assert reading_of(DataConfig(preprocess="imagenet"))[:4] == (0, 256, 224, "bilinear")

    @pytest.mark.parametrize(
        ("settings", "line"),
        [
            ({"preprocess": "imagenet", "crop": 8}, "data.crop is 8 beside data.preprocess 'imagenet'"),
            ({"preprocess": "imagenet", "image_size": 8}, "data.image_size is 8 beside data.preprocess"),
            ({"image_size": 8, "resize": 9}, "data.resize is 9 beside data.image_size 8"),
            ({"resize": 8, "crop": 9}, "data.crop is 9; allowed: at most 8, which is data.resize"),
            ({"channels": 2}, "data.channels is 2; allowed: 0, 1, 3"),
        ],
    )
    def test_contradictions_are_refused(self, settings, line):
        with pytest.raises(InputError, match=line):
            DataConfig(**settings)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnusableError, match="is no file"):
        pictures.read_file(str(tmp_path / "pipe.png"))


def test_a_file_beyond_the_limit_is_not_read(tmp_path):
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(pictures.LARGEST_FILE + 1)
    with pytest.raises(UnusableError, match="has 1,073,741,825 bytes, more than 1,073,741,824"):
        pictures.read_file(str(tmp_path / "huge.png"))
