"""What explaining a network of a thousand classes takes: time and memory by step, bytes on disk by file.

    python experiments/benchmarks/many_classes.py --json=many_classes.json

The data are made up: every class has a picture of its own, 4x4 fields of grey blown up to 32x32, and its images are
that picture moved by up to two pixels, in noise. A narrow network is trained on them for an epoch. What is told comes
from the run's own record (`timing`, `peak_memory`); and whether any array on disk has the number of classes twice.
"""

import json
import pathlib
import shutil
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np
from absl import app, flags, logging

import i2x_jax
from i2x_jax.results.files import read_header

_CLASSES = flags.DEFINE_integer("classes", 1000, "Classes, M.", lower_bound=2)
_IMAGES = flags.DEFINE_integer("images", 20_000, "Training images, N.", lower_bound=10)
_PROTOTYPES = flags.DEFINE_integer("prototypes", 128, "Prototypes, K.", lower_bound=2)
_CHECKPOINTS = flags.DEFINE_integer("checkpoints", 4, "Checkpoints, T.", lower_bound=2)
_WIDTH = flags.DEFINE_integer("width", 8, "Width of the network.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the data and of the run.", lower_bound=0)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run directory, kept; a temporary one by default.")
_JSON = flags.DEFINE_string("json", None, "The file that the figures are written to.")

SIDE, FIELDS, REACH, NOISE = 32, 4, 2, 40


def made_up(count: int, num_classes: int, rng: np.random.Generator, pictures: np.ndarray) -> i2x_jax.Dataset:
    """Images of classes that take turns; see above.

    Args:
      count: how many.
      num_classes: M.
      rng: draws noise and shifts.
      pictures: uint8 `[M, FIELDS, FIELDS]`.
    """
    labels = np.arange(count, dtype=np.int32) % num_classes
    scale = SIDE // FIELDS
    images = np.empty((count, SIDE, SIDE, 1), np.uint8)
    for image, label, shift in zip(images, labels, rng.integers(-REACH, REACH + 1, (count, 2)), strict=True):
        grown = np.kron(pictures[label], np.ones((scale, scale)))
        noisy = np.roll(grown, shift, (0, 1)) + rng.normal(0, NOISE, (SIDE, SIDE))
        image[..., 0] = np.clip(noisy, 0, 255)
    return i2x_jax.Dataset(images, labels, tuple(f"class {c}" for c in range(num_classes)))


def twice(path: pathlib.Path, num_classes: int) -> list[str]:
    """The arrays of a file in which the number of classes stands twice."""
    found = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None)
    members = {"": found} if path.suffix == ".npy" else found
    return [f"{path.name}:{name}" for name in members if members[name].shape.count(num_classes) > 1]


def measure(workdir: pathlib.Path) -> dict:
    """Trains and explains, and tells what that took."""
    rng = np.random.default_rng(_SEED.value)
    pictures = rng.integers(40, 216, (_CLASSES.value, FIELDS, FIELDS))
    train = made_up(_IMAGES.value, _CLASSES.value, rng, pictures)
    held_out = [made_up(2 * _CLASSES.value, _CLASSES.value, rng, pictures) for _ in range(2)]
    config = {
        "seed": _SEED.value,
        "data": {"augment": "none"},
        "model": {"name": "cnn", "width": _WIDTH.value},
        "train": {"epochs": 1, "num_checkpoints": _CHECKPOINTS.value},
        "explain": {"num_prototypes": _PROTOTYPES.value, "pca_dims": 2 * _WIDTH.value, "restarts": 1},
    }
    run = i2x_jax.train(train, config, workdir, validation=held_out[0], test=held_out[1])
    header = read_header(run.path)
    arrays = [path for path in sorted(run.path.iterdir()) if path.suffix in (".npy", ".npz")]
    return {
        "sizes": {"M": _CLASSES.value, "N": _IMAGES.value, "K": _PROTOTYPES.value, "T": _CHECKPOINTS.value},
        "seconds": header["timing"],
        "peak_memory": header["peak_memory"],
        "bytes": {path.name: path.stat().st_size for path in sorted(run.path.iterdir()) if path.is_file()},
        "classes_twice": [name for path in arrays for name in twice(path, _CLASSES.value)],
        "rivals": list(run.rivals.shape),
        "residual": run.arrays("ledger")["residual"].tolist(),
        "provenance": header["provenance"]["git_revision"],
    }


def table(found: dict) -> str:
    """The figures as text."""
    lines = [f"{name} = {size}" for name, size in found["sizes"].items()]
    lines = [", ".join(lines) + f"; kept of each class: {found['rivals'][1]}", ""]
    lines += [f"{'step':<16}{'seconds':>9}{'peak memory so far, GB':>26}"]
    for step, seconds in found["seconds"].items():
        lines.append(f"{step:<16}{seconds:>9.1f}{found['peak_memory'][step] / 1e9:>26.2f}")
    lines += ["", f"{'file':<26}{'MB':>9}"]
    for name, size in sorted(found["bytes"].items(), key=lambda item: -item[1]):
        lines.append(f"{name:<26}{size / 1e6:>9.1f}")
    lines += ["", f"arrays with the number of classes twice: {', '.join(found['classes_twice']) or 'none'}"]
    lines += [f"largest residual of the ledger: {max(found['residual']):.1e}"]
    return "\n".join(lines)


def main(argv):
    """Prints the table."""
    if argv[1:]:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.INFO)
    folder = None if _WORKDIR.value else tempfile.mkdtemp()
    try:
        found = measure(pathlib.Path(_WORKDIR.value or folder) / "run")
    finally:
        if folder:
            shutil.rmtree(folder)
    print(table(found))
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
