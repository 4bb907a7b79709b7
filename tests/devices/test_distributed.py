"""The same numbers on one device, on eight, and in two processes; and what happens when a process is lost."""

import functools
import json
import re
import shutil
import socket
import subprocess
import sys
import time

import jax
import jsonschema
import numpy as np
import pytest
from programs import ROOT, command, environment, kill_when, made_once, run, steps_printed, without
from sklearn.metrics import adjusted_rand_score

from experiments.tools.kill_and_resume import differing
from i2x_jax import Run, config, models
from i2x_jax.config import InputError
from i2x_jax.devices import mesh as distributed
from i2x_jax.pipeline import stages as pipeline
from i2x_jax.pipeline import train as stage_train
from i2x_jax.pipeline.train import resume_step
from i2x_jax.results.files import CHECKPOINTS, METRICS, STEPS
from i2x_jax.schema import load_schema
from i2x_jax.training import loop as training
from i2x_jax.training.checkpoints import present_steps
from tests.helpers import DEEP, one_line

# Relative to the largest value of an array: what rounding does to a sum does not shrink with the sum.
SAME = 1e-5
MINUTES = 300  # seconds; nothing here takes half as long, and a run that hangs must not hang the tests


def eight_devices(base):
    # With fewer cores than devices, XLA's CPU client deadlocks when it runs programs asynchronously, or when all NPROC
    # threads of its pool wait in a collective operation for a device that is left without one.
    return environment(base) | {
        "NPROC": "32",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "0",
    }


def address():
    """A port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def started(commands, folder, variables):
    """The commands as processes at work, whose output goes to files in a folder."""
    processes = []
    for number, arguments in enumerate(commands):
        with (folder / f"{number}.out").open("w") as out, (folder / f"{number}.err").open("w") as err:
            processes.append(subprocess.Popen(arguments, stdout=out, stderr=err, env=variables, cwd=ROOT))
    return processes


def ended(processes, folder):
    """Waits for processes that must all end well, and returns what each printed."""
    try:
        codes = [process.wait(MINUTES) for process in processes]
    finally:
        for process in processes:
            process.kill()
    errors = [(folder / f"{number}.err").read_text() for number in range(len(processes))]
    assert codes == [0] * len(processes), errors
    return [(folder / f"{number}.out").read_text() for number in range(len(processes))]


def two_processes(workdir, *more, count=2):
    """The commands of a run in two processes, or another number of them."""
    joined = [f"--num_processes={count}", f"--coordinator={address()}", *more]
    return [command(workdir, *joined, f"--process_id={number}") for number in range(count)]


def run_in_two(base, workdir, folder, *more, count=2):
    return ended(started(two_processes(workdir, *more, count=count), folder, environment(base)), folder)


@functools.cache
def outputs(base, where):
    """What each process of `programs_on_devices.py` computed: on one device, on eight, or in 2 or 4 processes."""
    folder, several = base / f"programs-{where}", {"two processes": 2, "four processes": 4}.get(where, 0)
    joined = [address(), str(several)]
    parts = [[*joined, str(number)] for number in range(several)] or [[]]
    files = [str(folder / f"{number}.npz") for number in range(len(parts))]

    def make():
        folder.mkdir(exist_ok=True)
        program = [sys.executable, "-m", "tests.programs_on_devices"]
        commands = [[*program, file, *part] for file, part in zip(files, parts, strict=True)]
        variables = eight_devices(base) if where == "eight devices" else environment(base)
        ended(started(commands, folder, variables), folder)

    made_once(base, folder.name, make)
    return [dict(np.load(file, allow_pickle=False)) for file in files]


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_a_result_is_handed_on_when_the_next_has_been_dispatched(count):
    dispatched = []

    def results():
        for number in range(count):
            dispatched.append(number)
            yield number

    for place, number in enumerate(distributed.ahead(results())):
        assert number == place
        assert len(dispatched) == min(place + 2, count)
    assert len(dispatched) == count


class TestPrograms:
    """Each program from identical inputs."""

    @pytest.fixture
    def one(self, base):
        (only,) = outputs(base, "one device")
        return only

    @pytest.fixture(
        params=[
            "two processes",
            *(pytest.param(where, marks=pytest.mark.slow) for where in ("four processes", "eight devices")),
        ]
    )
    def found(self, request, base):
        """The numbers on several devices, of each process."""
        return outputs(base, request.param)

    @pytest.fixture
    def several(self, found):
        """The numbers on several devices; where each process read or wrote its own rows, all of them put together."""
        if len(found) == 1:
            assert found[0]["devices"] == 8
        whole = dict(found[0])
        for name in whole:
            values = [each[name] for each in found]
            if name.startswith("read "):
                whole[name] = np.sum(values, 0)
            elif name.startswith("own "):
                written = np.array([~np.isnan(each).any(1) for each in values])
                assert (written.sum(0) == 1).all(), f"each row of {name} must be written by one process"
                assert written.sum(1).min() > written.shape[1] / (len(found) + 1.5)
                whole[name] = np.nansum(values, 0)
            else:
                for each in values[1:]:
                    np.testing.assert_array_equal(values[0], each, err_msg=name)
        return whole

    def assert_same(self, one, several, names):
        for name in names:
            assert one[name].shape == several[name].shape
            scale = np.abs(one[name]).max()
            assert scale > 0
            np.testing.assert_allclose(several[name], one[name], rtol=0, atol=SAME * scale, err_msg=name)

    def test_they_are_as_many_as_they_should_be(self, base):
        counts = [
            int(output["devices"]) for where in ("one device", "two processes") for output in outputs(base, where)
        ]
        assert counts == [1, 2, 2]

    def test_each_process_reads_its_own_rows(self, one, found, several):
        passes = [name for name in one if name.startswith("read ")]
        assert len(passes) == 5
        for name in passes:
            assert one[name].sum() > 0
            # Together as often as one process alone, and none of them many more than its share.
            np.testing.assert_array_equal(several[name], one[name], err_msg=name)
            for output in found:
                assert output[name].sum() <= 1.2 * one[name].sum() / len(found), name

    def test_the_mean_colour_is_of_all_images(self, one, several):
        np.testing.assert_array_equal(several["colour"], one["colour"])

    def test_parameters_and_batch_norm_after_five_steps(self, one, several):
        names = [name for name in one if name.startswith("trained ")]
        assert len(names) > 20
        self.assert_same(one, several, [*names, "loss"])
        assert one["correct"] == several["correct"]

    def test_maps_intensities_and_confidences(self, one, several):
        assert one["samples"] % 32, "the last batch must be one that is filled up"
        self.assert_same(one, several, ["maps", "own intensity", "own confidence", "logits"])

    def test_contributions(self, one, several):
        self.assert_same(one, several, ["contributions", "contributions_std", "features of prototypes"])

    def test_locations_are_assigned_alike(self, one, several):
        assert len(np.unique(one["own assignments"])) > 2
        assert (one["own assignments"] != several["own assignments"]).mean() <= 1e-4

    def test_the_ledger(self, one, several):
        for name in ("own account", "ledger seeing", "ledger weighing", "ledger bias"):
            scale = np.abs(one[name]).max()
            assert scale > 0
            np.testing.assert_allclose(several[name], one[name], rtol=0, atol=1e-4 * scale, err_msg=name)

    def test_principal_components(self, one, several):
        self.assert_same(one, several, ["pca_mean", "pca_ratio"])
        # Rounding of the covariance over the distance of two variances.
        np.testing.assert_allclose(several["pca_components"], one["pca_components"], **DEEP)

    def test_one_step_of_lloyd(self, one, several):
        assert one["whole blocks"] == 2
        self.assert_same(one, several, ["centroids"])
        assert several["inertia"] == pytest.approx(one["inertia"], rel=SAME)
        assert np.abs(one["centroids"] - one["start"]).max() > 0.1

    def test_assignments_but_for_ties(self, one, several):
        points, start = one["points"].astype(np.float64), one["start"].astype(np.float64)
        distances = np.sort(np.sum((points[:, None] - start) ** 2, axis=-1), axis=1)
        tied = distances[:, 1] - distances[:, 0] <= SAME * distances[:, 1]
        assert tied.mean() < 0.01
        np.testing.assert_array_equal(several["assignments"][~tied], one["assignments"][~tied])


def whole_run(base, name, commands, variables):
    """The folder of a run that is made once, and what each of its processes printed."""
    folder = base / f"{name}-output"

    def make():
        folder.mkdir(exist_ok=True)
        ended(started(commands(base / name), folder, variables), folder)

    made_once(base, name, make)
    return base / name, [path.read_text() for path in sorted(folder.glob("*.out"))]


def make_two(base):
    return whole_run(base, "two", two_processes, environment(base))


def make_eight(base):
    return whole_run(base, "eight", lambda workdir: [command(workdir)], eight_devices(base))


def arrays_of(run):
    found = {path.name: np.load(path, allow_pickle=False) for path in run.path.glob("*.npy")}
    for path in run.path.glob("*.npz"):
        found |= {f"{path.stem} {name}": values for name, values in run.arrays(path.stem).items()}
    return found


@pytest.mark.slow
class TestWholeRun:
    @pytest.fixture(params=[make_eight, make_two], ids=["eight devices", "two processes"])
    def made(self, request, base):
        return request.param(base)

    def test_every_file_is_there_with_the_shapes_of_one_device(self, finished, made):
        workdir, _ = made
        assert {path.name for path in workdir.iterdir()} == {path.name for path in finished.iterdir()}
        assert not [path for path in workdir.rglob("*") if "tmp" in path.name]
        kinds = [
            {name: (values.dtype, values.shape) for name, values in arrays_of(Run(folder)).items()}
            for folder in (workdir, finished)
        ]
        # How many samples the curation leaves out is a result, not a shape.
        for name in ("curated left_out", "curated prototypes", "curated scores", "curated skipped"):
            assert kinds[0].pop(name)[0] == kinds[1].pop(name)[0]
        assert kinds[0] == kinds[1]

    @pytest.mark.parametrize("name", ["config", "explanation", "refinement"])
    def test_json_validates(self, made, name):
        schema = load_schema(name)
        jsonschema.validate(json.loads((made[0] / f"{name}.json").read_text()), schema)

    def test_metrics_are_written_once(self, finished, made):
        lines = [[(line["step"], line["split"]) for line in Run(folder).metrics] for folder in (finished, made[0])]
        assert lines[0] == lines[1]

    def test_it_learns_and_explains_the_same(self, finished, made):
        one, several = Run(finished), Run(made[0])
        np.testing.assert_array_equal(one.array("labels"), several.array("labels"))
        np.testing.assert_array_equal(one.steps, several.steps)
        # Rounding that differs grows over 104 steps of training. 355 test images: a point is three of them.
        accuracies = [
            np.mean(test["confidence"][-1].argmax(-1) == test["labels"])
            for test in (run.arrays("test") for run in (one, several))
        ]
        assert accuracies[1] == pytest.approx(accuracies[0], abs=0.01)
        assert accuracies[0] > 0.8
        assignments = [run.array("assignments").ravel() for run in (one, several)]
        assert adjusted_rand_score(*assignments) >= 0.9

    def test_process_0_alone_speaks(self, base):
        _, (first, second) = make_two(base)
        assert steps_printed(first, "done") == list(STEPS)
        assert "Refinement on the test set" in first
        # What is left is a line of XLA's own.
        assert [line for line in second.splitlines() if not line.startswith("[Gloo]")] == []


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_explain_what_one_has_trained(base, finished, tmp_path, count):
    # From identical checkpoints, made on another number of devices.
    workdir = without(tuple(STEPS)[1:], finished, tmp_path / "run")
    run_in_two(base, workdir, tmp_path, "--stage=explain", count=count)
    one, several = Run(finished), Run(workdir)
    assignments = [np.array(run.array("assignments")) for run in (one, several)]
    same = assignments[0] == assignments[1]
    # Locations as near to one centroid as to another, and what they move when they change sides.
    assert same.mean() > 0.999
    rows = same.all((1, 2))
    for name in ("confidence", "intensity"):
        values = [np.array(run.array(name))[:, rows] for run in (one, several)]
        np.testing.assert_allclose(values[1], values[0], rtol=0, atol=SAME * np.abs(values[0]).max())


@pytest.mark.slow
def test_two_processes_choose_checkpoints_by_movement(base, tmp_path):
    workdir = tmp_path / "run"
    run_in_two(base, workdir, tmp_path, "--stage=train", "--config.train.checkpoints=moved")
    steps = Run(workdir).steps
    assert len(steps) == 8
    assert present_steps(workdir / CHECKPOINTS) == tuple(steps)
    measured = [line["step"] for line in Run(workdir).metrics if line["split"] == "validation"]
    assert measured == steps.tolist()


def default_command(workdir):
    """What a user who types no more than `python run.py` gets, but for checkpoints that its prototypes do not need."""
    settings = ("--config.train.num_checkpoints=2", "--config.explain.max_pairs=1")
    return [sys.executable, str(ROOT / "run.py"), f"--workdir={workdir}", "--stage=explain", *settings]


def default_digits(base):
    workdir, _ = whole_run(base, "default", lambda workdir: [default_command(workdir)], environment(base))
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("several", ["eight devices", "two processes"])
def test_prototypes_of_the_default_run_from_its_checkpoints(base, tmp_path, several):
    """Trained anew, they would be others: over 500 steps the last bits grow to a seventh of the weights (BUILD.md)."""
    one = default_digits(base)
    workdir = without(tuple(STEPS)[1:5], one, tmp_path / "run")
    plain = default_command(workdir)
    if several == "eight devices":
        ended(started([plain], tmp_path, eight_devices(base)), tmp_path)
    else:
        joined = [*plain, "--num_processes=2", f"--coordinator={address()}"]
        pair = [[*joined, f"--process_id={number}"] for number in (0, 1)]
        ended(started(pair, tmp_path, environment(base)), tmp_path)
    assignments = [Run(folder).array("assignments").ravel() for folder in (one, workdir)]
    assert adjusted_rand_score(*assignments) >= 0.9
    confidence = [Run(folder).arrays("test")["confidence"][-1] for folder in (one, workdir)]
    np.testing.assert_allclose(*confidence, rtol=0, atol=SAME)


def lose(base, workdir, folder, victim, trace, *more):
    """Kills one of two processes (SIGKILL) once a file is there; how the other ended: seconds, exit code, stderr."""
    processes = started(two_processes(workdir, *more), folder, environment(base))
    try:
        until = time.monotonic() + MINUTES
        while not (workdir / trace).exists() and time.monotonic() < until:
            assert [process.poll() for process in processes] == [None, None]
            time.sleep(0.002)
        processes[victim].kill()
        since = time.monotonic()
        code = processes[1 - victim].wait(MINUTES)
        return time.monotonic() - since, code, (folder / f"{1 - victim}.err").read_text()
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.slow
class TestLostProcess:
    """The other one ends by itself, and the same commands go on. Process 0 is the one that writes, and JAX's own."""

    def assert_clear_end(self, seconds, code, error):
        assert seconds < 60
        assert code != 0
        # run.py's line; but where JAX notices first, it aborts the process with a line of its own.
        assert re.search("^run.py: error: another process of this run has ended; ", error, re.MULTILINE) or (
            "another task died" in error
        )

    @pytest.mark.parametrize("victim", [0, 1])
    def test_in_train(self, base, tmp_path, victim):
        uninterrupted, _ = make_two(base)
        workdir = tmp_path / "run"
        third = f"{CHECKPOINTS}/{Run(uninterrupted).steps[2]}"
        self.assert_clear_end(*lose(base, workdir, tmp_path, victim, third, "--stage=train"))
        assert not (workdir / "steps.npy").exists()
        first, _ = run_in_two(base, workdir, tmp_path, "--stage=train")
        assert steps_printed(first, "done") == ["train"]
        assert [name for name in differing(workdir, uninterrupted) if not name.endswith(" (missing)")] == []
        assert {"labels.npy", "steps.npy"} <= {path.name for path in workdir.iterdir()}

    @pytest.mark.parametrize("victim", [0, 1])
    def test_in_evidence(self, base, tmp_path, victim):
        uninterrupted, _ = make_two(base)
        workdir = without(tuple(STEPS)[2:], uninterrupted, tmp_path / "run")
        trace = ".partial-evidence/intensity.npy"
        self.assert_clear_end(*lose(base, workdir, tmp_path, victim, trace, "--stage=explain"))
        assert not (workdir / "intensity.npy").exists()
        first, _ = run_in_two(base, workdir, tmp_path, "--stage=explain")
        assert steps_printed(first, "already done") == ["train", "prototypes"]
        assert differing(workdir, uninterrupted) == ["refinement.json (missing)", "report.html (missing)"]


class TestStart:
    @pytest.fixture
    def joined(self, monkeypatch):
        """What JAX was asked for."""
        calls = []
        monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: calls.append((args, kwargs)))
        return calls

    def test_the_three_are_handed_on(self, joined):
        distributed.start("host:1", 2, 1, cluster=False)
        assert joined == [(("host:1", 2, 1), {"heartbeat_timeout_seconds": distributed.HEARTBEAT_TIMEOUT})]

    def test_the_cluster_is_asked_for_what_it_knows(self, joined):
        distributed.start(None, None, None, cluster=True)
        assert joined[0][0] == (None, None, None)

    @pytest.mark.parametrize("cluster", [False, True])
    @pytest.mark.parametrize("given", [("host:1", 2, None), ("host:1", None, 0), (None, 2, 0), (None, None, 1)])
    def test_one_of_three_is_missing(self, joined, given, cluster):
        with pytest.raises(InputError) as error:
            distributed.start(*given, cluster)
        line = one_line(error)
        assert (
            f"--coordinator={given[0]} --num_processes={given[1]} --process_id={given[2]}; allowed: all three" in line
        )
        assert "--cluster" in line
        assert not joined

    def test_nothing_is_given(self, joined):
        with pytest.raises(InputError, match="allowed: all three"):
            distributed.start(None, None, None, cluster=False)
        assert not joined

    @pytest.mark.parametrize("number", [2, 3, -1])
    def test_no_such_process(self, joined, number):
        with pytest.raises(InputError) as error:
            distributed.start("host:1", 2, number, cluster=False)
        assert one_line(error) == f"--process_id is {number}; allowed: 0 to 1, one less than --num_processes"
        assert not joined

    @pytest.mark.parametrize("kind", [RuntimeError, ValueError])
    def test_the_others_do_not_come(self, monkeypatch, kind):
        def refuse(*args, **kwargs):
            raise kind("DEADLINE_EXCEEDED: Barrier timed out.\nTasks waited for: 1")

        monkeypatch.setattr(jax.distributed, "initialize", refuse)
        with pytest.raises(InputError) as error:
            distributed.start("host:1", 2, 0, cluster=False)
        line = one_line(error)
        assert "cannot be joined (DEADLINE_EXCEEDED: Barrier timed out.); allowed: " in line
        assert "--coordinator" in line

    def test_on_the_command_line(self, base, tmp_path):
        arguments = command(tmp_path / "run", "--coordinator=127.0.0.1:1", "--num_processes=2", "--process_id=2")
        done = subprocess.run(arguments, capture_output=True, text=True, env=environment(base), check=False)
        assert done.returncode == 2
        assert done.stderr == "run.py: error: --process_id is 2; allowed: 0 to 1, one less than --num_processes\n"
        assert not (tmp_path / "run").exists()


class TestLost:
    MESSAGES = (
        "INTERNAL: Error dispatching computation: Gloo all-reduce failed: Connection reset by peer",
        "UNAVAILABLE: Failed to send RPC to coordination service.",
        "Barrier failed because: task is set to ERROR: UNAVAILABLE: Task 1 heartbeat timeout.",
    )

    @pytest.mark.parametrize("message", MESSAGES)
    def test_is_known_by_the_words_of_xla(self, monkeypatch, message):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        assert distributed.lost(RuntimeError(message))
        assert not distributed.lost(InputError("config key seed is -1"))

    @pytest.mark.parametrize("message", MESSAGES)
    def test_a_process_alone_loses_none(self, message):
        assert not distributed.lost(RuntimeError(message))


class Interrupted(BaseException):
    pass


class TestResumeBetweenCheckpoints:
    # Eight steps; 0, 4 and 8 are kept, and after steps 3 and 6 there is a checkpoint to go on from.
    KEPT = (0, 4, 8)

    @staticmethod
    def train(workdir, resume_every=3, until=None):
        """Trains, perhaps not beyond a step, and returns the steps that training went on from."""
        starts, original = [], training.run_steps

        def run_steps(recipe, state, totals, dataset, start, *rest):
            if start == until:
                raise Interrupted
            starts.append(start)
            return original(recipe, state, totals, dataset, start, *rest)

        settings = config.from_config_dict(
            {
                "data": {"max_train": 128, "augment": "shift"},
                "model": {"width": 4},
                "train": {
                    "epochs": 2,
                    "batch_size": 32,
                    "checkpoints": "linear",
                    "num_checkpoints": 3,
                    "resume_every": resume_every,
                },
                "explain": {"num_prototypes": 4, "pca_dims": 4},
            }
        )
        with pytest.MonkeyPatch.context() as patch:
            # One model and one optimizer for all runs here: each is compiled once.
            patch.setattr(models, "create", CREATE)
            patch.setattr(training, "make_optimizer", MAKE_OPTIMIZER)
            patch.setattr(stage_train.training, "run_steps", run_steps)
            if until is None:
                pipeline.run(settings, str(workdir), ["train"])
            else:
                with pytest.raises(Interrupted):
                    pipeline.run(settings, str(workdir), ["train"])
        return starts

    @pytest.fixture(scope="class")
    @classmethod
    def whole(cls, tmp_path_factory):
        """A training that nothing interrupted, not to be changed."""
        workdir = tmp_path_factory.mktemp("whole") / "run"
        assert cls.train(workdir) == [0, 3, 4, 6]
        assert cls.present(workdir) == cls.KEPT
        return workdir

    @staticmethod
    def present(workdir):
        return present_steps(workdir / CHECKPOINTS)

    def test_goes_on_from_between_and_ends_as_if_nothing_had_happened(self, whole, tmp_path):
        workdir = tmp_path / "run"
        self.train(workdir, until=6)
        assert self.present(workdir) == (0, 4, 6)
        assert self.train(workdir) == [6]
        assert differing(workdir, whole) == []

    def test_before_the_first_kept_one(self, whole, tmp_path):
        workdir = tmp_path / "run"
        self.train(workdir, until=3)
        assert self.present(workdir) == (0, 3)
        assert self.train(workdir) == [3, 4, 6]
        assert differing(workdir, whole) == []

    def test_a_kept_checkpoint_that_was_moved_away_is_made_again(self, whole, tmp_path):
        workdir = tmp_path / "run"
        self.train(workdir, until=6)
        shutil.rmtree(workdir / CHECKPOINTS / "4")
        assert self.train(workdir) == [0, 3, 4, 6]
        assert differing(workdir, whole) == []

    def test_between_the_last_checkpoint_and_the_removal_of_the_one_before(self, whole, tmp_path):
        workdir = tmp_path / "run"
        self.train(workdir, until=6)
        shutil.copytree(whole / CHECKPOINTS / "8", workdir / CHECKPOINTS / "8")
        shutil.copy(whole / METRICS, workdir / METRICS)
        assert self.train(workdir) == []
        assert self.present(workdir) == self.KEPT
        assert differing(workdir, whole) == []

    def test_is_the_same_training_as_without(self, whole, tmp_path):
        assert self.train(tmp_path / "run", resume_every=0) == [0, 4]
        assert differing(tmp_path / "run", whole) == ["config.json"]

    @pytest.mark.parametrize(
        ("present", "step"),
        [
            ((), None),
            ((0,), 0),
            ((0, 3), 3),
            ((0, 3, 4), 4),
            ((0, 4, 6), 6),
            ((0, 4, 8), 8),
            ((0, 6), 0),  # 4 is missing: from 6 it would never be made
            ((0, 3, 6), 3),
            ((4, 6), None),
            ((3,), None),
        ],
    )
    def test_resume_step(self, present, step):
        assert resume_step(present, self.KEPT) == step


CREATE, MAKE_OPTIMIZER = functools.cache(models.create), functools.cache(training.make_optimizer)


@pytest.mark.slow
def test_a_run_killed_between_checkpoints_ends_equal(base, finished, tmp_path):
    workdir, once = tmp_path / "run", tmp_path / "once"
    every = ("--stage=train", "--config.train.resume_every=30")
    steps = Run(finished).steps.tolist()
    between = workdir / CHECKPOINTS / "60"
    assert steps[-2] < 60 < steps[-1]
    kill_when(base, workdir, between.exists, *every)
    assert between.exists()
    assert not (workdir / "steps.npy").exists()
    run(base, workdir, *every)
    assert list(present_steps(workdir / CHECKPOINTS)) == steps
    # Training without any checkpoint to go on from gives the same weights; only its config is another.
    run(base, once, "--stage=train", "--config.train.resume_every=0")
    assert differing(workdir, once) == ["config.json"]
