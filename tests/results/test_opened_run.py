"""What is asked of a `Run`: why an image is taken for a class, since when two are told apart, texts and pictures."""

import shutil

import numpy as np
import pytest
from helpers import ROUNDING, one_line
from PIL import Image

from i2x_jax import InputError, Run
from i2x_jax.explanation.pairs import auc_over_time
from i2x_jax.results import asked


@pytest.fixture(scope="module")
def run(finished):
    return Run(finished)


def summed_by_hand(run, image, assignments, step):
    """Contributions `[K, M]` of an image behind the linear head of the CNN, location by location."""
    variables = run.variables(step)
    features = np.asarray(run.model.features(variables, image[None]), np.float64)[0]
    weights, bias = (np.asarray(part, np.float64) for part in run.model.linear_head(variables))
    expected = np.zeros((run.config.explain.num_prototypes, weights.shape[1]))
    for row, column in np.ndindex(assignments.shape):
        expected[assignments[row, column]] += features[row, column] @ weights / assignments.size
    return expected, bias


class TestStory:
    @pytest.mark.parametrize("split", ["train", "validation", "test"])
    def test_contributions_are_exact(self, run, split):
        told = run.story(3, split)
        dataset = getattr(run.splits, split)
        assert (told.split, told.image, told.row) == (split, 3, dataset.rows[3])
        assert told.label == dataset.class_names[dataset.labels[3]]
        assert told.contributions.shape == (len(run.steps), 8, 10)
        for t in (0, -1):
            expected, bias = summed_by_hand(run, dataset.images[3], told.assignments, run.steps[t])
            np.testing.assert_allclose(told.contributions[t], expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(told.bias[t], bias, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(told.contributions.sum(1) + told.bias, told.logits, rtol=1e-4, atol=1e-4)
        probabilities = np.exp(told.logits) / np.exp(told.logits).sum(-1, keepdims=True)
        np.testing.assert_allclose(probabilities, told.confidence, rtol=1e-4, atol=1e-5)
        assert sum(each.share for each in told.prototypes) == pytest.approx(1)
        assert told.reason.startswith("Kept" if split == "train" else "Not a training image")

    def test_why_names_prototypes_of_the_image_by_their_size(self, run):
        told = run.story(3)
        why = told.why()
        assert why == told.why(told.predicted)
        assert {each.prototype for each in why} == set(np.unique(told.assignments))
        final = told.contributions[-1][:, run.explanation.classes.index("4")]
        assert [each.contribution for each in told.why("4")] == [final[each.prototype] for each in told.why("4")]
        sizes = [abs(each.contribution) for each in told.why("4")]
        assert sizes == sorted(sizes, reverse=True)

    def test_measured_anew_is_what_the_files_hold(self, run):
        """An image that is handed over is placed and measured as the run did, but for the label."""
        told = run.story(5)
        own = run.story(image=run.dataset.images[5])
        assert (own.split, own.image, own.row, own.label) == ("own", None, None, None)
        assert (own.predicted, own.left_out) == (told.predicted, False)
        np.testing.assert_array_equal(own.assignments, told.assignments)
        np.testing.assert_allclose(own.confidence, told.confidence, **ROUNDING)
        np.testing.assert_array_equal(own.contributions, told.contributions)
        if told.predicted == told.label:
            for mine, stored in zip(own.prototypes, told.prototypes, strict=True):
                np.testing.assert_allclose(mine.intensity, stored.intensity, **ROUNDING)
        grey = run.story(run.dataset.images[5][..., 0])
        np.testing.assert_array_equal(grey.contributions, own.contributions)

    def test_an_image_of_ones_own_has_the_account_of_the_same_training_image(self, run, explained):
        """Behind a linear head, and behind one that is followed along a path."""
        for of in (run, explained):
            row = next(row for row in range(9) if of.story(row).predicted == of.story(row).label)
            own = of.account(of.dataset.images[row])
            np.testing.assert_allclose(own.account, of.account(row).account, atol=1e-5)
            np.testing.assert_allclose(own.confidence, of.account(row).confidence, **ROUNDING)
        held = run.account(3, "test")
        np.testing.assert_allclose(held.account.sum(1), np.diff(held.confidence), atol=1e-5)

    def test_rows_are_those_of_the_data_that_were_given(self, explained, data):
        splits = explained.splits
        found = set()
        for index in (0, 1, 77, *(int(split.rows[2]) for split in splits[:3])):
            told = explained.story(index, split="given")
            found.add(told.split)
            assert told.row == index
            np.testing.assert_array_equal(getattr(splits, told.split).images[told.image], data.images[index])
            assert told.label == data.class_names[data.labels[index]]
        assert found == {"train", "validation", "test"}
        assert explained.story(7).row == splits.train.rows[7]
        assert sorted(np.concatenate([split.rows for split in splits[:3]])) == list(range(len(data.labels)))

    def test_a_general_head_says_what_it_leaves_out(self, explained):
        told = explained.story(7)
        # Its linear head was not named, so contributions come from gradients; they add up all the same.
        np.testing.assert_allclose(told.contributions.sum(1) + told.bias, told.logits, rtol=1e-4, atol=1e-4)

    def test_without_network_and_images_the_files_speak(self, explained):
        opened = Run(explained.path)
        told = opened.story(7)
        assert told.prototypes == () or told.prototypes[0].share == explained.story(7).prototypes[0].share
        assert told.prototypes
        assert told.row == explained.story(7).row
        held = opened.story(3, "test")
        np.testing.assert_array_equal(held.confidence, explained.arrays("test")["confidence"][:, 3])
        assert (held.prototypes, held.assignments) == ((), None)
        assert "take the model and the images" in held.reason
        asks = (lambda: told.contributions, lambda: held.why(), lambda: opened.plot_image(7))
        for ask in (*asks, lambda: opened.story(np.zeros((8, 8), np.uint8)), lambda: opened.story(7, "given")):
            with pytest.raises(InputError) as error:
                ask()
            assert "call i2x_jax.explain again" in one_line(error)


class TestToldApart:
    def test_it_is_the_explanation_with_its_curve(self, run):
        validation, classes = run.arrays("validation"), run.explanation.classes
        for pair in run.explanation.pairs[::9]:
            found = run.told_apart(pair.b, pair.a)
            assert (found.a, found.b, found.step) == (pair.b, pair.a, pair.told_apart)
            a, b = classes.index(pair.a), classes.index(pair.b)
            expected = auc_over_time(validation["confidence"], validation["labels"], a, b)
            np.testing.assert_allclose(found.auc, expected, rtol=1e-12)
            steps = list(map(int, found.steps))
            if found.step is None:
                assert found.before == steps[-1]
            else:
                assert found.before == (steps[steps.index(found.step) - 1] if found.step > steps[0] else None)

    def test_names_may_be_numbers(self, run):
        assert run.told_apart(4, 9).a == "4"


class TestTexts:
    def test_repr_is_a_few_lines(self, run, explained):
        for text in (repr(run), repr(run.explanation), repr(explained)):
            assert len(text) < 600
            assert 2 <= len(text.splitlines()) <= 5
        assert "cnn on digits, 8 prototypes" in repr(run)
        assert "your network on your images" in repr(explained)
        assert "10 classes" in repr(run.explanation)

    def test_conclusions_are_sentences(self, run):
        assert any("to measure a fit" in sentence for sentence in run.conclusions())

    def test_tables_are_named(self, run):
        assert [len(run.records(name)) >= 0 for name in Run.TABLES] == [True] * 8


class TestLedgers:
    def test_rows_add_up_to_the_confidence(self, run):
        rows = run.records("ledger")
        num_prototypes = run.config.explain.num_prototypes
        assert len(rows) == len(run.explanation.classes) * (len(run.steps) - 1) * num_prototypes
        for each in run.ledgers:
            for interval in each.intervals:
                of = [
                    row
                    for row in rows
                    if (row["class"], row["from_step"], row["to_step"])
                    == (each.name, interval.from_step, interval.to_step)
                ]
                assert sorted(row["prototype"] for row in of) == list(range(num_prototypes))
                assert sum(row["change"] for row in of) + interval.bias == pytest.approx(
                    interval.after - interval.before, abs=1e-5
                )
                assert all(row["change"] == pytest.approx(row["seeing"] + row["weighing"]) for row in of)

    def test_summary_tells_the_pair_before_the_regression(self, run):
        text = run.summary()
        a, b = run.explanation.pairs[0].a, run.explanation.pairs[0].b
        if (run.path / "refinement.json").exists():
            a, b = run.refinement["pair"]
        story = text[text.index(f"How {a} and {b} were learned") : text.index("How much prototype change")]
        assert len(story.strip().splitlines()) <= 6
        labels, confidence = np.array(run.array("labels")), np.array(run.array("confidence"), np.float64)
        first, second = run.explanation.classes.index(a), run.explanation.classes.index(b)
        of_a = confidence[:, labels == first]
        gap = (of_a[:, :, first] - of_a[:, :, second]).mean(1)
        assert f"images of {a}: {gap[0]:+.3f} at step {run.steps[0]}, {gap[-1]:+.3f} at step {run.steps[-1]}" in story
        # The line of the largest change adds up, as far as three decimals go.
        change = np.diff(gap)[abs(np.diff(gap)).argmax()]
        listed = [float(word) for word in story.splitlines()[2].split() if word[:1] in "+-"]
        assert sum(listed) == pytest.approx(change, abs=0.003)

    def test_a_run_without_a_ledger_opens_and_says_so(self, run, tmp_path):
        kept = [name for name in run.path.iterdir() if name.name not in ("ledger.npz", "account.npy", "checkpoints")]
        for path in kept:
            if path.is_file():
                shutil.copy(path, tmp_path / path.name)
        older = Run(tmp_path)
        assert "were learned" not in older.summary()
        assert "How much prototype change" in older.summary()
        for ask in (lambda: older.ledger("4"), lambda: older.account(1), lambda: older.to_frame("ledger")):
            with pytest.raises(InputError, match=r"has no ledger .* run explain in a new workdir") as error:
                ask()
            one_line(error)


def test_mean_contributions_and_biases_are_the_mean_logits(run):
    """Logits are told by confidences up to one number for each image: held against the mean of all."""
    labels, found = np.asarray(run.array("labels")), run.arrays("contributions")
    for t, confidence in enumerate(run.array("confidence")):
        for label, columns in enumerate(run.rivals):
            logits = np.log(np.asarray(confidence, np.float64)[labels == label][:, columns])
            told = found["mean"][t, label].sum(0) + found["bias"][t, columns]
            np.testing.assert_allclose(told - told.mean(), (logits - logits.mean(1, keepdims=True)).mean(0), atol=1e-3)


class TestRanking:
    def test_the_table_has_a_row_each_in_the_order_of_the_evidence(self, run):
        rows = run.records("prototypes")
        scores = [row["evidence"] for row in rows if row["rank"]]
        assert scores == sorted(scores, reverse=True)
        assert sorted(row["prototype"] for row in rows) == list(range(run.config.explain.num_prototypes))
        assert [row["rank"] for row in rows[: len(scores)]] == list(range(1, len(scores) + 1))
        arrays, classes = run.arrays("ranking"), run.explanation.classes
        for row, ranked, (record, _) in zip(rows, run.ranking, run.prototypes, strict=True):
            k = row["prototype"]
            assert k == ranked.prototype == record.id
            assert row["evidence"] == arrays["evidence"][k].max()
            assert row["class"] == classes[arrays["evidence"][k].argmax()]
            assert row["in_class"] == arrays["present"][k, classes.index(row["class"])]
            assert row["since"] in run.steps
            changed = (arrays["gained"][0, k] - arrays["lost"][0, k]) / arrays["samples"][0]
            assert (row["drop_validation"], row["drop_audit"]) == (changed, None)
            assert row["share"] == record.share

    def test_the_summary_says_it_before_how_it_was_learned(self, run):
        text = run.summary()
        (look,) = [each for each in text.split("\n\n") if "Look here first" in each]
        assert text.index(look) < text.index("were learned")
        assert look.startswith(f"Look here first, by evidence per location: {run.ranking[0].prototype}, ")
        assert len(look.split("\n")) <= 3

    def test_a_run_without_a_ranking_opens_and_says_so(self, run, tmp_path):
        for path in run.path.iterdir():
            if path.is_file() and path.name != "ranking.npz":
                shutil.copy(path, tmp_path / path.name)
        older = Run(tmp_path)
        assert "Look here first" not in older.summary()
        assert "How much prototype change" in older.summary()
        rows = older.records("prototypes")
        assert [row["prototype"] for row in rows] == list(range(len(rows)))
        assert rows[0].keys() == run.records("prototypes")[0].keys()
        assert {row[name] for row in rows for name in ("rank", "class", "evidence", "drop_validation")} == {None}
        for ask in (lambda: older.ranking, lambda: older.alarms):
            with pytest.raises(InputError, match=r"has no ranking .* the command that made the run adds it") as error:
                ask()
            one_line(error)

    def test_a_ranking_of_other_classes_is_refused(self, run, tmp_path):
        for path in run.path.iterdir():
            if path.is_file():
                shutil.copy(path, tmp_path / path.name)
        members = dict(np.load(tmp_path / "ranking.npz"))
        fewer = {name: members[name][:, :-1] for name in ("evidence", "present")}
        labels = {name: np.minimum(members[name], 8) for name in ("label", "exclusive_label")}
        np.savez(tmp_path / "ranking.npz", **(members | fewer | labels))
        with pytest.raises(
            InputError, match=r"evidence is float32 \[8 x 9\] instead of float32 \[K=8 x M=10\]"
        ) as error:
            Run(tmp_path).summary()
        one_line(error)


class TestPlots:
    def test_prototype(self, run):
        picture = run.plot_prototype(1, n=4)
        assert isinstance(picture, Image.Image)
        assert picture.size == (4 * 72 + 3 * 6, 3 * 72 + 2 * 6)

    def test_image(self, run):
        picture = run.plot_image(3)
        assert picture.size == (max(3 * 224 + 12, len(run.steps) * 78 - 6), 224 + 6 + 72)
        assert run.plot_image(run.dataset.images[3]).size == picture.size

    def test_pair(self, run):
        chart = run.plot_pair("7", "6").to_dict()
        curve, bars = chart["vconcat"]
        values = next(layer for layer in curve["layer"] if layer["mark"]["type"] == "line")["data"]["values"]
        found, pair = run.told_apart("7", "6"), run.explanation.pair("6", "7")
        assert [value["step"] for value in values] == list(found.steps)
        assert [value["auc"] for value in values] == list(found.auc)
        evidence = {(row["prototype"], row["images"]): row["evidence"] for row in bars["data"]["values"]}
        for each in pair.separating:
            assert evidence[str(each.prototype), "in images of 6"] == each.evidence_a
            assert evidence[str(each.prototype), "in images of 7"] == each.evidence_b


WRONG = {
    "a text": (lambda run: run.story("41"), "the train image is '41' of type str; allowed: a whole number, 0 to 393"),
    "a float": (lambda run: run.story(41.0), "the train image is 41.0 of type float"),
    "NaN": (lambda run: run.story(float("nan")), "the train image is nan of type float"),
    "True": (lambda run: run.story(True), "the train image is True of type bool"),
    "negative": (lambda run: run.story(-1), "the train image is -1; allowed: 0 to 393"),
    "nothing": (lambda run: run.story(None), "the train image is None"),
    "a list": (lambda run: run.story([1]), "the train image is [1] of type list"),
    "beyond a split": (lambda run: run.story(10**6, "test"), "the test image is 1000000; allowed: 0 to"),
    "no split": (lambda run: run.story(1, "tests"), "unknown split 'tests'; allowed: train, validation, test, given"),
    "a split as a number": (lambda run: run.story(1, 2), "unknown split 2"),
    "not given": (lambda run: run.story(10**6, "given"), "image 1000000 of the data that were given is in no split"),
    "floats": (lambda run: run.story(np.zeros((8, 8))), "the image is float64 [8, 8]; allowed: a row of the run, or"),
    "another size": (lambda run: run.story(np.zeros((8, 9, 1), np.uint8)), "uint8 [8, 9, 1]; allowed"),
    "a batch": (lambda run: run.story(np.zeros((1, 8, 8, 1), np.uint8)), "or an array uint8 [8, 8, 1] or [8, 8]"),
    "another class": (lambda run: run.story(3).why("cow"), "unknown class 'cow'; allowed: 0, 1"),
    "a float of crops": (lambda run: run.crops(3.0), "the prototype is 3.0 of type float; allowed: a whole number"),
    "no crops": (lambda run: run.crops(3, 0), "the number of crops n is 0; allowed: at least 1"),
    "True crops": (lambda run: run.crops(3, True), "the number of crops n is True"),
    "a .npz": (lambda run: run.array("mapping"), "'mapping' is several arrays; allowed here: steps, labels"),
    "a .npz, the mend": (lambda run: run.array("mapping"), "use arrays('mapping')"),
    "a .npy": (lambda run: run.arrays("labels"), "use array('labels')"),
    "no array": (lambda run: run.array("figures"), "unknown array of a run 'figures'; allowed: steps, labels"),
    "array 3": (lambda run: run.array(3), "unknown array of a run 3"),
    "no table": (lambda run: run.to_frame(["pairs"]), "unknown table ['pairs']; allowed: intervals"),
    "no class": (lambda run: run.told_apart("4", "cow"), "unknown class 'cow'"),
    "one class": (lambda run: run.plot_pair("4", "4"), "allowed: two different classes"),
    "no step": (lambda run: run.variables(7777), "no checkpoint at step 7777; allowed: 0, "),
    "step as text": (lambda run: run.variables("0"), "the step is '0' of type str"),
    "no prototype": (lambda run: run.plot_prototype(99), "the prototype is 99; allowed: 0 to 7"),
    "a seed": (lambda run: run.plot_prototype(1, seed=-1), "the seed is -1; allowed: at least 0"),
    "no path": (lambda run: Run(3), "the run directory is 3; allowed: a path"),
}


@pytest.mark.parametrize(("ask", "words"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_get_one_line(run, ask, words):
    with pytest.raises(InputError) as error:
        ask(run)
    assert words in one_line(error)
    assert "--" not in one_line(error)


def test_a_grey_image_is_no_colour_image():
    with pytest.raises(InputError, match=r"uint8 \[8, 8\]; allowed: .* uint8 \[8, 8, 3\] of 0 to 255"):
        asked.pixels(np.zeros((8, 8), np.uint8), np.zeros((1, 8, 8, 3), np.uint8))
