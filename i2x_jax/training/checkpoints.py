"""Checkpoints of a training: which steps, and reading and writing them. The only file that knows Orbax."""

import contextlib
import gc
import itertools
import logging
import pathlib
import re
import shutil
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from i2x_jax.config import InputError
from i2x_jax.devices.mesh import abstract, barrier, lost

# What Orbax writes beside the arrays of a small model, generously: lists, shardings, lock files.
CHECKPOINT_OVERHEAD = 2**20
# 'moved' chooses among this many times as many checkpoints as are kept.
CANDIDATES_EACH = 4
# Movement is counted in millionths, so that what is chosen does not hang on the last bits of a sum.
MOVEMENT_UNITS = 1e6
STEP = re.compile(r"0|[1-9][0-9]{0,17}")
# What others call the folder of a step: 100, 000100, step_100, checkpoint-100.
FOREIGN_STEP = re.compile(r"(?:[A-Za-z][A-Za-z_]*[_-])?([0-9]{1,18})")
# Orbax puts this file beside the arrays of an item.
ITEM_MARK = "_METADATA"


def select_steps(spec: str | tuple[int, ...], count: int, total: int) -> tuple[int, ...]:
    """The steps at which checkpoints are written: 0 and `total` always, ascending.

    Args:
      spec: 'log' (evenly spaced in the logarithm of the step), 'linear', 'moved' (those of 'log', four times as many,
        of which `choose_by_movement` keeps `count`), or the steps themselves.
      count: how many are kept, but for listed steps; fewer where there are not so many steps.
      total: the last step.

    Raises:
      InputError: a listed step beyond `total`.
    """
    if isinstance(spec, tuple):
        if spec[-1] > total:
            raise InputError(
                f"train.checkpoints asks for step {spec[-1]}; allowed: 0 to {total}, the last step of this training; "
                "set train.checkpoints or raise train.epochs"
            )
        return tuple(sorted({0, *spec, total}))
    count = min(CANDIDATES_EACH * count if spec == "moved" else count, total + 1)
    # A geometric sequence of one would hold step 1, not the last.
    log = spec != "linear" and count > 2
    wanted = np.geomspace(1, total, count - 1) if log else np.linspace(0, total, count)[1:]
    steps = [0]
    for step in wanted:
        # Rounding may repeat a step early on: the next free one is taken. Steps lie further apart later, and the last
        # is never passed.
        steps.append(max(round(step), steps[-1] + 1))
    return tuple(steps)


def movement(before: np.ndarray, after: np.ndarray) -> float:
    """How far confidences `[n, M]` moved: half the absolute change, summed over classes, mean over samples; 0 to 1."""
    return float(np.abs(np.float64(after) - before).sum(-1).mean() / 2)


def choose_by_movement(steps: Sequence[int], moved: Sequence[float], count: int) -> tuple[int, ...]:
    """Those of the steps, first and last among them, that cut what moved into parts as equal as can be.

    As equal as can be: the sum of the squares of the parts is least. Each interval counts for a millionth more than it
    moved, so that where nothing moved the steps are dealt out evenly; of equally good choices it is the earliest.

    Args:
      steps: C candidates, ascending.
      moved: C-1 numbers, at least 0: what moved from each candidate to the next.
      count: how many are wanted, at least 2; all where there are no more.

    Raises:
      InputError: what moved is not finite.
    """
    if not np.isfinite(moved).all():
        step = steps[1 + int(np.argmin(np.isfinite(moved)))]
        raise InputError(
            f"confidences at step {step} are not finite; allowed: finite logits; train in another workdir, perhaps "
            "with a lower train.learning_rate"
        )
    if len(steps) <= count:
        return tuple(steps)
    sizes = (1 + round(each * MOVEMENT_UNITS) for each in moved)
    reached, last = list(itertools.accumulate(sizes, initial=0)), len(steps) - 1
    # From each candidate the cheapest way there, so far in so many parts: its cost, and the candidates on it.
    ways = {0: (0, (0,))}
    for parts in range(1, count):
        ends = range(parts, last + 1) if parts < count - 1 else (last,)
        ways = {
            end: min(
                (cost + (reached[end] - reached[start]) ** 2, (*path, end))
                for start, (cost, path) in ways.items()
                if start < end
            )
            for end in ends
        }
    return tuple(steps[index] for index in ways[last][1])


def present_steps(directory: pathlib.Path) -> tuple[int, ...]:
    """The steps of the complete checkpoints in a folder, ascending; none where there is no folder."""
    if not directory.is_dir():
        return ()
    # Only what `str` makes of a step: not 007, and no digits of other scripts.
    return tuple(sorted(int(path.name) for path in directory.iterdir() if STEP.fullmatch(path.name) and path.is_dir()))


def foreign_items(directory: pathlib.Path, item: str = "") -> list[tuple[int, pathlib.Path]]:
    """The checkpoints that somebody else's program wrote with Orbax: steps, ascending, and the folder of their arrays.

    Args:
      directory: holds one folder a step, named by the step, perhaps after a prefix (100, 000100, step_100).
      item: which item of each, where there are several; '' for the only one, or the one called `variables`.

    Raises:
      InputError: no such folder, no checkpoints in it, two of one step, or several items and none named.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is no folder; allowed: a folder of Orbax checkpoints; check the path")
    found = {}
    for folder in sorted(path for path in directory.iterdir() if path.is_dir()):
        if match := FOREIGN_STEP.fullmatch(folder.name):
            if int(match[1]) in found:
                raise InputError(
                    f"{directory} holds step {int(match[1])} twice; allowed: one folder a step; move one away"
                )
            found[int(match[1])] = _item_folder(folder, item)
    if not found:
        raise InputError(
            f"{directory} holds no checkpoints; allowed: a folder with one folder a step, such as 100 or step_100; "
            "check the path"
        )
    return sorted(found.items())


def _item_folder(folder, item):
    if not item and (folder / ITEM_MARK).exists():
        return folder
    items = sorted(path.name for path in folder.iterdir() if (path / ITEM_MARK).exists())
    wanted = item or (items[0] if len(items) == 1 else "variables")
    if wanted not in items:
        raise InputError(
            f"checkpoint {folder} has the items {', '.join(items) or 'none'}; allowed: one that holds arrays; name it "
            "with OrbaxCheckpoints(directory, item=...)"
        )
    return folder / wanted


def restore_foreign(folder: pathlib.Path, like: Any = None) -> Any:
    """Reads a tree of arrays that somebody else's program wrote with Orbax, placed on every device.

    Args:
      folder: of the arrays, from `foreign_items`.
      like: a tree of the structure, shapes and dtypes wanted; None for nested dicts and lists, as they were stored.

    Raises:
      InputError: damaged, or of another structure.
    """

    def read():
        with _only_errors(), ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.metadata(folder.absolute()).item_metadata.tree if like is None else like
            return checkpointer.restore(folder.absolute(), abstract(tree))

    found, reason = _attempt(read)
    if not reason:
        return found
    raise InputError(
        f"checkpoint {folder} cannot be read ({reason}); allowed: arrays that Orbax wrote, of the structure of `like` "
        "if that is given; check the folder"
    )


@contextlib.contextmanager
def _uninterrupted():
    """Puts off a Ctrl-C to the end of the block: a save that is cut short leaves a thread that nobody waits for."""
    # Only there are handlers set; and one that was not set from Python could not be put back.
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield
        return
    asked = []
    handler = signal.signal(signal.SIGINT, lambda *_: asked.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if asked:
        signal.raise_signal(signal.SIGINT)


class Checkpoints:
    """A folder of checkpoints, one per step, with the items `variables` and `optimizer`; to be used under `with`.

    `read_only` leaves the folder untouched; otherwise what a killed process left half-written is removed.
    """

    def __init__(self, directory: pathlib.Path, read_only: bool = False):
        self.directory = pathlib.Path(directory).absolute()
        # For a reader Orbax warns of each default that it changes.
        with _only_errors():
            options = ocp.CheckpointManagerOptions(
                read_only=read_only, cleanup_tmp_directories=not read_only, enable_async_checkpointing=True
            )
            self._manager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        if kind is None:
            self.wait()
        elif lost(value):
            # To close is to wait for the others, and one of them is gone.
            return
        self._manager.close()

    def save(self, step: int, variables: Any, optimizer: Any = None) -> None:
        """Starts saving, and returns once the arrays are copied; a step already there is left as it is.

        Without an optimizer there is no item of that name, and training cannot go on from there.

        Raises:
          InputError: this checkpoint or the one before could not be written.
        """
        if step in present_steps(self.directory):
            return
        items = {"variables": variables} if optimizer is None else {"variables": variables, "optimizer": optimizer}
        self._check_space(items)
        args = ocp.args.Composite(**{name: ocp.args.StandardSave(tree) for name, tree in items.items()})
        with self._writing(), _uninterrupted():
            self._manager.save(step, args=args, force=True)

    def wait(self) -> None:
        """Waits until every checkpoint is on disk; errors as in `save`."""
        with self._writing():
            self._manager.wait_until_finished()

    def _check_space(self, tree):
        """Asked beforehand: writers that meet a full disk print pages of tracebacks from their threads."""
        # Twice, because the checkpoint before this one may still be under way.
        needed = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) + CHECKPOINT_OVERHEAD
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise InputError(
                f"a checkpoint cannot be written to {self.directory} ({free / 1e6:.1f} MB free); allowed: at least "
                f"{needed / 1e6:.1f} MB; make room and run the same command"
            )

    def remove(self, steps: set[int]) -> None:
        """Deletes checkpoints, or what is left of them, once all others are on disk."""
        if steps:
            self.wait()
            for step in steps if jax.process_index() == 0 else ():
                shutil.rmtree(self.directory / str(step), ignore_errors=True)
            barrier("checkpoints removed")
            # The manager remembers what it found: a step that is gone could not be saved again.
            self._manager.reload()

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        # TensorStore reports a full disk or a lost folder as ValueError or OSError, from the thread that writes.
        except (OSError, ValueError) as error:
            raise InputError(
                f"a checkpoint cannot be written to {self.directory} ({_first_line(error)}); allowed: a folder with "
                "permission and space; mend that and run the same command"
            ) from None

    def restore_variables(self, step: int, like: Any) -> Any:
        """Reads the variables at a step, placed on every device.

        Args:
          step: which.
          like: a tree of the same structure with the shapes and dtypes expected.

        Raises:
          InputError: the checkpoint is missing, damaged, of another model, or holds NaN or infinity.
        """
        variables = self._restore(step, variables=like)["variables"]
        if name := not_finite(variables):
            raise InputError(
                f"checkpoint {self.directory / str(step)} holds NaN or infinity in {name}; allowed: finite "
                "weights; train again in another workdir, perhaps with a lower train.learning_rate"
            )
        return variables

    def restore(self, step: int, variables: Any, optimizer: Any) -> tuple[Any, Any]:
        """Reads variables and optimizer state at a step; arguments and errors as in `restore_variables`."""
        items = self._restore(step, variables=variables, optimizer=optimizer)
        return items["variables"], items["optimizer"]

    def _restore(self, step, **items):
        folder = self.directory / str(step)
        if step not in present_steps(self.directory):
            have = ", ".join(map(str, present_steps(self.directory))) or "none"
            raise InputError(f"checkpoint {folder} does not exist; there are: {have}; run --stage=train first")
        args = {name: ocp.args.StandardRestore(abstract(tree)) for name, tree in items.items()}
        found, reason = _attempt(lambda: self._manager.restore(step, args=ocp.args.Composite(**args)))
        if not reason:
            return found
        raise InputError(
            f"checkpoint {folder} cannot be read ({reason}); allowed: a complete checkpoint of this model; move that "
            "folder away and run the same command: training resumes from the one before"
        )


def not_finite(variables: Any) -> str:
    """The name of the first leaf that holds NaN or infinity; '' where none does."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if not np.isfinite(np.asarray(leaf)).all():
            return jax.tree_util.keystr(path, simple=True, separator="/")
    return ""


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


@contextlib.contextmanager
def _only_errors():
    """Keeps what Orbax logs below the level of errors off the terminal."""
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        yield
    finally:
        absl.logging.set_verbosity(verbosity)


def _attempt(read):
    """What `read()` returns and ''; or None and why it failed.

    The pages that TensorStore's parallel readers print about one damaged file are kept off the terminal.
    """
    logger, hook = logging.getLogger("asyncio"), sys.unraisablehook
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = lambda _: None
    try:
        try:
            return read(), ""
        # Orbax and TensorStore raise bare Exception, ValueError and JSONDecodeError for damaged files.
        except Exception as error:
            reason = _first_line(error)
        # The readers that failed alongside speak up when they are collected: now that nothing remembers the error.
        gc.collect()
        return None, reason
    finally:
        sys.unraisablehook = hook if isinstance(hook, _LateReaders) else _LateReaders(hook)
        logger.setLevel(level)


class _LateReaders:
    """A `sys.unraisablehook` that stays: TensorStore's threads may still report to a restore that has failed."""

    def __init__(self, hook):
        self.hook = hook

    def __call__(self, unraisable):
        late = isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"
        if not late:
            self.hook(unraisable)
