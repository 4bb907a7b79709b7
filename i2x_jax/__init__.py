"""I2X in JAX: structured explanations of how an image classifier learned to decide (arXiv:2603.10234).

What a script or a notebook needs stands here by name; nothing is imported, JAX least of all, before it is asked for.
"""

__version__ = "0.2.0.dev0"

import importlib

# Each public name, and the module that it lives in.
_HOMES = {
    "explain": "api",
    "OwnModel": "api",
    "OrbaxCheckpoints": "api",
    "Run": "results.opened_run",
    "Dataset": "data.dataset",
    "InputError": "config",
    "gradcam": "evidence.saliency",
}
__all__ = tuple(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__():
    return sorted({*globals(), *_HOMES})
