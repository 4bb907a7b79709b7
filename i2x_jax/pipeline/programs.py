"""The programs of a run, compiled for abstract arrays but not run: operations and memory, as the compiler counts."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from i2x_jax.evidence import measuring, prototypes
from i2x_jax.explanation.rivals import MANY_CLASSES, RIVALS
from i2x_jax.models.model import Model

PCA_DIMS = 32
# Where devices exchange something; on some it is begun and ended, and counted where it begins.
COLLECTIVE = re.compile(r" (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(")


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
    """One run of a program, as its compiler counts it for each of its devices; of a loop one turn is counted.

    Attributes:
      operations: floating-point.
      bytes: read and written by every operation after fusion, in a cache or not.
      temporary_bytes: of device memory that it needs meanwhile.
      memory: bytes of device memory beside its arguments: results, and what it needs meanwhile.
      collectives: how often it has devices exchange something.
    """

    operations: float
    bytes: float
    temporary_bytes: int
    memory: int
    collectives: int


class Layout(NamedTuple):
    """Where arrays lie: dealt over the devices by their first axis, or whole on each."""

    dealt: NamedSharding
    whole: NamedSharding

    def of(self, tree: Any, size: int = 0) -> Any:
        """Abstract arrays of these shapes, dealt where the first axis has the size of a batch; 0 for none."""

        def placed(leaf):
            where = self.dealt if size and leaf.shape[:1] == (size,) else self.whole
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

        return jax.tree.map(placed, tree)


def layout_over(devices: Sequence[jax.Device]) -> Layout:
    """The layout over some devices, which need not be there, as that of a run (`devices.mesh`)."""
    mesh = Mesh(np.array(devices), ("data",))
    return Layout(NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec()))


def cost(program: Program) -> Cost:
    """What one run of a program costs each device that its arguments lie on; the first one, where they say none."""
    compiled = jax.jit(program.function).lower(*program.arguments).compile()
    found, memory = compiled.cost_analysis(), compiled.memory_analysis()
    meanwhile, results = (0, 0) if memory is None else (memory.temp_size_in_bytes, memory.output_size_in_bytes)
    exchanged = len(COLLECTIVE.findall(compiled.as_text()))
    return Cost(
        float(found["flops"]), float(found["bytes accessed"]), int(meanwhile), int(meanwhile + results), exchanged
    )


def forward_programs(model: Model, variables: Any, images: jax.ShapeDtypeStruct, layout: Layout) -> list[Program]:
    """A bare forward pass of abstract images `[B, H, W, C]`."""
    tapped = layout.of(jax.eval_shape(model.cut, variables, images), images.shape[0])
    return [
        Program("features", 1, False, model.cut, (variables, images)),
        Program("head", 1, False, model.logits_of, (variables, tapped)),
    ]


def batch_programs(
    model: Model, variables: Any, images: jax.ShapeDtypeStruct, steps: int, count: int, layout: Layout
) -> list[Program]:
    """What `pipeline.measure.measure_batch` runs for a batch, of three checkpoints or more.

    Args:
      model: with a linear head.
      variables: abstract, and so `images` `[B, H, W, C]`.
      images: of a batch.
      steps: checkpoints, T.
      count: prototypes, K.
      layout: of all arrays.
    """
    batch, (h, w, d), dims = images.shape[0], model.feature_shape, min(PCA_DIMS, model.feature_shape[2])
    shaped = functools.partial(jax.ShapeDtypeStruct, sharding=layout.whole)
    dealt = functools.partial(jax.ShapeDtypeStruct, sharding=layout.dealt)
    labels, mask = dealt((batch,), np.int32), dealt((batch,), np.bool_)
    features, blank = dealt((batch, h, w, d), np.float32), shaped((1, h, w, d), np.float32)
    pca = prototypes.Pca(*(shaped(shape, np.float32) for shape in ((d,), (dims, d), (dims,))))
    assign, centroids = measuring.assign_locations.__wrapped__, shaped((count, dims), np.float32)
    places = layout.of(jax.eval_shape(assign, pca, centroids, features), batch)
    tapped = layout.of(jax.eval_shape(model.cut, variables, images), batch)
    (num_classes,) = jax.eval_shape(model.logits_of, variables, tapped).shape[1:]
    kept = dealt((batch, RIVALS), np.int32) if num_classes > RIVALS else None
    settings = measuring.Measuring(count, narrow=num_classes > MANY_CLASSES)
    take = functools.partial(measuring.take.__wrapped__, model, settings)
    account = functools.partial(measuring.account.__wrapped__, model)
    given = (variables, tapped, labels, places, blank, kept)
    taken = layout.of(jax.eval_shape(take, *given), batch)
    between = measuring.Between((variables,) * 2, (blank,) * 2, (taken.end,) * 2)
    accounts = jax.eval_shape(account, between, places, labels, mask, kept)
    halves = layout.of(accounts.account, batch)
    class_sums = functools.partial(measuring.class_sums.__wrapped__, num_classes=num_classes)
    path_differences = functools.partial(measuring.path_differences.__wrapped__, model, all_kept=kept is None)
    sums = layout.of({"contribution": jax.eval_shape(class_sums, taken.evidence, labels, mask)})
    of_interval = layout.of({"seeing": accounts.seeing, "weighing": accounts.weighing, "bias": accounts.bias})
    added = measuring.added.__wrapped__
    return [
        Program("features", steps, False, model.cut, (variables, images)),
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
            (between, places, halves, labels, mask),
        ),
    ]
