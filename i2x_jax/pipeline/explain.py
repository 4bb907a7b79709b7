"""The stage `explain` from the prototypes on: checkpoints to the structured explanation (DESIGN 2.3 to 2.8)."""

import functools

import numpy as np

from i2x_jax.config import ExplainConfig
from i2x_jax.devices.mesh import fetch
from i2x_jax.evidence import measuring as evidence
from i2x_jax.evidence.geometry import crop_size
from i2x_jax.explanation import analysis, uncertainty
from i2x_jax.explanation.analysis import Measured
from i2x_jax.explanation.build import Analysis, build_explanation
from i2x_jax.explanation.types import to_json
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.report.contact_sheet import contact_sheet
from i2x_jax.results.files import CONTACT_SHEET, EXPLANATION
from i2x_jax.results.opened_run import Run
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
                        measuring_of(config.explain),
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
            final, labels = held_out["validation"][-1], splits.validation.labels
            pair = analysis.choose_pairs(config, splits.train.class_names, final, labels).refined
            np.save(folder / "pair_intensity.npy", pair_margins(work, pair, assignments))


def measuring_of(settings: ExplainConfig) -> evidence.Measuring:
    """What is measured, by a config's settings."""
    return evidence.Measuring(settings.num_prototypes, settings.cam, settings.target, settings.batch_size)


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
            measuring_of(settings),
            pair,
        )
        for step in work.steps
    ]
    return np.stack(per_step)


def read_measured(work: Run) -> Measured:
    """What the steps before have measured, from the files of the run."""
    settings, validation, found = work.config.explain, work.arrays("validation"), work.arrays("prototypes")
    return Measured(
        classes=work.dataset.class_names,
        steps=work.steps,
        labels=work.dataset.labels,
        area=uncertainty.prototype_area(work.array("assignments"), settings.num_prototypes),
        intensity=work.array("intensity"),
        confidence=work.array("confidence"),
        contributions=work.arrays("contributions")["mean"],
        counts=found["counts"],
        centroids=found["centroids"],
        validation_labels=validation["labels"],
        validation_confidence=validation["confidence"],
        margins=work.array("pair_intensity") if settings.pair_target == "margin" else None,
    )


def map_changes(directory: RunDirectory, work: Run) -> None:
    """Groups, mapping, uncertain prototypes, curated set and explanation (DESIGN 2.5 to 2.8); on the host."""
    if not directory.main:
        return
    config, settings, measured = work.config, work.config.explain, read_measured(work)
    final = measured.validation_confidence[-1]
    pairs = analysis.choose_pairs(config, measured.classes, final, measured.validation_labels)
    intervals = len(measured.steps) - 1
    with directory.progress_bar("grouping", intervals, "interval") as bar:
        grouped = analysis.group_changes(measured, settings, bar.update)
    with directory.progress_bar("mapping", intervals, "interval") as bar:
        fits = analysis.map_changes(measured, grouped.groups, pairs.analysed, settings, config.seed, bar.update)
    scores = analysis.score_pairs(fits)
    curated = analysis.curate_pair(measured, scores[pairs.refined], pairs.refined, config.refine.max_left_out)
    explanation = build_explanation(Analysis(measured, grouped, fits.arrays, scores, settings.group_by, settings.fit))
    with directory.making("mapping") as folder:
        np.save(folder / "groups.npy", grouped.groups)
        np.savez(folder / "mapping.npz", **fits.arrays)
        np.savez(folder / "curated.npz", **curated_members(pairs.refined, scores[pairs.refined], curated))
        (folder / EXPLANATION).write_text(to_json(explanation), encoding="utf-8")


def curated_members(
    pair: tuple[int, int], scores: uncertainty.PairScores, curated: uncertainty.Curated
) -> dict[str, np.ndarray]:
    """The members of curated.npz (DESIGN section 4)."""
    return {
        "pair": np.array(pair, np.int32),
        "pair_s": scores.s,
        "pair_s_ci": scores.ci,
        "pair_r2": scores.r2,
        "pair_r2_null": scores.r2_null,
        **curated._asdict(),
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
            functools.partial(work.saliency, variables),
            work.model.places,
            crop_size(work.model, images.shape[1:]),
            work.config.seed,
        )
        sheet.save(folder / CONTACT_SHEET)
