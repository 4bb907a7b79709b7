"""What a run is said to take before it starts, against what it took; and that it is refused where it does not fit."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from programs import command, environment

from i2x_jax import Run
from i2x_jax.config import InputError, from_config_dict
from i2x_jax.data import dataset as data
from i2x_jax.pipeline import needs
from i2x_jax.pipeline import stages as pipeline
from i2x_jax.results.arrays import ARRAYS
from i2x_jax.results.files import CHECKPOINTS, STEPS, read_header
from tests.helpers import one_line

# Memory: at most so many times as much, or as little, as a run took.
FACTOR = 2
# What becomes of a run decides how long these are.
AFTERWARDS = ("curated.npz",)


@pytest.fixture(scope="module")
def run(finished):
    return Run(finished)


@pytest.fixture(scope="module")
def scale(run):
    return needs.scale_of(run.config, run.splits, run.model)


def test_arrays_are_counted_to_the_byte(run, scale):
    files = [path for path in run.path.iterdir() if path.name in ARRAYS and path.name not in AFTERWARDS]
    assert len(files) > 15
    for path in files:
        found = np.load(path)
        values = {"": found} if path.suffix == ".npy" else dict(found)
        assert needs.array_bytes(path.name, scale.sizes) == {name: each.nbytes for name, each in values.items()}
        # Headers, of a .zip too.
        assert 0 <= path.stat().st_size - needs.file_bytes(path.name, scale.sizes) <= 400 * len(values)


def test_every_array_that_a_run_leaves_is_counted(run):
    counted = {name for step in STEPS for name in needs.files_made(step, run.config, run.splits)}
    assert counted == {path.name for path in run.path.iterdir() if path.name in ARRAYS}


def test_checkpoints_and_texts(run, scale):
    taken = sum(path.stat().st_size for path in (run.path / CHECKPOINTS).rglob("*") if path.is_file())
    found = needs.needs_of(run.config, run.splits, run.model, scale)
    arrays = sum(needs.file_bytes(name, scale.sizes) for name in needs.files_made("train", run.config, run.splits))
    assert taken / FACTOR < found["train"].disk - arrays < taken * FACTOR
    assert found["mapping"].disk > (run.path / "explanation.json").stat().st_size
    assert found["report"].disk > (run.path / "report.html").stat().st_size


def test_images_read(run, scale):
    found = needs.needs_of(run.config, run.splits, run.model, scale)
    count, held_out = len(run.splits.train.labels), len(run.splits.validation.labels) + len(run.splits.test.labels)
    assert found["train"].images == count * run.config.train.epochs
    assert found["prototypes"].images == count
    assert found["evidence"].images == count + len(run.steps) * held_out


def test_dry_run_on_the_command_line(base, finished, tmp_path):
    arguments = command(tmp_path / "run", "--dry_run", "--stage=explain")
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment(base), check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not list(tmp_path.iterdir())
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:7]] == [*tuple(STEPS)[:6]]
    said, total, held = re.search(r"about ([\d.]+) GB of ([\d.]+) GB; ([\d.]+) GB are held", done.stdout).groups()
    taken = max(read_header(finished)["peak_memory"].values()) / 1e9
    assert taken / FACTOR < float(said) < taken * FACTOR
    assert float(held) < float(said) < float(total)


@pytest.fixture
def wanted(tmp_path):
    """What refuses a run, as a user would start it."""
    settings = from_config_dict({"data": {"max_train": 200}, "model": {"width": 4}, "explain": {"pca_dims": 4}})

    def refused():
        with pytest.raises(InputError) as error:
            pipeline.run(settings, str(tmp_path / "new" / "run"), ["train"])
        assert not (tmp_path / "new").exists()
        return one_line(error)

    return refused


def test_a_disk_that_is_too_small_refuses_a_run_before_it_starts(wanted, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**5, 10**5))
    assert re.search(r"needs [\d.]+ MB of disk in .*, where 0.1 MB are free; allowed: .*--workdir", wanted())


def test_a_memory_that_is_too_small_refuses_a_run_before_it_starts(wanted, monkeypatch):
    monkeypatch.setattr(needs, "host_memory", lambda: 10**8)
    assert re.search(r"needs about [\d.]+ GB of memory in the step train, and there are 0.10 GB; allowed: ", wanted())


def test_a_device_that_is_too_small_refuses_a_run_before_it_starts(wanted, monkeypatch):
    monkeypatch.setattr(needs, "device_memory", lambda: 1000)
    assert "of device memory in the step train, and there are 0.0 MB; allowed: " in wanted()


def test_what_is_there_already_needs_no_more_disk(run, scale, tmp_path):
    found = needs.needs_of(run.config, run.splits, run.model, scale)
    assert needs.disk_wanted(found, run.path) == 0
    assert needs.disk_wanted(found, tmp_path) > sum(each.disk for each in found.values())


def test_needs_grow_with_images_classes_and_prototypes(run):
    def sizes(**explain):
        config = from_config_dict({"explain": {"pca_dims": 4} | explain, "data": {"max_train": 400}})
        splits = run.splits._replace(train=run.splits.train)
        return needs.needs_of(config, splits, run.model, needs.scale_of(config, splits, run.model))

    few, part, many = sizes(num_prototypes=8), sizes(num_prototypes=8, max_images=100), sizes(num_prototypes=64)
    assert part["evidence"].disk < few["evidence"].disk < many["evidence"].disk
    assert part["train"].images == few["train"].images
    assert part["mapping"].host < few["mapping"].host < many["mapping"].host
    assert data.MIN_TRAIN_PER_CLASS * 10 == part["prototypes"].images
