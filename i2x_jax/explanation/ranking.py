"""What deserves a look first: prototypes by what one of their locations tells the head (DESIGN 2.12). NumPy only.

A shortcut is small and says much: a few locations that settle a class. So prototypes are ranked by evidence per
location, and what a reader needs to judge one stands beside it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

# Prototypes with a smaller share of all locations are not ranked: a mean over so few says little.
LEAST_SHARE = 5e-4
# Prototypes that are shown first, and that the alarm is looked for in.
FIRST = 5
# Accuracy that leaving out a prototype must gain on the audit set for an alarm, and the level of the test, shared by
# the prototypes that it is asked of.
LEAST_GAIN, LEVEL = 0.025, 0.05
# Without an audit set: the largest evidence over the median of all from which the first prototype stands out.
# Weak: with a planted cue this was 1.9 to 4.5, without one 1.3 to 2.8, so that no limit tells them apart (DESIGN 2.12).
STANDS_OUT = 2.5
# Sets that prototypes are left out on, in the order of the rows of ranking.npz; the second need not be there.
DROPPED_ON = ("validation", "audit")
ROWS_AT_A_TIME = 4096


class Census(NamedTuple):
    """Where prototypes are, counted over all N training images.

    Attributes:
      locations: int64 [K,M], by class of the image.
      images: int64 [K,M], images of each class with at least one location of the prototype.
      places: int64 [K,h*w], by place of the map, row by row.
      samples: int64 [M], images of each class.
    """

    locations: np.ndarray
    images: np.ndarray
    places: np.ndarray
    samples: np.ndarray


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A prototype, and what tells whether it deserves a look.

    Attributes:
      prototype: its id.
      rank: 1 for the most evidence per location; None for one of too few locations.
      name: the class that it gives most evidence to; `evidence`, `since` and the shares of images are about it.
      evidence: mean over its locations of what one adds to the logit of that class, less the mean over all classes.
      over_median: `evidence` over the median of all ranked prototypes; None where that is 0.
      exclusivity: largest share of its locations that one class holds, classes weighted equally, 1/M to 1; None of a
        prototype without locations, as `entropy`.
      exclusive: name of that class.
      in_class: share of the images of the class that hold one of its locations, 0 to 1.
      in_others: mean of that share over the other classes.
      entropy: of its places, 0 for a single one to 1 for all equally often.
      since: first step from which the evidence stays at half of its final value or more; None where it has none.
      drop: change of accuracy, -1 to 1, where its locations are left out of the pool, by set (`DROPPED_ON`).
    """

    prototype: int
    rank: int | None
    name: str
    evidence: float
    over_median: float | None
    exclusivity: float | None
    exclusive: str
    in_class: float
    in_others: float
    entropy: float | None
    since: int | None
    drop: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Alarm:
    """A prototype that asks for more than a look.

    Attributes:
      prototype: its id.
      by: 'audit', leaving it out makes the network better on the audit set; or 'evidence', its evidence stands out.
      value: accuracy gained on the audit set, 0 to 1; or the evidence over the median of all.
      p: of McNemar's test, one-sided and exact; None by evidence.
    """

    prototype: int
    by: str
    value: float
    p: float | None


def location_evidence(sums: np.ndarray, counts: np.ndarray, weights: np.ndarray, places: int) -> np.ndarray:
    """Evidence per location behind a global average pool and a linear head: float64 [T,K,M], in logits.

    The mean over a prototype's locations of what one adds to the logit of each class, less the mean over all classes,
    which does not tell them apart.

    Args:
      sums: [T,K,d], features summed over the locations of each prototype.
      counts: int [K], its locations; evidence of none is 0.
      weights: [T,d,M] of the head.
      places: h*w, the locations that an image's features are a mean over.
    """
    weights = np.asarray(weights, np.float64)
    centred = weights - weights.mean(-1, keepdims=True)
    return np.asarray(sums, np.float64) @ centred / (np.maximum(counts, 1)[:, None] * places)


def contribution_evidence(
    contributions: np.ndarray, kept: np.ndarray, samples: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Evidence per location behind any head, from what prototypes contribute: float64 [T,K,M], in logits.

    What all images have of a prototype, over its locations, less the mean over all classes. Behind a global average
    pool and a linear head that is `location_evidence`; behind another it is counted from the blank image (DESIGN 2.4).

    Args:
      contributions: [T,M,K,R], mean over the images of a class of what a prototype adds to each of R logits.
      kept: int [M,R], the classes of these logits, by class of the images; what is not kept counts as 0.
      samples: int [M], images of each class.
      counts: int [K], its locations; evidence of none is 0.
    """
    steps, classes, prototypes, _ = contributions.shape
    total = np.zeros((steps, prototypes, classes))
    for label in range(classes):
        total[..., kept[label]] += float(samples[label]) * contributions[:, label]
    return (total - total.mean(-1, keepdims=True)) / np.maximum(counts, 1)[:, None]


def census(assignments: np.ndarray, labels: np.ndarray, num_prototypes: int, num_classes: int) -> Census:
    """Counts where prototypes are.

    Args:
      assignments: int [N,h,w], read some rows at a time.
      labels: int [N].
      num_prototypes: K.
      num_classes: M.
    """
    k, m, places = num_prototypes, num_classes, int(np.prod(assignments.shape[1:]))
    locations, images, by_place = (np.zeros(size, np.int64) for size in (m * k, m * k, k * places))
    for start in range(0, len(labels), ROWS_AT_A_TIME):
        part = np.asarray(assignments[start : start + ROWS_AT_A_TIME], np.int64).reshape(-1, places)
        own = np.asarray(labels[start : start + len(part)], np.int64)[:, None]
        locations += np.bincount((own * k + part).ravel(), minlength=m * k)
        by_place += np.bincount((part * places + np.arange(places)).ravel(), minlength=k * places)
        held = np.zeros((len(part), k), bool)
        np.put_along_axis(held, part, True, axis=1)
        row, prototype = np.nonzero(held)
        images += np.bincount(own[row, 0] * k + prototype, minlength=m * k)
    samples = np.bincount(np.asarray(labels), minlength=m)
    return Census(locations.reshape(m, k).T, images.reshape(m, k).T, by_place.reshape(k, places), samples)


def exclusivity(locations: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest share of a prototype's locations that one class holds, and which class.

    Classes are weighted equally: what counts is locations an image of the class.

    Args:
      locations: int [K,M] of `Census`.
      samples: int [M].

    Returns:
      float64 [K], 1/M to 1, NaN of a prototype without locations; int64 [K].
    """
    rate = locations / np.maximum(samples, 1)
    total = rate.sum(1)
    share = np.divide(rate.max(1), total, out=np.full(len(rate), np.nan), where=total > 0)
    return share, rate.argmax(1)


def place_entropy(places: np.ndarray) -> np.ndarray:
    """How spread out prototypes are over the map: entropy of their places [K,h*w] in nats, over log(h*w).

    Returns:
      float64 [K]: 0 where all locations are at one place, 1 where all places are equally frequent, NaN without any.
    """
    total = places.sum(1)
    share = places / np.maximum(total, 1)[:, None]
    # Where there is none of it, 0; and a map of one place has no entropy to divide.
    nats = (share * -np.log(np.where(share > 0, share, 1))).sum(1)
    return np.where(total > 0, nats / np.log(max(places.shape[1], 2)), np.nan)


def since(course: np.ndarray) -> np.ndarray:
    """The first checkpoint from which evidence [T,K] stays at half of its final value or more: int64 [K].

    -1 where there is none at the end.
    """
    below = course < course[-1] / 2
    # Counted from the end: the last checkpoint itself is never below.
    first = len(course) - below[::-1].argmax(0)
    return np.where(course[-1] > 0, np.where(below.any(0), first, 0), -1)


def top_over_median(score: np.ndarray) -> float:
    """The largest of scores [K] over their median, those that are NaN left aside; NaN where that is no number."""
    known = score[np.isfinite(score)]
    median = np.median(known) if len(known) else 0
    return float(known.max() / median) if median > 0 else float("nan")


def ranking(evidence: np.ndarray, found: Census) -> dict[str, np.ndarray]:
    """The members of ranking.npz but those of leaving out (DESIGN section 4).

    Args:
      evidence: [T,K,M] of `location_evidence` or `contribution_evidence`.
      found: of `census`.
    """
    final, explained = evidence[-1], found.samples > 0
    # Of a class without images nothing could be said beside it.
    label = np.where(explained, final, -np.inf).argmax(1)
    course = np.take_along_axis(evidence, label[None, :, None], axis=2)[..., 0]
    counts = found.locations.sum(1)
    ranked = (counts > 0) & (counts >= LEAST_SHARE * counts.sum())
    exclusive, exclusive_label = exclusivity(found.locations, found.samples)
    return {
        "evidence": np.float32(final),
        "course": np.float32(course),
        "label": np.int32(label),
        "ranked": ranked,
        "exclusivity": exclusive,
        "exclusive_label": np.int32(exclusive_label),
        "present": np.where(explained, found.images / np.maximum(found.samples, 1), np.nan),
        "entropy": place_entropy(found.places),
        "since": np.int32(since(course)),
        "top_over_median": np.float64(top_over_median(np.where(ranked, course[-1], np.nan))),
    }


def dropped(predicted: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """What leaving out prototypes does to the predictions on a set.

    Args:
      predicted: int [n,K+1], classes with each prototype left out, and last with none.
      labels: int [n].

    Returns:
      int64 scalars `samples` and `right` (with none left out), and [K] `gained` (wrong to right) and `lost`.
    """
    right = predicted == np.asarray(labels)[:, None]
    whole, without = right[:, -1:], right[:, :-1]
    return {
        "samples": np.int64(len(right)),
        "right": np.int64(whole.sum()),
        "gained": (~whole & without).sum(0, dtype=np.int64),
        "lost": (whole & ~without).sum(0, dtype=np.int64),
    }


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact test, one-sided: how likely so many or more of the changed images gain if either is as likely."""
    from scipy.special import bdtrc

    return float(bdtrc(gained - 1, gained + lost, 0.5)) if gained > 0 else 1.0


def order(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Ids of all prototypes, int64 [K]: those that are ranked by falling evidence, then the others by their number."""
    score = np.where(arrays["ranked"], arrays["course"][-1], -np.inf)
    return np.argsort(-score, kind="stable")


def ranked_prototypes(
    arrays: Mapping[str, np.ndarray], classes: Sequence[str], steps: Sequence[int]
) -> tuple[Ranked, ...]:
    """The prototypes in the order in which they deserve a look.

    Args:
      arrays: the members of ranking.npz.
      classes: M names.
      steps: T of them.
    """
    ids, ranked, labels = order(arrays), arrays["ranked"], arrays["label"]
    scores = arrays["course"][-1]
    median = float(np.median(scores[ranked])) if ranked.any() else 0.0
    found = []
    for place, k in enumerate(ids.tolist(), 1):
        own, present, first = int(labels[k]), np.asarray(arrays["present"][k], np.float64), int(arrays["since"][k])
        score = float(scores[k])
        found.append(
            Ranked(
                prototype=k,
                rank=place if ranked[k] else None,
                name=classes[own],
                evidence=score,
                over_median=score / median if median > 0 else None,
                exclusivity=_known(arrays["exclusivity"][k]),
                exclusive=classes[arrays["exclusive_label"][k]],
                in_class=float(present[own]),
                in_others=float(np.nanmean(others)) if np.isfinite(others := np.delete(present, own)).any() else 0.0,
                entropy=_known(arrays["entropy"][k]),
                since=int(steps[first]) if first >= 0 else None,
                drop=_drops(arrays, k),
            )
        )
    return tuple(found)


def _known(value):
    return float(value) if np.isfinite(value) else None


def _drops(arrays, k):
    """The change of accuracy by set; no set behind a head without a pool."""
    rows = zip(DROPPED_ON, arrays["gained"], arrays["lost"], arrays["samples"], strict=False)
    return {name: (int(gained[k]) - int(lost[k])) / int(samples) for name, gained, lost, samples in rows}


def alarms(arrays: Mapping[str, np.ndarray]) -> tuple[Alarm, ...]:
    """The prototypes that ask for more than a look, among the first by evidence.

    With an audit set: whose leaving out gains `LEAST_GAIN` or more, and McNemar's test finds it at `LEVEL` over the
    number of prototypes that it is asked of. Without one: the first, where its evidence is `STANDS_OUT` times the
    median of all or more.

    Args:
      arrays: the members of ranking.npz.
    """
    first = [k for k in order(arrays)[:FIRST].tolist() if arrays["ranked"][k]]
    if len(arrays["samples"]) < len(DROPPED_ON):
        value = float(arrays["top_over_median"])
        return (Alarm(first[0], "evidence", value, None),) if first and value >= STANDS_OUT else ()
    row, found = DROPPED_ON.index("audit"), []
    for k in first:
        gained, lost = int(arrays["gained"][row, k]), int(arrays["lost"][row, k])
        gain, p = (gained - lost) / int(arrays["samples"][row]), mcnemar(gained, lost)
        if gain >= LEAST_GAIN and p <= LEVEL / FIRST:
            found.append(Alarm(k, "audit", gain, p))
    return tuple(found)
