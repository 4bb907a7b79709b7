"""How fast pictures are read from a folder: this library beside PyTorch's DataLoader with torchvision, and Grain.

    python experiments/benchmarks/reading.py                       # of 1,000 JPEG files that it draws
    python experiments/benchmarks/reading.py --folder=DIR --pictures=2000

Each reads the same files in the same seeded order, in batches, as uint8 with torchvision's evaluation transform
(shorter side 256, bilinear, antialiased; the central 224x224), by as many workers: threads here, processes in the
others, and also threads in Grain. Nothing is kept between passes, but for the system's own cache of files, which a
first pass fills. A pass is timed from asking for the first batch to having the last, with starting the workers; each
pass is a process of its own, and the readers take turns. Prints images a second, milliseconds of the processors an
image (which hardly depend on what else runs), and how many times as fast this library is: the median of the rounds, and
[least, most]. Grain is measured where it is installed.

Measured at eaba6fb on two cores of an AMD EPYC behind some 28 other processes (2026-11-26): this library 61.8 images
a second [49.2, 82.8] and 2.13 ms of the processors [2.03, 2.22]; the DataLoader 53.0 [37.4, 119.6] and 3.14 [2.89,
3.24], ours 1.13 times as fast [0.69, 1.65]; Grain's processes 40.4 [31.0, 65.8] and 5.54 [5.16, 5.82], 1.49 times
[1.26, 2.00]; Grain's threads 115.4 [84.9, 139.3] and 2.27 [2.21, 2.33], 0.72 times [0.35, 0.89]. On so busy a machine
images a second go by how many threads wait for a core, and tell little; the processors' time does.
"""

import gc
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np
from absl import app, flags
from PIL import Image

from i2x_jax.data import folders, reading
from i2x_jax.data.pictures import Reading, decoded, prepared, read_file
from i2x_jax.data.source import read_ahead
from i2x_jax.devices.host_memory import keep_freed_memory

SIDE, SHORTER = 224, 256
# Of the pictures that are drawn: about those of ImageNet.
DRAWN = (375, 500)

_FOLDER = flags.DEFINE_string("folder", None, "Pictures to read, DIR/CLASS/FILE; drawn where none is given.")
_PICTURES = flags.DEFINE_integer("pictures", 1000, "How many are read, at most.", lower_bound=1)
_WORKERS = flags.DEFINE_integer("workers", 2, "Threads or processes that decode.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Pictures a batch.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Passes of each reader.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "A file for the figures.")
_READER = flags.DEFINE_string("reader", None, "One reader, one pass, and its seconds: what this program calls itself.")


def draw(folder: pathlib.Path, count: int) -> None:
    """Writes JPEG files with smooth fields and noise, in two classes."""
    height, width = DRAWN
    for number in range(count):
        rng = np.random.default_rng(number)
        field = Image.fromarray(rng.integers(0, 256, (8, 10, 3)).astype(np.uint8))
        levels = np.asarray(field.resize((width, height), Image.Resampling.BICUBIC)) + rng.normal(
            0, 8, (height, width, 3)
        )
        path = folder / str(number % 2) / f"{number:06d}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).save(path, quality=90)


def ours(paths: list[str], batch_size: int, workers: int) -> list[np.ndarray]:
    """This library, which decodes whenever rows are read."""
    # As run.py does at its start; it counts here too.
    keep_freed_memory()
    reading.threads = lambda: workers
    known = np.zeros(len(paths), reading.KNOWN)
    states = [pathlib.Path(path).stat() for path in paths]
    known["size"], known["changed"] = [each.st_size for each in states], [each.st_mtime_ns for each in states]
    files = reading.Files("/", np.array(paths, object), known)
    how = Reading(resize=SHORTER, crop=SIDE, channels=3)
    images = reading.Pictures(files, how, (len(paths), SIDE, SIDE, 3), keep=False)
    several = (np.arange(start, min(start + batch_size, len(paths))) for start in range(0, len(paths), batch_size))
    return [block for _, block in read_ahead(images, several)]


class TorchPictures:
    """torchvision's transform of a file, for the DataLoader."""

    def __init__(self, paths: list[str]):
        from torchvision.transforms import v2

        self._paths = paths
        self._transform = v2.Compose([v2.Resize(SHORTER, antialias=True), v2.CenterCrop(SIDE), v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row: int):
        """Of one picture, uint8 `[3, H, W]`."""
        with open(self._paths[row], "rb") as file:
            return self._transform(Image.open(file).convert("RGB"))


def torch(paths: list[str], batch_size: int, workers: int) -> list[np.ndarray]:
    """PyTorch's DataLoader, torchvision's transform."""
    from torch.utils.data import DataLoader

    loader = DataLoader(TorchPictures(paths), batch_size, num_workers=workers)
    return [np.moveaxis(batch.numpy(), 1, -1) for batch in loader]


def of_file(path: str) -> np.ndarray:
    """What this library makes of a file, for Grain."""
    return prepared(decoded(read_file(path)[0]), Reading(resize=SHORTER, crop=SIDE, channels=3))


def grain(paths: list[str], batch_size: int, workers: int, processes: bool = True) -> list[np.ndarray]:
    """Grain, decoding as this library does; batches are made behind the workers, where none lacks its rest."""
    import grain

    options = grain.ReadOptions(num_threads=1 if processes else workers, prefetch_buffer_size=2 * batch_size)
    pictures = grain.MapDataset.source(paths).map(of_file).to_iter_dataset(options)
    if processes:
        pictures = pictures.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return list(pictures.batch(batch_size))


def grain_threads(paths: list[str], batch_size: int, workers: int) -> list[np.ndarray]:
    """Grain with threads in place of processes."""
    return grain(paths, batch_size, workers, processes=False)


READERS = {"ours": ours, "torch": torch, "grain": grain, "grain_threads": grain_threads}


def timed(reader: str, paths: list[str]) -> dict:
    """Seconds that a pass took, how many pictures it gave, and their mean level: all must see the same ones."""
    READERS[reader](paths[:1], 1, _WORKERS.value)  # imports
    started, used = time.perf_counter(), processor_seconds()
    blocks = READERS[reader](paths, _BATCH_SIZE.value, _WORKERS.value)
    seconds = time.perf_counter() - started
    # What workers used is counted once they have ended.
    gc.collect()
    used = processor_seconds() - used
    count = sum(map(len, blocks))
    mean = sum(block.sum(dtype=np.int64) for block in blocks) / count
    return {"pictures": count, "seconds": seconds, "processors": used, "mean": mean}


def processor_seconds() -> float:
    """Of this process, and of those that it started and that have ended."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def installed(reader: str) -> bool:
    """Whether what a reader needs is there."""
    name = reader.partition("_")[0]
    return name == "ours" or bool(__import__("importlib.util").util.find_spec(name))


def pass_of(reader: str, folder: str) -> dict:
    """A pass in a process of its own."""
    flags_given = [f"--{flag.name}={flag.value}" for flag in (_PICTURES, _WORKERS, _BATCH_SIZE)]
    command = [sys.executable, __file__, f"--reader={reader}", f"--folder={folder}", *flags_given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{reader} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def order(folder: str, count: int) -> list[str]:
    """Paths of pictures, in a seeded order."""
    found = folders.listing(f"folder:{folder}")
    paths = [str(pathlib.Path(found.root, path)) for part in found.parts.values() for path in part.paths]
    return [paths[row] for row in np.random.default_rng(0).permutation(len(paths))[:count]]


def compare(folder: str) -> dict:
    """The figures of all readers: images a second by round, and the ratios to the DataLoader's."""
    readers = [name for name in READERS if installed(name)]
    rates, used, means = {name: [] for name in readers}, {name: [] for name in readers}, {}
    pass_of("ours", folder)
    for _ in range(_ROUNDS.value):
        for name in readers:
            found = pass_of(name, folder)
            rates[name].append(found["pictures"] / found["seconds"])
            used[name].append(1000 * found["processors"] / found["pictures"])
            means[name] = found["mean"]
    # Nothing is read twice or left out, and decoders differ by no more than a grey level.
    assert max(means.values()) - min(means.values()) <= SIDE * SIDE * 3, means
    ratios = {name: np.divide(rates["ours"], rates[name]).tolist() for name in readers if name != "ours"}
    return {
        "pictures": found["pictures"],
        "workers": _WORKERS.value,
        "images_a_second": rates,
        "processor_ms": used,
        "times_as_fast": ratios,
    }


def main(_: list[str]) -> None:
    """Prints the figures, or does one pass."""
    if _READER.value:
        print(json.dumps(timed(_READER.value, order(_FOLDER.value, _PICTURES.value))))
        return
    with tempfile.TemporaryDirectory() as drawn:
        if not _FOLDER.value:
            draw(pathlib.Path(drawn), _PICTURES.value)
        found = compare(_FOLDER.value or drawn)
    print(f"{found['pictures']} pictures, {found['workers']} workers, {_ROUNDS.value} rounds in turns")
    for name, rates in found["images_a_second"].items():
        used = found["processor_ms"][name]
        line = f"{name:<14} {np.median(rates):8.1f} images/s [{min(rates):.1f}, {max(rates):.1f}]"
        line += f" {np.median(used):6.2f} ms of the processors [{min(used):.2f}, {max(used):.2f}]"
        if ratios := found["times_as_fast"].get(name):
            line += f"   ours is {np.median(ratios):.2f} times as fast [{min(ratios):.2f}, {max(ratios):.2f}]"
        print(line)
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
