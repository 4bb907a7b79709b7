"""The refinement table: what each strategy reached, and how it compares with its controls (DESIGN 2.9, 2.13)."""

import operator
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.stats

from i2x_jax.config import ACTIONS, CONTROLS, RIVALS
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


# Of fewer no p-value is told: a t test of so few leans on how differences are distributed, which nobody knows.
LEAST_SEEDS = 6
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
        return (*CONTROLS, *RIVALS)
    if strategy in (*CONTROLS, *RIVALS):
        return ("plain",)
    return (FULL, RANDOM) if phases == 1 else (f"{FULL}>{FULL}", f"{RANDOM}>{FULL}")


def differences(table: dict) -> list[dict]:
    """Each strategy less its `references`: full data and the random control, or all controls; paired by seed.

    Those that are held against the same are tested together: `holm` is p, adjusted for their number.
    """
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
    for reference in {row["against"] for row in rows}:
        together = [row for row in rows if row["against"] == reference]
        for measure in set(together[0]) - {"strategy", "against", "phases"}:
            tested = [row[measure] for row in together if row[measure]["p"] is not None]
            for difference, adjusted in zip(tested, holm([each["p"] for each in tested]), strict=True):
                difference["holm"] = adjusted
    return rows


def paired_interval(values: np.ndarray) -> dict:
    """What the differences of n pairs tell of their mean; nothing of one, or where all are equal.

    Returns:
      `mean`; `low` and `high`, its 95 % t interval; `detectable`, how large a true difference must be for such an
      interval to leave zero out in four cases of five, `(t_.975 + t_.8) s / sqrt(n)`; `p` of the two-sided t test,
      below .05 where the interval leaves zero out, None of fewer than `LEAST_SEEDS`; and `holm`, see `differences`.
    """
    count, mean = len(values), float(values.mean())
    if count < 2 or np.ptp(values) == 0:
        return {"mean": mean} | dict.fromkeys(("low", "high", "detectable", "p", "holm"))
    error = float(values.std(ddof=1) / np.sqrt(count))
    reach, power = (float(quantile * error) for quantile in scipy.stats.t.ppf((0.975, 0.8), count - 1))
    p = float(2 * scipy.stats.t.sf(abs(mean) / error, count - 1)) if count >= LEAST_SEEDS else None
    return {"mean": mean, "low": mean - reach, "high": mean + reach, "detectable": reach + power, "p": p, "holm": None}


def holm(values: Sequence[float]) -> list[float]:
    """P-values of several tests so adjusted that .05 bounds the chance of any false finding (Holm 1979); in order."""
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.asarray(values)[order] * factors), 1)
    return adjusted.tolist()
