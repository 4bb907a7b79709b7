"""The refinement table: what each strategy reached, and how it compares with its controls (DESIGN 2.9, 2.13)."""

import operator
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.stats

from i2x_jax.config import ACTIONS, CONTROLS
from i2x_jax.refinement.strategies import FULL, RANDOM, phases


def summarize(
    runs: list[dict[str, dict]],
    before: dict,
    strategies: Sequence[str],
    reasons: Mapping[str, str] | str,
    counts: dict,
    phases_of_actions: int = 1,
) -> dict:
    """The refinement table: `refinement.json` without its header.

    Args:
      runs: one `refine_seed` result per seed.
      before: the `outcome` without refinement.
      strategies: all that were asked for.
      reasons: why those that were not run do not apply, each for itself, or all for the same reason.
      counts: class name to number of samples left out.
      phases_of_actions: how many an action and its controls took.
    """
    table = {}
    for name in strategies:
        seeds = [{"seed": seed, **run[name]} for seed, run in enumerate(runs) if name in run]
        entry = {"applicable": bool(seeds), "phases": len(phases(name, phases_of_actions)), "seeds": seeds}
        if seeds:
            values = {
                measure: np.array([read(seed) for seed in seeds]) for measure, read in measures_of(before).items()
            }
            spread = len(seeds) > 1
            entry["mean"] = {measure: float(value.mean()) for measure, value in values.items()}
            entry["std"] = {measure: float(value.std(ddof=1)) if spread else None for measure, value in values.items()}
        else:
            entry["reason"] = reasons if isinstance(reasons, str) else reasons[name]
        table[name] = entry
    return {"before": before, "strategies": table, "differences": differences(table), "left_out": counts}


MEASURES = {
    "accuracy": lambda run: run["accuracy"],
    "pair_confusions": lambda run: run["pair_confusions"],
    "worst_class": lambda run: run["worst_class"]["accuracy"],
}


# Accuracies on other sets, where they were measured: on validation images as they are and as the swap leaves them, on
# audit images, by which choices are made, and on unbiased ones.
ELSEWHERE = ("validation_accuracy", "swapped_accuracy", "audit_accuracy", "unbiased_accuracy")


def measures_of(outcome: dict) -> dict[str, Callable[[dict], float]]:
    """What is told of outcomes such as this one, and how it is read."""
    return MEASURES | {name: operator.itemgetter(name) for name in ELSEWHERE if name in outcome}


def references(strategy: str, phases: int) -> tuple[str, ...]:
    """What a strategy is held against, at as many phases; of the controls of actions, `drop` is held against all."""
    if strategy in ACTIONS:
        return CONTROLS
    if strategy in CONTROLS:
        return ("plain",)
    return (FULL, RANDOM) if phases == 1 else (f"{FULL}>{FULL}", f"{RANDOM}>{FULL}")


def differences(table: dict) -> list[dict]:
    """Each strategy less its `references`: full data and the random control, or all controls; paired by seed."""
    rows = []
    for name, entry in table.items():
        for reference in references(name, entry["phases"]):
            if name != reference and entry["seeds"] and table.get(reference, {}).get("seeds"):
                pairs = list(zip(entry["seeds"], table[reference]["seeds"], strict=True))
                rows.append(
                    {"strategy": name, "against": reference, "phases": entry["phases"]}
                    | {
                        measure: paired_interval(np.array([read(one) - read(two) for one, two in pairs]))
                        for measure, read in measures_of(entry["seeds"][0]).items()
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
