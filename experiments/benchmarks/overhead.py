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

import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Iterator

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
# Otherwise libtpu asks the network what machine this is, and gives up where none answers.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

import jax
import numpy as np
from absl import app, flags

from i2x_jax import models
from i2x_jax.pipeline.programs import batch_programs, cost, forward_programs, layout_over

# Network: image shape, classes, images a device.
NETWORKS = {
    "cnn": ((28, 28, 1), 10, 256),
    "resnet20": ((32, 32, 3), 10, 256),
    "resnet18": ((32, 32, 3), 10, 256),
    "resnet50": ((224, 224, 3), 1000, 64),
}
TPU = "v5e:2x2"
COUNTED = ("operations", "bytes")

_NETWORKS = flags.DEFINE_list("networks", list(NETWORKS), f"Some of {', '.join(NETWORKS)}.")
_CHECKPOINTS = flags.DEFINE_integer("checkpoints", 16, "How many a batch is seen by.", lower_bound=3)
_PROTOTYPES = flags.DEFINE_integer("prototypes", 20, "How many there are.", lower_bound=2)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 0, "Images a device; 0 for that of each network.", lower_bound=0)
_JSON = flags.DEFINE_string("json", None, "The file that the figures are written to.")
flags.register_validator(
    "networks", lambda names: set(names) <= set(NETWORKS), message=f"allowed: {', '.join(NETWORKS)}"
)


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
    of_batch = batch_programs(model, variables, images, _CHECKPOINTS.value, _PROTOTYPES.value, layout)
    forward = forward_programs(model, variables, images, layout)
    # The backbone is compiled once.
    costs = {program.name: cost(program)._asdict() for program in (*forward, *of_batch[1:])}
    found = {"batch_size": each_has, "devices": len(devices), "programs": costs}
    for told in COUNTED:
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
                for told in COUNTED
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
