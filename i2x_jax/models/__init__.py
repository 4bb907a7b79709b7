"""Classifiers that split into a feature map and a head."""

from i2x_jax.models.model import Model, Tap, Tapped, Variables
from i2x_jax.models.networks import NETWORKS, TRANSFORMERS, create, find_tap, taps
from i2x_jax.models.places import Places, Span

__all__ = (
    "NETWORKS",
    "TRANSFORMERS",
    "Model",
    "Places",
    "Span",
    "Tap",
    "Tapped",
    "Variables",
    "create",
    "find_tap",
    "taps",
)
