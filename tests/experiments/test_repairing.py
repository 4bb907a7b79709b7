"""The programs that show what acting on prototypes restores; each in a process of its own: flags share names."""

import json
import subprocess
import sys

import pytest
from programs import ROOT, environment

pytestmark = pytest.mark.slow

CUES = """
import dataclasses
import types
import numpy as np
from experiments.benchmarks import repair
from i2x_jax.config import from_config_dict
from i2x_jax.models.places import Places, Span

assert np.isclose(repair.restored(0.6, 0.9, 1.0), 0.75)
assert repair.restored(0.6, 0.5, 1.0) < 0

# Four images with maps of 4x4, the cue in the corner. Prototype 2 is on it in three images and once elsewhere,
# prototype 1 in the fourth.
places = np.zeros((4, 4, 4), int)
places[:3, :2, :2], places[3, :2, :2] = 2, 1
places[0, 3, 3] = 2
masks = np.zeros((4, 16, 16), bool)
masks[:, 0, 0] = True
run = types.SimpleNamespace(
    truth=lambda: masks,
    array={"labels": np.array([0, 1, 0, 1]), "assignments": places}.get,
    model=types.SimpleNamespace(places=Places(Span(0, 4, 5), Span(0, 4, 5)), feature_shape=(4, 4, 8)),
    config=from_config_dict({"explain": {"num_prototypes": 4}}),
)
assert repair.named(run, 1) == (2,)
assert repair.named(run, 3) == (2, 1)
run.array = {"labels": np.array([0, 1, 0, 1]), "assignments": places * 0 + 3}.get
assert repair.named(run, 2) == (3,)  # nothing is pure: the purest

tag, colour = (from_config_dict({"data": {"plant": plant, "plant_strength": 0.9}}) for plant in ("tag", "colour"))
assert repair.without_link(tag, 10).data == dataclasses.replace(tag.data, plant="")
assert repair.without_link(colour, 10).data == dataclasses.replace(colour.data, plant_strength=0.1)
"""
PAIRS = """
import types
from experiments.benchmarks import repair_pairs

def table(action, gained, test):
    rows = [{"strategy": action, "against": "plain", "validation_accuracy": {"mean": gained}}]
    return {
        "differences": [*rows, {"strategy": action, "against": "cutout", "validation_accuracy": {"mean": 9}}],
        "before": {"validation_accuracy": 0.5, "accuracy": test},
        "strategies": {"plain": {"mean": {"validation_accuracy": 0.5, "accuracy": test}}},
        "repair": {"covered": 0.1},
    }

found = [
    {"pair": ("a", "b"), "score": "paper", "prototype": 1, "table": table("swap", 0.01, 0.123)},
    {"pair": ("a", "c"), "score": "paper", "prototype": None, "table": None},
    {"pair": ("b", "c"), "score": "paper", "prototype": 2, "table": table("swap", 0.03, 0.123)},
    {"pair": ("a", "b"), "score": "ledger", "prototype": 3, "table": table("swap", -0.01, 0.123)},
]
repair_pairs.ACTIONS = ("swap",)
repair_pairs.acted = lambda *arguments: found
told = repair_pairs.chosen(None, None, 2)
assert list(told["best"].items()) == [("swap, paper", 0.02), ("swap, ledger", -0.01)], told
assert "0.123" not in str(told)  # nothing of the test set

entries = tuple(types.SimpleNamespace(prototype=k, score=score) for k, score in ((4, 0.1), (7, 0.3), (2, 0.2), (9, 0)))
run = types.SimpleNamespace(ledger_of_pair=lambda a, b: entries)
usable = {4, 2}
repair_pairs.repair.allowed_cues = lambda run, ids, mask: ([k for k in ids if k in usable], "")
assert repair_pairs.most_wavering(run, ("a", "b"), "ledger") == 2
usable = {9}
assert repair_pairs.most_wavering(run, ("a", "b"), "ledger") is None
"""
SMALL = (
    *("--config.data.max_train=800", "--config.model.width=8", "--config.train.epochs=16"),
    *("--config.train.num_checkpoints=2", "--config.train.batch_size=32", "--config.explain.max_pairs=1"),
    *("--config.explain.num_prototypes=32", "--config.explain.restarts=1", "--config.explain.pca_dims=16"),
    *("--config.refine.seeds=1", "--config.refine.phases=1"),
)


def python(base, *arguments):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(base))


@pytest.mark.parametrize("code", [CUES, PAIRS], ids=["cues", "pairs"])
def test_what_is_computed_and_chosen(base, code):
    done = python(base, "-c", code)
    assert done.returncode == 0, done.stderr


def test_a_small_cue_is_acted_on_and_held_against_the_twin(base, tmp_path):
    path = tmp_path / "figures.json"
    done = python(base, "experiments/benchmarks/repair.py", *SMALL, "--person=1", f"--json={path}")
    assert done.returncode == 0, done.stderr
    (model,) = json.loads(path.read_text())["models"]
    assert (model["images"], model["harm"], model["repair"]["by"]) == (640, True, "person")
    for name, values in model["after"].items():
        expected = [(after - model["before"]) / (model["twin_tuned"] - model["before"]) for after in values]
        assert model["restored"][name] == expected
        assert f"  {name:<18}{100 * expected[0]:>8.0f}" in done.stdout
    # Far from all of it is restored in so few steps; but more than by training on images as they are.
    best = max(model["restored"][name][0] for name in ("plain", "random_patch", "random_prototype", "cutout"))
    assert model["restored"]["swap"][0] > max(0.1, best)


@pytest.mark.parametrize(
    ("program", "arguments", "words"),
    [
        ("repair.py", ("--config.data.plant=",), "config keys data.plant and refine.pick are '' and 'evidence'"),
        ("repair.py", ("--stage=train",), "--stage has no meaning here"),
        ("repair_pairs.py", (), "--workdir is None"),
    ],
)
def test_what_means_nothing_is_a_line(base, program, arguments, words):
    done = python(base, f"experiments/benchmarks/{program}", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{program}: error: ")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
