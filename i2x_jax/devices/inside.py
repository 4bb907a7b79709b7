"""What this package uses of the inside of JAX and jaxlib, and what it does without: nothing of it is promised to stay.

Every such name is looked for here and nowhere else. Where one is gone, or has come to mean something else, the plain
way is taken: the same results, more slowly or with a warning of JAX's own.
"""

import contextlib
import functools
import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

# The jaxlibs whose oneDNN (devices/onednn.py) the tests have called: it is no public interface, and a call that jaxlib
# does not understand ends the process.
JAXLIBS_WITH_ONEDNN = ("0.10.2", "0.11.2")


def _found(module: str, name: str) -> Any:
    """What a module calls by that name; None where there is no such module or name."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


_user_context = _found("jax", "make_user_context")
_least_seconds = _found("jax._src.config", "persistent_cache_min_compile_time_secs")
_decompress = _found("jax._src.compilation_cache", "decompress_executable")
_sync_devices = _found("jax.experimental.multihost_utils", "sync_global_devices")
_gather = _found("jax.experimental.multihost_utils", "process_allgather")
ffi_call = _found("jax.ffi", "ffi_call")

# Part of what JAX finds a traced function again by: outside, nothing is taken for what was traced inside.
_inferring = _user_context(default_value=False) if _user_context else None


@functools.cache
def can_infer() -> bool:
    """Whether programs for inference can be told from others, and kept from being kept: else none may call oneDNN."""
    if None in (_inferring, _least_seconds, ffi_call):
        return False
    try:
        with inferring():
            return _inferring.value is True
    # Names that are still there, but take other arguments.
    except (TypeError, ValueError, AttributeError):
        return False


@contextlib.contextmanager
def inferring():
    """What is traced inside is for inference, and what is compiled inside is not kept; only where `can_infer`."""
    with _inferring(True), _least_seconds(math.inf):
        yield


def is_inferring() -> bool:
    """Whether the program that is being traced was begun inside `inferring`."""
    return can_infer() and _inferring.value


def knows_options(options: Mapping[str, str]) -> bool:
    """Whether the compiler of this backend takes such options, most of which are experiments of XLA's."""
    try:
        jax.jit(jax.lax.optimization_barrier, compiler_options=dict(options))(jnp.zeros(1)).block_until_ready()
    # An option that is unknown has been JaxRuntimeError, and is nothing that anybody promised.
    except Exception:
        return False
    return True


def is_whole(program: bytes) -> bool:
    """Whether the content of a file of JAX's compilation cache can be unpacked; True where nobody can tell.

    (JAX itself would warn of a damaged one, compile again, and leave it as it is, each time.)
    """
    if _decompress is None:
        return True
    try:
        _decompress(program)
    # Called in a way that it no longer knows: that says nothing of the file.
    except TypeError:
        return True
    except Exception:
        return False
    return True


def synchronize(place: str, dealt: NamedSharding) -> None:
    """Waits until every process has come to a place; `dealt` deals rows over all devices."""
    if _sync_devices is not None:
        _sync_devices(place)
        return
    ones = jax.make_array_from_callback((jax.device_count(),), dealt, lambda index: np.ones(jax.device_count())[index])
    jax.jit(jnp.sum)(ones).block_until_ready()


def gather(array: jax.Array, replicated: NamedSharding) -> np.ndarray:
    """The whole of an array whose rows are dealt over several processes; `replicated` copies it to every device."""
    if _gather is not None:
        return _gather(array, tiled=True)
    whole: Callable[[jax.Array], jax.Array] = jax.jit(lambda array: array, out_shardings=replicated)
    return np.asarray(whole(array).addressable_data(0))
