"""From what was measured to groups, coefficients, pair scores and the curated set (DESIGN 2.5 to 2.8); on the host.

One function a step, each over all intervals: `group_changes`, `map_changes`, `score_pairs`, `curate_pair`.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from i2x_jax.config import Config, ExplainConfig
from i2x_jax.explanation import grouping, mapping, uncertainty
from i2x_jax.explanation.pairs import rank_pairs, soft_confusion
from i2x_jax.explanation.rivals import choose_rivals, is_narrow


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured at the checkpoints, from which everything on the host follows.

    Attributes:
      classes: M names.
      steps: int [T].
      labels: int [N].
      area: int [N,K], locations of each prototype in each sample (`uncertainty.prototype_area`).
      intensity: [T,N,K], in logits; may be a memory map, of which two checkpoints at a time are read.
      rivals: int [M,R], the classes that are kept of the samples of each class.
      confidence: [T,N,M], or [T,N,R+1] (`rivals.is_narrow`), 0 to 1; may be a memory map.
      contributions: [T,M,K,R] mean contributions (class of the sample, prototype, class of the logit), in logits.
      counts: int [K], locations of each prototype.
      centroids: [K,D].
      validation_labels: int [Nv].
      validation_confidence: [T,Nv,M], 0 to 1.
      margins: [T,n,K] signed intensity over the rows of the refined pair, where that is analysed by its margin.
    """

    classes: tuple[str, ...]
    steps: np.ndarray
    labels: np.ndarray
    area: np.ndarray
    intensity: np.ndarray
    rivals: np.ndarray
    confidence: np.ndarray
    contributions: np.ndarray
    counts: np.ndarray
    centroids: np.ndarray
    validation_labels: np.ndarray
    validation_confidence: np.ndarray
    margins: np.ndarray | None = None


class Pairs(NamedTuple):
    """Two classes at a time, as labels, the smaller first.

    Attributes:
      refined: the pair that is refined.
      analysed: the pairs whose uncertain prototypes are sought, that one first.
    """

    refined: tuple[int, int]
    analysed: tuple[tuple[int, int], ...]


class Grouping(NamedTuple):
    """Groups of all intervals.

    Attributes:
      groups: int32 [T-1,N], at least 0 for a group, -1 noise, -2 unchanged.
      fallbacks: for every interval, texts that name how the grouping fell back (`grouping.Groups.fallback`).
    """

    groups: np.ndarray
    fallbacks: Sequence[Collection[str]]


class Fits(NamedTuple):
    """How changes of intensity map to changes of confidence in all intervals.

    Attributes:
      arrays: the members of mapping.npz, [T-1,...] each (DESIGN section 4).
      deviation: for each analysed pair [T-1,K], the deviation of the change of intensity over its samples.
      pairs: for each analysed pair T-1 `mapping.SampleFit`.
    """

    arrays: dict[str, np.ndarray]
    deviation: dict[tuple[int, int], np.ndarray]
    pairs: dict[tuple[int, int], list[mapping.SampleFit]]


Progress = Callable[[int], Any]


def difference(values: np.ndarray, t: int) -> np.ndarray:
    """Change over interval t of `[T, ...]`, in float64; reads two checkpoints of a memory map."""
    return values[t + 1].astype(np.float64) - values[t]


def choose_pairs(config: Config, classes: Sequence[str], confidence: np.ndarray, labels: np.ndarray) -> Pairs:
    """The pair that is refined, and those that are analysed, by final confidence on validation samples (DESIGN 2.8).

    The margin of a pair is a saliency of its own: with `explain.pair_target` margin the refined pair alone is analysed.

    Args:
      config: `refine.pair`, `explain.max_pairs`, `explain.classes` and `explain.pair_target` are used.
      classes: M names.
      confidence: of the last checkpoint [n,M], 0 to 1.
      labels: int [n].
    """
    # Of the others there are no images to tell anything by.
    known = [name in (config.explain.classes or classes) for name in classes]
    ranked = [(a, b) for a, b in rank_pairs(soft_confusion(confidence, labels)) if known[a] and known[b]]
    refined = tuple(sorted(classes.index(name) for name in config.refine.pair)) or ranked[0]
    if config.explain.pair_target == "margin":
        return Pairs(refined, (refined,))
    return Pairs(refined, (refined, *(pair for pair in ranked[: config.explain.max_pairs] if pair != refined)))


def choose_kept(
    config: Config, classes: Sequence[str], confidence: np.ndarray, labels: np.ndarray
) -> tuple[tuple[int, ...], np.ndarray]:
    """The pair whose margin is measured, () for none, and `rivals [M,R]`; arguments as in `choose_pairs`."""
    pairs = choose_pairs(config, classes, confidence, labels)
    rivals = choose_rivals(soft_confusion(confidence, labels), pairs.analysed, config.explain.rivals)
    return pairs.refined if config.explain.pair_target == "margin" else (), rivals


def group_changes(measured: Measured, settings: ExplainConfig, progress: Progress = lambda count: None) -> Grouping:
    """HDBSCAN of the confidence changes of every interval (DESIGN 2.5).

    Args:
      measured: `labels` and `confidence` are read.
      settings: of the explanation.
      progress: told 1 after every interval.
    """
    groups = np.empty((len(measured.steps) - 1, len(measured.labels)), np.int32)
    fallbacks = []
    names = measured.classes if settings.group_by == "class" else ("all",)
    for t in range(len(groups)):
        groups[t], fallback = _group(difference(measured.confidence, t), measured.labels, measured, settings)
        fallbacks.append([f"{name}: {kind}" for name, kind in zip(names, fallback, strict=True) if kind])
        progress(1)
    return Grouping(groups, fallbacks)


def _group(changes, labels, measured, settings):
    return grouping.group_interval(
        changes,
        labels,
        len(measured.classes),
        settings.group_by,
        settings.min_cluster_size,
        settings.min_samples,
    )


def map_changes(
    measured: Measured,
    groups: np.ndarray,
    analysed: Sequence[tuple[int, int]],
    settings: ExplainConfig,
    seed: int,
    progress: Progress = lambda count: None,
) -> Fits:
    """Ridge of the confidence changes on the intensity changes of every interval (DESIGN 2.6).

    Args:
      measured: what was measured.
      groups: int [T-1,N] of `group_changes`.
      analysed: pairs of classes that get a fit of their own.
      settings: of the explanation.
      seed: of folds, null and bootstrap.
      progress: told 1 after every interval.
    """
    members = []
    deviation, pair_fits = {pair: [] for pair in analysed}, {pair: [] for pair in analysed}
    for t in range(len(groups)):
        arrays, of_pairs = map_interval(measured, groups[t], t, analysed, settings, seed)
        members.append(arrays)
        for pair, (spread, fit) in of_pairs.items():
            deviation[pair].append(spread)
            pair_fits[pair].append(fit)
        progress(1)
    stacked = {name: np.stack([member[name] for member in members]) for name in members[0]}
    return Fits(stacked, {pair: np.stack(spreads) for pair, spreads in deviation.items()}, pair_fits)


def map_interval(
    measured: Measured,
    groups: np.ndarray,
    t: int,
    analysed: Sequence[tuple[int, int]],
    settings: ExplainConfig,
    seed: int,
) -> tuple[dict[str, np.ndarray], dict[tuple[int, int], tuple[np.ndarray, mapping.SampleFit]]]:
    """One interval of `map_changes`: its members of mapping.npz, and for each pair the deviation [K] and the fit."""
    labels, num_classes = measured.labels, len(measured.classes)
    dP, dY = difference(measured.intensity, t), difference(measured.confidence, t)
    many = is_narrow(measured.rivals)
    # Groups see the sum of the other classes' confidences too; as an output it would be of no class.
    changes = mapping.Changes(dP, dY, labels, num_classes)
    if many:
        changes = changes._replace(dY=dY[:, :-1], columns=measured.rivals)
    everything = mapping.Subset(tuple(range(num_classes)), null=not many)
    own = [mapping.Subset((label,), *(not many,) * 3) for label in range(num_classes)]
    with_pairs = [mapping.Subset(pair) for pair in analysed]
    subsets = [everything, *own, *(with_pairs if measured.margins is None else ())]
    draws = mapping.Draws(seed)
    # Saliency is a mean over a prototype's locations: the total counts each by how many there are.
    fits = mapping.map_samples(changes, (dP * measured.area).sum(1), subsets, draws)
    folds = mapping.stratified_folds(labels, mapping.NUM_FOLDS, seed)

    def groups_of(train):
        ids, _ = _group(dY[train], labels[train], measured, settings)
        return mapping.group_ids(ids, labels[train], settings.group_by)

    arrays = mapping_members(
        fits[0],
        fits[1 : num_classes + 1],
        fit_groups(changes, groups, settings),
        mapping.r2_groups(changes, folds, groups_of, settings.ridge_lambda),
        measured.rivals,
    )
    of_pairs = fits[num_classes + 1 :]
    if measured.margins is not None:
        rows = np.isin(labels, analysed[0])
        dP[rows] = difference(measured.margins, t)
        totals = (dP[rows] * measured.area[rows]).sum(1)
        of_pairs = mapping.map_samples(changes._replace(dP=dP).of(rows), totals, with_pairs, draws)
    return arrays, {
        pair: (dP[np.isin(labels, pair)].astype(np.float32).std(axis=0, dtype=np.float64), fit)
        for pair, fit in zip(analysed, of_pairs, strict=True)
    }


def fit_groups(changes: mapping.Changes, groups: np.ndarray, settings: ExplainConfig) -> list[tuple[np.ndarray, float]]:
    """The paper's fit over all groups of an interval, and then over those of each class: (beta, lambda) each.

    Args:
      changes: over the interval.
      groups: int `[N]`, as in groups.npy.
      settings: of the explanation.
    """
    ids = mapping.group_ids(groups, changes.labels, settings.group_by)
    rows = (np.flatnonzero(changes.labels == label) for label in range(changes.num_classes))
    return [mapping.ridge_all_groups(changes, ids, settings.ridge_lambda)] + [
        mapping.ridge_groups(changes.dP[each], changes.dY[each], ids[each], settings.ridge_lambda) for each in rows
    ]


def mapping_members(
    fit: mapping.SampleFit,
    by_class: Sequence[mapping.SampleFit],
    by_groups: Sequence[tuple[np.ndarray, float]],
    r2_groups: tuple[float, np.ndarray],
    rivals: np.ndarray,
) -> dict[str, np.ndarray]:
    """One interval's members of mapping.npz (DESIGN section 4); of the fits by class, outputs for rivals are kept."""

    def kept(outputs):
        """Outputs [...,M] of each class as [...,R]; of many classes they are that already."""
        return np.stack(
            [each if each.shape[-1] == len(own) else each[..., own] for each, own in zip(outputs, rivals, strict=True)]
        )

    return {
        "beta": fit.beta,
        "intercept": fit.intercept,
        "ridge_lambda": fit.ridge_lambda,
        "sign_agreement": mapping.sign_agreement(fit),
        "estimable": fit.estimable,
        "beta_by_class": kept([each.beta for each in by_class]),
        "intercept_by_class": kept([each.intercept for each in by_class]),
        "ridge_lambda_by_class": np.array([each.ridge_lambda for each in by_class]),
        "beta_groups": by_groups[0][0],
        "ridge_lambda_groups": by_groups[0][1],
        "beta_groups_by_class": kept([beta for beta, _ in by_groups[1:]]),
        "ridge_lambda_groups_by_class": np.array([penalty for _, penalty in by_groups[1:]]),
        "r2": fit.r2,
        "r2_class": fit.r2_class,
        "r2_total": fit.r2_total,
        "gain": fit.gain,
        "gain_total": fit.gain_total,
        "gain_null": fit.gain_null,
        "r2_by_class": np.array([each.r2 for each in by_class]),
        "gain_total_by_class": np.array([each.gain_total for each in by_class]),
        "gain_null_by_class": np.stack([each.gain_null for each in by_class]),
        "r2_groups": r2_groups[0],
        "r2_groups_by_class": r2_groups[1],
    }


def score_pairs(fits: Fits) -> dict[tuple[int, int], uncertainty.PairScores]:
    """Effect of every prototype between the classes of each analysed pair (DESIGN 2.8)."""
    return {pair: uncertainty.pair_scores(fits.deviation[pair], fits.pairs[pair], *pair) for pair in fits.pairs}


def curate_pair(
    measured: Measured, scores: uncertainty.PairScores, pair: tuple[int, int], max_left_out: float
) -> uncertainty.Curated:
    """The curated set of a pair: what is left out, and on whose account (DESIGN 2.8, 2.9).

    Args:
      measured: final intensity, area and labels are read.
      scores: of the pair.
      pair: two classes.
      max_left_out: largest share of a class that may be left out, 0 to 1.
    """
    u, _ = uncertainty.uncertain_scores(scores)
    contained = uncertainty.contains(measured.intensity[-1], measured.area)
    return uncertainty.curate(u, contained, measured.labels, pair, max_left_out)
