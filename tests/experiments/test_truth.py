"""The programs that hold explanations against known answers: figures by hand, and small cases to the table."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest
from programs import ROOT, environment

from experiments.benchmarks import truth_cues, truth_items, truth_parts, truth_tables
from i2x_jax import parts
from i2x_jax.models.places import Places, Span

SPAN = Span(0, 4, 21)


def run_with(h, w):
    model = types.SimpleNamespace(places=Places(SPAN, SPAN), feature_shape=(h, w, 5))
    return types.SimpleNamespace(model=model)


class TestCues:
    def test_a_location_is_on_the_cue_where_its_square_holds_some_of_it(self):
        masks = np.zeros((2, 16, 16), bool)
        masks[0, 4:6, 10] = True
        for reach in (0.5, 1.0):
            expected = np.zeros((2, 4, 4), bool)
            for i in range(4):
                for j in range(4):
                    low, far = np.array([4 * i, 4 * j]) - 4 * reach, np.array([4 * i, 4 * j]) + 4 * reach
                    held = [all(low <= pixel) and all(pixel < far) for pixel in np.argwhere(masks[0])]
                    expected[0, i, j] = any(held)
            assert expected.any()
            np.testing.assert_array_equal(truth_cues.on_cue(masks, run_with(4, 4), reach), expected)

    def test_purity_recall_and_class_by_hand(self):
        assignments = np.array([[[0, 1]], [[0, 1]], [[2, 1]]])
        cue = np.array([[[True, False]], [[True, False]], [[False, True]]])
        found = truth_cues.standing(assignments, cue, np.array([1, 1, 0]), 4)
        np.testing.assert_allclose(found.purity, [1, 1 / 3, 0, 0])
        np.testing.assert_allclose(found.recall, [2 / 3, 1 / 3, 0, 0])
        assert found.label[:2].tolist() == [1, 0]

    def test_noise_is_as_pure_as_the_cue_is_large(self):
        rng = np.random.default_rng(0)
        found = truth_cues.standing(
            rng.integers(0, 4, (500, 4, 4)), rng.uniform(size=(500, 4, 4)) < 0.2, rng.integers(0, 3, 500), 4
        )
        np.testing.assert_allclose(found.purity, 0.2, atol=0.04)

    def test_the_best_rank_shares_ties(self):
        score, who = np.array([3.0, 5.0, 5.0, 1.0]), np.array([True, False, False, True])
        assert truth_cues.rank_of(score, who) == 3
        assert truth_cues.rank_of(score, ~who) == 1.5
        assert truth_cues.rank_of(score, who & False) is None


class TestParts:
    scenes = parts.scenes("test", 3, 20)

    def test_boxes_hold_what_is_drawn_in_them(self):
        bare = self.scenes._replace(kinds=np.full_like(self.scenes.kinds, -1))
        # Taken apart, what is drawn of an item lies in its box.
        drawn = np.float64(parts.draw(self.scenes)[..., 0]) - parts.draw(bare)[..., 0]
        sums = truth_parts.in_boxes(drawn, self.scenes.corners)
        np.testing.assert_allclose(sums.sum(1), drawn.sum((1, 2)))
        for item in range(parts.ITEMS):
            without = np.float64(parts.draw(parts.without(self.scenes, item))[..., 0]) - parts.draw(bare)[..., 0]
            np.testing.assert_allclose(sums[:, item], drawn.sum((1, 2)) - without.sum((1, 2)))

    def test_prototypes_stand_on_the_item_that_holds_half_of_them(self):
        corners = np.array([[[0, 0], [0, 20], [20, 0], [20, 20], [10, 10]]])
        assignments = np.zeros((1, 8, 8), int)  # prototype 0: the ground, most of it in no box
        assignments[0, 0, 0] = assignments[0, 1, 1] = 1  # in the first box
        assignments[0, 6, 6] = assignments[0, 0, 6] = 2  # half in the fourth, half in the second: on both
        seen = truth_parts.Seen(np.zeros((1, 32, 32, 1), np.uint8), corners, np.zeros((1, 2)), assignments)
        found = truth_parts.standing(run_with(8, 8), seen, 4)[0]
        assert found[1].tolist() == [True, False, False, False, False]
        assert not found[0].any()
        assert not found[3].any()
        assert found[2].tolist() == [False, True, False, True, False]

    def test_locations_go_to_the_nearest_item_within_reach(self):
        corners = np.array([[[0, 0], [0, 20], [20, 0], [20, 20], [60, 60]]])
        seen = truth_parts.Seen(np.zeros((1, 32, 32, 1), np.uint8), corners, None, None)
        found = truth_parts.nearest(run_with(8, 8), seen)[0]
        assert found[0, 0] == 0
        assert found[6, 6] == 3
        assert found[3, 3] == -1  # (12, 12) is 12.7 from the nearest middle

    def test_figures_are_ideal_for_the_truth_and_nothing_for_noise(self):
        drops, noise = np.random.default_rng(0).normal(size=(2, 300, 5))
        ideal = truth_parts.figures(drops, drops)
        assert np.allclose([ideal[name] for name in ("pooled", "class_parts", "r2", "foreign_sign")], 1)
        found = truth_parts.figures(noise, drops)
        assert abs(found["pooled"]) < 0.08
        assert abs(found["class_parts"]) < 0.15
        assert found["r2"] < 0
        assert abs(found["foreign_sign"] - 0.5) < 0.1
        assert truth_parts.figures(noise, drops, logits=False)["r2"] is None


class TestItems:
    labels = np.array([0, 0, 1])
    kinds = np.array([[2, 6, 7, 3, 8], [2, 6, 7, 1, 9], [3, 5, 6, 2, 8]])

    def test_the_first_three_are_kept_and_removed(self):
        claim = np.array([[5, 4, 3, -9, 0], [0, 1, 2, 3, 4], [5, 4, 3, 2, 1]])
        predicted = np.zeros((3, 32), int)
        predicted[0, 0b11000] = 1  # without the class parts the first scene is something else
        predicted[1, 0b11100] = 2  # and so is the second with only the last three
        found = truth_items.preserved(claim, predicted)
        assert found == {"kept": pytest.approx(2 / 3), "removed": pytest.approx(1 / 3)}

    def test_what_is_on_the_neutral_shape_is_a_share_of_sizes(self):
        claim = np.array([[1, -1, 1, -1, -4], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]])
        assert truth_items.distracted(claim) == pytest.approx((0.5 + 0 + 0) / 3)

    def test_cells_are_means_over_the_scenes_of_a_class(self):
        values = np.arange(15.0).reshape(3, 5)
        cells = truth_items.own_cells(values, self.labels)
        np.testing.assert_allclose(cells[:2], [[2.5, 3.5, 4.5], [10, 11, 12]])
        assert np.isnan(cells[2:]).all()
        assert truth_items.own_table(values, 3 * values + 1, self.labels) == pytest.approx(1)
        assert truth_items.own_table(values, -values, self.labels) == pytest.approx(-1)

    def test_signs_are_those_of_items_of_one_class_alone(self):
        # 0 is (2, 6, 7) and 1 is (3, 5, 6): 6 is of both, and 1, 8 and 9 of neither.
        others = np.array([1, 1, 0])
        signs = np.array([[1, 0, 1, -1, 0], [1, -1, 1, 1, 1], [1, 1, -1, -1, 1]])
        assert truth_items.target_signs(signs, self.kinds, self.labels, others) == 1
        assert truth_items.target_signs(-signs, self.kinds, self.labels, others) == 0

    def test_pairs_are_right_where_the_prototype_stands_on_what_tells_them_apart(self):
        labels = np.repeat(np.arange(10), 2)
        kinds = np.concatenate([parts.CLASSES[labels], np.full((20, 2), 8)], 1)
        # A prototype for each part: it stands on it, and speaks for the classes that have it.
        on = kinds[:, None] == np.arange(8)[:, None]
        owed = np.array([[part in each for each in parts.CLASSES] for part in range(8)])
        owed = on.any(2)[..., None] * np.float64(owed)
        assert truth_items.pairs_right(owed, on, kinds, labels) == 1
        assert truth_items.pairs_right(owed, on & False, kinds, labels) == 0

    def test_half_steps_lie_between_checkpoints(self):
        steps = np.array([0, 1, 3, 7])
        assert truth_items.half_step(np.array([0, 0, 1.0, 1.0]), steps) == pytest.approx(1.5)
        assert truth_items.half_step(np.array([1, 0, 0.5, 1.0]), steps) == pytest.approx(2)
        assert truth_items.half_step(np.array([1, 1, 1, 1.0]), steps) == 0
        assert np.isnan(truth_items.half_step(np.array([0, 0, 0, -1.0]), steps))
        courses = np.array([[0, 0], [0, 1.0], [0, 1.0], [1.0, 1.0]])
        assert truth_items.dated(courses, courses, steps) == {"order": pytest.approx(1), "off": 0}
        assert truth_items.dated(courses, courses[:, ::-1], steps)["order"] == pytest.approx(-1)

    def test_a_late_part_is_absent_until_the_checkpoint_is_written(self, tmp_path):
        scenes = parts.scenes("train", 3, 40)
        part = truth_parts.late_part(3)
        images = truth_parts.Late(scenes, part, tmp_path / "9")
        rows = np.array([3, 1, 20])
        assert (scenes.kinds[rows] == part).any()
        before = images[rows]
        (tmp_path / "9").mkdir()
        np.testing.assert_array_equal(images[rows], parts.draw(scenes.take(rows)))
        changed = (before != images[rows]).any((1, 2, 3))
        np.testing.assert_array_equal(changed, (scenes.kinds[rows] == part).any(1))


@pytest.mark.slow
def test_small_cases_are_measured_once_and_told_in_tables(base, tmp_path):
    program = ROOT / "experiments/benchmarks/truth.py"
    shared = (f"--folder={tmp_path}", "--seeds=3", "--epochs=1")
    cues = (program, "--measure=cues", "--data=digits", "--train=600", "--held=100", "--plants=tag,twin", *shared)
    for arguments, title in (
        (cues, "digits, tag 0.98"),
        ((*cues[:1], "--measure=runs", *cues[2:5], *shared), "deletion in the pixels"),
        ((program, "--measure=parts", "--network=cnn", *shared), "cnn, seeds 3"),
        ((program, "--measure=late", "--network=cnn", *shared), "cnn 3, corner, from step"),
    ):
        measure = arguments[1].partition("=")[2]
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, env=environment(base)
            )
            assert done.returncode == 0, done.stderr
            assert title in done.stdout
        assert (tmp_path / f"{measure}.md").read_text() == done.stdout
        found = json.loads((tmp_path / f"{measure}.json").read_text())
        assert truth_tables.TABLES[measure](found) + "\n" == done.stdout
        assert " s\n" not in done.stderr  # the second time nothing was measured
