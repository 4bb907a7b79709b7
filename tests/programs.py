"""run.py in its own process, as a user starts it: on a run so small that it takes seconds; stopped, killed, compared.

Programs compiled by one process are kept for the next.
"""

import contextlib
import fcntl
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from experiments.tools.kill_and_resume import SMALL
from i2x_jax.results.files import STEPS

ROOT = pathlib.Path(__file__).parent.parent


def cache_settings(base: pathlib.Path) -> dict[str, str | int]:
    """Settings of JAX with which every program, however small, is kept where the next process finds it.

    That is under `base`, for this session; whoever runs several sets the variable, to a folder that is fresh.
    """
    return {
        "jax_compilation_cache_dir": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(base / "compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }


def environment(base: pathlib.Path) -> dict[str, str]:
    """For the children: the cache of compiled programs, one CPU device, and no word from this process."""
    kept = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "TFDS_DATA_DIR")}
    cache = {name.upper(): str(value) for name, value in cache_settings(base).items()}
    # What another process is just writing is compiled anew, with a warning.
    quiet = {"PYTHONWARNINGS": "ignore:Error reading persistent compilation cache entry"}
    return kept | cache | quiet | {"JAX_PLATFORMS": "cpu"}


@contextlib.contextmanager
def one_at_a_time(base: pathlib.Path, name: str) -> Iterator[None]:
    """Of all processes of this session one is inside, for that name; the others wait."""
    with (base / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def made_once(base: pathlib.Path, name: str, make: Callable[[], None]) -> None:
    """Calls `make`, which leaves files, unless a process of this session has done so, or is about to."""
    with one_at_a_time(base, name):
        if not (base / f"{name}.made").exists():
            make()
            (base / f"{name}.made").touch()


def command(workdir: pathlib.Path, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "run.py"), f"--workdir={workdir}", *SMALL, *more]


def run(base: pathlib.Path, workdir: pathlib.Path, *more: str) -> str:
    """Runs to the end, and returns what it printed."""
    done = subprocess.run(command(workdir, *more), capture_output=True, text=True, env=environment(base), check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def kill_when(base: pathlib.Path, workdir: pathlib.Path, reached, *more: str, arguments: list[str] = ()) -> None:
    """Starts a run, or other arguments in its place, and kills it (SIGKILL) as soon as `reached()`."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = arguments or command(workdir, *more)
    with subprocess.Popen(started, env=environment(base), cwd=ROOT, **quiet) as process:
        try:
            # Nothing here takes that long, but on a machine that is busy.
            until = time.monotonic() + 300
            while not reached() and process.poll() is None and time.monotonic() < until:
                time.sleep(0.002)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL


def contents(folder: pathlib.Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of change of every file below a folder."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def without(steps: tuple[str, ...], source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """A copy of a run as it was before some of its steps."""
    shutil.copytree(source, target)
    for step in steps:
        for name in STEPS[step][1]:
            (target / name).unlink()
    return target


def steps_printed(output: str, how: str) -> list[str]:
    return re.findall(rf"^\[\d/\d\] (\w+): {how}", output, re.MULTILINE)


def blocks(document: str) -> list[str]:
    """The blocks of Python in a document."""
    text = (ROOT / document).read_text()
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
