"""The library from Python: `i2x_jax.explain` for networks that this project did not define."""

import dataclasses
import gc
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers import ROUNDING, one_line, planted
from ml_collections import ConfigDict
from own_networks import (
    CHANNELS,
    CHECKPOINTS,
    CLASSES,
    PLAIN,
    SETTINGS,
    STEPS,
    LinenNet,
    linen_variables,
    nnx_model_and_states,
    plain_features,
    plain_head,
)

import i2x_jax
from experiments.examples import own_model
from i2x_jax import Run, api
from i2x_jax.config import InputError, from_config_dict
from i2x_jax.data.dataset import Dataset
from i2x_jax.models import Places, Span
from i2x_jax.results.files import EXPLANATION, REPORT

ROOT = pathlib.Path(__file__).parent.parent
ARRAYS = ("assignments", "intensity", "confidence", "groups")
PAIRS = list(zip(STEPS, CHECKPOINTS, strict=True))


def assert_same_run(one, other, exactly=False):
    for name in ARRAYS:
        if exactly or name in ("assignments", "groups"):
            np.testing.assert_array_equal(one.array(name), other.array(name))
        else:
            np.testing.assert_allclose(one.array(name), other.array(name), **ROUNDING)


def test_importing_the_package_imports_no_jax():
    code = "import sys, i2x_jax; assert 'jax' not in sys.modules; i2x_jax.Run; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_public_name_is_there():
    assert {"explain", "Run", "gradcam", "OwnModel"} <= set(dir(i2x_jax))
    assert all(getattr(i2x_jax, name).__doc__ for name in i2x_jax.__all__)
    assert i2x_jax.Run is Run
    with pytest.raises(AttributeError, match="no attribute 'explian'"):
        _ = i2x_jax.explian


def test_everything_can_be_asked_of_the_run(explained, data):
    assert tuple(explained.steps) == STEPS
    assert explained.array("intensity").shape == (4, len(explained.dataset.labels), 4)
    assert explained.config.explain.pca_dims == CHANNELS
    splits = explained.splits[:3]
    # Three splits of the data, each image in one of them, labels with their images.
    rows = [row.tobytes() for split in splits for row in split.images]
    assert sorted(rows) == sorted(row.tobytes() for row in data.images)
    label_of = {image.tobytes(): label for image, label in zip(data.images, data.labels, strict=True)}
    assert all(label_of[i.tobytes()] == label for i, label in zip(splits[0].images, splits[0].labels, strict=True))
    assert [len(split.labels) for split in splits] == [111, 18, 21]
    # The field of a 3x3 convolution, measured; on images of an even side it is padded behind them only.
    assert explained.crops(prototype=1, n=3).images.shape == (3, 3, 3, 1)
    assert explained.model.places == Places(Span(1, 2, 3), Span(1, 2, 3))
    assert explained.story(image=7).confidence.shape == (4, CLASSES)
    assert explained.explanation.pair("red", "blue").separating
    np.testing.assert_array_equal(explained.variables(40)["kernel"], CHECKPOINTS[2]["kernel"])
    page = (explained.path / REPORT).read_text()
    assert "This network was trained elsewhere" in page
    assert "train.epochs" not in page
    text = explained.summary()
    assert "Accuracy at step 200: train" in text
    assert "told apart on validation" in text


def test_measured_are_the_functions_that_were_given(explained):
    """Confidence and intensity of one checkpoint, computed anew without the library."""
    images, held = jnp.asarray(explained.dataset.images), CHECKPOINTS[1]
    features = plain_features(held, images)
    logits = plain_head(held, features)
    np.testing.assert_allclose(explained.array("confidence")[1], jax.nn.softmax(logits), **ROUNDING)
    rows = held["classifier"].T[explained.dataset.labels] / 16
    maps = np.maximum(np.einsum("nhwd,nd->nhw", features, rows), 0)
    places = explained.array("assignments")
    for k in range(4):
        count = np.maximum((places == k).sum((1, 2)), 1)
        expected = (maps * (places == k)).sum((1, 2)) / count
        np.testing.assert_allclose(explained.array("intensity")[1][:, k], expected, **ROUNDING)


@pytest.mark.slow
def test_linen_nnx_and_plain_jax_agree(explained, data):
    net = LinenNet()
    model = i2x_jax.OwnModel(
        lambda variables, images: net.apply(variables, images, method="features"),
        lambda variables, features: net.apply(variables, features, method="head"),
    )
    pairs = [(step, linen_variables(held)) for step, held in PAIRS]
    assert_same_run(i2x_jax.explain(model, pairs, data, ConfigDict(SETTINGS)), explained)
    model, states = nnx_model_and_states()
    run = i2x_jax.explain(
        model,
        list(zip(STEPS, states, strict=True)),
        data,
        from_config_dict(SETTINGS | {"explain": SETTINGS["explain"] | {"pca_dims": CHANNELS}}),
    )
    assert_same_run(run, explained)
    assert isinstance(run.variables(5), type(states[0]))


def test_a_receptive_field_that_is_given_is_kept_and_centres_are_measured(data):
    like = jax.eval_shape(lambda: CHECKPOINTS[0])
    own = api._cut(i2x_jax.OwnModel(plain_features, plain_head), like, data, False)
    assert api._placed(own, CHECKPOINTS[-1], data, 7).places == Places(Span(1, 2, 7), Span(1, 2, 7))


@pytest.mark.slow
def test_a_linear_head_gives_the_same(explained, data):
    model = i2x_jax.OwnModel(plain_features, plain_head, linear_head=lambda held: (held["classifier"], held["bias"]))
    run = i2x_jax.explain(model, CHECKPOINTS, data, SETTINGS)
    assert tuple(run.steps) == (0, 1, 2, 3)
    assert_same_run(run, explained)
    one, other = (each.arrays("contributions")["mean"] for each in (run, explained))
    np.testing.assert_allclose(one, other, **ROUNDING)


@pytest.mark.slow
def test_a_run_of_run_py_explained_from_its_checkpoints(finished, tmp_path):
    """By the path of its Orbax folder: the same arrays, bit for bit."""
    run = Run(finished)
    again = i2x_jax.explain(
        run.model,
        finished / "checkpoints",
        run.dataset,
        run.config,
        tmp_path / "again",
        validation=run.splits.validation,
        test=run.splits.test,
    )
    assert_same_run(again, run, exactly=True)
    for name in ("prototypes", "contributions", "validation", "test", "mapping", "curated"):
        for member, value in run.arrays(name).items():
            np.testing.assert_array_equal(again.arrays(name)[member], value)
    assert (again.path / EXPLANATION).read_bytes() == (finished / EXPLANATION).read_bytes()
    # Its own two functions alone, without the closed form, on trees as Orbax stored them.
    own = i2x_jax.OwnModel(run.model.features, run.model.head, receptive_field=run.model.receptive_field)
    given = dict(validation=run.splits.validation, test=run.splits.test)
    config = dataclasses.replace(run.config, explain=dataclasses.replace(run.config.explain, max_pairs=0))
    general = i2x_jax.explain(own, finished / "checkpoints", run.dataset, config, **given)
    np.testing.assert_array_equal(general.array("assignments"), run.array("assignments"))
    for name in ("intensity", "confidence"):
        np.testing.assert_allclose(general.array(name), run.array(name), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_an_orbax_folder_of_an_nnx_state(tmp_path, explained, data):
    model, states = nnx_model_and_states()
    with ocp.CheckpointManager(tmp_path / "kept") as manager:
        for step, state in zip(STEPS, states, strict=True):
            both = ocp.args.Composite(model=ocp.args.StandardSave(state), more=ocp.args.StandardSave({"a": np.ones(2)}))
            manager.save(step, args=both)
    with pytest.raises(InputError) as error:
        i2x_jax.explain(model, tmp_path / "kept", data, SETTINGS)
    assert "has the items model, more; allowed: one that holds arrays; name it" in one_line(error)
    kept = i2x_jax.OrbaxCheckpoints(tmp_path / "kept", item="model", like=states[0])
    assert_same_run(i2x_jax.explain(model, kept, data, SETTINGS), explained)


def test_what_is_finished_is_not_made_twice(explained, data):
    made = {path: path.stat().st_mtime_ns for path in explained.path.rglob("*") if path.is_file()}
    again = i2x_jax.explain(PLAIN, PAIRS, data, SETTINGS, explained.path)
    assert {path: path.stat().st_mtime_ns for path in again.path.rglob("*") if path.is_file()} == made
    assert again.explanation == explained.explanation


@pytest.mark.parametrize(
    "changed",
    [{"checkpoints": PAIRS[:3]}, {"dataset": planted(150, seed=1)}, {"config": SETTINGS | {"seed": 4}}],
    ids=lambda changed: next(iter(changed)),
)
def test_a_folder_belongs_to_one_call(explained, data, changed):
    given = {"model": PLAIN, "checkpoints": PAIRS, "dataset": data, "config": SETTINGS} | changed
    with pytest.raises(InputError) as error:
        i2x_jax.explain(**given, workdir=explained.path)
    assert "choose another workdir" in one_line(error)
    assert (explained.path / REPORT).exists()


def test_opened_without_network_and_images_it_tells_what_needs_neither(explained):
    opened = Run(explained.path)
    assert opened.explanation == explained.explanation
    assert opened.story(image=7).reason == explained.story(image=7).reason
    for ask in (lambda: opened.crops(1), lambda: opened.dataset, lambda: opened.variables(5)):
        with pytest.raises(InputError) as error:
            ask()
        assert "call i2x_jax.explain again" in one_line(error)
    for ask in (lambda: opened.refinement, lambda: opened.to_frame("refinement")):
        with pytest.raises(InputError) as error:
            ask()
        assert "a model of your own, which is not refined" in one_line(error)


@pytest.mark.slow
def test_a_call_that_was_stopped_goes_on(tmp_path, explained, data):
    shutil.copytree(explained.path, tmp_path / "run")
    for name in (EXPLANATION, REPORT):
        (tmp_path / "run" / name).unlink()
    i2x_jax.explain(PLAIN, PAIRS, data, SETTINGS, tmp_path / "run")
    assert (tmp_path / "run" / EXPLANATION).read_bytes() == (explained.path / EXPLANATION).read_bytes()


@pytest.mark.slow
def test_a_temporary_folder_lives_as_long_as_its_run(data):
    run = i2x_jax.explain(PLAIN, CHECKPOINTS, data, SETTINGS)
    path = run.path
    assert (path / EXPLANATION).exists()
    del run
    gc.collect()
    assert not path.exists()


def with_leaf(value, place=1, name="shift"):
    """The checkpoints with another leaf in one of them."""
    return [{**held, name: value} if i == place else held for i, held in enumerate(CHECKPOINTS)]


def deleted():
    array = jnp.ones(CHANNELS)
    array.delete()
    return array


def labelled(labels, names=("red", "green", "blue")):
    return lambda data: Dataset(data.images, np.asarray(labels), names)


NAN = np.full(CHANNELS, np.nan, np.float32)
HOSTILE = {
    "one checkpoint": ({"checkpoints": CHECKPOINTS[:1]}, "1 checkpoint given; allowed: at least 2"),
    "no checkpoint": ({"checkpoints": []}, "0 checkpoint given"),
    "a network": ({"checkpoints": 7}, "checkpoints is a int; allowed: a list of variables"),
    "one tree": ({"checkpoints": CHECKPOINTS[0]}, "checkpoints is a dict"),
    "no folder": ({"checkpoints": "/nowhere"}, "/nowhere is no folder"),
    "a folder of something else": ({"checkpoints": str(ROOT / "docs")}, "holds no checkpoints"),
    "some steps": ({"checkpoints": [CHECKPOINTS[0], (3, CHECKPOINTS[1])]}, "with a step and without"),
    "steps that fall": ({"checkpoints": [(5, CHECKPOINTS[0]), (4, CHECKPOINTS[1])]}, "[5, 4]; allowed: rising"),
    "a step twice": ({"checkpoints": [(5, CHECKPOINTS[0]), (5, CHECKPOINTS[1])]}, "[5, 5]; allowed: rising"),
    "a negative step": ({"checkpoints": [(-5, CHECKPOINTS[0]), (4, CHECKPOINTS[1])]}, "[-5, 4]; allowed: rising"),
    "a step beyond int32": ({"checkpoints": [(0, CHECKPOINTS[0]), (2**31, CHECKPOINTS[1])]}, "0 to 2147483647"),
    "the same tree": ({"checkpoints": [CHECKPOINTS[0]] * 3}, "the same at all 3 steps"),
    "another tree": ({"checkpoints": with_leaf({"a": np.ones(2)})}, "at step 1 are another tree than those at step 0"),
    "another shape": (
        {"checkpoints": with_leaf(np.ones(2, np.float32))},
        "shift is float32 [2] at step 1 and float32 [6]",
    ),
    "another dtype": ({"checkpoints": with_leaf(np.ones(CHANNELS, np.int32))}, "shift is int32 [6] at step 1"),
    "NaN weights": ({"checkpoints": with_leaf(NAN)}, "shift at step 1 holds NaN or infinity"),
    "text": ({"checkpoints": with_leaf("sgd")}, "shift at step 1 is str; allowed: arrays of numbers"),
    "a random key": ({"checkpoints": with_leaf(jax.random.key(0))}, "shift at step 1 is key<fry>"),
    "an array that was donated": ({"checkpoints": with_leaf(deleted())}, "shift at step 1 was deleted"),
    "logits that overflow": ({"checkpoints": with_leaf(np.float32(3e38) * np.ones(CHANNELS, np.float32))}, "at step 1"),
    "a function": ({"model": plain_features}, "model is a function; allowed: an i2x_jax.OwnModel"),
    "features without a map": (
        {"model": i2x_jax.OwnModel(lambda v, x: plain_features(v, x).mean((1, 2)), plain_head)},
        "`features` returned float32 [2, 6] for 2 images; allowed: a float array [2, h, w, d]",
    ),
    "features of one location": (
        {"model": i2x_jax.OwnModel(lambda v, x: plain_features(v, x).mean((1, 2), keepdims=True), plain_head)},
        "a map of 1x1; allowed: at least two locations",
    ),
    "two outputs": ({"model": i2x_jax.OwnModel(lambda v, x: (x, x), plain_head)}, "`features` returned tuple"),
    "integers": ({"model": i2x_jax.OwnModel(lambda v, x: x, plain_head)}, "`features` returned uint8 [2, 8, 8, 1]"),
    "logits of four classes": (
        {"model": i2x_jax.OwnModel(plain_features, lambda v, f: plain_head(v, f)[:, [0, 1, 2, 0]])},
        "`head` returned float32 [2, 4] for the features of 2 images; allowed: a float array [2, 3]",
    ),
    "one sample's logits": (
        {"model": i2x_jax.OwnModel(plain_features, lambda v, f: plain_head(v, f)[0])},
        "`head` returned float32 [3]",
    ),
    "another linear head": (
        {"model": i2x_jax.OwnModel(plain_features, plain_head, lambda v: (v["classifier"], v["bias"] + 1))},
        "`linear_head` misses the logits of `head` by up to 1",
    ),
    "a linear head transposed": (
        {"model": i2x_jax.OwnModel(plain_features, plain_head, lambda v: (v["classifier"].T, v["bias"]))},
        "`linear_head` returned [3, 6] and [3]; allowed: weights [6, 3]",
    ),
    "a negative receptive field": (
        {"model": i2x_jax.OwnModel(plain_features, plain_head, receptive_field=-1)},
        "receptive_field is -1; allowed: pixels",
    ),
    "a tuple": ({"dataset": (1, 2)}, "dataset is a tuple; allowed: an i2x_jax.Dataset"),
    "floats": ({"dataset": lambda d: d._replace(images=d.images / 255)}, "float64 [150, 8, 8, 1]; allowed: uint8"),
    "no channels": ({"dataset": lambda d: d._replace(images=d.images[..., 0])}, "uint8 [150, 8, 8]; allowed: uint8"),
    "two channels": ({"dataset": lambda d: d._replace(images=d.images.repeat(2, -1))}, "with 1 or 3 channels"),
    "no images": ({"dataset": lambda d: d.take(np.arange(0))}, "uint8 [0, 8, 8, 1]"),
    "no labels": ({"dataset": lambda d: d._replace(labels=None)}, "has no labels; allowed: integers, one an image"),
    "labels too few": ({"dataset": labelled(np.zeros(149, int))}, "labels of dataset are int64 [149]"),
    "labels one-hot": ({"dataset": labelled(np.zeros((150, 3), int))}, "int64 [150, 3]; allowed: integers [150]"),
    "labels as floats": ({"dataset": labelled(np.zeros(150))}, "labels of dataset are float64 [150]"),
    "labels from 1": ({"dataset": labelled(np.arange(150) % 3 + 1)}, "label 3; allowed: 0 to 2"),
    "a negative label": ({"dataset": labelled(np.arange(150) % 3 - 1)}, "label -1; allowed: 0 to 2"),
    "a class of no image": (
        {"dataset": labelled(np.arange(150) % 2)},
        "class 'blue' has 0 train samples; allowed: at least 10",
    ),
    "names twice": (
        {"dataset": labelled(np.arange(150) % 3, ("a", "a", "b"))},
        "('a', 'a', 'b'); allowed: a different",
    ),
    "names as numbers": ({"dataset": labelled(np.arange(150) % 3, (0, 1, 2))}, "(0, 1, 2); allowed: a different text"),
    "validation of another size": ({"validation": planted(30, side=10)}, "validation has images of [10, 10, 1]"),
    "test of other classes": ({"test": planted(30, classes=2)}, "classes ('red', 'green'); allowed: those of the"),
    "validation without a class": (
        {"validation": planted(30).take(np.flatnonzero(planted(30).labels))},
        "class 'red' has 0 validation samples",
    ),
    "an unknown setting": ({"config": {"explain": {"prototypes": 3}}}, "unknown config key explain.prototypes"),
    "a setting out of range": ({"config": {"explain": {"num_prototypes": 1}}}, "explain.num_prototypes is 1"),
    "more dimensions than channels": ({"config": {"explain": {"pca_dims": 7}}}, "allowed: at most 6, the feature"),
    "a number for settings": ({"config": 3}, "config is 3; allowed: a group of settings"),
    "an unknown pair": ({"config": {"refine": {"pair": ("red", "pink")}}}, "refine.pair names 'pink'"),
}


@pytest.mark.parametrize(("given", "words"), HOSTILE.values(), ids=HOSTILE)
def test_what_cannot_be_used_gets_one_line(tmp_path, data, given, words):
    given = {key: value(data) if key == "dataset" and callable(value) else value for key, value in given.items()}
    everything = {"model": PLAIN, "checkpoints": CHECKPOINTS, "dataset": data, "config": SETTINGS} | given
    with pytest.raises(InputError) as error:
        i2x_jax.explain(**everything, workdir=tmp_path / "run")
    assert words in one_line(error)
    assert not (tmp_path / "run").exists()


def test_a_damaged_orbax_folder(tmp_path, data):
    with ocp.StandardCheckpointer() as checkpointer:
        for step, held in PAIRS:
            checkpointer.save(tmp_path / "kept" / f"step_{step}", held)
    for path in (tmp_path / "kept" / "step_40").rglob("*"):
        if path.is_file() and "d" in path.parent.name:
            path.write_bytes(b"")
    with pytest.raises(InputError) as error:
        i2x_jax.explain(PLAIN, tmp_path / "kept", data, SETTINGS, tmp_path / "run")
    assert f"checkpoint {tmp_path}/kept/step_40 cannot be read (" in one_line(error)
    assert not (tmp_path / "run").exists()


def test_an_error_in_the_users_own_function_keeps_its_traceback(tmp_path, data):
    model = i2x_jax.OwnModel(lambda variables, images: variables["missing"], plain_head)
    with pytest.raises(KeyError, match="missing"):
        i2x_jax.explain(model, CHECKPOINTS, data, SETTINGS, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_own_model_explains_a_network_of_linen(tmp_path, capsys):
    run = own_model.main(tmp_path / "run", steps=9, num_prototypes=4)
    printed = capsys.readouterr().out
    assert list(run.steps) == [0, 1, 3, 9]
    assert f"Report           {tmp_path}/run/report.html" in printed
    pair = run.explanation.pairs[0]
    assert f"{pair.a} and {pair.b}: " in printed
    assert f"separated by prototypes {pair.separating[0].prototype} (" in printed


def test_images_that_are_read_by_rows_give_the_same_run(explained, data, tmp_path):
    class Decoded:
        shape, dtype = data.images.shape, data.images.dtype

        def __getitem__(self, rows):
            return np.array(data.images[rows])

    assert_same_run(i2x_jax.explain(PLAIN, PAIRS, data._replace(images=Decoded()), SETTINGS, tmp_path), explained)
