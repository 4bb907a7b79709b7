"""Taking a prototype's pixels away: which pixels, what is put there, and sums by prototype, by loops."""

import numpy as np
import pytest

from i2x_jax.evidence import deletion
from i2x_jax.models import Tapped
from i2x_jax.models.places import Places, Span
from tests.helpers import tiny_model, tiny_variables


def test_a_pixel_goes_with_the_nearest_location():
    places = Places(Span(0, 4, 21), Span(1.5, 4, 4))
    rows, columns = deletion.pixel_locations(places, (7, 3), (28, 12))
    centres = np.arange(7) * 4, 1.5 + 4 * np.arange(3)
    for found, middle, length in zip((rows, columns), centres, (28, 12), strict=True):
        away = abs(np.arange(length)[:, None] - middle)
        # A pixel in the middle between two may go with either.
        np.testing.assert_array_equal(away[np.arange(length), found], away.min(1))
    assignments = np.arange(21).reshape(1, 7, 3)
    pixels = deletion.pixel_prototypes(assignments, places, (28, 12))
    np.testing.assert_array_equal(pixels[0], 3 * rows[:, None] + columns)


class TestFilling:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)

    def test_each_is_what_it_is_called(self):
        colour = np.array([10.4, 20.6, 30])
        assert not deletion.filling(self.images, "black", colour).any()
        np.testing.assert_array_equal(deletion.filling(self.images, "mean", colour)[2, 3, 4], [10, 21, 30])
        np.testing.assert_array_equal(deletion.filling(self.images, "other", colour)[1], self.images[3])
        blurred = deletion.filling(self.images, "blur", colour).astype(float)
        assert blurred.std() < 0.5 * self.images.std()
        np.testing.assert_allclose(blurred.mean((1, 2)), self.images.mean((1, 2)), atol=15)

    @pytest.mark.parametrize("fill", deletion.FILLS)
    def test_nothing_but_the_pixels_that_are_gone_changes(self, fill):
        put = deletion.filling(self.images, fill, np.zeros(3))
        assert (put.shape, put.dtype) == (self.images.shape, np.uint8)
        gone = np.random.default_rng(1).uniform(size=(4, 8, 8)) < 0.3
        left = deletion.deleted(self.images, gone, put)
        np.testing.assert_array_equal(left[~gone], self.images[~gone])
        np.testing.assert_array_equal(left[gone], put[gone])


def test_ink_is_what_differs_from_the_median_level():
    image = np.full((1, 3, 3, 2), 40, np.uint8)
    image[0, 1, 1] = 100, 30
    expected = np.zeros((1, 3, 3))
    expected[0, 1, 1] = 60 + 10
    np.testing.assert_array_equal(deletion.ink(image), expected)
    assert not deletion.ink(image[:, :1]).any()


def test_sums_by_prototype_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    values, of = rng.normal(size=(3, 4, 5)), rng.integers(0, 6, (3, 4, 5))
    found = deletion.by_prototype(values, of, 7)
    for image, row in enumerate(found):
        np.testing.assert_allclose(row, [values[image][of[image] == k].sum() for k in range(7)], atol=1e-12)


def test_what_logits_owe_to_locations_adds_up_to_them():
    model, variables = tiny_model(), tiny_variables()
    features = np.float32(np.random.default_rng(0).uniform(size=(5, *model.feature_shape)))
    logits = np.asarray(deletion.logits_of(model, variables, Tapped(features)))
    kept = np.argsort(-logits, 1)[:, :2].astype(np.int32)
    owed, maps = deletion.owed(model, variables, Tapped(features), features[:1], kept, "gradcam")
    bias = np.asarray(model.linear_head(variables)[1])
    np.testing.assert_allclose(owed.sum((1, 2)) + bias[kept], np.take_along_axis(logits, kept, 1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(maps, np.maximum(owed[..., 0], 0), rtol=1e-4, atol=1e-5)
