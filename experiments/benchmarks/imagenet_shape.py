"""A run at ImageNet's shape on drawn pictures: whether memory is flat and time linear in the number of images.

    python experiments/benchmarks/imagenet_shape.py --sizes=12500,25000,50000 --json=imagenet_shape.json

Draws folders of JPEG (experiments/tools/drawn_folder.py), one of each size, trains a narrow ResNet for an epoch and
explains it, each in a process of its own. Tells, by step, time and peak memory (the run's own record), bytes on disk,
the slope of the time over images, and how long reading and decoding all pictures once takes alone. Then, from slopes
and compiled programs, what 1.28 million images and ResNet-50 need: bytes by `pipeline/needs`, and operations.
Smaller shapes (--side, --classes) are said to be so.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
import numpy as np
from absl import app, flags

from experiments.tools import drawn_folder
from i2x_jax import models
from i2x_jax.config import from_config_dict
from i2x_jax.data.dataset import Dataset, Splits
from i2x_jax.data.source import blocks
from i2x_jax.pipeline import needs
from i2x_jax.pipeline.programs import Program, batch_programs, cost, forward_programs, layout_over
from i2x_jax.results.files import read_header
from i2x_jax.results.opened_run import dataset_of
from i2x_jax.training import loop as training

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMAGENET = 1_281_167, 50_000  # training and validation images of ILSVRC 2012
HOST_STEPS = ("mapping", "contact_sheet", "report")

_SIZES = flags.DEFINE_list("sizes", ["12500", "25000", "50000"], "Training images of each run.")
_CLASSES = flags.DEFINE_integer("classes", 1000, "Classes, M.", lower_bound=2)
_SIDE = flags.DEFINE_integer("side", 224, "Pixels of a side.", lower_bound=32)
_PROTOTYPES = flags.DEFINE_integer("prototypes", 128, "Prototypes, K.", lower_bound=2)
_CHECKPOINTS = flags.DEFINE_integer("checkpoints", 8, "Checkpoints, T.", lower_bound=3)
_WIDTH = flags.DEFINE_integer("width", 8, "Width of the ResNet-18.", lower_bound=1)
_PAIRS = flags.DEFINE_integer("pairs", 45, "Pairs that are analysed (explain.max_pairs).", lower_bound=0)
_BACKBONE = flags.DEFINE_bool("backbone", True, "Whether ResNet-50 is compiled, for its operations.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where folders and runs go, and stay; a temporary one by default.")
_JSON = flags.DEFINE_string("json", None, "The file that the figures are written to.")


def settings_of(folder: pathlib.Path) -> dict[str, str | int]:
    """The settings of a run, by their names."""
    width, stem = _WIDTH.value, "imagenet" if _SIDE.value >= 128 else "cifar"
    return {
        "data.name": f"folder:{folder}",
        "data.augment": "none",
        "model.name": "resnet18",
        "model.stem": stem,
        "model.width": width,
        "train.epochs": 1,
        "train.num_checkpoints": _CHECKPOINTS.value,
        "explain.num_prototypes": _PROTOTYPES.value,
        "explain.pca_dims": min(32, 8 * width),
        "explain.restarts": 1,
        "explain.max_pairs": _PAIRS.value,
    }


def run(where: pathlib.Path, size: int) -> dict:
    """Draws, trains and explains one size, and tells what that took."""
    folder, workdir = where / f"drawn-{size}", where / f"run-{size}"
    drawn_folder.draw_folder(folder, size, 2, _CLASSES.value, _SIDE.value, 0)
    flags_given = [f"--config.{key}={value}" for key, value in settings_of(folder).items()]
    command = [sys.executable, str(ROOT / "run.py"), f"--workdir={workdir}", "--verbosity=-1", *flags_given]
    subprocess.run([*command, *(f"--stage={stage}" for stage in ("train", "explain", "report"))], check=True)
    header = read_header(workdir)
    files = [path for path in workdir.rglob("*") if path.is_file()]
    return {
        "images": header["provenance"]["images"]["train"],
        "seconds": header["timing"],
        "peak_memory": header["peak_memory"],
        "disk": sum(path.stat().st_size for path in files),
        "report": (workdir / "report.html").stat().st_size,
        "explanation": (workdir / "explanation.json").stat().st_size,
        "decoding": reading_seconds(workdir),
    }


def reading_seconds(workdir: pathlib.Path) -> float:
    """Seconds in which all training images are read and decoded once, and nothing else is done."""
    train = dataset_of(from_config_dict(read_header(workdir)["config"]), None).train
    started = time.perf_counter()
    for _ in blocks(train.images):
        pass
    return time.perf_counter() - started


def slopes(found: list[dict]) -> dict[str, tuple[float, float, float]]:
    """By step: seconds an image, seconds at none, and the largest relative miss of the straight line."""
    images, lines = np.array([each["images"] for each in found]), {}
    for step in found[0]["seconds"]:
        seconds = np.array([each["seconds"][step] for each in found])
        slope, start = np.polyfit(images, seconds, 1)
        miss = np.abs(slope * images + start - seconds) / seconds
        lines[step] = float(slope), float(start), float(miss.max())
    return lines


class Counted:
    """As many images of a shape as are said, none of which is there."""

    def __init__(self, count: int, side: int):
        self.shape, self.dtype = (count, side, side, 3), np.dtype(np.uint8)


def at_imagenet() -> dict:
    """What 1.28 million images and ResNet-50 need, by shapes and by compiled programs."""
    side, classes = 224, 1000
    count, held_out = IMAGENET
    names = tuple(map(str, range(classes)))
    sets = [
        Dataset(Counted(size, side), np.arange(size, dtype=np.int32) % classes, names)
        for size in (count, held_out, held_out)
    ]
    settings = {"num_prototypes": _PROTOTYPES.value, "batch_size": 64}
    config = from_config_dict(
        {
            "model": {"name": "resnet50", "width": 0},
            "train": {"num_checkpoints": _CHECKPOINTS.value, "batch_size": 64},
            "explain": settings,
        }
    )
    model = models.create("resnet50", num_classes=classes, image_shape=(side, side, 3))
    scale = needs.scale_of(config, Splits(*sets), model)
    found = needs.needs_of(config, Splits(*sets), model, scale)
    told = {step: each._asdict() for step, each in found.items()}
    if not _BACKBONE.value:
        return {"needs": told}
    variables = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((64, side, side, 3), np.uint8)
    layout = layout_over(jax.devices()[:1])
    of_batch = batch_programs(model, variables, images, _CHECKPOINTS.value, _PROTOTYPES.value, layout)
    costs = {each.name: cost(each) for each in forward_programs(model, variables, images, layout)}
    forward = sum(each.operations for each in costs.values()) / 64
    sample = jax.ShapeDtypeStruct((training.batch_norm_count(count, scale.image), side, side, 3), np.uint8)
    normed = cost(Program("batch_statistics", 1, False, model.batch_statistics, (variables, sample)))
    costs |= {each.name: cost(each) for each in of_batch[1:]}
    measuring = sum(each.times * costs[each.name].operations for each in of_batch) / 64
    operations = {
        "forward_an_image": forward,
        "prototypes": count * forward,
        "evidence": count * measuring + 2 * held_out * _CHECKPOINTS.value * forward,
    }
    memory = {"a batch of 64": max(each.memory for each in costs.values()), "BatchNorm's sample": normed.memory}
    return {"needs": told, "operations": operations, "compiled": memory}


def table(report: dict) -> str:
    """The figures as text."""
    found, lines = report["runs"], []
    steps = list(found[0]["seconds"])
    lines += [f"{report['shape']}", "", f"{'images':>10}" + "".join(f"{step:>15}" for step in (*steps, "decoding"))]
    for each in found:
        cells = [f"{each['seconds'][step]:>8.1f} s{each['peak_memory'][step] / 1e9:>5.2f}" for step in steps]
        lines.append(f"{each['images']:>10,}" + "".join(cells) + f"{each['decoding']:>13.1f} s")
    lines += ["", "seconds, and peak memory so far in GB. Milliseconds an image, and largest miss of the line:"]
    for step, (slope, start, miss) in report["slopes"].items():
        lines.append(f"  {step:<14}{1000 * slope:>9.3f} ms, {start:>8.1f} s at none, {100 * miss:>5.1f} %")
    peaks = [max(each["peak_memory"].values()) for each in found]
    last = found[-1]
    share = last["decoding"] / last["seconds"]["evidence"]
    lines += [
        f"peak memory: {', '.join(f'{peak / 1e9:.2f}' for peak in peaks)} GB; between the least and the most "
        f"{100 * (max(peaks) / min(peaks) - 1):.0f} %",
        f"decoding once beside the evidence step: {100 * share:.0f} % of its time, which it overlaps",
        f"report {last['report'] / 1e6:.1f} MB, explanation.json {last['explanation'] / 1e6:.1f} MB, all on disk "
        f"{last['disk'] / 1e9:.2f} GB at {last['images']:,} images",
        "",
        f"1,281,167 images of 224x224, 1,000 classes, ResNet-50, K = {_PROTOTYPES.value}, T = {_CHECKPOINTS.value}:",
    ]
    wanted = report["imagenet"]["needs"]
    lines.append(f"  disk {sum(each['disk'] for each in wanted.values()) / 1e9:.1f} GB")
    for step, each in wanted.items():
        if each["host"] or each["device"]:
            lines.append(f"  {step:<14}host {each['host'] / 1e9:>6.2f} GB, device {each['device'] / 1e9:>6.2f} GB")
    if operations := report["imagenet"].get("operations"):
        for what, size in report["imagenet"]["compiled"].items():
            lines.append(f"  beside it {size / 1e9:.2f} GB for {what} (compiled)")
        lines += [f"  {name:<18}{value:.3e} operations" for name, value in operations.items()]
        whole = operations["prototypes"] + operations["evidence"]
        lines.append(
            f"  explain at 100 Tflop/s sustained: {whole / 1e14 / 3600:.2f} h, at 10: {whole / 1e13 / 3600:.1f} h"
        )
    return "\n".join(lines)


def main(argv):
    """Runs all sizes and prints."""
    if argv[1:]:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    with tempfile.TemporaryDirectory() as folder:
        where = pathlib.Path(_WORKDIR.value or folder).absolute()
        found = [run(where, int(size)) for size in _SIZES.value]
    whole = (_SIDE.value, _CLASSES.value) == (224, 1000)
    shape = (
        f"{'' if whole else 'Smaller than ImageNet: '}{_CLASSES.value:,} classes, {_SIDE.value}x{_SIDE.value}, "
        f"ResNet-18 of width {_WIDTH.value}, K = {_PROTOTYPES.value}, T = {_CHECKPOINTS.value}, {_PAIRS.value} pairs"
    )
    report = {"shape": shape, "runs": found, "slopes": slopes(found), "imagenet": at_imagenet()}
    print(table(report))
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
