"""The stage `report`: a finished run to one HTML file that people read (report.html)."""

import numpy as np

from i2x_jax.config import printable
from i2x_jax.devices.mesh import fetch
from i2x_jax.evidence.geometry import crop_size
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.report import charts, content, gallery, ledgers, page
from i2x_jax.report.examples import choose_images
from i2x_jax.results import findings
from i2x_jax.results.files import REPORT
from i2x_jax.results.opened_run import Run

# What follows the checkpoints: what to look at first, prototypes, separating ones in their classes, classes, images,
# the page.
PARTS = 6


def write_report(directory: RunDirectory, work: Run) -> None:
    """report.html: figures from the files of the run, and saliency of the images shown, from the weights."""
    rng = np.random.default_rng(work.config.seed)
    if directory.main:
        left_out = work.arrays("curated")["left_out"]
        chosen = choose_images(work.own_confidence, np.array(work.array("labels")), left_out, rng)
        members, separating = gallery.choose_members(work, rng), gallery.choose_in_classes(work)
    over_time = []
    with directory.progress_bar("report", len(work.steps) + PARTS, "part") as bar:
        for step in work.steps:
            # Restoring is for all processes, the rest for the one that writes.
            variables = fetch(work.variables(step))
            if directory.main:
                over_time.append(work.saliency(variables, chosen.rows()))
            bar.update(1)
        if not directory.main:
            return
        rows = np.unique(np.concatenate([*(kind for each in members for kind in each), *separating.values()]))
        final = dict(zip(rows.tolist(), work.saliency(variables, rows), strict=True))
        by_image = dict(zip(chosen.rows().tolist(), np.stack(over_time, axis=1), strict=True))
        places, crop_side = work.model.places, crop_size(work.model, work.dataset.images.shape[1:])
        shown = {}
        for part, make in (
            ("first", lambda: gallery.first(work, members, final, places, crop_side)),
            ("prototypes", lambda: gallery.prototypes(work, members, final, places, crop_side)),
            ("inClasses", lambda: gallery.in_classes(work, separating, final, places, crop_side)),
            ("perClass", lambda: gallery.classes(work, rng)),
            ("images", lambda: gallery.images(work, chosen, by_image, places)),
        ):
            shown[part] = make()
            bar.update(1)
        with directory.making("report") as folder:
            text = page.render(page_content(work, shown.pop("first"), shown) | {"repairs": page_repairs(work)})
            (folder / REPORT).write_text(text, encoding="utf-8")
        bar.update(1)


def page_content(work: Run, first: list[dict], shown: dict) -> dict:
    """What the page is made of: `first` and `shown` (of `report.gallery`) and the figures of the run."""
    explanation = work.explanation
    names = [printable(name) for name in explanation.classes]
    steps, intervals = [str(step) for step in work.steps], content.labelled_intervals(work)
    overview, learning, refinement = content.overview(work), content.learning(work, names), content.refinement(work)
    specs = {
        "fidelity": overview["chart"],
        "lines": learning["chart_lines"],
        "changes": learning["chart_changes"],
        "apart": learning["chart_apart"],
        "accuracy": refinement["chart_accuracy"],
        "difference": refinement["chart_difference"],
        "prototype": charts.over_time(
            steps, "contribution, logits", "Contribution of the prototype to classes over time"
        ),
        "contributions": charts.heat(steps, "step", "contribution, logits", "Contribution of prototypes to the class"),
        "support": charts.heat(
            intervals, "steps from–to", "support, confidence", "Support of prototypes for the class"
        ),
        "waterfall": charts.waterfall(),
        "stacked": charts.stacked(steps),
        "moved": charts.heat(intervals, "steps from–to", "confidence", "What prototypes added between two classes"),
        "pair": charts.heat(intervals, "steps from–to", "s, confidence", "Effect of prototypes between two classes"),
        "confidence": charts.over_time(steps, "confidence", "Confidence of the image over time"),
        "intensity": charts.over_time(steps, "intensity, logits", "Intensity of prototypes in the image over time"),
    }
    data = shown | {
        "names": names,
        "keys": list(explanation.classes),
        "steps": steps,
        "intervals": intervals,
        "ranked": [each.prototype for each in work.ranking],
        "pairs": content.pairs(work),
        "allPairs": len(explanation.pairs),
        "samples": overview["samples"],
        "ledger": page_ledger(work, shown["images"]["rows"]),
        "specs": {name: spec for name, spec in specs.items() if spec},
    }
    return {
        "first": {"rows": first} | content.first_look(work),
        "trust": findings.trust(work.trust) if work.has_trust else [],
        "overview": overview,
        "learning": learning,
        "refinement": refinement,
        "agreements": ledgers.agreements(work) if work.has_ledger else None,
        "prototypes": len(explanation.prototypes),
        "names": names,
        "steps": steps,
        "seen": work.model.receptive_field,
        "pair_count": len(explanation.pairs),
        "data": data,
    }


def page_repairs(work: Run) -> dict:
    """What acting on prototypes came to, with images before and after the swap, and how to ask for it."""
    shown = content.repaired(work)
    for each in shown:
        # The same images whenever the page is made, whatever else is shown.
        rng = np.random.default_rng(work.config.seed)
        each["picture"] = gallery.swapped(work, work.refinements[each["name"]], rng)
    return {"shown": shown, "command": content.how_to_repair(work)}


def page_ledger(work: Run, rows: list[int]) -> dict | None:
    """The ledgers of classes, of pairs and of the images that are shown; None of a run without a ledger."""
    if not work.has_ledger:
        return None
    return {"classes": ledgers.classes(work), "pairs": ledgers.pairs(work), "images": ledgers.images(work, rows)}
