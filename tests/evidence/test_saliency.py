import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i2x_jax.config import SIGNED_CAMS
from i2x_jax.evidence import saliency
from i2x_jax.evidence.saliency import RULES, saliency_maps
from i2x_jax.models import Tapped
from tests.helpers import COMPLETENESS, DEEP, PRINTED, ROUNDING, planted, tiny_model, tiny_variables, with_head

CAMS = {
    "gradcam": saliency.gradcam,
    "gradcam++": saliency.gradcam_plus_plus,
    "hirescam": saliency.hirescam,
    "layercam": saliency.layercam,
}
CLASSES = np.array([0, 1, 2, 2, 1, 0, 1, 2], np.int32)
AGAINST = np.array([1, 2, 0, 1, 0, 2, 0, 0], np.int32)


NOTHING = np.zeros((1, 4, 4, 8), np.float32)


def general(model):
    """The same model without the shortcut for linear heads."""
    return dataclasses.replace(model, linear_head=None)


def feature_maps(count=8, seed=0, size=(4, 4, 8)):
    """After a ReLU: about half of the values are zero."""
    values = np.random.default_rng(seed).normal(size=(count, *size))
    return np.maximum(values, 0).astype(np.float32)


jitted_maps = jax.jit(saliency_maps, static_argnames=("model", "cam"))


def maps_of(model, features, classes, against=None, cam="gradcam", variables=None):
    variables = tiny_variables() if variables is None else variables
    return np.asarray(jitted_maps(model, variables, features, classes, against, cam))


@functools.cache
def golden_features():
    """Feature map [2, 2, 2] of the golden net: 3x3 convolution of ones, two outputs with biases -50 and -75, ReLU."""
    image = jnp.arange(16.0).reshape(4, 4)
    sums = jnp.stack([jnp.stack([image[i : i + 3, j : j + 3].sum() for j in range(2)]) for i in range(2)])
    return jax.nn.relu(sums[..., None] + jnp.array([-50.0, -75.0]))


def golden_head(features):
    """One logit; its weights [1, 1, 1, 1, 1, -1, -1, -1] stand in the order channel, row, column."""
    return features.transpose(2, 0, 1).reshape(1, 8) @ jnp.array([1.0, 1, 1, 1, 1, -1, -1, -1])


class TestGoldenNet:
    """Numbers of FIELD_NOTES section 3, agreed on by captum and by hand."""

    @pytest.mark.parametrize(
        ("cam", "expected"),
        [
            ("gradcam", [[0, 4], [28, 32.5]]),
            ("hirescam", [[0, 4], [25, 25]]),
            ("layercam", [[0, 4], [31, 40]]),
            ("gradcam++", [[0, 0.207792], [1.871259, 2.730096]]),
        ],
    )
    def test_gives_the_published_map(self, cam, expected):
        np.testing.assert_allclose(CAMS[cam](golden_head, golden_features(), 0), expected, **PRINTED)

    def test_hirescam_sums_to_the_logit(self):
        total = saliency.hirescam(golden_head, golden_features(), 0).sum()
        assert float(total) == float(golden_head(golden_features())[0]) == 54


class TestClosedForm:
    @pytest.mark.parametrize(
        ("cam", "against"), [*((cam, None) for cam in RULES), *((cam, AGAINST) for cam in SIGNED_CAMS)]
    )
    def test_equals_the_general_path(self, cam, against):
        model, features = tiny_model(), feature_maps()
        fast = maps_of(model, features, CLASSES, against, cam)
        slow = maps_of(general(model), features, CLASSES, against, cam)
        np.testing.assert_allclose(fast, slow, **ROUNDING)
        assert (fast != 0).any((1, 2)).sum() >= 4, "maps of zeros agree always"

    @pytest.mark.parametrize("cam", sorted(set(RULES) - set(SIGNED_CAMS)))
    def test_a_margin_is_refused_where_it_would_not_be_signed(self, cam):
        with pytest.raises(ValueError, match="no signed map of a margin"):
            maps_of(tiny_model(), feature_maps(), CLASSES, AGAINST, cam)

    def test_contributions_equal_the_general_path(self):
        tapped = Tapped(feature_maps())
        fast, slow = (
            saliency.contributions(one, tiny_variables(), tapped, NOTHING)
            for one in (tiny_model(), general(tiny_model()))
        )
        np.testing.assert_allclose(fast, slow, **DEEP)


@pytest.mark.parametrize("cam", RULES)
def test_the_batch_is_the_function_of_one_sample(cam):
    model, variables, features = tiny_model("conv2"), tiny_variables(), feature_maps()
    maps = maps_of(model, features, CLASSES, cam=cam)
    for one, label, expected in zip(features, CLASSES, maps, strict=True):
        single = CAMS[cam](lambda f: model.head(variables, f[None])[0], one, int(label))
        np.testing.assert_allclose(single, expected, **DEEP)


@pytest.mark.parametrize("tap", ["conv2", "conv4"])
@pytest.mark.parametrize("cam", RULES)
def test_a_map_is_the_same_alone_in_a_batch_with_other_classes_and_with_padding(tap, cam):
    model, features = tiny_model(tap), feature_maps()
    batch = maps_of(model, features, CLASSES, cam=cam)
    alone = maps_of(model, features[3:4], CLASSES[3:4], cam=cam)
    same_class = maps_of(model, features, np.full(8, CLASSES[3], np.int32), cam=cam)
    padded = maps_of(
        model, np.concatenate([features, features[:1], 0 * features[:3]]), np.append(CLASSES, [0] * 4), cam=cam
    )
    for other in (alone[0], same_class[3], padded[3]):
        np.testing.assert_allclose(other, batch[3], **ROUNDING)
    assert batch[3].any()


@pytest.mark.parametrize("model", [tiny_model(), general(tiny_model())], ids=["closed", "general"])
class TestKnownInputs:
    @pytest.mark.parametrize("cam", RULES)
    def test_a_constant_model_gives_maps_of_exactly_zero(self, model, cam):
        constant = with_head(tiny_variables(), 0, [1, 2, 3])
        for against in (None, AGAINST) if cam in SIGNED_CAMS else (None,):
            maps = maps_of(model, feature_maps(), CLASSES, against, cam, constant)
            np.testing.assert_array_equal(maps, np.zeros((8, 4, 4)))

    @pytest.mark.parametrize("cam", RULES)
    def test_negative_features_of_positive_weight_give_zero(self, model, cam):
        positive = with_head(tiny_variables(), 0.5, 0)
        # Small enough that GradCAM++'s denominator 2 g^2 + sum(A) g^3 stays positive.
        features = -feature_maps() / 100 - 0.001
        np.testing.assert_array_equal(maps_of(model, features, CLASSES, cam=cam, variables=positive), 0)

    def test_constant_features_give_everywhere_the_mean_weight(self, model):
        # relu(sum_d W_dc / hw * 2): weights 0.25, -0.25 and 0.5 over 8 channels and 16 locations.
        variables = with_head(tiny_variables(), [[0.25, -0.25, 0.5]], 0)
        maps = maps_of(model, np.full((3, 4, 4, 8), 2, np.float32), np.arange(3), variables=variables)
        np.testing.assert_allclose(maps, np.broadcast_to([[[0.25]], [[0]], [[0.5]]], (3, 4, 4)), **ROUNDING)

    @pytest.mark.parametrize("cam", RULES)
    def test_nan_stays_nan_and_in_its_own_sample(self, model, cam):
        features = feature_maps()
        features[2, 1, 1] = np.nan
        maps = maps_of(model, features, CLASSES, cam=cam)
        assert np.isnan(maps[2, 1, 1])
        assert np.isfinite(np.delete(maps, 2, axis=0)).all()


class TestMargin:
    @pytest.mark.parametrize("tap", ["conv2", "conv4"])
    @pytest.mark.parametrize("cam", ["gradcam", "hirescam"])
    def test_changes_sign_with_the_order_of_the_classes(self, tap, cam):
        features = feature_maps()
        one = maps_of(tiny_model(tap), features, CLASSES, AGAINST, cam)
        other = maps_of(tiny_model(tap), features, AGAINST, CLASSES, cam)
        np.testing.assert_allclose(one, -other, **DEEP)
        assert one.min() < 0 < one.max()

    def test_hirescam_of_a_margin_is_the_difference_of_contributions(self):
        features = feature_maps()
        parts = np.asarray(saliency.contributions(tiny_model(), tiny_variables(), Tapped(features), None))
        rows = np.arange(8)
        expected = parts[rows, ..., CLASSES] - parts[rows, ..., AGAINST]
        np.testing.assert_allclose(maps_of(tiny_model(), features, CLASSES, AGAINST, "hirescam"), expected, **ROUNDING)

    def test_the_function_of_one_sample_takes_it_too(self):
        signed = saliency.gradcam(lambda f: f.sum((0, 1)), jnp.ones((1, 1, 2)), 0, against=1)
        np.testing.assert_array_equal(signed, [[0]])
        signed = saliency.gradcam(lambda f: f.sum((0, 1)) * jnp.array([1, 3]), jnp.ones((1, 1, 2)), 0, against=1)
        np.testing.assert_array_equal(signed, [[-2]])


class TestContributions:
    def test_with_the_bias_they_are_every_logit_of_a_linear_head(self):
        model, variables, images = tiny_model(), tiny_variables(), planted(24).images
        features = jax.jit(model.features)(variables, images)
        logits = np.asarray(model.head(variables, features))
        parts = saliency.contributions(model, variables, Tapped(features), None)
        found = np.asarray(parts.sum((1, 2)) + saliency.bias(model, variables, Tapped(NOTHING)))
        assert parts.shape == (24, 4, 4, 3)
        assert np.abs(found - logits).max() <= COMPLETENESS * np.abs(logits).max()
        np.testing.assert_allclose(
            saliency.bias(model, variables, Tapped(NOTHING)), variables["params"]["classifier"]["bias"], **ROUNDING
        )

    def test_of_a_deeper_head_they_are_counted_from_the_blank_image(self):
        model, variables, tapped = tiny_model("conv2"), tiny_variables(), Tapped(feature_maps(3))
        blank = feature_maps(1, seed=5)
        found = np.asarray(saliency.contributions(model, variables, tapped, blank))
        bias = saliency.bias(model, variables, Tapped(blank))
        np.testing.assert_allclose(found.sum((1, 2)) + bias, model.head(variables, tapped.features), **DEEP)
        slopes = np.zeros((3, 3, 4, 4, 8))
        for place in (np.arange(16) + 0.5) / 16:
            at = np.float32(blank + place * (tapped.features - blank))
            for label in range(3):
                of_label = jax.grad(lambda f, label=label: model.head(variables, f)[:, label].sum())
                slopes[:, label] += np.asarray(of_label(at)) / 16
        plain = np.einsum("nhwd,nchwd->nhwc", tapped.features - blank, slopes)
        # Before what the points miss was spread.
        np.testing.assert_allclose(found, plain, atol=0.05 * np.abs(plain).max())
        assert found.min() < 0 < found.max()
        two = saliency.contributions(model, variables, tapped, blank, np.array([[0, 2]] * 3))
        np.testing.assert_allclose(two, found[..., [0, 2]], **DEEP)
        itself = saliency.contributions(model, variables, Tapped(blank), blank)
        np.testing.assert_array_equal(itself, 0)


def test_maps_under_jit_are_traced_once():
    traces = []

    @functools.partial(jax.jit, static_argnames=("model", "cam"))
    def maps(model, cam, variables, features, classes):
        traces.append(cam)
        return saliency_maps(model, variables, features, classes, cam=cam)

    for seed in range(4):
        found = maps(tiny_model("conv2"), "gradcam", tiny_variables(), feature_maps(seed=seed), CLASSES)
        expected = maps_of(tiny_model("conv2"), feature_maps(seed=seed), CLASSES)
        np.testing.assert_allclose(found, expected, **DEEP)
    assert len(traces) == 1
