"""What the report says, as plain values from the files of a run, in the order of the page (DESIGN 2.6 to 2.9)."""

import collections
from typing import Any

import numpy as np

from i2x_jax.config import OWN, printable
from i2x_jax.explanation import uncertainty
from i2x_jax.explanation.rivals import column_of
from i2x_jax.explanation.types import PairExplanation, Separating
from i2x_jax.refinement.strategies import outcome
from i2x_jax.report import charts
from i2x_jax.results import findings, repairs
from i2x_jax.results.files import CONFIG, read_json, repaired_folder
from i2x_jax.results.opened_run import Run
from i2x_jax.results.summary import best

# A page that held all pairs of a thousand classes would not open.
MAX_PAIRS = 1000
# Rows of a heat map that people can still read.
MAX_HEAT_ROWS = 24
# Groups of settings that a network trained elsewhere has no use for.
TRAINING = ("data", "model", "train")


def rounded(values: Any, digits: int = 4) -> Any:
    """Numbers, however nested, at so many significant digits; None where not finite."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if isinstance(values, (list, tuple)):
        return [rounded(value, digits) for value in values]
    if values is None or isinstance(values, (bool, int)):
        return values
    return float(f"{values:.{digits}g}") + 0.0 if np.isfinite(values) else None


def labelled_intervals(run: Run) -> list[str]:
    """The intervals as 'from–to'."""
    return [f"{each.from_step}–{each.to_step}" for each in run.explanation.intervals]


def refinement_table(run: Run) -> dict:
    """The first refinement that left samples out; of a network that was not refined so, one without strategies."""
    if run.config.model.name != OWN:
        for table in repairs.leaving_out(run.refinements).values():
            return table
    pair = tuple(int(label) for label in run.arrays("curated")["pair"])
    before = outcome(run.arrays("test")["confidence"][-1], run.splits.test, pair, run.rivals)
    names = [run.explanation.classes[label] for label in pair]
    return {"pair": names, "seeds": 0, "before": before, "left_out": {}, "strategies": {}, "differences": []}


def first_look(run: Run) -> dict:
    """What stands beside the prototypes that deserve a look first: alarms, and what the order rests on."""
    return {
        "alarms": [findings.alarm(each) for each in run.alarms],
        "notes": findings.order(run.ranking),
        "total": len(run.ranking),
    }


def overview(run: Run) -> dict:
    """What was run, how well it does, how far the mapping can be trusted."""
    header = read_json(run.path / CONFIG)
    explanation, table, config = run.explanation, refinement_table(run), run.config
    own = config.model.name == OWN
    assignments = run.array("assignments")
    last = {line["split"]: line for line in run.metrics}
    intervals = labelled_intervals(run)
    series = {"gain over class mean": "gain", "gain over total saliency": "gain_total"}
    rows = [
        {"interval": name, "series": label, "value": value}
        for name, each in zip(intervals, explanation.intervals, strict=True)
        for label, value in (
            *((label, getattr(each, field)) for label, field in series.items()),
            ("null of the first, 95 %", each.null[1]),
        )
        if value is not None and each.gain is not None
    ]
    after = {
        name: rounded(entry["mean"]["accuracy"])
        for name, entry in table["strategies"].items()
        if entry["applicable"] and "curated" in name
    }
    return {
        "data": "your images" if config.data.name == OWN else config.data.name,
        "model": "your model"
        if own
        else f"{config.model.name}{f', tap {config.model.tap}' if config.model.tap else ''}",
        "own": own,
        "refined": bool(table["strategies"]),
        "samples": len(run.array("labels")),
        "part": run.part,
        "map_shape": list(assignments.shape[1:]),
        "last_step": int(run.steps[-1]),
        "accuracy": {name: last[name]["accuracy"] for name in ("train", "validation") if name in last},
        "before": table["before"]["accuracy"],
        "after": after,
        "ledger": _ledger_terms(run) if run.has_ledger else None,
        "conclusions": findings.fidelity(explanation),
        "warnings": [printable(sentence) for sentence in run.doubts()]
        + findings.warnings(explanation, assignments.shape[1:], run.arrays("contributions")["completeness_error"]),
        "intervals": [
            {"name": name, "record": each} for name, each in zip(intervals, explanation.intervals, strict=True)
        ],
        "chart": charts.fidelity(rows, intervals),
        # What a training here would have used says nothing of a network from elsewhere.
        "settings": _flat({key: value for key, value in header["config"].items() if not (own and key in TRAINING)}),
        "provenance": _flat(header["provenance"]),
    }


def _ledger_terms(run: Run) -> list[tuple[str, str]]:
    return findings.ledger(run.arrays("ledger"), run.steps, len(run.accounted), len(run.array("labels")))


def _flat(values: dict, prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            rows.append((f"{prefix}{key}", text))
    return rows


def learning(run: Run, names: list[str]) -> dict:
    """What happened between the checkpoints."""
    explanation, steps, intervals = run.explanation, [str(step) for step in run.steps], labelled_intervals(run)
    labels, own = run.array("labels"), [float(step.mean()) for step in run.own_confidence]
    lines = [
        {"step": str(line["step"]), "series": f"accuracy, {line['split']}", "value": rounded(line["accuracy"])}
        for line in run.metrics
        if line["split"] == "validation" and str(line["step"]) in steps
    ]
    lines += [
        {"step": step, "series": "confidence in the label, training", "value": rounded(value)}
        for step, value in zip(steps, own, strict=True)
    ]
    samples = len(labels)
    changed = []
    for name, each in zip(intervals, explanation.intervals, strict=True):
        counts = (samples - each.noise - each.unchanged, each.noise, each.unchanged)
        for order, (kind, count) in enumerate(zip(("in a group", "noise", "unchanged"), counts, strict=True)):
            changed.append({"interval": name, "kind": kind, "samples": count, "groups": each.groups, "order": order})
    shown = dict(zip(explanation.classes, names, strict=True))
    # Both orders of a pair, so that the picture is whole whichever class is looked for first.
    apart = [
        {"a": shown[a], "b": shown[b], "step": "never" if pair.told_apart is None else str(pair.told_apart)}
        | {"link": [pair.a, pair.b]}
        for pair in explanation.pairs[:MAX_PAIRS]
        for a, b in ((pair.a, pair.b), (pair.b, pair.a))
    ]
    counts = collections.Counter(pair.told_apart for pair in explanation.pairs)
    return {
        "chart_lines": charts.learning(lines, steps),
        "lines": lines,
        "chart_changes": charts.changes(changed, intervals),
        "changes": [
            (name, each, samples - each.noise - each.unchanged)
            for name, each in zip(intervals, explanation.intervals, strict=True)
        ],
        "chart_apart": charts.apart(apart, names, steps) if len(names) <= 40 else None,
        "apart": [
            (step, counts[step], [_names(pair, shown) for pair in explanation.pairs if pair.told_apart == step])
            for step in (*map(int, run.steps), None)
            if counts[step]
        ],
    }


def _names(pair, shown):
    return f"{shown[pair.a]} / {shown[pair.b]}"


def refinement(run: Run) -> dict:
    """The refinement table and whether curation was worth it."""
    table = refinement_table(run)
    random = [row for row in table["differences"] if row["against"].startswith("random")]
    percent = [
        {"strategy": row["strategy"], "against": row["against"]}
        | {key: rounded(None if value is None else 100 * value) for key, value in row["accuracy"].items()}
        for row in random
    ]
    seeds = [
        {"strategy": name, "seed": seed["seed"], "accuracy": rounded(100 * seed["accuracy"], 5)}
        | {"mean": rounded(100 * entry["mean"]["accuracy"], 5)}
        for name, entry in table["strategies"].items()
        for seed in entry["seeds"]
    ]
    order = list(table["strategies"])
    left_out = list(repairs.leaving_out(run.refinements).items())
    return {
        "pair": table["pair"],
        "seeds": table["seeds"],
        "before": table["before"],
        "left_out": table["left_out"],
        "words": findings.refinement(table),
        "others": [(name, each["pair"], best(each)) for name, each in left_out[1:]],
        "strategies": table["strategies"],
        "against_random": {row["strategy"]: row["accuracy"] for row in random},
        "chart_accuracy": charts.accuracies(seeds, order, 100 * table["before"]["accuracy"]) if seeds else None,
        "chart_difference": charts.refinement(percent, [row["strategy"] for row in percent]) if percent else None,
    }


def repaired(run: Run) -> list[dict]:
    """What acting on prototypes came to: of each refinement that did its title, sentences and table."""
    return [
        {
            "name": name,
            "on": repairs.acted_on(table),
            "told": table["repair"],
            "words": repairs.sentences(table),
            "columns": list(repairs.columns(table).values()),
            "against": repairs.judged_on(table),
            "rows": repairs.rows(table) if repairs.applied(table) else [],
            "saved": [(action, repaired_folder(name, action)) for action in table["repair"]["saved"]],
        }
        for name, table in repairs.acting(run.refinements).items()
    ]


def how_to_repair(run: Run) -> str | None:
    """What acts on the first prototype: a command, or of images of one's own a call; None of an own network."""
    if run.config.model.name == OWN or not run.ranking:
        return None
    first = run.ranking[0].prototype
    return f"run.refine(prototypes=[{first}])" if run.config.data.name == OWN else repairs.command([first])


def pairs(run: Run) -> list[dict]:
    """What separates two classes and what wavered between them, of the most confused pairs."""
    explanation, curated, table = run.explanation, run.arrays("curated"), refinement_table(run)
    refined = tuple(explanation.classes[label] for label in curated["pair"])
    return [
        _pair(pair, run, table, curated if (pair.a, pair.b) == refined else None)
        for pair in explanation.pairs[:MAX_PAIRS]
    ]


def carrier(pair: PairExplanation, separating: Separating) -> str:
    """The class of a pair on whose images a separating prototype weighs more."""
    return pair.a if abs(separating.evidence_a) >= abs(separating.evidence_b) else pair.b


def _pair(pair: PairExplanation, run, table, curated) -> dict:
    classes = run.explanation.classes
    a, b = classes.index(pair.a), classes.index(pair.b)
    for_b, for_a = column_of(run.rivals, a, b), column_of(run.rivals, b, a)

    def taken(confusion):
        return [confusion[a][for_b], confusion[b][for_a]]

    uncertain = {each.prototype: each for each in pair.uncertain or ()}
    return {
        "a": a,
        "b": b,
        "told_apart": pair.told_apart,
        "soft": rounded(pair.soft_confusions),
        "confusions": list(pair.confusions),
        "separating": [
            [each.prototype, rounded(each.evidence_a), rounded(each.evidence_b), classes.index(carrier(pair, each))]
            for each in pair.separating
        ],
        "analysed": pair.uncertain is not None,
        "uncertain": [[each.prototype, rounded(each.score), each.flips] for each in uncertain.values()],
        "counted": pair.counted,
        "r2": rounded(pair.r2),
        "r2_null": rounded(pair.r2_null),
        "heat": _heat(pair, uncertain, curated),
        "refined": curated is not None,
        "skipped": [] if curated is None else curated["skipped"].tolist(),
        "test": {
            "before": taken(table["before"]["confusion"]),
            "after": [
                [name, rounded(np.mean([taken(seed["confusion"]) for seed in entry["seeds"]], axis=0))]
                for name, entry in table["strategies"].items()
                if entry["applicable"]
            ],
        },
    }


def _heat(pair, uncertain, curated) -> list[dict]:
    """Rows of `charts.heat`: uncertain prototypes first; of the refined pair also the others of largest |s|."""
    if not pair.counted:
        return []
    rows = [(k, each.s, each.stable) for k, each in uncertain.items()]
    if curated is not None:
        s, ci = curated["pair_s"], curated["pair_s_ci"]
        size = np.nan_to_num(abs(s)).max(axis=0)
        others = [int(k) for k in np.argsort(-size, kind="stable") if k not in uncertain and size[k] > 0]
        rows += [(k, s[:, k], np.sign(ci[:, k, 0]) == np.sign(ci[:, k, 1])) for k in others]
    return [
        {"time": t, "prototype": k, "order": order, "value": rounded(value), "uncertain": k in uncertain}
        | {
            "faint": not pair.counted[t],
            "stable": bool(stable[t]),
            "mark": k in uncertain and t in turned(pair, s, stable),
        }
        for order, (k, s, stable) in enumerate(rows[:MAX_HEAT_ROWS])
        for t, value in enumerate(s)
        if value is not None and np.isfinite(value)
    ]


def turned(pair: PairExplanation, s, stable) -> list[int]:
    """The intervals at which s has another sign than at the last one that counts and is stable (DESIGN 2.8)."""
    sure = [t for t, counted in enumerate(pair.counted) if counted and stable[t]]
    turns = uncertainty.flips(np.array([s[t] for t in sure], np.float64))
    return [t for t, turn in zip(sure[1:], turns, strict=True) if turn]
