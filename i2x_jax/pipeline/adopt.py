"""What stands in for the stage `train` where the checkpoints were made elsewhere (DESIGN 2.1)."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from i2x_jax.config import InputError
from i2x_jax.devices.mesh import replicate
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.pipeline.train import measure, save_rows
from i2x_jax.results.files import CHECKPOINTS
from i2x_jax.results.opened_run import Run
from i2x_jax.training.checkpoints import Checkpoints
from i2x_jax.training.loop import NotFiniteError

MAX_STEP = np.iinfo(np.int32).max


class Checkpoint(NamedTuple):
    """Variables at a step; `load` gets them when they are needed, so that not all need to be in memory at once."""

    step: int
    load: Callable[[], Any]


def adopt(directory: RunDirectory, work: Run, given: Sequence[Checkpoint]) -> None:
    """Copies checkpoints into the run: checkpoints/, metrics.jsonl, and the .npy files that `train` makes.

    BatchNorm statistics are kept as they are: of a network from elsewhere nobody here knows which variables they are.

    Raises:
      InputError: logits that are not finite.
    """
    steps = [each.step for each in given]
    with Checkpoints(directory.path / CHECKPOINTS) as kept:
        directory.cut_metrics(-1)
        with directory.progress_bar("checkpoints", len(given), "checkpoint") as bar:
            for each in given:
                variables = replicate(each.load())
                try:
                    measure(directory, work, variables, each.step, last=each.step == steps[-1])
                except NotFiniteError:
                    raise InputError(
                        f"the logits at step {each.step} are not finite; allowed: finite logits for every image; look "
                        "at `features`, `head` and these variables, or leave the step out"
                    ) from None
                kept.save(each.step, variables)
                bar.update(1)
    with directory.making("train") as folder:
        save_rows(folder, work.dataset, steps)


def survey(given: Sequence[Checkpoint]) -> tuple[Any, str]:
    """Looks at all checkpoints before anything is written.

    Args:
      given: at least one.

    Returns:
      A tree of their shapes and dtypes, and their fingerprint: SHA-256, as 64 hexadecimal digits.

    Raises:
      InputError: fewer than two; steps that do not rise; variables that are no arrays of finite numbers, of another
        structure than those of the first step, or the same at every step.
    """
    steps = [each.step for each in given]
    if len(steps) < 2:
        raise InputError(f"{len(steps)} checkpoint given; allowed: at least 2; keep variables at several steps")
    if steps[0] < 0 or steps[-1] > MAX_STEP or (np.diff(steps) <= 0).any():
        raise InputError(f"the steps are {steps[:20]}; allowed: rising, 0 to {MAX_STEP}; sort the checkpoints by step")
    like, prints = None, []
    for each in given:
        leaves = jax.tree_util.tree_leaves_with_path(tree := each.load())
        arrays = {jax.tree_util.keystr(path): _array(leaf, path, each.step) for path, leaf in leaves}
        if not arrays:
            raise InputError(f"the variables at step {each.step} hold no array; allowed: a tree of arrays; check them")
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
        like = shapes if like is None else like
        _check_same(like, shapes, steps[0], each.step)
        digest = hashlib.sha256()
        for name, array in arrays.items():
            digest.update(repr((name, array.dtype.name, array.shape)).encode())
            digest.update(array.tobytes())
        prints.append(digest.hexdigest())
    if len(set(prints)) == 1:
        raise InputError(
            f"the variables are the same at all {len(steps)} steps; allowed: those of a network that learned; keep a "
            "copy at each step (jax.tree.map(jnp.copy, ...)), not the one tree that training changes"
        )
    return like, hashlib.sha256(repr(list(zip(steps, prints, strict=True))).encode()).hexdigest()


def _array(leaf, path, step):
    """A leaf as a NumPy array of finite numbers."""
    name = f"{jax.tree_util.keystr(path, simple=True, separator='/') or 'the variables'} at step {step}"
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        raise InputError(f"{name} was deleted; allowed: arrays in memory; copy variables before they are donated")
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic)) or not (
        jax.numpy.issubdtype(leaf.dtype, np.number) or leaf.dtype == bool
    ):
        kind = getattr(leaf, "dtype", type(leaf).__name__)
        raise InputError(
            f"{name} is {kind}; allowed: arrays of numbers; hand over parameters and statistics only, random "
            "states left out (of NNX: nnx.state(net, nnx.Not(nnx.RngState)))"
        )
    array = np.asarray(leaf)
    if not np.isfinite(array).all():
        raise InputError(f"{name} holds NaN or infinity; allowed: finite numbers; leave that step out")
    return array


def _check_same(like, shapes, first, step):
    if jax.tree.structure(like) != jax.tree.structure(shapes):
        raise InputError(
            f"the variables at step {step} are another tree than those at step {first}; allowed: one structure; keep "
            "the same variables at every step"
        )
    old, new = (jax.tree_util.tree_leaves_with_path(tree) for tree in (like, shapes))
    for (path, one), (_, other) in zip(old, new, strict=True):
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            raise InputError(
                f"{jax.tree_util.keystr(path, simple=True, separator='/')} is {other.dtype} {list(other.shape)} at "
                f"step {step} and {one.dtype} {list(one.shape)} at step {first}; allowed: one shape and dtype; keep "
                "the same variables at every step"
            )
