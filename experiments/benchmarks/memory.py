"""Shows that no more than a batch of feature vectors is held at a time: the memory that the explain stage needs.

    python experiments/benchmarks/memory.py --images=100000

Prototypes (PCA and K-means of a sample of locations) and what two checkpoints take from them, by the code that run.py
runs, of a synthetic network whose feature maps are drawn from a seed for each image: 100,000 x 49 x 2,048 of them would
fill 40 GB at a checkpoint.
Feature vectors lie around planted centres, so that what is found can be checked. Prints time and peak memory of each
part, and the adjusted Rand index between planted centres and prototypes.

Measured on two cores of an AMD EPYC beside other work, before locations were sampled: peak 2.33 GB, 11 minutes of a
core, index 1.000.
"""

import functools
import pathlib
import re
import sys
import tempfile
import time
import types

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from sklearn.metrics import adjusted_rand_score

from i2x_jax.config import from_config_dict
from i2x_jax.data.dataset import Dataset, Splits
from i2x_jax.devices.host_memory import keep_freed_memory
from i2x_jax.models import Model, Places, Span
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.pipeline.measure import measure_evidence
from i2x_jax.pipeline.prototypes import find_prototypes

CENTRES, CODE, PCA_DIMS, CLASSES, SIDE = 16, 12, 32, 10, 7

_IMAGES = flags.DEFINE_integer("images", 100_000, "Images, each with 49 locations.", lower_bound=1000)
_CHANNELS = flags.DEFINE_integer("channels", 2048, "Channels of the feature map.", lower_bound=PCA_DIMS)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Images at a time.", lower_bound=1)


def planted(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The centre of every location `[B, h, w]`, and vectors `[B, h, w, CODE]` around it; images hold their number."""
    number = images.reshape(-1, 4).astype(jnp.uint32) @ jnp.array([1, 2**8, 2**16, 2**24], jnp.uint32)

    def draw(seed):
        which, where = jax.random.split(jax.random.fold_in(jax.random.key(0), seed))
        centre = jax.random.randint(which, (SIDE, SIDE), 0, CENTRES)
        return centre, 0.2 * jax.random.normal(where, (SIDE, SIDE, CODE))

    centre, spread = jax.vmap(draw)(number)
    return centre, 3 * jax.random.normal(jax.random.key(1), (CENTRES, CODE))[centre] + spread


def synthetic_model(channels: int) -> Model:
    """A network whose features are rectified mixtures of `planted`, before global average pool and linear layer."""

    def no_training(*_):
        raise NotImplementedError("this network is only explained")

    def linear_head(variables):
        return variables["kernel"], variables["bias"]

    return Model(
        features=lambda variables, images: jax.nn.relu(planted(images)[1] @ variables["mixture"]),
        head=lambda variables, features: features.mean((1, 2)) @ variables["kernel"] + variables["bias"],
        init=no_training,
        train_logits=no_training,
        batch_statistics=no_training,
        linear_head=linear_head,
        feature_shape=(SIDE, SIDE, channels),
        places=Places(*[Span(0, 1, 1)] * 2),
        tap="synthetic",
    )


def variables_of(channels: int, step: int) -> dict:
    """Weights of a checkpoint."""
    rng = np.random.default_rng(step)
    return {
        "mixture": rng.normal(size=(CODE, channels)).astype(np.float32),
        "kernel": (rng.normal(size=(channels, CLASSES)) / channels**0.5).astype(np.float32),
        "bias": np.zeros(CLASSES, np.float32),
    }


def numbered(images: int) -> Dataset:
    """Images of four bytes, the digits of their number, in classes that take turns."""
    numbers = np.arange(images, dtype="<u4").view(np.uint8).reshape(images, 1, 1, 4)
    labels = np.arange(images, dtype=np.int32) % CLASSES
    return Dataset(numbers, labels, tuple(map(str, range(CLASSES))))


def peak_megabytes() -> float:
    """The most memory that this process has held so far."""
    # What getrusage says includes the process that started this one.
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024 / 1e6


def main(_):
    """Runs both steps in a folder that is thrown away, and prints."""
    keep_freed_memory()
    train, few = numbered(_IMAGES.value), numbered(1000)
    explain = {"num_prototypes": CENTRES, "pca_dims": PCA_DIMS, "batch_size": _BATCH_SIZE.value}
    kept = len(train.labels) * SIDE * SIDE * _CHANNELS.value * 4
    print(f"{len(train.labels)} images: features of {kept / 1e9:.2f} GB at each of two checkpoints", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(folder)
        work = types.SimpleNamespace(
            path=directory.path,
            config=from_config_dict({"explain": explain}),
            splits=Splits(train, few, few),
            dataset=train,
            model=synthetic_model(_CHANNELS.value),
            steps=(0, 1),
            variables=functools.partial(variables_of, _CHANNELS.value),
            abstract_variables=jax.eval_shape(lambda: variables_of(_CHANNELS.value, 0)),
            array=lambda name: np.load(directory.path / f"{name}.npy", mmap_mode="r"),
            arrays=lambda name: dict(np.load(directory.path / f"{name}.npz")),
        )
        print(f"{'start':<12}{peak_megabytes():>8,.0f} MB", flush=True)
        for name, step in (("prototypes", find_prototypes), ("intensities", measure_evidence)):
            started, worked = time.perf_counter(), time.process_time()
            step(directory, work)
            spent = time.perf_counter() - started, time.process_time() - worked
            print(f"{name:<12}{peak_megabytes():>8,.0f} MB{spent[0]:>8,.0f} s{spent[1]:>8,.0f} s of cores", flush=True)
        centres = np.asarray(jax.jit(planted)(few.images)[0])
        agreement = adjusted_rand_score(centres.ravel(), work.array("assignments")[:1000].ravel())
        intensity = work.array("intensity")
        assert np.isfinite(intensity).all()
        assert (intensity[0] != intensity[1]).any(axis=0).all()
    print(f"adjusted Rand index of planted centres and prototypes: {agreement:.3f}")


if __name__ == "__main__":
    app.run(main)
