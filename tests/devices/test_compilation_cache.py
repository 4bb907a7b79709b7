"""Compiled programs that are kept for the next process: used, harmless where they cannot be, and never wrong."""

import errno
import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import pytest
from programs import ROOT

from i2x_jax.config import InputError
from i2x_jax.devices.compilation import has_onednn, keep_programs
from tests.helpers import one_line

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)


def started(*folders):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.program_with_cache", *map(str, folders)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment | {"JAX_PLATFORMS": "cpu"},
    )


def reports(process):
    """What the process said of each of its folders; nothing must have gone wrong."""
    output, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    return [json.loads(line) for line in output.splitlines()]


def entries(folder):
    return sorted(folder.glob("*-cache"))


def test_the_next_process_takes_what_was_kept_and_computes_the_same(tmp_path):
    folder = tmp_path / "new" / "programs"
    first, without = reports(started(folder, "off"))
    assert (first["taken"], first["written"]) == (0, len(entries(folder)))
    assert (without["taken"], without["written"]) == (0, 0)
    kept = {path.name.split("-")[0] for path in entries(folder)}
    assert "jit_train_step" in kept
    assert ("jit_batch_tapped" in kept) != has_onednn()
    # As a process leaves them that is killed while it writes, or whose disk is full.
    whole = entries(folder)[-1].read_bytes()
    entries(folder)[0].write_bytes(b"")
    entries(folder)[-1].write_bytes(whole[: len(whole) // 2])
    (second,) = reports(started(folder))
    assert (second["taken"], second["written"]) == (first["written"] - 2, 2)
    assert len(entries(folder)) == first["written"]
    assert without["digest"] == first["digest"] == second["digest"]


@pytest.mark.slow
def test_processes_share_a_folder_and_one_may_be_killed(tmp_path):
    processes = [started(tmp_path) for _ in range(3)]
    try:
        until = time.monotonic() + 300
        while len(entries(tmp_path)) < 3 and time.monotonic() < until:
            time.sleep(0.001)
        processes[0].kill()
        found = []
        for process in processes[1:]:
            output, errors = process.communicate()
            # Reading what another is just writing may cost a warning, nothing else.
            assert process.returncode == 0, errors
            found.append(json.loads(output)["digest"])
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    (last,) = reports(started(tmp_path))
    assert last["taken"] > 0
    assert {*found, last["digest"]} == {found[0]}


@pytest.fixture
def settings(monkeypatch):
    """JAX's settings as they are by default, put back afterwards."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    yield jax.config
    for name, value in before.items():
        jax.config.update(name, value)


class TestKeepPrograms:
    def test_default_is_in_the_users_cache_and_nobody_elses(self, settings, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        keep_programs("default")
        folder = tmp_path / "cache" / "i2x_jax"
        assert settings.jax_compilation_cache_dir == str(folder)
        assert folder.stat().st_mode & 0o777 == 0o700

    def test_default_leaves_a_folder_that_jax_was_told(self, settings, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        settings.update("jax_compilation_cache_dir", "elsewhere")
        keep_programs("default")
        assert settings.jax_compilation_cache_dir == "elsewhere"
        assert not list(tmp_path.iterdir())

    def test_default_keeps_nothing_where_it_cannot(self, settings, monkeypatch, tmp_path):
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        keep_programs("default")
        assert settings.jax_compilation_cache_dir is None

    def test_default_keeps_nothing_without_a_home(self, settings, monkeypatch):
        def no_home():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(pathlib.Path, "home", no_home)
        keep_programs("default")
        assert settings.jax_compilation_cache_dir is None

    def test_off(self, settings):
        keep_programs("off")
        assert not settings.jax_enable_compilation_cache

    def test_a_folder_by_its_name(self, settings, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        keep_programs("programs")
        assert settings.jax_compilation_cache_dir == str(tmp_path / "programs")

    @pytest.mark.parametrize(
        ("name", "reason"), [("file", errno.EEXIST), ("file/below", errno.ENOTDIR), ("", errno.ENOENT)]
    )
    def test_what_cannot_be_a_folder_is_refused(self, settings, monkeypatch, tmp_path, name, reason):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "file").write_text("kept")
        with pytest.raises(InputError) as error:
            keep_programs(name)
        message = one_line(error)
        assert repr(name) in message
        assert os.strerror(reason) in message
        assert "--compilation_cache" in message
        assert settings.jax_compilation_cache_dir is None
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_run_refuses_it_before_it_makes_anything(tmp_path):
    (tmp_path / "file").touch()
    command = [sys.executable, str(ROOT / "run.py"), f"--workdir={tmp_path / 'run'}"]
    command.append(f"--compilation_cache={tmp_path / 'file' / 'below'}")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("run.py: error: compiled programs cannot be kept in ")
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
