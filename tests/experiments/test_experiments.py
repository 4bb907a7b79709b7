"""The files in experiments/: their settings are valid, their maps hold places enough, and each of them trains."""

import ast
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
from programs import ROOT, environment

from i2x_jax import Run, models
from i2x_jax.config import Config, from_config_dict, to_dict
from i2x_jax.data import sources
from i2x_jax.data.pictures import reading_of
from i2x_jax.training import loop as training

PAPER = ("mnist_resnet50", "cifar10_resnet50", "mnist_inception_v3")
CONFIGS = [
    path for path in sorted((ROOT / "experiments").glob("*.py")) if "def get_config" in path.read_text(encoding="utf-8")
]


def each(slow=()):
    return [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in slow)) for path in CONFIGS]


def settings_of(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def test_there_is_one_for_each_of_the_papers_settings():
    assert {*PAPER, "digits", "mnist_cnn", "cifar10_resnet20"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", each())
def test_it_is_valid_and_states_what_differs_from_the_defaults_and_no_more(path):
    settings, defaults = settings_of(path), to_dict(Config())
    made = to_dict(from_config_dict(settings))
    for group, members in settings.items():
        assert set(members.keys()) == {key for key, value in made[group].items() if value != defaults[group][key]}
    assert {group for group in made if made[group] != defaults[group]} == set(settings.keys())


@pytest.mark.parametrize("path", each())
def test_its_docstring_says_the_command(path):
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    command = "python run.py" if path.stem == "digits" else f"python run.py --config=experiments/{path.name}"
    assert command in text.splitlines()[2]
    assert "Measured on" in text or "not yet measured here" in text


@pytest.mark.parametrize("path", each(slow=PAPER))
def test_its_map_is_at_least_4x4(path):
    config = from_config_dict(settings_of(path))
    image_shape, num_classes = sources.describe(config.data.name, None, reading_of(config.data))
    model = models.create(
        config.model.name,
        num_classes=num_classes,
        image_shape=image_shape,
        stem=config.model.stem,
        tap=config.model.tap,
        patch=config.model.patch,
        depth=config.model.depth,
    )
    assert min(model.feature_shape[:2]) >= 4
    assert model.feature_shape[2] >= config.explain.pca_dims
    assert num_classes == 10


def test_both_resnet50_are_trained_alike():
    """What `test_it_learns_few_images_by_heart` finds of one holds for the other."""
    one, other = (
        to_dict(from_config_dict(settings_of(path)))
        for path in CONFIGS
        if path.stem in ("cifar10_resnet50", "mnist_resnet50")
    )
    assert one["model"] == other["model"]
    assert one["train"] == other["train"] | {"epochs": one["train"]["epochs"]}


# Few channels and small images, for nobody here has hours.
SMALL = {"cifar10_resnet50": {"width": 8, "side": 16}, "mnist_inception_v3": {"width": 4, "side": 75}}


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem in SMALL], ids=lambda path: path.stem)
def test_it_learns_few_images_by_heart(base, tmp_path, path):
    """Its network, tap and optimizer, as run.py trains them, on 100 digits, enlarged, which nothing shifts."""
    small = SMALL[path.stem]
    changes = {
        "data.name": "digits",
        "data.image_size": small["side"],
        "data.max_train": 105,
        "data.augment": "none",
        "model.width": small["width"],
        "train.epochs": 25,
        "train.batch_size": 50,
        "train.learning_rate": 0.02,
        "train.num_checkpoints": 2,
        "explain.num_prototypes": 4,
        "explain.batch_size": 100,
    }
    arguments = [f"--config={path}", *(f"--config.{key}={value}" for key, value in changes.items()), "--stage=train"]
    # To optimise the machine code of a deep network takes longer than to train it here.
    variables = environment(base) | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, str(ROOT / "run.py"), f"--workdir={tmp_path / 'run'}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=tmp_path, check=False)
    # XLA notes there when a compilation takes long.
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path / "run")
    (loss,) = (line["loss"] for line in run.metrics if line["split"] == "train")
    # Knowing nothing costs 2.3; what was learned, 0.05 where this was measured.
    assert loss < 1
    assert run.steps.tolist() == [0, 50]
    assert np.array_equal(run.array("labels"), run.dataset.labels)
    assert sorted(os.listdir(tmp_path)) == ["run"]
    assert (tmp_path / "run" / "checkpoints" / "50").is_dir()


@pytest.mark.slow
def test_the_planted_tag_does_harm(base, tmp_path):
    """Where it stands for nothing, the network that was trained with it is worse than its twin that never saw one."""
    runs = []
    for name, change in (("tagged", "tag"), ("twin", "")):
        arguments = ["--config=experiments/planted.py", f"--config.data.plant={change}", "--stage=train"]
        command = [sys.executable, "run.py", f"--workdir={tmp_path / name}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(base), cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
        runs.append(Run(tmp_path / name))
    last, unbiased = ({line["split"]: line["accuracy"] for line in run.metrics} for run in runs), []
    for run in runs:
        logits = training.predict(run.model, run.variables(run.steps[-1]), runs[0].splits.unbiased, 256)
        unbiased.append(training.loss_and_accuracy(logits, runs[0].splits.unbiased.labels)[1])
    tagged, twin = last
    assert tagged["unbiased"] == pytest.approx(unbiased[0])
    assert tagged["unbiased"] < min(twin["test"], unbiased[1]) - 0.05
    assert tagged["test"] > twin["test"] - 0.05
