"""The first step of the stage `explain`: the final model's feature vectors to prototypes (DESIGN 2.2)."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from i2x_jax.data.dataset import Dataset, batches
from i2x_jax.devices.compilation import jit
from i2x_jax.devices.mesh import ahead, divisible, fetch, shard
from i2x_jax.evidence import prototypes
from i2x_jax.models.model import Model, Variables
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.results.opened_run import Run

# On a CPU a block's distances should stay in the cache; elsewhere a block should fill the device.
POINTS_PER_BLOCK = {"cpu": 2**14}
POINTS_PER_BLOCK_ELSEWHERE = 2**20
# Bytes of feature vectors that are kept between the two passes over them; more are computed again for the second.
KEPT_FEATURES = 2**29


@jax.jit
def _rows(features, mask):
    """Feature maps `[B, h, w, d]` as rows `[B*h*w, d]`, and 1 for every row of an unmasked sample."""
    _, h, w, d = features.shape
    return features.reshape(-1, d), mask.repeat(h * w).astype(features.dtype)


class Clusters(NamedTuple):
    """Prototypes and the locations that belong to them; ids by falling number of locations."""

    centroids: np.ndarray  # [K,D] float32
    counts: np.ndarray  # [K] int64, of all locations
    inertia: float  # over the locations that K-means was fitted on
    fitted_locations: int
    iterations: int
    assignments: np.ndarray  # [n] int16, the prototype of every location


def find_prototypes(directory: RunDirectory, work: Run) -> None:
    """PCA and K-means of the final model's feature vectors: prototypes.npz and assignments.npy (DESIGN 2.2)."""
    settings, model, dataset = work.config.explain, work.model, work.dataset
    variables = work.variables(work.steps[-1])
    h, w, d = model.feature_shape
    images = len(dataset.labels) * (1 if are_kept(len(dataset.labels) * h * w, d) else 2)
    with directory.progress_bar("features", images, "image") as bar:
        pca, points = reduce_features(
            lambda: feature_rows(model, variables, dataset, settings.batch_size, bar.update),
            len(dataset.labels) * h * w,
            settings.pca_dims,
        )
    passes = prototypes.most_rows(min(settings.max_locations or len(points), len(points)), settings.restarts)
    with directory.progress_bar("clustering, at most", passes, "location") as bar:
        found = cluster(
            points, settings.num_prototypes, work.config.seed, settings.restarts, settings.max_locations, bar.update
        )
    with directory.making("prototypes") as folder:
        np.savez(
            folder / "prototypes.npz",
            mean=np.asarray(pca.mean),
            components=np.asarray(pca.components),
            explained_variance_ratio=np.asarray(pca.explained_variance_ratio),
            centroids=found.centroids,
            counts=found.counts,
            inertia=np.float64(found.inertia),
            fitted_locations=np.int64(found.fitted_locations),
        )
        np.save(folder / "assignments.npy", found.assignments.reshape(-1, h, w))


def feature_rows(
    model: Model,
    variables: Variables,
    dataset: Dataset,
    batch_size: int,
    progress: Callable[[int], Any] = lambda count: None,
) -> Iterator[tuple[jax.Array, jax.Array, int]]:
    """Feature vectors of all images, batch by batch: rows `[B*h*w, d]`, weights `[B*h*w]`, and how many count."""
    h, w, _ = model.feature_shape
    features_of = jit(model.features, inference=True)
    for batch in batches(dataset, divisible(batch_size)):
        count = int(batch.mask.sum())
        yield *_rows(features_of(variables, shard(batch.images)), shard(batch.mask)), count * h * w
        progress(count)


def are_kept(locations: int, channels: int) -> bool:
    """Whether so many feature vectors are kept after their first pass, not computed again for the second."""
    return locations * channels * np.dtype(np.float32).itemsize <= KEPT_FEATURES


def reduce_features(
    rows_of: Callable[[], Iterator[tuple[jax.Array, jax.Array, int]]], locations: int, dims: int
) -> tuple[prototypes.Pca, np.ndarray]:
    """PCA of feature vectors, of which no more than `KEPT_FEATURES` are held: fitted, then applied (DESIGN 2.2).

    Args:
      rows_of: starts a pass, as `feature_rows`; called once where the vectors are kept, and else twice.
      locations: n, how many rows count in a pass.
      dims: D.

    Returns:
      The PCA, and the reduced rows `[n, D]` float32.
    """
    moments, kept = None, []
    for rows, weights, count in rows_of():
        if are_kept(locations, rows.shape[1]):
            kept.append((rows, weights, count))
        before = moments
        if before is None:
            moments = prototypes.moments_start(rows, weights)
        else:
            moments = prototypes.moments_add(before, rows, weights)
        # One batch ahead keeps the device busy; without a limit the features of ten and more would wait for their turn.
        jax.block_until_ready(before)
    pca = prototypes.pca(moments, dims)
    points, start = np.empty((locations, dims), np.float32), 0
    for part, count in ahead((prototypes.project(pca, rows), count) for rows, _, count in kept or rows_of()):
        points[start : start + count] = fetch(part)[:count]
        start += count
    return pca, points


def cluster(
    points: np.ndarray,
    num_prototypes: int,
    seed: int,
    restarts: int,
    max_locations: int = 0,
    progress: Callable[[int], Any] = lambda count: None,
) -> Clusters:
    """K-means of rows `[n, D]`, fitted on some of them; then all are assigned (DESIGN 2.2).

    Args:
      points: `[n, D]`, as `reduce_features` returns them.
      num_prototypes: K.
      seed: of the rows that are fitted on and of the starts.
      restarts: how many starts are tried.
      max_locations: how many rows K-means is fitted on; 0 for all.
      progress: as in `prototypes.kmeans`.
    """
    every = chosen = blocks(points)
    wanted = min(max_locations or len(points), len(points))
    if wanted < len(points):
        chosen = blocks(points[np.sort(np.random.default_rng(seed).choice(len(points), wanted, replace=False))])
    found = prototypes.kmeans(
        *zip(*chosen, strict=True), num_prototypes, jax.random.key(seed), restarts=restarts, progress=progress
    )
    ids = nearest(every, found.centroids)[: len(points)]
    # K-means orders its clusters by the rows it was fitted on; ids follow the size over all locations.
    counts = np.bincount(ids, minlength=num_prototypes)
    order = np.argsort(-counts, kind="stable")
    return Clusters(
        centroids=np.asarray(found.centroids)[order],
        counts=counts[order].astype(np.int64),
        inertia=found.inertia,
        fitted_locations=wanted,
        iterations=found.iterations,
        assignments=np.argsort(order)[ids].astype(np.int16),
    )


def nearest(parts: list[tuple[jax.Array, jax.Array]], centroids: np.ndarray) -> np.ndarray:
    """The nearest centroid of every row of `blocks`, int32, fill included."""
    return np.concatenate([fetch(ids) for ids in ahead(prototypes.assign(block, centroids) for block, _ in parts)])


def blocks(points: np.ndarray) -> list[tuple[jax.Array, jax.Array]]:
    """Rows `[n, D]` on the device in blocks of one shape, with weights 0 for the rows that fill the last one up."""
    size = divisible(min(POINTS_PER_BLOCK.get(jax.default_backend(), POINTS_PER_BLOCK_ELSEWHERE), len(points)))
    parts = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        fill = size - len(part)
        weights = np.concatenate([np.ones(len(part), np.float32), np.zeros(fill, np.float32)])
        # Padding copies: only where there is something to fill.
        parts.append(shard((np.pad(part, ((0, fill), (0, 0))) if fill else part, weights)))
    return parts
