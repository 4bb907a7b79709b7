"""The report: what it says equals the files of the run, whatever a class is called; and stories, crops and tables."""

import base64
import html.parser
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from i2x_jax import Run
from i2x_jax.config import InputError, printable
from i2x_jax.evidence.geometry import crop_size, crops_at
from i2x_jax.evidence.saliency import saliency_maps
from i2x_jax.explanation.ranking import FIRST, Alarm
from i2x_jax.explanation.types import ClassExplanation, Explanation, Interval
from i2x_jax.models.places import Places, Span
from i2x_jax.pipeline.report import page_ledger
from i2x_jax.report import charts, contact_sheet, content, examples, gallery, ledgers, page
from i2x_jax.report.content import rounded
from i2x_jax.results import findings, pictures, story, tables
from i2x_jax.results.files import REFINEMENT, REPORT, STEPS
from tests.helpers import one_line
from tests.report_run import CONTROL, HYPHENS, NAMES, SCRIPT, report_run, run_stages

INTERVAL = {
    "groups": 3,
    "noise": 10,
    "unchanged": 40,
    "fallbacks": (),
    "r2": 0.5,
    "r2_class": 0.4,
    "r2_total": 0.45,
    "r2_groups": None,
    "gain": 0.2,
    "gain_total": 0.1,
    "null": (0.0, 0.01, 0.02),
    "above_null": True,
}
UNMEASURED = {name: None for name in ("r2", "r2_class", "r2_total", "gain", "gain_total")} | {
    "null": (None, None, None),
    "above_null": False,
}


CELLS = Places(Span(0.5, 2, 2), Span(0.5, 2, 2))  # of a map of 2x2 on images of 4x4


class Page(html.parser.HTMLParser):
    """The texts of a page, by element, and the contents of its scripts."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.scripts, self.texts, self.cells, self.open = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th") and self.cells:
            self.cells[-1].append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, text):
        if self.open and self.open[-1] == "script":
            self.scripts.append(text)
        elif "style" not in self.open:
            self.texts.append(text)
            if self.cells and self.cells[-1] and self.open and self.open[-1] in ("td", "th"):
                self.cells[-1][-1] += text


@pytest.fixture(scope="module")
def run(base):
    return report_run(base)


@pytest.fixture(scope="module")
def text(run):
    return (run.path / REPORT).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def parsed(text):
    return Page(text)


@pytest.fixture(scope="module")
def data(parsed):
    return json.loads(parsed.scripts[1])


class TestFile:
    def test_small_and_alone(self, text):
        assert len(text.encode()) < 4e6
        # Nothing to fetch: no address in any attribute but those within the page and its own pictures.
        addresses = re.findall(r'(?:src|href)="?([^" >]*)', text[: text.index("<script")])
        assert addresses
        assert all(address.startswith(("#", "data:")) for address in addresses)
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
        assert "default-src 'none'" in policy
        assert "unsafe-eval" not in policy
        assert "unsafe-inline" not in policy.split("style-src")[0]

    def test_same_run_same_bytes_and_an_older_run_is_completed(self, run, tmp_path, text, capsys):
        older = tmp_path / "run"
        shutil.copytree(run.path, older)
        (older / REPORT).unlink()
        run_stages(older, "report")
        printed = capsys.readouterr().out
        assert (older / REPORT).read_text(encoding="utf-8") == text
        assert printed.count("already done") == len(STEPS) - 1
        assert "report: done" in printed

    def test_whole_or_absent(self, run, tmp_path, monkeypatch):
        broken = tmp_path / "run"
        shutil.copytree(run.path, broken)
        (broken / REPORT).unlink()

        def fail(*content):
            raise RuntimeError("half way")

        monkeypatch.setattr(gallery, "prototypes", fail)
        with pytest.raises(RuntimeError, match="half way"):
            run_stages(broken, "report")
        assert not (broken / REPORT).exists()
        assert not list(broken.glob(".tmp*"))


class TestNames:
    def test_markup_is_text(self, text, parsed):
        assert sum(tag == "script" for tag, _ in parsed.tags) == 4
        assert SCRIPT not in text
        assert any(SCRIPT in words for words in parsed.texts)

    def test_control_characters_are_spelt_out(self, text, data):
        for character in "\x07\u202e\u2028":
            assert character not in text.split('id="data">')[0]
        assert data["names"][NAMES.index(CONTROL)] == "bell\\x07 \\u202eright\\u2028 100 %"
        assert data["keys"] == list(NAMES)

    @pytest.mark.parametrize("value", ["</script><b>", "<!--", "\u2028\u2029", "&lt;", "\ud800", 'a"b\\'])
    def test_embedded_json_ends_no_script(self, value):
        text = str(page.embedded({value: [value]}))
        assert not set("<>&\u2028\u2029") & set(text)
        text.encode("utf-8")
        assert json.loads(text) == {value: [value]}

    def test_printable_leaves_letters_alone(self):
        assert printable("naïve 猫 5°") == "naïve 猫 5°"
        assert printable("a\nb\u200bc") == "a\\nb\\u200bc"


class TestFigures:
    def test_fidelity_table(self, run, parsed):
        rows = {row[0]: row[1:] for row in parsed.cells if len(row) == 9}
        for each in run.explanation.intervals:
            values = each.r2_class, each.r2_total, each.r2, each.gain
            shown = rows[f"{each.from_step}–{each.to_step}"]
            assert shown[:4] == ["–" if value is None else f"{value:.2f}" for value in values]
            assert shown[4] == ("–" if each.null[1] is None else f"{each.null[1]:.3f}")
            assert shown[5] == ("–" if each.gain_total is None else f"{each.gain_total:+.2f}")

    def test_prototypes(self, run, data):
        own = run.arrays("contributions")["mean"]
        for shown, each in zip(data["prototypes"], run.explanation.prototypes, strict=True):
            assert (shown["id"], shown["count"], shown["share"]) == (each.id, each.count, rounded(each.share))
            assert [k for k, _ in shown["nearest"]] == [neighbour.prototype for neighbour in each.nearest]
            assert shown["own"]["3"][-1] == rounded(float(own[-1, 3, each.id, 3]), 3)
            intensity = run.array("intensity")[-1, :, each.id]
            assert shown["strongest"]["intensity"][0] == rounded(float(intensity.max()), 3)
            area = (run.array("assignments") == each.id).any((1, 2))
            assert area[shown["random"]["rows"]].all()

    def test_pairs(self, run, data):
        assert data["allPairs"] == len(data["pairs"]) == 45
        for shown, pair in zip(data["pairs"], run.explanation.pairs, strict=True):
            assert (NAMES[shown["a"]], NAMES[shown["b"]], shown["told_apart"]) == (pair.a, pair.b, pair.told_apart)
            assert [row[0] for row in shown["separating"]] == [each.prototype for each in pair.separating]
            weights = {NAMES.index(pair.a): 1, NAMES.index(pair.b): 2}
            for row in shown["separating"]:
                assert abs(row[weights[row[3]]]) == max(abs(row[1]), abs(row[2]))
            confusion = run.refinement["before"]["confusion"]
            assert shown["test"]["before"] == [confusion[shown["a"]][shown["b"]], confusion[shown["b"]][shown["a"]]]

    def test_separating_prototypes_are_shown_in_images_of_their_class(self, run, data):
        labels, assignments, final = run.array("labels"), run.array("assignments"), run.array("intensity")[-1]
        wanted = {f"{k} {label}" for pair in data["pairs"] for k, _, _, label in pair["separating"]}
        assert set(data["inClasses"]) <= wanted
        for key in wanted:
            k, label = map(int, key.split())
            having = np.flatnonzero((labels == label) & (assignments == k).any((1, 2)))
            rows = data["inClasses"][key]["rows"] if len(having) else []
            assert set(rows) <= set(having)
            assert list(final[rows, k]) == sorted(final[having, k], reverse=True)[:4]

    def test_heat_map_of_the_refined_pair(self, run, data):
        shown = next(pair for pair in data["pairs"] if pair["refined"])
        pair, s = run.explanation.pair(HYPHENS, CONTROL), run.arrays("curated")["pair_s"]
        values = {(cell["time"], cell["prototype"]): cell for cell in shown["heat"]}
        for (t, k), cell in values.items():
            assert cell["value"] == pytest.approx(s[t, k], rel=1e-3)
            assert cell["faint"] == (not pair.counted[t])
        uncertain = {each.prototype for each in pair.uncertain}
        assert uncertain
        assert {cell["prototype"] for cell in values.values() if cell["mark"]} == uncertain
        assert [k for k, _, _ in shown["uncertain"]] == [each.prototype for each in pair.uncertain]

    def test_classes(self, run, data):
        groups, labels = run.array("groups"), run.array("labels")
        for label, shown in enumerate(data["perClass"]):
            assert shown["samples"] == (labels == label).sum()
            assert shown["shared"] == list(run.explanation.per_class[label].shared)
            for t, of_interval in enumerate(shown["groups"]):
                for group in of_interval:
                    inside = np.flatnonzero((labels == label) & (groups[t] == group["id"]))
                    assert group["size"] == len(inside)
                    assert set(group["rows"]) <= set(inside)

    def test_stories(self, run, data):
        confidence = run.array("confidence")
        kinds, left_out = data["images"]["kinds"], run.arrays("curated")["left_out"]
        assert kinds["left_out"]
        assert set(kinds["left_out"]) <= set(left_out)
        assert {run.array("labels")[row] for row in kinds["random"]} == set(range(len(NAMES)))
        for shown in data["images"]["stories"]:
            row, label = shown["row"], run.array("labels")[shown["row"]]
            assert [shown["label"], *shown["confidence"][-1][:1]] == [
                label,
                rounded(float(confidence[-1, row, label]), 3),
            ]
            assert shown["left_out"] == (row in left_out)
            assert shown["prototypes"] == sorted(shown["prototypes"], key=lambda each: -each[1])

    def test_saliency_is_that_of_the_checkpoints(self, run, data):
        shown = data["images"]["stories"][0]
        frames = Image.open(io.BytesIO(base64.b64decode(shown["frames"].split(",")[1]))).convert("RGB")
        width, height = data["images"]["frame"]
        assert frames.size == (width * (1 + len(run.steps)), height)
        row = [shown["row"]]
        maps = []
        for step in run.steps:
            variables = run.variables(step)
            features = run.model.features(variables, run.dataset.images[row])
            maps.append(np.asarray(saliency_maps(run.model, variables, features, run.dataset.labels[row]))[0])
        assert shown["largest"] == pytest.approx(np.max(maps), rel=2e-3)
        plain = pictures.tile(run.dataset.images[shown["row"]], (width, height))
        for place, each in enumerate(maps, 1):
            frame = frames.crop((place * width, 0, (place + 1) * width, height))
            expected = pictures.overlaid(plain, each, np.max(maps), run.model.places, (8, 8))
            assert np.abs(np.int16(frame) - np.int16(expected)).mean() < 6  # the picture is compressed

    def test_where_curation_does_not_apply(self, run, tmp_path):
        workdir = tmp_path / "run"
        shutil.copytree(run.path, workdir)
        (workdir / REPORT).unlink()
        table = json.loads((workdir / REFINEMENT).read_text())
        for name, entry in table["strategies"].items():
            if "full" != name.split(">")[0]:
                table["strategies"][name] = {
                    "applicable": False, "phases": entry["phases"], "seeds": [], "reason": "no <such> sample"
                }  # fmt: skip
        table["differences"] = []
        (workdir / REFINEMENT).write_text(json.dumps(table))
        curated = run.arrays("curated")
        none = {name: curated[name][:0] for name in ("prototypes", "scores", "left_out", "skipped")}
        np.savez(workdir / "curated.npz", **curated | none)
        run_stages(workdir, "report")
        parsed = Page((workdir / REPORT).read_text(encoding="utf-8"))
        assert ["curated", "not applicable: no <such> sample"] in parsed.cells
        assert any("Curation does not apply" in words for words in parsed.texts)


class TestLedger:
    def adds_up(self, course):
        assert len(course["changes"]) == len(course["prototypes"])
        for t, change in enumerate(np.diff(course["confidence"])):
            of_prototypes = sum(changes[t] for changes in course["changes"])
            assert of_prototypes + course["rest"][t] + (course["bias"] or [0] * (t + 1))[t] == change

    def test_what_a_class_shows_adds_up_to_the_last_digit(self, run, data):
        labels = np.array(run.array("labels"))
        for label, shown in enumerate(data["ledger"]["classes"]):
            confidence = np.array(run.array("confidence")[:, labels == label, label], np.float64).mean(1)
            assert shown["course"]["confidence"] == np.rint(1000 * confidence).tolist()
            self.adds_up(shown["course"])
            changes = np.diff(shown["course"]["confidence"])
            assert abs(changes[shown["most"]]) == abs(changes).max()
            for change, interval in zip(changes, shown["intervals"], strict=True):
                named = interval["named"]
                assert sum(each["change"] for each in named) + interval["rest"] + interval["bias"] == change
                assert all(each["change"] == each["seeing"] + each["weighing"] for each in named)
                assert len(named) <= 5
                assert len(named) + interval["others"] == 8

    def test_entries_are_those_of_the_run(self, run, data):
        for label in (0, 4):
            for interval, ledger in zip(
                data["ledger"]["classes"][label]["intervals"], run.ledger(NAMES[label]).intervals, strict=True
            ):
                for shown, entry in zip(interval["named"], ledger.entries, strict=False):
                    assert (shown["prototype"], NAMES[shown["rival"]]) == (entry.prototype, entry.rival)
                    assert shown["change"] == pytest.approx(1000 * entry.change, abs=0.5)
                    assert shown["seeing"] == pytest.approx(1000 * entry.seeing, abs=0.5)
                    assert shown["taken"] == pytest.approx(1000 * entry.taken, abs=0.5)
                    assert shown["present"] == rounded(entry.present, 3)
                # The others differ from what was rounded by no more than rounding can.
                rest = sum(entry.change for entry in ledger.entries[len(interval["named"]) :])
                assert interval["rest"] == pytest.approx(1000 * rest, abs=4.5)

    def test_pairs_and_images_add_up(self, run, data):
        labels, confidence = np.array(run.array("labels")), np.array(run.array("confidence"), np.float64)
        for pair, shown in zip(data["pairs"], data["ledger"]["pairs"], strict=True):
            for label, course in zip((pair["a"], pair["b"]), shown["sides"], strict=True):
                gap = (confidence[:, labels == label, pair["a"]] - confidence[:, labels == label, pair["b"]]).mean(1)
                assert course["confidence"] == np.rint(1000 * gap).tolist()
                assert course["bias"] is None
                self.adds_up(course)
            uncertain = {k for k, _, _ in pair["uncertain"]}
            assert {k for k, _, score in shown["wavering"] if score is not None} <= uncertain
        assert {int(row) for row in data["ledger"]["images"]} == set(data["images"]["rows"])
        for row, course in data["ledger"]["images"].items():
            assert course["confidence"][-1] == round(1000 * confidence[-1, int(row), labels[int(row)]])
            self.adds_up(course)

    def test_a_blank_image_is_named_where_it_has_much(self):
        own, blank = np.array([1.0, 1.0, 0.01, -2.0]), np.array([0.24, 0.26, 0.04, 1.0])
        assert ledgers.blank_shares(own, blank, [0, 1, 2, 3]) == [[1, 1.0, 0.26], [3, -2.0, 1.0]]
        assert ledgers.blank_shares(own, blank, [0, 2]) == []

    def test_course_folds_what_it_does_not_name(self):
        changes = np.array([[0.1, 0.0004, -0.2, 0.01], [0.0, 0.0004, 0.3, 0.0]])
        course = ledgers.course([100, 15, 320], changes, np.array([0.0046, 0.0046]), most=2)
        assert (course["prototypes"], course["others"]) == ([2, 0], 2)
        assert course["changes"] == [[-200, 300], [100, 0]]
        assert course["bias"] == [5, 5]
        self.adds_up(course)

    def test_plain_words(self, run, parsed):
        found = run.arrays("ledger")
        words = " ".join(parsed.texts)
        assert "What is exact" in words
        assert f"{100 * found['path_difference'][-1]:.1f} % over steps {run.steps[-3]} to {run.steps[-1]}" in words
        assert "all of one training run" in words
        assert "Nothing in the pixels was altered here" in words

    def test_without_a_linear_head_exact_is_not_said(self):
        arrays = {"residual": np.array([2e-7, 4e-6]), "largest_logit": np.array([1.0, 9.0])}
        arrays |= {"path_difference": np.array([0.123])}
        near = str(findings.ledger(arrays | {"path_error": np.array([0, 0.05, 0.01])}, (0, 3, 9), 7, 7))
        far = str(findings.ledger(arrays | {"path_error": np.array([0, 0.06, 0.01])}, (0, 3, 9), 7, 7))
        some = findings.ledger(arrays | {"path_error": np.array([0, 0.05, 0.01])}, (0, 3, 9), 4, 7)
        assert "4 of the 7 training images" in some[0][1]
        assert str(some[1:]) == near
        assert "exact" in near
        assert "0.000004" in near
        assert "exact" not in far
        assert "6 % of their spread" in far
        assert "12.3 % over steps 0 to 9" in far

    def test_agreement_of_regression_and_accounts(self, run, parsed):
        found = ledgers.agreements(run)
        measured = [each.gain is not None for each in run.explanation.intervals]
        assert [each[0] is not None for each in found] == measured
        assert all(-1 <= rank <= 1 and 0 <= sign <= 1 for rank, sign in found if rank is not None)
        for interval, (rank, sign) in zip(run.explanation.intervals, found, strict=True):
            row = [f"{interval.from_step}–{interval.to_step}"]
            row += ["–", "–"] if rank is None else [f"{rank:+.2f}", f"{100 * sign:.0f} %"]
            assert row in parsed.cells

    def test_a_run_without_a_ledger_is_shown_without(self, run, tmp_path):
        older = tmp_path / "run"
        shutil.copytree(run.path, older)
        opened = Run(older)
        opened.splits = run.splits
        for name in ("ledger.npz", "account.npy"):
            (older / name).unlink()
        assert page_ledger(opened, [1]) is None
        assert content.overview(opened)["ledger"] is None


class TestLookHereFirst:
    def test_the_first_five_come_first_with_why(self, run, parsed):
        text = " ".join(" ".join(parsed.texts).split())
        places = [text.index(f"Prototype {each.prototype} {findings.looks(each)}") for each in run.ranking[:FIRST]]
        assert places == sorted(places)
        assert text.index("Look here first", text.index("How a classifier")) < places[0]
        assert places[-1] < text.index("How to read this report")
        assert findings.order(run.ranking) in text

    def test_each_in_its_images_with_true_frames(self, run, parsed):
        shown = [attributes for tag, attributes in parsed.tags if tag == "img"][:FIRST]
        size = pictures.tile_size(run.dataset.images.shape[1:], gallery.LOOK)
        final = run.array("intensity")[-1]
        side = crop_size(run.model, run.dataset.images.shape[1:])
        for each, attributes in zip(run.ranking[:FIRST], shown, strict=True):
            assert attributes["alt"].startswith(f"Where prototype {each.prototype} is strongest, framed in images of “")
            area = (np.array(run.array("assignments")) == each.prototype).sum((1, 2))
            rows = story.strongest_members(area, final[:, each.prototype], gallery.LOOKS)
            crops = run.crops(each.prototype, gallery.LOOKS)
            np.testing.assert_array_equal(crops.rows, rows)
            picture = Image.open(io.BytesIO(base64.b64decode(attributes["src"].split(",")[1]))).convert("RGB")
            for number, (row, location) in enumerate(zip(rows, crops.locations, strict=True)):
                tile = pictures.framed(run.dataset.images[row], size, location, run.model.places, side)
                left = number * (size[0] + pictures.GAP)
                found = picture.crop((left, 0, left + size[0], size[1]))
                # The picture may be lossy; another image, or another frame, is another matter.
                assert np.abs(np.asarray(found, int) - np.asarray(tile, int)).mean() < 12

    def test_cards_stand_in_the_same_order_with_the_same_words(self, run, data):
        assert data["ranked"] == [each.prototype for each in run.ranking]
        classes = run.explanation.classes
        for each in run.ranking:
            shown = data["prototypes"][each.prototype]
            assert shown["words"] == findings.looks(each)
            assert shown["look"] == [each.rank, classes.index(each.name), rounded(each.evidence)]

    @pytest.mark.parametrize(
        ("alarms", "words"), [((), None), ((Alarm(3, "evidence", 2.5, None),), "gives 2.5 times the evidence")]
    )
    def test_an_alarm_where_there_is_one(self, run, monkeypatch, alarms, words):
        monkeypatch.setattr(Run, "alarms", alarms)
        found = content.first_look(run)
        assert len(found["alarms"]) == len(alarms)
        assert words is None or words in found["alarms"][0]


class TestFindings:
    def explanation(self, *intervals):
        records = [Interval(from_step=t, to_step=t + 1, **INTERVAL | each) for t, each in enumerate(intervals)]
        classes = (ClassExplanation("x", 60, (), (), ()), ClassExplanation("y", 40, (), (), ()))
        return Explanation(
            1, ("x", "y"), tuple(range(len(records) + 1)), "class", "samples", (), classes, (), tuple(records)
        )

    def words(self, *intervals):
        return " ".join(findings.fidelity(self.explanation(*intervals)))

    def test_nothing_measured(self):
        assert "nothing may be concluded" in self.words(UNMEASURED, UNMEASURED)

    def test_chance(self):
        assert "do not support any statement" in self.words({"above_null": False}, UNMEASURED)

    def test_above_null_and_above_total(self):
        words = self.words({"gain": 0.2}, {"gain": 0.4}, UNMEASURED)
        assert "2 of 3 intervals" in words
        assert "In all 2" in words
        assert "gain 0.20 to 0.40" in words
        assert "also explain more than the change of total saliency" in words

    def test_total_saliency_tells_as_much(self):
        words = self.words({}, {"gain_total": -0.1}, {"above_null": False})
        assert "In 2 of these 3" in words
        assert "In 1 of these 2, total saliency" in words

    def test_warnings(self):
        explanation = self.explanation({"noise": 31}, {"noise": 30}, {"above_null": False}, UNMEASURED)
        plain = [sentence for sentence in findings.warnings(explanation, (1, 1), np.array([0.0, 0.12]))]
        # 60 of the 100 samples changed: 31 is more than half of them, 30 is not.
        assert any("in interval 0–1." in sentence and "noise" in sentence for sentence in plain)
        assert any("single location" in sentence for sentence in plain)
        assert any("not above its null in interval 2–3" in sentence for sentence in plain)
        assert any("measure a fit in interval 3–4" in sentence for sentence in plain)
        assert any("up to 12 %" in sentence for sentence in plain)
        assert findings.warnings(self.explanation({}), (7, 7), np.zeros(2)) == []

    @pytest.mark.parametrize(
        ("low", "high", "verdict"),
        [
            (0.001, 0.01, "beat the"),
            (-0.02, -0.01, "did worse"),
            (-0.01, 0.01, "did not beat"),
            (None, None, "cannot tell"),
        ],
    )
    def test_refinement(self, low, high, verdict):
        entry = {"applicable": True}
        row = {"strategy": "curated", "against": "random", "accuracy": {"mean": 0.001, "low": low, "high": high}}
        table = {"pair": ["x", "y"], "seeds": 2, "strategies": {"curated": entry}, "differences": [row]}
        first, sentence, _ = findings.refinement(table)
        assert verdict in sentence
        assert ("Curation beat" in first) == (verdict == "beat the")

    def test_without_a_control(self):
        table = {"pair": ["x", "y"], "seeds": 2, "strategies": {"curated": {"applicable": True}}, "differences": []}
        assert "open" in findings.refinement(table)[0]


def test_without_intervals_a_chart_draws_none():
    row = {"strategy": "curated", "against": "random", "mean": 0.1, "low": None, "high": None}
    fields = [layer["encoding"]["x"]["field"] for layer in charts.refinement([row], ["curated"])["layer"]]
    assert fields == ["zero", "mean"]
    both = [row, row | {"strategy": "hard", "low": 0.0, "high": 0.2}]
    layers = charts.refinement(both, ["curated", "hard"])["layer"]
    assert [layer["encoding"]["x"]["field"] for layer in layers] == ["zero", "low", "mean"]
    assert [values["strategy"] for values in layers[1]["data"]["values"]] == ["hard"]


class TestExamples:
    def test_the_telling_ones(self):
        rng = np.random.default_rng(0)
        own = rng.uniform(0.4, 0.6, (3, 200))
        labels = np.arange(200) % 2
        own[-1, 17] = 0.01
        own[:, 30] = (0, 1, 0.5)
        chosen = examples.choose_images(own, labels, np.array([3, 5]), rng)
        assert chosen.confused[0] == 17
        assert chosen.changed[0] == 30
        assert list(chosen.left_out) == [3, 5]
        assert list(np.bincount(labels[chosen.random])) == [6, 6]

    def test_groups(self):
        labels = np.array([0] * 8 + [1] * 4)
        groups = np.array([[0, 0, 0, 1, 1, -1, -2, -2, 0, 0, 0, 0]])
        own = np.zeros((2, 12))
        own[1, :3] = 0.5
        found = examples.choose_groups(groups, labels, own, 2, np.random.default_rng(0))
        assert [(group.id, group.size, group.change) for group in found[0][0]] == [(0, 3, 0.5), (1, 2, 0), (-1, 1, 0)]
        assert [(group.id, sorted(group.members)) for group in found[1][0]] == [(0, [8, 9, 10, 11])]

    def test_page_stays_small_with_many_classes(self):
        labels = np.arange(2000) % 200
        groups = np.tile(np.arange(2000) // 200, (8, 1))
        found = examples.choose_groups(groups, labels, np.zeros((9, 2000)), 200, np.random.default_rng(0))
        tiles = sum(len(group.members) for each in found for of_interval in each for group in of_interval)
        assert tiles <= examples.GROUP_TILES

    def test_of_a_thousand_classes_groups_have_members_where_their_confidence_moved_most(self):
        rng = np.random.default_rng(0)
        labels, groups = np.arange(4000) % 1000, rng.integers(-1, 2, (7, 4000))
        own = np.cumsum(rng.uniform(0, 0.1, (8, 4000)), 0)
        found = examples.choose_groups(groups, labels, own, 1000, rng)
        assert sum(len(group.members) for of in found for interval in of for group in interval) <= examples.GROUP_TILES
        for label, of_class in enumerate(found):
            shown = {t for t, interval in enumerate(of_class) if any(len(group.members) for group in interval)}
            assert shown == {int(np.abs(np.diff(own[:, labels == label], axis=0).sum(1)).argmax())}
            assert all(group.size for interval in of_class for group in interval)

    def test_images_of_a_thousand_classes(self):
        rng = np.random.default_rng(0)
        labels, own = np.arange(4000) % 1000, rng.uniform(0, 1, (8, 4000))
        chosen = examples.choose_images(own, labels, np.arange(50), rng)
        drawn = labels[chosen.random]
        assert len(np.unique(drawn)) == len(drawn) == examples.RANDOM_OF_MANY
        assert drawn.min() == 0
        assert drawn.max() == 999
        assert len(chosen.rows()) <= 2 * examples.MOST_OF_MANY + examples.LEFT_OUT + examples.RANDOM_OF_MANY

    def test_of_many_classes_the_largest_contributions_are_held(self):
        own = np.random.default_rng(0).normal(size=(30, 200))
        held = gallery.shown_contributions(own)
        assert held.sum() <= 30 * gallery.LARGEST_OF_PROTOTYPE + 200 * gallery.LARGEST_OF_CLASS
        for k in range(30):
            assert held[k][np.argsort(-abs(own[k]))[: gallery.LARGEST_OF_PROTOTYPE]].all()
        for c in range(200):
            assert held[np.argsort(-abs(own[:, c]))[: gallery.LARGEST_OF_CLASS], c].all()
        assert gallery.shown_contributions(own[:, :64]).all()


class TestPictures:
    def test_tile_keeps_proportions_and_pixels(self):
        size = pictures.tile_size((4, 8, 1), 16)
        assert size == (16, 8)
        pixels = np.arange(32, dtype=np.uint8).reshape(4, 8, 1) * 8
        enlarged = np.array(pictures.tile(pixels, size))
        np.testing.assert_array_equal(enlarged[..., 0], pixels[..., 0].repeat(2, 0).repeat(2, 1))

    def test_frames_stand_where_the_location_is(self):
        places = Places(Span(0, 2, 5), Span(0, 2, 3))
        picture = np.array(pictures.framed(np.zeros((8, 8, 1), np.uint8), (80, 80), np.array([1, 2]), places, 1))
        rows, columns = np.nonzero((picture == pictures.FRAME).all(-1))
        # Location (1, 2) is centred on pixel (2, 4), and sees rows 0 to 4 and columns 3 to 5.
        assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (20, 30, 40, 50)
        rows, columns = np.nonzero((picture == pictures.SEEN).all(-1))
        assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (0, 50, 30, 60)

    def test_a_frame_is_around_the_pixels_of_its_crop(self):
        """A bright dot on the centre of a location is in the middle of its crop and of its frame."""
        places, location = Places(Span(0, 2, 13), Span(0, 2, 13)), np.array([2, 1])
        pixels = np.zeros((8, 8, 1), np.uint8)
        pixels[4, 2] = 255
        assert np.argwhere(crops_at(pixels[None], location[None], places, 3)[0, ..., 0]).tolist() == [[1, 1]]
        picture = np.array(pictures.framed(pixels, (80, 80), location, places, 3))
        rows, columns = np.nonzero((picture == pictures.FRAME).all(-1))
        assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (30, 60, 10, 40)
        assert (picture[40:50, 20:30] == 255).all()
        (sheet,) = contact_sheet.framed(pixels[None], location[None], places, 3)
        rows, columns = np.nonzero((np.array(sheet) == pictures.FRAME).all(-1))
        # Seven pixels of the tile for one of the image.
        assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (21, 42, 7, 28)

    def test_overlay_is_stronger_where_saliency_is(self):
        plain = pictures.tile(np.full((4, 4, 1), 128, np.uint8), (40, 40))
        saliency = np.array([[0.0, 0.0], [0.0, 2.0]])
        picture = np.array(pictures.overlaid(plain, saliency, 2.0, CELLS, (4, 4)))
        assert tuple(picture[0, 0]) == (128, 128, 128)
        assert np.abs(picture[-1, -1] - np.array(pictures.HEAT)).max() < 25
        none = np.array(pictures.overlaid(plain, 0 * saliency, 0.0, CELLS, (4, 4)))
        np.testing.assert_array_equal(none, np.array(plain))

    def test_overlay_and_cells_are_centred_where_locations_are(self):
        """Of a map on every second pixel, from the first on: its last location is not on the last pixel."""
        plain = pictures.tile(np.full((9, 9, 1), 128, np.uint8), (90, 90))
        places, saliency = Places(Span(0, 2, 5), Span(0, 2, 5)), np.zeros((5, 5))
        saliency[2, 3] = 1
        strength = np.abs(np.int16(pictures.overlaid(plain, saliency, 1.0, places, (9, 9))) - 128).sum(-1)
        rows, columns = np.nonzero(strength == strength.max())
        # Pixel 4 is rows 40 to 49 of the tile, pixel 6 columns 60 to 69.
        assert (rows.mean(), columns.mean()) == (44.5, 64.5)
        cells = np.array(pictures.outlined(plain, np.int16(saliency), [1], places, (9, 9)))
        rows, columns = np.nonzero((cells == pictures.COLOURS[0]).all(-1))
        assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (35, 55, 55, 75)

    def test_cells(self):
        plain = pictures.tile(np.zeros((4, 4, 1), np.uint8), (80, 80))
        picture = np.array(pictures.outlined(plain, np.array([[7, 0], [0, 0]]), [7], CELLS, (4, 4)))
        assert tuple(picture[0, 0]) == pictures.COLOURS[0]
        assert not picture[45:, 45:].any()

    def test_data_uri(self):
        picture = Image.new("RGB", (5, 3), (9, 9, 9))
        uri = pictures.data_uri(picture)
        assert Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size == (5, 3)


class TestRun:
    def test_crops(self, run):
        crops = run.crops(prototype=2, n=5)
        assignments, intensity = run.array("assignments"), run.array("intensity")[-1, :, 2]
        side = crop_size(run.model, run.dataset.images.shape[1:])
        assert (crops.images.shape, crops.images.dtype) == ((5, side, side, 1), np.uint8)
        np.testing.assert_array_equal(crops.intensity, np.sort(intensity)[::-1][:5])
        np.testing.assert_array_equal(crops.intensity, intensity[crops.rows])
        for image, row, (y, x) in zip(crops.images, crops.rows, crops.locations, strict=True):
            assert assignments[row, y, x] == 2
            # Padded by as much on either side, location (y, x) is centred on pixel (2y, 2x).
            padded = np.pad(run.dataset.images[row], ((8, 8), (8, 8), (0, 0)), mode="edge")
            top, left = 2 * y - (side - 1) // 2 + 8, 2 * x - (side - 1) // 2 + 8
            np.testing.assert_array_equal(image, padded[top : top + side, left : left + side])

    @pytest.mark.parametrize(("prototype", "n"), [(-1, 3), (8, 3), (2, 0)])
    def test_crops_refused(self, run, prototype, n):
        with pytest.raises(InputError, match="allowed") as error:
            run.crops(prototype, n)
        one_line(error)

    def test_story(self, run):
        curated = run.arrays("curated")
        row = int(curated["left_out"][0])
        told = run.story(image=row)
        assert told.left_out
        assert told.label in (HYPHENS, CONTROL)
        assert str(curated["prototypes"][0]) in told.reason
        np.testing.assert_array_equal(told.confidence, run.array("confidence")[:, row])
        assert sum(each.share for each in told.prototypes) == pytest.approx(1)
        assert sum(each.area for each in told.prototypes) == pytest.approx(1)
        assert [each.share for each in told.prototypes] == sorted(
            (each.share for each in told.prototypes), reverse=True
        )
        other = run.story(int(np.flatnonzero(run.array("labels") == 1)[0]))
        assert not other.left_out
        assert "only images of" in other.reason

    def test_kept_images_of_the_pair_hold_no_curated_prototype(self, run):
        curated, labels = run.arrays("curated"), run.array("labels")
        kept = np.setdiff1d(np.flatnonzero(np.isin(labels, curated["pair"])), curated["left_out"])
        for row in kept[:5]:
            told = run.story(int(row))
            assert told.reason.startswith("Kept: no prototype that wavered")
            assert all(each.share < 0.15 for each in told.prototypes if each.prototype in curated["prototypes"])

    @pytest.mark.parametrize(
        ("share", "accepted", "skipped", "expected"),
        [
            ((0.5, 0.5), [], [], "no prototype is uncertain"),
            ((0.5, 0.5), [], [1], "but leaving out all"),
            ((0.9, 0.1), [1], [], "no prototype that wavered"),
        ],
    )
    def test_reasons(self, share, accepted, skipped, expected):
        curated = {"pair": [0, 1], "prototypes": accepted, "skipped": skipped, "left_out": []}
        left_out, reason = story._verdict(("x", "y"), 0, 5, np.array(share), curated)
        assert not left_out
        assert expected in reason

    def test_story_refused(self, run):
        with pytest.raises(InputError, match="394; allowed: 0 to 393") as error:
            run.story(394)
        one_line(error)

    @pytest.mark.parametrize("name", tables.TABLES)
    def test_tables(self, run, name):
        frame = pytest.importorskip("pandas").DataFrame(run.records(name))
        assert list(run.to_frame(name).columns) == list(frame.columns)
        assert run.to_frame(name).equals(frame)

    def test_tables_hold_the_figures(self, run):
        rows = run.records("intervals")
        assert [row["gain"] for row in rows] == [each.gain for each in run.explanation.intervals]
        assert len(run.records("pairs")) == 45
        wavering = {(row["a"], row["b"], row["prototype"]) for row in run.records("uncertain")}
        for pair in run.explanation.pairs:
            of_pair = {k for a, b, k in wavering if (a, b) == (pair.a, pair.b)}
            assert of_pair == {each.prototype for each in pair.uncertain or ()}

    def test_unknown_table(self, run):
        with pytest.raises(InputError, match="unknown table 'figures'") as error:
            run.to_frame("figures")
        one_line(error)

    def test_without_pandas(self, run, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "pandas", None)
        with pytest.raises(InputError, match="pip install pandas") as error:
            run.to_frame("pairs")
        one_line(error)

    def test_opening_a_run_is_light(self, run):
        import subprocess
        import sys

        code = (
            "import sys; from i2x_jax import Run; run = Run(sys.argv[1]); run.story(3); "
            "run.explanation.pair('1', '2'); assert 'jax' not in sys.modules, 'jax'"
        )
        subprocess.run([sys.executable, "-c", code, str(run.path)], check=True)
