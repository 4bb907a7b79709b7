"""The last layer fitted anew: planted truth, invariances, two classes."""

import numpy as np
import pytest
from scipy.special import softmax

from i2x_jax.refinement.reweighting import last_layer

# Logistic regression is solved to a gradient of 1e-4.
SOLVED = {"rtol": 1e-2, "atol": 1e-2}


def features(count, classes, seed=0):
    """Features that hold the class, one that says nothing, on scales of their own; and labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    clear = np.eye(classes)[labels] + rng.normal(0, 0.15, (count, classes))
    return np.concatenate([clear, rng.normal(size=(count, 1))], 1) * np.geomspace(0.1, 10, classes + 1) + 3, labels


@pytest.mark.parametrize("classes", [2, 4])
def test_what_tells_the_class_is_weighted_and_what_does_not_is_not(classes):
    weights, bias = last_layer(*features(120, classes), seed=0)
    assert (weights.shape, bias.shape) == ((classes + 1, classes), (classes,))
    found, labels = features(400, classes, seed=1)
    assert ((found @ weights + bias).argmax(1) == labels).mean() > 0.97
    # By its own scale, to which the penalty is applied as well.
    size = np.abs(weights - weights.mean(1, keepdims=True)).max(1) * np.geomspace(0.1, 10, classes + 1)
    assert size[-1] < 0.1 * size[:-1].min()


def test_scale_and_origin_of_the_features_do_not_matter():
    found, labels = features(90, 3)
    scale, origin = np.array([5.0, 0.2, 1.0, 30.0]), np.array([1.0, -2.0, 0.0, 9.0])
    one, two = last_layer(found, labels, seed=0), last_layer(found * scale + origin, labels, seed=0)
    confidences = (softmax(x @ w + b, 1) for x, (w, b) in ((found, one), (found * scale + origin, two)))
    np.testing.assert_allclose(*confidences, **SOLVED)


def test_noise_is_answered_with_the_shares_of_the_classes():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), (100, 60, 40))
    found = rng.normal(size=(200, 5))
    confidence = softmax(found @ (layer := last_layer(found, labels, seed=0))[0] + layer[1], 1)
    np.testing.assert_allclose(confidence, np.tile([0.5, 0.3, 0.2], (200, 1)), atol=0.06)
