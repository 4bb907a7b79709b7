"""What measuring costs beside a bare forward pass, as the compiler counts it: operations, and bytes read and written.

    python experiments/benchmarks/overhead.py --networks=cnn,resnet50

Everything that a batch of the evidence pass runs (DESIGN 2.3 to 2.5), summed over all checkpoints and divided by their
number, over one forward pass to logits; and the same without the ledger. Programs are compiled for abstract arrays and
not run, for the devices at hand and, where libtpu is installed, for a TPU that need not be there; a batch is dealt over
all devices of a kind, so many images each, and every figure is of one device. Bytes are those of every operation after
fusion, so they count what stays in a cache too. Networks are cut at their last stage, behind which the head is linear:
behind other heads there are loops, of which the compiler counts one turn.

Beside them stand the temporary memory of the largest program, which a device needs on top of arguments and results, as
the compiler plans it, and that of the bare forward pass; and how often devices exchange something: collectives in the
compiled text, times how often a batch runs the program. To see them on a CPU, make it several devices:

    XLA_FLAGS=--xla_force_host_platform_device_count=4 python experiments/benchmarks/overhead.py --networks=cnn
"""

import functools
import importlib.util
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
# Otherwise libtpu asks the network what machine this is, and gives up where none answers.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

import jax
import numpy as np
from absl import app, flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from i2x_jax import models
from i2x_jax.evidence import measuring, prototypes
from i2x_jax.explanation.rivals import MANY_CLASSES, RIVALS
from i2x_jax.models import Model

# Network: image shape, classes, images a device.
NETWORKS = {
    "cnn": ((28, 28, 1), 10, 256),
    "resnet20": ((32, 32, 3), 10, 256),
    "resnet18": ((32, 32, 3), 10, 256),
    "resnet50": ((224, 224, 3), 1000, 64),
}
TPU = "v5e:2x2"
COUNTED = {"flops": "operations", "bytes accessed": "bytes"}
PCA_DIMS = 32
# Where devices exchange something; on some it is begun and ended, and counted where it begins.
COLLECTIVE = re.compile(r" (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(")

_NETWORKS = flags.DEFINE_list("networks", list(NETWORKS), f"Some of {', '.join(NETWORKS)}.")
_CHECKPOINTS = flags.DEFINE_integer("checkpoints", 16, "How many a batch is seen by.", lower_bound=3)
_PROTOTYPES = flags.DEFINE_integer("prototypes", 20, "How many there are.", lower_bound=2)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 0, "Images a device; 0 for that of each network.", lower_bound=0)
_JSON = flags.DEFINE_string("json", None, "The file that the figures are written to.")
flags.register_validator(
    "networks", lambda names: set(names) <= set(NETWORKS), message=f"allowed: {', '.join(NETWORKS)}"
)


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


def layout_over(devices: list[jax.Device]) -> Layout:
    """The layout over some devices, as that of a run (`devices.mesh`)."""
    mesh = Mesh(np.array(devices), ("data",))
    return Layout(NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec()))


def forward_programs(model: Model, variables: Any, images: jax.ShapeDtypeStruct, layout: Layout) -> list[Program]:
    """A bare forward pass."""
    features = layout.of(jax.eval_shape(model.features, variables, images), images.shape[0])
    return [
        Program("features", 1, False, model.features, (variables, images)),
        Program("head", 1, False, model.head, (variables, features)),
    ]


def programs(
    model: Model, variables: Any, images: jax.ShapeDtypeStruct, layout: Layout, steps: int, count: int
) -> list[Program]:
    """What `pipeline.measure.measure_batch` runs for a batch.

    Args:
      model: with a linear head.
      variables: abstract, and so `images` `[B, H, W, C]`.
      images: of a batch.
      layout: of all arrays.
      steps: checkpoints, T.
      count: prototypes, K.
    """
    batch, (h, w, d), dims = images.shape[0], model.feature_shape, min(PCA_DIMS, model.feature_shape[2])
    shaped = functools.partial(jax.ShapeDtypeStruct, sharding=layout.whole)
    dealt = functools.partial(jax.ShapeDtypeStruct, sharding=layout.dealt)
    labels, mask = dealt((batch,), np.int32), dealt((batch,), np.bool_)
    features, blank = dealt((batch, h, w, d), np.float32), shaped((1, h, w, d), np.float32)
    pca = prototypes.Pca(*(shaped(shape, np.float32) for shape in ((d,), (dims, d), (dims,))))
    assign, centroids = measuring.assign_locations.__wrapped__, shaped((count, dims), np.float32)
    places = layout.of(jax.eval_shape(assign, pca, centroids, features), batch)
    (num_classes,) = jax.eval_shape(model.head, variables, features).shape[1:]
    kept = dealt((batch, RIVALS), np.int32) if num_classes > RIVALS else None
    settings = measuring.Measuring(count, narrow=num_classes > MANY_CLASSES)
    take = functools.partial(measuring.take.__wrapped__, model, settings)
    account = functools.partial(measuring.account.__wrapped__, model)
    given = (variables, features, labels, places, blank, kept)
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
            (between, places, halves, labels, mask),
        ),
    ]


def cost(program: Program) -> dict[str, float]:
    """What one run of a program costs one device, as its compiler tells: see above."""
    compiled = jax.jit(program.function).lower(*program.arguments).compile()
    found = {told: float(compiled.cost_analysis()[name]) for name, told in COUNTED.items()}
    found["temporary_bytes"] = compiled.memory_analysis().temp_size_in_bytes
    return found | {"collectives": len(COLLECTIVE.findall(compiled.as_text()))}


def kinds() -> Iterator[tuple[str, list[jax.Device]]]:
    """The devices at hand and, where they can be compiled for, those of a TPU."""
    yield jax.default_backend(), jax.devices()
    if jax.default_backend() == "tpu":
        return
    if importlib.util.find_spec("libtpu") is None:
        print("TPU: left out, because libtpu is not installed", flush=True)
        return
    from jax.experimental import topologies

    yield f"TPU {TPU}", topologies.get_topology_desc(TPU, platform="tpu").devices


def measured(name: str, devices: list[jax.Device]) -> dict:
    """The figures of a network on devices of a kind, of each of them."""
    shape, classes, batch = NETWORKS[name]
    layout, each_has = layout_over(devices), _BATCH_SIZE.value or batch
    model = models.create(name, num_classes=classes, image_shape=shape)
    variables = layout.of(jax.eval_shape(model.init, jax.random.key(0)))
    images = jax.ShapeDtypeStruct((each_has * len(devices), *shape), np.uint8, sharding=layout.dealt)
    of_batch = programs(model, variables, images, layout, _CHECKPOINTS.value, _PROTOTYPES.value)
    forward = forward_programs(model, variables, images, layout)
    # The backbone is compiled once.
    costs = {program.name: cost(program) for program in (*forward, *of_batch[1:])}
    found = {"batch_size": each_has, "devices": len(devices), "programs": costs}
    for told in COUNTED.values():
        bare = sum(costs[program.name][told] for program in forward)
        for ledger in (False, True):
            every = sum(each.times * costs[each.name][told] for each in of_batch if ledger or not each.ledger)
            key = f"{told}_over_forward" + ("" if ledger else "_without_ledger")
            found[key] = every / _CHECKPOINTS.value / bare - 1
        found[f"forward_{told}_per_image"] = bare / each_has
    found["temporary_bytes"] = max(each["temporary_bytes"] for each in costs.values())
    found["forward_temporary_bytes"] = max(costs[program.name]["temporary_bytes"] for program in forward)
    found["collectives"] = sum(each.times * costs[each.name]["collectives"] for each in of_batch)
    return found


def main(argv: list[str]) -> None:
    """Compiles, prints, writes."""
    del argv
    steps, count = _CHECKPOINTS.value, _PROTOTYPES.value
    report = {"checkpoints": steps, "prototypes": count, "networks": {}}
    print(f"{steps} checkpoints, {count} prototypes; over a bare forward pass, in % (without the ledger)")
    heads = [f"{title:>20}" for title in ("operations", "bytes", "temporary MB (bare)")]
    print(f"{'network':<10} {'devices':<13} {'images':>6} {' '.join(heads)} {'collectives':>12}", flush=True)
    for platform, devices in kinds():
        for name in _NETWORKS.value:
            found = measured(name, devices)
            report["networks"].setdefault(name, {})[platform] = found
            figures = [
                f"{100 * found[f'{told}_over_forward']:+.2f} "
                f"({100 * found[f'{told}_over_forward_without_ledger']:+.2f})"
                for told in COUNTED.values()
            ]
            sizes = [found[f"{which}temporary_bytes"] / 1e6 for which in ("", "forward_")]
            figures.append(f"{sizes[0]:.1f} ({sizes[1]:.1f})")
            row = " ".join(f"{figure:>20}" for figure in figures)
            where = f"{len(devices)} x {platform}"
            print(f"{name:<10} {where:<13} {found['batch_size']:>6} {row} {found['collectives']:>12}", flush=True)
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
