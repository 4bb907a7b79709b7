"""Runs another module in a JAX that has lost every name of `devices.inside`.

python -m tests.devices.program_without_inside MODULE ARGUMENT...
"""

import importlib
import runpy
import sys

# What `devices.inside` looks for, and where.
NAMES = (
    ("jax", "make_user_context"),
    ("jax._src.config", "persistent_cache_min_compile_time_secs"),
    ("jax._src.compilation_cache", "decompress_executable"),
    ("jax.experimental.multihost_utils", "sync_global_devices"),
    ("jax.experimental.multihost_utils", "process_allgather"),
    ("jax.ffi", "ffi_call"),
)


class Emptied:
    """A module without one of its names: JAX itself goes on to find it where it is."""

    def __init__(self, module, lost):
        self._module, self._lost = module, lost

    def __getattr__(self, name):
        if name in self._lost:
            raise AttributeError(f"module has no attribute {name!r}")
        return getattr(self._module, name)


def emptied(*names):
    """A stand-in for `importlib.import_module` in whose modules the names given are missing."""
    original = importlib.import_module

    def import_module(name, package=None):
        lost = [attribute for module, attribute in names if module == name]
        return Emptied(original(name, package), lost) if lost else original(name, package)

    return import_module


if __name__ == "__main__":
    restore, importlib.import_module = importlib.import_module, emptied(*NAMES)
    from i2x_jax.devices import inside

    importlib.import_module = restore
    assert not inside.can_infer()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=False)
