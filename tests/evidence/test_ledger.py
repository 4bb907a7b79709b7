"""The ledger of one batch: closed forms, a network whose every number is known, and what must not change it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i2x_jax.evidence import ledger

# Residual that float32 leaves: of confidences, and of the largest logit.
RESIDUAL, RELATIVE = 3e-6, 2e-7
B, H, W, D, K, M = 40, 3, 4, 6, 5, 7


def drawn(seed=0, scale=1.0, classes=M):
    """Two ends of an interval over the same assignments."""
    rng = np.random.default_rng(seed)
    assignments = rng.integers(0, K - 1, (B, H, W))  # the last prototype is nowhere
    ends = []
    for _ in range(2):
        features = np.float32(rng.normal(size=(B, H, W, D)))
        weights, bias = np.float32(scale * rng.normal(size=(D, classes))), np.float32(rng.normal(size=classes))
        sums = ledger.prototype_sums(jnp.asarray(features), assignments, K)
        logits = np.float32(features.mean((1, 2), dtype=np.float64) @ weights + bias)
        ends.append(ledger.End(sums, jnp.asarray(logits), jnp.asarray(weights), jnp.asarray(bias)))
    return ends


def softmax(logits):
    e = np.exp(np.float64(logits) - np.float64(logits).max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def accounted(before, after):
    parts = ledger.linear_parts(before, after)
    return parts, ledger.confidence_parts(parts, before.logits, after.logits)


def by_hand(before, after):
    """The same in float64, location sums and all four products written out."""
    S, W = [np.float64(end.sums) for end in (before, after)], [np.float64(end.weights) for end in (before, after)]
    X = {(t, u): S[t] @ W[u] for t in (0, 1) for u in (0, 1)}
    seeing = (X[1, 0] - X[0, 0] + X[1, 1] - X[0, 1]) / 2
    weighing = (X[0, 1] - X[0, 0] + X[1, 1] - X[1, 0]) / 2
    bias = np.float64(after.bias) - np.float64(before.bias)
    dz = (seeing + weighing).sum(1) + bias
    z = np.float64(before.logits)
    y, y1 = softmax(z), softmax(z + dz)
    x = np.log(y1) - np.log(y)
    L = (y1 - y) / x
    w = L / L.sum(-1, keepdims=True)

    def share(g):
        return L[:, None] * (g - (g * w[:, None]).sum(-1, keepdims=True))

    return seeing, weighing, share(seeing), share(weighing), share(np.broadcast_to(bias, z.shape)[:, None])[:, 0]


@pytest.mark.parametrize("scale", [0.1, 1, 20, 400])
def test_adds_up_to_the_change_of_confidence(scale):
    before, after = drawn(scale=scale)
    _, parts = accounted(before, after)
    largest = max(np.abs(before.logits).max(), np.abs(after.logits).max())
    found = ledger.residual(parts, before.logits, after.logits)
    assert found.max() <= RESIDUAL + RELATIVE * largest
    change = softmax(after.logits) - softmax(before.logits)
    total = np.float64(parts.seeing + parts.weighing).sum(1) + parts.bias
    np.testing.assert_allclose(total, change, atol=RESIDUAL + RELATIVE * largest, rtol=0)
    assert np.abs(change).max() > 0.01


def test_is_what_the_formulas_say():
    before, after = drawn()
    logits, parts = accounted(before, after)
    seeing, weighing, *of_confidence = by_hand(before, after)
    np.testing.assert_allclose(logits.seeing, seeing, atol=1e-5)
    np.testing.assert_allclose(logits.weighing, weighing, atol=1e-5)
    for found, expected in zip(parts, of_confidence, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)
    # A prototype that is nowhere has no part in anything.
    np.testing.assert_array_equal(parts.seeing[:, K - 1], 0)
    np.testing.assert_array_equal(parts.weighing[:, K - 1], 0)


def test_adds_up_to_zero_over_the_classes():
    _, parts = accounted(*drawn())
    for part in parts:
        np.testing.assert_allclose(np.float64(part).sum(-1), 0, atol=1e-6)


def test_changes_sign_in_reversed_time():
    before, after = drawn()
    for forth, back in zip(accounted(before, after)[1], accounted(after, before)[1], strict=True):
        np.testing.assert_allclose(forth, -back, atol=1e-6)


def test_does_not_see_a_constant_added_to_all_logits():
    before, after = drawn()
    shifted = after._replace(logits=after.logits + 5, bias=after.bias + 5)
    for one, other in zip(accounted(before, after)[1], accounted(before, shifted)[1], strict=True):
        np.testing.assert_allclose(one, other, atol=3e-6)


def test_of_two_classes_it_is_the_line_integral():
    before, after = drawn(classes=2)
    logits, parts = accounted(before, after)
    margin = [np.float64(end.logits[:, 1] - end.logits[:, 0]) for end in (before, after)]
    change = softmax(after.logits)[:, 1] - softmax(before.logits)[:, 1]
    # The confidence depends on the margin alone: each part's share is its share of the margin's change.
    for found, part in zip(parts[:2], logits[:2], strict=True):
        of_margin = np.float64(part[:, :, 1] - part[:, :, 0])
        expected = of_margin / (margin[1] - margin[0])[:, None] * change[:, None]
        np.testing.assert_allclose(np.float64(found[:, :, 1]), expected, atol=1e-5)


def test_equal_ends_move_nothing():
    before, _ = drawn()
    _, parts = accounted(before, before)
    for part in parts:
        np.testing.assert_array_equal(part, 0)


@pytest.mark.parametrize("change", [0.0, 1e-7, 0.99e-4, 1.01e-4, 1e-2, 30.0])
def test_the_logarithmic_mean_is_smooth_where_its_form_changes(change):
    before = np.float32([[0.3, -0.2, 1.0]])
    after = before + np.float32([[change, 0, 0]])
    found = ledger.logarithmic_means(jnp.asarray(before), jnp.asarray(after))
    y, y1 = softmax(before), softmax(after)
    x = np.log(y1) - np.log(y)
    expected = np.where(np.abs(x) < 1e-12, y, (y1 - y) / np.where(np.abs(x) < 1e-12, 1, x))
    # Differences of float32 logits of 1 know a change to 1e-7.
    np.testing.assert_allclose(found, expected, rtol=2e-6 + 2e-7 / max(change, 1e-3))


def test_saturated_logits_stay_finite():
    before, after = jnp.float32([[1e4, 0, -1e4]]), jnp.float32([[-1e4, 0, 1e4]])
    means = ledger.logarithmic_means(before, after)
    assert np.isfinite(means).all()
    parts = ledger.shares(jnp.ones((1, K, 3)) * jnp.float32([1, 0, -1]), means)
    assert np.isfinite(parts).all()


def test_rescaled_channels_with_the_head_divided_give_the_same_sums():
    before, after = drawn()
    factor = jnp.float32([1, 2, 4, 8, 0.5, 0.25])
    scaled = [end._replace(sums=end.sums * factor, weights=end.weights / factor[:, None]) for end in (before, after)]
    for one, other in zip(accounted(before, after)[1], accounted(*scaled)[1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_network_whose_every_number_is_known():
    """Two locations, two channels, two prototypes: one is seen better, the other weighed more."""
    assignments = np.array([[[0, 1]]])
    ends = []
    for features, weights in (
        ([[2.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]]),
        ([[6.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 3.0]]),
    ):
        sums = ledger.prototype_sums(jnp.float32([[features]]), assignments, 2)
        logits = jnp.float32(sums.sum(1) @ jnp.float32(weights))
        ends.append(ledger.End(sums, logits, jnp.float32(weights), jnp.zeros(2)))
    parts, of_confidence = accounted(*ends)
    # Prototype 0 went from 1 to 3 logits of class 0 by its features, prototype 1 from 1 to 3 of class 1 by the head.
    np.testing.assert_allclose(parts.seeing[0], [[2, 0], [0, 0]])
    np.testing.assert_allclose(parts.weighing[0], [[0, 0], [0, 2]])
    # Confidence stays at one half: what one adds the other takes.
    np.testing.assert_allclose(of_confidence.seeing[0, 0], [0.5, -0.5], atol=1e-6)
    np.testing.assert_allclose(of_confidence.weighing[0, 1], [-0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(ledger.account_of(of_confidence, jnp.array([1]))[0], [-0.5, 0.5, 0], atol=1e-6)


def two_layer_head(seed):
    rng = np.random.default_rng(seed)
    first, second = np.float32(rng.normal(size=(D, 8))), np.float32(rng.normal(size=(8, M)))
    return lambda features: jnp.tanh(features @ first).mean((1, 2)) @ second


class TestPath:
    def ends(self):
        rng = np.random.default_rng(1)
        features = [jnp.float32(rng.normal(size=(B, H, W, D))) for _ in range(2)]
        blanks = [jnp.float32(rng.normal(size=(1, H, W, D))) for _ in range(2)]
        return features, blanks, rng.integers(0, K, (B, H, W))

    def test_a_linear_head_needs_no_path(self):
        before, _ = drawn()
        features, blanks, assignments = self.ends()
        weights = before.weights

        def head(f):
            return f.mean((1, 2)) @ weights + before.bias

        path = ledger.path_evidence(head, features[0], blanks[0], assignments, K)
        expected = ledger.prototype_sums(features[0] - blanks[0], assignments, K) @ weights
        np.testing.assert_allclose(path.evidence, expected, atol=1e-5)
        np.testing.assert_allclose(path.error, 0, atol=1e-5)

    def test_adds_up_to_the_logits_whatever_the_head(self):
        features, blanks, assignments = self.ends()
        head = two_layer_head(0)
        path = ledger.path_evidence(head, features[0], blanks[0], assignments, K)
        np.testing.assert_allclose(path.evidence.sum(1) + path.start, head(features[0]), atol=1e-5)
        assert 0 < path.error.max() < 0.05

    def test_the_parts_add_up_to_the_change_of_confidence(self):
        features, blanks, assignments = self.ends()
        heads = two_layer_head(0), two_layer_head(1)
        before, after = (
            tuple(ledger.path_evidence(head, features[t], blanks[t], assignments, K) for head in heads) for t in (0, 1)
        )
        logits = heads[0](features[0]), heads[1](features[1])
        parts = ledger.confidence_parts(ledger.path_parts(before, after), *logits)
        assert ledger.residual(parts, *logits).max() < RESIDUAL

    def test_a_head_that_normalises_is_seen_from_the_blank_but_not_from_zero(self):
        features, blanks, assignments = self.ends()

        def head(f):
            pooled = f.mean((1, 2))
            return 5 * pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)

        path = ledger.path_evidence(head, features[0], blanks[0], assignments, K)
        assert jnp.abs(path.evidence).max() > 0.5
        zero = jax.jit(lambda f: jax.vjp(head, 0.5 * f)[1](jnp.ones((B, D)))[0])(features[0])
        np.testing.assert_allclose((zero * features[0]).sum((1, 2, 3)), 0, atol=1e-4)

    def test_what_no_location_holds_belongs_to_no_place(self):
        features, blanks, assignments = self.ends()

        def head(f):
            return jnp.zeros((len(f), M)) + jnp.where(jnp.abs(f - blanks[0]).sum() > 0, 1.0, 0.0)  # no gradient

        path = ledger.path_evidence(head, features[0], blanks[0], assignments, K)
        np.testing.assert_array_equal(path.evidence, 0)
        np.testing.assert_allclose(path.evidence.sum(1) + path.start, head(features[0]))


class TestKept:
    """Of some classes of each sample the ledger says what it says of them among all."""

    def kept(self, before, after):
        classes = np.sort(np.random.default_rng(2).permuted(np.tile(np.arange(M), (B, 1)), axis=1)[:, :3], axis=1)
        return ledger.keep(jnp.asarray(classes), before.logits, after.logits)

    def test_of_a_linear_head(self):
        before, after = drawn(scale=5)
        kept = self.kept(before, after)
        _, whole = accounted(before, after)
        ends = []
        for end in (before, after):
            weights, bias = ledger.columns(end.weights, end.bias, kept)
            ends.append(end._replace(weights=weights, bias=bias))
        parts = ledger.linear_parts(*ends)
        found = ledger.confidence_parts(parts, before.logits, after.logits, kept)
        for one, all_classes in zip(found, whole, strict=True):
            columns = kept.classes.reshape(B, *(1,) * (all_classes.ndim - 2), 3)
            np.testing.assert_allclose(one, np.take_along_axis(np.asarray(all_classes), columns, axis=-1), atol=2e-6)
        assert ledger.residual(found, before.logits, after.logits, kept).max() < RESIDUAL
        np.testing.assert_allclose(
            ledger.account_of(found, jnp.full(B, 1)), ledger.account_of(whole, kept.classes[:, 1]), atol=2e-6
        )

    def test_behind_another_head(self):
        features, blanks, assignments = TestPath().ends()
        heads = two_layer_head(0), two_layer_head(1)
        logits = heads[0](features[0]), heads[1](features[1])
        classes = jnp.tile(jnp.array([0, 2]), (B, 1))
        kept = ledger.keep(classes, *logits)

        def parts(toward):
            ends = [
                [ledger.path_evidence(head, features[t], blanks[t], assignments, K, toward) for head in heads]
                for t in (0, 1)
            ]
            return ledger.path_parts(*ends)

        whole = ledger.confidence_parts(parts(None), *logits)
        found = ledger.confidence_parts(parts(ledger.directions(kept)), *logits, kept)
        assert ledger.residual(found, *logits, kept).max() < RESIDUAL
        # What the points of a path miss is spread for the mean of all classes as one: that is the difference.
        np.testing.assert_allclose(found.seeing, np.asarray(whole.seeing)[..., [0, 2]], atol=2e-3)
        assert np.abs(whole.seeing).max() > 0.05
