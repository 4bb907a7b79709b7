"""The step `prototypes`: a sample of the final model's feature vectors to PCA and centroids (DESIGN 2.2)."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2x_jax.data.dataset import Dataset, batches
from i2x_jax.devices.mesh import ahead, divisible, fetch, own_rows_of, replicate, shard, shard_own, summed
from i2x_jax.evidence import prototypes
from i2x_jax.evidence.measuring import assign_locations, batch_features
from i2x_jax.evidence.sampling import sample_locations
from i2x_jax.models.model import Model, Variables
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.results.opened_run import Run

# On a CPU a block's distances should stay in the cache; elsewhere a block should fill the device.
POINTS_PER_BLOCK = {"cpu": 2**14}
POINTS_PER_BLOCK_ELSEWHERE = 2**20
# Locations a prototype that K-means is fitted on by default: its objective over all locations is then within half a
# per cent of that of a fit on all (experiments/benchmarks/sampled_fit.py).
LOCATIONS_PER_PROTOTYPE = 4096
# Of K-means: nearly until no location changes its prototype. Stopped sooner, rounding, which differs with the number of
# devices, decides at which iteration; and the sample is small enough.
TOLERANCE = 1e-6
# Bytes of feature vectors that are held in memory; more are in a file while they are needed.
SAMPLE_BYTES = 2**30


class Clusters(NamedTuple):
    """Prototypes; ids by falling number of locations among those that were fitted on."""

    centroids: np.ndarray  # [K,D] float32
    inertia: float  # over the locations that K-means was fitted on
    iterations: int


def find_prototypes(directory: RunDirectory, work: Run) -> None:
    """PCA and K-means of the final model's feature vectors: prototypes.npz (DESIGN 2.2)."""
    settings, model, dataset = work.config.explain, work.model, work.dataset
    wanted = locations_wanted(settings.max_locations, settings.num_prototypes)
    with directory.making("prototypes") as folder:
        with directory.progress_bar("features", len(dataset.labels), "image") as bar:
            features, colour = sampled_features(
                model,
                work.variables(work.steps[-1]),
                dataset,
                settings.batch_size,
                sample_of(dataset, model, wanted, work.config.seed),
                lambda shape: _room(folder / "sample.npy", shape),
                bar.update,
            )
        pca, points = reduce_features(features, settings.pca_dims)
        del features
        (folder / "sample.npy").unlink(missing_ok=True)
        passes = prototypes.most_rows(len(points), settings.restarts)
        with directory.progress_bar("clustering, at most", passes, "location") as bar:
            found = cluster(points, settings.num_prototypes, work.config.seed, settings.restarts, bar.update)
        np.savez(
            folder / "prototypes.npz",
            **pca._asdict(),
            centroids=found.centroids,
            inertia=np.float64(found.inertia),
            fitted_locations=np.int64(len(points)),
            blank=colour,
        )


def locations_wanted(max_locations: int, num_prototypes: int) -> int | None:
    """How many locations K-means is fitted on, by `explain.max_locations`; None for all."""
    if max_locations < 0:
        return None
    return max_locations or LOCATIONS_PER_PROTOTYPE * num_prototypes


def sample_of(dataset: Dataset, model: Model, wanted: int | None, seed: int) -> np.ndarray:
    """Numbers of the locations that are fitted on, ascending (`sampling.sample_locations`); all if None are wanted."""
    h, w, _ = model.feature_shape
    count = len(dataset.labels) * h * w
    return sample_locations(count, count if wanted is None else wanted, seed)


def _room(path, shape):
    """An array float32 of a shape: in memory where it is small, otherwise in a file."""
    if np.prod(shape, dtype=np.int64) * np.dtype(np.float32).itemsize <= SAMPLE_BYTES:
        return np.empty(shape, np.float32)
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)


def sampled_features(
    model: Model,
    variables: Variables,
    dataset: Dataset,
    batch_size: int,
    sample: np.ndarray,
    room: Callable[[tuple[int, int]], np.ndarray] = lambda shape: np.empty(shape, np.float32),
    progress: Callable[[int], Any] = lambda count: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Feature vectors of some locations, from one pass over all images (DESIGN 2.2).

    Args:
      model: the classifier.
      variables: of the final checkpoint.
      dataset: N samples.
      batch_size: samples a batch.
      sample: int64 `[n]`, numbers of the locations wanted, ascending.
      room: makes the array that they are put into.
      progress: told after every batch how many samples it held.

    Returns:
      float32 `[n, d]` in the order of `sample`, and the mean colour of all images, float32 `[C]`, 0 to 255.
    """
    h, w, d = model.feature_shape
    per_batch = divisible(batch_size)
    ends = np.searchsorted(sample, np.arange(0, len(dataset.labels) + per_batch, per_batch) * h * w)
    # One static shape: as many rows of every batch as are wanted of the one that most are wanted of.
    most = int(np.diff(ends).max())
    own, found, colour = own_rows_of(per_batch), room((len(sample), d)), np.zeros(dataset.images.shape[3])

    def parts():
        for number, batch in enumerate(batches(dataset, per_batch, own)):
            colour[:] += batch.images[batch.mask[own]].sum((0, 1, 2), dtype=np.float64)
            rows = sample[ends[number] : ends[number + 1]] - batch.start * h * w
            filled = np.pad(rows, (0, most - len(rows))).astype(np.int32)
            features = batch_features(model, variables, shard_own(batch.images, per_batch))
            yield _rows(features, replicate(filled)), ends[number], len(rows), int(batch.mask.sum())

    for part, start, count, images in ahead(parts()):
        found[start : start + count] = fetch(part)[:count]
        progress(images)
    pixels = np.prod(dataset.images.shape[:3], dtype=np.int64)
    return found, (summed(colour) / pixels).astype(np.float32)


@jax.jit
def _rows(features, rows):
    return jnp.take(features.reshape(-1, features.shape[-1]), rows, axis=0)


def reduce_features(features: np.ndarray, dims: int) -> tuple[prototypes.Pca, np.ndarray]:
    """PCA of feature vectors `[n, d]`, fitted and applied (DESIGN 2.2); the reduced rows are float32 `[n, dims]`."""
    moments = None
    for rows, weights in blocks(features):
        before = moments
        moments = (
            prototypes.moments_start(rows, weights) if before is None else prototypes.moments_add(before, rows, weights)
        )
        # One block ahead keeps the device busy; without a limit all would wait for their turn in its memory.
        jax.block_until_ready(before)
    pca = prototypes.pca(moments, dims)
    points, start = np.empty((len(features), dims), np.float32), 0
    for part in ahead(prototypes.project(pca, rows) for rows, _ in blocks(features)):
        count = min(len(part), len(features) - start)
        points[start : start + count] = fetch(part)[:count]
        start += count
    return pca, points


def cluster(
    points: np.ndarray,
    num_prototypes: int,
    seed: int,
    restarts: int,
    progress: Callable[[int], Any] = lambda count: None,
) -> Clusters:
    """K-means of rows `[n, D]` (DESIGN 2.2).

    Args:
      points: `[n, D]`, as `reduce_features` returns them.
      num_prototypes: K.
      seed: of the starts.
      restarts: how many starts are tried.
      progress: as in `prototypes.kmeans`.
    """
    parts = zip(*blocks(points), strict=True)
    found = prototypes.kmeans(
        *parts, num_prototypes, jax.random.key(seed), restarts=restarts, tolerance=TOLERANCE, progress=progress
    )
    return Clusters(np.asarray(found.centroids), found.inertia, found.iterations)


def blocks(points: np.ndarray) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Rows `[n, D]` on the device in blocks of one shape, with weights 0 for the rows that fill the last one up."""
    size = divisible(min(POINTS_PER_BLOCK.get(jax.default_backend(), POINTS_PER_BLOCK_ELSEWHERE), len(points)))
    for start in range(0, len(points), size):
        part = points[start : start + size]
        fill = size - len(part)
        weights = np.concatenate([np.ones(len(part), np.float32), np.zeros(fill, np.float32)])
        # Padding copies: only where there is something to fill.
        yield shard((np.pad(part, ((0, fill), (0, 0))) if fill else part, weights))


def assigned(
    work: Run, variables: Variables, dataset: Dataset, pca: prototypes.Pca, centroids: np.ndarray
) -> np.ndarray:
    """The nearest of centroids `[K, D]` at every location of any images, by any variables: int32 `[n, h, w]`."""
    pca, centroids = replicate((pca, centroids))
    per_batch = divisible(work.config.explain.batch_size)

    def parts():
        for batch in batches(dataset, per_batch, own_rows_of(per_batch)):
            images = shard_own(batch.images, per_batch)
            yield assign_locations(pca, centroids, batch_features(work.model, variables, images))

    return np.concatenate([fetch(part) for part in ahead(parts())])[: len(dataset.labels)]
