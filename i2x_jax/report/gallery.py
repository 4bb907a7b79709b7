"""The pictures of the report and the figures that stand beside them: prototypes, classes, images."""

import concurrent.futures
from typing import Any, NamedTuple

import numpy as np

from i2x_jax.config import printable
from i2x_jax.evidence.geometry import crops_at, peaks_of
from i2x_jax.explanation.ranking import FIRST
from i2x_jax.explanation.rivals import MANY_CLASSES, of_own_class
from i2x_jax.models.places import Places
from i2x_jax.refinement.actions import Swapped, masks_of
from i2x_jax.report.content import carrier, rounded
from i2x_jax.report.examples import Chosen, choose_groups
from i2x_jax.results import findings, pictures, story
from i2x_jax.results.opened_run import Run

CROP, MEMBER, FRAME, LARGE, THUMB = 60, 36, 84, 196, 46
LOOK, LOOKS = 92, 6  # side and number of the images that show a prototype which deserves a look
SWAPPED_EACH = 2  # images with the cue, and without it, that show a swap
THUMB_COLUMNS = 16
MAX_TILES, TILES = 8, 600  # crops of each kind of a prototype, and of all
LEAST_STRONGEST, LEAST_RANDOM = 3, 2  # of each kind, however many prototypes there are
MAX_CELLS = len(pictures.COLOURS)
# Of many classes the page holds the contributions that are drawn: the largest of each prototype, and of each class.
LARGEST_OF_PROTOTYPE, LARGEST_OF_CLASS = 5, 12
MAX_OTHERS = 4  # classes beside the label on a confidence path
IN_CLASS, PICTURED_PAIRS = 4, 60  # crops of a separating prototype in a class; pairs whose prototypes get some
PICTURED_PAIRS_OF_MANY = 40  # the same above `MANY_CLASSES` classes


class Members(NamedTuple):
    """Rows that show a prototype: those of highest intensity, and others drawn at random."""

    strongest: np.ndarray
    random: np.ndarray


def choose_members(run: Run, rng: np.random.Generator) -> list[Members]:
    """For each of the K prototypes the images that will show it."""
    assignments, final = np.array(run.array("assignments")), np.array(run.array("intensity")[-1])
    num_prototypes = final.shape[1]
    share = TILES // num_prototypes
    shown, drawn = (int(np.clip(share, least, MAX_TILES)) for least in (LEAST_STRONGEST, LEAST_RANDOM))
    chosen = []
    for k in range(num_prototypes):
        area = (assignments == k).sum((1, 2))
        strongest = story.strongest_members(area, final[:, k], shown)
        chosen.append(Members(strongest, rng.permutation(np.flatnonzero(area))[:drawn]))
    return chosen


def choose_in_classes(run: Run) -> dict[tuple[int, int], np.ndarray]:
    """For prototypes that separate two classes the strongest images of the class on which they weigh more.

    Returns:
      Rows by (prototype, class), for the most confused pairs.
    """
    assignments, final = np.array(run.array("assignments")), np.array(run.array("intensity")[-1])
    labels, classes = np.array(run.array("labels")), run.explanation.classes
    most = PICTURED_PAIRS if len(classes) <= MANY_CLASSES else PICTURED_PAIRS_OF_MANY
    wanted = {
        (each.prototype, classes.index(carrier(pair, each)))
        for pair in run.explanation.pairs[:most]
        for each in pair.separating
    }
    chosen = {}
    for k, label in sorted(wanted):
        rows = np.flatnonzero(labels == label)
        area = (assignments[rows] == k).sum((1, 2))
        chosen[k, label] = rows[story.strongest_members(area, final[rows, k], IN_CLASS)]
    return chosen


def in_classes(
    run: Run,
    chosen: dict[tuple[int, int], np.ndarray],
    maps: dict[int, np.ndarray],
    places: Places,
    crop_side: int,
) -> dict[str, dict]:
    """Pictures of `choose_in_classes` by 'prototype class'; arguments as in `prototypes`."""
    assignments, images = run.array("assignments"), run.dataset.pictures
    size = pictures.tile_size(images.shape[1:], CROP)
    shown = {}
    for (k, label), rows in chosen.items():
        if len(rows):
            tiles = _framed(images, rows, _peaks(assignments, maps, k, rows), size, places, crop_side)
            picture = pictures.data_uri(pictures.row_of(tiles))
            shown[f"{k} {label}"] = {"rows": rows.tolist(), "framed": picture, "tiles": [len(rows), *size]}
    return shown


def _peaks(assignments, maps, k, rows):
    return peaks_of(assignments, lambda chosen: np.stack([maps[int(row)] for row in chosen]), k, rows)


def _framed(images, rows, peaks, size, places, crop_side):
    return [pictures.framed(images[row], size, peak, places, crop_side) for row, peak in zip(rows, peaks, strict=True)]


def shown_contributions(final: np.ndarray) -> np.ndarray:
    """Which contributions the page holds: bool `[K, M]`, all up to `MANY_CLASSES` classes.

    Args:
      final: `[K, M]`, mean contribution of each prototype to the logit of each class, over the images of the class.
    """
    size = np.abs(final)
    if size.shape[1] <= MANY_CLASSES:
        return np.ones(size.shape, bool)
    shown = np.zeros(size.shape, bool)
    np.put_along_axis(shown, np.argsort(-size, axis=1, kind="stable")[:, :LARGEST_OF_PROTOTYPE], True, axis=1)
    np.put_along_axis(shown, np.argsort(-size, axis=0, kind="stable")[:LARGEST_OF_CLASS], True, axis=0)
    return shown


def prototypes(
    run: Run, members: list[Members], maps: dict[int, np.ndarray], places: Places, crop_side: int
) -> list[dict]:
    """Each prototype: its figures, its strongest crops and random members, alone and in their images.

    Args:
      run: the run.
      members: of `choose_members`.
      maps: row to saliency `[h, w]` at the last checkpoint.
      places: of the map.
      crop_side: of a crop, in pixels.
    """
    assignments, labels = run.array("assignments"), np.array(run.array("labels"))
    final = run.array("intensity")[-1]
    own = np.swapaxes(of_own_class(run.arrays("contributions")["mean"], run.rivals), 1, 2)  # [T,K,M]
    held, images = shown_contributions(own[-1]), run.dataset.pictures
    size = pictures.tile_size(images.shape[1:], CROP)
    looks, records = {each.prototype: each for each in run.ranking}, []
    for record, of_prototype in zip(run.explanation.prototypes, members, strict=True):
        k = record.id
        entry: dict[str, Any] = {
            "id": k,
            "count": record.count,
            "share": rounded(record.share),
            "supports": [
                [run.explanation.classes.index(each.name), rounded(each.contribution)] for each in record.supports
            ],
            "nearest": [[each.prototype, rounded(each.distance)] for each in record.nearest],
            "look": [looks[k].rank, run.explanation.classes.index(looks[k].name), rounded(looks[k].evidence)],
            "words": findings.looks(looks[k]),
            "own": {int(c): rounded(own[:, k, c], 3) for c in np.flatnonzero(held[k])},
        }
        for kind, rows in of_prototype._asdict().items():
            if not len(rows):
                continue
            peaks = _peaks(assignments, maps, k, rows)
            crops = crops_at(images[rows], peaks, places, crop_side)
            framed = _framed(images, rows, peaks, size, places, crop_side)
            entry[kind] = {
                "rows": rows.tolist(),
                "labels": labels[rows].tolist(),
                "intensity": rounded(final[rows, k], 3),
                "crops": pictures.data_uri(pictures.row_of([pictures.tile(crop, (CROP, CROP)) for crop in crops])),
                "framed": pictures.data_uri(pictures.row_of(framed)),
                "tiles": [len(rows), *size],
            }
        records.append(entry)
    return records


def swapped(run: Run, table: dict, rng: np.random.Generator) -> dict | None:
    """Four training images before and after the swap of a repair: two that hold the cue, and two others as donors.

    Args:
      run: the run.
      table: of the repair.
      rng: draws the images.

    Returns:
      `before` and `after`, a row of tiles each, `tiles` (how many, width, height) and `rows`; None where nothing was
      swapped, or where all images or none hold the cue.
    """
    told, images = table["repair"], run.dataset.images
    if "mask" not in told:
        return None
    cells = np.isin(run.array("assignments"), told["prototypes"])
    holds = cells.any((1, 2))
    with_cue, others = (rng.permutation(np.flatnonzero(each))[:SWAPPED_EACH] for each in (holds, ~holds))
    if min(len(with_cue), len(others)) < SWAPPED_EACH:
        return None
    rows, donors = np.concatenate([with_cue, others]), np.arange(len(cells))
    donors[rows] = np.concatenate([others, with_cue])
    masks = masks_of(told["mask"], cells, cells, run.model.places, images.shape[1:])
    size = pictures.tile_size(images.shape[1:], LOOK)
    shown = {}
    for name, source in (("before", images), ("after", Swapped(images, masks, donors))):
        tiles = [pictures.tile(image, size) for image in source[rows]]
        shown[name] = pictures.data_uri(pictures.row_of(tiles))
    return shown | {"rows": rows.tolist(), "tiles": [len(rows), *size]}


def first(run: Run, members: list[Members], maps: dict[int, np.ndarray], places: Places, crop_side: int) -> list[dict]:
    """The prototypes that deserve a look first: each in its images, framed, and why; arguments as in `prototypes`."""
    assignments, images, labels = run.array("assignments"), run.dataset.pictures, np.array(run.array("labels"))
    names, size, shown = run.explanation.classes, pictures.tile_size(images.shape[1:], LOOK), []
    for ranked in run.ranking[:FIRST]:
        k = ranked.prototype
        rows = members[k].strongest[:LOOKS]
        if not ranked.rank or not len(rows):
            continue
        tiles = _framed(images, rows, _peaks(assignments, maps, k, rows), size, places, crop_side)
        of = ", ".join(f"“{printable(names[label])}”" for label in labels[rows])
        entry = {"prototype": k, "words": findings.looks(ranked), "of": of, "tiles": [len(rows), *size]}
        shown.append(entry | {"picture": pictures.data_uri(pictures.row_of(tiles))})
    return shown


def classes(run: Run, rng: np.random.Generator) -> list[dict]:
    """Each class: shared and specialised prototypes, support over time, and its groups with some of their members."""
    labels, images = np.array(run.array("labels")), run.dataset.pictures
    found = choose_groups(np.array(run.array("groups")), labels, run.own_confidence, len(run.explanation.classes), rng)
    size = pictures.tile_size(images.shape[1:], MEMBER)
    return [
        {
            "samples": record.samples,
            "shared": list(record.shared),
            "specialised": [
                [
                    each.interval,
                    each.prototype,
                    each.most,
                    rounded(each.most_share),
                    each.least,
                    rounded(each.least_share),
                ]
                for each in record.specialised
            ],
            "support": [
                [each.interval, each.prototype, rounded(each.support), rounded(each.contribution), each.disagrees]
                for each in record.support
            ],
            "groups": [
                [
                    {
                        "id": group.id,
                        "size": group.size,
                        "change": rounded(group.change, 3),
                        "rows": group.members.tolist(),
                        "picture": pictures.data_uri(
                            pictures.row_of([pictures.tile(images[row], size) for row in group.members])
                        )
                        if len(group.members)
                        else None,
                    }
                    for group in of_interval
                ]
                for of_interval in of_class
            ],
            "tile": list(size),
        }
        for record, of_class in zip(run.explanation.per_class, found, strict=True)
    ]


def images(run: Run, chosen: Chosen, maps: dict[int, np.ndarray], places: Places) -> dict:
    """The chosen images: their stories, saliency at every checkpoint, and prototypes drawn on them.

    Args:
      run: the run.
      chosen: of `examples.choose_images`.
      maps: row to saliency `[T, h, w]`.
      places: of the map.
    """
    rows, pixels = chosen.rows(), run.dataset.pictures
    frame, large, thumb = (pictures.tile_size(pixels.shape[1:], side) for side in (FRAME, LARGE, THUMB))
    thumbs = pictures.grid_of([pictures.tile(pixels[row], thumb) for row in rows], THUMB_COLUMNS)
    stories = [_story(run, int(row), maps[int(row)], places, frame, large) for row in rows]
    # Most of the time goes into encoding, which lets other threads run.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for name in ("frames", "cells"):
            addresses = pool.map(pictures.data_uri, [each[name] for each in stories])
            for told, address in zip(stories, addresses, strict=True):
                told[name] = address
    return {
        "kinds": {kind: members.tolist() for kind, members in chosen._asdict().items()},
        "rows": rows.tolist(),
        "frame": list(frame),
        "large": list(large),
        "thumb": list(thumb),
        "columns": THUMB_COLUMNS,
        "thumbs": pictures.data_uri(thumbs),
        "stories": stories,
    }


def _story(run, row, maps, places, frame, large):
    told, pixels, assignments = run.story(row), run.dataset.pictures[row], run.array("assignments")[row]
    label = run.explanation.classes.index(told.label)
    others = [c for c in np.argsort(-told.confidence.max(axis=0), kind="stable") if c != label][:MAX_OTHERS]
    salient = [each for each in told.prototypes if each.share > 0][:MAX_CELLS]
    plain = pictures.tile(pixels, frame)
    # One scale for all checkpoints: a map may only look stronger than another if it is.
    overlays = [pictures.overlaid(plain, each, maps.max(), places, pixels.shape) for each in maps]
    cells = pictures.outlined(
        pictures.tile(pixels, large), assignments, [each.prototype for each in salient], places, pixels.shape
    )
    return {
        "row": row,
        "label": label,
        "predicted": run.explanation.classes.index(told.predicted),
        "classes": [label, *map(int, others)],
        "confidence": rounded(told.confidence[:, [label, *others]], 3),
        "prototypes": [
            [each.prototype, rounded(each.share, 3), rounded(each.area, 3), rounded(each.intensity, 3)]
            for each in salient
        ],
        "left_out": told.left_out,
        "reason": printable(told.reason),
        "largest": rounded(float(maps.max()), 3),
        "frames": pictures.row_of([plain, *overlays], gap=0),
        "cells": cells,
    }
