import dataclasses
import functools

import jax
import numpy as np
import pytest

from i2x_jax.config import InputError
from i2x_jax.evidence import measuring as evidence
from i2x_jax.evidence import prototypes
from i2x_jax.training import loop as training
from tests.helpers import (
    DEEP,
    ROUNDING,
    assert_trees_equal,
    counted,
    one_line,
    planted,
    tiny_model,
    tiny_variables,
    with_head,
)

PROTOTYPES = 5
DATA = planted(22)
# Prototype 4 occurs nowhere, prototype 3 in odd samples only.
ASSIGNMENTS = np.random.default_rng(0).integers(0, 3, (22, 4, 4)).astype(np.int16)
ASSIGNMENTS[1::2, 0] = 3


def settings_of(cam="gradcam", target="label", batch_size=22, contributions=True):
    return evidence.Measuring(PROTOTYPES, cam, target, batch_size, contributions)


def measured(model=None, variables=None, progress=lambda count: None, **settings):
    """Contributions, intensity [N,K] and confidence [N,M] of a checkpoint."""
    model, variables = model or tiny_model(), variables or tiny_variables()
    intensity, confidence = np.full((22, PROTOTYPES), np.nan, np.float32), np.full((22, 3), np.nan, np.float32)
    found = evidence.measure_checkpoint(
        model, variables, DATA, ASSIGNMENTS, settings_of(**settings), intensity, confidence, progress
    )
    return found, intensity, confidence


@functools.cache
def features_and_logits(tap=""):
    model = tiny_model(tap)
    features = np.asarray(jax.jit(model.features)(tiny_variables(), DATA.images))
    return features, np.asarray(model.head(tiny_variables(), features))


@functools.cache
def gradients(tap=""):
    """dlogit_c / dF [N,M,h,w,d], one class at a time."""
    features, _ = features_and_logits(tap)

    def of(label):
        return jax.grad(lambda f: tiny_model(tap).head(tiny_variables(), f)[:, label].sum())

    return np.stack([np.asarray(of(label)(features)) for label in range(3)], axis=1)


def slow_intensity(classes, tap="", against=None):
    """GradCAM and its mean by prototype, location by location."""
    features, _ = features_and_logits(tap)
    found = np.zeros((22, PROTOTYPES))
    for i in range(22):
        gradient = gradients(tap)[i, classes[i]].astype(np.float64)
        if against is not None:
            gradient = gradient - gradients(tap)[i, against[i]]
        weights = gradient.mean((0, 1))
        places = [[] for _ in range(PROTOTYPES)]
        for row in range(4):
            for column in range(4):
                value = float((weights * features[i, row, column]).sum())
                places[ASSIGNMENTS[i, row, column]].append(max(value, 0) if against is None else value)
        found[i] = [np.mean(values) if values else 0 for values in places]
    return found


@pytest.mark.parametrize("tap", ["", "conv2"])
def test_intensity_is_the_mean_saliency_of_the_label_over_the_locations_of_a_prototype(tap):
    _, intensity, _ = measured(tiny_model(tap))
    np.testing.assert_allclose(intensity, slow_intensity(DATA.labels, tap), **DEEP)
    assert (intensity[:, :3] > 0).any(0).all()


def test_a_sample_without_a_prototype_has_no_intensity_of_it():
    _, intensity, _ = measured()
    np.testing.assert_array_equal(intensity[:, 4], 0)
    np.testing.assert_array_equal(intensity[::2, 3], 0)


def test_the_target_predicted_explains_the_largest_logit():
    _, logits = features_and_logits()
    predicted = logits.argmax(-1)
    assert (predicted != DATA.labels).any(), "the two targets must differ somewhere"
    _, intensity, _ = measured(target="predicted")
    np.testing.assert_allclose(intensity, slow_intensity(predicted), **DEEP)


def test_confidence_is_the_softmax_of_the_logits():
    _, _, confidence = measured()
    np.testing.assert_allclose(confidence, training.confidence(features_and_logits()[1]), **ROUNDING)


@pytest.mark.parametrize("tap", ["", "conv2"])
def test_contributions_are_means_and_deviations_over_the_samples_of_a_class(tap):
    found, _, _ = measured(tiny_model(tap), batch_size=8)
    features, logits = features_and_logits(tap)
    parts = np.einsum("nhwd,nchwd->nhwc", features.astype(np.float64), gradients(tap))
    stored = np.stack([(parts * (ASSIGNMENTS == k)[..., None]).sum((1, 2)) for k in range(PROTOTYPES)], axis=1)
    for label in range(3):
        rows = stored[DATA.labels == label]
        np.testing.assert_allclose(found.mean[label], rows.mean(0), **DEEP)
        # A deviation is the root of a difference of squares: half of the digits are lost.
        np.testing.assert_allclose(found.std[label], rows.std(0), rtol=1e-3, atol=1e-3)
    bias = np.asarray(tiny_model(tap).head(tiny_variables(), np.zeros((1, 4, 4, 8), np.float32)))[0]
    np.testing.assert_allclose(found.bias, bias, **ROUNDING)
    error = np.abs(stored.sum(1) + bias - logits).max(-1) / np.abs(logits).max(-1)
    assert found.completeness_error == pytest.approx(error.max(), rel=1e-3, abs=1e-5)
    # Exact for the linear head, and really an error for the other.
    assert (found.completeness_error < 1e-5) == (tap == "")


def test_the_batch_size_does_not_change_the_result():
    expected = measured(batch_size=22)
    for size in (1, 7, 64):
        found = measured(batch_size=size)
        jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, **ROUNDING), found[1:], expected[1:])
        for name in ("mean", "std", "bias"):
            one, two = getattr(found[0], name), getattr(expected[0], name)
            # For deviations see above; they are of the order of 1e-2 at least where they are not 0.
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-3 if name == "std" else 1e-6)


def test_masked_rows_do_not_count():
    mask = np.arange(8) < 5

    def batch(images, assignments):
        return evidence.batch_evidence(
            tiny_model(), settings_of(), tiny_variables(), images, DATA.labels[:8], mask, assignments
        )

    other_images, other_assignments = DATA.images[:8].copy(), ASSIGNMENTS[:8].copy()
    other_images[5:], other_assignments[5:] = 255 - other_images[5:], 4
    one, two = batch(DATA.images[:8], ASSIGNMENTS[:8]), batch(other_images, other_assignments)
    for name in ("contribution_sum", "contribution_square", "completeness_error"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    for name in ("intensity", "confidence", "maps"):
        np.testing.assert_array_equal(getattr(one, name)[:5], getattr(two, name)[:5])
        assert (np.asarray(getattr(one, name)[5:]) != np.asarray(getattr(two, name)[5:])).any()


def test_the_maps_are_those_behind_the_intensity():
    found = evidence.batch_evidence(
        tiny_model(), settings_of(), tiny_variables(), *DATA[:2], np.ones(22, bool), ASSIGNMENTS
    )
    assert found.maps.shape == (22, 4, 4)
    expected = prototypes.intensity(found.maps, ASSIGNMENTS, PROTOTYPES)
    np.testing.assert_allclose(found.intensity, expected, **ROUNDING)


@pytest.mark.parametrize("tap", ["", "conv2"])
def test_without_contributions_the_rest_is_the_same(tap):
    expected = measured(tiny_model(tap), batch_size=8)
    found = measured(tiny_model(tap), batch_size=8, contributions=False)
    assert found[0] is None
    for one, two in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(one, two, **ROUNDING)


def test_is_traced_once_over_checkpoints_and_batches():
    model, traces = counted(tiny_model(), "features")
    heard = []
    for seed in range(3):
        measured(model, tiny_variables(seed), batch_size=8, progress=heard.append)
    assert len(traces) == 1
    assert heard == [8, 8, 6] * 3


def test_the_same_checkpoint_twice_changes_nothing():
    assert_trees_equal(measured(batch_size=8), measured(batch_size=8))


def test_another_checkpoint_changes_everything():
    one, two = measured(), measured(variables=tiny_variables(1))
    assert (one[1] != two[1]).any(0)[:4].all()
    assert (one[2] != two[2]).all()


@pytest.mark.parametrize("cam", ["gradcam", "gradcam++", "hirescam", "layercam"])
def test_a_head_of_zeros_takes_evidence_from_nothing(cam):
    found, intensity, confidence = measured(variables=with_head(tiny_variables(), 0, 0), cam=cam)
    np.testing.assert_array_equal(intensity, 0)
    np.testing.assert_allclose(confidence, 1 / 3, **ROUNDING)
    for name in ("mean", "std", "bias", "completeness_error"):
        np.testing.assert_array_equal(getattr(found, name), 0)


def test_weights_of_nan_are_refused():
    with pytest.raises(InputError) as error:
        measured(variables=with_head(tiny_variables(), np.nan, 0), batch_size=8)
    assert "samples 0 to 7 is not finite" in one_line(error)


def test_results_go_into_memory_maps(tmp_path):
    shapes = {"intensity": PROTOTYPES, "confidence": 3}
    maps = [
        np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", np.float32, (22, columns))
        for name, columns in shapes.items()
    ]
    evidence.measure_checkpoint(tiny_model(), tiny_variables(), DATA, ASSIGNMENTS, settings_of(), *maps)
    for array, name, expected in zip(maps, shapes, measured()[1:], strict=True):
        array.flush()
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), expected)


class TestMarginIntensity:
    def found(self, pair, model=None, batch_size=8):
        return evidence.margin_intensity(
            model or tiny_model(), tiny_variables(), DATA, ASSIGNMENTS, settings_of(batch_size=batch_size), pair
        )

    @pytest.mark.parametrize("tap", ["", "conv2"])
    def test_is_the_signed_mean_over_the_locations_of_a_prototype(self, tap):
        expected = slow_intensity([2] * 22, tap, against=[0] * 22)
        found = self.found((2, 0), tiny_model(tap))
        assert found.shape == (22, PROTOTYPES)
        np.testing.assert_allclose(found, expected, **DEEP)
        assert found.min() < 0

    def test_changes_sign_with_the_order_of_the_pair(self):
        np.testing.assert_allclose(self.found((0, 1)), -self.found((1, 0)), **ROUNDING)

    def test_does_not_depend_on_the_batch_size(self):
        np.testing.assert_allclose(self.found((0, 1), batch_size=64), self.found((0, 1), batch_size=5), **ROUNDING)

    def test_is_traced_once_over_batches_and_pairs(self):
        model, traces = counted(tiny_model(), "features")
        for pair in ((0, 1), (1, 2), (0, 2)):
            self.found(pair, model)
        assert len(traces) == 1


def test_contributions_whose_squares_overflow_are_those_of_the_network_times_a_number():
    factor = 2.0**70
    plain, _, _ = measured()
    head, linear = tiny_model().head, tiny_model().linear_head
    huge = dataclasses.replace(
        tiny_model(),
        head=lambda variables, features: head(variables, features) * factor,
        linear_head=lambda variables: tuple(part * factor for part in linear(variables)),
    )
    found, _, _ = measured(huge)
    for name in ("mean", "std"):
        expected = getattr(plain, name)
        np.testing.assert_allclose(getattr(found, name) / factor, expected, rtol=1e-4, atol=1e-3 * expected.max())
