"""Classifiers that split into a feature map and a head."""

from i2x_jax.models.model import Model, Tap, Variables
from i2x_jax.models.networks import NETWORKS, create, find_tap, taps
from i2x_jax.models.places import Places, Span

__all__ = ("NETWORKS", "Model", "Places", "Span", "Tap", "Variables", "create", "find_tap", "taps")
