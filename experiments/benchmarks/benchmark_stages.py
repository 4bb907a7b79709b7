"""Which stages the benchmark measures, with what inputs, in what order; and how their cost grows."""

import pathlib
import statistics
import sys
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.benchmarks import benchmark_differences as differ
from i2x_jax.config import Config

LLOYD_ITERATIONS = 20
SUBSAMPLE = 100_000
NULL = {"permutations": 200, "resamples": 200}
STAGES = (
    "train_step",
    "forward",
    "saliency_intensity",
    "pca",
    "kmeans",
    "assign",
    "grouping",
    "mapping",
    "explain",
)
# What the cost of a whole explain stage is measured against, one at a time, the others as in the first of each; and the
# channels of features that PCA and K-means are given.
IMAGES = (7_500, 15_000, 30_000, 60_000)
PROTOTYPES = (32, 128, 512)
CHECKPOINTS = (2, 4, 8, 16)
CHANNELS = (64, 256, 1024, 2048)
WARMING_IMAGES, CHANNEL_ROWS = 2_048, 100_000


class Bench:
    """Calls on both sides in turns, and what came of them."""

    def __init__(self, sides: dict[str, Any], folder: pathlib.Path, repeats: int, rows: int):
        self.sides, self.folder, self.repeats, self.results = sides, folder, repeats, {}
        self.bar = tqdm(total=rows, desc="benchmark", unit=" stage", disable=None, leave=False)

    def call(self, side: str, name: str, **options) -> dict:
        """An untimed call: its result, with arrays read."""
        return self.read(self.sides[side].call(name, save=str(self.folder / f"{side}-{name}"), **options)["result"])

    def read(self, result: dict) -> dict:
        """What a side returned, with arrays read."""
        return {key: np.load(value) if is_array(value) else value for key, value in result.items()}

    def found(self, name: str) -> list[dict]:
        """What each side's last call of a row returned, with arrays read."""
        return [self.read(result) for result in self.results[name].values()]

    def both(self, name: str, **options) -> tuple[dict, dict]:
        """`call` on either side."""
        return self.call("ours", name, **options), self.call("baseline", name, **options)

    def stage(
        self,
        name: str,
        images: int = 0,
        repeats: int | None = None,
        equal_work: bool = True,
        calls: dict[str, str | None] | None = None,
        inputs: dict[str, dict] | None = None,
        load: int | None = -1,
        cool: bool = True,
    ) -> dict:
        """A row: first each side cold, then both warm in turns.

        Args:
          name: of the row.
          images: how many a call handles, for a rate.
          repeats: warm calls of each side; 0 leaves the first, cold one to be reported alone.
          equal_work: whether the ratio compares like with like.
          calls: by side, the method if it is not `name`; None where the side has none.
          inputs: by side, its arguments.
          load: the checkpoint that is loaded before each call.
          cool: whether compiled programs are forgotten before the cold call.
        """
        calls = calls or dict.fromkeys(self.sides, name)
        repeats = self.repeats if repeats is None else repeats
        row, self.results[name] = {"equal_work": equal_work, "ratio": None}, {}
        for turn in range(repeats + 1):
            for side, method in calls.items():
                if method is None:
                    continue
                options = {"load": load, "cool": cool and turn == 0, **(inputs or {}).get(side, {})}
                # Arrays are written after the time is taken.
                save = str(self.folder / f"{side}-{name}") if turn == repeats else None
                answer = self.sides[side].call(method, save=save, **options)
                seconds, self.results[name][side] = answer["seconds"], answer["result"]
                if turn == 0:
                    row[f"{side}_cold_seconds"] = seconds
                else:
                    row.setdefault(f"{side}_seconds", []).append(seconds)
        medians = {
            side: statistics.median(row.get(f"{side}_seconds") or [row[f"{side}_cold_seconds"]])
            for side, method in calls.items()
            if method
        }
        if len(medians) == 2:
            row["ratio"] = medians["baseline"] / medians["ours"]
        if images:
            row |= {f"{side}_images_per_second": images / median for side, median in medians.items()}
        self.bar.update(1)
        # Where there is no bar there is a line a stage.
        if self.bar.disable:
            print(f"{name}: {', '.join(f'{side} {median:.3f} s' for side, median in medians.items())}", file=sys.stderr)
        return row


def is_array(value: Any) -> bool:
    """Whether a worker's answer is the path of an array."""
    return isinstance(value, str) and value.endswith(".npy")


def measure(
    sides: dict[str, Any], config: Config, folder: pathlib.Path, data_dir: str, repeats: int, train_steps: int
) -> dict:
    """All rows, the memory that `explain` takes, and the differences.

    Args:
      sides: 'ours' and 'baseline', see `benchmark_worker.Side`.
      config: of the run.
      folder: where arrays go.
      data_dir: where prepared data sets are; may be empty.
      repeats: warm calls of each stage and side.
      train_steps: training steps timed together.
    """
    bench = Bench(sides, folder, repeats, rows=len(STAGES) + 6)
    images = sides["ours"].call("describe")["result"]["images"]
    rows, memory = {}, {"at_start": {name: side.peak for name, side in sides.items()}}
    # First, so that nothing else counts among its peak of memory.
    rows["explain"] = bench.stage("explain", images)
    memory["explain"] = {name: side.peak for name, side in sides.items()}
    ours, theirs = bench.found("explain")
    labels = bench.call("ours", "labels")["labels"]
    differences = {"end_to_end": differ.end_to_end(ours, theirs, labels)}
    rows["explain"]["parts"] = {"ours": ours["parts"], "baseline": theirs["parts"]}
    rows["explain"]["iterations"] = {"ours": ours["iterations"], "baseline": theirs["iterations"]}

    saved = {
        name: str(folder / f"ours-explain-{name}.npy") for name in ("assignments", "intensity", "confidence", "groups")
    }
    given = {"assignments": saved["assignments"]}

    def alike(**inputs):
        return {side: inputs for side in sides}

    rows["forward"] = bench.stage("forward", images)
    rows["saliency_intensity"] = bench.stage("saliency_intensity", images, inputs=alike(**given))
    rows["explain_as_run"] = bench.stage(
        "explain_as_run",
        images,
        equal_work=False,
        calls={"ours": "explain", "baseline": None},
        inputs={"ours": {"max_locations": config.explain.max_locations, "ledger": True}},
    )
    logits = bench.found("forward")
    differences["forward"] = {"logits": differ.relative(logits[0]["logits"], logits[1]["logits"])}
    maps, measured = bench.both("maps", load=-1, **given), bench.found("saliency_intensity")
    differences["saliency_intensity"] = {
        "maps": differ.relative(maps[0]["maps"], maps[1]["maps"]),
        **{key: differ.relative(measured[0][key], measured[1][key]) for key in ("intensity", "confidence")},
    }

    bench.call("ours", "features", load=-1)
    features = {"features": str(folder / "ours-features-features.npy")}
    rows["pca"] = bench.stage("pca", images, inputs=alike(**features))
    reduced = bench.found("pca")
    differences["pca"] = differ.of_pca(*reduced)
    points = reduced[0]["points"]
    start = np.random.default_rng(config.seed).choice(len(points), config.explain.num_prototypes, replace=False)
    np.save(folder / "start.npy", points[np.sort(start)])
    place = {"points": str(folder / "ours-pca-points.npy")}
    lloyd = {**place, "start": str(folder / "start.npy"), "iterations": LLOYD_ITERATIONS}
    rows["kmeans"] = bench.stage("kmeans", inputs=alike(**lloyd))
    found = bench.found("kmeans")
    rows["kmeans"]["iterations"] = {side: each["iterations"] for side, each in zip(sides, found, strict=True)}
    differences["kmeans"] = {key: differ.relative(found[0][key], found[1][key]) for key in ("inertia", "centroids")}
    rows["kmeans_fit"] = bench.stage("kmeans_fit", equal_work=False, inputs=alike(**place))
    some = config.explain.max_locations if config.explain.max_locations > 0 else min(SUBSAMPLE, len(points) // 2)
    rows["kmeans_subsampled"] = bench.stage(
        "kmeans_subsampled",
        equal_work=False,
        calls=dict.fromkeys(sides, "kmeans_fit"),
        inputs={"ours": {**place, "max_locations": some}, "baseline": place},
    )
    rows["kmeans_subsampled"]["fitted_locations"] = {"ours": some, "baseline": len(points)}
    assign = {**place, "centroids": str(folder / "ours-kmeans-centroids.npy")}
    rows["assign"] = bench.stage("assign", inputs=alike(**assign))
    ids = bench.found("assign")
    differences["assign"] = {"share_that_differs": float((ids[0]["ids"] != ids[1]["ids"]).mean())}

    grouping = {"confidence": saved["confidence"]}
    rows["grouping"] = bench.stage("grouping", inputs=alike(**grouping))
    groups = bench.found("grouping")
    differences["grouping"] = {
        "adjusted_rand": differ.rand_by_interval(groups[0]["groups"], groups[1]["groups"], labels)
    }
    # One interval, in which much changes.
    changes = np.diff(ours["confidence"].astype(np.float64), axis=0)
    np.save(folder / "dY.npy", changes[np.abs(changes).mean((1, 2)).argmax()])
    rows["grouping_global"] = bench.stage(
        "grouping_global",
        equal_work=False,
        repeats=1,
        calls={"ours": "grouping_interval", "baseline": "grouping_global"},
        inputs=alike(dY=str(folder / "dY.npy")),
    )

    mapping = {name: saved[name] for name in ("intensity", "confidence", "groups")}
    rows["mapping"] = bench.stage("mapping", inputs=alike(**mapping))
    fits = bench.found("mapping")
    np.save(folder / "penalties.npy", fits[0]["ridge_lambda"])
    same = {name: saved[name] for name in ("intensity", "confidence")}
    at_ours = bench.call("baseline", "beta_at", penalties=str(folder / "penalties.npy"), **same)
    differences["mapping"] = {
        "beta": differ.relative(fits[0]["beta"], at_ours["beta"]),
        "beta_groups": differ.relative(fits[0]["beta_groups"], fits[1]["beta_groups"]),
        "r2_ours": fits[0]["r2"].tolist(),
        "r2_baseline": fits[1]["r2"].tolist(),
    }
    alone = {"equal_work": False, "repeats": 0, "load": None, "cool": False}
    rows["mapping_null"] = bench.stage(
        "mapping_null", calls={"ours": "mapping", "baseline": None}, inputs={"ours": {**mapping, **NULL}}, **alone
    )
    bench.call("ours", "read_splits", data_dir=data_dir or None)
    rows["explain_complete"] = bench.stage(
        "explain_complete", calls={"ours": "explain_complete", "baseline": None}, **alone
    )

    differences["train_step"] = train_differences(bench)
    for side in sides:
        bench.call(side, "start_training", augment=True)
    batch = config.train.batch_size * train_steps
    rows["train_step"] = bench.stage("train_step", batch, inputs=alike(count=train_steps), load=None)
    bench.bar.close()
    ordered = {name: rows[name] for name in (*STAGES, *(name for name in rows if name not in STAGES))}
    return {"stages": ordered, "memory": memory, "differences": without_nan(differences)}


def train_differences(bench: Bench) -> dict:
    """Loss before and after one step, without augmentation: of the second batch it tells whether the step was equal."""
    losses = {}
    for side in bench.sides:
        bench.call(side, "start_training", augment=False)
        losses[side] = [bench.call(side, "train_step", count=1)["loss"] for _ in range(2)]
    return {"losses": differ.relative(losses["ours"], losses["baseline"])}


def without_nan(value: Any) -> Any:
    """Figures for JSON, which has no NaN: null."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def growth(sides: dict[str, Any], config: Config, folder: pathlib.Path) -> dict:
    """Seconds of a warm explain stage as images, prototypes and checkpoints grow, and of PCA as channels do.

    Images and checkpoints beyond those of the run are repeated; features of many channels are drawn at random.
    """
    base = {"images": IMAGES[0], "prototypes": PROTOTYPES[0], "checkpoints": CHECKPOINTS[1]}
    settings = [
        *({**base, "images": count} for count in IMAGES),
        *({**base, "prototypes": count} for count in PROTOTYPES[1:]),
        *({**base, "checkpoints": count} for count in CHECKPOINTS if count != base["checkpoints"]),
    ]
    found = {"explain": [], "pca": []}
    with tqdm(total=len(settings) + len(CHANNELS), desc="growth", unit=" size", disable=None, leave=False) as bar:
        for setting in settings:
            row = dict(setting)
            for name, side in sides.items():
                # Compiled on a few images: programs do not depend on how many there are.
                side.call("resize", **{**setting, "images": min(WARMING_IMAGES, setting["images"])})
                side.call("explain")
                side.call("resize", **setting)
                answer = side.call("explain")
                row[name] = {"explain": answer["seconds"], **answer["result"]["parts"]}
            found["explain"].append(row)
            bar.update(1)
        for channels in CHANNELS:
            rng = np.random.default_rng(channels)
            scales = np.geomspace(1, 0.01, channels, dtype=np.float32)
            # A name of its own: workers keep what they read under the name they read it by.
            drawn = folder / f"drawn-{channels}.npy"
            np.save(drawn, rng.standard_normal((CHANNEL_ROWS, channels), np.float32) * scales)
            row = {"channels": channels, "rows": CHANNEL_ROWS}
            for name, side in sides.items():
                # Two calls: the first compiles.
                row[name] = [side.call("pca", features=str(drawn))["seconds"] for _ in range(2)][-1]
            drawn.unlink()
            found["pca"].append(row)
            bar.update(1)
    return found
