"""Writes a data set as PNG files in folders of its classes, and as a CSV file that names them.

    python experiments/tools/pictures_of.py --name=cifar10 --folder=cifar10 --images=600
    python run.py --config.data.name=folder:cifar10
    python run.py --config.data.name=csv:cifar10/pictures.csv

Files are numbered in the order of the set, which a run on the folder keeps: with classes in the order of their names,
both runs are the one on the set itself, array by array.
"""

import csv
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np
from absl import app, flags
from PIL import Image

from i2x_jax.data.dataset import SPLITS, Dataset, load


def write(folder: pathlib.Path, sets: dict[str, Dataset]) -> None:
    """Writes each set as FOLDER/SPLIT/CLASS/NUMBER.png, and pictures.csv, which names all of them in their order."""
    folder.mkdir(parents=True)
    rows = []
    for split, dataset in sets.items():
        for name in dataset.class_names:
            (folder / split / name).mkdir(parents=True)
        for row, label in enumerate(dataset.labels):
            name = dataset.class_names[label]
            path = pathlib.Path(split, name, f"{row:07d}.png")
            image = np.asarray(dataset.images[row])
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(folder / path)
            rows.append((path, name, split))
    with (folder / "pictures.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])


def main(_: list[str]) -> None:
    """Writes what the flags ask for."""
    given = flags.FLAGS
    sets = {split: load(given.name, split, os.environ.get("TFDS_DATA_DIR")) for split in SPLITS}
    if given.images:
        sets = {split: each.take(np.arange(min(given.images, len(each.labels)))) for split, each in sets.items()}
    write(pathlib.Path(given.folder), sets)


if __name__ == "__main__":
    # Here, so that what imports `write` need not have a folder.
    flags.DEFINE_string("folder", None, "Where the pictures go; it must not be there.", required=True)
    flags.DEFINE_string(
        "name", "digits", "The data set, as in data.name; prepared ones are looked for in $TFDS_DATA_DIR."
    )
    flags.DEFINE_integer("images", 0, "Images of each split, the first ones; 0 for all.")
    app.run(main)
