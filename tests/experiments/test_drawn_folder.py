"""The folder of drawn pictures: seeded, and a smaller one holds the first pictures of a larger one."""

import numpy as np
from PIL import Image

from experiments.tools.drawn_folder import SPLITS, draw_folder, parts_of


def pixels(folder):
    return {str(path.relative_to(folder)): np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.jpg"))}


def test_pictures_by_seed_split_class_and_number(tmp_path):
    assert draw_folder(tmp_path / "few", 7, 1, classes=3, side=48, seed=5) == 7 + 2 * 3
    assert draw_folder(tmp_path / "more", 12, 2, classes=3, side=48, seed=5) == 12 + 2 * 6
    few, more = pixels(tmp_path / "few"), pixels(tmp_path / "more")
    assert sorted(path.name for path in (tmp_path / "few").iterdir()) == sorted(SPLITS)
    assert [sum(name.startswith(f"train/class_000{label}/") for name in few) for label in range(3)] == [3, 2, 2]
    for name, image in few.items():
        assert image.shape == (48, 48, 3)
        np.testing.assert_array_equal(image, more[name])
    # No two are the same.
    assert len({image.tobytes() for image in more.values()}) == len(more)


def test_what_is_there_is_not_drawn_again(tmp_path):
    draw_folder(tmp_path, 6, 1, classes=3, side=32, seed=0)
    assert draw_folder(tmp_path, 6, 1, classes=3, side=32, seed=0) == 0
    next(iter((tmp_path / "test").rglob("*.jpg"))).unlink()
    assert draw_folder(tmp_path, 9, 1, classes=3, side=32, seed=0) == 4


def test_classes_are_of_different_parts():
    assert len({parts_of(label, 0).tobytes() for label in range(1000)}) > 990
