"""A finished run in one screen of text."""

import collections
import os
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from i2x_jax.config import printable
from i2x_jax.explanation.account import SHOWN, PairEntry
from i2x_jax.explanation.ranking import FIRST, Alarm, Ranked
from i2x_jax.explanation.types import Explanation, PairExplanation
from i2x_jax.results import repairs
from i2x_jax.results.repairs import interval, spread

# Relative error of contributions from which they are said not to add up; rounding stays far below.
INCOMPLETE = 1e-3
# Prototypes that the learning story names on the images of a class.
MOST_NAMED = 3
# Whose accuracy is told; that on the audit set, by which choices are made, is in metrics.jsonl.
SPLITS = ("train", "validation", "test", "unbiased")


def summary(
    metrics: list[dict],
    explanation: Explanation | None,
    errors: np.ndarray,
    tables: Mapping[str, dict],
    skipped: Collection[int],
    where: Mapping[str, os.PathLike],
    doubts: Sequence[str] = (),
    told: Sequence[str] = (),
) -> str:
    """Accuracy, what deserves a look, how the pair was learned, what is explained, the pair, and refinements.

    What there is of it, as far as the run has got.

    Args:
      metrics: the lines of metrics.jsonl.
      explanation: None where there is none yet; then there is no refinement either.
      errors: completeness errors of the contributions, `[T]`.
      tables: the refinement tables by name; of those that leave samples out the first is shown, and a line tells of
        each of the others; of those that act on prototypes all are.
      skipped: the uncertain prototypes that the curation of the first passed over.
      where: paths by what is there, for the last lines.
      doubts: where the run has come to nothing, a sentence each.
      told: of `look_first` and `learning_story`, as far as there is a ranking and a ledger.
    """
    parts = [accuracy(metrics)]
    if doubts:
        parts.append(
            "\n".join(["Before anything is read from this run:", *(f"  {printable(each)}" for each in doubts)])
        )
    parts += told
    if explanation is not None:
        parts += [fidelity(explanation), told_apart(explanation)]
        if errors.max() > INCOMPLETE:
            parts.append(completeness(errors))
        left_out = repairs.leaving_out(tables)
        if left_out:
            name, table = next(iter(left_out.items()))
            parts += [wavering(explanation.pair(*table["pair"]), skipped), refinement(table)]
            if len(left_out) > 1:
                parts.append(other_refinements({key: value for key, value in left_out.items() if key != name}))
        parts += [repairs.shown(name, table) for name, table in repairs.acting(tables).items()]
    return "\n\n".join([*parts, "\n".join(f"{what:<16} {path}" for what, path in where.items())])


def accuracy(metrics: list[dict]) -> str:
    """The last accuracy on each split."""
    last = {line["split"]: line for line in metrics}
    cells = [f"{name} {100 * last[name]['accuracy']:.2f} %" for name in SPLITS if name in last]
    return f"Accuracy at step {metrics[-1]['step']}: " + ", ".join(cells)


def look_first(ranking: Sequence[Ranked], alarms: Sequence[Alarm]) -> str:
    """Which prototypes deserve a look first: two lines, and a third where there is an alarm.

    Args:
      ranking: of all prototypes, the first one first.
      alarms: of `explanation.ranking.alarms`.
    """
    first = [each for each in ranking if each.rank][:FIRST]
    named = ", ".join(str(each.prototype) for each in first) or "none has enough places to be ranked"
    lines = [f"Look here first, by evidence per location: {named}"]
    if first and first[0].over_median:
        one, name = first[0], printable(first[0].name)
        half = "" if one.since is None else f"; from step {one.since} on"
        lines.append(
            f"  prototype {one.prototype}: one place gives class {name} as much as {one.over_median:.1f} of the "
            f"median's; in {100 * one.in_class:.0f} % of {name}, {100 * one.in_others:.1f} % of others{half}"
        )
    if alarms and alarms[0].by == "audit":
        gains = ", ".join(f"{each.prototype} {100 * each.value:+.1f} points" for each in alarms)
        lines.append(f"  ALARM: left out, they make the network better on the audit set: {gains}")
    elif alarms:
        lines.append(
            f"  ALARM: prototype {alarms[0].prototype} stands out from all others: check what is in its frames"
        )
    return "\n".join(lines)


def trusted(verdicts: Sequence[tuple[str, bool | None, str, str]]) -> str:
    """How far the run can be trusted, a line for each check.

    Args:
      verdicts: of `findings.trust`.
    """
    told = {True: "held", False: "fell short", None: "not measured"}
    lines = [f"  {what:<15} {told[held]:<13} {figures}" for what, held, figures, _ in verdicts]
    return "\n".join(["How far to trust this run (DESIGN 2.14)", *lines])


def learning_story(
    names: tuple[str, str], steps: Sequence[int], gaps: Sequence[np.ndarray], entries: Sequence[PairEntry]
) -> str:
    """How the confidence in one of two classes came to differ from that in the other, and by which prototypes.

    Args:
      names: of the two classes.
      steps: T of them.
      gaps: float `[T]` over the images of each, the mean confidence in the first class less that in the second.
      entries: of `explanation.account.pair_ledger`.
    """
    a, b = (printable(name) for name in names)
    lines = [f"How {a} and {b} were learned: confidence in {a} less that in {b}, on the training images of each"]
    for name, gap, side in zip((a, b), gaps, ("in_a", "in_b"), strict=True):
        changes = np.diff(np.asarray(gap, np.float64))
        t = int(abs(changes).argmax())
        by = sorted(((getattr(each, side)[t], each.prototype) for each in entries), key=lambda each: -abs(each[0]))
        named = [(change, k) for change, k in by[:MOST_NAMED] if abs(change) >= SHOWN]
        rest = changes[t] - sum(change for change, _ in named)
        listed = "".join(f"{change:+.3f} by prototype {k}, " for change, k in named)
        lines += [
            f"  images of {name}: {gap[0]:+.3f} at step {steps[0]}, {gap[-1]:+.3f} at step {steps[-1]}; it moved most, "
            f"by {changes[t]:+.3f}, from step {steps[t]} to {steps[t + 1]}:",
            f"    {listed}{rest:+.3f} by the rest",
        ]
    most = max(entries, key=lambda each: each.score)
    if most.score >= SHOWN:
        lines.append(f"  prototype {most.prototype} wavered most ({most.score:.3f}), which does not tell what fails")
    return "\n".join(lines)


def fidelity(explanation: Explanation) -> str:
    """How much of the change of confidence the prototypes explain, beside what they have to beat."""
    lines = [
        "How much prototype change explains of confidence change, on held-out samples (1 = all)",
        "  r2 of what the class alone tells, of class and total saliency, and of the prototypes; gain of class and",
        "  prototypes over the class, beside its null (95 %), and of prototypes beside class and total saliency",
        f"  {'':>11} {'samples':>22} {'r2':>22} {'gain over':>20}",
        f"  {'steps':>11} {'groups':>8} {'noise':>6} {'same':>6} {'class':>8} {'total':>6} {'protos':>6} {'class':>6}"
        f" {'null':>5} {'total':>7}",
    ]
    for each in explanation.intervals:
        if each.r2 is None:
            verdict = "too little changed to measure"
        elif not each.above_null:
            verdict = "not above its null"
        else:
            verdict = "" if each.gain_total is None or each.gain_total > 0 else "nothing beyond total saliency"
        lines.append(
            f"  {f'{each.from_step}-{each.to_step}':>11} {each.groups:>8} {each.noise:>6} {each.unchanged:>6}"
            f" {_number(each.r2_class, 8)} {_number(each.r2_total)} {_number(each.r2)} {_number(each.gain)}"
            f" {_number(each.null[1], 5)} {_number(each.gain_total, 7)}  {verdict}".rstrip()
        )
    return "\n".join(lines)


def told_apart(explanation: Explanation, most: int = 5) -> str:
    """When the pairs of classes were told apart: how many at each step, and which came last."""
    apart = sorted(
        (pair for pair in explanation.pairs if pair.told_apart is not None), key=lambda pair: -pair.told_apart
    )
    never = [pair_name(pair.a, pair.b) for pair in explanation.pairs if pair.told_apart is None]
    counts = collections.Counter(pair.told_apart for pair in apart)
    lines = [
        f"Pairs of classes told apart on validation (area under the ROC stays at least 0.95): {len(apart)} of "
        f"{len(explanation.pairs)}",
        "  " + ", ".join(f"{counts[step]} from step {step}" for step in sorted(counts)),
        "  last: " + ", ".join(f"{pair_name(pair.a, pair.b)} from {pair.told_apart}" for pair in apart[:most]),
    ]
    if never:
        lines.append("  never: " + ", ".join(never[:most]) + (f" and {len(never) - most} more" if never[most:] else ""))
    return "\n".join(lines if apart else lines[:1] + lines[3:])


def wavering(pair: PairExplanation, skipped: Collection[int], most: int = 8) -> str:
    """The pair that is refined and its uncertain prototypes; `skipped` are those that curation passed over."""
    apart = "never told apart" if pair.told_apart is None else f"told apart from step {pair.told_apart}"
    a, b = (printable(name) for name in (pair.a, pair.b))
    lines = [
        f"Pair {a}/{b}: {apart}; on validation {pair.confusions[0]} of class {a} were taken for "
        f"{b}, and {pair.confusions[1]} of class {b} for {a}"
    ]
    counted = sum(pair.counted or ())
    lines.append(f"  intervals whose fit beats its null: {counted} of {len(pair.counted or ())}")
    if not pair.uncertain:
        lines.append("  no prototype wavers with a stable sign between counted intervals: nothing to curate")
        return "\n".join(lines)
    lines.append("  uncertain prototypes (score in confidence; sign flips over all intervals):")
    for each in pair.uncertain[:most]:
        note = "  skipped: would leave out too much of a class" if each.prototype in skipped else ""
        lines.append(f"    {each.prototype:>4}  {each.score:.4f}  {each.flips} flips{note}")
    if pair.uncertain[most:]:
        lines.append(f"    and {len(pair.uncertain) - most} with lower scores")
    return "\n".join(lines)


def completeness(errors: np.ndarray) -> str:
    """A line where contributions do not add up to the logits of themselves: what they miss is spread over them."""
    return (
        f"Contributions missed the logits by up to {100 * errors.max():.0f} % of the largest before that was spread "
        "over them: the head is not linear"
    )


def refinement(table: dict) -> str:
    """The refinement table, with the paired differences to the random control."""
    pair = pair_name(*table["pair"])
    before = table["before"]
    left_out = ", ".join(f"{count} of class {printable(name)}" for name, count in table["left_out"].items())
    seeds = f"{table['seeds']} seed" + ("s" if table["seeds"] > 1 else "")
    lines = [
        f"Refinement on the test set, mean ± deviation over {seeds}; curation leaves out {left_out};",
        "  less random: accuracy less that of leaving out as many samples at random, with its 95 % interval",
        f"  {'strategy':<17} {'accuracy %':>15} {pair + ' confusions':>17} {'worst class %':>15}   less random",
        f"  {'before':<17} {100 * before['accuracy']:>8.2f}        {before['pair_confusions']:>10.2f}       "
        f"{100 * before['worst_class']['accuracy']:>8.2f}",
    ]
    against_random = {row["strategy"]: row["accuracy"] for row in table["differences"] if "random" in row["against"]}
    for name, entry in table["strategies"].items():
        if not entry["applicable"]:
            lines.append(f"  {name:<17} not applicable: {printable(entry['reason'])}")
            continue
        mean, std = entry["mean"], entry["std"]
        row = (
            f"  {name:<17} {spread(mean['accuracy'], std['accuracy'], 100)}"
            f"   {spread(mean['pair_confusions'], std['pair_confusions'])}"
            f" {spread(mean['worst_class'], std['worst_class'], 100)}   {interval(against_random.get(name))}"
        )
        lines.append(row.rstrip())
    return "\n".join(lines)


def other_refinements(tables: Mapping[str, dict]) -> str:
    """A line for each refinement beside the one that is shown."""
    lines = ["Other refinements: the strategy furthest above its random control, in accuracy, with its 95 % interval"]
    for name, table in tables.items():
        found = best(table)
        told = f"{found[0]:<17} {interval(found[1])}" if found else "no random control"
        lines.append(f"  {printable(name):<17} {pair_name(*table['pair']):<17} {told}")
    return "\n".join(lines)


def best(table: dict) -> tuple[str, dict] | None:
    """The strategy whose accuracy is highest above its random control, and that difference; None without controls."""
    rows = [row for row in table["differences"] if row["against"].startswith("random")]
    found = max(rows, key=lambda row: row["accuracy"]["mean"], default=None)
    return found and (found["strategy"], found["accuracy"])


def pair_name(a: str, b: str) -> str:
    """Two classes in one word; their names come with the data, and may hold anything."""
    return f"{printable(a)}/{printable(b)}"


def _number(value, width=6):
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.2f}"
