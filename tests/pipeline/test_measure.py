"""The two passes over the images: stopped at any moment they go on, and end with the same arrays."""

import itertools
import shutil

import jax
import numpy as np
import pytest
from own_networks import CHANNELS, CHECKPOINTS, CLASSES, PLAIN, SETTINGS, STEPS, plain_features, weights

import i2x_jax
from experiments.tools.kill_and_resume import differing_files
from i2x_jax import Run
from i2x_jax.config import InputError
from i2x_jax.devices.mesh import replicate
from i2x_jax.evidence import measuring
from i2x_jax.pipeline import directory as run_directory
from i2x_jax.pipeline import measure, summing
from i2x_jax.pipeline import prototypes as fit
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.results.files import STEPS as ALL_STEPS
from i2x_jax.training.checkpoints import Checkpoints
from tests import plain_ledger

# Of 111 samples: four blocks, the last one not full.
ROWS_PER_BLOCK = 36
MADE = ("prototypes", "evidence")
PARTIAL = ".partial-evidence"


class Stopped(BaseException):
    """What ends a process; nothing handles it."""


def stop_at(monkeypatch, place, name, call):
    """Has the `call`-th call of a function, from 1, end the process before it does anything."""
    original, calls = getattr(place, name), itertools.count(1)

    def counted(*arguments, **options):
        if next(calls) == call:
            raise Stopped
        return original(*arguments, **options)

    monkeypatch.setattr(place, name, counted)


def opened(folder, explained):
    """A run directory, with what it does not hold."""
    run = Run(folder)
    run.splits, run.model, run.abstract_variables = explained.splits, explained.model, explained.abstract_variables
    return run


def make(folder, explained, barrier=lambda place: None):
    """Both passes, as `pipeline.make_steps` calls them."""
    directory = RunDirectory(folder, True, barrier)
    directory.quiet = True
    with directory.locked():
        for step, maker in zip(MADE, (fit.find_prototypes, measure.measure_evidence), strict=True):
            if not directory.complete(step):
                maker(directory, opened(folder, explained))


def bare(explained, folder):
    """A copy of a run before both passes."""
    shutil.copytree(explained.path, folder)
    for step in list(ALL_STEPS)[1:]:
        for name in ALL_STEPS[step][1]:
            (folder / name).unlink(missing_ok=True)
    return folder


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(measure, "ROWS_PER_BLOCK", ROWS_PER_BLOCK)


@pytest.fixture(scope="module")
def whole(explained, tmp_path_factory):
    """A run made without being stopped."""
    folder = bare(explained, tmp_path_factory.mktemp("whole") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "ROWS_PER_BLOCK", ROWS_PER_BLOCK)
        make(folder, explained)
    return folder


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_blocks_change_rounding_alone(explained, whole):
    one, other = explained, opened(whole, explained)
    np.testing.assert_array_equal(one.array("assignments"), other.array("assignments"))
    for name in ("intensity", "confidence", "account"):
        np.testing.assert_allclose(other.array(name), one.array(name), rtol=1e-5, atol=1e-6)
    for name in ("contributions", "ledger", "prototype_features"):
        for member, values in one.arrays(name).items():
            np.testing.assert_allclose(other.arrays(name)[member], values, rtol=1e-3, atol=1e-4)
    assert leftovers(whole) == []


# Where a process ends, and how many of the four blocks are done by then.
MOMENTS = {
    "in the fit, at the first batch": (fit, "_rows", 1, None),
    "in the fit, at the second batch": (fit, "_rows", 2, None),
    "in the principal components": (fit, "reduce_features", 1, None),
    "in the clustering": (fit, "cluster", 1, None),
    "at the held-out sets": (measure.training, "predict", 1, 0),
    "at the held-out sets of a later checkpoint": (measure.training, "predict", 5, 0),
    "before the first block": (measure, "open_rows", 1, 0),
    "in the first block": (measure, "measure_batch", 1, 0),
    "in the second block": (measure, "measure_batch", 2, 1),
    "in the last block": (measure, "measure_batch", 4, 3),
    "before the sums of a block are written": (measure.os, "fsync", 3, 2),
    "before the sums are read": (measure, "write_sums", 1, 4),
    "while the sums are written": (summing, "ledger_members", 1, 4),
    "while all is moved, at the first file": (run_directory.os, "replace", 2, 4),
    "while all is moved, at a later file": (run_directory.os, "replace", 6, 4),
    "when all has been moved": (run_directory.RunDirectory, "_move", 2, 4),
}


@pytest.mark.parametrize(("place", "name", "call", "done"), MOMENTS.values(), ids=MOMENTS)
def test_stopped_it_goes_on_and_ends_equal(explained, whole, tmp_path, monkeypatch, place, name, call, done):
    folder = bare(explained, tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_at(patch, place, name, call)
        with pytest.raises(Stopped):
            make(folder, explained)
    assert (folder / "prototypes.npz").exists() == (done is not None)
    assert not RunDirectory(folder).complete("evidence")
    measured = []
    original = measure.measure_block

    def noted(*arguments):
        measured.append(arguments[4])
        return original(*arguments)

    monkeypatch.setattr(measure, "measure_block", noted)
    make(folder, explained)
    assert measured == [start for number, start in enumerate(range(0, 111, 36)) if number >= (done or 0)]
    assert differing_files(folder, whole) == []
    assert leftovers(folder) == []


def test_stopped_again_and_again(explained, whole, tmp_path, monkeypatch):
    folder = bare(explained, tmp_path / "run")
    for place, name, call in ((fit, "_rows", 2), *((measure, "measure_batch", 2),) * 3, (measure, "write_sums", 1)):
        with monkeypatch.context() as patch:
            stop_at(patch, place, name, call)
            with pytest.raises(Stopped):
                make(folder, explained)
    make(folder, explained)
    assert differing_files(folder, whole) == []
    assert leftovers(folder) == []


def stopped(explained, folder, monkeypatch, call=3):
    """A run that was stopped in its third block."""
    folder = bare(explained, folder)
    with monkeypatch.context() as patch:
        stop_at(patch, measure, "measure_batch", call)
        with pytest.raises(Stopped):
            make(folder, explained)
    assert leftovers(folder) == [PARTIAL]
    return folder


@pytest.mark.parametrize("lost", ["intensity.npy", "account.npy", "assignments.npy", "working", "made-from.txt", ""])
def test_what_was_left_may_be_deleted(explained, whole, tmp_path, monkeypatch, lost):
    folder = stopped(explained, tmp_path / "run", monkeypatch)
    path = folder / PARTIAL / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    # Stopped once more before what was lost is there again, sums of blocks must not outlive their rows.
    with monkeypatch.context() as patch:
        stop_at(patch, measure, "measure_batch", 1)
        with pytest.raises(Stopped):
            make(folder, explained)
    make(folder, explained)
    assert differing_files(folder, whole) == []


@pytest.mark.parametrize("share", [0, 0.5])
def test_what_was_left_may_be_cut_off(explained, whole, tmp_path, monkeypatch, share):
    folder = stopped(explained, tmp_path / "run", monkeypatch)
    with (folder / PARTIAL / "confidence.npy").open("r+b") as file:
        file.truncate(int(file.seek(0, 2) * share))
    make(folder, explained)
    assert differing_files(folder, whole) == []


def test_blocks_of_other_prototypes_do_not_count(explained, tmp_path, monkeypatch):
    folder = stopped(explained, tmp_path / "run", monkeypatch)
    found = dict(np.load(folder / "prototypes.npz"))
    np.savez(folder / "prototypes.npz", **found | {"centroids": found["centroids"][::-1]})
    fresh = bare(explained, tmp_path / "fresh")
    shutil.copy(folder / "prototypes.npz", fresh)
    for each in (folder, fresh):
        make(each, explained)
    assert differing_files(folder, fresh) == []


def test_blocks_of_other_checkpoints_do_not_count(explained, tmp_path, monkeypatch):
    """Files of the stage deleted, and made again by other weights under the same name."""
    folder = stopped(explained, tmp_path / "run", monkeypatch)
    shutil.rmtree(folder / "checkpoints")
    with Checkpoints(folder / "checkpoints") as kept:
        for seed, step in enumerate(STEPS):
            kept.save(step, replicate(weights(seed + 7)))
    fresh = tmp_path / "fresh"
    shutil.copytree(folder, fresh)
    shutil.rmtree(fresh / PARTIAL)
    for each in (folder, fresh):
        make(each, explained)
    assert differing_files(folder, fresh) == []


def test_blocks_of_another_size_do_not_count(explained, tmp_path, monkeypatch):
    folder = stopped(explained, tmp_path / "run", monkeypatch)
    monkeypatch.setattr(measure, "ROWS_PER_BLOCK", 60)
    fresh = bare(explained, tmp_path / "fresh")
    for each in (folder, fresh):
        make(each, explained)
    assert differing_files(folder, fresh) == []


def test_what_cannot_be_used_any_more_is_removed(explained, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / PARTIAL / "working").mkdir(parents=True)
    (folder / PARTIAL / "intensity.npy").write_bytes(b"")
    (folder / ".tmp-prototypes").mkdir()
    make(folder, explained)
    assert leftovers(folder) == []
    assert differing_files(folder, whole) == []


def test_a_file_where_the_folder_belongs_is_replaced(explained, whole, tmp_path):
    folder = bare(explained, tmp_path / "run")
    (folder / PARTIAL).write_text("")
    make(folder, explained)
    assert differing_files(folder, whole) == []


def test_variables_that_do_not_fit_are_read_in_turn(explained, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "DEVICE_VARIABLES", 0)
    folder = bare(explained, tmp_path / "run")
    make(folder, explained)
    assert differing_files(folder, whole) == []


def test_variables_are_read_once_a_batch(explained, monkeypatch):
    monkeypatch.setattr(measure, "DEVICE_VARIABLES", 0)
    run, read = opened(explained.path, explained), []
    variables = run.variables
    run.variables = lambda step: read.append(step) or variables(step)
    checkpoints = measure.prepare(run, measuring.Measuring(4), run.rivals)
    read.clear()
    for batch in itertools.islice(measure.batches(run.dataset, 40), 2):
        measure.measure_batch(checkpoints, batch)
    assert read == [*reversed(STEPS)] * 2


@pytest.mark.parametrize(("batch_size", "samples", "expected"), [(256, 394, 256), (7, 10**6, 7), (3000, 40, 3000)])
def test_a_batch_is_what_was_asked_for(monkeypatch, batch_size, samples, expected):
    monkeypatch.setattr(measure, "ROWS_PER_BLOCK", 4096)
    assert measure.rows_at_once(batch_size, samples) == expected


@pytest.mark.parametrize("batch_size", [1, 7, 256, 1000, 3000, 4095, 4096, 4097, 10_000])
def test_batches_waste_little_of_a_block(monkeypatch, batch_size):
    monkeypatch.setattr(measure, "ROWS_PER_BLOCK", 4096)
    found = measure.rows_at_once(batch_size, 10**6)
    assert found <= batch_size
    count = -(-4096 // found)
    assert count == -(-4096 // batch_size)
    assert count * found - 4096 < count


def explain(model, checkpoints, data, folder, **settings):
    config = SETTINGS | {"explain": SETTINGS["explain"] | settings}
    return i2x_jax.explain(model, checkpoints, data, config, folder)


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_as_few_checkpoints_as_there_can_be(data, tmp_path, count):
    run = explain(PLAIN, CHECKPOINTS[:count], data, tmp_path / "run")
    assert run.array("account").shape == (count - 1, 111, 5)
    assert run.arrays("ledger")["path_difference"].shape == (count - 2,)
    assert (run.path / "report.html").exists()
    plain_ledger.check_adds_up(run)


def flat_head(variables, features):
    """Every location has weights of its own."""
    return features.reshape(len(features), -1) @ variables["flat"] + variables["bias"]


def deep_head(variables, features):
    """Two layers, with the largest value of each channel between."""
    hidden = jax.nn.gelu(features.mean((1, 2)) @ variables["first"] + features.max((1, 2)))
    return hidden @ variables["second"] + variables["bias"]


def head_weights(seed):
    rng = np.random.default_rng(seed)
    return weights(seed) | {
        "flat": np.float32(rng.normal(size=(16 * CHANNELS, CLASSES)) / 2),
        "first": np.float32(rng.normal(size=(CHANNELS, CHANNELS))),
        "second": np.float32(2 * rng.normal(size=(CHANNELS, CLASSES))),
    }


@pytest.mark.parametrize("head", [flat_head, deep_head])
def test_the_ledger_behind_other_heads(data, tmp_path, head):
    run = explain(
        i2x_jax.OwnModel(plain_features, head), [head_weights(seed) for seed in range(3)], data, tmp_path / "run"
    )
    plain_ledger.check_adds_up(run)
    ledger = run.arrays("ledger")
    assert (ledger["path_error"] < (1e-5 if head is flat_head else 0.05)).all()
    assert np.abs(ledger["seeing"]).max() > 0.01
    assert np.abs(ledger["weighing"]).max() > 0.01
    if head is flat_head:
        check_flat(run)


def check_flat(run):
    """A head of one layer: evidence is, location by location, what the features exceed the blank image's by."""
    labels, assignments = np.array(run.array("labels")), np.array(run.array("assignments"))
    h, w = assignments.shape[1:]
    colour = np.round(run.arrays("prototypes")["blank"]).astype(np.uint8)
    blank = np.broadcast_to(colour, (1, *run.dataset.images.shape[1:]))
    held = [run.variables(step) for step in run.steps]
    away = [np.float64(run.model.features(v, run.dataset.images)) - run.model.features(v, blank) for v in held]
    start = [np.float64(run.model.head(v, run.model.features(v, blank)))[0] for v in held]
    kernels = [np.float64(v["flat"]).reshape(h, w, CHANNELS, CLASSES) for v in held]
    members = np.eye(4)[assignments]

    def evidence(t, u):
        return np.einsum("nhwk,nhwd,hwdm->nkm", members, away[t], kernels[u])

    for t in range(len(held) - 1):
        own, other = evidence(t, t), evidence(t + 1, t + 1)
        mixed, crossed = evidence(t + 1, t), evidence(t, t + 1)
        logits = [own.sum(1) + start[t], other.sum(1) + start[t + 1]]
        means = plain_ledger.logarithmic_means(*logits)
        seeing = plain_ledger.share((mixed - own + other - crossed) / 2, means)
        weighing = plain_ledger.share((crossed - own + other - mixed) / 2, means)
        for name, values in (("seeing", seeing), ("weighing", weighing)):
            for label in range(CLASSES):
                expected = values[labels == label].mean(0)
                np.testing.assert_allclose(run.arrays("ledger")[name][t, label], expected, rtol=1e-3, atol=1e-5)


class TestMaxLocations:
    @pytest.mark.slow
    def test_minus_one_is_all(self, explained, whole, data, tmp_path):
        """By default there are 4,096 a prototype, here more than there are at all."""
        every = explain(PLAIN, CHECKPOINTS, data, tmp_path / "run", max_locations=-1)
        assert every.arrays("prototypes")["fitted_locations"] == 111 * 16
        for name in ("assignments", "intensity", "account"):
            np.testing.assert_array_equal(every.array(name), opened(whole, explained).array(name))

    def test_a_small_number(self, explained, data, tmp_path):
        run = explain(PLAIN, CHECKPOINTS, data, tmp_path / "run", max_locations=200)
        found = run.arrays("prototypes")
        assert found["fitted_locations"] == 200
        assert explained.arrays("prototypes")["fitted_locations"] == 111 * 16
        # All locations are assigned, and counted.
        assert run.arrays("prototype_features")["counts"].sum() == len(run.dataset.labels) * 16
        assert (run.array("assignments") != explained.array("assignments")).any()
        sample = fit.sample_of(run.dataset, run.model, 200, run.config.seed)
        features = np.float64(run.model.features(run.variables(run.steps[-1]), run.dataset.images)).reshape(
            -1, CHANNELS
        )
        np.testing.assert_allclose(found["mean"], features[sample].mean(0), rtol=1e-4, atol=1e-6)
        assert found["inertia"] < explained.arrays("prototypes")["inertia"]
        plain_ledger.check_adds_up(run)

    def test_fewer_than_prototypes(self, data, tmp_path):
        with pytest.raises(InputError, match="at most 3, the feature locations that K-means is fitted"):
            explain(PLAIN, CHECKPOINTS, data, tmp_path / "run", max_locations=3)
