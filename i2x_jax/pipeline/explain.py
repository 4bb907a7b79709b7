"""The stage `explain` from the prototypes on: checkpoints to the structured explanation (DESIGN 2.3 to 2.8)."""

import functools

import numpy as np

from i2x_jax.devices.mesh import fetch
from i2x_jax.evidence import measuring as evidence
from i2x_jax.evidence.geometry import crop_size
from i2x_jax.explanation import grouping, mapping, uncertainty
from i2x_jax.explanation.build import build_explanation
from i2x_jax.explanation.types import to_json
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.report.contact_sheet import contact_sheet
from i2x_jax.results.files import CONTACT_SHEET, EXPLANATION
from i2x_jax.results.opened_run import Run
from i2x_jax.results.story import maps_of
from i2x_jax.training import loop as training


def measure_evidence(directory: RunDirectory, work: Run) -> None:
    """Intensity, confidence and contributions at every checkpoint (DESIGN 2.3, 2.4)."""
    config, model, splits = work.config, work.model, work.splits
    assignments = np.array(work.array("assignments"))
    num_prototypes, num_classes = config.explain.num_prototypes, len(splits.train.class_names)
    shape = (len(work.steps), len(splits.train.labels))
    contributions = []
    held_out = {"validation": [], "test": []}
    with directory.making("evidence") as folder:
        intensity = directory.shared_memmap("evidence", "intensity.npy", np.float32, (*shape, num_prototypes))
        confidence = directory.shared_memmap("evidence", "confidence.npy", np.float32, (*shape, num_classes))
        with directory.progress_bar("evidence", shape[0] * shape[1], "image") as bar:
            for t, step in enumerate(work.steps):
                bar.set_description(f"evidence, checkpoint {t + 1} of {shape[0]}")
                variables = work.variables(step)
                contributions.append(
                    evidence.measure_checkpoint(
                        model,
                        variables,
                        splits.train,
                        assignments,
                        num_prototypes,
                        config.explain.cam,
                        config.explain.target,
                        config.explain.batch_size,
                        intensity[t],
                        confidence[t],
                        bar.update,
                    )
                )
                for split, values in held_out.items():
                    logits = training.predict(model, variables, getattr(splits, split), config.explain.batch_size)
                    values.append(training.confidence(logits))
        intensity.flush()
        confidence.flush()
        directory.barrier("evidence written")
        stacked = evidence.Contributions(*(np.stack(member) for member in zip(*contributions, strict=True)))
        np.savez(folder / "contributions.npz", **stacked._asdict())
        for split, values in held_out.items():
            np.savez(folder / f"{split}.npz", labels=getattr(splits, split).labels, confidence=np.stack(values))
        if config.explain.pair_target == "margin":
            pair, _ = pair_of(work, held_out["validation"][-1], splits.validation.labels)
            np.save(folder / "pair_intensity.npy", pair_margins(work, pair, assignments))


def pair_margins(work: Run, pair: tuple[int, int], assignments: np.ndarray) -> np.ndarray:
    """Intensity of the margin of one class of a pair over the other, `[T, n, K]` over the pair's rows (DESIGN 2.8).

    Args:
      work: the run.
      pair: the classes, as labels.
      assignments: int `[N, h, w]`.
    """
    settings, rows = work.config.explain, np.flatnonzero(np.isin(work.dataset.labels, pair))
    subset = work.dataset.take(rows)
    per_step = [
        evidence.margin_intensity(
            work.model,
            work.variables(step),
            subset,
            assignments[rows],
            settings.num_prototypes,
            settings.cam,
            pair,
            settings.batch_size,
        )
        for step in work.steps
    ]
    return np.stack(per_step)


def pair_of(work: Run, confidence: np.ndarray, labels: np.ndarray) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """The pair that is refined, and all pairs, most confused first, by final confidence on validation samples.

    Args:
      work: the run.
      confidence: of the last checkpoint `[n, M]`, 0 to 1.
      labels: int `[n]`.

    Returns:
      The pair, smaller label first, and all pairs.
    """
    ranked = uncertainty.rank_pairs(uncertainty.soft_confusion(confidence, labels))
    named = tuple(sorted(work.dataset.class_names.index(name) for name in work.config.refine.pair))
    return named or ranked[0], ranked


def map_changes(directory: RunDirectory, work: Run) -> None:
    """Groups, mapping, uncertain prototypes, curated set and explanation (DESIGN 2.5 to 2.8); on the host."""
    if not directory.main:
        return
    config, dataset, settings = work.config, work.dataset, work.config.explain
    labels, classes = dataset.labels, tuple(range(len(dataset.class_names)))
    intensity, confidence = work.array("intensity"), work.array("confidence")
    area = uncertainty.prototype_area(work.array("assignments"), settings.num_prototypes)
    validation = work.arrays("validation")
    pair, ranked = pair_of(work, validation["confidence"][-1], validation["labels"])
    if settings.pair_target == "label":
        analysed = [pair, *(other for other in ranked[: settings.max_pairs] if other != pair)]
        margins = None
    else:
        # The margin of a pair is a saliency of its own: only the pair that is refined is analysed with it.
        analysed = [pair]
        margins = work.array("pair_intensity")
    in_pair = {key: np.isin(labels, key) for key in analysed}
    subsets = [classes, *((label,) for label in classes), *(analysed if margins is None else ())]
    folds = mapping.stratified_folds(labels, mapping.NUM_FOLDS, config.seed)

    def group(changes, of_classes):
        return grouping.group_interval(
            changes, of_classes, len(classes), settings.group_by, settings.min_cluster_size, settings.min_samples
        )

    def group_ids(changes, of_classes):
        return mapping.group_ids(group(changes, of_classes)[0], of_classes, settings.group_by)

    groups = np.empty((len(work.steps) - 1, len(labels)), np.int32)
    members, fallbacks = [], []
    pair_changes, pair_fits = {key: [] for key in analysed}, {key: [] for key in analysed}
    with directory.progress_bar("grouping", len(groups), "interval") as bar:
        names = dataset.class_names if settings.group_by == "class" else ("all",)
        for t in range(len(groups)):
            groups[t], fallback = group(difference(confidence, t), labels)
            fallbacks.append([f"{name}: {kind}" for name, kind in zip(names, fallback, strict=True) if kind])
            bar.update(1)
    with directory.progress_bar("mapping", len(groups), "interval") as bar:
        for t in range(len(groups)):
            dP, dY = difference(intensity, t), difference(confidence, t)
            fits = mapping.map_samples(dP, dY, (dP * area).sum(1), labels, len(classes), subsets, config.seed)
            members.append(
                mapping_members(
                    fits[0],
                    fits[1 : len(classes) + 1],
                    fit_groups(dP, dY, groups[t], labels, classes, settings),
                    mapping.r2_groups(dP, dY, labels, folds, group_ids, settings.ridge_lambda),
                )
            )
            pair_only = fits[len(classes) + 1 :]
            if margins is not None:
                rows = in_pair[pair]
                dP[rows] = difference(margins, t)
                totals = (dP[rows] * area[rows]).sum(1)
                pair_only = mapping.map_samples(
                    dP[rows], dY[rows], totals, labels[rows], len(classes), [pair], config.seed
                )
            for key, fit in zip(analysed, pair_only, strict=True):
                pair_changes[key].append(dP[in_pair[key]].astype(np.float32))
                pair_fits[key].append(fit)
            bar.update(1)

    arrays = {name: np.stack([member[name] for member in members]) for name in members[0]}
    scores = {key: uncertainty.pair_scores(np.stack(pair_changes[key]), pair_fits[key], *key) for key in analysed}
    curated = uncertainty.curate(
        uncertainty.uncertain_scores(scores[pair])[0],
        uncertainty.contains(intensity[-1], area),
        labels,
        pair,
        config.refine.max_left_out,
    )
    found = work.arrays("prototypes")
    explanation = build_explanation(
        classes=dataset.class_names,
        steps=work.steps,
        labels=labels,
        counts=found["counts"],
        centroids=found["centroids"],
        area=area,
        intensity=intensity,
        groups=groups,
        fallbacks=fallbacks,
        mapping=arrays,
        contributions=work.arrays("contributions")["mean"],
        validation_labels=validation["labels"],
        validation_confidence=validation["confidence"],
        pairs=scores,
        group_by=settings.group_by,
        fit=settings.fit,
    )
    with directory.making("mapping") as folder:
        np.save(folder / "groups.npy", groups)
        np.savez(folder / "mapping.npz", **arrays)
        np.savez(
            folder / "curated.npz",
            pair=np.array(pair, np.int32),
            pair_s=scores[pair].s,
            pair_s_ci=scores[pair].ci,
            pair_r2=scores[pair].r2,
            pair_r2_null=scores[pair].r2_null,
            **curated._asdict(),
        )
        (folder / EXPLANATION).write_text(to_json(explanation))


def difference(values: np.ndarray, t: int) -> np.ndarray:
    """Change over interval t of `[T, ...]`, in float64; reads two checkpoints of a memory map."""
    return values[t + 1].astype(np.float64) - values[t]


def fit_groups(dP, dY, groups, labels, classes, settings) -> list[tuple[np.ndarray, float]]:
    """The paper's fit over all groups of an interval, and then over those of each class: (beta, lambda) each.

    Args:
      dP: `[N, K]`, change of intensity.
      dY: `[N, M]`, change of confidence.
      groups: int `[N]`, as in groups.npy.
      labels: int `[N]`.
      classes: the labels that there are.
      settings: the config's `explain`.
    """
    ids = mapping.group_ids(groups, labels, settings.group_by)
    rows = [slice(None), *(labels == label for label in classes)]
    return [mapping.ridge_groups(dP[each], dY[each], ids[each], settings.ridge_lambda) for each in rows]


def mapping_members(
    fit: mapping.SampleFit,
    by_class: list[mapping.SampleFit],
    by_groups: list[tuple[np.ndarray, float]],
    r2_groups: tuple[float, np.ndarray],
) -> dict[str, np.ndarray]:
    """One interval's members of mapping.npz (DESIGN section 4)."""
    return {
        "beta": fit.beta,
        "intercept": fit.intercept,
        "ridge_lambda": fit.ridge_lambda,
        "sign_agreement": mapping.sign_agreement(fit),
        "estimable": fit.estimable,
        "beta_by_class": np.stack([each.beta for each in by_class]),
        "intercept_by_class": np.stack([each.intercept for each in by_class]),
        "ridge_lambda_by_class": np.array([each.ridge_lambda for each in by_class]),
        "beta_groups": by_groups[0][0],
        "ridge_lambda_groups": by_groups[0][1],
        "beta_groups_by_class": np.stack([beta for beta, _ in by_groups[1:]]),
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


def draw_contact_sheet(directory: RunDirectory, work: Run) -> None:
    """contact_sheet.png: for each prototype, crops of highest intensity beside crops drawn at random."""
    variables, images = fetch(work.variables(work.steps[-1])), work.dataset.images
    if not directory.main:
        return
    with directory.making("contact_sheet") as folder:
        sheet = contact_sheet(
            work.explanation,
            images,
            np.array(work.array("assignments")),
            np.array(work.array("intensity")[-1]),
            functools.partial(maps_of, work, variables),
            work.model.places,
            crop_size(work.model, images.shape[1:]),
            work.config.seed,
        )
        sheet.save(folder / CONTACT_SHEET)
