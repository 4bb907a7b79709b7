"""The arrays of a run, put together into the structured explanation (DESIGN 2.7). NumPy only."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from i2x_jax.explanation import pairs, uncertainty
from i2x_jax.explanation.analysis import Grouping, Measured
from i2x_jax.explanation.rivals import column_of, mutual, of_own_class, rival_pairs
from i2x_jax.explanation.types import (
    SCHEMA,
    ClassEvidence,
    ClassExplanation,
    Explanation,
    Interval,
    Neighbour,
    PairExplanation,
    Prototype,
    Separating,
    Specialised,
    Support,
    UncertainPrototype,
    from_json,
    to_json,
)

SALIENT_SHARE, SALIENT_DENSITY = 0.05, 1.5
SHARED_SHARE = 0.8
SPECIALISED_MOST, SPECIALISED_LEAST = 0.6, 0.2
# A prototype supports a class only if at least this share of the class's images has it.
SUPPORT_OCCURS = 0.05
# Logits from which a contribution has a sign that a support can disagree with; less is next to nothing.
DISAGREES_FROM = 0.01
# Short lists keep the file small enough to read; the arrays of the run directory hold the rest.
MAX_SUPPORT = 12
MAX_SEPARATING = 5
MAX_NEAREST = 3
MAX_SUPPORTED_CLASSES = 3


def salient(intensity: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Which prototypes stand out in which samples: bool [N,K] from intensity and area [N,K] (DESIGN 2.7).

    A salient prototype holds over 5 % of the sample's saliency mass and at least 1.5 times its share of the area.
    Signed intensity counts by its absolute value; a sample without mass has no salient prototype.
    """
    mass = uncertainty.saliency_mass(intensity, area)
    total, locations = mass.sum(axis=1, keepdims=True), np.asarray(area).sum(axis=1, keepdims=True)
    share = np.divide(mass, total, out=np.zeros_like(mass), where=total > 0)
    # Multiplied out, so that a prototype of exactly 1.5 times its share is not lost to rounding.
    return (share > SALIENT_SHARE) & (mass * locations >= SALIENT_DENSITY * area * total)


def shared(salient: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Prototypes salient in at least 80 % of a class's samples: bool [M,K] from bool [N,K], labels [N] (DESIGN 2.7).

    A class without samples shares none.
    """
    result = np.zeros((num_classes, salient.shape[1]), bool)
    for label in np.unique(labels):
        result[label] = salient[labels == label].mean(axis=0) >= SHARED_SHARE
    return result


def specialised(
    salient: np.ndarray, labels: np.ndarray, groups: np.ndarray, num_classes: int, interval: int = 0
) -> list[list[Specialised]]:
    """Prototypes that distinguish the groups of a class in one interval (DESIGN 2.7).

    Args:
      salient: bool [N,K] at the end of the interval.
      labels: int [N].
      groups: int [N] of the interval; a group is the rows of one class with one id >= 0.
      num_classes: M.
      interval: its index, copied to the records.

    Returns:
      M lists, one record per prototype salient in at least 60 % of one group and at most 20 % of another; of groups
      with equal shares the one with the smaller id is named.
    """
    records = [[] for _ in range(num_classes)]
    for label in np.unique(labels):
        ids = np.unique(groups[(labels == label) & (groups >= 0)])
        if len(ids) < 2:
            continue
        shares = np.stack([salient[(labels == label) & (groups == group)].mean(axis=0) for group in ids])  # [G,K]
        found = (shares.max(axis=0) >= SPECIALISED_MOST) & (shares.min(axis=0) <= SPECIALISED_LEAST)
        for k in np.flatnonzero(found):
            of_groups = shares[:, k].tolist()
            most, least = shares[:, k].argmax(), shares[:, k].argmin()
            record = Specialised(interval, int(k), int(ids[most]), of_groups[most], int(ids[least]), of_groups[least])
            records[label].append(record)
    return records


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What an explanation is made of.

    Attributes:
      measured: what was measured at the checkpoints.
      grouped: the groups of every interval.
      mapping: the members of mapping.npz; of these `sign_agreement` [T-1,K,M] is of the sample fit.
      pairs: scores of the analysed pairs (a,b), a<b.
      group_by: `class` or `global`, the meaning of the groups.
      fit: `samples` or `groups`: whose coefficients give the support. Only the sample fit is bootstrapped, so that a
        coefficient of `groups` that differs from it in sign is taken as unstable.
    """

    measured: Measured
    grouped: Grouping
    mapping: Mapping[str, np.ndarray]
    pairs: Mapping[tuple[int, int], uncertainty.PairScores]
    group_by: str
    fit: str


def build_explanation(analysis: Analysis) -> Explanation:
    """Puts the arrays of a run together into the structured explanation (DESIGN 2.7, 4).

    Returns:
      The explanation, equal to what `from_json` reads back from its `to_json`.

    Raises:
      ValueError: a key of `pairs` is not a<b.
    """
    if any(a >= b for a, b in analysis.pairs):
        raise ValueError(f"pairs are {sorted(analysis.pairs)}; the first class of each must be the smaller index")
    measured = analysis.measured
    explanation = Explanation(
        schema=SCHEMA,
        classes=tuple(measured.classes),
        steps=tuple(measured.steps),
        group_by=analysis.group_by,
        fit=analysis.fit,
        prototypes=_prototypes(measured),
        per_class=_per_class(analysis),
        pairs=_pairs(measured, analysis.pairs),
        intervals=tuple(_interval(analysis, t) for t in range(len(measured.steps) - 1)),
    )
    # Through the text, so that the explanation at hand and the one read back tomorrow are the same.
    return from_json(to_json(explanation))


def _per_class(analysis):
    measured, mapping = analysis.measured, analysis.mapping
    deviation, shared_by, special = _over_time(measured, analysis.grouped.groups)
    coefficients = mapping["beta" if analysis.fit == "samples" else "beta_groups"]
    agreement = np.where(np.sign(coefficients) == np.sign(mapping["beta"]), mapping["sign_agreement"], 0)
    support = deviation[:, :, None] * coefficients
    occurs = _occurs(measured.area, measured.labels, len(measured.classes))
    own = of_own_class(measured.contributions, measured.rivals)  # [T,M,K]
    return tuple(
        ClassExplanation(
            name=name,
            samples=np.sum(measured.labels == c),
            shared=tuple(np.flatnonzero(shared_by[c])),
            specialised=tuple(special[c]),
            support=_supports(support[:, :, c], agreement[:, :, c], own[:, c], mapping["r2"], occurs[c]),
        )
        for c, name in enumerate(measured.classes)
    )


def _pairs(measured, scores):
    classes, labels, confidence = measured.classes, measured.validation_labels, measured.validation_confidence
    confusion = pairs.soft_confusion(confidence[-1], labels)
    taken_for = np.zeros(confusion.shape, int)
    np.add.at(taken_for, (labels, confidence[-1].argmax(axis=1)), 1)
    # Of two classes that do not keep each other, nothing could be said but how far they are confused.
    kept = {pair for pair in rival_pairs(measured.rivals) if mutual(measured.rivals, *pair)}
    # Nor of a class of which no image was explained.
    there = set(np.unique(measured.labels).tolist())
    kept = {pair for pair in kept if there.issuperset(pair)}
    return tuple(
        PairExplanation(
            a=classes[a],
            b=classes[b],
            told_apart=pairs.told_apart(confidence, labels, measured.steps, a, b),
            soft_confusions=(confusion[a, b], confusion[b, a]),
            confusions=(taken_for[a, b], taken_for[b, a]),
            separating=_separating(a, b, measured.contributions[-1], measured.rivals),
            **_analysed(scores.get((a, b))),
        )
        for a, b in pairs.rank_pairs(confusion)
        if (a, b) in kept
    )


def _over_time(measured, groups):
    """Deviation of the changes [T-1,K], shared prototypes [M,K] at the end, and the specialised ones of each class."""
    intensity, area, labels, num_classes = measured.intensity, measured.area, measured.labels, len(measured.classes)
    deviation, special = [], [[] for _ in range(num_classes)]
    before = np.array(intensity[0])
    for t in range(1, len(intensity)):
        now = np.array(intensity[t])
        deviation.append((now - before).std(axis=0, dtype=np.float64))
        found = specialised(salient(now, area), labels, groups[t - 1], num_classes, t - 1)
        special = [earlier + records for earlier, records in zip(special, found, strict=True)]
        before = now
    return np.array(deviation), shared(salient(before, area), labels, num_classes), special


def _prototypes(measured):
    counts, classes = measured.counts, measured.classes
    # Row by row: differences keep the digits of near centroids, and all at once would be [K,K,D].
    centroids = np.asarray(measured.centroids, np.float64)
    distances = np.stack([np.linalg.norm(centroids - centroid, axis=1) for centroid in centroids])
    own = of_own_class(measured.contributions[-1], measured.rivals).T  # [K,M] for the class of the sample
    records = []
    for k, count in enumerate(counts):
        nearest = [j for j in np.argsort(distances[k], kind="stable") if j != k][:MAX_NEAREST]
        best = [c for c in np.argsort(-own[k], kind="stable") if own[k, c] > 0][:MAX_SUPPORTED_CLASSES]
        supports = tuple(ClassEvidence(classes[c], own[k, c]) for c in best)
        neighbours = tuple(Neighbour(j, distances[k, j]) for j in nearest)
        records.append(Prototype(k, count, count / np.sum(counts), supports, neighbours))
    return tuple(records)


def _occurs(area, labels, num_classes):
    """Whether a prototype is in enough of a class's images to support it: bool [M,K] from area [N,K], labels [N]."""
    result = np.zeros((num_classes, np.shape(area)[1]), bool)
    for label in np.unique(labels):
        result[label] = (np.asarray(area)[labels == label] > 0).mean(axis=0) >= SUPPORT_OCCURS
    return result


def _supports(support, agreement, contributions, r2, occurs):
    """The stable supports of one class, strongest first within each interval: support [T-1,K], contributions [T,K].

    Of intervals in which too little changed to measure a fit (r2 is NaN) there are none, nor of prototypes that hardly
    an image of the class has (`occurs` [K]): their coefficient tells of the other classes.
    """
    records = []
    for t, of_interval in enumerate(support):
        if np.isnan(r2[t]):
            continue
        measured = (of_interval != 0) & ~np.isnan(of_interval)
        stable = np.flatnonzero((agreement[t] >= uncertainty.STABLE) & measured & occurs)
        for k in stable[np.argsort(-abs(of_interval[stable]), kind="stable")][:MAX_SUPPORT]:
            contribution, change = contributions[t + 1, k], contributions[t + 1, k] - contributions[t, k]
            disagrees = np.sign(of_interval[k]) * contribution <= -DISAGREES_FROM
            records.append(Support(t, k, of_interval[k], agreement[t, k], contribution, change, disagrees))
    return tuple(records)


def _separating(a, b, contributions, rivals):
    def toward(label, other):
        return contributions[label, :, column_of(rivals, label, other)]

    evidence_a, evidence_b = toward(a, a) - toward(a, b), toward(b, b) - toward(b, a)
    strongest = np.argsort(-(abs(evidence_a) + abs(evidence_b)), kind="stable")[:MAX_SEPARATING]
    return tuple(Separating(k, evidence_a[k], evidence_b[k]) for k in strongest)


def _analysed(scores):
    """What a pair's own fit says, by name of the field; None throughout without scores."""
    if scores is None:
        return dict.fromkeys(("uncertain", "counted", "r2", "r2_null"))
    u, raw_flips = uncertainty.uncertain_scores(scores)
    uncertain = tuple(
        UncertainPrototype(k, u[k], raw_flips[k], tuple(scores.s[:, k]), tuple(scores.stable[:, k]))
        for k in np.argsort(-u, kind="stable")
        if u[k] > 0
    )
    counted, r2, r2_null = (tuple(values) for values in (scores.counted, scores.r2, scores.r2_null))
    return {"uncertain": uncertain, "counted": counted, "r2": r2, "r2_null": r2_null}


def _interval(analysis, t):
    steps, labels, mapping = analysis.measured.steps, analysis.measured.labels, analysis.mapping
    groups = analysis.grouped.groups[t]
    # With group_by=class a group is the pair (class, id).
    members = np.stack([labels * (analysis.group_by == "class"), groups])[:, groups >= 0]
    fits = {name: mapping[name][t] for name in ("r2", "r2_class", "r2_total", "r2_groups", "gain", "gain_total")}
    return Interval(
        from_step=steps[t],
        to_step=steps[t + 1],
        groups=np.unique(members, axis=1).shape[1],
        noise=np.sum(groups == -1),
        unchanged=np.sum(groups == -2),
        fallbacks=tuple(sorted(set(analysis.grouped.fallbacks[t]))),
        **fits,
        null=tuple(mapping["gain_null"][t]),
        above_null=mapping["gain"][t] > mapping["gain_null"][t][1],
    )
