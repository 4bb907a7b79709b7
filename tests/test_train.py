"""`i2x_jax.train`: a network of this project, trained on a user's own arrays from Python."""

import shutil

import numpy as np
import pytest
from helpers import one_line, planted
from programs import one_at_a_time

import i2x_jax
from i2x_jax import InputError, Run
from i2x_jax.results.files import CHECKPOINTS, REFINEMENT, REPORT

SETTINGS = {
    "train": {"epochs": 2, "batch_size": 16, "num_checkpoints": 3, "learning_rate": 0.01},
    "data": {"validation": 0.1},
    "model": {"width": 4},
    "explain": {"num_prototypes": 4, "pca_dims": 4, "restarts": 1, "max_pairs": 1, "batch_size": 64},
    "refine": {"seeds": 1, "strategies": ("full",)},
}


@pytest.fixture(scope="module")
def trained(base, data):
    """Not to be changed."""
    with one_at_a_time(base, "trained"):
        return i2x_jax.train(data, SETTINGS, base / "trained")


def test_a_run_like_any_other(trained, data):
    assert trained.config.data.name == "own"
    assert tuple(trained.steps) == (0, 1, 16)
    assert [len(split.labels) for split in trained.splits[:3]] == [123, 12, 15]
    assert trained.explanation.pair("red", "blue").separating
    assert trained.crops(prototype=0, n=3).images.shape[0] == 3
    told = trained.story(7)
    np.testing.assert_allclose(told.contributions.sum(1) + told.bias, told.logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(trained.dataset.images[7], data.images[told.row])
    page = (trained.path / REPORT).read_text()
    assert "This network was not refined." in page
    assert "your images" in page
    assert "Accuracy at step 16" in trained.summary()


def test_the_same_call_returns_at_once(trained, data):
    made = {path: path.stat().st_mtime_ns for path in trained.path.rglob("*") if path.is_file()}
    again = i2x_jax.train(data, SETTINGS, trained.path)
    assert {path: path.stat().st_mtime_ns for path in again.path.rglob("*") if path.is_file()} == made
    assert again.story(7).why() == trained.story(7).why()


def test_opened_without_its_images_it_tells_what_needs_none(trained):
    opened = Run(trained.path)
    assert opened.story(7).reason == trained.story(7).reason
    assert "cnn on your images" in repr(opened)
    for ask in (lambda: opened.crops(1), lambda: opened.dataset, lambda: opened.story(7).contributions):
        with pytest.raises(InputError) as error:
            ask()
        assert "call i2x_jax.train again" in one_line(error)
    with pytest.raises(InputError) as error:
        _ = opened.refinement
    assert "call i2x_jax.train again, with refine=True" in one_line(error)


@pytest.mark.slow
def test_a_run_is_refined_when_that_is_asked(trained, data, tmp_path):
    shutil.copytree(trained.path, tmp_path / "run")
    run = i2x_jax.train(data, SETTINGS, tmp_path / "run", refine=True)
    assert set(run.refinement["strategies"]) == {"full"}
    page = (run.path / REPORT).read_text()
    assert "This network was not refined." not in page
    assert "before refinement" in page
    assert (run.path / "explanation.json").read_bytes() == (trained.path / "explanation.json").read_bytes()


@pytest.mark.slow
def test_a_training_that_was_stopped_goes_on(trained, data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(i2x_jax.train.__globals__["pipeline"].MAKERS, "prototypes", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            i2x_jax.train(data, SETTINGS, tmp_path / "run")
    assert (tmp_path / "run" / CHECKPOINTS).exists()
    i2x_jax.train(data, SETTINGS, tmp_path / "run")
    assert not (tmp_path / "run" / REFINEMENT).exists()
    assert (tmp_path / "run" / "explanation.json").read_bytes() == (trained.path / "explanation.json").read_bytes()


HOSTILE = {
    "no data set": ({"dataset": (1, 2)}, "dataset is a tuple; allowed: an i2x_jax.Dataset"),
    "resizing": ({"config": {"data": {"image_size": 16}}}, "data.image_size is 16; allowed: 0 for images of your own"),
    "an own network": ({"config": {"model": {"name": "own"}}}, "for one of your own call i2x_jax.explain"),
    "no network": ({"config": {"model": {"name": "vit"}}}, "unknown model 'vit'; allowed: cnn"),
    "a number": ({"refine": 3}, "refine is 3; allowed: True or False"),
    "a path": ({"workdir": 3}, "workdir is 3; allowed: a path, or None"),
    "too few": ({"dataset": planted(24)}, "train samples; allowed: at least 10; add images"),
    "more prototypes than places": (
        {"config": SETTINGS | {"explain": {"num_prototypes": 5000}}},
        "explain.num_prototypes is 5000; allowed: at most 1968, the feature locations that K-means is fitted on; "
        "set explain.num_prototypes",
    ),
    "validation of another size": ({"validation": planted(30, side=10)}, "validation has images of [10, 10, 1]"),
}


@pytest.mark.parametrize(("given", "words"), HOSTILE.values(), ids=HOSTILE)
def test_what_cannot_be_used_gets_one_line(tmp_path, data, given, words):
    everything = {"dataset": data, "config": SETTINGS, "workdir": tmp_path / "run"} | given
    with pytest.raises(InputError) as error:
        i2x_jax.train(**everything)
    assert words in one_line(error)
    assert "--" not in one_line(error)
    assert not (tmp_path / "run").exists()
