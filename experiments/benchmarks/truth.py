"""The explanation held against answers that are known: planted cues, exact interventions, deletion, sanity, stability.

    python experiments/benchmarks/truth.py --measure=cues --folder=runs/truth
    python experiments/benchmarks/truth.py --measure=parts --folder=runs/truth

A measure is a list of cases (a planted set or a network, and a seed). Each case is written to FOLDER/MEASURE.json when
it is done and is not done again; a case that was stopped goes on. FOLDER/MEASURE.md is the table of all that there are.

- `cues`: whether a planted cue is found, and whether alarms keep silent on twins (`truth_cues.py`);
- `parts`: what taking an item out of a scene does, against what is claimed of it (`truth_parts.py`);
- `late`: whether a part that training shows late is dated late, and claimed before it existed (`truth_parts.py`);
- `runs`: deletion in the pixels of real images, layers randomised one after the other, an untrained network, and other
  starts of K-means, on the twins of `cues`, trained by the name that --data gives (`truth_runs.py`).

What was measured is in truth.md.
"""

import functools
import json
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from absl import app, flags, logging

from experiments.benchmarks import truth_cues as cues
from experiments.benchmarks import truth_parts as parts
from experiments.benchmarks import truth_runs as runs
from experiments.benchmarks import truth_tables as tables
from i2x_jax.config import InputError
from i2x_jax.devices.compilation import keep_programs

MEASURES = ("cues", "parts", "late", "runs")

_MEASURE = flags.DEFINE_enum("measure", "cues", MEASURES, "What is measured.")
_FOLDER = flags.DEFINE_string("folder", "runs/truth", "Where figures are written, and runs while they are needed.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Seeds, with commas.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where prepared data sets are. Default: $TFDS_DATA_DIR.")
_DATA = flags.DEFINE_string("data", "mnist", "The data set that cues are planted into.")
_TRAIN = flags.DEFINE_integer("train", 4000, "Images to train on.", lower_bound=500)
_HELD = flags.DEFINE_integer("held", 2000, "Validation images, and test images.", lower_bound=100)
_EPOCHS = flags.DEFINE_integer("epochs", 5, "Passes over the training images; of parts 8.", lower_bound=1)
_PLANTS = flags.DEFINE_list("plants", [*cues.PLANTS, cues.TWIN], "Planted sets, and 'twin' for none.")
_STRENGTHS = flags.DEFINE_list("strengths", ["0.98"], "How surely cues go with their class.")
_NETWORKS = flags.DEFINE_multi_enum("network", list(parts.NETWORKS), list(parts.NETWORKS), "Networks that see parts.")


def numbers(values: list[str], kind: type, name: str) -> list:
    """What a list on the command line holds, as numbers."""
    try:
        return [kind(each) for each in values]
    except ValueError:
        raise InputError(f"--{name} is {','.join(values)!r}; allowed: numbers with commas; set --{name}") from None


def cue_cases(folder: pathlib.Path, data_dir: str | None) -> dict:
    """What measures each case of `cues`, by its name."""
    sizes = cues.Sizes(_DATA.value, _TRAIN.value, _HELD.value, _EPOCHS.value)
    if unknown := set(_PLANTS.value) - {*cues.PLANTS, cues.TWIN}:
        raise InputError(f"--plants has {min(unknown)!r}; allowed: {', '.join(cues.PLANTS)}, twin; set --plants")

    def case(plant, strength, seed):
        config = cues.config_of(sizes, plant, strength, seed)
        splits = cues.splits_of(config, sizes, data_dir)
        name = f"{sizes.name}-{plant}-{strength}-{seed}"
        about = {"plant": plant, "strength": strength, "seed": seed, "sizes": sizes._asdict()}
        return about | cues.measure(config, splits, folder / name)

    found = {}
    for seed in numbers(_SEEDS.value, int, "seeds"):
        for plant in _PLANTS.value:
            for strength in [0.0] if plant == cues.TWIN else numbers(_STRENGTHS.value, float, "strengths"):
                found[f"{sizes.name} {plant} {strength} {seed}"] = lambda *_, each=(plant, strength, seed): case(*each)
    return found


def run_cases(folder: pathlib.Path, data_dir: str | None) -> dict:
    """What measures each case of `runs`, by its name; the runs are the twins of `cues`."""
    sizes = cues.Sizes(_DATA.value, _TRAIN.value, _HELD.value, _EPOCHS.value)

    def case(seed):
        config = cues.config_of(sizes, cues.TWIN, 0.0, seed)
        splits = cues.splits_of(config, sizes, data_dir)
        figures = runs.measure(config, splits, folder / f"{sizes.name}-{cues.TWIN}-0.0-{seed}")
        return {"seed": seed, "sizes": sizes._asdict()} | figures

    seeds = numbers(_SEEDS.value, int, "seeds")
    return {f"{sizes.name} {seed}": lambda *_, seed=seed: case(seed) for seed in seeds}


def part_cases(folder: pathlib.Path, data_dir: str | None, late: bool = False) -> dict:
    """What measures each case of `parts`, or of `late`, by its name."""
    del data_dir
    epochs = _EPOCHS.value if flags.FLAGS["epochs"].present else parts.EPOCHS

    def case(network, seed):
        measure, name = (parts.measure_late, "late") if late else (parts.measure, "parts")
        return measure(network, seed, epochs, folder / f"{name}-{network}-{seed}")

    seeds = numbers(_SEEDS.value, int, "seeds")
    return {
        f"{network} {seed}": lambda *_, each=(network, seed): case(*each)
        for seed in seeds
        for network in _NETWORKS.value
    }


def main(_):
    """Measures the cases that are not there yet, and writes the table."""
    folder = pathlib.Path(_FOLDER.value)
    folder.mkdir(parents=True, exist_ok=True)
    keep_programs("default")
    data_dir = _DATA_DIR.value or os.environ.get("TFDS_DATA_DIR")
    measure = _MEASURE.value
    late_cases = functools.partial(part_cases, late=True)
    every = {"cues": cue_cases, "parts": part_cases, "late": late_cases, "runs": run_cases}
    cases = every[measure](folder, data_dir)
    path = folder / f"{measure}.json"
    done = json.loads(path.read_text()) if path.exists() else {}
    for name, work in cases.items():
        if name in done:
            continue
        started = time.perf_counter()
        done[name] = work() | {"seconds": round(time.perf_counter() - started, 1)}
        temporary = path.with_name(f".tmp-{path.name}")
        temporary.write_text(json.dumps(done, indent=1) + "\n")
        temporary.replace(path)
        print(f"{name}: {done[name]['seconds']} s", file=sys.stderr, flush=True)
    table = tables.TABLES[measure](done)
    (folder / f"{measure}.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)
    try:
        app.run(main)
    except InputError as problem:
        print(f"truth.py: error: {problem}", file=sys.stderr)
        sys.exit(2)
