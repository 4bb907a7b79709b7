"""What may be concluded, in sentences computed from the figures (DESIGN 2.6, 2.9)."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from i2x_jax.config import printable
from i2x_jax.explanation.ranking import DROPPED_ON, FIRST, LEAST_SHARE, Alarm, Ranked
from i2x_jax.explanation.types import Explanation, Interval
from i2x_jax.results.summary import INCOMPLETE

NOISE_SHARE = 0.5
# What float32 leaves of the ledger's sum, in confidence, at most: so much, and so much for each logit of the largest.
LEAST_BOUND, BOUND_PER_LOGIT = 3e-6, 2e-7
# Share of the logits' spread that a path may miss before the word "exact" is no longer used.
MUCH_MISSED = 0.05
# Of trust.json. Deletion holds where contributions are above what they must beat, beyond their interval, under so many
# fills; randomised layers must leave less rank correlation than this; other starts of K-means agree by at least this
# adjusted Rand index, by evidence. The last two are conventions, not measured limits.
FILLS_WON, LEFT_AT_MOST, AGREE_AT_LEAST = 3, 0.5, 0.6
LEAST_IMAGES = 20  # fewer are no ground for a verdict
TO_BEAT = ("ink", "area", "intensity", "random")


class Verdict(NamedTuple):
    """One of the checks of how far a run can be trusted.

    Attributes:
      what: was checked.
      held: whether it held; None where it could not be measured.
      figures: in few words.
      sentence: what was found.
    """

    what: str
    held: bool | None
    figures: str
    sentence: str


def fidelity(explanation: Explanation) -> list[str]:
    """What may, and what may not, be concluded from the gains of the prototypes."""
    measured = [each for each in explanation.intervals if each.gain is not None]
    total = len(explanation.intervals)
    if not measured:
        return [
            f"In none of the {total} intervals did confidence move enough within the classes to measure a fit: nothing "
            "may be concluded about which prototypes carried a change of confidence."
        ]
    above = [each for each in measured if each.above_null]
    over_total = [each for each in above if each.gain_total is not None and each.gain_total > 0]
    sentences = [f"Enough confidence moved to measure a fit in {len(measured)} of {total} intervals."]
    if not above:
        sentences.append(
            "In none of them do the prototypes predict more than chance does within a class: the figures below do not "
            "support any statement on which prototypes carried a change of confidence."
        )
        return sentences
    gains = [each.gain for each in above]
    span = f"{min(gains):.2f}" if len(above) == 1 else f"{min(gains):.2f} to {max(gains):.2f}"
    sentences.append(
        f"In {_of(len(above), len(measured))} the prototypes explain more of what the class mean leaves open than "
        f"chance does (gain {span}): there, which prototypes changed in an image goes together with how its "
        "confidence changed."
    )
    if len(over_total) == len(above):
        sentences.append(
            "They also explain more than the change of total saliency alone, so that it matters on which prototype "
            "saliency changed."
        )
    else:
        rest = len(above) - len(over_total)
        sentences.append(
            f"In {rest} of these {len(above)}, total saliency, one number an image, predicts all that the prototypes "
            "do, which add nothing to it: there, which prototype it was is a description, and not a better prediction."
        )
    sentences.append(
        "Coefficients are associations: nothing here shows what the network would do if a prototype were removed."
    )
    return sentences


def _of(count, total):
    return f"all {total}" if count == total else f"{count} of these {total}"


def warnings(explanation: Explanation, map_shape: tuple[int, int], completeness_error: np.ndarray) -> list[str]:
    """What should make a reader doubt parts of the report."""
    found = []
    samples = sum(each.samples for each in explanation.per_class)
    noisy = [each for each in explanation.intervals if noise_share(each, samples) > NOISE_SHARE]
    if noisy:
        found.append(
            f"Grouping: more than {100 * NOISE_SHARE:.0f} % of the changed images are in no group (noise) in "
            f"{_intervals(noisy)}. The groups there describe a minority."
        )
    if map_shape == (1, 1):
        found.append(
            "The feature map has a single location: every image is one prototype, and saliency cannot tell where the "
            "network looks. Choose an earlier tap or larger images."
        )
    chance = [each for each in explanation.intervals if each.gain is not None and not each.above_null]
    if chance:
        found.append(
            f"The gain of the prototypes is not above its null in {_intervals(chance)}: read nothing into the "
            "prototypes of these intervals."
        )
    silent = [each for each in explanation.intervals if each.gain is None]
    if silent:
        found.append(f"Too little confidence changed to measure a fit in {_intervals(silent)}.")
    if completeness_error.max() > INCOMPLETE:
        worst = f"{100 * completeness_error.max():.0f} %"
        found.append(
            f"Before what was missing was spread over them, contributions missed the logits by up to {worst} of the "
            "largest: the head is not linear, and the points of a path from the blank image are too few for it."
        )
    return found


def ledger(
    found: Mapping[str, np.ndarray], steps: Sequence[int], accounted: int, samples: int
) -> list[tuple[str, str]]:
    """What of the ledger is exact, what a convention, and what is not claimed: a heading and sentences each.

    Args:
      found: `residual`, `largest_logit` [T-1], `path_difference` [T-2] and `path_error` [T] of ledger.npz.
      steps: T of them.
      accounted: images that the ledger is of.
      samples: training images.
    """
    some = (
        "Whose account it is",
        f"That of {accounted} of the {samples} training images, of each class as many, drawn; confidences beside it "
        "are theirs.",
    )
    told = [_sums(found), _conventions(found["path_difference"], steps), ERRORS, NOT_CLAIMED]
    return told if accounted == samples else [some, *told]


ERRORS = (
    "What the standard errors are of",
    "They are over the images of a class, all of one training run: they say how surely the mean over such images is "
    "known, not what another training would give.",
)
NOT_CLAIMED = (
    "What is not claimed",
    "Nothing in the pixels was altered here: the ledger says where in the image a change of confidence arose in this "
    "network, not what the network would have done with other images, nor that a prototype is one thing to people.",
)


def _sums(found):
    largest = found["residual"].max()
    bound = (LEAST_BOUND + BOUND_PER_LOGIT * found["largest_logit"]).max()
    missed = found["path_error"].max()
    sentence = (
        "For every image, class and interval, what the prototypes added to a confidence and what belongs to no place "
        "add up to how it changed"
    )
    if missed > MUCH_MISSED:
        return (
            "What adds up",
            f"{sentence}, to {_small(largest)} of confidence. But the head is not linear: its logits are followed on "
            f"a path whose points miss them by {100 * missed:.0f} % of their spread on average at the worst "
            "checkpoint. What they miss is spread over the places, so single entries are estimates.",
        )
    return (
        "What is exact",
        f"The sum. {sentence}. Rounding may leave up to {_small(bound)} of confidence; the most that it left is "
        f"{_small(largest)}.",
    )


def _small(value):
    """A small number without an exponent, to one digit that counts."""
    return f"{value:.{max(2, -math.floor(math.log10(value)))}f}" if value > 0 else "0"


def _conventions(path, steps):
    text = (
        "The allocation. Confidence is no sum over places, so how much of its change each place is given is a rule: "
        "here the logarithmic mean of the confidences before and after, which treats classes and both directions of "
        "time alike. How much of an entry was seen (the features at its places changed) and how much weighed (the "
        "head made something else of them) depends on the basis in which the network writes its features."
    )
    if len(path):
        spans = ", ".join(f"{100 * each:.1f} % over steps {steps[t]} to {steps[t + 2]}" for t, each in enumerate(path))
        text += f" Two intervals taken as one give other entries than one after the other, by {spans}."
    return "What is a convention", text


def looks(found: Ranked) -> str:
    """Why a prototype does or does not deserve a look, in one sentence."""
    name = f"“{printable(found.name)}”"
    if found.evidence <= 0:
        return "No place of it tells any class from the others."
    parts = [
        f"One place of it gives {name} {found.evidence:.2f} logits more than the mean of all classes"
        + (
            f", as much evidence as {found.over_median:.1f} places of the median prototype" if found.over_median else ""
        ),
        f"it is in {share(found.in_class)} of the images of {name} and {share(found.in_others)} of the others",
    ]
    if found.since is not None:
        parts.append(f"half of that evidence is there from step {found.since} on")
    if found.drop:
        sets = [name for name in DROPPED_ON if name in found.drop]
        parts.append("leaving it out of the pool " + " and ".join(drop(found.drop[name], name) for name in sets))
    return "; ".join(parts) + "."


def share(value: float) -> str:
    """A share in per cent, small ones to a decimal."""
    percent = 100 * value
    return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.1f} %"


def drop(change: float, split: str) -> str:
    """What leaving out a prototype does to accuracy on a set, from its change, -1 to 1."""
    if change == 0:
        return f"leaves accuracy on {split} images as it is"
    return f"{'gains' if change > 0 else 'costs'} {abs(100 * change):.2g} points on {split} images"


def order(ranking: Sequence[Ranked]) -> str:
    """What the order of the prototypes rests on."""
    text = (
        "Prototypes stand in the order of their evidence per location: what one of their places adds to the logit of a "
        "class at the last checkpoint, less the mean over all classes. A shortcut is small and says much, so it comes "
        "early; so may an honest feature, and no figure here can tell which it is."
    )
    if not any(each.drop for each in ranking):
        text += (
            " The head of this network is no pool and linear layer: evidence is counted from the blank image, and no "
            "prototype can be left out of a pool."
        )
    few = sum(each.rank is None for each in ranking)
    if few:
        text += f" Not ranked, and last: {few} of under {100 * LEAST_SHARE:.2g} % of the locations."
    return text


def alarm(found: Alarm) -> str:
    """What an alarm says, and what it does not."""
    if found.by == "audit":
        p = "p < 0.0001" if found.p < 1e-4 else f"p = {found.p:.2g}"
        return (
            f"Without the places of prototype {found.prototype} the network is better on the audit set, by "
            f"{100 * found.value:.1f} points of accuracy (McNemar’s test, one-sided, asked of {FIRST} prototypes: "
            f"{p}): there it follows something that does not go with the class."
        )
    return (
        f"One place of prototype {found.prototype} gives {found.value:.1f} times the evidence of the median prototype, "
        "more than in most runs that were looked at without a planted shortcut. That does not tell a shortcut from "
        "an honest feature: look at what is in its frames, and check on images in which it does not go with the class."
    )


def noise_share(interval: Interval, samples: int) -> float:
    """Share of noise among the samples whose confidence changed; 0 where none did."""
    return interval.noise / max(samples - interval.unchanged, 1)


def refinement(table: dict) -> list[str]:
    """Whether curation beat the random control, and how accuracy moved, from `refinement.json`."""
    names = "/".join(table["pair"])
    curated = [name for name, entry in table["strategies"].items() if "curated" in name and entry["applicable"]]
    if not curated:
        reasons = {entry["reason"] for entry in table["strategies"].values() if not entry["applicable"]}
        why = "; ".join(sorted(reasons)) or "no curated strategy was run"
        return [f"Curation does not apply to the pair {names}: {why}."]
    sentences, better, compared = [], 0, 0
    for row in table["differences"]:
        if row["strategy"] in curated and row["against"].startswith("random"):
            accuracy = row["accuracy"]
            points = f"{100 * accuracy['mean']:+.2f} points of accuracy"
            if accuracy["low"] is None:
                why = "one seed" if table["seeds"] == 1 else "the same in every seed"
                sentences.append(
                    f"{row['strategy']} against {row['against']}: {points} ({why}, so no interval): this cannot tell "
                    "whether it beat the random control."
                )
                continue
            compared, better = compared + 1, better + (accuracy["low"] > 0)
            interval = f"95 % interval {100 * accuracy['low']:+.2f} to {100 * accuracy['high']:+.2f}"
            if accuracy["low"] > 0:
                verdict = "it beat the random control"
            elif accuracy["high"] < 0:
                verdict = "it did worse than the random control"
            else:
                verdict = "it did not beat the random control"
            sentences.append(f"{row['strategy']} against {row['against']}: {verdict} ({points}, {interval}).")
    if not sentences:
        first = "No random control was run beside the curated sets: whether curation was the cause is open."
    elif not compared:
        first = "There is no interval to tell whether curation beat the random control: more seeds are needed."
    elif better:
        first = f"Curation beat the random control in {better} of {compared} comparisons that have an interval."
    else:
        first = f"Curation did not beat the random control: {compared} compared with an interval, none above 0."
    intervals = sum(row["accuracy"]["low"] is not None for row in table["differences"])
    chance = f"; of {intervals} intervals like these about one in twenty misses its mark by chance" if intervals else ""
    sentences.append(f"Seeds are those of the fine-tuning, from one trained network{chance}.")
    return [first, *sentences]


def _intervals(intervals: Sequence[Interval]) -> str:
    names = [f"{each.from_step}–{each.to_step}" for each in intervals]
    text = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"interval {text}" if len(names) == 1 else f"intervals {text}"


def trust(found: Mapping) -> list[Verdict]:
    """What of trust.json held and what fell short."""
    return [_deletion(found), _randomisation(found["randomisation"]), _stability(found["stability"])]


def _deletion(found):
    fills = found["deletion"]
    if any(each["images"] < LEAST_IMAGES for each in fills):
        words = f"{fills[0]['images']} validation images have prototypes enough to put them in an order"
        return Verdict("deletion", None, words, f"Deletion could not be measured: {words}.")
    names = ", ".join(each["fill"] for each in fills)
    won = [each for each in fills if all(each["above"][name]["low"] > 0 for name in TO_BEAT)]
    own, ink, given = (
        _means([of(each) for each in fills])
        for of in (
            lambda each: each["agreement"]["contribution"],
            lambda each: each["agreement"]["ink"],
            lambda each: each["given_ink"],
        )
    )
    figures = f"contributions {own}, ink {ink}, above all others under {len(won)} of {len(fills)} fills"
    return Verdict(
        "deletion",
        len(won) >= FILLS_WON,
        figures,
        f"With the pixels of one prototype filled ({names}, in this order), on {fills[0]['images']} validation images, "
        "the margin of the predicted class falls in the order of the contributions to it by a rank correlation within "
        f"an image of {own}; mere ink has {ink}, and what ink does not explain is {given}. Contributions are above "
        f"{', '.join(TO_BEAT[:-1])} and {TO_BEAT[-1]}, each beyond its interval of 95 %, under {len(won)} of "
        f"{len(fills)} fills.",
    )


def _means(intervals):
    return " ".join("–" if each is None else f"{each['mean']:.2f}" for each in intervals)


def _randomisation(stages):
    first, last = stages[0], stages[-1]
    figures = (
        f"contributions {_means([each['contributions'] for each in stages])}, "
        f"saliency {_means([each['maps'] for each in stages])}"
    )
    return Verdict(
        "randomisation",
        all(last[name]["high"] < LEFT_AT_MOST for name in ("contributions", "maps")),
        figures,
        f"With the last {first['layers']} to all {last['of']} layers randomised, in {len(stages)} stages, rank "
        f"correlation with what they were before is {figures}. An explanation that stayed as it was would say nothing "
        "of what was learned.",
    )


def _stability(found):
    known = [each for each in found["rand_by_evidence"] if each is not None]
    rand, weighted = (
        " ".join("–" if each is None else f"{each:.2f}" for each in found[name])
        for name in ("rand", "rand_by_evidence")
    )
    kept = " ".join(f"{min(each['overlaps']):.2f}" for each in found["first"]) or "–"
    figures = f"adjusted Rand index {rand}, by evidence {weighted}; places of the first prototypes kept {kept}"
    return Verdict(
        "K-means starts",
        min(known) >= AGREE_AT_LEAST if known else None,
        figures,
        f"Fitted from {found['starts']} other starts of K-means, prototypes agree with those of this run by an "
        f"{figures} (overlap with the most similar one, the least of all starts). Where it is low, the number of a "
        "prototype means little.",
    )
