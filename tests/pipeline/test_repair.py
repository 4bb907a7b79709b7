"""Acting on prototypes of a run: what is chosen and by what, the table, the models that are kept, what is refused."""

import copy
import dataclasses
import shutil

import jax
import numpy as np
import pytest
from helpers import one_line, planted
from programs import blocks, contents, one_at_a_time

import i2x_jax
from i2x_jax import InputError, Run
from i2x_jax.config import ACTIONS, CONTROLS, RIVALS, from_config_dict
from i2x_jax.data.dataset import Dataset, steps_per_pass
from i2x_jax.explanation.ranking import Alarm
from i2x_jax.models import torch_weights
from i2x_jax.pipeline import refine as stage
from i2x_jax.pipeline import repair, stages
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.refinement import actions
from i2x_jax.results import repairs
from i2x_jax.results.files import REPORT, repaired_weights
from i2x_jax.training.loop import loss_and_accuracy, predict

SETTINGS = {
    "train": {"epochs": 2, "batch_size": 16, "num_checkpoints": 3, "learning_rate": 0.02},
    "data": {"validation": 0.1, "plant": "tag", "plant_size": 3, "plant_place": "bottom_right", "augment": "none"},
    "model": {"width": 4},
    "explain": {"num_prototypes": 12, "pca_dims": 4, "restarts": 1, "max_pairs": 1, "batch_size": 64},
    "refine": {"seeds": 2, "pick": "evidence", "phases": 0, "actions": ACTIONS, "learning_rate": 0.01},
}


@pytest.fixture(scope="module")
def repaired(base):
    """A run with a planted tag whose first prototype was acted on, in every way; not to be changed.

    Its models are kept whatever they cost: with so few images that is chance.
    """
    with one_at_a_time(base, "repaired"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(repair, "MOST_LOST", 1.0)
        return i2x_jax.train(planted(150, side=24), SETTINGS, base / "repaired", refine=True)


@pytest.fixture
def run(repaired, tmp_path):
    """The same, to be changed."""
    found = Run(shutil.copytree(repaired.path, tmp_path / "run"))
    found.splits, found.model = repaired.splits, repaired.model
    return found


def accuracy(model, variables, dataset):
    return loss_and_accuracy(predict(model, variables, dataset, 64), dataset.labels)[1]


class TestTable:
    def test_every_action_stands_beside_every_control(self, repaired):
        table = repaired.refinement
        assert list(table["strategies"]) == [*ACTIONS, *CONTROLS, *RIVALS]
        told = table["repair"]
        assert told["prototypes"] == [repaired.ranking[0].prototype]
        assert (told["by"], told["ranks"]) == ("evidence", [1])
        against = {(row["strategy"], row["against"]) for row in table["differences"]}
        run = [name for name, entry in table["strategies"].items() if entry["applicable"]]
        assert {(name, "plain") for name in run} - {("plain", "plain")} <= against
        assert {"swap", "drop", "plain", "true_mask", "random_patch"} <= set(run)

    def test_rivals_train_on_the_audit_images_and_are_kept_nowhere(self, repaired):
        strategies = repaired.refinement["strategies"]
        assert [strategies[name]["phases"] for name in RIVALS] == [0, strategies["plain"]["phases"]]
        for name in RIVALS:
            assert strategies[name]["mean"]["audit_accuracy"] > repaired.refinement["before"]["audit_accuracy"]
        assert strategies["dfr"]["std"]["unbiased_accuracy"] == 0
        assert not [path for path in (repaired.path / "repaired").glob("*") if path.name in RIVALS]

    def test_what_judges_is_in_before_seeds_mean_and_differences(self, repaired):
        table = repaired.refinement
        names = {"validation_accuracy", "swapped_accuracy", "audit_accuracy", "unbiased_accuracy"}
        entry = table["strategies"]["swap"]
        for part in (table["before"], *entry["seeds"], entry["mean"], entry["std"], *table["differences"]):
            assert names <= part.keys()
        mean = np.mean([seed["unbiased_accuracy"] for seed in entry["seeds"]])
        assert entry["mean"]["unbiased_accuracy"] == pytest.approx(mean)
        last = {line["split"]: line["accuracy"] for line in repaired.metrics}
        for split in ("validation", "audit", "unbiased"):
            assert table["before"][f"{split}_accuracy"] == pytest.approx(last[split])

    def test_mask_and_phases_are_the_best_on_the_audit_images(self, repaired):
        told = repaired.refinement["repair"]
        best = max(told["tried"], key=lambda each: each["audit_accuracy"])
        assert {each["phases"] for each in told["tried"]} == {1, 2}
        assert (told["mask"], told["phases"]) == (best["mask"], best["phases"])
        assert repaired.refinement["strategies"]["swap"]["phases"] == best["phases"]
        assert repaired.refinement["strategies"]["drop"]["phases"] == 0

    def test_two_seeds_differ_and_drop_which_trains_nothing_does_not(self, repaired):
        strategies = repaired.refinement["strategies"]
        assert strategies["drop"]["std"]["validation_accuracy"] == 0
        confusions = [seed["confusion"] for name in ("swap", "plain", "cutout") for seed in strategies[name]["seeds"]]
        assert len({str(each) for each in confusions}) > 2


@pytest.mark.parametrize("action", ACTIONS)
def test_a_model_is_kept_and_loaded_and_is_what_the_table_says(repaired, action):
    table = repaired.refinement
    assert table["repair"]["saved"] == list(ACTIONS)
    model, variables = repaired.repaired(action)
    for split in ("unbiased", "test"):
        name = "unbiased_accuracy" if split == "unbiased" else "accuracy"
        found = accuracy(model, variables, getattr(repaired.splits, split))
        assert found == pytest.approx(table["strategies"][action]["seeds"][0][name])


@pytest.mark.parametrize("action", ["swap", "drop"])
def test_the_weights_are_kept_under_torchvisions_names_too(repaired, action):
    path, (_, variables) = repaired.path / repaired_weights("", action), repaired.repaired(action)
    assert path.exists() == (action != "drop")
    if path.exists():
        other = jax.tree.map(np.zeros_like, variables)
        found, _ = torch_weights.from_torch("cnn", torch_weights.read(path), other, str(path))
        jax.tree.map(np.testing.assert_array_equal, found, variables)
        assert not list(path.parent.glob(".tmp-*"))


def test_a_repair_is_explained_and_held_against_the_training(run):
    after = run.explain_repaired("swap")
    phases = run.refinement["repair"]["phases"]
    assert after.steps.tolist() == [run.steps[-1], run.steps[-1] + phases * steps_per_pass(len(run.dataset.labels), 16)]
    reached = run.refinement["strategies"]["swap"]["seeds"][0]
    for split in ("validation", "unbiased"):
        last = [line["accuracy"] for line in after.metrics if line["split"] == split][-1]
        assert last == pytest.approx(reached[f"{split}_accuracy"])
    rows = run.compare(after)
    assert len(rows) == 12 * 3
    # Every change of confidence over the repair is accounted for: by prototypes, and by the bias.
    ledger = after.arrays("ledger")
    change = np.array(after.array("confidence"))[1] - np.array(after.array("confidence"))[0]
    for c, name in enumerate(run.dataset.class_names):
        told = sum(row.other_change for row in rows if row.name == name) + ledger["bias"][0, c, c]
        assert told == pytest.approx(change[after.dataset.labels == c, c].mean(), abs=1e-5)


def test_the_guard_refuses_what_costs_audit_accuracy(run):
    table = copy.deepcopy(run.refinement)
    table["before"]["audit_accuracy"] = 0.9
    for action, reached in (("swap", 0.889), ("paste", 0.891)):
        table["strategies"][action]["mean"]["audit_accuracy"] = reached
        (run.path / "repaired" / action).mkdir(parents=True, exist_ok=True)
        (run.path / repaired_weights("", action)).touch()
    found = repair.guarded(RunDirectory(run.path), "", table)["repair"]
    assert {"action": "swap", "before": 0.9, "after": 0.889} in found["refused"]
    assert "paste" in found["saved"]
    assert "swap" not in found["saved"]
    assert not (run.path / "repaired" / "swap").exists()
    assert (run.path / "repaired" / "paste").exists()
    assert [(run.path / repaired_weights("", action)).exists() for action in ("swap", "paste")] == [False, True]
    said = repairs.sentences(table | {"repair": found})
    assert said[0].startswith("Refused: swap costs 1.1 points of accuracy on the audit images, from 90.0 to 88.9 %")


def test_reweighting_changes_the_last_layer_alone(run):
    settings = run.config.refine
    pair, _ = stage.curation(run, settings)
    refining = stage.shared(run, settings, pair)
    (found,) = repair.ready(run, None, ["dfr"], refining).values()
    model, variables = found
    before = refining.variables
    assert variables["batch_stats"] is before["batch_stats"]
    assert {name for name in before["params"] if variables["params"][name] is not before["params"][name]} == {
        "classifier"
    }
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, before)
    assert accuracy(model, variables, run.splits.audit) > accuracy(run.model, before, run.splits.audit)


def test_rivals_that_do_not_apply_say_why(run):
    splits, audit = run.splits, run.splits.audit
    run.splits = splits._replace(unbiased=None)
    assert repair.rivals_left_out(run).keys() == set(RIVALS)
    run.splits = splits._replace(audit=audit.take(np.flatnonzero(audit.labels != 1)))
    assert repair.rivals_left_out(run) == {"dfr": "0 of the audit images are of class green, and it takes 2"}
    run.splits = splits._replace(audit=None)
    assert repair.rivals_left_out(run) == {}


def test_what_raises_an_alarm_on_the_audit_images_is_picked(run, monkeypatch):
    settings = dataclasses.replace(run.config.refine, pick="alarm")
    monkeypatch.setattr(Run, "alarms", (Alarm(3, "audit", 0.1, 0.001), Alarm(5, "audit", 0.05, 0.004)))
    assert repair.chosen_prototypes(run, settings, ()) == ((3, 5), "alarm")
    monkeypatch.setattr(Run, "alarms", (Alarm(3, "evidence", 2.6, None),))
    assert repair.chosen_prototypes(run, settings, ()) == ((), "alarm")


def test_of_many_that_raise_an_alarm_as_many_are_acted_on_as_may_be(run, monkeypatch):
    monkeypatch.setattr(Run, "alarms", tuple(Alarm(k, "audit", 0.1, 0.001) for k in (3, 5, 7)))
    seen = []

    def allowed(work, chosen, mask):
        seen.append(chosen)
        return [], "too much"

    monkeypatch.setattr(repair, "allowed_cues", allowed)
    settings = dataclasses.replace(run.config.refine, pick="alarm")
    plan = repair.plan_repair(RunDirectory(run.path), run, settings, None, ())
    assert seen == [(3, 5, 7), (3, 5), (3,)]
    assert set(plan.reasons.values()) == {"too much"}
    assert plan.told["repair"]["prototypes"] == [3]


class Untouched:
    """Images that nobody may look at."""

    def __init__(self, like):
        self.shape, self.dtype = like.shape, like.dtype

    def __getitem__(self, rows):
        raise AssertionError("looked at")


def test_no_choice_looks_at_test_or_unbiased_images(run):
    hidden = {
        name: each._replace(images=Untouched(each.images))
        for name, each in run.splits.sets().items()
        if name in ("test", "unbiased")
    }
    run.splits = run.splits._replace(**hidden)
    settings = run.config.refine
    pair, curated = stage.curation(run, settings)
    refining = stage.shared(run, settings, pair)
    plan = repair.plan_repair(RunDirectory(run.path), run, settings, refining, curated.prototypes)
    assert plan.told["repair"]["tried"] == run.refinement["repair"]["tried"]


def dropped(run):
    shutil.rmtree(run.path / "repaired" / "drop", ignore_errors=True)
    return run


class TestFromPython:
    def test_a_prototype_is_named_and_stands_beside_the_first(self, run, monkeypatch):
        monkeypatch.setattr(repair, "MOST_LOST", 1.0)
        first = run.refinement
        table = run.refine([run.ranking[0].prototype], seeds=1, phases=1, mask="place")
        name = f"swap-{run.ranking[0].prototype}"
        assert list(run.refinements) == ["", name]
        assert table == run.refinements[name]
        assert run.refinement == first
        assert (table["repair"]["by"], table["repair"]["mask"], table["seeds"]) == ("person", "place", 1)
        assert list(table["strategies"]) == ["swap", *CONTROLS, *RIVALS]
        model, variables = run.repaired("swap", name)
        reached = table["strategies"]["swap"]["seeds"][0]["unbiased_accuracy"]
        assert accuracy(model, variables, run.splits.unbiased) == pytest.approx(reached)
        assert f"({name}): mask by place" in run.summary()
        made = contents(run.path)
        assert run.refine([run.ranking[0].prototype], seeds=1, phases=1, mask="place") == table
        assert contents(run.path) == made

    def test_the_block_of_the_readme(self, run, monkeypatch):
        monkeypatch.setattr(repair, "MOST_LOST", 1.0)
        names = {"run": run, "images": run.dataset.images[:2]}
        exec(blocks("README.md")[1].replace("26", str(run.ranking[0].prototype)), names)
        assert names["logits"].shape == (2, len(run.dataset.class_names))

    @pytest.mark.parametrize(
        ("call", "words"),
        {
            "unknown": (lambda run: run.refine([12]), "refine.prototypes names 12; allowed: 0 to 11"),
            "none": (lambda run: run.refine([]), "no prototypes were given; allowed: their numbers"),
            "no number": (lambda run: run.refine(["a"]), "refine.prototypes is "),
            "action": (lambda run: run.refine([0], "erase"), "refine.actions is ('erase',)"),
            "setting": (lambda run: run.refine([0], mask="all"), "refine.mask is 'all'; allowed: 'auto', 'pattern'"),
            "name": (lambda run: run.refine([0], name="../x"), "refine.name is '../x'"),
            "no such model": (lambda run: run.repaired("swap", "x"), "unknown refinement 'x'"),
            "not kept": (lambda run: run.repaired("drop"), "keeps no model of 'drop' under the name ''"),
            "nothing changed": (lambda run: run.explain_repaired("drop"), "'drop' changes no weights"),
            "no such action": (lambda run: run.repaired("swop"), "unknown action 'swop'"),
        }.values(),
    )
    def test_what_cannot_be_used_is_a_line_and_leaves_the_run_as_it_is(self, run, call, words):
        before = contents(dropped(run).path)
        with pytest.raises(InputError) as error:
            call(run)
        assert words in one_line(error)
        assert contents(run.path) == before

    def test_a_mask_over_half_of_the_image_is_refused_with_its_share(self, run, monkeypatch):
        before = contents(run.path)
        monkeypatch.setattr(actions, "MOST_COVERED", 0.01)
        with pytest.raises(InputError) as error:
            run.refine([0], mask="pattern", seeds=1)
        assert "the pattern of prototype 0 covers " in one_line(error)
        assert "% of the images that have it; allowed: prototypes" in one_line(error)
        assert contents(run.path).keys() == before.keys()

    def test_a_model_of_ones_own_is_not_refined(self, explained):
        with pytest.raises(InputError, match="explains a model of your own, which is not refined"):
            explained.refine([0])


def test_a_prototype_that_no_image_has_is_refused(run):
    assignments = np.array(run.array("assignments"))
    run._opened["assignments"] = run._opened["assignments"][0], np.where(assignments == 3, 0, assignments)
    assert repair.allowed_cues(run, [3], "pattern") == ([], "prototype 3 is in no training image")


def test_what_was_picked_and_may_not_be_used_leaves_a_table_that_says_so(run, monkeypatch):
    monkeypatch.setattr(actions, "MOST_COVERED", 0.0)
    settings = dataclasses.replace(run.config.refine, name="none", seeds=1)
    stage.refine(RunDirectory(run.path, refinement="none"), run, settings)
    table = run.refinements["none"]
    assert not any(entry["applicable"] for entry in table["strategies"].values())
    (sentence,) = repairs.sentences(table)
    assert sentence.startswith("Nothing was done: the pattern of prototype")
    assert sentence in repairs.shown("none", table).replace("\n    ", " ")


def test_without_audit_and_unbiased_images_nothing_is_chosen_refused_or_judged(run):
    run.splits = run.splits._replace(audit=None, unbiased=None)
    settings = dataclasses.replace(run.config.refine, name="alone", seeds=1, actions=("swap",))
    stage.refine(RunDirectory(run.path, refinement="alone"), run, settings)
    table = run.refinements["alone"]
    told = table["repair"]
    assert (told["tried"], told["refused"], told["saved"]) == ([], [], ["swap"])
    assert (told["mask"], told["phases"]) == ("pattern", repair.PHASES_UNSEEN)
    assert not {"audit_accuracy", "unbiased_accuracy"} & table["before"].keys()
    assert repairs.sentences(table)[0].startswith("Nothing here may judge swap of prototype")
    assert "swapped %" in repairs.shown("alone", table)


def test_drop_needs_a_pool(run):
    wanted = dataclasses.replace(run.config, refine=dataclasses.replace(run.config.refine, actions=("swap", "drop")))
    headless = dataclasses.replace(run.model, linear_head=None)
    with pytest.raises(InputError) as error:
        stages.check_actions(wanted, headless)
    assert "refine.actions names 'drop' for a head that is no pool and linear layer" in one_line(error)
    stages.check_actions(wanted, run.model)


def test_an_audit_set_of_one_class_is_refused():
    data = planted(60)
    one = Dataset(data.images[:10], np.zeros(10, np.int32), data.class_names)
    with pytest.raises(InputError) as error:
        i2x_jax.train(data, {"train": {"batch_size": 16}}, audit=one)
    assert "the audit images are of 1 class; allowed: at least 2" in one_line(error)


def test_controls_hardly_touch_the_cue(run):
    told = run.refinement["repair"]
    ((cue, *_), _) = repair.allowed_cues(run, told["prototypes"], told["mask"])
    own = repair.masks_of(run, cue.mask, cue.cells)(np.flatnonzero(cue.cells.any((1, 2))))
    others = repair.other_prototypes(run, cue)
    assert not set(others) & set(cue.prototypes)
    for each in others:
        cells = run.array("assignments") == each
        masks = repair.masks_of(run, "pattern", cells)(np.flatnonzero(cue.cells.any((1, 2))))
        assert (masks & own).sum() <= repair.MOST_SHARED * own.sum()


def test_the_report_shows_it(repaired):
    page = (repaired.path / REPORT).read_text()
    told = repaired.refinement["repair"]
    assert f"Acting on prototype {told['prototypes'][0]} (rank 1), first by evidence" in page
    assert page.count('alt="Training images') == 2
    assert "before the swap" in page
    assert "after the swap" in page
    assert "run.refine(prototypes=[" in page
    for sentence in repairs.sentences(repaired.refinement):
        assert sentence in page


class TestSentences:
    def difference(self, low, high):
        return {"mean": 0.1, "low": low, "high": high}

    def table(self, low, high, judged=True):
        kinds = ("unbiased_accuracy",) * judged + ("validation_accuracy", "swapped_accuracy", "accuracy")
        entry = {"applicable": True, "mean": dict.fromkeys(kinds, 0.8), "std": dict.fromkeys(kinds, 0.01)}
        rows = [
            {"strategy": "swap", "against": against} | dict.fromkeys(kinds, self.difference(low, high))
            for against in ("plain", "cutout")
        ]
        strategies = {"swap": entry, "plain": entry, "cutout": entry | {"mean": dict.fromkeys(kinds, 0.85)}}
        repair = {"prototypes": [7], "ranks": [2], "by": "person", "refused": [], "saved": []}
        before = dict.fromkeys(kinds, 0.5)
        return {"strategies": strategies, "differences": rows, "repair": repair, "before": before, "seeds": 2}

    @pytest.mark.parametrize(
        ("low", "high", "words"),
        [
            (0.02, 0.2, "which is above 0"),
            (-0.02, 0.2, "which holds 0: no difference was shown"),
            (-0.3, -0.1, "which is below 0"),
            (None, None, "without an interval"),
        ],
    )
    def test_the_verdict_is_the_intervals(self, low, high, words):
        first = repairs.sentences(self.table(low, high))[0]
        assert "swap of prototype 7 (rank 2), named by a person: accuracy on unbiased images went from 50.0 to" in first
        assert "less cutout, the best control at 85.0 %" in first
        assert first.count(words) == 2

    def test_where_nothing_may_judge_nothing_is_judged(self):
        first = repairs.sentences(self.table(0.02, 0.2, judged=False))[0]
        assert first.startswith("Nothing here may judge swap of prototype 7")
        assert "a person has to decide" in first
        assert "above 0" not in first


def test_the_command_that_the_report_names_is_one(tmp_path):
    words = repairs.command([7, 12]).split()
    given = dict(word.removeprefix("--config.refine.").split("=") for word in words if "--config" in word)
    assert given == {"prototypes": "7,12", "name": "swap-7-12"}
    assert from_config_dict({"refine": {"prototypes": (7, 12), "name": given["name"]}}).refine.acts
