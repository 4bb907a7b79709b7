"""What deserves a look first: closed forms by hand, order, alarms."""

import math

import numpy as np
import pytest

from i2x_jax.explanation import ranking

CLASSES, STEPS = ("cat", "dog", "é 7"), (0, 5, 20, 60)


class TestEvidence:
    def test_by_hand(self):
        # Two locations of features (1, 0) and (3, 2) in maps of four places, under two heads.
        sums, counts = np.array([[[4, 2], [0, 0]]] * 2), np.array([2, 0])
        weights = np.array([[[2, 0, 1], [0, 6, 0]], [[0, 0, 0], [1, 1, 1]]])
        found = ranking.location_evidence(sums, counts, weights, 4)
        # Weights less their mean are (1, -1, 0) and (-2, 4, -2), the mean feature (2, 1); the other head tells nothing.
        np.testing.assert_allclose(found[0], [[0, 0.5, -0.5], [0, 0, 0]])
        np.testing.assert_array_equal(found[1], 0)

    def test_a_constant_added_to_all_logits_is_none(self):
        rng = np.random.default_rng(0)
        sums, counts, weights = rng.normal(size=(2, 3, 4)), np.array([5, 1, 9]), rng.normal(size=(2, 4, 3))
        shifted = weights + rng.normal(size=(2, 4, 1))
        found = [ranking.location_evidence(sums, counts, each, 16) for each in (weights, shifted)]
        np.testing.assert_allclose(*found, atol=1e-12)
        np.testing.assert_allclose(found[0].sum(-1), 0, atol=1e-12)

    def test_contributions_give_the_same_behind_a_linear_head(self):
        rng = np.random.default_rng(1)
        features, weights = rng.normal(size=(6, 4, 5)), rng.normal(size=(5, 3))  # images, places, channels
        places, labels = rng.integers(0, 2, (6, 4)), np.array([0, 0, 1, 1, 1, 2])
        members = np.eye(2)[places]
        by_image = np.einsum("npk,npd,dc->nkc", members, features, weights) / 4
        means = np.array([by_image[labels == c].mean(0) for c in range(3)])
        counts = members.sum((0, 1)).astype(int)
        every = np.tile(np.arange(3), (3, 1))
        found = ranking.contribution_evidence(means[None], every, np.bincount(labels), counts)
        sums = np.einsum("npk,npd->kd", members, features)
        np.testing.assert_allclose(found, ranking.location_evidence(sums[None], counts, weights[None], 4))

    def test_a_prototype_of_no_place_has_none(self):
        contributions, every = np.zeros((1, 3, 2, 3)), np.tile(np.arange(3), (3, 1))
        assert not ranking.contribution_evidence(contributions, every, np.array([2, 0, 1]), np.array([4, 0])).any()

    def test_of_many_classes_what_is_kept(self):
        # Three classes, of which two are kept by class of the image; one image of class 0 and two of class 2.
        means = np.array([[[[3.0, 6.0]], [[0.0, 0.0]], [[1.5, 9.0]]]])
        kept = np.array([[0, 1], [0, 1], [0, 2]])
        found = ranking.contribution_evidence(means, kept, np.array([1, 0, 2]), np.array([6]))
        np.testing.assert_allclose(found, [[[(6 - 10) / 6, (6 - 10) / 6, (18 - 10) / 6]]])


class TestCensus:
    # Three images of two by two places, of classes 1, 0 and 1.
    ASSIGNMENTS = np.array([[[0, 0], [1, 1]], [[0, 2], [2, 2]], [[0, 2], [1, 1]]], np.int16)

    @pytest.mark.parametrize("rows", [1, 2, 4096])
    def test_by_hand(self, monkeypatch, rows):
        monkeypatch.setattr(ranking, "ROWS_AT_A_TIME", rows)
        found = ranking.census(self.ASSIGNMENTS, np.array([1, 0, 1]), 4, 3)
        np.testing.assert_array_equal(found.locations, [[1, 3, 0], [0, 4, 0], [3, 1, 0], [0, 0, 0]])
        np.testing.assert_array_equal(found.images, [[1, 2, 0], [0, 2, 0], [1, 1, 0], [0, 0, 0]])
        np.testing.assert_array_equal(found.places, [[3, 1, 0, 0], [0, 0, 2, 2], [0, 2, 1, 1], [0, 0, 0, 0]])
        np.testing.assert_array_equal(found.samples, [1, 2, 0])

    def test_exclusivity_weights_classes_equally(self):
        # Two a dozen images in class 0, one of two in class 1, none elsewhere.
        share, label = ranking.exclusivity(np.array([[2, 1, 0], [4, 0, 0], [0, 0, 0]]), np.array([12, 2, 0]))
        np.testing.assert_allclose(share, [(1 / 2) / (1 / 2 + 1 / 6), 1, np.nan])
        np.testing.assert_array_equal(label[:2], [1, 0])

    def test_entropy(self):
        places = np.array([[7, 0, 0, 0], [3, 3, 3, 3], [2, 2, 0, 0], [0, 0, 0, 0], [2, 1, 1, 0]])
        mixed = (math.log(2) / 2 + math.log(4) / 2) / math.log(4)
        np.testing.assert_allclose(ranking.place_entropy(places), [0, 1, 0.5, np.nan, mixed])
        np.testing.assert_array_equal(ranking.place_entropy(np.array([[5]])), [0])


def test_since_asks_that_evidence_stays():
    courses = {
        (0.0, 0.5, 0.9, 1.0): 1,
        (0.9, 0.4, 0.5, 1.0): 2,
        (1.0, 1.0, 1.0, 1.0): 0,
        (-1.0, 0.2, 0.3, 1.0): 3,
        (0.0, 0.0, 0.0, 0.0): -1,
        (3.0, 2.0, 1.0, -0.5): -1,
    }
    found = ranking.since(np.array(list(courses)).T)
    np.testing.assert_array_equal(found, list(courses.values()))


@pytest.mark.parametrize(
    ("score", "expected"),
    [([3, 1, 1.5], 2), ([np.nan, 4, 2], 4 / 3), ([0, 0, 0], np.nan), ([np.nan], np.nan), ([0, 0, 1], np.nan)],
)
def test_top_over_median(score, expected):
    assert ranking.top_over_median(np.array(score, float)) == pytest.approx(expected, nan_ok=True)
    # Free of scale.
    assert ranking.top_over_median(7 * np.array(score, float)) == pytest.approx(expected, nan_ok=True)


class TestLeavingOut:
    def test_counts(self):
        predicted = np.array([[0, 1, 1], [1, 1, 0], [2, 0, 2], [2, 2, 2]])  # two prototypes, and last none
        found = ranking.dropped(predicted, np.array([1, 1, 2, 0]))
        assert (found["samples"], found["right"]) == (4, 2)
        np.testing.assert_array_equal(found["gained"], [1, 1])
        np.testing.assert_array_equal(found["lost"], [1, 1])

    @pytest.mark.parametrize(("gained", "lost"), [(0, 0), (0, 4), (1, 0), (7, 0), (9, 2), (3, 8), (40, 20)])
    def test_mcnemar_is_exact(self, gained, lost):
        n = gained + lost
        expected = sum(math.comb(n, i) for i in range(gained, n + 1)) / 2**n
        assert ranking.mcnemar(gained, lost) == pytest.approx(expected, rel=1e-12)


def arrays_of(score=(0.2, 0.9, 0.3, 0.1), ranked=(True,) * 4, changed=(), contrast=None):
    """The members of ranking.npz of four prototypes with evidence for class 1; `changed` is (gained, lost) a set."""
    score = np.array(score)
    evidence = np.stack([-score, score, 0 * score], 1)
    course = np.array([0, 0.3, 0.6, 1])[:, None] * score
    with_one = np.array([score[k] for k in np.flatnonzero(ranked)])
    return {
        "evidence": np.float32(evidence),
        "course": np.float32(course),
        "label": np.ones(4, np.int32),
        "ranked": np.array(ranked),
        "exclusivity": np.array([0.5, 0.9, np.nan, 0.4]),
        "exclusive_label": np.array([1, 2, 0, 0], np.int32),
        "present": np.array([[0.1, 0.2, 0.3], [0.0, 0.98, 0.01], [0, 0, 0], [1, 1, 1]]),
        "entropy": np.array([0.1, 0.2, np.nan, 1.0]),
        "since": np.int32(ranking.since(course)),
        "top_over_median": np.float64(ranking.top_over_median(with_one) if contrast is None else contrast),
        "samples": np.full(len(changed), 200),
        "right": np.full(len(changed), 150),
        "gained": np.array([gained for gained, _ in changed]).reshape(-1, 4),
        "lost": np.array([lost for _, lost in changed]).reshape(-1, 4),
    }


NOTHING = ((0, 0, 0, 0), (0, 0, 0, 0))


class TestOrder:
    def test_by_evidence_and_those_of_few_places_last(self):
        ranked = (False, True, True, False)
        assert ranking.order(arrays_of(ranked=ranked)).tolist() == [1, 2, 0, 3]
        assert ranking.order(arrays_of()).tolist() == [1, 2, 0, 3]
        assert ranking.order(arrays_of(score=(0.5, 0.5, 0.5, 0.5))).tolist() == [0, 1, 2, 3]

    def test_what_is_said_of_a_prototype(self):
        arrays = arrays_of(changed=(((0, 4, 0, 0), (0, 6, 0, 0)), ((0, 30, 0, 0), (0, 8, 0, 0))))
        first, second, third, _ = ranking.ranked_prototypes(arrays, CLASSES, STEPS)
        assert (first.prototype, first.rank, first.name, first.exclusive) == (1, 1, "dog", "é 7")
        assert first.evidence == pytest.approx(0.9)
        assert first.over_median == pytest.approx(0.9 / 0.25)
        assert (first.in_class, first.in_others) == pytest.approx((0.98, 0.005))
        assert first.since == 20
        assert first.drop == pytest.approx({"validation": -0.01, "audit": 0.11})
        assert (second.exclusivity, second.entropy) == (None, None)
        assert third.drop == {"validation": 0, "audit": 0}

    def test_too_few_places_have_no_rank_and_no_pool_no_drop(self):
        found = ranking.ranked_prototypes(arrays_of(ranked=(False, True, True, False)), CLASSES, STEPS)
        assert [each.rank for each in found] == [1, 2, None, None]
        assert all(each.drop == {} for each in found)

    def test_without_evidence(self):
        found = ranking.ranked_prototypes(arrays_of(score=(0, 0, 0, 0)), CLASSES, STEPS)
        assert [(each.over_median, each.since) for each in found] == [(None, None)] * 4

    def test_all_together(self):
        assignments = np.zeros((100, 5, 5), np.int16)
        assignments[:50, 0, :] = 1
        assignments[0, 4, 4] = 2  # one location of 2,500 is too few
        labels = np.repeat([1, 0], 50)
        counted = ranking.census(assignments, labels, 3, 2)
        evidence = np.array([[[0, 0], [0, 0], [0, 0]], [[0.1, -0.1], [-0.3, 0.3], [2, -2]]])
        found = ranking.ranking(evidence, counted)
        assert found["ranked"].tolist() == [True, True, False]
        assert ranking.order(found).tolist() == [1, 0, 2]
        assert found["label"].tolist() == [0, 1, 0]
        assert found["since"].tolist() == [1, 1, 1]
        assert found["top_over_median"] == pytest.approx(0.3 / 0.2)
        np.testing.assert_allclose(found["present"][1], [0, 1])
        assert found["exclusivity"][1] == 1
        assert found["entropy"][1] == pytest.approx(math.log(5) / math.log(25))


class TestAlarm:
    def test_without_an_audit_set_by_evidence(self):
        (found,) = ranking.alarms(arrays_of(contrast=ranking.STANDS_OUT))
        assert (found.prototype, found.by, found.value, found.p) == (1, "evidence", ranking.STANDS_OUT, None)
        assert ranking.alarms(arrays_of(changed=(NOTHING,), contrast=ranking.STANDS_OUT))
        assert not ranking.alarms(arrays_of(contrast=ranking.STANDS_OUT - 0.01))
        assert not ranking.alarms(arrays_of(contrast=np.nan))
        assert not ranking.alarms(arrays_of(ranked=(False,) * 4, contrast=9))

    @pytest.mark.parametrize(
        ("gained", "lost", "rings"),
        [(11, 0, True), (5, 0, False), (4, 0, False), (30, 18, False), (30, 12, True), (0, 11, False)],
        ids=["clear", "2.5 points and no test", "too little", "6 points, p .056", "9 points", "a loss"],
    )
    def test_with_one_by_gain_and_test(self, gained, lost, rings):
        changed = (NOTHING, ((0, gained, 0, 0), (0, lost, 0, 0)))
        found = ranking.alarms(arrays_of(changed=changed, contrast=9))
        assert [each.prototype for each in found] == [1] * rings
        if rings:
            assert found[0].by == "audit"
            assert found[0].value == pytest.approx((gained - lost) / 200)
            assert found[0].p <= ranking.LEVEL / ranking.FIRST

    def test_only_of_the_first(self, monkeypatch):
        changed = (NOTHING, ((40, 0, 0, 40), (0, 0, 0, 0)))
        assert [each.prototype for each in ranking.alarms(arrays_of(changed=changed))] == [0, 3]
        monkeypatch.setattr(ranking, "FIRST", 3)
        assert [each.prototype for each in ranking.alarms(arrays_of(changed=changed))] == [0]
