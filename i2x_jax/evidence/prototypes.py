"""Prototypes: PCA of the feature vectors, K-means, and what falls on each prototype (DESIGN sections 2.2 and 2.4).

Every array program is jitted, works on one batch or block of rows at a time, and gives the same numbers when the rows
are sharded over a mesh axis: what leaves it is a sum over rows, or a few rows. Products are taken at
`Precision.HIGHEST`, because the short mantissas of accelerators would move locations to another prototype.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2x_jax.config import InputError
from i2x_jax.devices.mesh import fetch

# K-means++ and its restarts run on at most this many rows; the best start is then refined on all rows.
SAMPLE_ROWS = 2**16
# Of each start and over all rows, unless fewer converge.
MAX_ITERATIONS = 100

# So many centroids at a time are compared with the points, by unrolled code: more would not stay in a CPU's cache.
CENTROIDS_AT_ONCE = 128
# Columns of the covariance's upper triangle that are one product: its lower triangle is never computed.
COLUMNS_AT_ONCE = 256

_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Moments(NamedTuple):
    """Running sums from which `pca` takes mean and covariance, about a reference so that they do not cancel."""

    reference: jax.Array  # [d], the mean of the first batch
    sums: tuple[jax.Array, jax.Array, jax.Array]  # weight [], deviations [d], their outer products [d,d]
    carry: tuple[jax.Array, jax.Array, jax.Array]  # what rounding lost from each of `sums`, still to be added


class Pca(NamedTuple):
    """Principal components of the feature vectors; host arrays, float32."""

    mean: np.ndarray  # [d]
    components: np.ndarray  # [D,d], unit rows by falling variance; the largest absolute entry of each is positive
    explained_variance_ratio: np.ndarray  # [D], in 0..1; 0 where the features do not vary


def pca_of(found: Mapping[str, np.ndarray]) -> Pca:
    """The principal components among the members of prototypes.npz."""
    return Pca(*(found[name] for name in Pca._fields))


class KMeans(NamedTuple):
    """Clusters, largest first; host arrays."""

    centroids: np.ndarray  # [K,D] float32
    counts: np.ndarray  # [K] int64, rows nearest to each centroid
    inertia: float  # sum over rows of the squared distance to the nearest centroid
    iterations: int  # updates of the centroids made on all rows


@jax.jit
def moments_start(first_features: jax.Array, weights: jax.Array) -> Moments:
    """The moments of the first batch, which is thereby counted (DESIGN 2.2).

    Args:
      first_features: [n,d], finite.
      weights: [n], 1 for a row that counts and 0 for padding.
    """
    features = first_features.astype(jnp.float32)
    weights = weights.astype(jnp.float32)
    reference = _matmul(weights, features) / jnp.maximum(weights.sum(), 1)
    sums = _deviations(reference, features, weights)
    return Moments(reference, sums, jax.tree.map(jnp.zeros_like, sums))


@jax.jit
def moments_add(moments: Moments, features: jax.Array, weights: jax.Array) -> Moments:
    """`moments` with the rows of one more batch added: features [n,d], weights [n] as in `moments_start`."""
    added = _deviations(moments.reference, features.astype(jnp.float32), weights.astype(jnp.float32))
    # Kahan's summation: plain float32 sums stop growing long before a large data set ends.
    terms = jax.tree.map(jnp.add, added, moments.carry)
    sums = jax.tree.map(jnp.add, moments.sums, terms)
    carry = jax.tree.map(lambda new, old, term: term - (new - old), sums, moments.sums, terms)
    return Moments(moments.reference, sums, carry)


def _deviations(reference, features, weights):
    deviations = (features - reference) * weights[:, None]
    columns = range(0, deviations.shape[1], COLUMNS_AT_ONCE)
    products = [_matmul(deviations[:, start : start + COLUMNS_AT_ONCE].T, deviations[:, start:]) for start in columns]
    rows = [jnp.pad(product, ((0, 0), (start, 0))) for start, product in zip(columns, products, strict=True)]
    upper = jnp.triu(jnp.concatenate(rows))
    return weights.sum(), deviations.sum(0), upper + jnp.triu(upper, 1).T


def pca(moments: Moments, dims: int) -> Pca:
    """The `dims` leading principal components, decomposed in float64 on the host (DESIGN 2.2).

    Raises:
      InputError: more dimensions asked for than features have channels, no rows, or non-finite features.
    """
    channels = moments.reference.shape[0]
    if dims > channels:
        raise InputError(
            f"{dims} PCA dimensions asked of features with {channels} channels; allowed: at most {channels}; "
            "lower explain.pca_dims"
        )
    reference, sums, carry = fetch(moments)
    weight, first, second = (np.float64(total) + np.float64(lost) for total, lost in zip(sums, carry, strict=True))
    if weight == 0:
        raise InputError("PCA was given 0 feature vectors; allowed: at least 1; use more images")
    if not np.isfinite(second).all():
        raise InputError(
            "features hold non-finite values, or such that their squares are; allowed: finite values up to about 1e18; "
            "check the training (metrics.jsonl), or divide what `features` returns"
        )
    shift = first / weight
    covariance = second / weight - np.outer(shift, shift)
    variances, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    variances = np.maximum(variances[::-1], 0)
    components = vectors.T[::-1][:dims]
    largest = np.abs(components).argmax(axis=1)
    components = components * np.sign(components[np.arange(dims), largest])[:, None]
    total = variances.sum()
    ratio = variances[:dims] / total if total > 0 else np.zeros(dims)
    return Pca((reference + shift).astype(np.float32), components.astype(np.float32), ratio.astype(np.float32))


@jax.jit
def project(pca: Pca, features: jax.Array) -> jax.Array:
    """Features [n,d] about the mean, along the components: [n,D] float32."""
    return _matmul(features.astype(jnp.float32) - pca.mean, pca.components.T)


@jax.jit
def assign(points: jax.Array, centroids: jax.Array) -> jax.Array:
    """The nearest centroid of every point, int32 [n]; ties go to the lower id (DESIGN 2.2).

    Args:
      points: [n,D] about their mean, as `project` leaves them: distances come from a product, in which a common
        offset would cost digits.
      centroids: [K,D].
    """
    # |x - c|^2 is smallest where x.c - |c|^2 / 2 is largest. The maximum is written out over the rows: one pass over
    # [K,n] that the compiler vectorises along n, where argmax is a scalar loop on CPU.
    count = centroids.shape[0]
    at_once = min(count, CENTROIDS_AT_ONCE)

    def compare(group, found):
        # The last group may begin within the one before: what is compared again is not closer.
        start = jnp.minimum(group * at_once, count - at_once)
        some = jax.lax.dynamic_slice_in_dim(centroids, start, at_once)
        closeness = _matmul(some, points.T) - (some**2).sum(1)[:, None] / 2
        best, ids = found
        for k in range(at_once):
            closer = closeness[k] > best
            best, ids = jnp.where(closer, closeness[k], best), jnp.where(closer, start + k, ids)
        return best, ids

    nothing = jnp.full(len(points), -jnp.inf), jnp.zeros(len(points), jnp.int32)
    return jax.lax.fori_loop(0, -(-count // at_once), compare, nothing)[1]


def kmeans(
    blocks: Sequence[jax.Array],
    weights: Sequence[jax.Array],
    num_clusters: int,
    key: jax.Array,
    restarts: int = 4,
    max_iterations: int = MAX_ITERATIONS,
    tolerance: float = 1e-4,
    progress: Callable[[int], Any] = lambda count: None,
) -> KMeans:
    """K-means by Lloyd's iterations from the best of several greedy k-means++ starts (DESIGN 2.2).

    The starts run on a uniform sample of at most `SAMPLE_ROWS` rows; the best of them goes on over all rows. A cluster
    that becomes empty restarts at the row farthest from its centroid. With fewer distinct rows than clusters, some
    clusters stay empty (count 0, centroid at some row) and come last. Equal keys and equal blocks give equal results;
    ids follow cluster size (ties: centroids in lexicographic order), not the order of the start.

    Args:
      blocks: arrays of one shape [block,D], about their mean (see `assign`), padding included finite. On CPU blocks
        of some 10,000 to 50,000 rows are fastest: what they need in between stays in the cache.
      weights: for each block [block], 1 for a row that counts and 0 for padding.
      num_clusters: K.
      key: a jax random key.
      restarts: how many starts are tried on the sample, at least 1.
      max_iterations: of each of them, and over all rows.
      tolerance: iterations end when the squared shift of all centroids together is at most this times the mean
        variance of a column; 0 iterates until no row changes its cluster.
      progress: told after every pass over rows how many these were; `most_rows` in all, at most.

    Raises:
      InputError: more clusters than rows, or non-finite points.
    """
    surveys = fetch([_survey(*block) for block in zip(blocks, weights, strict=True)])
    counts = np.array([count for count, _ in surveys], np.int64)
    if num_clusters > counts.sum():
        raise InputError(
            f"{num_clusters} prototypes asked of {counts.sum()} feature vectors; allowed: at most one for each vector; "
            "lower explain.num_prototypes"
        )
    if not all(finite for _, finite in surveys):
        raise InputError("feature vectors hold non-finite values; allowed: finite values; check the training")
    sample_key, *start_keys = jax.random.split(key, restarts + 1)
    sample = _sample_rows(blocks, weights, counts, sample_key)
    threshold = tolerance * sample.var(axis=0, dtype=np.float64).mean()
    sample, ones = jnp.asarray(sample), jnp.ones(len(sample))
    starts = (_plus_plus(sample, num_clusters, start_key) for start_key in start_keys)
    runs = [lloyd([sample], [ones], start, max_iterations, threshold, progress) for start in starts]
    best = min(runs, key=lambda run: run.inertia)
    result = lloyd(blocks, weights, best.centroids, max_iterations, threshold, progress)
    order = np.lexsort((*result.centroids.T[::-1], -result.counts))
    return result._replace(centroids=result.centroids[order], counts=result.counts[order])


def most_rows(rows: int, restarts: int) -> int:
    """How many rows `kmeans` passes over at most, each counted every time, if it is given `rows` that count."""
    return (MAX_ITERATIONS + 1) * (rows + restarts * min(rows, SAMPLE_ROWS))


@jax.jit
def _survey(points, weights):
    return (weights > 0).sum(dtype=jnp.int32), jnp.isfinite(points).all()


def _sample_rows(blocks, weights, counts, key):
    """A uniform sample without replacement, or all rows where they are few: [rows,D] on the host, in row order.

    It depends on the rows and the key, not on how the rows are cut into blocks.
    """
    total = counts.sum()
    ranks = np.arange(total)
    if total > SAMPLE_ROWS:
        random = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        ranks = np.sort(random.choice(total, SAMPLE_ROWS, replace=False))
    ends = np.cumsum(counts)
    parts = np.split(ranks, np.searchsorted(ranks, ends[:-1]))
    # All blocks fetch as many rows as the fullest, so that one program serves them all.
    wanted = np.zeros((len(parts), max(map(len, parts))), np.int32)
    for row, part, start in zip(wanted, parts, ends - counts, strict=True):
        row[: len(part)] = part - start
    taken = fetch([_rows_of_rank(*args) for args in zip(blocks, weights, wanted, strict=True)])
    return np.concatenate([rows[: len(part)] for rows, part in zip(taken, parts, strict=True)])


@jax.jit
def _rows_of_rank(points, weights, ranks):
    """The rows of these ranks (0 first) among those that count."""
    return points[jnp.searchsorted(jnp.cumsum(weights > 0), ranks + 1)].astype(jnp.float32)


def _plus_plus(points, num_clusters, key):
    """Greedy k-means++: each centre is the best of a few rows drawn in proportion to their squared distance."""
    trials = 2 + int(np.log(num_clusters))
    keys = jax.random.split(key, num_clusters)
    centre, nearest = _next_centre(points, None, keys[0], trials=1)
    centres = [centre]
    for centre_key in keys[1:]:
        centre, nearest = _next_centre(points, nearest, centre_key, trials=trials)
        centres.append(centre)
    return jnp.stack(centres)


@functools.partial(jax.jit, static_argnames="trials")
def _next_centre(points, nearest, key, trials):
    """One more centre, and the squared distance of every row to the nearest centre so far (None: no centre yet)."""
    rows = points.shape[0]
    cumulative = jnp.cumsum(jnp.ones(rows) if nearest is None else nearest)
    drawn = jnp.searchsorted(cumulative, jax.random.uniform(key, (trials,)) * cumulative[-1], side="right")
    # Where every row is a centre already, all distances are 0 and the search ends past the last row.
    candidates = points[jnp.minimum(drawn, rows - 1)]
    norms = (candidates**2).sum(1)[:, None] + (points**2).sum(1)
    distances = jnp.maximum(norms - 2 * _matmul(candidates, points.T), 0)
    if nearest is not None:
        distances = jnp.minimum(distances, nearest)
    best = distances.sum(1).argmin()
    return candidates[best], distances[best]


def lloyd(
    blocks: Sequence[jax.Array],
    weights: Sequence[jax.Array],
    centroids: np.ndarray,
    max_iterations: int,
    threshold: float,
    progress: Callable[[int], Any] = lambda count: None,
) -> KMeans:
    """Lloyd's iterations from given centroids; counts and inertia returned are those of the returned centroids.

    Args:
      blocks: as in `kmeans`, and so `weights`.
      weights: of the rows.
      centroids: [K,D] to start from.
      max_iterations: updates of the centroids, at most.
      threshold: ends once the squared shift of all centroids together is at most this.
      progress: as in `kmeans`.
    """
    centroids = np.asarray(centroids)
    shift = np.inf
    for iteration in range(max_iterations + 1):
        members, ids = (jnp.zeros(centroids.shape), jnp.zeros(len(centroids), jnp.int32)), []
        for points, weight in zip(blocks, weights, strict=True):
            # A program of its own: within another, the compiler repeats the search wherever an id is read.
            ids.append(assign(points, centroids))
            members = _add_members(members, points, weight, ids[-1])
        sums, counts = fetch(members)
        progress(int(counts.sum()))
        if shift <= threshold or iteration == max_iterations:
            break
        moved = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centroids).astype(np.float32)
        for k in np.flatnonzero(counts == 0):
            # One after the other, each a pass over all rows: taken at once, the farthest rows tend to be neighbours.
            _, distance, row = _residuals_of_all(blocks, weights, [assign(points, moved) for points in blocks], moved)
            if distance > 0:
                moved[k] = row
        shift = np.square(moved - centroids, dtype=np.float64).sum()
        centroids = moved
    inertia, _, _ = _residuals_of_all(blocks, weights, ids, centroids)
    return KMeans(centroids, counts.astype(np.int64), inertia, iteration)


@jax.jit
def _add_members(members, points, weights, ids):
    sums, counts = members
    if jax.default_backend() == "cpu":
        # Row by row: a CPU does this in order, so that the result is always the same. Ids out of range add nothing.
        ids = jnp.where(weights > 0, ids, len(sums))
        block_sums = jnp.zeros_like(sums).at[ids].add(points, mode="drop")
        return sums + block_sums, counts.at[ids].add(1, mode="drop")
    one_hot = (ids == jnp.arange(len(sums))[:, None]) * (weights > 0).astype(jnp.float32)
    # A product for the counts too: reading the matrix once more is cheaper than a reduction of another layout.
    block_counts = _matmul(one_hot, (weights > 0).astype(jnp.float32))
    return sums + _matmul(one_hot, points), counts + block_counts.astype(jnp.int32)


def _residuals_of_all(blocks, weights, ids, centroids):
    """Inertia, the largest squared distance of a row to its centroid (whose id is given), and that row [D]."""
    found = fetch([_residuals(*block, centroids) for block in zip(blocks, weights, ids, strict=True)])
    _, distance, row = max(found, key=lambda block: block[1])
    return float(sum(np.float64(part) for part, _, _ in found)), distance, row


@jax.jit
def _residuals(points, weights, ids, centroids):
    """`_residuals_of_all` of one block."""
    # Differences, not the product of `assign`: this is read once a run, and cancellation would hide small distances.
    distances = ((points - centroids[ids]) ** 2).sum(1) * (weights > 0)
    # A row that differs from its centroid by rounding alone is no place for another cluster.
    apart = jnp.where(distances > 1e-12 * (points**2).sum(1), distances, 0)
    farthest = apart.argmax()
    return distances.sum(), apart[farthest], points[farthest]


def intensity(maps: jax.Array, assignments: jax.Array, num_prototypes: int) -> jax.Array:
    """Mean saliency over a sample's locations of each prototype, [B,K], 0 where it has none (DESIGN 2.4).

    Args:
      maps: saliency [B,h,w], finite.
      assignments: prototype ids [B,h,w]; ids outside 0..K-1 (-1 in padding) belong to none.
      num_prototypes: K, static under jit.
    """
    one_hot = _one_hot(assignments, num_prototypes)
    sums = _matmul(maps.reshape(len(maps), 1, -1).astype(jnp.float32), one_hot)[:, 0]
    return sums / jnp.maximum(one_hot.sum(1), 1)


def _one_hot(assignments, num_prototypes):
    return jax.nn.one_hot(assignments.reshape(len(assignments), -1), num_prototypes, dtype=jnp.float32)
