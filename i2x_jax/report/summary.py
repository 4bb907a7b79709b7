"""A finished run in one screen of text."""

import collections

from i2x_jax.explanation import Explanation, PairExplanation
from i2x_jax.run_directory import CONTACT_SHEET, EXPLANATION, REFINEMENT, Run


def summary(run: Run) -> str:
    """Accuracy, what the explanation explains, the pair, and the refinement table; as far as the run has got."""
    parts = [accuracy(run.metrics)]
    if (run.path / EXPLANATION).exists():
        parts += [fidelity(run.explanation), told_apart(run.explanation)]
    if (run.path / REFINEMENT).exists():
        names = run.refinement["pair"]
        parts += [wavering(run.explanation.pair(*names)), refinement(run.refinement)]
    where = [f"Run directory    {run.path}"]
    if (run.path / CONTACT_SHEET).exists():
        where.append(f"Contact sheet    {run.path / CONTACT_SHEET}")
    return "\n\n".join([*parts, "\n".join(where)])


def accuracy(metrics: list[dict]) -> str:
    """The last accuracy on each split."""
    last = {line["split"]: line for line in metrics}
    cells = [f"{name} {100 * last[name]['accuracy']:.2f} %" for name in ("train", "validation", "test") if name in last]
    return f"Accuracy at step {metrics[-1]['step']}: " + ", ".join(cells)


def fidelity(explanation: Explanation) -> str:
    """How much of the change of confidence the prototypes explain beyond the class mean, beside the null."""
    lines = [
        "How much prototype change explains of confidence change, on held-out samples (1 = all)",
        "  r2 knows what the class alone tells; gain is over the class mean, and counts only above its null (95 %)",
        f"  {'steps':>13} {'groups':>6} {'noise':>6} {'same':>6} {'r2':>6} {'r2 class':>8} {'gain':>6} {'null':>6}",
    ]
    for each in explanation.intervals:
        verdict = "" if each.above_null else "  not above its null"
        if each.gain is None:
            verdict = "  too little changed to measure"
        lines.append(
            f"  {f'{each.from_step}-{each.to_step}':>13} {each.groups:>6} {each.noise:>6} {each.unchanged:>6}"
            f" {_number(each.r2)} {_number(each.r2_class, 8)} {_number(each.gain)} {_number(each.null[1])}{verdict}"
        )
    return "\n".join(lines)


def told_apart(explanation: Explanation, most: int = 5) -> str:
    """When the pairs of classes were told apart: how many at each step, and which came last."""
    apart = sorted(
        (pair for pair in explanation.pairs if pair.told_apart is not None), key=lambda pair: -pair.told_apart
    )
    never = [f"{pair.a}/{pair.b}" for pair in explanation.pairs if pair.told_apart is None]
    counts = collections.Counter(pair.told_apart for pair in apart)
    lines = [
        f"Pairs of classes told apart on validation (area under the ROC stays at least 0.95): {len(apart)} of "
        f"{len(explanation.pairs)}",
        "  " + ", ".join(f"{counts[step]} from step {step}" for step in sorted(counts)),
        "  last: " + ", ".join(f"{pair.a}/{pair.b} from {pair.told_apart}" for pair in apart[:most]),
    ]
    if never:
        lines.append("  never: " + ", ".join(never[:most]) + (f" and {len(never) - most} more" if never[most:] else ""))
    return "\n".join(lines if apart else lines[:1] + lines[3:])


def wavering(pair: PairExplanation, most: int = 8) -> str:
    """The pair that is refined and its uncertain prototypes."""
    apart = "never told apart" if pair.told_apart is None else f"told apart from step {pair.told_apart}"
    lines = [
        f"Pair {pair.a}/{pair.b}: {apart}; validation: {pair.confusions[0]} of {pair.a} taken for {pair.b}, "
        f"{pair.confusions[1]} of {pair.b} for {pair.a}"
    ]
    counted = sum(pair.counted or ())
    lines.append(f"  intervals whose fit beats its null: {counted} of {len(pair.counted or ())}")
    if pair.uncertain:
        lines.append("  uncertain prototypes (score in confidence; sign flips over all intervals):")
        lines += [f"    {each.prototype:>4}  {each.score:.4f}  {each.flips} flips" for each in pair.uncertain[:most]]
        if pair.uncertain[most:]:
            lines.append(f"    and {len(pair.uncertain) - most} with lower scores")
    else:
        lines.append("  no prototype wavers with a stable sign between counted intervals: nothing to curate")
    return "\n".join(lines)


def refinement(table: dict) -> str:
    """The refinement table, with the paired differences to the random control."""
    pair = "/".join(table["pair"])
    before = table["before"]
    left_out = ", ".join(f"{count} of class {name}" for name, count in table["left_out"].items())
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
            lines.append(f"  {name:<17} not applicable: {entry['reason']}")
            continue
        mean, std = entry["mean"], entry["std"]
        lines.append(
            f"  {name:<17} {_spread(mean['accuracy'], std['accuracy'], 100)}"
            f"   {_spread(mean['pair_confusions'], std['pair_confusions'])}"
            f" {_spread(mean['worst_class'], std['worst_class'], 100)}   {_interval(against_random.get(name))}"
        )
    return "\n".join(lines)


def _number(value, width=6):
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.2f}"


def _spread(mean, std, scale=1):
    return f"{scale * mean:>8.2f} " + (f"± {scale * std:>4.2f}" if std is not None else " " * 6)


def _interval(difference):
    if difference is None:
        return ""
    if difference["low"] is None:
        return f"{100 * difference['mean']:+.2f}"
    return f"{100 * difference['mean']:+.2f} [{100 * difference['low']:+.2f}, {100 * difference['high']:+.2f}]"
