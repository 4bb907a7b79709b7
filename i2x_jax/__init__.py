"""I2X in JAX: structured explanations of how an image classifier learned to decide (arXiv:2603.10234).

What a script or a notebook needs stands here by name; nothing is imported, JAX least of all, before it is asked for.
"""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    # For type checkers, which do not run `__getattr__`.
    from i2x_jax.api import OrbaxCheckpoints, OwnModel, explain, train
    from i2x_jax.config import InputError
    from i2x_jax.data import parts
    from i2x_jax.data.dataset import Dataset
    from i2x_jax.data.source import Display
    from i2x_jax.evidence.saliency import gradcam
    from i2x_jax.results.opened_run import Run

__version__ = "0.2.0.dev0"
__all__ = (
    "Dataset",
    "Display",
    "InputError",
    "OrbaxCheckpoints",
    "OwnModel",
    "Run",
    "explain",
    "gradcam",
    "parts",
    "train",
)

# The module that each public name lives in.
_HOMES = {
    "explain": "api",
    "train": "api",
    "OwnModel": "api",
    "OrbaxCheckpoints": "api",
    "Run": "results.opened_run",
    "Dataset": "data.dataset",
    "Display": "data.source",
    "InputError": "config",
    "gradcam": "evidence.saliency",
    "parts": "data",
}


def __getattr__(name: str) -> _Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = f"{__name__}.{_HOMES[name]}"
    # What is public may be a module as well.
    return getattr(_importlib.import_module(home), name, None) or _importlib.import_module(f"{home}.{name}")


def __dir__() -> list[str]:
    return sorted({name for name in globals() if name.startswith("__")} | set(__all__))
