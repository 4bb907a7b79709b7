"""Leaving a prototype out of the pool, against a loop over images that pools what is left through the real head."""

import jax
import numpy as np

from i2x_jax.evidence.dropping import dropped_logits, dropped_predictions, without_prototypes
from i2x_jax.evidence.measuring import assign_locations, batch_features
from i2x_jax.evidence.prototypes import Pca
from i2x_jax.training.loop import batch_logits
from tests.helpers import DEEP, planted, tiny_model, tiny_variables

K = 4


def sums_of(features, assignments):
    members = np.eye(K, dtype=np.float32)[assignments]
    return np.einsum("bhwk,bhwd->bkd", members, features) / assignments[0].size, members.sum((1, 2))


def left_out(model, variables, features, assignments, k):
    """Logits `[B, M]` without prototype k, one image after the other."""
    rows = []
    for image, places in zip(features, assignments, strict=True):
        kept = image[places != k]
        pooled = kept.mean(0) if len(kept) else np.zeros(image.shape[-1], np.float32)
        # A map of one location is its own mean.
        rows.append(model.head(variables, pooled[None, None, None])[0])
    return np.array(rows)


def test_as_a_loop_over_images_with_what_is_left_through_the_head():
    model, variables, images = tiny_model(), tiny_variables(), planted(12).images
    features = np.asarray(batch_features(model, variables, images))
    assignments = np.random.default_rng(0).integers(0, K - 1, features.shape[:3])
    assignments[3] = 1  # nothing is left of the image but the bias
    sums, members = sums_of(features, assignments)
    found = jax.jit(dropped_logits, static_argnames="places")(sums, members, *model.linear_head(variables), places=16)
    for k in range(K):
        np.testing.assert_allclose(found[:, k], left_out(model, variables, features, assignments, k), **DEEP)
    np.testing.assert_allclose(found[:, K], model.head(variables, features), **DEEP)
    np.testing.assert_array_equal(found[3, 1], model.linear_head(variables)[1])
    # No image has the last prototype: nothing is rounded another way.
    np.testing.assert_array_equal(found[:, K - 1], found[:, K])
    predicted = dropped_predictions(model, variables, features, assignments, K)
    np.testing.assert_array_equal(predicted, np.argmax(found, -1))
    assert len(np.unique(predicted[:, :K])) > 1


def test_by_hand():
    # A map of 1x3: features 3, 6 and 9 of prototypes 0, 0 and 1; the head doubles them for the second class.
    sums, members = np.float32([[[3], [3], [0]]]), np.array([[2, 1, 0]])
    found = dropped_logits(sums, members, np.float32([[1, 2]]), np.float32([10, 0]), 3)
    np.testing.assert_allclose(found, [[[19, 18], [14.5, 9], [16, 12], [16, 12]]], rtol=1e-6)


def test_a_network_without_some_prototypes_leaves_all_of_them_out_at_once():
    model, variables, images = tiny_model(), tiny_variables(), planted(12).images
    features, rng = np.asarray(batch_features(model, variables, images)), np.random.default_rng(0)
    flat = features.reshape(-1, features.shape[-1])
    pca = Pca(flat.mean(0), np.eye(flat.shape[1], dtype=np.float32)[:3], np.full(3, 1 / 3, np.float32))
    centroids = (flat[rng.choice(len(flat), K, replace=False)] - pca.mean) @ pca.components.T
    found = {**pca._asdict(), "centroids": centroids, "inertia": np.float32(0)}
    assignments = np.asarray(assign_locations(pca, centroids, features))
    for chosen in ([2], [0, 3], list(range(K))):
        without = without_prototypes(model, found, chosen)
        assert without.linear_head is None
        # As if the chosen ones were one prototype.
        expected = left_out(model, variables, features, np.where(np.isin(assignments, chosen), -1, 0), -1)
        np.testing.assert_allclose(batch_logits(without, variables, images), expected, **DEEP)
    np.testing.assert_array_equal(batch_logits(without, variables, images)[3], model.linear_head(variables)[1])
