"""Where arrays live: one mesh axis, `data`, over all devices; one device is the trivial case (DESIGN section 3)."""

import functools
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


@functools.cache
def mesh() -> jax.sharding.Mesh:
    """The mesh of all devices along the axis `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def shard(tree: Any) -> Any:
    """Arrays `[B, ...]` with their rows dealt over the devices; B must be a multiple of their number."""
    return jax.device_put(tree, NamedSharding(mesh(), PartitionSpec("data")))


def replicate(tree: Any) -> Any:
    """Arrays copied whole to every device."""
    return jax.device_put(tree, NamedSharding(mesh(), PartitionSpec()))


def abstract(tree: Any) -> Any:
    """Shapes and dtypes of a tree, to be restored as copies on every device."""
    replicated = NamedSharding(mesh(), PartitionSpec())
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated), tree)


def divisible(batch_size: int) -> int:
    """The smallest batch size of at least `batch_size` that can be dealt over the devices."""
    return -(-batch_size // jax.device_count()) * jax.device_count()
