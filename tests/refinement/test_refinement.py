import copy
import functools
import json

import jax
import jsonschema
import numpy as np
import pytest
import scipy.stats

from i2x_jax.config import STRATEGIES
from i2x_jax.data.dataset import steps_per_pass
from i2x_jax.refinement import strategies as refinement
from i2x_jax.refinement.table import LEAST_SEEDS, holm, paired_interval, summarize
from i2x_jax.schema import load_schema
from i2x_jax.training import loop as training
from tests.helpers import ROUNDING, planted, tiny_model, tiny_variables

TRAIN, TEST = planted(60), planted(30, seed=1)
PAIR = (0, 2)
ALL = np.tile(np.arange(3), (3, 1))
BATCH = 16  # four steps a phase
SCHEMA = load_schema("refinement")


@functools.cache
def optimizer():
    return training.make_optimizer("adamw", 1e-2, 1e-2, 4, 0.1)


def left_out(curated=(0, 3, 5, 8, 11), seed=0):
    own = np.random.default_rng(1).dirichlet(np.ones(3), (4, 60))[:, np.arange(60), TRAIN.labels]
    return refinement.left_out_sets(np.array(curated), TRAIN.labels, own, np.random.default_rng(seed))


def refined(strategies, sets=None, seeds=(11, 12), **more):
    recipe = training.Recipe(tiny_model(), optimizer(), "shift", BATCH, seed=0)
    refining = refinement.Refining(recipe, tiny_variables(), TRAIN, TEST, TRAIN.images[:32], PAIR, ALL)
    chosen = refinement.without(TRAIN, left_out() if sets is None else sets)
    return refinement.refine_seed(refining, chosen, strategies, seeds, **more)


@pytest.fixture
def phases_run(monkeypatch):
    """The arguments of every phase that is trained, by name."""
    phases, original = [], refinement.run_steps

    def noted(recipe, state, totals, dataset, start, stop, progress):
        phases.append(
            {
                "dataset": dataset,
                "seed": recipe.seed,
                "steps": (start, stop),
                "weights": jax.device_get(state.variables),
            }
        )
        return original(recipe, state, totals, dataset, start, stop, progress)

    monkeypatch.setattr(refinement, "run_steps", noted)
    return phases


def test_phases_are_the_sets_a_strategy_names():
    assert refinement.phases("curated>full") == ("curated", "full")
    assert refinement.phases("hard") == ("hard",)


@pytest.mark.parametrize(("samples", "steps"), [(1, 1), (16, 1), (17, 2), (60, 4)])
def test_a_phase_is_one_pass_rounded_up(samples, steps):
    assert steps_per_pass(samples, 16) == steps


@pytest.mark.parametrize(
    ("strategies", "count"),
    [
        (("full",), 1),
        (("full>full",), 2),
        (("full", "full>full"), 2),
        (("curated", "curated>full", "curated>curated"), 3),
        (STRATEGIES, 11),
        ((), 0),
    ],
)
def test_count_phases_counts_shared_phases_once(strategies, count):
    assert refinement.count_phases(strategies) == count


class TestLeftOutSets:
    def test_every_control_leaves_out_as_many_of_each_class(self):
        sets = left_out()
        assert set(sets) == {"full", "curated", "random", "ambiguous", "hard"}
        assert sets.pop("full").tolist() == []
        for rows in sets.values():
            np.testing.assert_array_equal(np.bincount(TRAIN.labels[rows], minlength=3), [2, 0, 3])
            assert (np.diff(rows) > 0).all()

    def test_the_curated_set_is_the_one_given(self):
        assert left_out((8, 0, 5))["curated"].tolist() == [0, 5, 8]

    def test_random_is_drawn_anew_by_each_generator_and_the_others_are_not(self):
        one, again, other = left_out(seed=0), left_out(seed=0), left_out(seed=1)
        assert one["random"].tolist() == again["random"].tolist() != other["random"].tolist()
        for name in ("curated", "ambiguous", "hard"):
            assert one[name].tolist() == other[name].tolist()

    def test_random_reaches_every_sample_of_the_class(self):
        drawn = np.concatenate([left_out((0, 3), seed=seed)["random"] for seed in range(100)])
        assert set(drawn) == set(np.flatnonzero(TRAIN.labels == 0))

    def test_ambiguous_wavered_most_and_hard_ended_worst(self):
        labels = np.array([0] * 6 + [1] * 6)
        of_label = np.full((3, 12), 0.9)
        of_label[:, [1, 7]] = [[0.1], [0.9], [0.95]]  # wavered, and ended well
        of_label[:, [4, 10]] = 0.2  # never learned, without wavering
        sets = refinement.left_out_sets(np.array([0, 6]), labels, of_label, np.random.default_rng(0))
        assert sets["ambiguous"].tolist() == [1, 7]
        assert sets["hard"].tolist() == [4, 10]

    def test_of_equals_the_first_is_left_out(self):
        labels = np.zeros(5, int)
        sets = refinement.left_out_sets(np.array([3, 4]), labels, np.ones((2, 5)), np.random.default_rng(0))
        assert sets["ambiguous"].tolist() == sets["hard"].tolist() == [0, 1]

    def test_nothing_curated_leaves_nothing_out(self):
        empty = np.zeros(0, np.int64)
        sets = refinement.left_out_sets(empty, TRAIN.labels, np.ones((2, 60)), np.random.default_rng(0))
        assert all(rows.shape == (0,) and rows.dtype.kind == "i" for rows in sets.values())


class TestRefineSeed:
    def test_a_first_phase_is_run_once_for_all_who_share_it(self, phases_run):
        strategies = ("curated>full", "full>full", "full", "curated", "curated>curated")
        found = refined(strategies)
        assert set(found) == set(strategies)
        # full, curated; full>full, curated>full, curated>curated.
        assert len(phases_run) == refinement.count_phases(strategies) == 5
        assert [phase["seed"] for phase in phases_run] == [11, 11, 12, 12, 12]
        assert {phase["steps"] for phase in phases_run} == {(0, 4)}

    def test_a_second_phase_goes_on_where_the_first_ended(self, phases_run):
        found = refined(("full", "full>full"))
        kernels = [phase["weights"]["params"]["conv1"]["conv"]["kernel"] for phase in phases_run]
        np.testing.assert_array_equal(kernels[0], tiny_variables()["params"]["conv1"]["conv"]["kernel"])
        assert (kernels[1] != kernels[0]).any()
        # The optimizer's schedule starts again: another pass with another seed moves the outcome.
        assert found["full"]["confusion"] != found["full>full"]["confusion"]

    def test_the_outcome_does_not_depend_on_who_else_is_run(self):
        alone = refined(("curated>full",))
        together = refined(("full", "curated", "full>full", "curated>full"))
        assert alone["curated>full"] == together["curated>full"]

    def test_every_strategy_starts_from_the_same_weights(self, phases_run):
        refined(("curated", "random", "full"))
        kernels = [phase["weights"]["params"]["conv1"]["conv"]["kernel"] for phase in phases_run]
        for kernel in kernels:
            np.testing.assert_array_equal(kernel, tiny_variables()["params"]["conv1"]["conv"]["kernel"])

    @pytest.mark.parametrize("name", ["curated", "random", "ambiguous", "hard"])
    def test_no_batch_holds_a_sample_that_is_left_out(self, name, monkeypatch):
        seen, sets, original = [], left_out(), training.train_step

        def noted(model, optimizer, augmentation, state, totals, images, labels, key):
            seen.extend(np.asarray(image).tobytes() for image in images)
            return original(model, optimizer, augmentation, state, totals, images, labels, key)

        monkeypatch.setattr(training, "train_step", noted)
        refined((name,), sets)
        allowed = {TRAIN.images[row].tobytes() for row in range(60) if row not in sets[name]}
        # Four full batches of the 55 that are left: each of them at least once, and no other.
        assert len(seen) == 64
        assert set(seen) == allowed
        assert len(allowed) == 55

    def test_progress_hears_of_every_step(self):
        heard = []
        refined(("full", "full>full"), progress=heard.append)
        assert heard == [16] * 8

    def test_the_outcome_is_that_of_the_weights_with_recomputed_statistics(self, monkeypatch):
        reached, original = [], refinement.recompute_batch_norm

        def noted(model, variables, images):
            np.testing.assert_array_equal(images, TRAIN.images[:32])
            reached.append(original(model, variables, images))
            return reached[-1]

        monkeypatch.setattr(refinement, "recompute_batch_norm", noted)
        found = refined(("full",))["full"]
        logits = training.predict(tiny_model(), reached[0], TEST, BATCH)
        assert found == refinement.outcome(logits, TEST, PAIR, ALL)


class TestOutcome:
    def test_of_logits_made_by_hand(self):
        test = TEST._replace(labels=np.array([0, 0, 0, 0, 1, 1, 2, 2, 2]))
        predicted = np.array([0, 2, 2, 1, 1, 0, 2, 0, 2])
        assert refinement.outcome(np.eye(3, dtype=np.float32)[predicted], test, (0, 2), ALL) == {
            "accuracy": 4 / 9,
            "pair_confusions": 3,
            "worst_class": {"class": "red", "accuracy": 0.25},
            "confusion": [[1, 1, 2], [1, 1, 0], [1, 0, 2]],
        }

    def test_the_order_of_the_pair_does_not_matter(self):
        logits = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
        assert refinement.outcome(logits, TEST, (0, 1), ALL) == refinement.outcome(logits, TEST, (1, 0), ALL)

    def test_of_some_predictions(self):
        logits = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
        kept = np.array([[0, 2], [0, 1], [1, 2]])
        whole, found = (refinement.outcome(logits, TEST, PAIR, rivals) for rivals in (ALL, kept))
        assert found["confusion"] == [[whole["confusion"][c][other] for other in kept[c]] for c in range(3)]
        assert {**found, "confusion": None} == {**whole, "confusion": None}

    def test_of_a_perfect_classifier(self):
        found = refinement.outcome(np.eye(3, dtype=np.float32)[TEST.labels], TEST, PAIR, ALL)
        assert (found["accuracy"], found["pair_confusions"], found["worst_class"]["accuracy"]) == (1, 0, 1)


class TestPairedInterval:
    nothing = dict.fromkeys(("low", "high", "detectable", "p", "holm"))

    @pytest.mark.parametrize("count", [2, 3, 10])
    def test_equals_scipy(self, count):
        one, two = np.random.default_rng(count).normal(size=(2, count))
        found, test = paired_interval(one - two), scipy.stats.ttest_rel(one, two)
        expected = test.confidence_interval(0.95)
        np.testing.assert_allclose([found["low"], found["high"]], [expected.low, expected.high], **ROUNDING)
        assert found["mean"] == pytest.approx((one - two).mean())
        assert found["p"] == (pytest.approx(test.pvalue) if count >= LEAST_SEEDS else None)

    @pytest.mark.parametrize("count", [6, 30])
    def test_what_is_detectable_is_detected_in_four_cases_of_five(self, count):
        values = np.random.default_rng(count).normal(size=count)
        reached = paired_interval(values)["detectable"] * np.sqrt(count) / values.std(ddof=1)
        power = scipy.stats.nct.sf(scipy.stats.t.ppf(0.975, count - 1), count - 1, reached)
        assert power == pytest.approx(0.8, abs=0.03)

    def test_equal_differences_have_no_interval(self):
        # One of no width would read as certainty, where there are only few seeds and coarse accuracies.
        assert paired_interval(np.array([0.5, 0.5])) == {"mean": 0.5, **self.nothing}

    def test_one_seed_has_no_interval(self):
        assert paired_interval(np.array([0.5])) == {"mean": 0.5, **self.nothing}


@pytest.mark.parametrize(
    ("values", "adjusted"),
    [
        ((0.01, 0.04, 0.03), (0.03, 0.06, 0.06)),  # 3 x .01; 2 x .03; and .04, which is not below the one before
        ((0.9, 0.6), (1, 1)),
        ((0.02,), (0.02,)),
        ((), ()),
    ],
)
def test_holm_by_hand(values, adjusted):
    assert holm(values) == pytest.approx(list(adjusted))


def made_up(seeds, strategies=STRATEGIES):
    """Outcomes of random classifiers."""
    rng = np.random.default_rng(seeds)
    return [
        {name: refinement.outcome(rng.normal(size=(30, 3)).astype(np.float32), TEST, PAIR, ALL) for name in strategies}
        for _ in range(seeds)
    ]


def table(runs, strategies=STRATEGIES, reason="no prototype is uncertain"):
    before = made_up(1)[0]["full"]
    return summarize(runs, before, strategies, reason, {"red": 2, "blue": 3})


def check(summary, seeds):
    """Holds a table with its header against the schema, after the way through JSON."""
    whole = {"schema": 1, "pair": ["red", "blue"], "seeds": seeds, **summary}
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(whole, allow_nan=False)))


class TestSummarize:
    def test_means_and_deviations_are_numpys(self):
        runs = made_up(4)
        entry = table(runs)["strategies"]["curated"]
        for measure in ("accuracy", "pair_confusions"):
            values = [run["curated"][measure] for run in runs]
            assert entry["mean"][measure] == pytest.approx(np.mean(values))
            assert entry["std"][measure] == pytest.approx(np.std(values, ddof=1))
        worst = [run["curated"]["worst_class"]["accuracy"] for run in runs]
        assert entry["mean"]["worst_class"] == pytest.approx(np.mean(worst))
        assert [seed["seed"] for seed in entry["seeds"]] == [0, 1, 2, 3]
        assert (entry["applicable"], entry["phases"]) == (True, 1)

    def test_differences_are_to_full_data_and_the_random_control_at_as_many_phases(self):
        found = {(row["strategy"], row["against"]): row["phases"] for row in table(made_up(3))["differences"]}
        one = {(name, "full"): 1 for name in ("curated", "random", "ambiguous", "hard")}
        one |= {(name, "random"): 1 for name in ("full", "curated", "ambiguous", "hard")}
        names = ("curated>curated", "curated>full", "ambiguous>full", "hard>full")
        two = {(name, against): 2 for name in names for against in ("full>full", "random>full")}
        two |= {("full>full", "random>full"): 2, ("random>full", "full>full"): 2}
        assert found == one | two

    def test_differences_are_paired_by_seed(self):
        runs = made_up(5)
        (row,) = (
            row
            for row in table(runs)["differences"]
            if (row["strategy"], row["against"]) == ("curated>full", "full>full")
        )
        one, two = ([run[name]["accuracy"] for run in runs] for name in ("curated>full", "full>full"))
        expected = scipy.stats.ttest_rel(one, two).confidence_interval(0.95)
        np.testing.assert_allclose(
            [row["accuracy"]["low"], row["accuracy"]["high"]], [expected.low, expected.high], **ROUNDING
        )

    def test_a_reference_that_was_not_run_gives_no_difference(self):
        strategies = ("curated", "curated>full", "full")
        found = table(made_up(2, strategies), strategies)["differences"]
        assert [(row["strategy"], row["against"]) for row in found] == [("curated", "full")]

    def test_those_that_are_held_against_the_same_are_tested_together(self):
        rows = table(made_up(6))["differences"]
        for reference in {row["against"] for row in rows}:
            together = [row["accuracy"] for row in rows if row["against"] == reference]
            assert len(together) > 3
            assert [each["holm"] for each in together] == holm([each["p"] for each in together])

    @pytest.mark.parametrize("seeds", [1, 2, 6])
    def test_the_file_keeps_its_schema(self, seeds):
        check(table(made_up(seeds)), seeds)

    def test_one_seed_has_neither_deviation_nor_interval(self):
        found = table(made_up(1))
        assert set(found["strategies"]["full"]["std"].values()) == {None}
        for row in found["differences"]:
            assert row["accuracy"]["low"] is row["accuracy"]["high"] is None
            assert row["accuracy"]["mean"] is not None

    def test_what_was_not_run_says_why(self):
        found = table(made_up(2, ("full", "full>full")))
        entry = found["strategies"]["curated>full"]
        assert entry == {"applicable": False, "phases": 2, "seeds": [], "reason": "no prototype is uncertain"}
        assert found["differences"] == []
        check(found, 2)

    def test_the_schema_refuses_what_is_not_a_table(self):
        good = table(made_up(2))
        check(good, 2)
        for spoil in (
            lambda bad: bad["strategies"]["full"].pop("mean"),
            lambda bad: bad["before"].update(accuracy=1.5),
            lambda bad: bad.update(more=1),
        ):
            bad = copy.deepcopy(good)
            spoil(bad)
            with pytest.raises(jsonschema.ValidationError):
                check(bad, 2)

    def test_what_refine_seed_returns_can_be_summarized(self):
        strategies = ("full", "curated")
        runs = [refined(strategies, left_out(seed=seed), (seed, seed + 10)) for seed in range(2)]
        found = table(runs, strategies)
        check(found, 2)
        assert found["left_out"] == {"red": 2, "blue": 3}
