"""What acting on prototypes came to: a table, and sentences computed from its figures (DESIGN 2.13)."""

import textwrap
from collections.abc import Mapping, Sequence

from i2x_jax.config import ACTIONS, CONTROLS, RIVALS, printable

# Accuracies that are told, by what they are called in a table; those that were not measured are left out.
COLUMNS = {
    "unbiased_accuracy": "unbiased %",
    "audit_accuracy": "audit %",
    "validation_accuracy": "validation %",
    "swapped_accuracy": "swapped %",
    "accuracy": "test %",
}
# Who chose what is acted on.
CHOSEN = {
    "person": "named by a person",
    "evidence": "first by evidence",
    "alarm": "by the alarm on the audit images",
    "uncertain": "uncertain for the pair",
}
# What may judge, the first that there is. Without any, nothing tells a cue from an honest feature.
JUDGES = ("unbiased_accuracy", "audit_accuracy")
# How sentences stand in the terminal.
WIDTH, INDENTED = 118, {"initial_indent": "  ", "subsequent_indent": "    ", "break_long_words": False}
# The oracle knows the truth: it is told, and is no control to beat.
ORACLE = "true_mask"


def columns(table: dict) -> dict[str, str]:
    """The accuracies that a table holds, and what they are called."""
    return {key: name for key, name in COLUMNS.items() if key in table["before"]}


def judge(table: dict) -> str | None:
    """The accuracy by which actions are judged; None where nothing may."""
    return next((each for each in JUDGES if each in table["before"]), None)


def judged_on(table: dict) -> str:
    """The images on which actions are held against each other: those that judge, or else the swapped ones."""
    return {"unbiased_accuracy": "unbiased", "audit_accuracy": "audit", None: "swapped"}[judge(table)]


def acting(tables: Mapping[str, dict]) -> dict[str, dict]:
    """Of refinement tables by name those that act on prototypes."""
    return {name: table for name, table in tables.items() if "repair" in table}


def leaving_out(tables: Mapping[str, dict]) -> dict[str, dict]:
    """Of refinement tables by name those that leave samples out."""
    return {name: table for name, table in tables.items() if "repair" not in table}


def acted_on(table: dict) -> str:
    """What was acted on, and who chose it, in a few words."""
    told = table["repair"]
    if not told["prototypes"]:
        return "no prototype"
    named = [
        f"{k}" + (f" (rank {rank})" if rank else "") for k, rank in zip(told["prototypes"], told["ranks"], strict=True)
    ]
    return f"prototype{'s' * (len(named) > 1)} {', '.join(named)}, {CHOSEN[told['by']]}"


def against(table: dict, strategy: str, reference: str) -> dict | None:
    """The paired difference between two strategies in what judges, or in accuracy on the swapped validation images."""
    measure = judge(table) or "swapped_accuracy"
    rows = (row for row in table["differences"] if (row["strategy"], row["against"]) == (strategy, reference))
    return next((row[measure] for row in rows), None)


def rows(table: dict) -> list[dict]:
    """The lines of the table: `name`, and either `reason`, or `cells` (mean and deviation) and `less_plain`."""
    keys = columns(table)
    found = [{"name": "before", "cells": [(table["before"][key], None) for key in keys], "less_plain": None}]
    for name, entry in table["strategies"].items():
        if not entry["applicable"]:
            found.append({"name": name, "reason": entry["reason"]})
            continue
        cells = [(entry["mean"][key], entry["std"][key]) for key in keys]
        found.append({"name": name, "cells": cells, "less_plain": against(table, name, "plain")})
    return found


def applied(table: dict) -> list[str]:
    """The actions that were run."""
    return [name for name, entry in table["strategies"].items() if name in ACTIONS and entry["applicable"]]


def sentences(table: dict) -> list[str]:
    """What may be concluded; the first sentence says whether anything helped, or that nothing here can tell."""
    if not applied(table):
        reasons = {entry["reason"] for entry in table["strategies"].values() if not entry["applicable"]}
        return [f"Nothing was done: {'; '.join(sorted(reasons))}."]
    told = [_judged(table, name) if judge(table) else _unjudged(table, name) for name in applied(table)]
    refused = [
        f"Refused: {each['action']} costs {100 * (each['before'] - each['after']):.1f} points of accuracy on the audit "
        f"images, from {100 * each['before']:.1f} to {100 * each['after']:.1f} %; its model was not kept."
        for each in table["repair"]["refused"]
    ]
    many = f"{table['seeds']} seed" + ("s" if table["seeds"] > 1 else "")
    closing = (
        f"Means are over {many} of the fine-tuning, from one trained network, and intervals are of such seeds: another "
        "training may answer otherwise."
    )
    return [*refused, *told, closing]


def _judged(table, name):
    key = judge(table)
    before, after = table["before"][key], table["strategies"][name]["mean"][key]
    went = f"went from {100 * before:.1f} to {100 * after:.1f} %"
    text = f"{name} of {acted_on(table)}: accuracy on {judged_on(table)} images {went}"
    controls = [each for each in CONTROLS if each != ORACLE and against(table, name, each)]
    if not controls:
        return f"{text}; no control was run beside it."
    if "plain" in controls:
        text += f"; less plain fine-tuning of as many steps {_words(against(table, name, 'plain'))}"
    rivals = [each for each in RIVALS if against(table, name, each)]
    for among, role in ((controls, "the best control"), (rivals, "the best that trains on the audit images,")):
        best = max(among, key=lambda each: table["strategies"][each]["mean"][key], default="plain")
        if best != "plain":
            reached = 100 * table["strategies"][best]["mean"][key]
            text += f"; less {best}, {role} at {reached:.1f} %, {_words(against(table, name, best))}"
    return f"{text}. {_as_in_training(table, name)}"


def _as_in_training(table, name):
    before, after = table["before"]["accuracy"], table["strategies"][name]["mean"]["accuracy"]
    return (
        f"On test images, which are as those of the training, it went from {100 * before:.1f} to {100 * after:.1f} %."
    )


def _words(difference):
    points = f"{100 * difference['mean']:+.1f} points"
    if difference["low"] is None:
        return f"{points}, without an interval: this cannot tell whether it was the cause"
    span = f"{points}, 95 % interval {100 * difference['low']:+.1f} to {100 * difference['high']:+.1f}"
    if difference.get("holm") is not None:
        span += f", p {difference['holm']:.2g} after Holm"
    if difference["low"] > 0:
        return f"{span}, which is above 0"
    if difference["high"] < 0:
        return f"{span}, which is below 0"
    text = f"{span}, which holds 0: no difference was shown"
    if "detectable" in difference:
        text += f", and one of {100 * difference['detectable']:.1f} points would be in four cases of five"
    return text


def _unjudged(table, name):
    before, mean = table["before"], table["strategies"][name]["mean"]
    plain, swapped = (
        f"from {100 * before[key]:.1f} to {100 * mean[key]:.1f} %"
        for key in ("validation_accuracy", "swapped_accuracy")
    )
    return (
        f"Nothing here may judge {name} of {acted_on(table)}: there are no images in which the suspected link is "
        f"broken. On validation images accuracy went {plain}, and robustness to the swap, accuracy on swapped "
        f"validation images, {swapped}. The second may rise where an honest feature is destroyed, and the first must "
        "fall where a shortcut is: whether this is one, a person has to decide."
    )


def shown(name: str, table: dict) -> str:
    """A repair in the terminal: what was acted on, the table, and the sentences."""
    told, keys = table["repair"], columns(table)
    title = f"Acting on {acted_on(table)}" + (f" ({printable(name)})" if name else "")
    if "mask" in told:
        title += (
            f": mask by {told['mask']}, {100 * told['covered']:.0f} % of the image; held by "
            f"{100 * told['holding']:.0f} % of the images; {told['phases']} phase{'s' * (told['phases'] != 1)}"
        )
    lines = [title]
    if keys and applied(table):
        heads = "".join(f"{each:>16}" for each in keys.values())
        lines.append(f"  {'strategy':<17}{heads}   less plain, {judged_on(table)}")
        lines += [_line(row) for row in rows(table)]
    lines += [textwrap.fill(printable(each), WIDTH, **INDENTED) for each in sentences(table)]
    return "\n".join(lines)


def _line(row):
    if "reason" in row:
        return f"  {row['name']:<17} not applicable: {printable(row['reason'])}"
    cells = "".join(f" {spread(mean, std, 100)}" for mean, std in row["cells"])
    return f"  {row['name']:<17}{cells}   {interval(row['less_plain'])}".rstrip()


def spread(mean: float, std: float | None, scale: float = 1) -> str:
    """A mean and its deviation, in 15 characters."""
    return f"{scale * mean:>8.2f} " + (f"± {scale * std:>4.2f}" if std is not None else " " * 6)


def interval(difference: dict | None) -> str:
    """A paired difference in points, with interval and p (after Holm) where it has them; nothing for None."""
    if difference is None:
        return ""
    if difference["low"] is None:
        return f"{100 * difference['mean']:+.2f}"
    span = f"{100 * difference['mean']:+.2f} [{100 * difference['low']:+.2f}, {100 * difference['high']:+.2f}]"
    return span if difference.get("holm") is None else f"{span}, p {difference['holm']:.2g}"


def command(prototypes: Sequence[int]) -> str:
    """How to ask for a repair of a run."""
    named = ",".join(map(str, prototypes))
    return (
        "python -m i2x_jax --workdir=DIR --stage=refine --stage=report "
        f"--config.refine.prototypes={named} --config.refine.name=swap-{named.replace(',', '-')}"
    )
