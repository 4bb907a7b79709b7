"""Runs on files: the run on a folder and on a CSV file is that on the set they were made of."""

import os
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image
from programs import contents

from experiments.tools import pictures_of
from experiments.tools.kill_and_resume import SMALL, differing
from i2x_jax import Run, command
from i2x_jax.config import InputError
from i2x_jax.data import dataset as data
from i2x_jax.data import reading, sources
from i2x_jax.pipeline import stages
from i2x_jax.results.files import read_header
from tests.helpers import one_line

# What names the data, or is of files alone.
# Rows are counted in the data that were given, here without the test images.
OF_THE_NAME = {"config.json", "report.html", "rows.npy", "pictures.npy (missing)"}
# What the run `finished` has beside, which was refined.
REFINED = {"refinement.json (missing)"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The digits as PNG files."""
    folder = tmp_path_factory.mktemp("pictures") / "digits"
    pictures_of.write(folder, {split: data.load("digits", split) for split in data.SPLITS})
    return folder


def run(name, workdir, *changes, wanted=("train", "explain", "report")):
    settings = [each.removeprefix("--config.") for each in SMALL]
    stages.run(command.chosen(None, None, [*settings, f"data.name={name}", *changes]), str(workdir), wanted, quiet=True)
    return Run(workdir)


@pytest.fixture(scope="module")
def on_folder(digits, tmp_path_factory):
    return run(f"folder:{digits}", tmp_path_factory.mktemp("runs") / "folder").path


def test_a_run_on_a_folder_is_that_on_the_set_array_by_array(finished, on_folder):
    assert set(differing(finished, on_folder)) <= OF_THE_NAME | REFINED


@pytest.mark.slow
def test_a_run_on_a_csv_file_decoded_whenever_it_is_read_is_the_same(on_folder, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MEMORY_SHARE", 0)
    path = run(f"csv:{digits / 'pictures.csv'}", tmp_path / "csv").path
    assert set(differing(on_folder, path)) <= OF_THE_NAME
    prints = [read_header(each)["provenance"]["data_fingerprint"] for each in (on_folder, path)]
    assert prints[0] == prints[1]


def test_a_finished_run_decodes_what_is_asked_for_alone(on_folder, monkeypatch):
    monkeypatch.setattr(reading, "look", None)
    opened = Run(on_folder)
    read, decoded = [], reading.decoded
    monkeypatch.setattr(reading, "decoded", lambda content: read.append(1) or decoded(content))
    np.testing.assert_array_equal(opened.dataset.images[5], data.load_splits("digits", 0.15, 400).train.images[5])
    assert len(read) == 1


def test_a_folder_that_changed_is_noticed_and_nothing_lost(on_folder, digits, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(on_folder, workdir)
    (workdir / "report.html").unlink()
    before = contents(workdir)
    path = pathlib.Path(Run(on_folder).dataset.images.files.path(7))
    was, changed = path.read_bytes(), path.stat().st_mtime_ns
    try:
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
        with pytest.raises(InputError) as error:
            run(f"folder:{digits}", workdir, wanted=["report"])
    finally:
        path.write_bytes(was)
        os.utime(path, ns=(changed, changed))
    assert f"(1 changed, as {path.relative_to(digits)}); allowed: the same data" in one_line(error)
    assert contents(workdir) == before


def test_what_is_left_out_is_counted_and_listed(digits, tmp_path, capsys):
    copy = tmp_path / "digits"
    shutil.copytree(digits, copy)
    path = next(iter(sorted(copy.glob("train/3/*.png"))))
    path.write_bytes(b"")
    arguments = (f"folder:{copy}", tmp_path / "run", "train.epochs=1", "train.num_checkpoints=2")
    with pytest.raises(InputError, match=r"is empty; allowed: \.png, "):
        run(*arguments, wanted=["train"])
    assert not (tmp_path / "run").exists()
    settings = [each.removeprefix("--config.") for each in SMALL]
    changes = [*settings, f"data.name={arguments[0]}", *arguments[2:], "data.skip_broken=True"]
    stages.run(command.chosen(None, None, changes), str(arguments[1]), ["train"])
    name = os.path.relpath(path, copy)
    assert f"1 files are left out, listed in config.json: {name} is empty" in capsys.readouterr().out
    assert read_header(arguments[1])["provenance"]["left_out"] == {name: "is empty"}


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.isdir(os.path.join(os.environ.get("TFDS_DATA_DIR", "/nowhere"), "cifar10")),
    reason="CIFAR-10 is not prepared here",
)
def test_cifar10_as_files_is_cifar10(tmp_path):
    sets = {split: data.load("cifar10", split, os.environ["TFDS_DATA_DIR"]) for split in data.SPLITS}
    few = {split: each.take(np.arange(300)) for split, each in sets.items()}
    pictures_of.write(tmp_path / "cifar10", few)
    for name in (f"folder:{tmp_path / 'cifar10'}", f"csv:{tmp_path / 'cifar10' / 'pictures.csv'}"):
        for split, dataset in few.items():
            found = data.load(name, split)
            assert found.class_names == dataset.class_names
            np.testing.assert_array_equal(found.labels, dataset.labels)
            np.testing.assert_array_equal(found.images[:], dataset.images)
