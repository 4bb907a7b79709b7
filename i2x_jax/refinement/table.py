"""The refinement table: what each strategy reached, and how it compares with its controls (DESIGN 2.9)."""

from collections.abc import Sequence

import numpy as np
import scipy.stats

from i2x_jax.refinement.strategies import FULL, RANDOM, phases


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
