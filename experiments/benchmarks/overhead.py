"""What measuring costs beside a bare forward pass, as the compiler counts it: operations, and bytes read and written.

    python experiments/benchmarks/overhead.py --networks=cnn,resnet50

Everything that a batch of the evidence pass runs (DESIGN 2.3 to 2.5), summed over all checkpoints and divided by their
number, over one forward pass to logits; and the same without the ledger. Programs are compiled for abstract arrays and
not run, for the device at hand and, where libtpu is installed, for a TPU that need not be there. Bytes are those of
every operation after fusion, so they count what stays in a cache too. Networks are cut at their last stage, behind
which the head is linear: behind other heads there are loops, of which the compiler counts one turn.
"""

import functools
import importlib.util
import json
import os
import pathlib
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
from jax.sharding import SingleDeviceSharding

from i2x_jax import models
from i2x_jax.evidence import measuring, prototypes
from i2x_jax.explanation.rivals import MANY_CLASSES, RIVALS
from i2x_jax.models import Model

# Network: image shape, classes, images a batch.
NETWORKS = {
    "cnn": ((28, 28, 1), 10, 256),
    "resnet20": ((32, 32, 3), 10, 256),
    "resnet18": ((32, 32, 3), 10, 256),
    "resnet50": ((224, 224, 3), 1000, 64),
}
TPU = "v5e:2x2"
COUNTED = {"flops": "operations", "bytes accessed": "bytes"}
PCA_DIMS = 32

_NETWORKS = flags.DEFINE_list("networks", list(NETWORKS), f"Some of {', '.join(NETWORKS)}.")
_CHECKPOINTS = flags.DEFINE_integer("checkpoints", 16, "How many a batch is seen by.", lower_bound=3)
_PROTOTYPES = flags.DEFINE_integer("prototypes", 20, "How many there are.", lower_bound=2)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 0, "Images a batch; 0 for that of each network.", lower_bound=0)
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


def forward_programs(model: Model, variables: Any, images: jax.ShapeDtypeStruct) -> list[Program]:
    """A bare forward pass."""
    features = jax.eval_shape(model.features, variables, images)
    return [
        Program("features", 1, False, model.features, (variables, images)),
        Program("head", 1, False, model.head, (variables, features)),
    ]


def programs(model: Model, variables: Any, images: jax.ShapeDtypeStruct, steps: int, count: int) -> list[Program]:
    """What `pipeline.measure.measure_batch` runs for a batch.

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


def cost(program: Program, device: jax.Device) -> dict[str, float]:
    """Operations and bytes of one run of a program on a device, as its compiler counts them."""
    where = SingleDeviceSharding(device)
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), program.arguments
    )
    found = jax.jit(program.function).lower(*arguments).compile().cost_analysis()
    return {told: float(found[name]) for name, told in COUNTED.items()}


def devices() -> Iterator[tuple[str, jax.Device]]:
    """The device at hand and, where that can be compiled for, one of a TPU."""
    yield jax.default_backend(), jax.devices()[0]
    if jax.default_backend() == "tpu":
        return
    if importlib.util.find_spec("libtpu") is None:
        print("TPU: left out, because libtpu is not installed", flush=True)
        return
    from jax.experimental import topologies

    yield f"TPU {TPU}", topologies.get_topology_desc(TPU, platform="tpu").devices[0]


def measured(name: str, device: jax.Device) -> dict:
    """The figures of a network on a device."""
    shape, classes, batch = NETWORKS[name]
    model = models.create(name, num_classes=classes, image_shape=shape)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((_BATCH_SIZE.value or batch, *shape), np.uint8)
    of_batch = programs(model, variables, images, _CHECKPOINTS.value, _PROTOTYPES.value)
    forward = forward_programs(model, variables, images)
    # The backbone is compiled once.
    costs = {program.name: cost(program, device) for program in (*forward, *of_batch[1:])}
    found = {"batch_size": images.shape[0], "programs": costs}
    for told in COUNTED.values():
        bare = sum(costs[program.name][told] for program in forward)
        for ledger in (False, True):
            every = sum(each.times * costs[each.name][told] for each in of_batch if ledger or not each.ledger)
            key = f"{told}_over_forward" + ("" if ledger else "_without_ledger")
            found[key] = every / _CHECKPOINTS.value / bare - 1
        found[f"forward_{told}_per_image"] = bare / images.shape[0]
    return found


def main(argv: list[str]) -> None:
    """Compiles, prints, writes."""
    del argv
    steps, count = _CHECKPOINTS.value, _PROTOTYPES.value
    report = {"checkpoints": steps, "prototypes": count, "networks": {}}
    print(f"{steps} checkpoints, {count} prototypes; over a bare forward pass, in % (without the ledger)")
    print(f"{'network':<12} {'device':<12} {'batch':>6} {'operations':>20} {'bytes':>20}", flush=True)
    for platform, device in devices():
        for name in _NETWORKS.value:
            found = measured(name, device)
            report["networks"].setdefault(name, {})[platform] = found
            figures = [
                f"{100 * found[f'{told}_over_forward']:+.2f} "
                f"({100 * found[f'{told}_over_forward_without_ledger']:+.2f})"
                for told in COUNTED.values()
            ]
            print(f"{name:<12} {platform:<12} {found['batch_size']:>6} {figures[0]:>20} {figures[1]:>20}", flush=True)
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
