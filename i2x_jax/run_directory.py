"""The run directory: its files, how they come into being whole or not at all, and `Run` (DESIGN section 4).

Nothing here needs JAX until a model or its weights are asked for, so that looking at a finished run is quick.
"""

import contextlib
import errno
import fcntl
import functools
import itertools
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from i2x_jax import config as config_lib
from i2x_jax.config import OWN, Config, InputError
from i2x_jax.data import Dataset, Splits, load_splits
from i2x_jax.explanation import Explanation
from i2x_jax.explanation import from_json as explanation_from_json
from i2x_jax.run_files import (
    ARRAYS,
    CONFIG,
    METRICS,
    check_json,
    read,
    read_array,
    read_arrays,
    read_json,
    refuse_links,
    strict_json,
)
from i2x_jax.tensorboard import EventFile

if TYPE_CHECKING:
    import pandas

    from i2x_jax import story

CHECKPOINTS, EXPLANATION, TENSORBOARD = "checkpoints", "explanation.json", "tensorboard"
REFINEMENT, CONTACT_SHEET, REPORT = "refinement.json", "contact_sheet.png", "report.html"

# The steps of a run in order: the stage each belongs to and the files it makes. A step whose files are all there is
# complete, because files only ever get their names when they are.
STEPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "train": ("train", ("labels.npy", "steps.npy")),
    "prototypes": ("explain", ("prototypes.npz", "assignments.npy")),
    "evidence": (
        "explain",
        ("intensity.npy", "confidence.npy", "contributions.npz", "validation.npz", "test.npz"),
    ),
    "mapping": ("explain", ("groups.npy", "mapping.npz", "curated.npz", EXPLANATION)),
    "contact_sheet": ("explain", (CONTACT_SHEET,)),
    "refine": ("refine", (REFINEMENT,)),
    "report": ("report", (REPORT,)),
}
# What the system says of a folder that cannot be written to; other errors are bugs and keep their traceback.
UNUSABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST),  # a folder where a file belongs, or the reverse
)
STAGES = tuple(dict.fromkeys(stage for stage, _ in STEPS.values()))


class RunDirectory:
    """Writing side of a run directory: one run at a time, every file whole or absent.

    Attributes:
      path: the directory, which all processes of a run share.
      main: whether this is the process that writes; in the others writing does nothing.
      barrier: waits for the other processes; its argument names the place.
      open_events: from the lines of metrics.jsonl to the `tensorboard.EventFile` that follows them; None for none.
    """

    def __init__(self, path: str | os.PathLike, main: bool = True, barrier: Callable[[str], None] = lambda place: None):
        self.path = pathlib.Path(path).absolute()
        self.main = main
        self.barrier = barrier
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
                    "wait for it or choose another --workdir"
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
        """Removes what a killed process left half-made, and what is no longer needed to go on from."""
        patterns = (".tmp-*", ".refine-seed-*.json") if self.complete("refine") else (".tmp-*",)
        for path in itertools.chain.from_iterable(self.path.glob(pattern) for pattern in patterns):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def check_config(self, config: Config) -> None:
        """Raises `InputError` if the folder holds another run, something that is not a run, or links."""
        refuse_links(self.path)
        if (self.path / CONFIG).exists():
            changed = config_lib.differences(read_config(self.path), config)
            if changed:
                raise InputError(
                    f"work directory {self.path} was made with another config ({'; '.join(changed)}); allowed: the "
                    "same config; choose another --workdir"
                )
        elif self.path.is_dir() and any(not entry.name.startswith(".") for entry in self.path.iterdir()):
            raise InputError(
                f"work directory {self.path} holds files but no {CONFIG}; allowed: an empty folder or one made by "
                "this program; choose another --workdir"
            )

    def complete(self, step: str) -> bool:
        """Whether all files of a step are there."""
        if not all((self.path / name).exists() for name in STEPS[step][1]):
            return False
        if step != "train":
            return True
        return all((self.path / CHECKPOINTS / str(kept)).is_dir() for kept in read_array(self.path / "steps.npy", {}))

    @contextlib.contextmanager
    def making(self, step: str) -> Iterator[pathlib.Path]:
        """A temporary folder whose files move to their place if all goes well, those of `STEPS` last and in order.

        Processes that do not write get a folder of their own, and what they put there is dropped.
        """
        if not self.main:
            with tempfile.TemporaryDirectory() as folder:
                yield pathlib.Path(folder)
            return
        folder = self._temporary(step)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
            promised = STEPS[step][1]
            extra = sorted(path.name for path in folder.iterdir() if path.name not in promised)
            for name in (*extra, *promised):
                os.replace(folder / name, self.path / name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _temporary(self, step):
        return self.path / f".tmp-{step}"

    def shared_memmap(self, step: str, name: str, dtype: Any, shape: tuple[int, ...]) -> np.memmap:
        """A new .npy file among those `making` a step, mapped for writing by all processes; each writes its own rows.

        Its space on disk is taken at once: a disk that fills up later would kill the process on a write to memory.
        """
        path = self._temporary(step) / name
        if self.main:
            array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        self.barrier(f"{name} made")
        return array if self.main else np.lib.format.open_memmap(path, mode="r+")

    def progress_bar(self, label: str, total: int, unit: str) -> tqdm:
        """A bar with count, rate and time left on a terminal; silent elsewhere."""
        disable = None if self.main else True
        return tqdm(total=total, desc=label, unit=f" {unit}", unit_scale=total > 10_000, leave=False, disable=disable)

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file whole or not at all."""
        if not self.main:
            return
        temporary = self.path / f".tmp-{name}"
        try:
            temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
            os.replace(temporary, self.path / name)
        finally:
            temporary.unlink(missing_ok=True)

    def discard(self, pattern: str) -> None:
        """Deletes files that were only there to go on from."""
        for path in self.path.glob(pattern) if self.main else ():
            path.unlink()

    def add_timing(self, step: str, seconds: float) -> None:
        """Records how long a step took, in config.json under `timing`."""
        if not self.main:
            return
        header = read_header(self.path)
        header["timing"][step] = round(header["timing"].get(step, 0.0) + seconds, 3)
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

        kept = read(path, kept_lines) if path.exists() else []
        temporary = self.path / f".tmp-{METRICS}"
        temporary.write_text("".join(kept))
        os.replace(temporary, path)
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


def metrics_line(text: str) -> dict:
    """A line of metrics.jsonl; raises `ValueError` for anything else."""
    line = strict_json(text)
    check_json(line, "metrics")
    return line


def read_metrics(path: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl, at least one, or `InputError`."""

    def load(path):
        if not (lines := path.read_text().splitlines()):
            raise ValueError("it is empty")
        return [metrics_line(line) for line in lines]

    return read(path, load)


def read_header(path: pathlib.Path) -> dict:
    """The content of a run directory's config.json."""
    header = read_json(path / CONFIG)
    if not isinstance(header, dict) or "config" not in header:
        raise InputError(f"{path / CONFIG} has no member 'config'; allowed: a file made by this program")
    # Its own lines say more about a setting; and settings that are left out take their defaults.
    config = config_lib.to_dict(config_lib.from_config_dict(header["config"]))
    read(path / CONFIG, lambda _: check_json({**header, "config": config}, "config"))
    return header


def read_config(path: pathlib.Path) -> Config:
    """The config that a run directory was made with."""
    return config_lib.from_config_dict(read_header(path)["config"])


class Run:
    """Reading side of a run directory; everything is opened when asked for, large arrays as memory maps.

    Attributes:
      path: the directory.
      config: how the run was made.
    """

    def __init__(self, path: str | os.PathLike, data_dir: str | None = None):
        self.path = pathlib.Path(path).absolute()
        if not (self.path / CONFIG).exists():
            raise InputError(f"{self.path} is not a run directory: no {CONFIG} in it; allowed: a --workdir of run.py")
        self.config = read_config(self.path)
        self._data_dir = data_dir

    def array(self, name: str) -> np.ndarray:
        """A .npy file by its name without ending: steps, labels, assignments, intensity, confidence, groups."""
        return read_array(self._known(f"{name}.npy"), self._sizes(name))

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """A .npz file: prototypes, contributions, validation, test, mapping, curated."""
        return read_arrays(self._known(f"{name}.npz"), self._sizes(name))

    def _known(self, name):
        if name not in ARRAYS:
            raise InputError(f"{name} is no array of a run; allowed: {', '.join(ARRAYS)}; check the spelling")
        return self.path / name

    def _sizes(self, name):
        """The symbols of `run_files.Spec` that are known without opening the array of that name."""
        sizes = {"K": self.config.explain.num_prototypes, "D": self.config.explain.pca_dims}
        # Data and model are looked at where they are at hand: opening an array must not read a data set.
        if "splits" in vars(self):
            train, validation, test = self.splits
            sizes |= {"M": len(train.class_names), "N": len(train.labels)}
            sizes |= {"V": len(validation.labels), "E": len(test.labels)}
        elif name not in ("steps", "labels"):
            sizes["N"] = len(self.array("labels"))
        if "model" in vars(self):
            sizes |= dict(zip("hwd", self.model.feature_shape, strict=True))
        if name not in ("steps", "labels"):
            sizes |= {"T": len(self.steps), "I": len(self.steps) - 1}
        return sizes

    @functools.cached_property
    def steps(self) -> np.ndarray:
        """Steps of the analysed checkpoints, int32 `[T]`."""
        return np.array(self.array("steps"))

    @functools.cached_property
    def splits(self) -> Splits:
        """Train (as analysed), validation and test."""
        self._refuse_own()
        return dataset_of(self.config, self._data_dir)

    @property
    def dataset(self) -> Dataset:
        """The N training samples, in the order of every array of the run."""
        return self.splits.train

    @functools.cached_property
    def explanation(self) -> Explanation:
        """The structured explanation."""
        path = self.path / EXPLANATION
        return read(path, lambda path: explanation_from_json(path.read_text()))

    @functools.cached_property
    def refinement(self) -> dict:
        """The refinement table, as in refinement.json."""
        return read_json(self.path / REFINEMENT, "refinement")

    @functools.cached_property
    def metrics(self) -> list[dict]:
        """The lines of metrics.jsonl."""
        return read_metrics(self.path / METRICS)

    @functools.cached_property
    def model(self):
        """The `models.Model`."""
        self._refuse_own()
        return model_of(self.config, self.dataset)

    def _refuse_own(self):
        """What was handed to `i2x_jax.explain` is not in its run directory."""
        if self.config.model.name == OWN:
            raise InputError(
                f"{self.path} explains a model and images of your own, which it does not hold; allowed: everything "
                f"that needs neither; for the rest call i2x_jax.explain again, with what it was called with and "
                f"workdir={str(self.path)!r}: it returns at once"
            )

    @functools.cached_property
    def abstract_variables(self) -> dict:
        """A tree like the weights, of shapes and dtypes."""
        import jax

        return jax.eval_shape(self.model.init, jax.random.key(0))

    def variables(self, step: int) -> dict:
        """The weights at an analysed step; those of a run by run.py have recomputed BatchNorm statistics."""
        from i2x_jax.checkpoints import Checkpoints

        with Checkpoints(self.path / CHECKPOINTS, read_only=True) as checkpoints:
            return checkpoints.restore_variables(step, self.abstract_variables)

    def crops(self, prototype: int, n: int = 16) -> "story.Crops":
        """The places where a prototype is strongest, cut out of their images; needs the model and the data.

        Args:
          prototype: its id, 0 to K-1.
          n: how many at most; fewer where fewer images have the prototype.

        Returns:
          `images` uint8 `[n, side, side, C]`, `rows` int64 `[n]`, `locations` int64 `[n, 2]` and `intensity` float32
          `[n]`, by falling intensity at the last checkpoint (`story.Crops`).

        Raises:
          InputError: unknown prototype, or n below 1.
        """
        from i2x_jax import story

        return story.crops(self, prototype, n)

    def story(self, image: int) -> "story.Story":
        """How the network came to see one training image as it does (`story.Story`).

        Raises:
          InputError: `image` is no row of the run's arrays.
        """
        from i2x_jax import story

        return story.story(self, image)

    def to_frame(self, table: str) -> "pandas.DataFrame":
        """A table of the run as a pandas data frame, one row per record.

        Args:
          table: one of `tables.TABLES`: intervals, prototypes, support, pairs, uncertain, metrics, refinement.

        Raises:
          InputError: no such table, or pandas is not installed.
        """
        from i2x_jax import tables

        return tables.to_frame(self, table)


def dataset_of(config: Config, data_dir: str | None) -> Splits:
    """The splits a config asks for."""
    data = config.data
    return load_splits(data.name, data.validation, data.max_train, data.image_size, config.seed, data_dir)


def model_of(config: Config, dataset: Dataset):
    """The `models.Model` a config asks for."""
    from i2x_jax import models

    return models.create(
        config.model.name,
        num_classes=len(dataset.class_names),
        image_shape=dataset.images.shape[1:],
        width=config.model.width,
        stem=config.model.stem,
        tap=config.model.tap,
        dtype=config.model.dtype,
        allow_1x1=config.model.allow_1x1,
    )


def _unusable(path, error):
    return (
        f"work directory {path} cannot be used ({error}); allowed: a folder with permission to write and space; "
        "mend that or choose another --workdir"
    )
