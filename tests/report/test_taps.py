"""The table of taps: what it says, that it reads no images, and what it refuses."""

import re
import subprocess
import sys

import pytest
from programs import ROOT, environment

from i2x_jax import models
from i2x_jax.config import InputError, from_config_dict
from i2x_jax.report.taps import tap_table
from tests.helpers import one_line

LINE = re.compile(r"^  (\w+) +(\d+) x (\d+) x (\d+) +(\d+) +(\d+) px(?:  (.*))?$")


def table(data_dir=None, **model):
    side = model.pop("image_size", 0)
    name = model.pop("data", "digits")
    settings = {"data": {"name": name, "image_size": side}, "model": model}
    lines = tap_table(from_config_dict(settings), data_dir).splitlines()
    rows = [LINE.fullmatch(line).groups() for line in lines[2:]]
    return lines[0], {tap: (*map(int, numbers), note) for tap, *numbers, note in rows}


def test_it_says_what_the_model_would_have():
    _, rows = table(name="resnet18", stem="cifar", tap="stage2", width=8, image_size=32)
    assert list(rows) == ["stem", "stage1", "stage2", "stage3", "stage4"]
    for tap, (h, w, d, locations, field, note) in rows.items():
        model = models.create("resnet18", num_classes=10, image_shape=(32, 32, 1), stem="cifar", tap=tap, width=8)
        assert ((h, w, d), field) == (model.feature_shape, model.receptive_field)
        assert locations == h * w
        assert (note == "chosen") == (tap == "stage2")


@pytest.mark.parametrize(
    ("allowed", "note"), [(False, "chosen, 1x1: refused without"), (True, "chosen, 1x1: allowed by")]
)
def test_maps_of_one_location_are_marked(allowed, note):
    _, rows = table(name="resnet18", width=4, image_size=32, allow_1x1=allowed)
    assert rows["stage4"] == (1, 1, 32, 1, 435, f"{note} model.allow_1x1")
    assert rows["stage3"][:2] + rows["stage3"][5:] == (2, 2, None)


@pytest.mark.parametrize(
    ("data", "side", "shape"), [("mnist", 0, "28x28x1"), ("cifar10", 0, "32x32x3"), ("tf_flowers", 64, "64x64x3")]
)
def test_sets_that_are_not_there_are_known_by_their_description(tmp_path, data, side, shape):
    heading, rows = table(str(tmp_path), data=data, image_size=side, name="cnn")
    assert f"images of {shape};" in heading
    assert rows["conv1"][:2] == tuple(map(int, shape.split("x")[:2]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({"name": "cnn", "tap": "conv9"}, "unknown tap 'conv9' of cnn; allowed: conv1, conv2, conv3, conv4;"),
        ({"name": "cnnn"}, "unknown model 'cnnn'"),
        ({"data": "digitz"}, "unknown data set 'digitz'"),
        ({"data": "tf_flowers"}, "images of several sizes; allowed: one size; set data.image_size"),
        pytest.param(
            {"name": "inception_v3", "width": 1, "image_size": 30},
            "images of 30x30 are too small for inception_v3",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_cannot_be_listed_is_refused(tmp_path, settings, value):
    with pytest.raises(InputError) as error:
        table(str(tmp_path), **settings)
    assert value in one_line(error)


@pytest.mark.parametrize(("more", "code"), [((), 0), (("--config.model.tap=conv9",), 2)])
def test_on_the_command_line(base, tmp_path, more, code):
    command = [sys.executable, str(ROOT / "run.py"), "--list_taps", f"--workdir={tmp_path / 'run'}", *more]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(base), check=False)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == (1 if code else 0)
    assert ("conv4" in done.stdout) == (code == 0)
    assert not (tmp_path / "run").exists()
