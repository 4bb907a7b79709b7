"""How programs are compiled: `jax.jit` with a CPU's own options for convolutions, and where the results are kept."""

import contextlib
import errno
import functools
import os
import pathlib
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jaxlib

from i2x_jax.config import InputError
from i2x_jax.devices import inside

# Measured by experiments/benchmarks/convolutions.py. YNNPACK keeps products and reductions, but its convolutions use
# one thread where channels are few: Eigen's use all. Barriers outlive fusion: else what stands before a convolution is
# computed anew, element by element, wherever it is read, above all inside the transposes for its kernel's gradient.
OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE",
    "xla_disable_hlo_passes": "cse_barrier_expander",
}
# JAX by itself keeps what took a second to compile. Most programs here take less, but there are dozens, and reading one
# back takes a millisecond.
LEAST_SECONDS = 0.0


def jit(function: Callable[..., Any], inference: bool = False, **options: Any) -> Callable[..., Any]:
    """`jax.jit(function, **options)` with the compiler options of the platform, which is asked for at the first call.

    (Asking earlier would start JAX before several processes could be joined.) Such a function cannot be called from
    inside another jitted one.

    Args:
      function: to be jitted.
      inference: it trains nothing, and its convolutions may be oneDNN's, see `calls_onednn`. Where they are, the
        compiled program is not kept for the next process.
      options: of `jax.jit`.
    """

    @functools.cache
    def jitted():
        known = compiler_options()
        return jax.jit(function, **({"compiler_options": known} if known else {}), **options)

    @functools.wraps(function)
    def call(*args, **kwargs):
        with inferring() if inference and has_onednn() else contextlib.nullcontext():
            return jitted()(*args, **kwargs)

    return call


@contextlib.contextmanager
def inferring() -> Iterator[None]:
    """What is traced inside may call oneDNN, and what is compiled inside is not kept.

    XLA has no way to write such a program down, and takes its call for another kind without looking: undefined
    behaviour (jaxlib 0.10.2, xla/backends/cpu/runtime/thunk_proto_serdes.cc).
    """
    with inside.inferring():
        yield


def calls_onednn() -> bool:
    """Whether the program that is being traced calls oneDNN for its convolutions: inside a `jit` for inference."""
    return inside.is_inferring()


@functools.cache
def has_onednn() -> bool:
    """Whether JAX computes on one CPU, by a jaxlib known to contain oneDNN. Of several, each would do all the work."""
    return (
        jax.default_backend() == "cpu"
        and jax.device_count() == 1
        and (sys.platform, platform.machine()) == ("linux", "x86_64")
        and jaxlib.__version__ in inside.JAXLIBS_WITH_ONEDNN
        and inside.can_infer()
    )


@functools.cache
def compiler_options() -> dict[str, str] | None:
    """What to tell the compiler: nothing, except on a CPU, if it knows these options."""
    return OPTIONS if jax.default_backend() == "cpu" and inside.knows_options(OPTIONS) else None


def keep_programs(where: str) -> None:
    """Has JAX keep compiled programs in a folder, so that the next process need not compile them again.

    JAX finds a program again by its code, its options, the versions of JAX and XLA, and the device: for a CPU, the
    instructions it has. So several processes, and machines, may share a folder. It must be nobody else's: what is in
    it gets executed.

    Args:
      where: the folder; 'off'; or 'default' for i2x_jax in the user's cache, unless JAX was told another folder
        (JAX_COMPILATION_CACHE_DIR). Where that cannot be written to, nothing is kept.

    Raises:
      InputError: a folder of that name cannot be made or written to.
    """
    if where == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if where == "default":
        if jax.config.jax_compilation_cache_dir:
            return
        try:
            folder = _usable(
                pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "i2x_jax"
            )
        except (OSError, RuntimeError):  # no home
            return
    else:
        try:
            if not where:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            folder = _usable(pathlib.Path(where).absolute())
        except OSError as error:
            raise InputError(
                f"compiled programs cannot be kept in {where!r} ({error.strerror}); allowed: a folder to write to, "
                "'default' or 'off'; set --compilation_cache"
            ) from None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)


def _usable(folder):
    """Makes a folder for programs, writes to it, and removes programs that a killed process left half-written."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    for path in folder.glob("*-cache"):
        if not _is_whole(path):
            path.unlink(missing_ok=True)
    return folder


def _is_whole(path):
    try:
        return inside.is_whole(path.read_bytes())
    # No file, or none that can be read, is of use to nobody.
    except OSError:
        return False
