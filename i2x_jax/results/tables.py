"""The results of a run as flat tables: each of what it is made of, one dict of plain values a row."""

import dataclasses
from typing import TYPE_CHECKING, Any

from i2x_jax.config import InputError
from i2x_jax.explanation.ranking import DROPPED_ON, Ranked

if TYPE_CHECKING:
    import pandas


def records(table: str, source: Any) -> list[dict[str, Any]]:
    """The rows of a table.

    Args:
      table: one of `TABLES`.
      source: what it is made of: the explanation, the ranked prototypes, the ledgers of the classes, the lines of
        metrics.jsonl or the refinement table (`SOURCES`).
    """
    return TABLES[table](source)


def to_frame(rows: list[dict[str, Any]]) -> "pandas.DataFrame":
    """Rows as a pandas data frame.

    Raises:
      InputError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise InputError(
            "a table as a data frame needs pandas, which is not installed; allowed: any pandas from 2.2 on; "
            "pip install pandas"
        ) from None
    return pandas.DataFrame.from_records(rows)


def _intervals(explanation):
    rows = []
    for each in explanation.intervals:
        row = dataclasses.asdict(each)
        mean, p95, p99 = row.pop("null")
        row["fallbacks"] = "; ".join(row["fallbacks"])
        rows.append(row | {"null_mean": mean, "null_95": p95, "null_99": p99})
    return rows


def _prototypes(prototypes):
    return [
        {"prototype": each.id}
        | _looked_at(ranked)
        | {"count": each.count, "share": each.share}
        | {
            "supports": each.supports[0].name if each.supports else None,
            "contribution": each.supports[0].contribution if each.supports else None,
            "nearest": each.nearest[0].prototype if each.nearest else None,
            "distance": each.nearest[0].distance if each.nearest else None,
        }
        for each, ranked in prototypes
    ]


def _looked_at(ranked):
    """What tells whether a prototype deserves a look; nothing of a run without a ranking."""
    names = [field.name for field in dataclasses.fields(Ranked) if field.name not in ("prototype", "drop")]
    drops = {f"drop_{name}": ranked.drop.get(name) if ranked else None for name in DROPPED_ON}
    row = {name: getattr(ranked, name) if ranked else None for name in names} | drops
    return {"class" if name == "name" else name: value for name, value in row.items()}


def _support(explanation):
    steps = explanation.steps
    return [
        {"class": each.name, "from_step": steps[record.interval], "to_step": steps[record.interval + 1]}
        | dataclasses.asdict(record)
        for each in explanation.per_class
        for record in each.support
    ]


def _pairs(explanation):
    return [
        {
            "a": pair.a,
            "b": pair.b,
            "told_apart": pair.told_apart,
            "soft_a_for_b": pair.soft_confusions[0],
            "soft_b_for_a": pair.soft_confusions[1],
            "a_taken_for_b": pair.confusions[0],
            "b_taken_for_a": pair.confusions[1],
            "separating": pair.separating[0].prototype if pair.separating else None,
            "uncertain": None if pair.uncertain is None else len(pair.uncertain),
        }
        for pair in explanation.pairs
    ]


def _uncertain(explanation):
    steps = explanation.steps
    return [
        {
            "a": pair.a,
            "b": pair.b,
            "prototype": each.prototype,
            "score": each.score,
            "from_step": steps[t],
            "to_step": steps[t + 1],
            "s": each.s[t],
            "stable": each.stable[t],
            "counted": pair.counted[t],
        }
        for pair in explanation.pairs
        for each in pair.uncertain or ()
        for t in range(len(steps) - 1)
    ]


def _ledger(ledgers):
    return [
        {"class": each.name, "from_step": interval.from_step, "to_step": interval.to_step} | dataclasses.asdict(entry)
        for each in ledgers
        for interval in each.intervals
        for entry in interval.entries
    ]


def _metrics(metrics):
    return metrics


def _refinement(refinement):
    return [
        {"strategy": name, "phases": entry["phases"], "seed": seed["seed"], "accuracy": seed["accuracy"]}
        | {"pair_confusions": seed["pair_confusions"], "worst_class": seed["worst_class"]["accuracy"]}
        for name, entry in refinement["strategies"].items()
        for seed in entry["seeds"]
    ]


TABLES = {
    "intervals": _intervals,
    "prototypes": _prototypes,
    "support": _support,
    "pairs": _pairs,
    "uncertain": _uncertain,
    "ledger": _ledger,
    "metrics": _metrics,
    "refinement": _refinement,
}
# What a table is made of: a part of a run; the explanation for those that are not named.
SOURCES = {"prototypes": "prototypes", "ledger": "ledgers", "metrics": "metrics", "refinement": "refinement"}
