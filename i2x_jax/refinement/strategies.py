"""Fine-tuning on curated samples, beside the controls that tell whether curation was the cause (DESIGN 2.9)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optax
import scipy.stats

from i2x_jax.data.dataset import Dataset, steps_per_pass
from i2x_jax.models.model import Model, Variables
from i2x_jax.training.loop import init_state, loss_and_accuracy, predict, recompute_batch_norm, run_steps, zero_totals

FULL, RANDOM = "full", "random"


def phases(strategy: str) -> tuple[str, ...]:
    """The sets a strategy trains on, one per phase: 'curated>full' is ('curated', 'full')."""
    return tuple(strategy.split(">"))


def left_out_sets(
    curated: np.ndarray, labels: np.ndarray, confidence: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """The samples that each set leaves out; every control leaves out as many of each class as the curation.

    Args:
      curated: indices left out by the curation.
      labels: int `[N]`.
      confidence: `[T, N, M]`; may be a memory map.
      rng: draws the random control; a new one for every seed.

    Returns:
      For 'full', 'curated', 'random', 'ambiguous' (highest standard deviation of the label's confidence over
      checkpoints; Swayamdipta et al. 2020) and 'hard' (highest final loss): ascending indices.
    """
    rows = np.arange(len(labels))
    of_label = np.stack([np.asarray(step)[rows, labels] for step in confidence])
    ambiguity, loss = of_label.std(axis=0), -of_label[-1]

    def most(score):
        parts = [
            rows[labels == label][np.argsort(-score[labels == label], kind="stable")[:count]]
            for label, count in zip(*np.unique(labels[curated], return_counts=True), strict=True)
        ]
        return np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.int64)

    return {
        FULL: np.zeros(0, np.int64),
        "curated": np.sort(curated),
        RANDOM: most(rng.random(len(labels))),
        "ambiguous": most(ambiguity),
        "hard": most(loss),
    }


def refine_seed(
    model: Model,
    optimizer: optax.GradientTransformation,
    augmentation: str,
    variables: Variables,
    train: Dataset,
    test: Dataset,
    calibration: np.ndarray,
    left_out: dict[str, np.ndarray],
    strategies: Sequence[str],
    pair: tuple[int, int],
    batch_size: int,
    seeds: Sequence[int],
    progress: Callable[[int], Any] = lambda count: None,
) -> dict[str, dict]:
    """Runs every strategy once from the same weights; a first phase that several share is run once.

    Args:
      model: what is fine-tuned.
      optimizer: its schedule spans one phase and starts again with each.
      augmentation: see `training.augment`.
      variables: where every strategy starts.
      train: the N training samples.
      test: what the outcome is measured on.
      calibration: images whose BatchNorm statistics the outcome carries.
      left_out: of each set, see `left_out_sets`.
      strategies: such as 'full' or 'curated>full'.
      pair: the two classes whose confusions are counted.
      batch_size: samples a step.
      seeds: one for each phase: order and augmentation are the same for all strategies.
      progress: told after every step how many samples it took.

    Returns:
      For each strategy its `outcome`.
    """
    # The same for every strategy, however many samples its set has.
    steps = steps_per_pass(len(train.labels), batch_size)

    def run_phase(start, name, seed):
        subset = train.take(np.setdiff1d(np.arange(len(train.labels)), left_out[name]))
        state = init_state(start, optimizer)
        state, _ = run_steps(
            model, optimizer, augmentation, state, zero_totals(), subset, batch_size, seed, 0, steps, progress
        )
        return recompute_batch_norm(model, state.variables, calibration)

    reached = {(): variables}
    outcomes = {}
    # Shorter first, so that the phases a longer strategy shares are there already.
    for strategy in sorted(strategies, key=lambda name: len(phases(name))):
        names = phases(strategy)
        for depth in range(1, len(names) + 1):
            if names[:depth] not in reached:
                reached[names[:depth]] = run_phase(reached[names[: depth - 1]], names[depth - 1], seeds[depth - 1])
        outcomes[strategy] = outcome(predict(model, reached[names], test, batch_size), test, pair)
    return outcomes


def count_phases(strategies: Sequence[str]) -> int:
    """How many phases `refine_seed` runs, shared ones counted once."""
    return len({phases(name)[:depth] for name in strategies for depth in range(1, len(phases(name)) + 1)})


def outcome(logits: np.ndarray, test: Dataset, pair: tuple[int, int]) -> dict:
    """How good a classifier is, from its logits `[N, M]` on the test samples.

    Returns:
      `accuracy` in 0..1, `pair_confusions` (samples of either class of the pair taken for the other),
      `worst_class` (name and accuracy), `confusion` `[M][M]` counts (label, prediction).
    """
    num_classes = len(test.class_names)
    confusion = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(confusion, (test.labels, logits.argmax(-1)), 1)
    recall = confusion.diagonal() / np.maximum(confusion.sum(1), 1)
    worst = int(recall.argmin())
    return {
        "accuracy": loss_and_accuracy(logits, test.labels)[1],
        "pair_confusions": int(confusion[pair] + confusion[pair[::-1]]),
        "worst_class": {"class": test.class_names[worst], "accuracy": float(recall[worst])},
        "confusion": confusion.tolist(),
    }


def summarize(runs: list[dict[str, dict]], before: dict, strategies: Sequence[str], reason: str, counts: dict) -> dict:
    """The refinement table: `refinement.json` without its header.

    Args:
      runs: one `refine_seed` result per seed.
      before: the `outcome` without refinement.
      strategies: all that were asked for.
      reason: why those that were not run do not apply.
      counts: class name to number of samples left out.
    """
    table = {}
    for name in strategies:
        seeds = [{"seed": seed, **run[name]} for seed, run in enumerate(runs) if name in run]
        entry = {"applicable": bool(seeds), "phases": len(phases(name)), "seeds": seeds}
        if seeds:
            values = {measure: np.array([read(seed) for seed in seeds]) for measure, read in MEASURES.items()}
            spread = len(seeds) > 1
            entry["mean"] = {measure: float(value.mean()) for measure, value in values.items()}
            entry["std"] = {measure: float(value.std(ddof=1)) if spread else None for measure, value in values.items()}
        else:
            entry["reason"] = reason
        table[name] = entry
    return {"before": before, "strategies": table, "differences": differences(table), "left_out": counts}


MEASURES = {
    "accuracy": lambda run: run["accuracy"],
    "pair_confusions": lambda run: run["pair_confusions"],
    "worst_class": lambda run: run["worst_class"]["accuracy"],
}


def differences(table: dict) -> list[dict]:
    """Each strategy less full data and less the random control at as many phases, paired by seed."""
    rows = []
    for name, entry in table.items():
        for reference in {1: (FULL, RANDOM), 2: (f"{FULL}>{FULL}", f"{RANDOM}>{FULL}")}[entry["phases"]]:
            if name != reference and entry["seeds"] and table.get(reference, {}).get("seeds"):
                pairs = list(zip(entry["seeds"], table[reference]["seeds"], strict=True))
                rows.append(
                    {"strategy": name, "against": reference, "phases": entry["phases"]}
                    | {
                        measure: paired_interval(np.array([read(one) - read(two) for one, two in pairs]))
                        for measure, read in MEASURES.items()
                    }
                )
    return rows


def paired_interval(values: np.ndarray) -> dict:
    """Mean and 95 % t interval of paired differences; none from a single seed, or where all differences are equal."""
    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:
        return {"mean": mean, "low": None, "high": None}
    reach = float(scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return {"mean": mean, "low": mean - reach, "high": mean + reach}
