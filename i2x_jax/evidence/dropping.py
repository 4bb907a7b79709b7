"""What a network answers with the locations of prototypes left out of its pool, no training (DESIGN 2.12, 2.13)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from i2x_jax.evidence import measuring, prototypes
from i2x_jax.evidence.ledger import prototype_sums
from i2x_jax.models.model import Model, Variables


def dropped_logits(sums: jax.Array, members: jax.Array, weights: jax.Array, bias: jax.Array, places: int) -> jax.Array:
    """Logits `[B, K+1, M]` with each prototype left out, and last with none.

    The pool is the mean over the locations that remain; where none does, the bias alone is left.

    Args:
      sums: `[B, K, d]` of `ledger.prototype_sums`.
      members: `[B, K]`, locations of each prototype in each image.
      weights: `[d, M]` of the linear head.
      bias: `[M]`.
      places: h*w.
    """
    evidence = jnp.matmul(sums, weights, precision="highest")
    total = evidence.sum(1, keepdims=True)
    remaining = places - members
    # An image without a prototype is multiplied by 1 and keeps its logits to the last bit.
    mean = (total - evidence) * (places / jnp.maximum(remaining, 1))[..., None]
    without = jnp.where((remaining > 0)[..., None], mean, 0)
    return jnp.concatenate([without, total], axis=1) + bias


@functools.partial(jax.jit, static_argnames=("model", "num_prototypes"))
def dropped_predictions(
    model: Model, variables: Variables, features: jax.Array, assignments: jax.Array, num_prototypes: int
) -> jax.Array:
    """Classes predicted with each prototype left out, and last with none: int `[B, K+1]`.

    Args:
      model: one whose head is a global average pool and a linear layer.
      variables: of the checkpoint.
      features: `[B, h, w, d]` of `measuring.batch_features`.
      assignments: int `[B, h, w]`, the prototype of every location.
      num_prototypes: K.
    """
    sums = prototype_sums(features, assignments, num_prototypes)
    members = jax.nn.one_hot(assignments, num_prototypes, dtype=jnp.int32).sum((1, 2))
    places = assignments.shape[1] * assignments.shape[2]
    return dropped_logits(sums, members, *model.linear_head(variables), places).argmax(-1)


def without_prototypes(model: Model, found: Mapping[str, np.ndarray], chosen: Sequence[int]) -> Model:
    """The network as one that leaves the locations of some prototypes out of its pool, all of them together.

    Its variables are those of the network as it is. Of an image that has no other locations the bias alone is left.

    Args:
      model: one whose head is a global average pool and a linear layer.
      found: the members of prototypes.npz, which are defined on the features of these variables.
      chosen: ids of the prototypes that are left out.
    """
    pca, centroids = prototypes.pca_of(found), found["centroids"]
    left_out = np.isin(np.arange(len(centroids)), chosen)

    def head(variables, features):
        assignments = measuring.assign_locations(pca, centroids, features)
        # As if there were two prototypes: those left out, first, and all others.
        either = jnp.where(jnp.asarray(left_out)[assignments], 0, 1)
        sums, members = prototype_sums(features, either, 2), jax.nn.one_hot(either, 2, dtype=jnp.int32).sum((1, 2))
        places = features.shape[1] * features.shape[2]
        return dropped_logits(sums, members, *model.linear_head(variables), places)[:, 0]

    return dataclasses.replace(model, head=head, linear_head=None)
