"""Layers of a network randomised one after the other, the last first (DESIGN 2.14).

Adebayo et al. 2018, arXiv:1810.03292: an explanation that stays as it was says nothing of what was learned. Here the
entries of each array change places, which needs no knowledge of how a network from elsewhere was initialised, and
keeps their law.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from i2x_jax.models.model import Model, Variables


def layers_of(model: Model, variables: Variables, image_shape: tuple[int, int, int]) -> list[list[int]]:
    """The arrays of a network by layer, in the order in which an image meets them.

    A layer begins with an array of two or more axes (a kernel); those of fewer that come next belong to it.

    Args:
      model: the classifier.
      variables: of it.
      image_shape: (H, W, C).

    Returns:
      Numbers of leaves of `variables`; those that no logit depends on are in none.
    """
    images = np.zeros((1, *image_shape), np.uint8)
    order = order_of_use(lambda variables: model.logits(variables, images), variables)
    leaves, layers = jax.tree.leaves(variables), []
    for leaf in order:
        if not layers or np.ndim(leaves[leaf]) >= 2:
            layers.append([])
        layers[-1].append(leaf)
    return layers


def order_of_use(function: Callable[[Any], Any], tree: Any) -> list[int]:
    """Numbers of the leaves of a tree in the order in which a function first computes with them; traced, not run."""
    closed = jax.make_jaxpr(function)(tree)
    found = _used(closed.jaxpr, dict(zip(closed.jaxpr.invars, range(len(closed.jaxpr.invars)), strict=True)))
    return list(dict.fromkeys(found))


def _used(jaxpr, numbers):
    """Numbers of variables in the order of their use, into programs within the program; `numbers` grows."""
    for equation in jaxpr.eqns:
        # Literals have no number; what only passes an array on (another type or shape) keeps it.
        own = [numbers[each] for each in equation.invars if not _literal(each) and each in numbers]
        inner = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
        inner = getattr(inner, "jaxpr", inner)
        if inner is not None and len(inner.invars) == len(equation.invars):
            passed = zip(inner.invars, equation.invars, strict=True)
            yield from _used(inner, {a: numbers[b] for a, b in passed if not _literal(b) and b in numbers})
        elif len(equation.invars) == 1 and own and equation.primitive.name in PASSING:
            numbers[equation.outvars[0]] = own[0]
        else:
            yield from own


PASSING = ("convert_element_type", "reshape", "broadcast_in_dim", "transpose", "squeeze", "copy")


def _literal(variable):
    return hasattr(variable, "val")


def randomised(variables: Variables, leaves: list[int], seed: int) -> Variables:
    """Variables in which the entries of some leaves have changed places, each drawn by the seed and its number."""
    flat, structure = jax.tree.flatten(variables)
    for number in leaves:
        values = np.asarray(flat[number])
        order = np.random.default_rng((seed, number)).permutation(values.size)
        flat[number] = values.ravel()[order].reshape(values.shape)
    return jax.tree.unflatten(structure, flat)
