import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.cluster
import sklearn.decomposition
from sklearn.metrics import adjusted_rand_score

from i2x_jax.config import InputError
from i2x_jax.evidence import prototypes
from i2x_jax.explanation import uncertainty
from i2x_jax.pipeline import prototypes as stage_prototypes
from tests.helpers import ROUNDING, planted, tiny_model, tiny_variables


def random(seed=0):
    return np.random.default_rng(seed)


def padded(rows, size, fill=7.0):
    """Rows cut into blocks of one size, the last one padded with rows that must not count."""
    blocks, weights = [], []
    for start in range(0, len(rows), size):
        block = rows[start : start + size]
        weight = np.zeros(size, np.float32)
        weight[: len(block)] = 1
        block = np.concatenate([block, np.full((size - len(block), rows.shape[1]), fill, rows.dtype)])
        blocks.append(jnp.asarray(block))
        weights.append(jnp.asarray(weight))
    return blocks, weights


def moments_of(rows, size):
    blocks, weights = padded(rows, size)
    moments = prototypes.moments_start(blocks[0], weights[0])
    for block, weight in zip(blocks[1:], weights[1:], strict=True):
        moments = prototypes.moments_add(moments, block, weight)
    return moments


def correlated(rows=2000, channels=12):
    scales = np.linspace(3, 0.1, channels)
    return (random().normal(size=(rows, channels)) * scales @ random(1).normal(size=(channels, channels))).astype("f4")


def blobs(rows=2000, centres=8, dims=3, spread=0.1, seed=2):
    generator = random(seed)
    points = generator.uniform(-5, 5, (centres, dims))[generator.integers(centres, size=rows)]
    points = points + spread * generator.normal(size=points.shape)
    return (points - points.mean(0)).astype(np.float32)


def fit(rows, clusters, size=300, key=0, **settings):
    blocks, weights = padded(rows, size)
    return prototypes.kmeans(blocks, weights, clusters, jax.random.key(key), **settings)


class TestPca:
    @pytest.mark.parametrize("size", [2000, 2048, 300])
    def test_equals_sklearn(self, size):
        rows = correlated()
        theirs = sklearn.decomposition.PCA(5, svd_solver="full").fit(rows.astype(np.float64))
        ours = prototypes.pca(moments_of(rows, size), 5)
        signs = np.sign((ours.components * theirs.components_).sum(1))
        np.testing.assert_allclose(ours.mean, theirs.mean_, atol=1e-5)
        np.testing.assert_allclose(ours.components, theirs.components_ * signs[:, None], atol=1e-4)
        np.testing.assert_allclose(ours.explained_variance_ratio, theirs.explained_variance_ratio_, rtol=1e-5)
        expected = theirs.transform(rows) * signs
        np.testing.assert_allclose(prototypes.project(ours, rows), expected, atol=2e-3)

    @pytest.mark.parametrize("channels", [256, 257, 600])
    def test_covariance_of_many_channels(self, channels):
        rows = (random().normal(size=(900, channels)) @ random(1).normal(size=(channels, channels))).astype(np.float32)
        _, first, second = (np.float64(total) for total in moments_of(rows, 300).sums)
        covariance = second / len(rows) - np.outer(first, first) / len(rows) ** 2
        expected = np.cov(rows.astype(np.float64), rowvar=False, bias=True)
        np.testing.assert_allclose(covariance, expected, atol=1e-5 * np.abs(expected).max())

    def test_signs_are_fixed(self):
        components = prototypes.pca(moments_of(correlated(), 500), 12).components
        assert (components[np.arange(12), np.abs(components).argmax(1)] > 0).all()

    def test_a_large_offset_stays_accurate(self):
        rows = (1e3 + random().normal(size=(5000, 6)) * np.arange(1, 7)).astype(np.float32)
        theirs = sklearn.decomposition.PCA(6, svd_solver="full").fit(rows.astype(np.float64))
        ours = prototypes.pca(moments_of(rows, 256), 6)
        np.testing.assert_allclose(ours.explained_variance_ratio, theirs.explained_variance_ratio_, rtol=1e-5)
        np.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-7)

    def test_many_batches_do_not_drift(self):
        batch, weights = jnp.asarray(random().normal(size=(7, 2)).astype(np.float32) + 0.1), jnp.ones(7)
        # As after ten million batches, when a plain float32 sum no longer takes up a batch of 7.
        moments = prototypes.moments_start(batch, weights)
        moments = moments._replace(sums=jax.tree.map(lambda total: total * 1e7, moments.sums))
        before = moments
        for _ in range(1000):
            moments = prototypes.moments_add(moments, batch, weights)
        first = prototypes.moments_start(batch, weights).sums
        for start, end, carry, one in zip(before.sums, moments.sums, moments.carry, first, strict=True):
            grown = np.float64(end) - np.float64(start) + np.float64(carry)
            np.testing.assert_allclose(grown, 1000 * np.float64(one), rtol=1e-5, atol=1e-2)

    def test_no_variance_gives_zero_ratios(self):
        ours = prototypes.pca(moments_of(np.ones((20, 3), np.float32), 8), 2)
        np.testing.assert_array_equal(ours.explained_variance_ratio, 0)
        np.testing.assert_array_equal(prototypes.project(ours, np.ones((4, 3))), 0)

    def test_a_padded_first_batch_does_not_matter(self):
        rows = correlated(rows=50)
        moments = prototypes.moments_start(jnp.ones((50, 12)), jnp.zeros(50))
        moments = prototypes.moments_add(moments, rows, jnp.ones(50))
        np.testing.assert_allclose(prototypes.pca(moments, 2).mean, rows.mean(0), atol=1e-5)

    def test_what_cannot_be_decomposed_is_refused(self):
        with pytest.raises(InputError, match=r"13 PCA dimensions .* 12 channels.*explain.pca_dims"):
            prototypes.pca(moments_of(correlated(), 500), 13)
        with pytest.raises(InputError, match="non-finite"):
            prototypes.pca(moments_of(np.full((4, 2), np.nan, np.float32), 4), 1)
        with pytest.raises(InputError, match="0 feature vectors"):
            prototypes.pca(prototypes.moments_start(jnp.ones((3, 2)), jnp.zeros(3)), 1)


# Most tests of K-means share one shape (2,000 x 3, blocks of 300, 8 clusters) so that little is compiled.
class TestKmeans:
    def test_blobs_as_sklearn_finds_them(self):
        rows = blobs()
        theirs = sklearn.cluster.KMeans(8, n_init=4, random_state=0).fit(rows)
        ours = fit(rows, 8)
        ids = prototypes.assign(rows, ours.centroids)
        assert ours.inertia <= theirs.inertia_ * 1.001
        assert adjusted_rand_score(theirs.labels_, ids) == 1
        exact = ((rows - ours.centroids[ids]).astype(np.float64) ** 2).sum()
        assert ours.inertia == pytest.approx(exact, rel=1e-5)

    def test_no_worse_than_sklearn_without_structure(self):
        rows = random().normal(size=(2000, 3)).astype(np.float32)
        theirs = sklearn.cluster.KMeans(8, n_init=4, random_state=0).fit(rows)
        assert fit(rows, 8, tolerance=0.0).inertia <= theirs.inertia_ * 1.01

    def test_one_step_equals_numpy(self):
        rows = blobs()
        start = rows[:8]
        nearest = ((rows[:, None] - start) ** 2).sum(-1).argmin(1)
        expected = [rows[nearest == k].mean(0) for k in range(8)]
        ours = prototypes.lloyd(*padded(rows, 300), start, 1, 0.0)
        np.testing.assert_allclose(ours.centroids, expected, atol=1e-5)
        assert ours.iterations == 1

    def test_centroids_are_the_means_of_their_members(self):
        rows = blobs(spread=2.0)
        ours = fit(rows, 8, tolerance=0.0, max_iterations=500)
        ids = np.asarray(prototypes.assign(rows, ours.centroids))
        assert ours.iterations < 500
        np.testing.assert_array_equal(ours.counts, np.bincount(ids, minlength=8))
        np.testing.assert_allclose(ours.centroids, [rows[ids == k].mean(0) for k in range(8)], atol=1e-5)
        assert ours.counts.dtype == np.int64
        assert (np.diff(ours.counts) <= 0).all()

    def test_counts_describe_the_centroids_when_iterations_run_out(self):
        rows = blobs(spread=2.0)
        ours = fit(rows, 8, max_iterations=1)
        ids = np.asarray(prototypes.assign(rows, ours.centroids))
        np.testing.assert_array_equal(ours.counts, np.bincount(ids, minlength=8))

    def test_ties_of_counts_follow_the_centroids(self):
        corners = np.array([[x, y, z] for x in (3, -3) for y in (-5, 5) for z in (1, -1)], np.float32)
        np.testing.assert_allclose(fit(np.tile(corners, (250, 1)), 8).centroids, corners[np.lexsort(corners.T[::-1])])

    def test_empty_clusters_are_filled(self):
        rows = blobs(spread=0.01)
        # All rows are nearest to the first centroid, and the farthest rows all lie in one blob.
        start = np.concatenate([rows[:1], np.full((7, 3), 1e3, np.float32)])
        ours = prototypes.lloyd(*padded(rows, 300), start, 100, 0.0)
        assert ours.counts.min() > 0
        assert ours.inertia <= fit(rows, 8).inertia * 1.001

    def test_empty_clusters_take_distinct_rows(self):
        places = np.array([[0, 0, 0], [9, 0, 0], [0, 8, 0]], np.float32)
        rows = np.repeat(places, [1200, 700, 100], axis=0)
        start = np.full((8, 3), 1e3, np.float32)
        start[5] = 0
        ours = prototypes.lloyd(*padded(rows, 300), start, 1, 0.0)
        np.testing.assert_array_equal(np.sort(ours.counts)[-3:], [100, 700, 1200])

    @pytest.mark.parametrize("value", [0.0, 0.1, 3.7])
    def test_fewer_distinct_rows_than_clusters(self, value):
        places = np.array([[value, value, 0], [-value, 1.3, 0], [2.1, 0.7, 1]], np.float32)
        ours = fit(places[random().integers(3, size=2000)], 8)
        assert np.isfinite(ours.centroids).all()
        np.testing.assert_array_equal(ours.counts[3:], 0)
        assert ours.counts.sum() == 2000
        assert ours.inertia < 1e-6
        assert ours.iterations < 5
        assert np.isfinite(fit(np.full((2000, 3), value, np.float32), 8).centroids).all()

    def test_as_many_clusters_as_rows(self):
        ours = fit(random().normal(size=(8, 3)).astype(np.float32), 8)
        np.testing.assert_array_equal(ours.counts, 1)
        assert ours.inertia == pytest.approx(0, abs=1e-10)

    def test_more_clusters_than_rows_is_refused(self):
        with pytest.raises(InputError, match=r"^11 prototypes .* 10 feature .*explain.num_prototypes$"):
            fit(np.zeros((10, 3), np.float32), 11)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_non_finite_points_are_refused(self, value):
        rows = blobs()
        rows[1970, 1] = value
        with pytest.raises(InputError, match="non-finite"):
            fit(rows, 8)

    def test_same_key_same_result(self):
        rows = blobs(spread=2.0)
        first, second = fit(rows, 8, key=3), fit(rows, 8, key=3)
        np.testing.assert_array_equal(first.centroids, second.centroids)
        assert first.inertia == second.inertia

    def test_progress_counts_the_rows_of_every_pass(self, monkeypatch):
        monkeypatch.setattr(prototypes, "SAMPLE_ROWS", 500)
        passes = []
        found = fit(blobs(), 8, restarts=3, progress=passes.append)
        # Three starts on the sample, then all rows: padding does not count.
        assert set(passes) == {500, 2000}
        assert passes == sorted(passes)
        assert passes.count(2000) == found.iterations + 1
        assert passes.count(500) >= 3
        assert sum(passes) <= prototypes.most_rows(2000, restarts=3)
        # Where nothing is small enough to stop at, it is all of them.
        passes.clear()
        fit(random().normal(size=(2000, 3)).astype(np.float32), 8, restarts=3, tolerance=-1.0, progress=passes.append)
        assert sum(passes) == prototypes.most_rows(2000, restarts=3)

    def test_keys_of_the_old_kind(self):
        blocks, weights = padded(blobs(), 300)
        assert prototypes.kmeans(blocks, weights, 8, jax.random.PRNGKey(0)).counts.sum() == 2000

    def test_block_size_hardly_matters(self, monkeypatch):
        monkeypatch.setattr(prototypes, "SAMPLE_ROWS", 500)
        rows = blobs()
        runs = [fit(rows, 8, size=size) for size in (300, 700)]
        np.testing.assert_allclose(runs[1].centroids, runs[0].centroids, atol=1e-4)
        np.testing.assert_array_equal(runs[1].counts, runs[0].counts)

    def test_the_sample_is_uniform_over_rows_that_count(self, monkeypatch):
        monkeypatch.setattr(prototypes, "SAMPLE_ROWS", 400)
        rows = np.arange(1000, dtype=np.float32)[:, None]
        # Padding between rows, not only at the end, and a block without any row.
        weights = (random().uniform(size=(12, 150)) < 0.7).astype(np.float32)
        weights[5] = 0
        blocks = np.full((12, 150, 1), -1, np.float32)
        places = np.flatnonzero(weights)[:1000]
        weights[:] = 0
        weights.reshape(-1)[places] = 1
        blocks.reshape(-1)[places] = rows[:, 0]
        counts = weights.sum(1).astype(np.int64)
        sample = prototypes._sample_rows(blocks, weights, counts, jax.random.key(0))
        assert sample.shape == (400, 1)
        assert (np.diff(sample[:, 0]) > 0).all()
        assert sample.mean() == pytest.approx(500, abs=45)
        monkeypatch.setattr(prototypes, "SAMPLE_ROWS", 1000)
        np.testing.assert_array_equal(prototypes._sample_rows(blocks, weights, counts, jax.random.key(0)), rows)

    def test_more_blocks_and_new_numbers_trace_nothing(self):
        events = []
        jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: events.append(name))
        try:
            blocks, weights = padded(random().normal(size=(7 * 210, 3)).astype(np.float32), 210)
            prototypes.kmeans(blocks, weights, 3, jax.random.key(0), max_iterations=4)
            assert any("trace" in event for event in events)
            events.clear()
            for seed in range(3):
                blocks, weights = padded(random(seed).normal(size=(7 * 210, 3)).astype(np.float32), 210)
                prototypes.kmeans(blocks, weights, 3, jax.random.key(seed), max_iterations=6)
            assert not [event for event in events if "trace" in event]
        finally:
            jax.monitoring.clear_event_listeners()

    def test_one_trace_for_many_batches(self):
        rows = random().normal(size=(97, 11)).astype(np.float32)
        moments_of(rows, 13)
        before = prototypes.moments_add._cache_size(), prototypes.moments_start._cache_size()
        moments_of(rows[::-1], 13)
        assert (prototypes.moments_add._cache_size(), prototypes.moments_start._cache_size()) == before


class TestAssign:
    def test_nearest(self):
        points, centroids = random().normal(size=(500, 6)), random(1).normal(size=(20, 6))
        expected = ((points[:, None] - centroids) ** 2).sum(-1).argmin(1)
        ids = prototypes.assign(points.astype("f4"), centroids.astype("f4"))
        np.testing.assert_array_equal(ids, expected)
        assert ids.dtype == jnp.int32

    @pytest.mark.parametrize("clusters", [127, 128, 129, 300])
    def test_more_centroids_than_are_compared_at_once(self, clusters):
        points, centroids = random().normal(size=(1000, 5)), random(1).normal(size=(clusters, 5))
        expected = ((points[:, None] - centroids) ** 2).sum(-1).argmin(1)
        assert set(expected) >= {0, clusters - 1}
        np.testing.assert_array_equal(prototypes.assign(points.astype("f4"), centroids.astype("f4")), expected)

    @pytest.mark.parametrize("repeats", [1, 200])
    def test_ties_go_to_the_lower_id(self, repeats):
        centroids = np.tile(np.array([[1, 0], [-1, 0], [1, 0]], np.float32), (repeats, 1))
        points = np.array([[0, 3], [2, 0], [-2, 0], [0, 0]], np.float32)
        np.testing.assert_array_equal(prototypes.assign(points, centroids), [0, 0, 1, 0])


class TestIntensity:
    def test_by_hand(self):
        maps = np.array([[[1, 2], [3, 6]], [[0, 5], [5, 8]]], np.float32)
        assignments = np.array([[[0, 2], [2, 0]], [[1, 1], [1, 1]]])
        np.testing.assert_allclose(prototypes.intensity(maps, assignments, 3), [[3.5, 0, 2.5], [0, 4.5, 0]])

    def test_sums_to_the_saliency(self):
        maps, assignments = random().normal(size=(5, 4, 3)), random().integers(6, size=(5, 4, 3))
        total = prototypes.intensity(maps, assignments, 6) * uncertainty.prototype_area(np.asarray(assignments), 6)
        np.testing.assert_allclose(total.sum(1), maps.sum((1, 2)), atol=1e-5)

    def test_alone_in_a_batch_and_beside_padding(self):
        maps = random().normal(size=(6, 4, 4)).astype(np.float32)
        assignments = random().integers(5, size=(6, 4, 4))
        program = jax.jit(prototypes.intensity, static_argnums=2)
        batch = program(maps, assignments, 5)
        for i in range(6):
            np.testing.assert_allclose(program(maps[i : i + 1], assignments[i : i + 1], 5)[0], batch[i], atol=1e-6)
        assignments[4:] = -1
        alone = program(maps, assignments, 5)
        np.testing.assert_allclose(alone[:4], batch[:4], atol=1e-6)
        np.testing.assert_array_equal(alone[4:], 0)


def test_sums_by_product_and_row_by_row_are_equal(monkeypatch):
    """On a GPU rows are added by a product, because there sums row by row come in any order."""
    rng = np.random.default_rng(0)
    points, weights = rng.normal(size=(40, 3)).astype(np.float32), (rng.random(40) < 0.7).astype(np.float32)
    ids, start = rng.integers(0, 5, 40).astype(np.int32), (jnp.ones((6, 3)), jnp.ones(6, jnp.int32))
    found = []
    for platform in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        found.append(prototypes._add_members.__wrapped__(start, points, weights, ids))
    kept = weights > 0
    expected = np.stack([1 + points[kept & (ids == k)].sum(0) for k in range(6)])
    for sums, counts in found:
        np.testing.assert_allclose(sums, expected, rtol=1e-5)
        np.testing.assert_array_equal(counts, 1 + np.bincount(ids[kept], minlength=6))


@pytest.mark.parametrize(("budget", "kind"), [(4 * 50 * 6 - 1, np.memmap), (4 * 50 * 6, np.ndarray)])
def test_features_that_are_too_many_for_memory_are_in_a_file(monkeypatch, tmp_path, budget, kind):
    monkeypatch.setattr(stage_prototypes, "SAMPLE_BYTES", budget)
    rows = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    room = stage_prototypes._room(tmp_path / "sample.npy", rows.shape)
    room[:] = rows
    assert type(room) is kind
    assert (tmp_path / "sample.npy").exists() == (kind is np.memmap)
    _, points = stage_prototypes.reduce_features(room, 2)
    expected = sklearn.decomposition.PCA(2).fit_transform(rows)
    np.testing.assert_allclose(abs(points), abs(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1000, 300])
def test_rows_are_reduced_in_blocks_of_any_size(monkeypatch, size):
    monkeypatch.setitem(stage_prototypes.POINTS_PER_BLOCK, "cpu", size)
    rows = correlated(rows=1000)
    pca, points = stage_prototypes.reduce_features(rows, 3)
    expected = sklearn.decomposition.PCA(3).fit_transform(rows.astype(np.float64))
    assert points.shape == (1000, 3)
    np.testing.assert_allclose(abs(points), abs(expected), rtol=1e-4, atol=2e-3)
    np.testing.assert_allclose(pca.mean, rows.mean(0), atol=1e-5)


class TestSampledFeatures:
    DATA = planted(22)

    def found(self, sample, batch_size, progress=lambda count: None):
        return stage_prototypes.sampled_features(
            tiny_model(), tiny_variables(), self.DATA, batch_size, np.asarray(sample), progress=progress
        )

    @pytest.mark.parametrize("batch_size", [5, 22, 64])
    def test_are_the_vectors_at_the_places_that_were_asked_for(self, batch_size):
        sample = np.array([0, 3, 16, 17, 79, 80, 200, 351])
        features, _ = self.found(sample, batch_size)
        expected = np.asarray(jax.jit(tiny_model().features)(tiny_variables(), self.DATA.images)).reshape(-1, 8)
        np.testing.assert_allclose(features, expected[sample], **ROUNDING)

    @pytest.mark.parametrize("sample", [[351], [0], np.arange(352), []])
    def test_some_batches_may_have_none(self, sample):
        heard = []
        features, colour = self.found(np.asarray(sample, np.int64), 8, heard.append)
        assert features.shape == (len(sample), 8)
        np.testing.assert_allclose(colour, self.DATA.images.mean((0, 1, 2)), rtol=1e-6)
        assert heard == [8, 8, 6]

    def test_the_sample_of_a_run(self):
        every = np.arange(352)
        for wanted in (None, 352, 10**6):
            np.testing.assert_array_equal(stage_prototypes.sample_of(self.DATA, tiny_model(), wanted, 0), every)
        assert len(stage_prototypes.sample_of(self.DATA, tiny_model(), 100, 0)) == 100

    @pytest.mark.parametrize(("setting", "wanted"), [(0, 5 * 4096), (-1, None), (7, 7), (10**6, 10**6)])
    def test_how_many_are_wanted(self, setting, wanted):
        assert stage_prototypes.locations_wanted(setting, 5) == wanted
