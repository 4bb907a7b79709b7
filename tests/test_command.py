"""How the program starts and ends, and which settings it takes: nothing here needs JAX but where it says so."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from programs import ROOT, environment
from test_hostile_input import AS_ANYBODY

from i2x_jax import command, streams
from i2x_jax.config import Config, InputError, from_config_dict, to_dict
from i2x_jax.results.files import CONFIG

RUN = [sys.executable, str(ROOT / "run.py")]
MODULE = [sys.executable, "-m", "i2x_jax"]
# What is done to a terminal's word, by a shell.
SHELL = ["/bin/sh", "-c", 'exec "$@" {}', "sh"]


def redirected(how):
    return [*SHELL[:2], SHELL[2].format(how), SHELL[3]]


def ended(*arguments, program=RUN, **options):
    """Exit code, stdout and stderr of a process."""
    options = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "cwd": ROOT, **options}
    done = subprocess.run([*program, *arguments], capture_output=True, text=True, check=False, **options)
    return done.returncode, done.stdout, done.stderr


def assert_one_line(code, stderr, words, name="run.py"):
    assert code == 2, stderr
    assert stderr.count("\n") == 1, stderr
    assert stderr.startswith(f"{name}: error: "), stderr
    assert words in stderr


@pytest.fixture
def small(finished, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(finished, tmp_path / "run")


class TestNames:
    @pytest.mark.parametrize(
        ("started", "name"),
        [
            ("/somewhere/run.py", "run.py"),
            ("run.py", "run.py"),
            ("/usr/bin/i2x-jax", "i2x-jax"),
            ("/site-packages/i2x_jax/__main__.py", "i2x-jax"),
            ("", "i2x-jax"),
            ("-c", "i2x-jax"),
        ],
    )
    def test_the_program_is_called_as_it_was_started(self, monkeypatch, started, name):
        monkeypatch.setattr(sys, "argv", [started])
        assert command.program() == name

    def test_the_module_is_the_same_program(self):
        code, _, err = ended("--stage=draw", program=MODULE)
        assert_one_line(code, err, "--stage=draw", "i2x-jax")

    def test_main_ends_the_process(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["i2x-jax", "--help"])
        with pytest.raises(SystemExit) as ended:
            command.main()
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith("usage: i2x-jax ")


def test_help_lists_every_flag_and_every_setting_with_its_range():
    code, out, err = ended("--help")
    assert (code, err) == (0, "")
    assert "--workdir\n      The run directory. Default: runs/" in out
    assert (
        "--config.train.epochs=25\n      Passes over the training images. Allowed: a whole number of at least 1.\n"
        in out
    )
    assert "--config.refine.name=\n" in out
    assert "--setting" not in out


class TestWhichSettings:
    def test_without_anything_they_are_the_defaults(self):
        assert command.chosen(None, None, []) == Config()
        assert command.default_workdir(None, Config()) == os.path.join("runs", "digits")

    def test_a_run_directory_brings_its_own(self, tmp_path, finished):
        made_with = json.loads((finished / CONFIG).read_text())["config"]
        assert to_dict(command.chosen(None, str(finished), [])) == made_with
        assert command.chosen(None, str(finished), ["refine.name=x", "seed=4"]) == from_config_dict(
            made_with | {"seed": 4, "refine": made_with["refine"] | {"name": "x"}}
        )
        assert command.chosen(None, str(tmp_path / "new"), []) == Config()

    def test_a_file_comes_before_a_run_directory(self, finished, tmp_path):
        path = tmp_path / "mine.py"
        path.write_text("def get_config(epochs='3'):\n    return {'train': {'epochs': int(epochs)}}\n")
        assert command.chosen(str(path), str(finished), []) == from_config_dict({"train": {"epochs": 3}})
        assert command.chosen(f"{path}:7", None, []).train.epochs == 7
        assert command.default_workdir(f"{path}:7", Config()) == os.path.join("runs", "mine")

    @pytest.mark.parametrize(
        ("name", "folder"), [("mnist", "mnist"), ("a/b:1.0", "a-b-1.0"), ("..", "i2x-jax"), ("../x", "-x")]
    )
    def test_a_default_directory_stays_under_runs(self, name, folder):
        assert command.default_workdir(None, from_config_dict({"data": {"name": name}})) == os.path.join("runs", folder)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("def get_config():\n    return 1 / 0\n", "fails (ZeroDivisionError: division by zero)"),
            ("import nonesuch\ndef get_config(): pass\n", "fails (ModuleNotFoundError: No module named 'nonesuch')"),
            ("import sys\ndef get_config(): sys.exit(3)\n", "fails (SystemExit: 3)"),
            ("get_config = 3\n", "has no get_config()"),
            ("def get_config():\n    return [3]\n", "config is [3]; allowed: a group of settings"),
            ("def get_config(a, b): pass\n", "fails (TypeError: "),
            ("x = '\ud800'".encode("utf-8", "surrogatepass"), "is not Python ("),
            (b"\0", "is not Python ("),
        ],
    )
    def test_a_file_that_fails_is_named(self, tmp_path, text, words):
        path = tmp_path / "mine.py"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        with pytest.raises(InputError) as error:
            command.chosen(str(path), None, [])
        assert words in str(error.value)

    def test_paths_in_flags_and_variables_begin_at_home(self, monkeypatch):
        monkeypatch.setenv("HOME", "/somewhere")
        monkeypatch.setenv("TFDS_DATA_DIR", "~/tfds")
        assert command.expanded("~/runs") == "/somewhere/runs"
        assert command.expanded("a~/b") == "a~/b"
        assert command.expanded(None) is None
        assert command.flags.FLAGS.is_parsed() or command.flags.FLAGS(["run.py"])
        assert command.data_dir() == "/somewhere/tfds"

    def test_home_in_a_process(self, small):
        there = {**os.environ, "HOME": str(small.parent)}
        code, out, err = ended("--workdir=~/run", env=there)
        assert (code, err) == (0, "")
        assert f"Run directory    {small}\n" in out
        assert ended("--workdir=~/run", "--config.seed=8", env=there)[0] == 2


def test_a_finished_run_needs_no_other_file(small):
    for stage in ("train", "explain", "refine", "report"):
        code, out, err = ended(f"--workdir={small}", f"--stage={stage}", program=MODULE, cwd=small.parent)
        assert (code, err) == (0, "")
        assert out.startswith(f"Nothing to do: {stage} already done.")
    code, _, err = ended(f"--workdir={small}", "--config.train.epochs=3")
    assert_one_line(code, err, "was made with another config (train.epochs: 8 -> 3)")


class TestOutput:
    """What is printed, and where it goes."""

    def test_ascii(self, small):
        there = {**os.environ, "PYTHONIOENCODING": "ascii"}
        code, out, err = ended(f"--workdir={small}", env=there)
        assert (code, err) == (0, "")
        assert "mean \\xb1 deviation" in out
        assert out.isascii()

    def test_a_name_that_is_no_text(self, small):
        folder = os.fsencode(small) + b"-\xff"
        os.rename(small, folder)
        code, out, err = ended(b"--workdir=" + folder)
        assert (code, err) == (0, "")
        assert "-\\udcff" in out

    @pytest.mark.parametrize("arguments", [["--help"], ["--stage=train"]])
    @pytest.mark.parametrize(
        ("how", "words"),
        [
            (">&-", "standard output is closed"),
            (">/dev/full", "standard output cannot be written to (No space left on device)"),
            ("1<run.py", "standard output cannot be written to (Bad file descriptor)"),
        ],
    )
    def test_stdout_that_takes_nothing(self, small, arguments, how, words):
        code, _, err = ended(*RUN, f"--workdir={small}", *arguments, program=redirected(how))
        assert_one_line(code, err, words)

    def test_stdout_that_nobody_reads_any_more(self):
        code, _, err = ended(*RUN, "--help", program=redirected("| true"))
        assert (code, err) == (0, "")

    @pytest.mark.parametrize("how", ["2>&-", "2>/dev/full", "<&-", "<&- 2>&-"])
    def test_other_streams_closed(self, small, how):
        assert ended(*RUN, f"--workdir={small}", program=redirected(how))[::2] == (0, "")
        assert ended(*RUN, "--stage=draw", program=redirected(how))[0] == 2

    def test_what_a_step_says_on_a_full_disk_is_not_laid_on_the_run_directory(self, monkeypatch):
        with open("/dev/full", "w") as full, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", full)
            with pytest.raises(InputError, match="standard output cannot be written to"):
                streams.say("a line")


class TestPlaces:
    """Folders that are not there, or not for us."""

    def test_the_current_folder_is_gone(self, tmp_path):
        gone = tmp_path / "gone"
        script = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
        for program in (RUN, MODULE):
            gone.mkdir()
            code, _, err = ended(str(gone), *program, program=["/bin/sh", "-c", script, "sh"])
            name = "run.py" if program is RUN else "i2x-jax"
            assert_one_line(code, err, "the current folder cannot be used (No such file or directory)", name)

    @pytest.mark.parametrize("flag", ["--config={}/mine.py", "--workdir={}/run", "--workdir={}"])
    def test_a_folder_that_may_not_be_looked_into(self, tmp_path, flag):
        closed = tmp_path / "closed"
        closed.mkdir()
        (closed / "mine.py").write_text("def get_config(): return {}\n")
        closed.chmod(0)
        prefix = [
            sys.executable,
            "-c",
            AS_ANYBODY.replace("24, 1,", "24, 2,").replace(
                "; os.exec", "; ctypes.CDLL(None).prctl(24, 1, 0, 0, 0); os.exec"
            ),
        ]
        probe = subprocess.run(
            [*prefix, sys.executable, "-c", f"import os; os.stat({str(closed / 'mine.py')!r})"],
            check=False,
            capture_output=True,
        )
        if probe.returncode == 0:
            pytest.skip("this user looks everywhere and cannot give that up")
        code, _, err = ended(*RUN, flag.format(closed), program=prefix)
        closed.chmod(0o755)
        assert_one_line(code, err, "ermission denied")

    def test_no_home(self, small):
        there = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
        assert ended(f"--workdir={small}", env=there)[::2] == (0, "")
        assert ended("--workdir=~nobody-of-that-name/run", "--stage=draw", env=there)[0] == 2

    def test_a_name_too_long(self):
        code, _, err = ended(f"--workdir=/tmp/{'x' * 300}")
        assert_one_line(code, err, "File name too long")

    @pytest.mark.parametrize("text", ["--flagfile=/nonesuch", "--flagfile="])
    def test_a_file_of_flags(self, text):
        code, _, err = ended(text, "--stage=draw")
        assert_one_line(code, err, "")


class TestJax:
    """Each starts JAX."""

    @pytest.mark.parametrize(
        ("variables", "words"),
        [
            ({"JAX_PLATFORMS": "cuda"}, "JAX finds nothing to compute on, JAX_PLATFORMS being 'cuda'"),
            pytest.param(
                {"JAX_PLATFORMS": "nonesuch"},
                "JAX finds nothing to compute on, JAX_PLATFORMS being 'nonesuch'",
                marks=pytest.mark.slow,
            ),
            ({"JAX_ENABLE_X64": "maybe"}, "JAX cannot be started (invalid truth value 'maybe'"),
        ],
    )
    def test_a_platform_that_is_not_there(self, base, tmp_path, variables, words):
        there = environment(base) | variables
        if variables.get("JAX_PLATFORMS") == "cuda" and pathlib.Path("/dev/nvidia0").exists():
            pytest.skip("there is a GPU")
        for more in ((), ("--list_taps",)):
            code, _, err = ended(f"--workdir={tmp_path / 'run'}", *more, env=there)
            assert_one_line(code, err, words)
        assert not (tmp_path / "run").exists()
