"""The programs of a run, compiled for abstract arrays but not run: operations and memory, as the compiler counts."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from i2x_jax.evidence import measuring, prototypes
from i2x_jax.explanation.rivals import MANY_CLASSES, RIVALS
from i2x_jax.models.model import Model

PCA_DIMS = 32


class Program(NamedTuple):
    """One program of a batch.

    Attributes:
      name: of the function.
      times: how often a batch runs it.
      ledger: whether it is left out without a ledger.
      function: of the arguments.
      arguments: abstract.
    """

    name: str
    times: int
    ledger: bool
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class Cost(NamedTuple):
    """One run of a program, as its compiler counts it.

    Attributes:
      operations: floating-point.
      bytes: read and written by every operation after fusion, in a cache or not.
      memory: bytes of device memory beside its arguments: results, and what it needs meanwhile.
    """

    operations: float
    bytes: float
    memory: int


def cost(program: Program, device: jax.Device) -> Cost:
    """What one run of a program costs on a device, which need not be there; of a loop one turn is counted."""
    where = SingleDeviceSharding(device)
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), program.arguments
    )
    compiled = jax.jit(program.function).lower(*arguments).compile()
    found, memory = compiled.cost_analysis(), compiled.memory_analysis()
    needed = 0 if memory is None else memory.temp_size_in_bytes + memory.output_size_in_bytes
    return Cost(float(found["flops"]), float(found["bytes accessed"]), int(needed))


def forward_programs(model: Model, variables: Any, images: jax.ShapeDtypeStruct) -> list[Program]:
    """A bare forward pass of abstract images `[B, H, W, C]`."""
    features = jax.eval_shape(model.features, variables, images)
    return [
        Program("features", 1, False, model.features, (variables, images)),
        Program("head", 1, False, model.head, (variables, features)),
    ]


def batch_programs(model: Model, variables: Any, images: jax.ShapeDtypeStruct, steps: int, count: int) -> list[Program]:
    """What `pipeline.measure.measure_batch` runs for a batch, of three checkpoints or more.

    Args:
      model: with a linear head.
      variables: abstract, and so `images` `[B, H, W, C]`.
      images: of a batch.
      steps: checkpoints, T.
      count: prototypes, K.
    """
    batch, (h, w, d), shaped = images.shape[0], model.feature_shape, jax.ShapeDtypeStruct
    labels, mask = shaped((batch,), np.int32), shaped((batch,), np.bool_)
    features, blank = shaped((batch, h, w, d), np.float32), shaped((1, h, w, d), np.float32)
    dims = min(PCA_DIMS, d)
    pca = prototypes.Pca(*(shaped(shape, np.float32) for shape in ((d,), (dims, d), (dims,))))
    assign = measuring.assign_locations.__wrapped__
    places = jax.eval_shape(assign, pca, centroids := shaped((count, dims), np.float32), features)
    (num_classes,) = jax.eval_shape(model.head, variables, features).shape[1:]
    kept = shaped((batch, RIVALS), np.int32) if num_classes > RIVALS else None
    settings = measuring.Measuring(count, narrow=num_classes > MANY_CLASSES)
    take = functools.partial(measuring.take.__wrapped__, model, settings)
    account = functools.partial(measuring.account.__wrapped__, model)
    given = (variables, features, labels, places, blank, kept)
    taken = jax.eval_shape(take, *given)
    between = measuring.Between((variables,) * 2, (blank,) * 2, (taken.end,) * 2)
    accounts = jax.eval_shape(account, between, places, labels, mask, kept)
    class_sums = functools.partial(measuring.class_sums.__wrapped__, num_classes=num_classes)
    path_differences = functools.partial(measuring.path_differences.__wrapped__, model, all_kept=kept is None)
    sums = {"contribution": jax.eval_shape(class_sums, taken.evidence, labels, mask)}
    of_interval = {"seeing": accounts.seeing, "weighing": accounts.weighing, "bias": accounts.bias}
    added = measuring.added.__wrapped__
    return [
        Program("features", steps, False, model.features, (variables, images)),
        Program("assign_locations", 1, False, assign, (pca, centroids, features)),
        Program("take", steps, False, take, given),
        Program("class_sums", steps, False, class_sums, (taken.evidence, labels, mask)),
        Program("largest", steps, False, measuring.largest.__wrapped__, (taken.error, mask)),
        Program("added", steps, False, added, (sums, sums)),
        Program("account", steps - 1, True, account, (between, places, labels, mask, kept)),
        Program("added, of intervals", steps - 1, True, added, (of_interval, of_interval)),
        Program("summed", steps, False, measuring.summed.__wrapped__, (taken.sums, mask)),
        Program("path_error", steps, True, measuring.path_error.__wrapped__, (taken.end, mask)),
        Program(
            "path_differences",
            steps - 2,
            True,
            path_differences,
            (between, places, accounts.account, labels, mask),
        ),
    ]
