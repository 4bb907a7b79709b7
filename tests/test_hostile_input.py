"""What cannot be used is refused: exit code 2, one line that names the value and the mend, nothing damaged.

Rows that need no process of their own call what run.py calls and take its line from the exception.
"""

import fcntl
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from programs import contents, environment

from experiments.tools.kill_and_resume import SMALL
from i2x_jax import Run, command
from i2x_jax.config import InputError, from_config_dict, to_dict
from i2x_jax.data import dataset as data
from i2x_jax.results.files import STAGES, STEPS, read_config
from i2x_jax.training.checkpoints import Checkpoints

ROOT = pathlib.Path(__file__).parent.parent
# Drops the right to write anywhere (CAP_DAC_OVERRIDE, 1) that root has, and then becomes the command.
AS_ANYBODY = "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"


@pytest.fixture
def launched(base):
    """Runs run.py in its own process, expects it to refuse, and returns its line."""

    def launch(*arguments, prefix=(), **options):
        command = [*prefix, sys.executable, str(ROOT / "run.py"), *arguments]
        options = {"env": environment(base), "cwd": base, **options}
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith("run.py: error: ")
        return done.stderr.strip()

    return launch


@pytest.fixture
def refused(finished, capsys):
    """Does in this process what run.py does after reading its flags, and returns the line it would print."""

    def refuse(workdir, changes=None, stages=STAGES):
        settings = to_dict(read_config(finished))
        for key, value in (changes or {}).items():
            group, _, name = key.partition(".")
            settings[group][name] = value
        with pytest.raises((InputError, OSError)) as caught:
            command.run(from_config_dict(settings), str(workdir), list(stages), None)
        assert capsys.readouterr().err == ""
        return command.one_line(caught.value)

    return refuse


FLAGS = {
    "unknown key": (["--config.train.epochz=3"], "train.epochz", "did you mean train.epochs?"),
    "unknown group": (["--config.trian.epochs=3"], "trian", "did you mean train?"),
    "wrong type": (["--config.train.epochs=many"], "train.epochs is 'many'", "set --config.train.epochs"),
    "a group for a value": (["--config.train=3"], "train is '3'", "set its members instead"),
    "zero": (["--config.train.batch_size=0"], "train.batch_size is 0", "at least 1"),
    "strategy": (["--config.refine.strategies=foo"], "refine.strategies is ('foo',)", "curated>full"),
    "prototypes": (["--config.refine.prototypes=a"], "refine.prototypes is 'a'", "numbers of prototypes such as 7,12"),
    "no such prototype": (["--config.refine.prototypes=99"], "refine.prototypes names 99", "set refine.prototypes"),
    "action": (["--config.refine.actions=erase"], "refine.actions is ('erase',)", "swap, paste"),
    "stage": (["--stage=draw"], "--stage=draw", "<train|explain|refine|report|trust>"),
    "flag": (["--stages=train"], "'stages'", "Did you mean: stage"),
    "argument": (["runs/mine"], "'runs/mine'", "flags only"),
    "no config file": (["--config=missing.py"], "'missing.py'", "set --config"),
}


@pytest.mark.parametrize(("arguments", "value", "mend"), FLAGS.values(), ids=FLAGS)
def test_command_line(launched, tmp_path, arguments, value, mend):
    line = launched(f"--workdir={tmp_path / 'run'}", *arguments)
    assert value in line
    assert mend in line
    assert not (tmp_path / "run").exists()


CONFIG_FILES = {
    "syntax error": ("def get_config(:\n", "line 1"),
    "no get_config": ("x = 1\n", "has no get_config()"),
    "unknown name": ("def get_config():\n    return config\n", "name 'config' is not defined"),
    "text for a number": (
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'train': {'epochs': '3'}})\n",
        "config key train.epochs is '3' of type str",
    ),
    "unknown key": (
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'datas': 3})\n",
        "unknown config key datas (value 3)",
    ),
}


@pytest.mark.parametrize(("text", "value"), CONFIG_FILES.values(), ids=CONFIG_FILES)
def test_config_file(launched, tmp_path, text, value):
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert value in launched(f"--workdir={tmp_path / 'run'}", f"--config={path}")
    assert not (tmp_path / "run").exists()


VALUES = {
    "wrong type": ({"train.epochs": 2.5}, "train.epochs is 2.5 of type float"),
    "bool for a number": ({"train.epochs": True}, "train.epochs is True of type bool"),
    "zero epochs": ({"train.epochs": 0}, "train.epochs is 0"),
    "negative batch": ({"explain.batch_size": -1}, "explain.batch_size is -1"),
    "zero prototypes": ({"explain.num_prototypes": 0}, "explain.num_prototypes is 0"),
    "negative dims": ({"explain.pca_dims": -4}, "explain.pca_dims is -4"),
    "negative width": ({"model.width": -1}, "model.width is -1"),
    "negative max_train": ({"data.max_train": -5}, "data.max_train is -5"),
    "zero seeds": ({"refine.seeds": 0}, "refine.seeds is 0"),
    "rate not a number": ({"train.learning_rate": float("nan")}, "train.learning_rate is nan"),
    "one class for a pair": ({"refine.pair": ("4",)}, "refine.pair is ('4',)"),
    "too many prototypes": ({"explain.num_prototypes": 6305}, "explain.num_prototypes is 6305"),
    "more than K-means is fitted on": ({"explain.max_locations": 7}, "explain.num_prototypes is 8"),
    "too many dims": ({"explain.pca_dims": 9}, "explain.pca_dims is 9"),
    "too few samples": ({"data.max_train": 30}, "raise data.max_train"),
    "data set": ({"data.name": "digitz"}, "unknown data set 'digitz'"),
    "model": ({"model.name": "cnnn"}, "unknown model 'cnnn'"),
    "tap": ({"model.tap": "conv9"}, "unknown tap 'conv9'"),
    "pair": ({"refine.pair": ("4", "x")}, "refine.pair names 'x'"),
    "classes to explain": ({"explain.classes": ("4", "x")}, "explain.classes names 'x'"),
    "one class to explain": ({"explain.classes": ("4",)}, "explain.classes is ('4',)"),
    "too few images to explain": ({"explain.max_images": 99}, "at least 100, 10 of each"),
    "step beyond the end": ({"train.checkpoints": (0, 5000)}, "step 5000"),
}


@pytest.mark.parametrize(("changes", "value"), VALUES.values(), ids=VALUES)
def test_values(refused, tmp_path, changes, value):
    line = refused(tmp_path / "run", changes)
    assert value in line
    assert "allowed: " in line
    assert not (tmp_path / "run").exists()


def test_batch_that_does_not_fit_the_devices(launched, base, tmp_path):
    three = environment(base) | {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    line = launched(f"--workdir={tmp_path / 'run'}", *SMALL, env=three)
    assert "train.batch_size is 32; allowed: a multiple of the 3 devices" in line
    assert not (tmp_path / "run").exists()


def test_library_calls():
    with pytest.raises(InputError, match=r"unknown split 'dev' of digits; allowed: train, test"):
        data.load("digits", "dev")
    one = data.Dataset(np.zeros((20, 8, 8, 1), np.uint8), np.zeros(20, np.int32), ("only",))
    with pytest.raises(InputError, match="has 1 class; allowed: at least 2"):
        data.check_classes(data.Splits(one, one, one))


class TestWorkDirectory:
    def test_a_file(self, refused, tmp_path):
        (tmp_path / "run").write_text("kept")
        line = refused(tmp_path / "run")
        assert f"work directory {tmp_path / 'run'} cannot be used" in line
        assert "choose another workdir" in line
        assert (tmp_path / "run").read_text() == "kept"

    def test_not_a_run(self, launched, tmp_path):
        (tmp_path / "thesis.txt").write_text("kept")
        line = launched(f"--workdir={tmp_path}", *SMALL)
        assert "holds files but no config.json" in line
        assert "choose another workdir" in line
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    def test_another_config(self, launched, finished):
        before = contents(finished)
        line = launched(f"--workdir={finished}", *SMALL, "--config.train.epochs=9", "--config.seed=4")
        assert "train.epochs: 8 -> 9" in line
        assert "seed: 0 -> 4" in line
        assert contents(finished) == before

    def test_in_use(self, launched, tmp_path):
        handle = os.open(tmp_path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            line = launched(f"--workdir={tmp_path}", *SMALL)
        finally:
            os.close(handle)
        assert f"work directory {tmp_path} is in use by another process" in line
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("place", ["inside", "the folder itself"])
    def test_no_permission(self, launched, tmp_path, place):
        closed = tmp_path / "closed"
        closed.mkdir()
        closed.chmod(0o555)
        prefix = [sys.executable, "-c", AS_ANYBODY]
        probe = [*prefix, sys.executable, "-c", f"open({str(closed / 'probe')!r}, 'w')"]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            pytest.skip("this user writes everywhere and cannot give that up")
        workdir = closed / "run" if place == "inside" else closed
        line = launched(f"--workdir={workdir}", *SMALL, prefix=prefix)
        assert f"work directory {workdir} cannot be used" in line
        assert "ermission" in line
        assert not list(closed.iterdir())

    @pytest.mark.parametrize("kilobytes", [pytest.param(0, marks=pytest.mark.slow), 40])
    def test_no_space_for_a_checkpoint(self, launched, small_disk, kilobytes):
        workdir = small_disk(kilobytes + 8) / "run"
        if not kilobytes:
            fill(workdir.parent, 0)
        line = launched(f"--workdir={workdir}", *SMALL)
        assert str(workdir) in line
        assert f"MB of disk in {workdir}" in line
        assert not list(workdir.glob("checkpoints/*"))

    def test_no_space_for_arrays(self, launched, small_disk, finished):
        workdir = small_disk(8000) / "run"
        shutil.copytree(finished, workdir)
        remove(workdir, "evidence", "mapping", "contact_sheet", "refine", "report")
        fill(workdir.parent, 64)
        before = contents(workdir)
        line = launched(f"--workdir={workdir}", *SMALL)
        assert f"MB of disk in {workdir}" in line
        assert contents(workdir) == before


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of so many kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = []

    def mount(kilobytes):
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no program to mount a small disk with")
        if done.returncode:
            pytest.skip(f"this user cannot mount a small disk: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


def fill(folder, kilobytes):
    """Takes what is left of a file system but for so many kB."""
    left = os.statvfs(folder)
    (folder / "filler").write_bytes(bytes(max(0, left.f_bavail * left.f_bsize - 1024 * kilobytes)))


def remove(workdir, *steps):
    for step in steps:
        for name in STEPS[step][1]:
            (workdir / name).unlink()


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, to be damaged, as it was before some of its steps."""

    def copy(*steps):
        shutil.copytree(finished, tmp_path / "run")
        remove(tmp_path / "run", *steps)
        return tmp_path / "run"

    return copy


class TestDamage:
    LATER = ("mapping", "contact_sheet", "refine", "report")

    def refused_untouched(self, refused, workdir):
        before = contents(workdir)
        line = refused(workdir)
        now = contents(workdir)
        # How long the steps took that went well stands in config.json.
        assert {name: now[name][0] for name in before if name != "config.json"} == {
            name: value for name, (value, _) in before.items() if name != "config.json"
        }
        assert not [path for path in workdir.rglob("*") if "tmp" in path.name]
        assert read_config(workdir)
        return line

    @pytest.mark.parametrize("how", ["truncated", "without its weights"])
    def test_checkpoint(self, refused, copied, finished, how):
        workdir = copied(*tuple(STEPS)[1:])
        folder = workdir / "checkpoints" / str(Run(finished).steps[-1])
        if how == "truncated":
            for file in [*folder.rglob("d/*"), *folder.rglob("manifest.ocdbt")]:
                os.truncate(file, file.stat().st_size // 2)
        else:
            shutil.rmtree(folder / "variables")
        line = self.refused_untouched(refused, workdir)
        assert f"checkpoint {folder} cannot be read" in line
        assert "move that folder away and run the same command" in line

    def test_nan_in_the_weights(self, refused, copied, finished):
        workdir = copied(*tuple(STEPS)[1:])
        step = int(Run(finished).steps[-1])
        variables = jax.tree.map(np.array, Run(finished).variables(step))
        variables["params"]["classifier"]["kernel"][0, 0] = np.nan
        shutil.rmtree(workdir / "checkpoints" / str(step))
        with Checkpoints(workdir / "checkpoints") as checkpoints:
            checkpoints.save(step, variables, {"count": np.zeros(())})
        line = self.refused_untouched(refused, workdir)
        assert (
            f"checkpoint {workdir / 'checkpoints' / str(step)} holds NaN or infinity in params/classifier/kernel"
            in line
        )
        assert "train.learning_rate" in line

    @pytest.mark.parametrize(
        ("name", "before"),
        [
            ("config.json", ("refine",)),
            ("steps.npy", ("refine",)),
            ("metrics.jsonl", ()),
            ("explanation.json", ()),
            ("refinement.json", ()),
            ("prototypes.npz", LATER),
            ("assignments.npy", LATER),
            ("intensity.npy", LATER),
            ("confidence.npy", LATER),
            ("validation.npz", LATER),
            ("contributions.npz", LATER),
            ("curated.npz", ("refine", "report")),
        ],
    )
    @pytest.mark.parametrize("share", [0, 0.5])
    def test_truncated(self, refused, copied, name, before, share):
        workdir = copied(*before)
        os.truncate(workdir / name, int((workdir / name).stat().st_size * share))
        earlier = contents(workdir)
        line = refused(workdir)
        assert f"{workdir / name} cannot be read" in line
        assert ("restore it" if name in ("config.json", "metrics.jsonl") else "move it away") in line
        now = contents(workdir)
        assert now.keys() == earlier.keys()
        assert {key for key in now if now[key] != earlier[key]} <= {"config.json"}

    def test_of_a_finished_run_on_the_command_line(self, launched, copied):
        workdir = copied()
        os.truncate(workdir / "explanation.json", 100)
        before = contents(workdir)
        line = launched(f"--workdir={workdir}", *SMALL)
        assert f"{workdir / 'explanation.json'} cannot be read" in line
        assert contents(workdir) == before

    def test_settings_in_config_json(self, launched, copied):
        workdir = copied()
        text = (workdir / "config.json").read_text()
        (workdir / "config.json").write_text(text.replace('"epochs": 8', '"epochs": -8'))
        assert "train.epochs is -8" in launched(f"--workdir={workdir}", *SMALL)
