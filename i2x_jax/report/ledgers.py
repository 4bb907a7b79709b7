"""The ledger as the page shows it: whole thousandths of confidence, in which every sum that is shown adds up.

Rounded one by one, figures that are shown would miss their sum in the last digit. So totals are rounded, and then the
parts that are named; what is left over belongs to the line of the others.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from i2x_jax.explanation import account
from i2x_jax.explanation.account import NAMED, SHOWN, ClassLedger, IntervalLedger
from i2x_jax.explanation.pairs import class_means
from i2x_jax.explanation.rivals import column_in_confidence, of_own_class
from i2x_jax.report.content import MAX_PAIRS, rounded
from i2x_jax.results.opened_run import Run

# Prototypes with a line of their own in a table over all intervals; in a pair on the images of each class.
COURSE, OF_PAIR = 8, 6
# Share of a contribution that places of a blank image make too, from which the page says so.
MUCH_BLANK = 0.25
# Contributions in logits that are too small to be compared with anything.
LEAST_LOGITS = 0.2


def thousandths(values: Any) -> Any:
    """Confidences as whole thousandths, however nested."""
    return np.rint(1000 * np.asarray(values, np.float64)).astype(int).tolist()


def classes(run: Run) -> list[dict]:
    """The ledger of each class: of every interval the largest entries, of all of them the course."""
    contributions, names = run.arrays("contributions"), run.explanation.classes
    # One blank image has the same evidence at a place whatever the class: what is compared is at each class's places.
    own, blank = (of_own_class(contributions[name][-1], run.rivals) for name in ("mean", "blank"))
    found = []
    for label, each in enumerate(run.ledgers):
        confidence = thousandths([each.intervals[0].before, *(interval.after for interval in each.intervals)])
        shown = [_interval(interval, confidence[t : t + 2], names) for t, interval in enumerate(each.intervals)]
        named = {entry["prototype"] for interval in shown for entry in interval["named"]}
        found.append(
            {
                "intervals": shown,
                "most": int(np.abs(np.diff(confidence)).argmax()),
                "course": course(confidence, *_changes(each)),
                "blank": blank_shares(own[label], blank[label], sorted(named)),
            }
        )
    return found


def _interval(ledger: IntervalLedger, confidence: Sequence[int], names: Sequence[str]) -> dict:
    """An interval: its named entries, the rest in one, and the bias; they add up to the change of `confidence`."""
    named = [each for each in ledger.entries[:NAMED] if abs(each.change) >= SHOWN]
    bias = thousandths(ledger.bias)
    entries = [
        {
            "prototype": each.prototype,
            "change": thousandths(each.change),
            "seeing": thousandths(each.seeing),
            "weighing": thousandths(each.change) - thousandths(each.seeing),
            "error": rounded(1000 * each.error, 2),
            "rival": names.index(each.rival),
            "taken": thousandths(each.taken),
            "present": rounded(each.present, 3),
        }
        for each in named
    ]
    rest = confidence[1] - confidence[0] - bias - sum(each["change"] for each in entries)
    return {"named": entries, "others": len(ledger.entries) - len(named), "rest": rest, "bias": bias}


def _changes(ledger: ClassLedger) -> tuple[np.ndarray, np.ndarray]:
    """What each prototype added in each interval `[T-1, K]`, and the bias `[T-1]`."""
    changes = np.zeros((len(ledger.intervals), len(ledger.intervals[0].entries)))
    for t, interval in enumerate(ledger.intervals):
        for entry in interval.entries:
            changes[t, entry.prototype] = entry.change
    return changes, np.array([interval.bias for interval in ledger.intervals])


def course(confidence: Sequence[int], changes: np.ndarray, bias: np.ndarray | None, most: int = COURSE) -> dict:
    """A confidence over the whole training, by the prototypes that moved it most.

    Args:
      confidence: T whole thousandths.
      changes: `[T-1, K]`, in confidence.
      bias: `[T-1]`, what belongs to no place; None where that is among the rest.
      most: prototypes with a line of their own.

    Returns:
      `confidence`, `prototypes`, their `changes` (one list of T-1 each), `rest` and `bias` (T-1 each, or None); in
      every interval they add up to the change of `confidence`. `others` is how many prototypes the rest is of.
    """
    size = np.abs(changes).sum(0)
    order = [int(k) for k in np.argsort(-size, kind="stable")[:most] if np.abs(changes[:, k]).max() >= SHOWN]
    named = [thousandths(changes[:, k]) for k in order]
    of_bias = [0] * len(changes) if bias is None else thousandths(bias)
    total = np.diff(np.asarray(confidence, int))
    rest = total - np.sum([*named, of_bias], axis=0, dtype=int)
    return {
        "confidence": list(map(int, confidence)),
        "prototypes": order,
        "others": changes.shape[1] - len(order),
        "changes": named,
        "rest": rest.tolist(),
        "bias": None if bias is None else of_bias,
    }


def blank_shares(own: np.ndarray, blank: np.ndarray, among: Sequence[int]) -> list[list]:
    """Prototypes to whose final contribution a blank image, at the same places, comes near: id, contribution, blank's.

    Args:
      own: `[K]`, mean contribution to the logit of a class over its samples, at the last checkpoint.
      blank: `[K]`, what the same places of the blank image contribute.
      among: the prototypes in question.
    """
    return [
        [k, rounded(own[k], 3), rounded(blank[k], 3)]
        for k in among
        if abs(blank[k]) >= max(LEAST_LOGITS, MUCH_BLANK * abs(own[k]))
    ]


def pairs(run: Run) -> list[dict]:
    """What moved the difference of two confidences, on the images of each class, in the order of the pairs."""
    ledger, labels = run.arrays("ledger"), np.array(run.array("labels"))[run.accounted]
    names = run.explanation.classes
    counts = np.bincount(labels, minlength=len(names))
    # Of the columns of confidence.npy, by class of the sample: [T,M,Y].
    mean = np.array([class_means(np.asarray(at)[run.accounted], labels, len(names)) for at in run.array("confidence")])
    found, rivals = [], run.rivals
    for pair in run.explanation.pairs[:MAX_PAIRS]:
        a, b = names.index(pair.a), names.index(pair.b)
        entries = account.pair_ledger(ledger, rivals, counts, a, b)

        def gap(label, a=a, b=b):
            in_a, in_b = (column_in_confidence(rivals, label, other) for other in (a, b))
            return mean[:, label, in_a] - mean[:, label, in_b]

        scores = {each.prototype: each.score for each in entries}
        # Both orders of scores: what wavers by the one need not by the other.
        by_ledger = sorted(scores, key=lambda k: -scores[k])[:NAMED]
        regression = {each.prototype: each.score for each in pair.uncertain or ()}
        shown = [k for k in by_ledger if scores[k] >= SHOWN]
        shown += [k for k in list(regression)[:NAMED] if k not in shown]
        found.append(
            {
                "sides": [_side(gap(label), entries, name) for label, name in ((a, "in_a"), (b, "in_b"))],
                "wavering": [[k, rounded(scores[k]), rounded(regression.get(k))] for k in shown],
            }
        )
    return found


def _side(gap, entries, name):
    changes = np.zeros((len(gap) - 1, len(entries)))
    for each in entries:
        changes[:, each.prototype] = getattr(each, name)
    # A class without images has no mean, and nothing moved it.
    return course(thousandths(np.nan_to_num(gap)), changes, None, OF_PAIR)


def images(run: Run, rows: Sequence[int]) -> dict[str, dict]:
    """The accounts of some training images, by row."""
    found = {}
    for row in rows:
        account_of = run.account(int(row))
        changes = np.asarray(account_of.account, np.float64)
        found[str(int(row))] = course(thousandths(account_of.confidence), changes[:, :-1], changes[:, -1])
    return found


def agreements(run: Run) -> list[tuple[float | None, float | None]]:
    """How far the regression and the ledger rank prototypes alike, in each interval: means over the classes.

    Compared are, over the images of a class, the deviation of a prototype's change of intensity times its coefficient,
    and what the ledger says it added to the confidence in that class; of prototypes that changed at all.

    Returns:
      Spearman's correlation and the share of equal signs, for each interval; None where no fit could be measured, or
      no class can be compared.
    """
    labels, beta, ledger = np.array(run.array("labels")), run.arrays("mapping")["beta"], run.arrays("ledger")
    intensity, found = run.array("intensity"), []
    moved = of_own_class(ledger["seeing"] + ledger["weighing"], run.rivals)
    for t, (coefficients, interval) in enumerate(zip(beta, run.explanation.intervals, strict=True)):
        if interval.gain is None:
            found.append((None, None))
            continue
        change = np.asarray(intensity[t + 1], np.float64) - intensity[t]
        compared = []
        for label in np.unique(labels):
            deviation = change[labels == label].std(0)
            described = np.where(deviation > 0, deviation * coefficients[:, label], np.nan)
            accounted = moved[t, label]
            compared.append(account.agreement(described, accounted))
        known = [each for each in compared if np.isfinite(each).all()]
        found.append(tuple(rounded(np.mean(known, axis=0))) if known else (None, None))
    return found
