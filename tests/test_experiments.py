"""The files in experiments/: their settings are valid, their maps hold places enough, and each of them trains."""

import ast
import dataclasses
import functools
import importlib.util
import os
import pathlib

import jax
import numpy as np
import pytest
from test_run import ROOT

from i2x_jax import Run, models, pipeline, sources
from i2x_jax.config import from_config_dict, to_dict

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
def test_it_is_valid_and_holds_every_number(path):
    settings = settings_of(path)
    config = from_config_dict(settings)
    given = {group: set(members) if hasattr(members, "keys") else None for group, members in settings.items()}
    assert given == {group: set(v) if isinstance(v, dict) else None for group, v in to_dict(config).items()}


@pytest.mark.parametrize("path", each())
def test_its_docstring_says_the_command(path):
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    command = "python run.py" if path.stem == "digits" else f"python run.py --config=experiments/{path.name}"
    assert command in text.splitlines()[2]
    assert "Measured on" in text or "not yet measured here" in text


@pytest.mark.parametrize("path", each(slow=PAPER))
def test_its_map_is_at_least_4x4(path):
    config = from_config_dict(settings_of(path))
    image_shape, num_classes = sources.describe(config.data.name, None, config.data.image_size)
    model = models.create(
        config.model.name,
        num_classes=num_classes,
        image_shape=image_shape,
        stem=config.model.stem,
        tap=config.model.tap,
    )
    assert min(model.feature_shape[:2]) >= 4
    assert model.feature_shape[2] >= config.explain.pca_dims
    assert num_classes == 10


# Few channels and small images, for nobody here has hours. Both ResNet-50 are one network then, compiled once.
SMALL = {"resnet50": {"width": 8, "side": 16}, "inception_v3": {"width": 4, "side": 75}}
CREATE = models.create


@functools.cache
def create(*args, **settings):
    """As `models.create`, but its `init` is compiled without optimisation: else that would take longer than training."""
    model = CREATE(*args, **settings)
    quick = jax.jit(model.init, compiler_options={"xla_backend_optimization_level": 0})
    return dataclasses.replace(model, init=quick)


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem in PAPER], ids=lambda path: path.stem)
def test_it_learns_few_images_by_heart(path, tmp_path, monkeypatch):
    """Its network, tap and optimizer, in the stage that trains, on 100 digits, enlarged, which nothing shifts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "create", create)
    settings = to_dict(from_config_dict(settings_of(path)))
    small = SMALL[settings["model"]["name"]]
    settings["data"] |= {"name": "digits", "image_size": small["side"], "max_train": 105, "augment": "none"}
    settings["model"]["width"] = small["width"]
    settings["train"] |= {"epochs": 15, "batch_size": 50, "num_checkpoints": 2, "learning_rate": 0.02}
    settings["explain"] |= {"num_prototypes": 4, "pca_dims": 4, "batch_size": 100}
    pipeline.run(from_config_dict(settings), "run", ["train"])
    run = Run("run")
    (loss,) = (line["loss"] for line in run.metrics if line["split"] == "train")
    # Knowing nothing costs 2.3.
    assert loss < 0.5
    assert run.steps.tolist() == [0, 30]
    assert np.array_equal(run.array("labels"), run.dataset.labels)
    assert sorted(os.listdir(tmp_path)) == ["run"]
    assert pathlib.Path("run", "checkpoints", "30").is_dir()
