"""The programs that show what a choice of checkpoints, a sample of locations or a revision makes of a run.

Each in a process of its own: their flags have names in common.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
from programs import ROOT, environment

from i2x_jax import Run
from i2x_jax.training.checkpoints import select_steps

pytestmark = pytest.mark.slow

FIGURES = """
import numpy as np
from sklearn.metrics import adjusted_rand_score
from experiments.benchmarks.checkpoints import fine_difference, path_figures

found = path_figures(np.array([0.5, 0.1]), np.array([0.2, 0.0, 0.0]))
assert (found["weighted"], found["mean"]) == (0.5, 0.3), found
found = path_figures(np.array([0.5, 0.1]), np.array([0.1, 0.1, 0.5]))
assert np.isclose(found["weighted"], (0.2 * 0.5 + 0.6 * 0.1) / 0.8), found
# Three fine intervals, of which the account at steps 0, 2, 3 has made two.
fine, steps = np.array([[[1.0, 2.0]], [[1.0, -2.0]], [[0.5, 0.5]]]), np.array([0, 1, 2, 3])
assert fine_difference(np.array([[[2.0, 0.0]], [[0.5, 0.5]]]), np.array([0, 2, 3]), fine, steps) == 0
assert fine_difference(np.array([[[1.5, 0.5]], [[0.5, 0.5]]]), np.array([0, 2, 3]), fine, steps) == 1 / 3
"""
RATIOS = """
from experiments.benchmarks.revisions import summary

rounds = [
    {side: dict.fromkeys(("wall", "user", "peak"), value) for side, value in (("before", before), ("after", after))}
    for before, after in ((2.0, 1.0), (4.0, 4.0), (3.0, 6.0))
]
assert summary(rounds)["wall"] == {"before": 3.0, "after": 4.0, "ratio": 4 / 3, "spread": [0.5, 2.0]}
"""
SMALL = (
    *("--config.data.max_train=128", "--config.model.width=4", "--config.train.epochs=4"),
    *("--config.train.batch_size=32", "--config.train.num_checkpoints=4"),
    *("--config.explain.num_prototypes=4", "--config.explain.pca_dims=4", "--config.explain.max_pairs=1"),
)


def python(base, *arguments):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(base))


@pytest.mark.parametrize("code", [FIGURES, RATIOS], ids=["path figures", "ratios"])
def test_what_is_computed(base, code):
    done = python(base, "-c", code)
    assert done.returncode == 0, done.stderr


def test_choices_of_checkpoints_are_compared_on_one_training(base, tmp_path):
    path = tmp_path / "figures.json"
    done = python(base, "experiments/benchmarks/checkpoints.py", *SMALL, "--seeds=1", f"--json={path}")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(path.read_text())["seeds"]
    log, moved = (found["spacings"][name] for name in ("log", "moved"))
    assert log["steps"] == list(select_steps("log", 4, 16))
    assert set(moved["steps"]) < set(select_steps("moved", 4, 16))
    for figures in (log, moved):
        assert (len(figures["steps"]), len(figures["moved"]), len(figures["path_difference"])) == (4, 3, 2)
        assert 0 < figures["fine"] < 1
        assert min(figures["path_difference"]) <= figures["weighted"] <= max(figures["path_difference"])
    # As equal parts as there can be on these images, or nearly: the choice was made on a probe of them.
    assert np.var(moved["moved"]) < np.var(log["moved"])
    assert done.stdout.count("moved") == 2


def test_a_fit_on_a_sample_is_held_against_fits_on_all(base, finished, tmp_path):
    path = tmp_path / "figures.json"
    done = python(base, "experiments/benchmarks/sampled_ledger.py", f"--workdir={finished}", f"--json={path}")
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    # 4,096 a prototype are all that these few images have: the same fit.
    assert found["sampled"] == found["locations"] == Run(finished).array("assignments").size
    same = found["fits"]["sample"]
    assert (same["rand"], same["rand_by_evidence"], same["ledger_whole"], same["ledger_by_interval"]) == (1, 1, 0, 0)
    other = found["fits"]["all, other starts"]
    assert other["rand"] <= 1
    assert all(row["same_confidence"] for row in found["fits"].values())


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout")
def test_two_revisions_are_run_in_turns(base, tmp_path):
    path = tmp_path / "figures.json"
    arguments = ("--before=HEAD", "--repeats=1", f"--json={path}", "--", *SMALL)
    done = python(base, "experiments/benchmarks/revisions.py", *arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert found["commits"]["before"] == found["commits"]["after"]
    assert found["differing"] == {}
    (figures,) = found["rounds"]
    for side in ("before", "after"):
        assert 0 < figures[side]["user"]
        assert 5e7 < figures[side]["peak"] < 5e9
    assert "run.py --stage=explain --config.data.max_train=128" in done.stdout


@pytest.mark.parametrize(
    ("program", "arguments", "words"),
    [
        ("revisions", ("--before=nonesuch",), "'nonesuch' is no revision of"),
        ("revisions", ("--before=HEAD", "--", "--workdir=x"), "--workdir=x has no meaning here"),
        ("checkpoints", ("--workdir=x",), "--workdir has no meaning here"),
        ("checkpoints", ("--config.train.num_checkpoints=2",), "train.num_checkpoints is 2; allowed here: at least 3"),
        ("sampled_ledger", ("--workdir=/nonesuch",), "/nonesuch is not a run directory"),
    ],
)
def test_what_cannot_be_used_gets_one_line(base, program, arguments, words):
    done = python(base, f"experiments/benchmarks/{program}.py", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{program}.py: error: ")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
