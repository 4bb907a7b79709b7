"""Where locations lie in the image: held against the gradient, for every network here and for some of a user's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i2x_jax import models
from i2x_jax.evidence.geometry import (
    by_cells,
    cell_edges,
    centres_of,
    crop_corners,
    crop_size,
    crops_at,
    location_centres,
    measured_places,
    saliency_crops,
    span_of_support,
)
from i2x_jax.models.places import Places, Span, in_a_row, side_by_side, window
from tests.helpers import drawn, planted, tiny_model, tiny_variables

EVERY_SECOND = Places(Span(0, 2, 5), Span(0, 2, 5))  # of a 5x5 field, padded by two, with a stride of 2


def open_variables(model):
    """Weights that are all positive, and keep the size of what they are applied to: no ReLU closes, nothing cancels."""

    def draw(path, leaf):
        if path[-1].key == "kernel":
            return np.full(leaf.shape, 1 / np.prod(leaf.shape[:-1]), np.float32)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


def supports(model, axis, shape, places):
    """First and last pixel, along an axis, of what the gradient of each of these locations of the map reaches."""
    variables = open_variables(model)
    ramp = np.linspace(200, 255, shape[axis], dtype=np.float32)
    # A pool picks the largest of its window: with levels that rise the last pixel, with levels that fall the first.
    images = np.stack(
        [np.moveaxis(np.broadcast_to(r, shape[::-1] if axis == 0 else shape), -1, axis) for r in (ramp, ramp[::-1])]
    )[..., None]

    @jax.jit
    def slope(images, place):
        return jax.grad(lambda x: jnp.take(model.features(variables, x), place, axis + 1).sum())(images)

    for place in places:
        touched = np.flatnonzero(np.moveaxis(np.asarray(slope(images, place)), axis + 1, 0).any((1, 2, 3)))
        yield touched[0], touched[-1]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


# Network, stem, tap, the shorter side of the images: as short as the network takes, or its field would be too large.
NETWORKS = [
    ("cnn", "", "conv2", 8),
    ("cnn", "", "conv4", 8),
    ("resnet20", "", "stage2", 4),
    slow("resnet20", "", "stage3", 4),
    slow("resnet18", "cifar", "stage2", 4),
    ("resnet18", "imagenet", "stem", 4),
    slow("resnet18", "imagenet", "stage4", 4),
    slow("resnet50", "imagenet", "stage4", 4),
    slow("inception_v3", "", "stem", 75),
    slow("inception_v3", "", "mixed_5b", 75),
    slow("inception_v3", "", "mixed_6a", 75),
    slow("inception_v3", "", "mixed_6b", 75),
    slow("inception_v3", "", "mixed_7a", 75),
    slow("inception_v3", "", "mixed_7c", 75),
]


@functools.cache
def taps(name, stem):
    return models.taps(name, num_classes=2, image_shape=(299, 299, 1), width=1, stem=stem)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("name", "stem", "tap", "short"), NETWORKS)
def test_a_location_sees_exactly_what_its_gradient_reaches(name, stem, tap, short, axis):
    settings = {
        "num_classes": 2,
        "width": 1 if name == "inception_v3" else 2,
        "stem": stem,
        "tap": tap,
        "allow_1x1": True,
    }
    stated = next(each for each in taps(name, stem) if each.name == tap).places
    long = int(stated[axis].side + 4 * stated[axis].stride + 75)
    shape = (long, short) if axis == 0 else (short, long)
    model = models.create(name, image_shape=(*shape, 1), **settings)
    span, count = model.places[axis], model.feature_shape[axis]
    centres = span.start + span.stride * np.arange(count)
    whole = [i for i, c in enumerate(centres) if 1 <= c - (span.side - 1) / 2 and c + (span.side - 1) / 2 <= long - 2]
    assert len(whole) >= 2
    *inside, (first, last) = supports(model, axis, shape, (whole[0], whole[-1], 0))
    for place, (low, high) in zip((whole[0], whole[-1]), inside, strict=True):
        assert high - low + 1 == span.side
        assert (low + high) / 2 == centres[place]
    # At a border the field is cut off there, and no more of it.
    assert (first, last) == (max(0, centres[0] - (span.side - 1) / 2), centres[0] + (span.side - 1) / 2)


def test_locations_of_the_networks_here():
    """The paddings of ResNets keep location 0 on pixel 0; InceptionV3's first layers have none."""
    of_28 = models.create("cnn", num_classes=3, image_shape=(28, 28, 1), width=2)
    assert of_28.places == Places(Span(0, 4, 17), Span(0, 4, 17))
    assert location_centres(of_28.places, (7, 7))[3, 5].tolist() == [12, 20]
    assert location_centres(of_28.places, (7, 7)).shape == (7, 7, 2)
    of_299 = models.taps("inception_v3", num_classes=3, image_shape=(299, 299, 3), width=1)[-1].places
    centres = location_centres(of_299, (8, 8))
    assert centres[0, 0].tolist() == [37, 37]
    np.testing.assert_array_equal(centres + centres[::-1, ::-1], 298)


class TestSpans:
    def test_a_window(self):
        assert window(3, 2, 1) == Span(0, 2, 3)
        assert window(2, 2) == Span(0.5, 2, 2)
        assert window(3, 2) == Span(1, 2, 3)

    def test_in_a_row(self):
        two = in_a_row([Places(window(3, 2), window(1)), Places(window(4, 3, 1), window(5, 1, 2))])
        # Location 0 of the second sees -1 to 2 of the first, and so pixels -2 to 6.
        assert two == Places(Span(2, 6, 9), Span(0, 1, 5))

    def test_side_by_side_what_any_path_sees(self):
        one_sided, other = Places(window(3), window(1)), Places(window(4, 1, 3), window(3, 1, 1))
        # Pixels 0 to 2, and -3 to 0.
        assert side_by_side([one_sided, other]) == Places(Span(-0.5, 1, 6), Span(0, 1, 3))


def test_cells_end_half_way_between_centres():
    assert cell_edges(Span(0, 4, 17), 7, 28).tolist() == [0, 2.5, 6.5, 10.5, 14.5, 18.5, 22.5, 28]
    assert cell_edges(Span(0.5, 2, 2), 4, 8).tolist() == [0, 2, 4, 6, 8]
    assert cell_edges(Span(3, 8, 2), 1, 8).tolist() == [0, 8]


class TestMeasured:
    images = planted(4, side=8).images

    def places(self, features, variables=None, images=None):
        return measured_places(features, variables, self.images if images is None else images)

    @pytest.mark.parametrize("tap", ["conv1", "conv2", "conv4"])
    def test_of_a_network_here_it_is_what_its_kernels_say(self, tap):
        model = tiny_model(tap)
        assert self.places(model.features, tiny_variables()) == model.places

    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "side"), [("resnet20", 32), ("resnet18", 64)])
    def test_of_a_deep_network_too(self, name, side):
        model = models.create(name, num_classes=3, image_shape=(side, side, 1), width=4)
        assert self.places(model.features, drawn(model), planted(3, side=side).images) == model.places

    def conv(self, kernel, strides, padding):
        weights = np.random.default_rng(0).normal(size=(*kernel, 1, 4)).astype(np.float32)
        numbers = ("NHWC", "HWIO", "NHWC")
        return lambda _, x: jax.nn.relu(
            jax.lax.conv_general_dilated(x / 255, weights, strides, padding, dimension_numbers=numbers)
        )

    def test_padding_on_one_side(self):
        # On an even side 'SAME' pads a stride of 2 behind the image only.
        assert self.places(self.conv((3, 3), (2, 2), "SAME")) == Places(Span(1, 2, 3), Span(1, 2, 3))

    def test_rows_unlike_columns(self):
        places = self.places(self.conv((1, 5), (1, 2), [(0, 0), (3, 0)]))
        assert places == Places(Span(0, 1, 1), Span(-1, 2, 5))

    def test_large_fields_are_measured_on_larger_images(self):
        assert self.places(self.conv((15, 15), (2, 2), [(7, 7)] * 2)) == Places(Span(0, 2, 15), Span(0, 2, 15))

    def test_long_images(self):
        images = np.zeros((2, 1, 64, 1), np.uint8)
        assert self.places(self.conv((3, 3), (2, 2), [(1, 1)] * 2), images=images) == Places(
            Span(0, 2, 3), Span(0, 2, 3)
        )

    def test_what_sees_everything_is_taken_by_cells(self):
        inner = self.conv((3, 3), (2, 2), "SAME")
        places = self.places(lambda v, x: inner(v, x) - inner(v, x).mean((1, 2), keepdims=True))
        assert places == by_cells((8, 8), (4, 4)) == Places(Span(0.5, 2, 8), Span(0.5, 2, 8))

    @pytest.mark.parametrize(
        "features",
        [
            lambda _, x: jnp.eye(256)[x[:, ::2, ::2, 0]],  # takes integers only
            lambda _, x: jnp.round(x[:, ::2, ::2] / 255),  # has no gradient
            lambda _, x: x.reshape(-1, 64).reshape(-1, 8, 8, 1)[:, ::2, ::2] * x.mean(),  # sees all, has its own shape
        ],
        ids=["integers", "steps", "one shape"],
    )
    def test_what_cannot_be_measured_is_taken_by_cells(self, features):
        images = self.images
        if "eye" in features.__code__.co_names:
            with pytest.raises(TypeError):
                features(None, jnp.float32(images))
        assert self.places(features) == by_cells((8, 8), (4, 4))

    def test_a_map_of_one_size_for_all_images_is_not_measured_on_larger_ones(self):
        inner = self.conv((15, 15), (1, 1), "SAME")
        places = self.places(lambda v, x: jax.image.resize(inner(v, x), (len(x), 4, 4, 4), "linear"))
        assert places == by_cells((8, 8), (4, 4))

    def test_edges_that_a_closed_relu_hides_do_not_move_the_others(self):
        pixels, places = np.arange(40), np.arange(8)
        touched = np.abs(pixels - (4 * places + 1)[:, None]) <= 3
        assert span_of_support(places, touched) == Span(1, 4, 7)
        touched[2, 6] = touched[4, 20] = False  # the first pixel of one field, the last of another
        touched[5] = False
        assert span_of_support(places, touched) == Span(1, 4, 7)
        assert span_of_support(places, np.zeros_like(touched)) is None
        assert span_of_support(places, np.ones_like(touched)) is None


def test_a_bright_dot_is_in_the_middle_of_its_crop():
    """Through a network that passes on the pixel that its locations are centred on."""
    model = models.create("cnn", num_classes=2, image_shape=(28, 28, 1), width=1)

    def middle_only(path, leaf):
        values = np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)
        if path[-1].key == "kernel" and leaf.ndim == 4:
            values[1, 1] = 1
        return values

    variables = jax.tree_util.tree_map_with_path(middle_only, jax.eval_shape(model.init, jax.random.key(0)))
    locations = np.array([[3, 4], [1, 1], [5, 2]])
    centres = centres_of(model.places, locations).astype(int)
    images = np.zeros((3, 28, 28, 1), np.uint8)
    images[np.arange(3), centres[:, 0], centres[:, 1]] = 255
    maps = np.asarray(jax.jit(model.features)(variables, images))[..., 0]
    assert np.argwhere(maps > 0)[:, 1:].tolist() == locations.tolist()
    size = 7
    crops = saliency_crops(images, maps, model.places, size)
    assert np.argwhere(crops[..., 0])[:, 1:].tolist() == [[3, 3]] * 3
    np.testing.assert_array_equal(crops, crops_at(images, locations, model.places, size))
    assert crop_corners(locations, model.places, size).tolist() == (centres - 3).tolist()


class TestCrops:
    # Pixel (row, column) of the image holds 10 row + column.
    image = (10 * np.arange(8)[:, None] + np.arange(8)).astype(np.uint8)[None, ..., None]

    def crop(self, row, column, size, places=EVERY_SECOND):
        heat = np.zeros((1, 8, 8), np.float32)
        heat[0, row, column] = 1
        crop = saliency_crops(self.image, heat, places, size)
        assert crop.shape == (1, size, size, 1)
        assert crop.dtype == np.uint8
        return crop[0, ..., 0].tolist()

    @pytest.mark.parametrize(("row", "column"), [(1, 1), (1, 2), (2, 3), (3, 1)])
    def test_the_middle_pixel_of_an_odd_crop_is_the_centre_of_its_location(self, row, column):
        centre = 20 * row + 2 * column
        assert self.crop(row, column, 1) == [[centre]]
        assert self.crop(row, column, 3)[1][1] == centre
        assert [line[0] for line in self.crop(row, column, 3)] == [centre - 11, centre - 1, centre + 9]
        # One pixel off is another crop.
        assert self.crop(row, column, 3) != self.crop(row, column, 3, Places(Span(1, 2, 5), Span(1, 2, 5)))

    def test_an_even_crop_reaches_half_a_pixel_farther(self):
        # Location 1 of 4 is centred on pixel 2.
        assert self.crop(1, 1, 2) == [[22, 23], [32, 33]]

    def test_between_two_pixels_an_even_crop_is_centred_exactly(self):
        # Two pixels to a location, 2 and 3 to location 1: as of a 2x2 convolution with a stride of 2.
        pairs = Places(Span(0.5, 2, 2), Span(0.5, 2, 2))
        assert self.crop(1, 1, 2, pairs) == [[22, 23], [32, 33]]
        assert self.crop(1, 1, 4, pairs)[0] == [11, 12, 13, 14]

    def test_a_larger_crop_grows_around_the_same_centre(self):
        assert self.crop(1, 2, 4) == [[13, 14, 15, 16], [23, 24, 25, 26], [33, 34, 35, 36], [43, 44, 45, 46]]

    def test_corners_are_filled_with_the_edge(self):
        assert self.crop(0, 0, 4) == [[0, 0, 1, 2], [0, 0, 1, 2], [10, 10, 11, 12], [20, 20, 21, 22]]
        assert self.crop(3, 3, 4) == [[55, 56, 57, 57], [65, 66, 67, 67], [75, 76, 77, 77], [75, 76, 77, 77]]
        assert self.crop(0, 3, 4) == [[5, 6, 7, 7], [5, 6, 7, 7], [15, 16, 17, 17], [25, 26, 27, 27]]

    def test_a_map_as_large_as_the_image_is_centred_on_its_pixel(self):
        same = Places(Span(0, 1, 3), Span(0, 1, 3))
        assert self.crop(5, 2, 1, same) == [[52]]
        assert self.crop(5, 2, 3, same) == [[41, 42, 43], [51, 52, 53], [61, 62, 63]]

    def test_the_first_of_equal_maxima_counts(self):
        crop = saliency_crops(self.image, np.zeros((1, 4, 4), np.float32), EVERY_SECOND, 2)
        assert crop[0, ..., 0].tolist() == [[0, 1], [10, 11]]

    def test_each_image_has_its_own_place_and_all_its_channels(self):
        images = np.concatenate([self.image, self.image + 100]).repeat(3, axis=-1)
        heat = np.zeros((2, 4, 4), np.float32)
        heat[0, 0, 1] = heat[1, 3, 0] = 1
        crops = saliency_crops(images, heat, EVERY_SECOND, 2)
        assert crops.shape == (2, 2, 2, 3)
        assert crops[0, ..., 2].tolist() == [[2, 3], [12, 13]]
        assert crops[1, ..., 0].tolist() == [[160, 161], [170, 171]]

    def test_images_need_not_be_square(self):
        wide = np.concatenate([self.image, self.image + 100], axis=2)
        heat = np.zeros((1, 4, 4), np.float32)
        heat[0, 0, 2] = 1
        # A location is 2 rows by 4 columns; the centre of this one lies between columns 9 and 10.
        assert saliency_crops(wide, heat, by_cells((8, 16), (4, 4)), 2)[0, ..., 0].tolist() == [[101, 102], [111, 112]]

    def test_size_is_the_receptive_field_up_to_half_the_image(self):
        assert crop_size(tiny_model(), (8, 8, 1)) == 4
        assert crop_size(tiny_model("conv1"), (8, 8, 1)) == 3
        assert crop_size(tiny_model(), (100, 20, 1)) == 10
        assert crop_size(tiny_model(), (1, 1, 1)) == 1
