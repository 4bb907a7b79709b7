import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i2x_jax import models
from i2x_jax.config import InputError
from tests.helpers import BFLOAT16, DEEP, assert_trees_equal, one_line, planted, tiny_model, tiny_variables

TAPS = ("conv1", "conv2", "conv3", "conv4")
IMAGES = planted(12).images


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, variables, images):
    return model.head(variables, model.features(variables, images))


def shape_of(name="cnn", side=8, **settings):
    return models.create(name, num_classes=3, image_shape=(side, side, 1), **settings).feature_shape


def test_features_and_logits_have_the_shapes_that_are_declared():
    model, variables = tiny_model(), tiny_variables()
    features = jax.jit(model.features)(variables, IMAGES)
    logits = model.head(variables, features)
    assert features.shape == (12, *model.feature_shape) == (12, 4, 4, 8)
    assert logits.shape == (12, 3)
    assert features.dtype == logits.dtype == jnp.float32


@pytest.mark.parametrize(("side", "expected"), [(8, 4), (28, 7), (32, 8), (5, 5), (2, 2)])
def test_maps_are_halved_while_they_stay_4x4(side, expected):
    assert shape_of(side=side, width=5) == (expected, expected, 10)


def test_images_need_not_be_square():
    model = models.create("cnn", num_classes=3, image_shape=(8, 20, 1), width=2)
    assert model.feature_shape == (4, 10, 4)


@pytest.mark.parametrize(("tap", "shape"), [("conv1", (16, 16, 4)), ("conv2", (8, 8, 8)), ("conv3", (4, 4, 8))])
def test_an_earlier_tap_gives_its_own_map(tap, shape):
    assert shape_of(side=16, width=4, tap=tap) == shape


def test_the_default_tap_is_the_last():
    assert tiny_model().tap == "conv4"
    assert tiny_model("conv2").tap == "conv2"


@pytest.mark.parametrize("tap", TAPS)
def test_every_tap_splits_the_same_network(tap):
    expected = logits_of(tiny_model(), tiny_variables(), IMAGES)
    # The same operations in the same order, but compiled apart.
    np.testing.assert_allclose(logits_of(tiny_model(tap), tiny_variables(), IMAGES), expected, **DEEP)
    assert np.ptp(expected, axis=0).min() > 0.01, "the logits must differ from image to image"


def test_init_depends_on_the_key_alone():
    one, again, other = (tiny_model().init(jax.random.key(seed)) for seed in (3, 3, 4))
    assert_trees_equal(one, again)
    assert (one["params"]["conv1"]["conv"]["kernel"] != other["params"]["conv1"]["conv"]["kernel"]).all()


def test_linear_head_agrees_with_the_head():
    model, variables = tiny_model(), tiny_variables()
    features = np.random.default_rng(0).normal(size=(5, 4, 4, 8)).astype(np.float32)
    weights, bias = model.linear_head(variables)
    assert weights.shape == (8, 3)
    np.testing.assert_allclose(model.head(variables, features), features.mean((1, 2)) @ weights + bias, **DEEP)


@pytest.mark.parametrize("tap", TAPS[:3])
def test_only_the_last_tap_has_a_linear_head(tap):
    assert tiny_model(tap).linear_head is None
    assert tiny_model().linear_head is not None


def test_images_are_grey_levels_of_either_type():
    model, variables = tiny_model(), tiny_variables()
    np.testing.assert_array_equal(
        logits_of(model, variables, IMAGES), logits_of(model, variables, IMAGES.astype(np.float32))
    )


class TestBatchNorm:
    def test_recomputed_statistics_reproduce_the_training_mode(self):
        model, variables = tiny_model(), tiny_variables()
        statistics = jax.jit(model.batch_statistics)(variables, IMAGES)
        evaluated = logits_of(model, {**variables, "batch_stats": statistics}, IMAGES)
        trained, _ = jax.jit(model.train_logits)(variables, IMAGES)
        np.testing.assert_allclose(evaluated, trained, **DEEP)
        # Without them it is another function, or this test could not fail.
        assert np.abs(logits_of(model, variables, IMAGES) - trained).max() > 0.1

    def test_statistics_are_the_mean_and_variance_of_the_input(self):
        model, variables = tiny_model(), tiny_variables()
        kernel = variables["params"]["conv1"]["conv"]["kernel"]
        scaled = IMAGES.astype(np.float32) / 127.5 - 1
        inputs = jax.lax.conv_general_dilated(
            scaled, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        found = jax.jit(model.batch_statistics)(variables, IMAGES)["conv1"]["norm"]
        np.testing.assert_allclose(found["mean"], np.mean(inputs, (0, 1, 2)), **DEEP)
        np.testing.assert_allclose(found["var"], np.var(inputs, (0, 1, 2)), **DEEP)

    def test_statistics_do_not_depend_on_the_old_averages(self):
        model, variables = tiny_model(), tiny_variables()
        reset = jax.tree.map(np.zeros_like, variables["batch_stats"])
        compute = jax.jit(model.batch_statistics)
        assert_trees_equal(compute(variables, IMAGES), compute({**variables, "batch_stats": reset}, IMAGES))

    def test_a_training_step_moves_running_averages_by_a_tenth(self):
        model, variables = tiny_model(), tiny_variables()
        _, moved = jax.jit(model.train_logits)(variables, IMAGES)
        batch = jax.jit(model.batch_statistics)(variables, IMAGES)
        expected = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, variables["batch_stats"], batch)
        jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, **DEEP), moved, expected)

    def test_evaluation_of_an_image_does_not_depend_on_the_others(self):
        model, variables = tiny_model(), tiny_variables()
        other = np.concatenate([IMAGES[:1], 255 - IMAGES[1:]])
        np.testing.assert_array_equal(logits_of(model, variables, IMAGES)[0], logits_of(model, variables, other)[0])


@functools.cache
def large(tap):
    """The tiny model for images that its receptive field does not fill; it takes the same variables."""
    return models.create("cnn", num_classes=3, image_shape=(32, 32, 1), width=4, tap=tap)


class TestReceptiveField:
    @pytest.mark.parametrize(("tap", "side"), [("conv1", 3), ("conv2", 5), ("conv3", 9), ("conv4", 17)])
    def test_is_exactly_what_one_location_depends_on(self, tap, side):
        model, variables = large(tap), tiny_variables()
        h, w, _ = model.feature_shape
        images = np.random.default_rng(0).uniform(0, 255, (8, 32, 32, 1)).astype(np.float32)
        gradient = jax.jit(jax.grad(lambda x: model.features(variables, x)[:, h // 2, w // 2].sum()))(images)
        touched = np.abs(gradient).max((0, 3)) > 0
        extents = [np.ptp(np.flatnonzero(touched.any(axis))) + 1 for axis in (0, 1)]
        assert model.receptive_field == side
        assert extents == [side, side]

    def test_counts_a_stride_of_one_where_the_map_is_not_halved(self):
        # 8x8 images: only conv2 halves, 3 + 2 + 2 * 2 + 2 * 2.
        assert tiny_model().receptive_field == 13


class TestRefusals:
    def test_an_unknown_model(self):
        with pytest.raises(InputError) as error:
            shape_of("cnnn")
        assert "'cnnn'; allowed: cnn" in one_line(error)
        assert "model.name" in one_line(error)

    def test_an_unknown_tap(self):
        with pytest.raises(InputError) as error:
            shape_of(tap="conv9")
        assert "'conv9' of cnn; allowed: conv1, conv2, conv3, conv4; set model.tap" in one_line(error)

    def test_a_map_of_one_location_unless_asked_for(self):
        with pytest.raises(InputError) as error:
            shape_of(side=1)
        assert "1x1 for images of 1x1" in one_line(error)
        assert "model.allow_1x1" in one_line(error)
        assert shape_of(side=1, allow_1x1=True)[:2] == (1, 1)


class TestBfloat16:
    def test_returns_float32_close_to_float32(self):
        narrow = models.create("cnn", num_classes=3, image_shape=(8, 8, 1), width=4, dtype="bfloat16")
        made, variables = jax.eval_shape(narrow.init, jax.random.key(0)), tiny_variables()
        assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
        features = jax.jit(narrow.features)(variables, IMAGES)
        logits = logits_of(narrow, variables, IMAGES)
        assert features.dtype == logits.dtype == jnp.float32
        exact = logits_of(tiny_model(), variables, IMAGES)
        np.testing.assert_allclose(logits, exact, **BFLOAT16)
        assert (np.asarray(logits) != np.asarray(exact)).any(), "nothing was computed in bfloat16"
