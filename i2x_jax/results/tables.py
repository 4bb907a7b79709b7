"""The results of a run as flat tables."""

import dataclasses
from typing import TYPE_CHECKING, Any

from i2x_jax.config import InputError

if TYPE_CHECKING:
    import pandas

    from i2x_jax.results.opened_run import Run


def records(run: "Run", table: str) -> list[dict[str, Any]]:
    """The rows of a table, each a dict of plain values; see `Run.to_frame`.

    Raises:
      InputError: no such table, or the stage that makes it has not run.
    """
    if table not in TABLES:
        raise InputError(f"unknown table {table!r}; allowed: {', '.join(TABLES)}; check the spelling")
    return TABLES[table](run)


def to_frame(run: "Run", table: str) -> "pandas.DataFrame":
    """See `Run.to_frame`."""
    try:
        import pandas
    except ImportError:
        raise InputError(
            "a table as a data frame needs pandas, which is not installed; allowed: any pandas from 2.2 on; "
            "pip install pandas"
        ) from None
    return pandas.DataFrame.from_records(records(run, table))


def _intervals(run):
    rows = []
    for each in run.explanation.intervals:
        row = dataclasses.asdict(each)
        mean, p95, p99 = row.pop("null")
        row["fallbacks"] = "; ".join(row["fallbacks"])
        rows.append(row | {"null_mean": mean, "null_95": p95, "null_99": p99})
    return rows


def _prototypes(run):
    return [
        {"prototype": each.id, "count": each.count, "share": each.share}
        | {
            "supports": each.supports[0].name if each.supports else None,
            "contribution": each.supports[0].contribution if each.supports else None,
            "nearest": each.nearest[0].prototype if each.nearest else None,
            "distance": each.nearest[0].distance if each.nearest else None,
        }
        for each in run.explanation.prototypes
    ]


def _support(run):
    steps = run.explanation.steps
    return [
        {"class": each.name, "from_step": steps[record.interval], "to_step": steps[record.interval + 1]}
        | dataclasses.asdict(record)
        for each in run.explanation.per_class
        for record in each.support
    ]


def _pairs(run):
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
        for pair in run.explanation.pairs
    ]


def _uncertain(run):
    steps = run.explanation.steps
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
        for pair in run.explanation.pairs
        for each in pair.uncertain or ()
        for t in range(len(steps) - 1)
    ]


def _metrics(run):
    return run.metrics


def _refinement(run):
    return [
        {"strategy": name, "phases": entry["phases"], "seed": seed["seed"], "accuracy": seed["accuracy"]}
        | {"pair_confusions": seed["pair_confusions"], "worst_class": seed["worst_class"]["accuracy"]}
        for name, entry in run.refinement["strategies"].items()
        for seed in entry["seeds"]
    ]


TABLES = {
    "intervals": _intervals,
    "prototypes": _prototypes,
    "support": _support,
    "pairs": _pairs,
    "uncertain": _uncertain,
    "metrics": _metrics,
    "refinement": _refinement,
}
