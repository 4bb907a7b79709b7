"""What a type checker sees of a user's program, and what stands in the package."""

import importlib.resources
import re
import subprocess
import sys

import pytest
from programs import ROOT

import i2x_jax

PROGRAM = """
import i2x_jax
import numpy as np
run = i2x_jax.Run("runs/digits")
images = np.zeros((9, 8, 8, 1), np.uint8)
data = i2x_jax.Dataset(images, np.zeros(9, np.int32), ("a", "b"))
reveal_type(run)
reveal_type(run.explanation)
reveal_type(run.explanation.pair("4", "9").told_apart)
reveal_type(run.story(41))
reveal_type(run.told_apart("4", "9"))
reveal_type(run.summary())
reveal_type(run.crops(3))
reveal_type(i2x_jax.explain(i2x_jax.OwnModel(lambda v, x: x, lambda v, f: f), [], data))
reveal_type(i2x_jax.train(data, {"seed": 3}))
run.crops("3")
run.explain()
"""
EXPECTED = (
    *("Run", "Explanation", "int | None", "Story", "ToldApart", "str", "Crops", "Run", "Run"),
    *('"crops" of "Run" has incompatible type "str"; expected "int"', '"Run" has no attribute "explain"'),
)
# What is not asked about is not looked into: that would take minutes.
SETTINGS = """
[mypy]
follow_imports = silent
ignore_missing_imports = True
[mypy-jax.*,flax.*,optax.*,orbax.*,absl.*,altair.*,pandas.*]
follow_imports = skip
"""


@pytest.mark.slow
def test_a_type_checker_sees_types(tmp_path):
    program, settings = tmp_path / "program.py", tmp_path / "mypy.ini"
    program.write_text(PROGRAM)
    settings.write_text(SETTINGS)
    command = [sys.executable, "-m", "mypy", f"--config-file={settings}", f"--cache-dir={tmp_path}/cache", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    lines = re.findall(r"^.*program\.py:\d+: (.*)$", done.stdout, re.MULTILINE)
    assert len(lines) == len(EXPECTED), done.stdout + done.stderr
    for line, expected in zip(lines, EXPECTED, strict=True):
        assert expected in line
        assert "Any" not in line.replace("tuple[Any, ...]", "").replace("dtype[Any]", "")


def test_the_package_says_that_it_has_types():
    assert importlib.resources.files("i2x_jax").joinpath("py.typed").is_file()


def test_only_what_is_public_is_listed():
    names = [name for name in dir(i2x_jax) if not name.startswith("__")]
    assert names == [
        "Dataset",
        "Display",
        "InputError",
        "OrbaxCheckpoints",
        "OwnModel",
        "Run",
        "explain",
        "gradcam",
        "parts",
        "train",
    ]
    assert set(names) == set(i2x_jax.__all__) == set(i2x_jax._HOMES)
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", i2x_jax.__version__)
