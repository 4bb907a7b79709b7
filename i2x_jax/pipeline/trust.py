"""The step `trust`, made when it is asked for: how far the explanation of a run can be trusted (DESIGN 2.14)."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from i2x_jax.config import InputError
from i2x_jax.data.dataset import Dataset, batches
from i2x_jax.devices.mesh import ahead, divisible, fetch, replicate, shard
from i2x_jax.evidence import deletion, prototypes
from i2x_jax.evidence.measuring import assign_locations, batch_features, batch_tapped, blank_image
from i2x_jax.evidence.randomising import layers_of, randomised
from i2x_jax.explanation import trust
from i2x_jax.explanation.ranking import FIRST, order
from i2x_jax.models.model import Model
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.pipeline.prototypes import (
    assigned,
    cluster,
    locations_wanted,
    reduce_features,
    sample_of,
    sampled_features,
)
from i2x_jax.pipeline.report import write_report
from i2x_jax.results.files import REPORT, TRUST
from i2x_jax.results.opened_run import Run

# Validation images that are looked at, at most, and training images whose assignments are compared.
IMAGES, COMPARED = 256, 2000
# Images whose maps are taken under randomised layers, and how many times more layers are randomised.
MOVED_IMAGES, STAGES = 96, 5
# Other starts of K-means.
STARTS = 2


class Looked(NamedTuple):
    """What the final network makes of n images; R is 2: the predicted class, and the one that came second.

    Attributes:
      kept: int `[n, 2]`, the two classes.
      logits: `[n, 2]`, theirs.
      places: int `[n, h, w]`, the prototype of every location.
      owed: `[n, h, w, 2]`, what each of the two logits owes to each location.
      maps: `[n, h, w]`, saliency of the first.
    """

    kept: np.ndarray
    logits: np.ndarray
    places: np.ndarray
    owed: np.ndarray
    maps: np.ndarray


def measure_trust(directory: RunDirectory, work: Run) -> None:
    """trust.json, and with it report.html anew where there is one. It needs what `check_trustable` asks for."""
    variables, dataset = replicate(work.variables(work.steps[-1])), looked_at(work.splits.validation, images_of(work))
    with directory.progress_bar("trust", 2 + len(deletion.FILLS) + STAGES + STARTS, "part") as bar:
        seen = look(work, variables, dataset)
        bar.update(1)
        found = {
            "images": len(dataset.labels),
            "deletion": deletion_figures(work, variables, dataset, seen, bar.update),
            "randomisation": randomisation_figures(work, variables, dataset, seen, bar.update),
            "stability": stability_figures(work, variables, bar.update),
        }
    # A report that does not tell of it must not stay should this process be stopped in between.
    renewed = (directory.path / REPORT).exists()
    directory.barrier("trust measured")
    if renewed and directory.main:
        (directory.path / REPORT).unlink()
    directory.write_json(TRUST, found, "trust")
    directory.barrier("trust written")
    if renewed:
        write_report(directory, work)


def check_trustable(model: Model) -> None:
    """Raises `InputError` for a feature map of a single location: nothing in an image can be ranked."""
    if model.feature_shape[:2] == (1, 1):
        raise InputError(
            "the feature map is 1x1, so that no part of an image can be held against another to see how far the "
            "explanation can be trusted; allowed: at least two locations; leave trust out, or cut the network earlier"
        )


def images_of(work: Run) -> int:
    """How many images are looked at: so many that their deletions take no more passes than the explanation took."""
    passes = len(work.array("labels")) * (len(work.steps) + 1)
    return int(np.clip(passes // (work.config.explain.num_prototypes * len(deletion.FILLS)), 32, IMAGES))


def looked_at(dataset: Dataset, count: int) -> Dataset:
    """So many images, evenly over the data set, or all where there are fewer."""
    rows = np.arange(len(dataset.labels))
    return dataset.take(rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))])


def all_logits(work: Run, variables: Any, dataset: Dataset) -> np.ndarray:
    """Logits float32 `[n, M]` of any images."""
    per_batch, found = divisible(work.config.explain.batch_size), []

    def parts():
        for batch in batches(dataset, per_batch):
            tapped = batch_tapped(work.model, variables, shard(batch.images))
            yield deletion.logits_of(work.model, variables, tapped), int(batch.mask.sum())

    for part, count in ahead(parts()):
        found.append(fetch(part)[:count])
    return np.concatenate(found)


def look(work: Run, variables: Any, dataset: Dataset, kept: np.ndarray | None = None) -> Looked:
    """`Looked` of images, under any variables.

    Args:
      work: the run, whose prototypes are assigned.
      variables: of the network.
      dataset: n images.
      kept: int `[n, 2]`, two classes; None for those that come first and second.
    """
    found, parts = work.arrays("prototypes"), []
    pca, centroids, empty = replicate(
        (prototypes.pca_of(found), found["centroids"], blank_image(found["blank"], dataset.images))
    )
    blank = batch_features(work.model, variables, empty)
    # What batches know their samples by, as rows of `kept`.
    numbered = dataset._replace(labels=np.arange(len(dataset.labels), dtype=np.int32))
    for batch in batches(numbered, divisible(work.config.explain.batch_size)):
        tapped = batch_tapped(work.model, variables, shard(batch.images))
        logits = fetch(deletion.logits_of(work.model, variables, tapped))
        two = np.argsort(-logits, axis=1, kind="stable")[:, :2] if kept is None else kept[batch.labels]
        places = assign_locations(pca, centroids, tapped.features)
        taken = deletion.owed(work.model, variables, tapped, blank, shard(two), work.config.explain.cam)
        seen = (two, np.take_along_axis(logits, two, 1), *fetch((places, *taken)))
        parts.append([each[: batch.mask.sum()] for each in seen])
    return Looked(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def claims_of(seen: Looked, images: np.ndarray, pixels: np.ndarray, num_prototypes: int) -> dict[str, np.ndarray]:
    """What is claimed of each prototype in each image, `[n, K]`, and what a claim must beat.

    Args:
      seen: of the images.
      images: uint8 `[n, H, W, C]`.
      pixels: int `[n, H, W]` of `deletion.pixel_prototypes`.
      num_prototypes: K.
    """
    own, second = (deletion.by_prototype(seen.owed[..., column], seen.places, num_prototypes) for column in (0, 1))
    locations = deletion.by_prototype(np.ones(seen.places.shape), seen.places, num_prototypes)
    bright = deletion.by_prototype(seen.maps, seen.places, num_prototypes)
    return {
        "contribution": own - second,
        "intensity": bright / np.maximum(locations, 1),
        "ink": deletion.by_prototype(deletion.ink(images), pixels, num_prototypes),
        "area": deletion.by_prototype(np.ones(pixels.shape), pixels, num_prototypes),
        "random": np.random.default_rng(0).normal(size=own.shape),
    }


def deletion_figures(work: Run, variables: Any, dataset: Dataset, seen: Looked, progress) -> list[dict]:
    """For each fill, how well claims foresee by how much the margin falls without a prototype's pixels."""
    k, images = work.config.explain.num_prototypes, np.asarray(dataset.images[np.arange(len(dataset.labels))])
    pixels = deletion.pixel_prototypes(seen.places, work.model.places, images.shape[1:3])
    claims, colour = claims_of(seen, images, pixels, k), work.arrays("prototypes")["blank"]
    # Pixels go with a location: where it is the only one of its prototype, it may own none of them.
    present = claims["area"] > 0
    rows, ids = np.nonzero(present)
    margin, found = seen.logits[:, 0] - seen.logits[:, 1], []
    for fill in deletion.FILLS:
        put = deletion.filling(images, fill, colour)
        without = Without(images, put, pixels, rows, ids)
        logits = all_logits(work, variables, Dataset(without, np.zeros(len(rows), np.int32), dataset.class_names))
        first, second = np.take_along_axis(logits, seen.kept[rows], 1).T
        drops = np.zeros(present.shape)
        drops[rows, ids] = margin[rows] - (first - second)
        found.append({"fill": fill} | compared(claims, drops, present, work.config.seed))
        progress(1)
    return found


class Without:
    """Images with one prototype's pixels replaced, made while they are read; see `source.Images`."""

    def __init__(self, images: np.ndarray, put: np.ndarray, pixels: np.ndarray, rows: np.ndarray, ids: np.ndarray):
        self._made_of = images, put, pixels, rows, ids
        self.shape, self.dtype = (len(rows), *images.shape[1:]), images.dtype

    def __getitem__(self, wanted: np.ndarray | slice) -> np.ndarray:
        """See `Images`."""
        images, put, pixels, rows, ids = self._made_of
        row, each = rows[wanted], ids[wanted]
        return deletion.deleted(images[row], pixels[row] == each[..., None, None], put[row])


def compared(claims: dict[str, np.ndarray], drops: np.ndarray, present: np.ndarray, seed: int) -> dict:
    """The figures of one fill; intervals are None where no image has parts enough."""
    within = {name: trust.agreement(claim, drops, present) for name, claim in claims.items()}
    given = trust.agreement_given(claims["contribution"], drops, claims["ink"], present)
    own = within["contribution"]
    return {
        "agreement": {name: interval(values, seed) for name, values in within.items()},
        "above": {name: interval(own - values, seed) for name, values in within.items() if name != "contribution"},
        "given_ink": interval(given, seed),
        "images": len(own),
    }


def interval(values: np.ndarray, seed: int) -> dict | None:
    """`trust.mean_interval` as JSON; None of no values."""
    return trust.mean_interval(values, seed)._asdict() if len(values) else None


def likeness(pairs: Iterable[tuple[np.ndarray, np.ndarray]], seed: int) -> dict | None:
    """The `interval` of the rank correlation of two maps, over pairs of them."""
    return interval(np.array([trust.spearman(one.ravel(), other.ravel()) for one, other in pairs]), seed)


def randomisation_figures(work: Run, variables: Any, dataset: Dataset, seen: Looked, progress) -> list[dict]:
    """How alike contributions and saliency stay while layers are randomised, the last first."""
    some = looked_at(dataset, MOVED_IMAGES)
    rows = np.flatnonzero(np.isin(dataset.rows, some.rows))
    host = fetch(variables)
    layers = layers_of(work.model, host, dataset.images.shape[1:])[::-1]
    found = []
    for count in np.unique(np.linspace(1, len(layers), min(STAGES, len(layers))).astype(int)).tolist():
        moved = replicate(randomised(host, [leaf for layer in layers[:count] for leaf in layer], work.config.seed))
        after = look(work, moved, some, seen.kept[rows])
        alike = {
            "contributions": [(seen.owed[row, ..., 0], after.owed[i, ..., 0]) for i, row in enumerate(rows)],
            "maps": [(seen.maps[row], after.maps[i]) for i, row in enumerate(rows)],
        }
        found.append(
            {"layers": count, "of": len(layers)}
            | {name: likeness(pairs, work.config.seed) for name, pairs in alike.items()}
        )
        progress(1)
    return found


def stability_figures(work: Run, variables: Any, progress) -> dict:
    """How alike the assignments are that other starts of K-means give, on the same sample of locations."""
    explain, k = work.config.explain, work.config.explain.num_prototypes
    some = looked_at(work.dataset, COMPARED)
    seen = look(work, variables, some)
    weights = abs(seen.owed[..., 0] - seen.owed[..., 1]).ravel()
    sample = sample_of(work.dataset, work.model, locations_wanted(explain.max_locations, k), work.config.seed)
    features, _ = sampled_features(work.model, variables, work.dataset, explain.batch_size, sample)
    pca, points = reduce_features(features, explain.pca_dims)
    progress(1)
    others = []
    for start in range(1, STARTS + 1):
        centroids = cluster(points, k, work.config.seed + start, explain.restarts).centroids
        others.append(assigned(work, variables, some, pca, centroids).ravel().astype(np.int64))
        progress(1)
    one = seen.places.ravel().astype(np.int64)
    ranked = work.arrays("ranking")
    first = [prototype for prototype in order(ranked)[:FIRST].tolist() if ranked["ranked"][prototype]]
    kept = [trust.overlaps(one, other, np.array(first, int), k) for other in others]
    return {
        "starts": STARTS,
        "images": len(some.labels),
        "rand": [number(trust.adjusted_rand(one, other)) for other in others],
        "rand_by_evidence": [number(trust.adjusted_rand(one, other, weights)) for other in others],
        "first": [
            {"prototype": prototype, "overlaps": [float(each[i]) for each in kept]} for i, prototype in enumerate(first)
        ],
    }


def number(value: float) -> float | None:
    """A number as JSON has it; None for NaN."""
    return value if np.isfinite(value) else None
