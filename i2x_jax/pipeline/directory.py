"""The run directory: its files, and how they come into being whole or not at all (DESIGN section 4)."""

import contextlib
import errno
import fcntl
import itertools
import json
import os
import pathlib
import re
import resource
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from i2x_jax import config as config_lib
from i2x_jax import streams
from i2x_jax.config import OWN, Config, InputError
from i2x_jax.data import reading
from i2x_jax.pipeline.tensorboard import EventFile
from i2x_jax.results.arrays import read_array, refuse_unreadable
from i2x_jax.results.files import (
    CHECKPOINTS,
    CONFIG,
    METRICS,
    PICTURES,
    REFINEMENTS,
    REPAIRED,
    STEPS,
    check_json,
    files_of,
    metrics_line,
    read,
    read_config,
    read_header,
    read_json,
    read_metrics,
    refinement_file,
    refinement_names,
    refuse_links,
    seed_file,
    strict_json,
)

# What the system says of a folder that cannot be written to; other errors are bugs and keep their traceback.
UNUSABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST),  # a folder where a file belongs, or the reverse
)
# In a folder of a step that can be gone on with: what its files are made from.
MADE_FROM = "made-from.txt"
# What getrusage(2) counts in on Linux.
KIBIBYTE = 1024


class RunDirectory:
    """Writing side of a run directory: one run at a time, every file whole or absent.

    Attributes:
      path: the directory, which all processes of a run share.
      main: whether this is the process that writes; in the others writing does nothing.
      barrier: waits for the other processes; its argument names the place.
      refinement: what the refinement is called that is worked on; '' for the one without a name.
      quiet: whether nothing is said and no bar shown while it is worked on.
      open_events: from the lines of metrics.jsonl to the `tensorboard.EventFile` that follows them; None for none.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        main: bool = True,
        barrier: Callable[[str], None] = lambda place: None,
        refinement: str = "",
    ):
        self.path = pathlib.Path(path).absolute()
        self.main = main
        self.barrier = barrier
        self.refinement = refinement
        self.quiet = False
        self.open_events: Callable[[list[dict]], EventFile] | None = None
        self._events: EventFile | None = None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and holds it for this run; the system lets go of it however the process ends.

        Raises:
          InputError: no permission, not a folder, or another run is at work in it.
        """
        if not self.main:
            yield
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise InputError(_unusable(self.path, error)) from None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(
                    f"work directory {self.path} is in use by another process; allowed: one at a time; "
                    "wait for it or choose another workdir"
                ) from None
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise InputError(_unusable(self.path, PermissionError("no permission to write")))
            refuse_links(self.path)
            self._discard_leftovers()
            yield
        except OSError as error:
            if error.errno not in UNUSABLE:
                raise
            raise InputError(_unusable(self.path, error)) from None
        finally:
            if self._events:
                self._events.close()
            os.close(handle)

    def _discard_leftovers(self):
        """Removes what a killed process left half-made or is no longer needed; moves what it had made to its place."""
        for step in STEPS:
            if (ready := self._ready(step)).is_dir():
                self._move(step, ready)
        patterns = [f"{folder}.tmp-*" for folder in ("", f"{REFINEMENTS}/", f"{REPAIRED}/")]
        patterns += [self.partial(step).name for step in STEPS if self.complete(step)]
        for path in itertools.chain.from_iterable(self.path.glob(pattern) for pattern in patterns):
            _remove(path)
        for name in refinement_names(self.path):
            self.discard_seeds(name)
        self.discard_checkpoints()

    def discard_checkpoints(self) -> None:
        """Deletes the checkpoints that a finished training did not choose to keep."""
        if self.main and self.complete("train"):
            # Imports JAX, which a folder that is only looked at does not need.
            from i2x_jax.training.checkpoints import present_steps

            kept = read_array(self.path / "steps.npy", {}).tolist()
            for step in set(present_steps(self.path / CHECKPOINTS)) - set(kept):
                shutil.rmtree(self.path / CHECKPOINTS / str(step))

    def check_config(self, config: Config) -> None:
        """Raises `InputError` if the folder holds another run, something that is not a run, or links.

        The settings of the refinement may be others than the run's: one run may have several.
        """
        refuse_links(self.path)
        if (self.path / CONFIG).exists():
            made_with = read_config(self.path)
            # What was handed to `i2x_jax.explain` is not refined: there these settings are about the explanation.
            changed = config_lib.differences(made_with, config, () if config.model.name == OWN else ("refine",))
            if changed:
                raise InputError(
                    f"work directory {self.path} was made with another config ({'; '.join(changed)}); allowed: the "
                    "same config; choose another workdir"
                )
            self._check_version()
            self._check_refinement(config)
        elif self.path.is_dir() and any(not entry.name.startswith(".") for entry in self.path.iterdir()):
            raise InputError(
                f"work directory {self.path} holds files but no {CONFIG}; allowed: an empty folder or one made by "
                "this program; choose another workdir"
            )

    def _check_version(self):
        """Raises `InputError` if the folder was explained before there was a ledger: its files would be mixed."""
        path = self.path / "prototypes.npz"
        if not path.exists() or "blank.npy" in read(path, lambda path: zipfile.ZipFile(path).namelist()):
            return
        raise InputError(
            f"work directory {self.path} was explained by a version of this program that kept no ledger; allowed: one "
            "that this version began; open the old one with i2x_jax.Run, and explain in a new --workdir"
        )

    def _check_refinement(self, config):
        """Raises `InputError` if there is a refinement of this name, made with other settings."""
        path = self.path / refinement_file(config.refine.name)
        if not path.exists():
            return
        found = read_json(path, "refinement").get("settings")
        if found is None:
            return
        old = config_lib.from_config_dict(config_lib.to_dict(config) | {"refine": found})
        if changed := config_lib.differences(old, config):
            raise InputError(
                f"{path} was made with other settings ({'; '.join(changed)}); allowed: the same; give this refinement "
                "another --config.refine.name"
            )

    def complete(self, step: str) -> bool:
        """Whether all files of a step are there, those of the refinement of `self.refinement`."""
        promised = files_of(step, self.refinement)
        if step == "evidence" and (self.path / CONFIG).exists():
            promised = files_of(step, ledger=read_config(self.path).explain.ledger != "none")
        if not all((self.path / name).exists() for name in promised):
            return False
        if step != "train":
            return True
        return all((self.path / CHECKPOINTS / str(kept)).is_dir() for kept in read_array(self.path / "steps.npy", {}))

    @contextlib.contextmanager
    def making(self, step: str, keep: str = "") -> Iterator[pathlib.Path]:
        """A temporary folder whose files move to their place if all goes well, those of `STEPS` last and in order.

        Folders in it do not. Processes that do not write get a folder of their own, and what they put there is dropped.

        Args:
          step: of `STEPS`.
          keep: a text that says what the files are made from. Given one, the folder is left for a later process if this
            one is stopped, and the step goes on from what is in it; unless that was made from something else. Where
            something that was given cannot be used, or the disk is full, nothing is left.

        Raises:
          InputError: a file that would be refused when it is read; none gets its name.
        """
        if not self.main:
            with tempfile.TemporaryDirectory() as folder:
                yield pathlib.Path(folder)
            return
        folder = self.partial(step) if keep else self.path / f".tmp-{step}"
        if not keep or not _holds(folder / MADE_FROM, keep):
            _remove(folder)
            folder.mkdir()
            if keep:
                (folder / MADE_FROM).write_text(keep)
        try:
            yield folder
            steps = self.path / "steps.npy"
            refuse_unreadable(folder, read_array(steps, {}).tolist() if steps.exists() else ())
        except BaseException as error:
            if not keep or isinstance(error, (InputError, OSError)):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if keep:
            # From here on everything is made: whoever comes next need only move it.
            folder = folder.rename(self._ready(step))
        try:
            self._move(step, folder)
        finally:
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)

    def _move(self, step, folder):
        """Moves the files of a folder to their place; those not there any more have been moved before."""
        promised = STEPS[step][1]
        there = {path.name for path in folder.iterdir() if path.is_file()} - {MADE_FROM}
        for name in (*sorted(there - set(promised)), *(name for name in promised if name in there)):
            os.replace(folder / name, self.path / name)
        shutil.rmtree(folder)

    def partial(self, step: str) -> pathlib.Path:
        """The folder of a step that can be gone on with."""
        return self.path / f".partial-{step}"

    def _ready(self, step):
        return self.path / f".ready-{step}"

    def kept(self, step: str, name: str, dtype: Any, shape: tuple[int, ...]) -> bool:
        """Whether an earlier process left this .npy file of a step that can be gone on with."""
        return _kept(self.partial(step) / name, dtype, shape) is not None

    def shared_memmap(self, step: str, name: str, dtype: Any, shape: tuple[int, ...]) -> np.memmap:
        """A .npy file of a step that can be gone on with, mapped for all processes; each writes its own rows.

        One that an earlier process left is taken as it is, unless it has another shape or type. Its space on disk is
        taken at once: a disk that fills up later would kill the process on a write to memory.
        """
        path = self.partial(step) / name
        if self.main:
            array = _kept(path, dtype, shape)
            if array is None:
                array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        self.barrier(f"{name} made")
        return array if self.main else np.lib.format.open_memmap(path, mode="r+")

    def progress_bar(self, label: str, total: int, unit: str) -> tqdm:
        """A bar on stderr with count, rate and time left, where that is a terminal; silent elsewhere.

        Args:
          label: what is done, in front of the bar.
          total: how many there are to do.
          unit: of what, in the singular.
        """
        disable = None if self.main and not self.quiet else True
        return tqdm(total=total, desc=label, unit=f" {unit}", unit_scale=total > 10_000, leave=False, disable=disable)

    def say(self, line: str) -> None:
        """Prints a line on stdout, once for all processes of a run, unless it is to be quiet."""
        if self.main and not self.quiet:
            streams.say(line)

    def write_json(self, name: str, value: Any, schema: str = "") -> None:
        """Writes a JSON file whole or not at all; raises `ValueError` where `read_json` with that schema would."""
        if not self.main:
            return
        text = json.dumps(value, indent=1, allow_nan=False) + "\n"
        if schema:
            check_json(strict_json(text), schema)
        with self.replacing(name) as temporary:
            temporary.write_text(text)

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[pathlib.Path]:
        """A path to write to, whose file takes the place of the one of that name if all goes well, or is gone."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f".tmp-{path.name}")
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def keep_pictures(self, files: list[reading.Files]) -> None:
        """Writes what is known of the files that images are read from, so that they are not decoded to be known."""
        if not files or not self.main:
            return
        known = reading.known_of(files)
        if reading.read_known(os.fspath(self.path / PICTURES)).tobytes() != known.tobytes():
            with self.replacing(PICTURES) as temporary:
                np.save(temporary, known)

    def discard_seeds(self, name: str) -> None:
        """Deletes what the seeds of a refinement gave, which was only there to go on from."""
        for path in self.path.glob(seed_file(name, "*")) if self.main else ():
            # The name of another refinement may go on like this.
            if re.fullmatch(re.escape(pathlib.Path(seed_file(name, "")).stem) + r"\d+", path.stem):
                path.unlink()

    def add_timing(self, step: str, seconds: float) -> None:
        """Records in config.json what a step took, in the process that writes.

        Under `timing` its seconds, over all attempts; under `peak_memory` the most resident memory in bytes that the
        process had held when the step ended.
        """
        if not self.main:
            return
        header = read_header(self.path)
        header["timing"][step] = round(header["timing"].get(step, 0.0) + seconds, 3)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTE
        memory = header.setdefault("peak_memory", {})
        memory[step] = max(memory.get(step, 0), peak)
        self.write_json(CONFIG, header)

    def cut_metrics(self, step: int) -> None:
        """Drops the lines of metrics.jsonl that a training going on from `step` will write again."""
        if not self.main:
            return
        path = self.path / METRICS

        def kept_lines(path):
            # A line is written before its checkpoint, so those up to `step` are whole.
            whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            return [line for line in whole if metrics_line(line)["step"] <= step]

        lines = read(path, kept_lines) if path.exists() else []
        with self.replacing(METRICS) as temporary:
            temporary.write_text("".join(lines))
        self.begin_events()

    def replace_metrics(self, change: Callable[[list[dict]], list[dict]]) -> None:
        """Writes metrics.jsonl anew, whole or not at all, and the events that follow it.

        Args:
          change: from the lines that are there to those that take their place.
        """
        if not self.main:
            return
        lines = change(read_metrics(self.path / METRICS))
        with self.replacing(METRICS) as temporary:
            temporary.write_text("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
        if self._events:
            self._events.close()
            self._events = None
        self.begin_events()

    def begin_events(self) -> None:
        """Has events follow metrics.jsonl from its first line, if anybody asked for them and they do not yet."""
        if self.main and self.open_events and not self._events:
            path = self.path / METRICS
            self._events = self.open_events(read_metrics(path) if path.exists() and path.stat().st_size else [])

    def add_metrics(self, step: int, split: str, loss: float, accuracy: float) -> None:
        """Appends one line to metrics.jsonl."""
        if not self.main:
            return
        line = {"step": step, "split": split, "loss": loss, "accuracy": accuracy}
        with (self.path / METRICS).open("a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        if self._events:
            self._events.add(line)


def _holds(path, text):
    try:
        return path.read_text() == text
    except (OSError, ValueError):
        return False


def _remove(path):
    """Removes a folder or a file, if it is there."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _kept(path, dtype, shape):
    """A .npy file that is there already, mapped for writing; None if it is not what is wanted."""
    try:
        # To be written to, a file that was cut off would be filled up with zeros without a word.
        array = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError):
        return None
    if (array.dtype, array.shape) != (np.dtype(dtype), tuple(shape)):
        return None
    return np.lib.format.open_memmap(path, mode="r+")


def _unusable(path, error):
    return (
        f"work directory {path} cannot be used ({error}); allowed: a folder with permission to write and space; "
        "mend that or choose another workdir"
    )
