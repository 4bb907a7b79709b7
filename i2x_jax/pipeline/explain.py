"""The steps of the stage `explain` on the host: what was measured to the structured explanation (DESIGN 2.5 to 2.8)."""

import functools

import numpy as np

from i2x_jax.devices.mesh import fetch
from i2x_jax.evidence.geometry import crop_size
from i2x_jax.explanation import analysis, uncertainty
from i2x_jax.explanation.analysis import Measured
from i2x_jax.explanation.build import Analysis, build_explanation
from i2x_jax.explanation.types import to_json
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.report.contact_sheet import contact_sheet
from i2x_jax.results.files import CONTACT_SHEET, EXPLANATION
from i2x_jax.results.opened_run import Run


def read_measured(work: Run) -> Measured:
    """What the steps before have measured, from the files of the run."""
    settings, validation, found = work.config.explain, work.arrays("validation"), work.arrays("prototypes")
    area = uncertainty.prototype_area(work.array("assignments"), settings.num_prototypes)
    return Measured(
        classes=work.dataset.class_names,
        steps=work.steps,
        labels=work.dataset.labels,
        area=area,
        intensity=work.array("intensity"),
        rivals=work.rivals,
        confidence=work.array("confidence"),
        contributions=work.arrays("contributions")["mean"],
        counts=area.sum(0),
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
    variables, images = fetch(work.variables(work.steps[-1])), work.dataset.pictures
    if not directory.main:
        return
    with directory.making("contact_sheet") as folder:
        sheet = contact_sheet(
            work.prototypes,
            images,
            np.array(work.array("assignments")),
            np.array(work.array("intensity")[-1]),
            functools.partial(work.saliency, variables),
            work.model.places,
            crop_size(work.model, images.shape[1:]),
            work.config.seed,
        )
        sheet.save(folder / CONTACT_SHEET)
