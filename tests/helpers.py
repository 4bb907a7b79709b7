"""What several test files share: how close is equal, planted images, a tiny model, and a terminal."""

import dataclasses
import fcntl
import functools
import os
import pty
import struct
import subprocess
import termios

import jax
import numpy as np

from i2x_jax import models
from i2x_jax.data.dataset import Dataset

# Tolerances, each with its reason. Where nothing but the order of float32 sums differs, tests use `ROUNDING`; where the
# same program runs on the same numbers, they ask for equality.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # a few dozen float32 roundings of 6e-8 each, on values of about 1
PRINTED = {"rtol": 0, "atol": 1e-6}  # golden numbers are printed to six decimals
DEEP = {"rtol": 1e-4, "atol": 1e-5}  # sums reordered in every layer of a network, not in one product
BFLOAT16 = {"rtol": 0.05, "atol": 0.05}  # 8 bits of mantissa: 4e-3 each, over five layers
COMPLETENESS = 1e-5  # DESIGN 2.4, relative

NAMES = ("red", "green", "blue", "grey")


def planted(count: int = 48, classes: int = 3, side: int = 8, seed: int = 0) -> Dataset:
    """Noise in which a bright 3x3 patch stands at a place that depends on the class; classes take turns."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % classes
    images = rng.integers(0, 120, (count, side, side, 1)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[row * 4 : row * 4 + 3, column * 4 : column * 4 + 3] += 130
    return Dataset(images, labels, NAMES[:classes])


@functools.cache
def tiny_model(tap: str = "", classes: int = 3, width: int = 4) -> models.Model:
    """A CNN for 8x8 grey images with maps of 4x4 from conv2 on; one object, so that it is compiled once."""
    return models.create("cnn", num_classes=classes, image_shape=(8, 8, 1), width=width, tap=tap)


def drawn(model: models.Model, seed: int = 0) -> models.Variables:
    """Variables as `model.init` draws them, without the seconds that compiling it takes; no test is about their law."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            return (rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))).astype(np.float32)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


@functools.cache
def tiny_variables(seed: int = 0) -> models.Variables:
    """Variables of `tiny_model` in which no leaf keeps its start: biases and BatchNorm statistics are not 0 and 1."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + rng.uniform(-0.3, 0.3, leaf.shape).astype(np.float32), drawn(tiny_model(), seed)
    )


def with_head(variables: models.Variables, kernel, bias) -> models.Variables:
    """The variables with another linear classifier."""
    old = variables["params"]["classifier"]
    new = {
        "kernel": np.broadcast_to(np.float32(kernel), old["kernel"].shape),
        "bias": np.broadcast_to(np.float32(bias), old["bias"].shape),
    }
    return {**variables, "params": {**variables["params"], "classifier": new}}


def counted(model: models.Model, name: str) -> tuple[models.Model, list]:
    """A copy of the model whose function `name` notes each call: under `jax.jit`, each trace.

    Being another object, it shares no compiled program with any other model.
    """
    calls = []
    original = getattr(model, name)

    def noted(*arguments):
        calls.append(name)
        return original(*arguments)

    return dataclasses.replace(model, **{name: noted}), calls


def assert_trees_equal(one, other):
    """Same structure, and every leaf the same bit for bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(left).dtype == np.asarray(right).dtype
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


def one_line(error) -> str:
    """The message of a caught `InputError`, which must be a single line."""
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


def on_terminal(command: list[str], environment: dict[str, str], columns: int = 120) -> tuple[int, str]:
    """Runs a command whose output goes to a terminal of that width: its exit code, and all that was written there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    with subprocess.Popen(command, env=environment, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        written = b""
        try:
            while part := os.read(ours, 2**16):
                written += part
        except OSError:
            # Linux says so, and not that there is nothing more, once nobody holds the other end.
            pass
        finally:
            os.close(ours)
    return process.returncode, written.decode()
