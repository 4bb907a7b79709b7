"""Checkpoints by movement: what is kept and what is left on disk, and a training that was stopped at any moment."""

import functools
import itertools
import json
import shutil

import numpy as np
import pytest

from experiments.tools.kill_and_resume import differing
from i2x_jax import Run, config, models
from i2x_jax.pipeline import directory, stages
from i2x_jax.pipeline import train as stage
from i2x_jax.pipeline.train import metrics_of, probe_images
from i2x_jax.results.files import CHECKPOINTS, METRICS
from i2x_jax.training import loop as training
from i2x_jax.training.checkpoints import Checkpoints, choose_by_movement, movement, present_steps, select_steps
from tests.helpers import assert_trees_equal, planted
from tests.programs import kill_when, run, steps_printed

# 24 steps of which 3 are kept, from 12 candidates; between some there is one to go on from.
SETTINGS = {
    "data": {"max_train": 128, "augment": "shift"},
    "model": {"width": 4},
    "train": {"epochs": 6, "batch_size": 32, "checkpoints": "moved", "num_checkpoints": 3, "resume_every": 11},
    "explain": {"num_prototypes": 4, "pca_dims": 4},
}
CANDIDATES = select_steps("moved", 3, 24)
# One model and one optimizer for all runs here: each is compiled once.
CREATE, MAKE_OPTIMIZER = functools.cache(models.create), functools.cache(training.make_optimizer)


class Interrupted(BaseException):
    pass


def train(workdir, stopped=None, **settings):
    """Trains; `stopped` is where something is called for the last time: an owner, a name, and how often it returns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "create", CREATE)
        patch.setattr(training, "make_optimizer", MAKE_OPTIMIZER)
        made = config.from_config_dict(SETTINGS | {"train": SETTINGS["train"] | settings})
        if not stopped:
            stages.run(made, str(workdir), ["train"], quiet=True)
            return
        owner, name, times = stopped
        original, calls = getattr(owner, name), []

        def interrupted(*arguments, **keywords):
            calls.append(name)
            if len(calls) > times:
                raise Interrupted
            return original(*arguments, **keywords)

        patch.setattr(owner, name, interrupted)
        with pytest.raises(Interrupted):
            stages.run(made, str(workdir), ["train"], quiet=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that nothing interrupted, not to be changed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train(workdir)
    return workdir


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """The same training, with all candidates kept."""
    workdir = tmp_path_factory.mktemp("every") / "run"
    train(workdir, checkpoints=CANDIDATES)
    return Run(workdir)


def test_those_are_kept_that_cut_the_movement_of_the_probe(whole, every):
    probe = probe_images(every.dataset, 0)
    confidence = [training.confidence(training.predict(every.model, every.variables(s), probe, 64)) for s in CANDIDATES]
    moved = [movement(*pair) for pair in itertools.pairwise(confidence)]
    assert tuple(every.steps) == CANDIDATES
    chosen = choose_by_movement(CANDIDATES, moved, 3)
    # Not what 'log' would have kept, or this would show nothing.
    assert chosen != select_steps("log", 3, 24)
    assert tuple(Run(whole).steps) == present_steps(whole / CHECKPOINTS) == chosen


def test_the_kept_checkpoints_are_those_of_any_training(whole, every):
    for step in Run(whole).steps:
        assert_trees_equal(Run(whole).variables(step), every.variables(step))


def test_metrics_are_of_the_kept_checkpoints(whole, every):
    lines, steps = Run(whole).metrics, tuple(Run(whole).steps)
    wanted = [(0, "validation")]
    wanted += [(step, split) for step in steps[1:] for split in ("batches", "validation")]
    assert [(line["step"], line["split"]) for line in lines] == [*wanted, (24, "train"), (24, "test")]
    assert [line for line in lines if line["split"] != "batches"] == [
        line for line in every.metrics if line["split"] != "batches" and line["step"] in steps
    ]
    # The mean over the batches of an interval, however many candidates lay in it.
    losses = {line["step"]: line["loss"] for line in every.metrics if line["split"] == "batches"}
    sizes = dict(zip(CANDIDATES[1:], np.diff(CANDIDATES), strict=True))
    for line, before in zip([line for line in lines if line["split"] == "batches"], steps, strict=False):
        between = [step for step in CANDIDATES if before < step <= line["step"]]
        total = sum(losses[step] * sizes[step] for step in between)
        assert line["loss"] == pytest.approx(total / (line["step"] - before), rel=1e-12)


@pytest.fixture(scope="module")
def undecided(tmp_path_factory):
    """A training that was stopped before it chose, not to be changed."""
    workdir = tmp_path_factory.mktemp("undecided") / "run"
    train(workdir, (stage, "choose_by_movement", 0))
    assert present_steps(workdir / CHECKPOINTS) == CANDIDATES
    return workdir


def test_stopped_between_candidates_it_goes_on_and_ends_equal(whole, tmp_path):
    workdir = tmp_path / "run"
    train(workdir, (training, "run_steps", 7))
    assert len(present_steps(workdir / CHECKPOINTS)) == 8
    train(workdir)
    assert differing(workdir, whole) == []


STOPPED = {
    "while it reads candidates": (Checkpoints, "restore_variables", 7),
    "before the metrics are written anew": (directory.RunDirectory, "replace_metrics", 0),
    "before the steps are written": (directory.RunDirectory, "making", 0),
    "before the others are removed": (directory.RunDirectory, "discard_checkpoints", 1),
    "with the steps written": (directory, "read_array", 0),
}


@pytest.mark.parametrize("stopped", STOPPED.values(), ids=STOPPED)
def test_stopped_at_its_end_it_goes_on_and_ends_equal(undecided, whole, tmp_path, stopped):
    workdir = tmp_path / "run"
    shutil.copytree(undecided, workdir)
    train(workdir, stopped)
    assert present_steps(workdir / CHECKPOINTS) == CANDIDATES
    train(workdir)
    assert differing(workdir, whole) == []


def test_the_others_are_removed_even_where_nothing_is_left_to_do(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    # What a training that was killed after it had chosen leaves, half removed.
    (workdir / CHECKPOINTS / "2").mkdir(exist_ok=True)
    assert 2 not in Run(whole).steps
    train(workdir)
    assert differing(workdir, whole) == []


def test_a_kept_checkpoint_that_was_moved_away_is_made_again_from_the_one_before(whole, tmp_path):
    workdir, steps = tmp_path / "run", Run(whole).steps
    shutil.copytree(whole, workdir)
    shutil.rmtree(workdir / CHECKPOINTS / str(steps[2]))
    kept = (workdir / CHECKPOINTS / str(steps[1])).stat().st_mtime_ns
    train(workdir)
    assert (workdir / CHECKPOINTS / str(steps[1])).stat().st_mtime_ns == kept
    # A mean over the batches of an interval is now one sum, not that of the candidates' sums.
    for line, wanted in zip(Run(workdir).metrics, Run(whole).metrics, strict=True):
        assert (line["step"], line["split"]) == (wanted["step"], wanted["split"])
        assert line["loss"] == pytest.approx(wanted["loss"], rel=1e-6)
    shutil.copy(whole / METRICS, workdir / METRICS)
    assert differing(workdir, whole) == []


@pytest.mark.slow
def test_killed_twice_it_goes_on_and_ends_equal(base, tmp_path):
    """SIGKILL, by which nothing is put in order: between two candidates, and when the last one has just appeared."""
    settings = ("--config.train.checkpoints=moved", "--config.train.num_checkpoints=3", "--config.train.epochs=2")
    asked = (*settings, "--stage=train")
    run(base, tmp_path / "whole", *asked)
    candidates = select_steps("moved", 3, int(Run(tmp_path / "whole").steps[-1]))
    assert len(candidates) > 6
    workdir, written = tmp_path / "run", []
    for step in (candidates[4], candidates[-1]):
        kill_when(base, workdir, (workdir / CHECKPOINTS / str(step)).exists, *asked)
        written.append(present_steps(workdir / CHECKPOINTS))
        assert not (workdir / "steps.npy").exists()
    assert candidates[4] in written[0]
    assert candidates[-1] not in written[0]
    assert set(written[1]) == set(candidates)
    assert steps_printed(run(base, workdir, *asked), "done") == ["train"]
    assert differing(workdir, tmp_path / "whole") == []


@pytest.mark.slow
def test_no_more_steps_than_are_kept_are_those_of_log(tmp_path):
    train(tmp_path / "run", epochs=1, num_checkpoints=8)
    assert tuple(Run(tmp_path / "run").steps) == select_steps("log", 8, 4) == (0, 1, 2, 3, 4)


def test_a_probe_is_drawn_with_the_seed():
    dataset = planted(700)
    probes = [probe_images(dataset, seed) for seed in (0, 0, 1)]
    assert [len(set(probe.rows.tolist())) for probe in probes] == [512] * 3
    np.testing.assert_array_equal(probes[0].rows, probes[1].rows)
    assert set(probes[0].rows.tolist()) != set(probes[2].rows.tolist())
    np.testing.assert_array_equal(probes[0].labels, dataset.labels[probes[0].rows])
    assert len(probe_images(planted(30), 0).labels) == 30


class TestMetricsOf:
    @staticmethod
    def line(step, split, loss=0.0):
        return {"step": step, "split": split, "loss": loss, "accuracy": loss / 4}

    @pytest.fixture
    def lines(self):
        batches = [self.line(step, "batches", loss) for step, loss in ((1, 4.0), (3, 1.0), (8, 2.0), (9, 3.0))]
        found = [self.line(0, "validation")]
        for line in batches:
            found += [line, self.line(line["step"], "validation", 7.0)]
        return [*found, self.line(9, "test", 8.0)]

    def test_a_mean_counts_every_batch_once(self, lines):
        found = metrics_of(lines, {0, 8, 9})
        assert [(line["step"], line["split"]) for line in found] == [
            *((0, "validation"), (8, "batches"), (8, "validation")),
            *((9, "batches"), (9, "validation"), (9, "test")),
        ]
        # One step of 4, two of 1, five of 2.
        assert (found[1]["loss"], found[1]["accuracy"]) == (16 / 8, 4 / 8)
        assert found[3:] == lines[-3:]

    def test_kept_lines_are_as_they_were_and_done_twice_it_is_the_same(self, lines):
        assert metrics_of(lines, {0, 1, 3, 8, 9}) == lines
        once = metrics_of(lines, {0, 3, 9})
        assert metrics_of(json.loads(json.dumps(once)), {0, 3, 9}) == once
