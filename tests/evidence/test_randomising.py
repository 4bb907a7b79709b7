"""Layers in the order in which an image meets them, and their entries in another order."""

import jax
import numpy as np
import pytest
from own_networks import CHECKPOINTS, PLAIN

from i2x_jax import models
from i2x_jax.evidence.randomising import layers_of, order_of_use, randomised
from tests.helpers import drawn, tiny_model, tiny_variables


def names(variables, layers):
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
    return [[paths[leaf] for leaf in layer] for layer in layers]


def test_a_network_of_this_project_from_its_first_convolution_to_its_classifier():
    found = names(tiny_variables(), layers_of(tiny_model(), tiny_variables(), (8, 8, 1)))
    assert len(found) == 5
    for number, layer in enumerate(found[:4], 1):
        assert layer[0] == f"['params']['conv{number}']['conv']['kernel']"
        assert all(f"conv{number}" in each for each in layer)
        assert len(layer) == 5  # with mean, variance, scale and shift of BatchNorm
    assert found[4] == ["['params']['classifier']['kernel']", "['params']['classifier']['bias']"]


@pytest.mark.parametrize("jitted", [False, True])
def test_one_of_a_user_s_own_whatever_its_arrays_are_called(jitted):
    features, head = (jax.jit(each) if jitted else each for each in (PLAIN.features, PLAIN.head))
    order = order_of_use(lambda held: head(held, features(held, np.zeros((1, 8, 8, 1), np.uint8))), CHECKPOINTS[0])
    leaves = sorted(CHECKPOINTS[0])
    assert [leaves[leaf] for leaf in order] == ["kernel", "shift", "classifier", "bias"]


def test_what_no_logit_depends_on_is_in_no_layer():
    tree = {"a": np.ones((2, 2)), "b": np.ones(2), "unused": np.ones((3, 3))}
    assert order_of_use(lambda held: held["b"] @ held["a"], tree) == [1, 0]


def test_entries_change_places_and_others_stay():
    variables = tiny_variables()
    layers = layers_of(tiny_model(), variables, (8, 8, 1))
    moved = randomised(variables, layers[-1] + layers[1], seed=0)
    before, after = jax.tree.leaves(variables), jax.tree.leaves(moved)
    for leaf, (one, other) in enumerate(zip(before, after, strict=True)):
        if leaf in layers[-1] + layers[1]:
            np.testing.assert_array_equal(np.sort(one, None), np.sort(other, None))
            assert (np.asarray(one) != other).any()
        else:
            np.testing.assert_array_equal(one, other)
    again, another = randomised(variables, layers[-1], 0), randomised(variables, layers[-1], 1)
    kernel = again["params"]["classifier"]["kernel"]
    np.testing.assert_array_equal(kernel, moved["params"]["classifier"]["kernel"])
    assert (kernel != another["params"]["classifier"]["kernel"]).any()


def test_branches_and_shortcuts_each_belong_to_a_layer():
    model = models.create("resnet20", num_classes=3, image_shape=(16, 16, 1), width=2)
    variables = drawn(model)
    layers = layers_of(model, variables, (16, 16, 1))
    assert sorted(leaf for layer in layers for leaf in layer) == list(range(len(jax.tree.leaves(variables))))
    assert len(layers) == 20
    assert names(variables, layers)[0][0] == "['params']['stem']['conv']['kernel']"
