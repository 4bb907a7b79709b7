"""What a run will read, hold in memory, put on disk and take, before it starts (DESIGN section 4).

Sizes of arrays are exact, counted from the shapes that `results.arrays` declares. Memory is an estimate: what the
process holds already, and the largest of what each step adds. Times come from one forward pass that is run, and the
operations that the compiler counts of each program; what is done on the host is not timed.
"""

import os
import pathlib
import shutil
import time
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from i2x_jax.config import CONTROLS, OWN, Config, InputError
from i2x_jax.data.dataset import Splits
from i2x_jax.data.part import explained
from i2x_jax.devices.mesh import divisible
from i2x_jax.explanation.mapping import NUM_FOLDS
from i2x_jax.explanation.rivals import MANY_CLASSES, RIVALS
from i2x_jax.models.model import Model
from i2x_jax.pipeline.programs import Program, batch_programs, cost, forward_programs, layout_over
from i2x_jax.pipeline.prototypes import SAMPLE_BYTES, locations_wanted
from i2x_jax.pipeline.repair import PHASES_UNSEEN
from i2x_jax.pipeline.train import checkpoint_steps
from i2x_jax.refinement.strategies import count_phases
from i2x_jax.results.arrays import ARRAYS
from i2x_jax.results.files import ACCOUNT, ACCOUNTED, CHECKPOINTS, LEDGER, STEPS
from i2x_jax.training import loop as training

NPY_HEADER = 128
# What Orbax writes beside the arrays of a checkpoint.
ORBAX = 40_000
# What XLA holds of programs that it compiles, and what libraries take that are imported later.
COMPILING = 400 * 2**20


class Need(NamedTuple):
    """What a step of a run takes.

    Attributes:
      images: read, by all processes together.
      host: bytes of memory beyond what the process held before the first step.
      device: bytes of device memory; where the device is the host they are part of `host`.
      disk: bytes of the files that it leaves.
      scratch: bytes of disk that it needs meanwhile.
      seconds: about so many on the devices; None where that was not measured, or is done on the host.
    """

    images: int
    host: int
    device: int
    disk: int
    scratch: int = 0
    seconds: float | None = None


class Scale(NamedTuple):
    """How large a run is.

    Attributes:
      sizes: the symbols of `results.arrays.Spec`, as far as they are known beforehand.
      variables: bytes of the weights, and `optimizer` of what training keeps beside them.
      optimizer: see `variables`.
      candidates: checkpoints that training keeps until it ends.
      train: images that are trained on; N of `sizes` are explained.
      image: bytes of one.
    """

    sizes: dict[str, int]
    variables: int
    optimizer: int
    candidates: int
    train: int
    image: int


def scale_of(config: Config, splits: Splits, model: Model, steps: Sequence[int] = (), like: Any = None) -> Scale:
    """How large a run is.

    Args:
      config: all settings.
      splits: the data.
      model: the classifier.
      steps: of checkpoints that were handed over; none of a training.
      like: a tree like the variables of these.
    """
    settings, train = config.explain, explained(splits.train, config.explain, config.seed)
    h, w, d = model.feature_shape
    k, m = settings.num_prototypes, len(train.class_names)
    kept = min(m, max(settings.rivals or RIVALS, 1))
    planned = steps or checkpoint_steps(config, splits.train)
    t = len(planned) if steps or config.train.checkpoints != "moved" else config.train.num_checkpoints
    counts = {name: len(each.labels) for name, each in splits.sets().items()}
    sizes = {"T": t, "I": t - 1, "J": max(t - 2, 0), "N": len(train.labels), "K": k, "A": k + 1, "M": m, "R": kept}
    sizes |= {"Y": kept + 1 if m > MANY_CLASSES and kept + 1 < m else m, "h": h, "w": w, "d": d}
    sizes |= {"D": settings.pca_dims, "C": train.images.shape[3], "P": 2 * len(train.labels) // m}
    sizes["W"] = sizes["N"] if isinstance(config.explain.ledger, str) else min(config.explain.ledger, sizes["N"])
    sizes |= {"Q": (1 + ("audit" in counts)) * (model.linear_head is not None)}
    for symbol, name in (("V", "validation"), ("E", "test"), ("G", "audit"), ("B", "unbiased")):
        sizes[symbol] = counts.get(name, 0)
    variables, optimizer = bytes_of(like), 0
    if model.init is not None:
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        made = training.make_optimizer(config.train.optimizer, 1.0, 0.0, 1, 0.0)
        variables, optimizer = bytes_of(shapes), bytes_of(jax.eval_shape(made.init, shapes["params"]))
    image = int(np.prod(train.images.shape[1:]))
    return Scale(sizes, variables, optimizer, len(planned), counts["train"], image)


def bytes_of(tree: Any) -> int:
    """Bytes of all arrays of a tree, which may be abstract."""
    leaves = (leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype"))
    return int(sum(np.prod(leaf.shape, dtype=np.int64) * leaf.dtype.itemsize for leaf in leaves))


def array_bytes(name: str, sizes: dict[str, int]) -> dict[str, int]:
    """Bytes of the values of each member of a file of `ARRAYS`; sizes that are known only afterwards count 0."""
    return {
        member: int(np.prod([sizes.get(each, each) if each in sizes or isinstance(each, int) else 0 for each in shape]))
        * np.dtype(dtype).itemsize
        for member, (dtype, shape, *_) in ARRAYS[name].items()
    }


def file_bytes(name: str, sizes: dict[str, int]) -> int:
    """Bytes of a file of `ARRAYS`, its headers counted roughly."""
    members = array_bytes(name, sizes)
    return sum(members.values()) + NPY_HEADER * len(members)


def files_made(step: str, config: Config, splits: Splits) -> list[str]:
    """The arrays among the files that a step leaves, those that not every run has among them."""
    left_out = (LEDGER, ACCOUNT) if config.explain.ledger == "none" else ()
    names = [name for name in STEPS[step][1] if name in ARRAYS and name not in left_out]
    if step == "train":
        names += ["rows.npy"]
    if step == "evidence":
        names += [f"{name}.npz" for name in ("audit", "unbiased") if name in splits.sets()]
        names += [] if isinstance(config.explain.ledger, str) else [ACCOUNTED]
        names += ["pair_intensity.npy"] if config.explain.pair_target == "margin" else []
    return names


def needs_of(config: Config, splits: Splits, model: Model, scale: Scale) -> dict[str, Need]:
    """What each step of a run takes, by its name, from counts alone: nothing is compiled."""
    s = scale.sizes
    n, k, m, r, t = (s[symbol] for symbol in "NKMRT")
    held_out = sum(len(each.labels) for name, each in splits.sets().items() if name != "train")
    disk = {step: sum(file_bytes(name, s) for name in files_made(step, config, splits)) for step in STEPS}
    by_class = 8 * m * k * r
    wanted = min(locations_wanted(config.explain.max_locations, k) or n * s["h"] * s["w"], n * s["h"] * s["w"])
    sample, on_host = 4 * wanted * s["d"], jax.default_backend() == "cpu"
    batch = divisible(config.explain.batch_size)
    features = 4 * batch * s["h"] * s["w"] * s["d"]
    held = scale.variables * t
    state = scale.variables + scale.optimizer
    device = {
        "train": 3 * state + divisible(config.train.batch_size) * scale.image,
        "prototypes": scale.variables + features + 2 * 4 * wanted * s["D"],
        "evidence": min(held, 2**31) + (t + 1) * features + by_class * (2 * t + 4 * (t - 1)) // 2,
        "ranking": scale.variables + features,
    }
    calibration = training.batch_norm_count(scale.train, scale.image) * scale.image
    host = {
        "train": 2 * state + calibration,
        "prototypes": min(sample, SAMPLE_BYTES) + 4 * wanted * s["D"],
        # Sums of all blocks in float64, and of each stacked where they are written.
        "evidence": by_class * (2 * t + 4 * (t - 1)) + by_class * 4 * t + 2 * 4 * t * held_out * m,
        "ranking": 3 * 8 * t * k * m,
        # Products of intensities by class and fold, whole and less each fold.
        "mapping": n * (8 * 6 * k + 8 * 4 * s["Y"]) + 8 * m * 2 * (NUM_FOLDS + 1) * k * (k + r + 1) + 4 * by_class * t,
        "contact_sheet": 4 * n * k + 2 * n * s["h"] * s["w"],
        "report": 4 * 2 * n * k + 2 * n * s["h"] * s["w"] + 4 * by_class,
    }
    texts = {"mapping": m * (200 + 1500 * (t - 1)) + 1200 * m * r // 2, "report": 3 * 10**6, "contact_sheet": 10**6}
    images = {"prototypes": n, "evidence": n + t * held_out, "ranking": s["V"] + s["G"]}
    images["train"] = 0 if config.model.name == OWN else config.train.epochs * scale.train
    images["refine"] = 0 if config.model.name == OWN else config.refine.seeds * phases_of(config) * scale.train
    # Of a network from elsewhere there is no optimizer.
    beside = texts | {"train": (state + ORBAX) * t}
    scratch = {"train": state * (scale.candidates - t + 1), "prototypes": sample if sample > SAMPLE_BYTES else 0}
    device["refine"], host["refine"] = device["train"], host["train"]
    return {
        step: Need(
            images.get(step, 0),
            host.get(step, 0) + device.get(step, 0) * on_host,
            device.get(step, 0),
            disk[step] + beside.get(step, 0),
            scratch.get(step, 0),
        )
        for step in STEPS
    }


def phases_of(config: Config) -> int:
    """Phases that a seed of the refinement trains, each as long as a pass over the training images."""
    settings = config.refine
    if settings.acts:
        return count_phases([*settings.actions, *CONTROLS], settings.phases or PHASES_UNSEEN)
    return count_phases(settings.strategies)


def measured(
    needs: dict[str, Need], config: Config, model: Model, scale: Scale, shape: tuple[int, ...]
) -> dict[str, Need]:
    """The same with the memory of the compiled programs, and with times by one forward pass that is run.

    Args:
      needs: of `needs_of`.
      config: all settings.
      model: of this project, so that it can be trained.
      scale: of the run.
      shape: of an image, (H, W, C).
    """
    s, layout = scale.sizes, layout_over(jax.devices()[:1])
    batch, step_batch = divisible(config.explain.batch_size), config.train.batch_size
    variables = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((batch, *shape), np.uint8)
    of_batch = batch_programs(model, variables, images, max(s["T"], 3), s["K"], layout)
    forward = forward_programs(model, variables, images, layout)
    costs = {each.name: cost(each) for each in (*forward, *of_batch[1:])}
    step = cost(training_program(config, model, variables, shape))
    # All images of the sample at once: in a narrow network of large images that is the most of all.
    sample = jax.ShapeDtypeStruct((training.batch_norm_count(scale.train, scale.image), *shape), np.uint8)
    normed = cost(Program("batch_statistics", 1, False, model.batch_statistics, (variables, sample)))
    trained = max(step.memory, normed.memory)
    rate = costs["features"].operations / forward_seconds(model, variables, images)
    measuring = sum(each.times * costs[each.name].operations for each in of_batch) / batch
    one = sum(costs[each.name].operations for each in forward) / batch
    most = max(each.memory for each in costs.values())
    beside = {"train": trained, "evidence": most, "prototypes": most, "ranking": most, "refine": trained}
    devices = jax.device_count()
    seconds = {
        "train": needs["train"].images * step.operations / step_batch / rate / devices,
        "prototypes": s["N"] * one / rate / devices,
        "evidence": (s["N"] * measuring + (needs["evidence"].images - s["N"]) * one) / rate / devices,
        "ranking": needs["ranking"].images * one / rate / devices,
        "refine": needs["refine"].images * step.operations / step_batch / rate / devices,
    }
    on_host = jax.default_backend() == "cpu"
    return {
        name: each._replace(
            host=each.host + beside.get(name, 0) * on_host,
            device=each.device + beside.get(name, 0),
            seconds=seconds.get(name),
        )
        for name, each in needs.items()
    }


def training_program(config: Config, model: Model, variables: Any, shape: tuple[int, ...]) -> Program:
    """One training step on abstract arrays."""
    settings = config.train
    made = training.make_optimizer(settings.optimizer, settings.learning_rate, settings.weight_decay, 100, 0.1)
    step = jax.ShapeDtypeStruct((), np.int32)
    state = training.TrainState(variables, jax.eval_shape(made.init, variables["params"]), step)
    totals = training.Totals(jax.ShapeDtypeStruct((), np.float32), step, step, step)
    size = settings.batch_size
    images, labels = jax.ShapeDtypeStruct((size, *shape), np.uint8), jax.ShapeDtypeStruct((size,), np.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def one(state, totals, images, labels, key):
        return training.train_step.__wrapped__(model, made, config.data.augment, state, totals, images, labels, key)

    return Program("train_step", 1, False, one, (state, totals, images, labels, key))


def forward_seconds(model: Model, variables: Any, images: jax.ShapeDtypeStruct) -> float:
    """Seconds of one forward pass of the backbone, the least of three, with weights and images that are zero."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), (variables, images))
    run, found = jax.jit(model.features), []
    jax.block_until_ready(run(*zeros))
    for _ in range(3):
        started = time.perf_counter()
        jax.block_until_ready(run(*zeros))
        found.append(time.perf_counter() - started)
    return min(found)


def resident() -> int:
    """Bytes of memory that this process holds now; 0 where the system does not tell."""
    try:
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 0


def host_memory() -> int:
    """Bytes of memory that this process may have: the machine's, or its control group's where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(pathlib.Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return total


def device_memory() -> int | None:
    """Bytes of the first device's memory; None where it is the host's or is not known."""
    if jax.default_backend() == "cpu":
        return None
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def peak(needs: dict[str, Need]) -> int:
    """Bytes of memory that the process holds at most, if steps give back what they took."""
    return resident() + COMPILING + max(each.host for each in needs.values())


def disk_wanted(needs: dict[str, Need], path: pathlib.Path) -> int:
    """Bytes of disk that are still wanted: of steps whose files are not there, and for what is needed meanwhile."""
    left = [each for step, each in needs.items() if not all((path / name).exists() for name in STEPS[step][1])]
    there = (
        sum(file.lstat().st_size for file in (path / CHECKPOINTS).rglob("*")) if (path / CHECKPOINTS).exists() else 0
    )
    return max(0, sum(each.disk for each in left) + max((each.scratch for each in left), default=0) - there)


def free_disk(path: pathlib.Path) -> int:
    """Bytes that are free where a folder is or would be made."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def check_fits(every: dict[str, Need], steps: Collection[str], path: pathlib.Path) -> None:
    """Raises `InputError` where memory or disk cannot hold a run, with what is wanted and what is there.

    Args:
      every: by step.
      steps: those that are asked for.
      path: the run directory, which need not be there.
    """
    needs = {step: each for step, each in every.items() if step in steps}
    less = "fewer explain.num_prototypes, train.num_checkpoints or explain.max_images"
    wanted, free = disk_wanted(needs, path), free_disk(path)
    if wanted > free:
        raise InputError(
            f"the run needs {gigabytes(wanted)} of disk in {path}, where {gigabytes(free)} are free; allowed: what "
            f"fits; choose another --workdir, or {less}"
        )
    held, total = peak(needs), host_memory()
    if held > total:
        step = max(needs, key=lambda name: needs[name].host)
        raise InputError(
            f"the run needs about {gigabytes(held)} of memory in the step {step}, and there are {gigabytes(total)}; "
            f"allowed: what fits; set {less}"
        )
    limit = device_memory()
    step = max(needs, key=lambda name: needs[name].device)
    if limit is not None and needs[step].device > limit:
        raise InputError(
            f"the run needs about {gigabytes(needs[step].device)} of device memory in the step {step}, and there are "
            f"{gigabytes(limit)}; allowed: what fits; set a smaller explain.batch_size or train.batch_size, or {less}"
        )


def gigabytes(count: int) -> str:
    """Bytes in words: '1.23 GB', or '4.5 MB' of less."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def told(needs: dict[str, Need], steps: Sequence[str], path: pathlib.Path) -> str:
    """What a run takes, as a table with its sums.

    Args:
      needs: by step.
      steps: those that are asked for.
      path: the run directory.
    """
    wanted = {step: each for step, each in needs.items() if step in steps}
    lines = [f"{'step':<14}{'images read':>13}{'memory':>12}{'device':>12}{'disk':>12}{'about':>12}"]
    for step, each in wanted.items():
        lines.append(
            f"{step:<14}{each.images:>13,}{gigabytes(each.host):>12}{gigabytes(each.device):>12}"
            f"{gigabytes(each.disk):>12}{duration(each.seconds):>12}"
        )
    known = [each.seconds for each in wanted.values() if each.seconds is not None]
    scratch = max((each.scratch for each in wanted.values()), default=0)
    meanwhile = f", {gigabytes(scratch)} more meanwhile" if scratch else ""
    disk = sum(each.disk for each in wanted.values())
    return "\n".join(
        [
            *lines,
            "",
            f"Memory at most: about {gigabytes(peak(wanted))} of {gigabytes(host_memory())}; {gigabytes(resident())} "
            "are held already (libraries, and images that are kept in memory)",
            f"Disk: {gigabytes(disk)}{meanwhile}; {gigabytes(free_disk(path))} are free in {path}",
            f"Time on {jax.device_count()} {jax.default_backend()} device{'s' * (jax.device_count() > 1)}: about "
            f"{duration(sum(known))}, beside reading images and what is done on the host (–)",
        ]
    )


def duration(seconds: float | None) -> str:
    """Seconds in words: '12 s', '3.4 min', '5.6 h'; '–' where they are not known."""
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
