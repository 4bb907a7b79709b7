"""Whether a planted cue is found: ranks of its prototypes by several scores, and alarms, false ones too (`truth.py`).

A run is a planted set, or its twin without a plant, and one seed, which draws the training images, the weights and the
cue. Twins hold out an audit set of the same size. A location is *on the cue* where the square of twice the stride round
its centre holds some of the cue; a prototype is *one of the cue's* where at least `PURE` of its locations are. The
*strict* purity asks for some of the cue in the pixels nearest to the location: half that square's side.
"""

import pathlib
from typing import NamedTuple

import numpy as np

from experiments.benchmarks import quiet_runs
from i2x_jax import Run
from i2x_jax.config import Config, from_config_dict
from i2x_jax.data import planted
from i2x_jax.data.dataset import Dataset, Splits, hold_out, load_splits
from i2x_jax.data.pictures import reading_of
from i2x_jax.explanation import analysis, mapping, ranking, uncertainty
from i2x_jax.pipeline.explain import read_measured
from i2x_jax.refinement.actions import inside_boxes

PLANTS = ("tag", "tag_anywhere", "colour")
TWIN = "twin"
SCORES = ("evidence", "uncertainty", "exclusivity")
PURE = 0.6
STEPS = ("train", "prototypes", "evidence", "ranking")
# From the centre of a location to the sides of its square, in strides.
REACH, STRICT_REACH = 1.0, 0.5


class Sizes(NamedTuple):
    """How large the runs are.

    Attributes:
      name: of the data set.
      train: images to train on, the audit images among them.
      held: validation images, and test images.
      epochs: passes over the training images.
    """

    name: str = "mnist"
    train: int = 4000
    held: int = 2000
    epochs: int = 5


def config_of(sizes: Sizes, plant: str, strength: float, seed: int) -> Config:
    """The settings of a run: the built-in CNN, 32 prototypes, six checkpoints."""
    cue = {} if plant == TWIN else {"plant": plant, "plant_strength": strength, "plant_seed": seed}
    return from_config_dict(
        {
            "seed": seed,
            "data": {"name": sizes.name, "max_train": sizes.train, **cue},
            "train": {"epochs": sizes.epochs, "num_checkpoints": 6},
            "explain": {"num_prototypes": 32, "max_pairs": 0},
        }
    )


def splits_of(config: Config, sizes: Sizes, data_dir: str | None) -> Splits:
    """The data of a run: fewer held-out images, and a twin with an audit set of the size that a planted run has."""
    data = config.data
    found = load_splits(data.name, data.validation, data.max_train, config.seed, data_dir, reading_of(data))
    found = found._replace(**{name: _some(getattr(found, name), sizes.held) for name in ("validation", "test")})
    if data.plant:
        return planted.completed(found, data, config.seed)
    train, audit = hold_out(found.train, planted.AUDIT_IMAGES / len(found.train.labels), config.seed)
    return found._replace(train=train, audit=audit)


def _some(dataset: Dataset, count: int) -> Dataset:
    """So many images, evenly over the data set."""
    rows = np.arange(len(dataset.labels))
    return dataset.take(rows[:: max(1, len(rows) // count)][:count])


def made(config: Config, splits: Splits, folder: pathlib.Path) -> Run:
    """The run up to its ranking."""
    return quiet_runs.made(config, folder, splits, STEPS)


def on_cue(masks: np.ndarray, run: Run, reach: float = REACH) -> np.ndarray:
    """The locations whose square holds some of the cue: bool `[N, h, w]`.

    Args:
      masks: bool `[N, H, W]`, where the cue is.
      run: whose locations they are.
      reach: from a location's centre to the sides of its square, in strides.
    """
    found = np.asarray(masks)
    for axis, span in enumerate(run.model.places, 1):
        centres = span.start + span.stride * np.arange(run.model.feature_shape[axis - 1])
        pixels, far = np.arange(masks.shape[axis]), reach * span.stride
        found = np.moveaxis(np.moveaxis(found, axis, -1) @ inside_boxes(pixels, centres, far), -1, axis)
    return found


class OnCue(NamedTuple):
    """How prototypes stand to the cue, `[K]` each.

    Attributes:
      purity: share of a prototype's locations that are on the cue; 0 without any.
      recall: share of the images with the cue in which the prototype has a location on it.
      label: the class of most of its locations on the cue.
    """

    purity: np.ndarray
    recall: np.ndarray
    label: np.ndarray


def standing(assignments: np.ndarray, cue: np.ndarray, labels: np.ndarray, num_prototypes: int) -> OnCue:
    """`OnCue` of all prototypes.

    Args:
      assignments: int `[N, h, w]`.
      cue: bool `[N, h, w]` of `on_cue`.
      labels: int `[N]`.
      num_prototypes: K.
    """
    flat = np.asarray(assignments).reshape(len(labels), -1)
    by_class = np.zeros((num_prototypes, labels.max() + 1), int)
    hit = cue.reshape(len(labels), -1)
    np.add.at(by_class, (flat[hit], np.broadcast_to(labels[:, None], flat.shape)[hit]), 1)
    counts = np.bincount(flat.ravel(), minlength=num_prototypes)
    holds = np.zeros((len(labels), num_prototypes), bool)
    holds[np.nonzero(hit)[0], flat[hit]] = True
    return OnCue(
        purity=by_class.sum(1) / np.maximum(counts, 1),
        recall=holds.sum(0) / max(hit.any(1).sum(), 1),
        label=by_class.argmax(1),
    )


def rank_of(score: np.ndarray, who: np.ndarray) -> float | None:
    """The best rank, from 1, of prototypes `who` (bool `[K]`) by falling score `[K]`, ties shared; None of nobody."""
    if not who.any():
        return None
    best = score[who].max()
    return float(1 + (score > best).sum() + ((score == best).sum() - 1) / 2)


def scores_of(run: Run, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every prototype's scores `[K]`, high for what deserves a look; those that are not ranked come last."""
    ranked = found["ranked"]
    return {
        "evidence": np.where(ranked, found["evidence"].max(1), -np.inf),
        "uncertainty": uncertainty_of(run),
        "exclusivity": np.where(ranked, np.nan_to_num(found["exclusivity"]), -np.inf),
    }


def uncertainty_of(run: Run) -> np.ndarray:
    """The paper's score of every prototype for the pair that is confused most, `[K]` (DESIGN 2.8)."""
    measured, config = read_measured(run), run.config
    final = measured.validation_confidence[-1]
    pair = analysis.choose_pairs(config, measured.classes, final, measured.validation_labels).refined
    rows, spreads, fits = np.isin(measured.labels, pair), [], []
    for t in range(len(measured.steps) - 1):
        dP, dY = (analysis.difference(each, t)[rows] for each in (measured.intensity, measured.confidence))
        changes = mapping.Changes(dP, dY, measured.labels[rows], len(measured.classes))
        totals = (dP * measured.area[rows]).sum(1)
        fits += mapping.map_samples(changes, totals, [mapping.Subset(pair)], mapping.Draws(config.seed))
        spreads.append(dP.std(axis=0))
    return uncertainty.uncertain_scores(uncertainty.pair_scores(np.stack(spreads), fits, *pair))[0]


def final_accuracy(run: Run) -> dict[str, float]:
    """The last accuracy on each set."""
    return {line["split"]: line["accuracy"] for line in run.metrics if line["split"] != "batches"}


def alarms_of(found: dict[str, np.ndarray]) -> dict[str, list[int]]:
    """Prototypes that raise an alarm, with the audit set and without."""
    without = found | {name: found[name][:1] for name in ("samples", "right", "gained", "lost")}
    return {
        name: [each.prototype for each in ranking.alarms(arrays)]
        for name, arrays in (("audit", found), ("evidence", without))
    }


def measure(config: Config, splits: Splits, folder: pathlib.Path) -> dict:
    """The figures of one run."""
    run = made(config, splits, folder)
    found = run.arrays("ranking")
    alarms = alarms_of(found)
    figures = {
        "accuracy": final_accuracy(run),
        "top_over_median": float(found["top_over_median"]),
        "alarms": {name: len(ids) for name, ids in alarms.items()},
    }
    if config.data.plant:
        figures |= cue_figures(run, found, alarms)
    return figures


def cue_figures(run: Run, found: dict[str, np.ndarray], alarms: dict[str, list[int]]) -> dict:
    """Of a planted run: where the cue's prototypes stand."""
    labels, k = np.array(run.array("labels")), run.config.explain.num_prototypes
    assignments, masks = run.array("assignments"), run.truth()
    stands, strict = (standing(assignments, on_cue(masks, run, reach), labels, k) for reach in (REACH, STRICT_REACH))
    cue = (stands.purity >= PURE) & found["ranked"]
    scores = scores_of(run, found)
    first = int(np.argmax(scores["evidence"]))
    best = int(np.argmax(np.where(cue, scores["evidence"], -np.inf))) if cue.any() else None
    tagged = planted.cued_class(run.config.data, len(run.dataset.class_names))
    right = None
    if best is not None:
        own = int(stands.label[best]) if run.config.data.plant == "colour" else tagged
        right = int(found["label"][best]) == own
    return {
        "cue_prototypes": int(cue.sum()),
        "ranks": {name: rank_of(score, cue) for name, score in scores.items()},
        "first_purity": float(stands.purity[first]),
        "first_is_cue": bool(cue[first]),
        "best": best,
        "best_purity": None if best is None else float(stands.purity[best]),
        "best_strict_purity": None if best is None else float(strict.purity[best]),
        "best_recall": None if best is None else float(stands.recall[best]),
        "class_right": right,
        "alarm_hits": {name: bool(cue[ids].any()) if ids else False for name, ids in alarms.items()},
    }
