"""The programs that hold explanations against known answers: figures by hand, and small cases to the table."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest
from programs import ROOT, environment

from experiments.benchmarks import truth_cues, truth_parts, truth_tables
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


@pytest.mark.slow
def test_small_cases_are_measured_once_and_told_in_tables(base, tmp_path):
    program = ROOT / "experiments/benchmarks/truth.py"
    shared = (f"--folder={tmp_path}", "--seeds=3", "--epochs=1")
    cues = (program, "--measure=cues", "--data=digits", "--train=600", "--held=100", "--plants=tag,twin", *shared)
    for arguments, title in (
        (cues, "digits, tag 0.98"),
        ((*cues[:1], "--measure=runs", *cues[2:5], *shared), "deletion in the pixels"),
        ((program, "--measure=parts", "--network=cnn", *shared), "cnn, seeds 3"),
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
