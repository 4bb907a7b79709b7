"""Devices and processes: one mesh axis, `data`, over all; one device is the trivial case (DESIGN section 3).

Every process runs the same program on the same numbers, and reads and feeds to its own devices their share of each
batch. It writes its own rows of the large arrays; process 0 writes the other files.
"""

import functools
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from i2x_jax.config import InputError
from i2x_jax.devices import inside

# After so many seconds without a sign of life a process counts as lost; threads of JAX give it, however busy it is.
HEARTBEAT_TIMEOUT = 30

Result = TypeVar("Result")


def start(coordinator: str | None, num_processes: int | None, process_id: int | None, cluster: bool) -> None:
    """Joins this process to the others of a run; to be called before anything else uses JAX.

    Args:
      coordinator: 'host:port' of process 0.
      num_processes: how many there are.
      process_id: which this is, from 0.
      cluster: ask the cluster (SLURM, Cloud TPU, ...) for all three instead.

    Raises:
      InputError: some of the three are missing, or the processes cannot be joined.
    """
    given = (coordinator, num_processes, process_id)
    if None in given and not (cluster and given == (None, None, None)):
        raise InputError(
            f"--coordinator={coordinator} --num_processes={num_processes} --process_id={process_id}; allowed: all "
            "three, or --cluster alone where the cluster knows them"
        )
    if process_id is not None and not 0 <= process_id < num_processes:
        raise InputError(
            f"--process_id is {process_id}; allowed: 0 to {num_processes - 1}, one less than --num_processes"
        )
    try:
        jax.distributed.initialize(*given, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"the processes cannot be joined ({reason}); allowed: one command for each --process_id, all started "
            "within minutes, and a --coordinator that all can reach"
        ) from None


def check_devices() -> None:
    """Raises `InputError` where JAX finds nothing to compute on; to be called behind `start`."""
    try:
        jax.devices()
    # The second is all that JAX says of a platform that is installed for and has no device.
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or ["no device of that kind"])[0][:200]
        raise InputError(
            f"JAX finds nothing to compute on, JAX_PLATFORMS being {jax.config.jax_platforms!r} ({reason}); allowed: a "
            "platform that this machine has and jaxlib is installed for, such as cpu; set or unset JAX_PLATFORMS"
        ) from None


def lost(error: BaseException) -> bool:
    """Whether an exception says that another process of the run has ended."""
    text = str(error)
    return jax.process_count() > 1 and any(word in text for word in ("Gloo", "NCCL", "coordination", "heartbeat"))


def is_main() -> bool:
    """Whether this process writes the files."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        inside.synchronize(name, NamedSharding(mesh(), PartitionSpec("data")))


@functools.cache
def mesh() -> jax.sharding.Mesh:
    """The mesh of all devices of all processes along the axis `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def shard(tree: Any) -> Any:
    """Arrays `[B, ...]`, whole in every process, with their rows dealt over all devices; B must divide evenly."""
    return _place(tree, NamedSharding(mesh(), PartitionSpec("data")))


def own_rows_of(count: int) -> np.ndarray | slice:
    """Which rows of a batch of `count` belong to this process's devices, ascending; all of them where it is alone."""
    if jax.process_count() == 1:
        return slice(None)
    dealt = NamedSharding(mesh(), PartitionSpec("data")).addressable_devices_indices_map((count,))
    return np.unique(np.concatenate([np.arange(count)[index] for (index,) in dealt.values()]))


def shard_own(tree: Any, count: int) -> Any:
    """Arrays `[count, ...]` dealt as by `shard`, of which each process has the rows of `own_rows_of(count)` only."""
    if jax.process_count() == 1:
        return shard(tree)
    own, sharding = own_rows_of(count), NamedSharding(mesh(), PartitionSpec("data"))

    def dealt(values):
        return jax.make_array_from_callback(
            (count, *values.shape[1:]),
            sharding,
            lambda index: values[np.searchsorted(own, np.arange(count)[index[0]])],
        )

    return jax.tree.map(dealt, tree)


def summed(values: np.ndarray) -> np.ndarray:
    """The sum over all processes of an array of each, float64; the same in all of them."""
    values = np.asarray(values, np.float64)
    if jax.process_count() == 1:
        return values
    # As words: JAX has no float64 by default. Of several devices of a process one hands over what it has.
    words = values.reshape(-1).view(np.uint32)
    own = own_rows_of(jax.device_count())
    parts = np.zeros((len(own), len(words)), np.uint32)
    parts[0] = words
    return fetch(shard_own(parts, jax.device_count())).view(np.float64).sum(0).reshape(values.shape)


def replicate(tree: Any) -> Any:
    """Arrays copied whole to every device."""
    return _place(tree, NamedSharding(mesh(), PartitionSpec()))


def _place(tree, sharding):
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    # Each process hands out what its own devices need.
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(np.shape(leaf), sharding, lambda index: leaf[index]), tree
    )


def fetch(tree: Any) -> Any:
    """Whole arrays in host memory, in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def whole(leaf):
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return np.asarray(leaf)
        if leaf.is_fully_replicated:
            return np.asarray(leaf.addressable_data(0))
        return inside.gather(leaf, NamedSharding(mesh(), PartitionSpec()))

    return jax.tree.map(whole, tree)


def ahead(results: Iterator[Result]) -> Iterator[Result]:
    """The same results, each handed on when the next has been dispatched: devices compute while the host reads."""
    held = []
    for result in results:
        held.append(result)
        if len(held) > 1:
            yield held.pop(0)
    yield from held


def own_rows(array: jax.Array) -> Iterator[tuple[slice, np.ndarray]]:
    """The rows of an array that `shard` dealt to this process: where they belong, and their values."""
    for piece in array.addressable_shards:
        start = piece.index[0].start or 0
        yield slice(start, start + len(piece.data)), np.asarray(piece.data)


def abstract(tree: Any) -> Any:
    """Shapes and dtypes of a tree, to be restored as copies on every device."""
    replicated = NamedSharding(mesh(), PartitionSpec())
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated), tree)


def divisible(batch_size: int) -> int:
    """The smallest batch size of at least `batch_size` that can be dealt over the devices."""
    return -(-batch_size // jax.device_count()) * jax.device_count()
