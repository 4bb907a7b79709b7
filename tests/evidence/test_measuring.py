import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest

from i2x_jax.config import InputError
from i2x_jax.data.dataset import batches
from i2x_jax.evidence import measuring, prototypes
from i2x_jax.models import Tapped
from i2x_jax.pipeline import measure, summing
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
NO_PATH = np.zeros((1, 4, 4, 8), np.float32)


class Contributions(NamedTuple):
    mean: np.ndarray
    std: np.ndarray
    bias: np.ndarray
    completeness_error: float


def places_of(batch):
    """The assignments of a batch; rows that fill it up repeat sample 0."""
    return np.where(
        batch.mask[:, None, None],
        np.take(ASSIGNMENTS, np.arange(len(batch.mask)) + batch.start, 0, mode="clip"),
        ASSIGNMENTS[0],
    )


def taken(model, settings, variables, images, labels, places, blank=NO_PATH):
    """What a checkpoint takes from images."""
    tapped = measuring.batch_tapped(model, variables, images)
    return measuring.take(model, settings, variables, tapped, labels, places, blank)


def measured(model=None, variables=None, batch_size=22, **settings):
    """Contributions, intensity [N,K] and confidence [N,M] of a checkpoint, and the margin of a pair if there is one."""
    model, variables = model or tiny_model(), variables or tiny_variables()
    settings, sums = measuring.Measuring(PROTOTYPES, **settings), {}
    rows = [np.full((22, columns), np.nan, np.float32) for columns in (PROTOTYPES, 3, PROTOTYPES)]
    for batch in batches(DATA, batch_size):
        found = taken(model, settings, variables, batch.images, batch.labels, places_of(batch))
        place = slice(batch.start, batch.start + int(batch.mask.sum()))
        for target, values in zip(rows, (found.intensity, found.confidence, found.margin), strict=True):
            if values is not None:
                measure.write_rows(target, place, values)
        measure.add(sums, jax.device_get(measure.batch_sums(found, None, batch.labels, batch.mask, 3)))
    counts = np.bincount(DATA.labels)[:, None, None]
    mean, std = summing.moments_of(sums["contribution"], sums["contribution_square"], counts)
    bias = np.asarray(measuring.batch_bias(model, variables, Tapped(NO_PATH)))
    return Contributions(mean, std, bias, sums["largest_error"]), *rows


def checkpoints_of(model, variables, **settings):
    """What all batches of a run share; its prototypes are drawn."""
    blank = np.full((1, *DATA.images.shape[1:]), 100, np.uint8)
    pca = prototypes.Pca(np.zeros(8, np.float32), np.eye(8, dtype=np.float32)[:4], np.zeros(4, np.float32))
    return measure.Checkpoints(
        model,
        measuring.Measuring(PROTOTYPES, **settings),
        variables.__getitem__,
        [measuring.batch_tapped(model, each, blank) for each in variables],
        pca,
        np.random.default_rng(1).uniform(0, 1, (PROTOTYPES, 4)).astype(np.float32),
        np.tile(np.arange(3, dtype=np.int32), (3, 1)),
    )


def empty_rows(steps):
    return measure.Rows(
        assignments=np.full((22, 16), -1, np.int16),
        intensity=np.full((steps, 22, PROTOTYPES), np.nan, np.float32),
        confidence=np.full((steps, 22, 3), np.nan, np.float32),
        account=np.full((steps - 1, 22, PROTOTYPES + 1), np.nan, np.float32),
        margin=None,
    )


def block(model, variables, batch_size=8, progress=lambda count: None, rows=None, **settings):
    """Rows and sums of all samples at several checkpoints, as a run measures them."""
    rows = rows or empty_rows(len(variables))
    checkpoints = checkpoints_of(model, variables, **settings)
    sums = measure.measure_block(checkpoints, DATA, rows, np.arange(len(variables)) * 10, 0, batch_size, progress)
    return rows, sums


@functools.cache
def features_and_logits(tap=""):
    model = tiny_model(tap)
    features = np.asarray(jax.jit(model.features)(tiny_variables(), DATA.images))
    return features, np.asarray(model.head(tiny_variables(), features))


@functools.cache
def gradients(tap="", place=1.0):
    """dlogit_c / dF [N,M,h,w,d], one class at a time; or at a place on the line from no features to F."""
    features, _ = features_and_logits(tap)

    def of(label):
        return jax.grad(lambda f: tiny_model(tap).head(tiny_variables(), f)[:, label].sum())

    return np.stack([np.asarray(of(label)(place * features)) for label in range(3)], axis=1)


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
    _, intensity, *_ = measured(tiny_model(tap))
    np.testing.assert_allclose(intensity, slow_intensity(DATA.labels, tap), **DEEP)
    assert (intensity[:, :3] > 0).any(0).all()


def test_a_sample_without_a_prototype_has_no_intensity_of_it():
    _, intensity, *_ = measured()
    np.testing.assert_array_equal(intensity[:, 4], 0)
    np.testing.assert_array_equal(intensity[::2, 3], 0)


def test_the_target_predicted_explains_the_largest_logit():
    _, logits = features_and_logits()
    predicted = logits.argmax(-1)
    assert (predicted != DATA.labels).any(), "the two targets must differ somewhere"
    _, intensity, *_ = measured(target="predicted")
    np.testing.assert_allclose(intensity, slow_intensity(predicted), **DEEP)


def test_confidence_is_the_softmax_of_the_logits():
    confidence = measured()[2]
    np.testing.assert_allclose(confidence, training.confidence(features_and_logits()[1]), **ROUNDING)


@pytest.mark.parametrize("tap", ["", "conv2"])
def test_contributions_are_means_and_deviations_over_the_samples_of_a_class(tap):
    found, *_ = measured(tiny_model(tap), batch_size=8)
    features, logits = features_and_logits(tap)
    slopes = np.mean([gradients(tap, (place + 0.5) / 16) for place in range(16)], axis=0, dtype=np.float64)
    parts = np.einsum("nhwd,nchwd->nhwc", features.astype(np.float64), slopes)
    stored = np.stack([(parts * (ASSIGNMENTS == k)[..., None]).sum((1, 2)) for k in range(PROTOTYPES)], axis=1)
    bias = np.asarray(tiny_model(tap).head(tiny_variables(), NO_PATH))[0]
    missing = logits - bias - stored.sum(1)
    if tap:
        # What the points of the path miss is spread in proportion to the size of the evidence.
        stored += (missing / np.abs(stored).sum(1))[:, None] * np.abs(stored)
    for label in range(3):
        rows = stored[DATA.labels == label]
        np.testing.assert_allclose(found.mean[label], rows.mean(0), **DEEP)
        # A deviation is the root of a difference of squares: half of the digits are lost.
        np.testing.assert_allclose(found.std[label], rows.std(0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.bias, bias, **ROUNDING)
    error = np.abs(missing).max(-1) / np.abs(logits).max(-1)
    assert found.completeness_error == pytest.approx(error.max(), rel=1e-3, abs=1e-5)
    # Exact for the linear head, and really an error for the other.
    assert (found.completeness_error < 1e-5) == (tap == "")


def test_the_batch_size_does_not_change_the_result():
    expected = measured(batch_size=22)
    for size in (1, 7, 64):
        found = measured(batch_size=size)
        jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, **ROUNDING), found[1:3], expected[1:3])
        for name in ("mean", "std", "bias"):
            one, two = getattr(found[0], name), getattr(expected[0], name)
            # For deviations see above; they are of the order of 1e-2 at least where they are not 0.
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-3 if name == "std" else 1e-6)


def test_masked_rows_do_not_count():
    mask = np.arange(8) < 5

    def batch(images, assignments):
        arrays = (images, DATA.labels[:8], assignments)
        found = taken(tiny_model(), measuring.Measuring(PROTOTYPES), tiny_variables(), *arrays)
        return found, measure.batch_sums(found, None, DATA.labels[:8], mask, 3)

    other_images, other_assignments = DATA.images[:8].copy(), ASSIGNMENTS[:8].copy()
    other_images[5:], other_assignments[5:] = 255 - other_images[5:], 4
    (one, sums), (two, other_sums) = batch(DATA.images[:8], ASSIGNMENTS[:8]), batch(other_images, other_assignments)
    assert {"contribution", "largest_error", "features"} <= sums.keys()
    assert_trees_equal(sums, other_sums)
    for name in ("intensity", "confidence", "maps"):
        np.testing.assert_array_equal(getattr(one, name)[:5], getattr(two, name)[:5])
        assert (np.asarray(getattr(one, name)[5:]) != np.asarray(getattr(two, name)[5:])).any()


@pytest.mark.parametrize("tap", ["", "conv2"])
def test_masked_rows_do_not_count_in_the_ledger(tap):
    model, variables, mask = tiny_model(tap), [tiny_variables(), tiny_variables(1)], np.arange(8) < 5
    blanks = [NO_PATH, NO_PATH + 0.1]

    def batch(images, places):
        ends = [
            taken(model, measuring.Measuring(PROTOTYPES), held, images, DATA.labels[:8], places, blank).end
            for held, blank in zip(variables, blanks, strict=True)
        ]
        between = measuring.Between(variables, blanks, ends)
        found = measuring.account(model, between, places, DATA.labels[:8], mask)
        path = measuring.path_differences(model, between, places, found.account, DATA.labels[:8], mask)
        return found._replace(account=found.account[:5]), path

    other_images, other_places = DATA.images[:8].copy(), ASSIGNMENTS[:8].copy()
    other_images[5:], other_places[5:] = 255 - other_images[5:], 4
    assert_trees_equal(batch(DATA.images[:8], ASSIGNMENTS[:8]), batch(other_images, other_places))


def test_the_maps_are_those_behind_the_intensity():
    found = taken(tiny_model(), measuring.Measuring(PROTOTYPES), tiny_variables(), *DATA[:2], ASSIGNMENTS)
    assert found.maps.shape == (22, 4, 4)
    expected = prototypes.intensity(found.maps, ASSIGNMENTS, PROTOTYPES)
    np.testing.assert_allclose(found.intensity, expected, **ROUNDING)


@pytest.mark.parametrize("tap", ["", "conv2"])
def test_without_a_ledger_the_rest_is_the_same(tap):
    expected = measured(tiny_model(tap), batch_size=8)
    found = measured(tiny_model(tap), batch_size=8, ledger=False)
    for one, two in zip(found[0], expected[0], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-3)
    for one, two in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(one, two, **ROUNDING)


@pytest.mark.parametrize("name", ["features", "head"])
def test_is_traced_once_over_checkpoints_and_batches(name):
    model, traces = counted(tiny_model(), name)
    checkpoints = checkpoints_of(model, [tiny_variables(seed) for seed in range(3)])
    # The blank image is a batch of another size.
    assert len(traces) == (name == "features")
    heard = []
    measure.measure_block(checkpoints, DATA, empty_rows(3), np.arange(3), 0, 8, heard.append)
    assert heard == [8, 8, 6]
    assert len(traces) == (1 if name == "head" else 2)
    others = [tiny_variables(seed) for seed in range(3, 6)]
    measure.measure_block(checkpoints._replace(variables=others.__getitem__), DATA, empty_rows(3), np.arange(3), 0, 8)
    assert len(traces) == (1 if name == "head" else 2)


def test_the_same_checkpoint_measured_twice_gives_the_same():
    assert_trees_equal(measured(batch_size=8), measured(batch_size=8))


@pytest.mark.parametrize("tap", ["", "conv2"])
def test_the_same_checkpoint_twice_changes_nothing(tap):
    rows, sums = block(tiny_model(tap), [tiny_variables()] * 3)
    np.testing.assert_array_equal(np.diff(rows.intensity, axis=0), 0)
    np.testing.assert_array_equal(np.diff(rows.confidence, axis=0), 0)
    np.testing.assert_array_equal(rows.account, 0)
    for t in range(2):
        for name in ("seeing", "weighing", "seeing_square", "weighing_square", "bias"):
            np.testing.assert_array_equal(sums[f"{name} {t}"], 0, err_msg=f"{name} {t}")
        # The parts are 0; of the two confidences that they are held against, each is rounded for itself.
        assert sums[f"largest_residual {t}"] < 1e-7
    assert sums["coarse 0"] == sums["coarse_missed 0"] == 0


def test_another_checkpoint_changes_everything():
    one, two = measured(), measured(variables=tiny_variables(1))
    assert (one[1] != two[1]).any(0)[:4].all()
    assert (one[2] != two[2]).all()


@pytest.mark.parametrize("cam", ["gradcam", "gradcam++", "hirescam", "layercam"])
def test_a_head_of_zeros_takes_evidence_from_nothing(cam):
    found, intensity, confidence, _ = measured(variables=with_head(tiny_variables(), 0, 0), cam=cam)
    np.testing.assert_array_equal(intensity, 0)
    np.testing.assert_allclose(confidence, 1 / 3, **ROUNDING)
    for name in ("mean", "std", "bias", "completeness_error"):
        np.testing.assert_array_equal(getattr(found, name), 0)


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_weights_of_nan_are_refused(bad):
    variables = [tiny_variables(seed) for seed in range(3)]
    variables[bad] = with_head(variables[bad], np.nan, 0)
    with pytest.raises(InputError) as error:
        block(tiny_model(), variables)
    assert f"samples 0 to 7 is not finite at step {10 * bad};" in one_line(error)


def test_results_go_into_memory_maps(tmp_path):
    variables = [tiny_variables(), tiny_variables(1)]
    expected, _ = block(tiny_model(), variables)
    maps = measure.Rows(
        *(
            array
            if array is None
            else np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", array.dtype, array.shape)
            for name, array in expected._asdict().items()
        )
    )
    block(tiny_model(), variables, rows=maps)
    for name, array in expected._asdict().items():
        if array is not None:
            getattr(maps, name).flush()
            np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), array)
            assert np.isfinite(array).all()
            assert (array >= 0).all() or name == "account"


def test_a_block_is_what_its_checkpoints_are_alone():
    """Assignments by the last checkpoint, and all else as `measured` finds it with them."""
    variables = [tiny_variables(seed) for seed in range(3)]
    rows, sums = block(tiny_model(), variables, batch_size=7)
    checkpoints = checkpoints_of(tiny_model(), variables)
    features = measuring.batch_features(tiny_model(), variables[-1], DATA.images)
    places = measuring.assign_locations(checkpoints.pca, checkpoints.centroids, features)
    np.testing.assert_array_equal(rows.assignments.reshape(22, 4, 4), places)
    assert len(np.unique(places)) > 2
    labels, everybody = DATA.labels, np.ones(22, bool)
    for t, held in enumerate(variables):
        blank = checkpoints.blanks[t].features
        found = taken(tiny_model(), checkpoints.settings, held, DATA.images, labels, places, blank)
        np.testing.assert_allclose(rows.intensity[t], found.intensity, **ROUNDING)
        np.testing.assert_allclose(rows.confidence[t], found.confidence, **ROUNDING)
        expected = measuring.class_sums(found.evidence, labels, everybody, 3)
        np.testing.assert_allclose(sums[f"contribution {t}"], expected.total, **DEEP)
        np.testing.assert_allclose(sums[f"contribution_square {t}"], expected.squares, **DEEP)


class TestMarginIntensity:
    def found(self, pair, model=None, batch_size=8):
        return measured(model, batch_size=batch_size, pair=pair)[3]

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

    def test_is_traced_once_over_batches(self):
        model, traces = counted(tiny_model(), "features")
        self.found((0, 1), model)
        assert len(traces) == 1
