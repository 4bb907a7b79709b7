"""Event files hold what metrics.jsonl holds, each step once, however often the run was killed."""

import struct
import subprocess

import pytest
from programs import command, contents, environment, run, without

from i2x_jax import Run
from i2x_jax.config import InputError
from i2x_jax.pipeline import tensorboard
from i2x_jax.results.files import TENSORBOARD
from i2x_jax.training import loop as training
from tests.helpers import one_line
from tests.killed_run import killed_run

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
crc32c = pytest.importorskip("tensorboardX.crc32c")


def masked(data):
    crc = crc32c.crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(path):
    """The records of a TFRecord file: length, its checksum, data, their checksum."""
    data, place = path.read_bytes(), 0
    while place < len(data):
        length, length_crc = struct.unpack_from("<QI", data, place)
        record = data[place + 12 : place + 12 + length]
        (record_crc,) = struct.unpack_from("<I", data, place + 12 + length)
        assert (length_crc, record_crc) == (masked(data[place : place + 8]), masked(record))
        yield record
        place += 16 + length


def events(folder):
    """(tag, step, value) in the order of the only event file."""
    (path,) = folder.iterdir()
    first, *others = [event_pb2.Event.FromString(record) for record in records(path)]
    assert first.file_version == "brain.Event:2"
    return [(value.tag, event.step, value.simple_value) for event in others for value in event.summary.value]


def expected(opened):
    settings = opened.config.train
    rate = training.learning_rate_schedule(settings.learning_rate, int(opened.steps[-1]), settings.warmup)
    found = []
    for line in opened.metrics:
        found += [(f"{name}/{line['split']}", line["step"], line[name]) for name in ("loss", "accuracy")]
        if line["split"] == "validation":
            found.append(("learning_rate", line["step"], float(rate(line["step"] - 1))))
    return found


def assert_complete(workdir):
    opened = Run(workdir)
    found, wanted = events(workdir / TENSORBOARD), expected(opened)
    assert [entry[:2] for entry in found] == [entry[:2] for entry in wanted]
    assert [entry[2] for entry in found] == pytest.approx([entry[2] for entry in wanted], rel=1e-6)
    rates = [value for tag, _, value in found if tag == "learning_rate"]
    assert rates[0] == 0
    assert len(rates) == len(opened.steps)
    assert max(rates) > rates[-1] > 0


def test_a_finished_run_gets_them_and_nothing_else_changes(base, finished, tmp_path):
    workdir = without((), finished, tmp_path / "run")
    before = {name: data for name, (data, _) in contents(workdir).items()}
    assert "already done" in run(base, workdir, "--tensorboard")
    assert_complete(workdir)
    after = {name: data for name, (data, _) in contents(workdir).items() if not name.startswith(TENSORBOARD)}
    assert after == before
    # The folder is tolerated by whoever does not ask for it.
    assert run(base, workdir).startswith("Nothing to do")


def test_a_killed_run_has_every_step_once(base, finished):
    workdir = killed_run(base, finished)
    assert_complete(workdir)
    assert Run(workdir).metrics == Run(finished).metrics


@pytest.mark.slow
def test_checkpoints_that_were_not_chosen_have_none(base, tmp_path):
    run(base, tmp_path / "run", "--tensorboard", "--stage=train", "--config.train.checkpoints=moved")
    assert len(Run(tmp_path / "run").steps) == 8
    assert_complete(tmp_path / "run")


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(tensorboard.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as error:
        tensorboard.check_installed()
    assert "tensorboardX, which is not installed" in one_line(error)
    assert "pip install tensorboardX" in one_line(error)


def test_the_folder_may_not_lead_elsewhere(base, finished, tmp_path):
    workdir, elsewhere = without((), finished, tmp_path / "run"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "events.out.tfevents.1").write_text("kept")
    (workdir / TENSORBOARD).symlink_to(elsewhere)
    done = subprocess.run(
        command(workdir, "--tensorboard"), capture_output=True, text=True, env=environment(base), check=False
    )
    assert done.returncode == 2
    assert f"{workdir / TENSORBOARD} is a link to {elsewhere}" in done.stderr
    assert (elsewhere / "events.out.tfevents.1").read_text() == "kept"
