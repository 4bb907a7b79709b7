import functools
import itertools
import math
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from i2x_jax.config import InputError
from i2x_jax.training import loop as training
from i2x_jax.training.checkpoints import (
    Checkpoints,
    choose_by_movement,
    foreign_items,
    movement,
    present_steps,
    restore_foreign,
    select_steps,
)
from tests.helpers import assert_trees_equal, one_line, tiny_model, tiny_variables


class TestSelectSteps:
    @pytest.mark.parametrize("spec", ["log", "linear"])
    @pytest.mark.parametrize("count", range(2, 12))
    @pytest.mark.parametrize("total", [1, 2, 3, 7, 10, 11, 100, 469, 10**6])
    def test_are_as_many_as_wanted_ascending_from_0_to_the_last(self, spec, count, total):
        steps = select_steps(spec, count, total)
        assert len(steps) == min(count, total + 1)
        assert (steps[0], steps[-1]) == (0, total)
        assert list(steps) == sorted(set(steps))
        assert all(type(step) is int for step in steps)

    @pytest.mark.parametrize("spec", ["log", "linear"])
    def test_no_number_of_steps_passes_the_last(self, spec):
        for total in range(1, 60):
            for count in range(2, total + 3):
                steps = select_steps(spec, count, total)
                assert (len(steps), steps[-1]) == (min(count, total + 1), total)

    def test_log_is_evenly_spaced_in_the_logarithm(self):
        assert select_steps("log", 5, 1000) == (0, 1, 10, 100, 1000)

    def test_log_takes_the_next_free_step_where_rounding_repeats_one(self):
        # 1, 1.33, 1.78, 2.37, 3.16, 4.22, 5.62, 7.50, 10.
        assert select_steps("log", 10, 10) == (0, 1, 2, 3, 4, 5, 6, 7, 8, 10)

    def test_moved_chooses_among_four_times_as_many_as_log(self):
        assert select_steps("moved", 4, 5000) == select_steps("log", 16, 5000)
        # 8 candidates where 2 are kept; and no more than there are steps.
        assert len(select_steps("moved", 2, 5000)) == 8
        assert select_steps("moved", 4, 5) == (0, 1, 2, 3, 4, 5)

    def test_linear_is_evenly_spaced(self):
        assert select_steps("linear", 5, 100) == (0, 25, 50, 75, 100)

    def test_listed_steps_gain_the_first_and_the_last(self):
        assert select_steps((5, 20), 8, 100) == (0, 5, 20, 100)
        assert select_steps((0, 100), 8, 100) == (0, 100)

    def test_a_listed_step_beyond_the_last_is_refused(self):
        with pytest.raises(InputError) as error:
            select_steps((5, 101), 8, 100)
        assert "step 101; allowed: 0 to 100" in one_line(error)
        assert "train.checkpoints" in one_line(error)


class TestChooseByMovement:
    @pytest.mark.parametrize("size", [0.0, 1e-9, 0.01, 1.0])
    @pytest.mark.parametrize(("candidates", "count", "expected"), [(13, 4, (0, 4, 8, 12)), (9, 3, (0, 4, 8))])
    def test_where_all_move_alike_every_so_many_th_is_taken(self, size, candidates, count, expected):
        assert choose_by_movement(range(candidates), [size] * (candidates - 1), count) == expected

    def test_of_equally_good_choices_it_is_the_earliest(self):
        # Parts of 1 and 2, or of 2 and 1; parts of 1, 1, 2 in any order.
        assert choose_by_movement((0, 5, 7, 9), [0.2, 0.2, 0.2], 3) == (0, 5, 9)
        assert choose_by_movement((0, 5, 7, 9, 11), [0.2] * 4, 4) == (0, 5, 7, 11)

    def test_parts_of_what_moved_are_equal_where_they_can_be(self):
        # 0.6 in all, and three parts: cut after 0.2 and after 0.4.
        moved = [0.05, 0.05, 0.1, 0.1, 0.1, 0.15, 0.05]
        assert choose_by_movement((0, 1, 2, 4, 8, 16, 32, 64), moved, 4) == (0, 4, 16, 64)

    @pytest.mark.parametrize("where", range(12))
    def test_an_interval_in_which_all_moves_is_set_apart_and_the_rest_dealt_out_evenly(self, where):
        moved = np.zeros(12)
        moved[where] = 0.9
        chosen = choose_by_movement(range(13), moved, 6)
        assert {where, where + 1} <= set(chosen)
        assert (chosen[0], chosen[-1], len(chosen)) == (0, 12, 6)
        # Three or four parts for what is left on both sides.
        assert max(part for part in np.diff(chosen)) <= 4

    def test_is_the_best_of_all_choices(self):
        rng = np.random.default_rng(0)
        for _ in range(20):
            moved, count = rng.exponential(0.1, 9), int(rng.integers(2, 9))
            at = np.concatenate([[0], np.cumsum(moved)])
            choices = [(0, *inner, 9) for inner in itertools.combinations(range(1, 9), count - 2)]
            best = min(choices, key=lambda choice: (np.diff(at[list(choice)]) ** 2).sum())
            assert choose_by_movement(range(10), moved, count) == best

    @pytest.mark.parametrize("count", [4, 5, 100])
    def test_no_more_than_are_wanted_are_all_kept(self, count):
        assert choose_by_movement((0, 3, 4, 9), [0.5, 0.0, 0.1], count) == (0, 3, 4, 9)

    def test_two_are_the_first_and_the_last(self):
        assert choose_by_movement((0, 3, 4, 9), [0.5, 0.0, 0.1], 2) == (0, 9)

    def test_the_last_bits_of_what_moved_do_not_matter(self):
        moved = np.random.default_rng(1).choice([0.1, 0.2], 31)
        chosen = choose_by_movement(range(32), moved, 8)
        for seed in range(20):
            noise = np.random.default_rng(seed).uniform(-1e-8, 1e-8, 31)
            assert choose_by_movement(range(32), moved + noise, 8) == chosen

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_movement_that_is_not_finite_is_refused_with_its_step(self, value):
        with pytest.raises(InputError) as error:
            choose_by_movement((0, 10, 20, 30), [0.1, value, 0.1], 3)
        assert "confidences at step 20 are not finite; allowed: finite logits" in one_line(error)


def test_movement_is_half_the_absolute_change_of_confidence():
    before = np.float32([[1, 0, 0], [0.5, 0.25, 0.25]])
    after = np.float32([[0, 1, 0], [0.25, 0.5, 0.25]])
    assert movement(before, after) == movement(after, before) == (1 + 0.25) / 2
    assert movement(before, before) == 0


@functools.cache
def state(name):
    """Variables and optimizer state in which no leaf is zero, as after some steps."""
    optimizer = training.make_optimizer(name, 1e-3, 1e-4, 10, 0.1)
    fresh = training.init_state(tiny_variables(), optimizer)
    rng = np.random.default_rng(0)

    def stirred(leaf):
        noise = rng.integers(1, 9, leaf.shape) if leaf.dtype.kind == "i" else rng.normal(size=leaf.shape)
        return jnp.asarray(noise, leaf.dtype)

    return fresh.variables, jax.tree.map(stirred, fresh.opt_state)


def shapes(tree):
    return jax.eval_shape(lambda: tree)


@pytest.fixture
def written(tmp_path):
    """A folder with checkpoints at steps 0 and 5."""
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        for step in (0, 5):
            checkpoints.save(step, *state("adamw"))
    return folder


def refusal(folder, step, like):
    """The message of the error that reading a checkpoint raises."""
    with Checkpoints(folder, read_only=True) as checkpoints, pytest.raises(InputError) as error:
        checkpoints.restore_variables(step, like)
    message = one_line(error)
    assert str(folder / str(step)) in message
    return message


def test_a_save_that_is_interrupted_is_finished_first(tmp_path, monkeypatch):
    """Cut short, it would leave a thread that nobody waits for, and whose words end in the user's terminal."""
    whole, finished = ocp.CheckpointManager.save, []

    def save(manager, *arguments, **keywords):
        signal.raise_signal(signal.SIGINT)
        whole(manager, *arguments, **keywords)
        finished.append(True)

    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(3, *state("sgd"))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)
    assert finished
    assert present_steps(tmp_path) == (3,)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_what_was_saved_comes_back_bit_for_bit(tmp_path, name):
    variables, optimizer = state(name)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, variables, optimizer)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        found = checkpoints.restore(3, shapes(variables), shapes(optimizer))
        assert_trees_equal(found[0], variables)
        assert_trees_equal(found[1], optimizer)
        assert_trees_equal(checkpoints.restore_variables(3, shapes(variables)), variables)


def test_present_steps_are_the_numbered_folders(written):
    (written / "notes").mkdir()
    (written / "7").touch()
    assert present_steps(written) == (0, 5)
    assert present_steps(written / "nowhere") == ()


def test_saving_a_step_again_leaves_the_first(written):
    variables, optimizer = state("adamw")
    with Checkpoints(written) as checkpoints:
        checkpoints.save(5, jax.tree.map(jnp.zeros_like, variables), optimizer)
    with Checkpoints(written, read_only=True) as checkpoints:
        assert_trees_equal(checkpoints.restore_variables(5, shapes(variables)), variables)


def test_an_earlier_step_can_still_be_saved(written):
    variables, optimizer = state("adamw")
    with Checkpoints(written) as checkpoints:
        checkpoints.save(2, jax.tree.map(lambda leaf: leaf + 1, variables), optimizer)
    assert present_steps(written) == (0, 2, 5)
    with Checkpoints(written, read_only=True) as checkpoints:
        found = checkpoints.restore_variables(2, shapes(variables))
    assert_trees_equal(found, jax.tree.map(lambda leaf: leaf + 1, variables))


def test_the_arrays_may_change_after_saving_has_returned(tmp_path):
    variables, optimizer = state("adamw")
    mine = jax.tree.map(jnp.copy, variables)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, mine, optimizer)
        # What a training step does to the state it is given.
        jax.tree.map(lambda leaf: leaf.delete(), mine)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert_trees_equal(checkpoints.restore_variables(0, shapes(variables)), variables)


def test_a_missing_step_is_refused_and_the_present_ones_are_named(written):
    assert "does not exist; there are: 0, 5" in refusal(written, 3, shapes(state("adamw")[0]))


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    assert "there are: none" in refusal(tmp_path, 0, shapes(state("adamw")[0]))


@pytest.mark.parametrize("harm", ["truncated", "scrambled", "removed"])
def test_damaged_data_is_refused_in_one_line_and_nothing_is_printed(written, harm, capfd):
    files = [path for path in (written / "5" / "variables").rglob("*") if path.is_file() and path.parent.name == "d"]
    assert files, "Orbax keeps its data elsewhere now: point this test at it"
    for path in files:
        contents = path.read_bytes()
        if harm == "removed":
            path.unlink()
        else:
            path.write_bytes(contents[: len(contents) // 2] if harm == "truncated" else contents[::-1])
    capfd.readouterr()
    assert "cannot be read" in refusal(written, 5, shapes(state("adamw")[0]))
    assert capfd.readouterr() == ("", "")
    with Checkpoints(written, read_only=True) as checkpoints:
        assert_trees_equal(checkpoints.restore_variables(0, shapes(state("adamw")[0])), state("adamw")[0])


def test_the_checkpoint_of_another_model_is_refused(written):
    wider = jax.eval_shape(tiny_model(width=6).init, jax.random.key(0))
    assert "cannot be read" in refusal(written, 5, wider)
    fewer = {"params": shapes(state("adamw")[0])["params"]}
    assert "cannot be read" in refusal(written, 5, fewer)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value):
    variables, optimizer = state("adamw")
    variables = jax.tree.map(np.array, variables)
    variables["params"]["conv2"]["conv"]["kernel"][0, 0, 1, 2] = value
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, variables, optimizer)
    assert "in params/conv2/conv/kernel; allowed: finite" in refusal(tmp_path, 0, shapes(variables))


def test_what_a_killed_process_left_half_written_does_not_count_and_is_removed(written):
    leftover = written / "9.orbax-checkpoint-tmp-1"
    leftover.mkdir()
    (leftover / "data").touch()
    assert present_steps(written) == (0, 5)
    with Checkpoints(written, read_only=True):
        assert leftover.exists()
    with Checkpoints(written) as checkpoints:
        # Orbax cleans up beside other work, and is sure to be done when it next saves.
        checkpoints.save(9, *state("sgd"))
    assert not leftover.exists()
    assert present_steps(written) == (0, 5, 9)


HELD = [{"net": [{"kernel": np.full((2, 3), step, np.float32)}], "count": np.int32(step)} for step in (5, 40)]


def managed(folder, item):
    with ocp.CheckpointManager(folder) as manager:
        for held in HELD:
            save = ocp.args.StandardSave(held)
            notes = ocp.args.JsonSave({"by": "somebody else"})
            args = ocp.args.Composite(**{item: save, "notes": notes}) if item else save
            manager.save(int(held["count"]), args=args)


def plain_folders(folder, item):
    with ocp.StandardCheckpointer() as checkpointer:
        for held in HELD:
            checkpointer.save(folder / f"step_{held['count']:06d}", held)


class TestForeign:
    """Checkpoints that another program wrote with Orbax."""

    @pytest.mark.parametrize(
        ("write", "item"),
        [(managed, ""), (managed, "state"), (plain_folders, "")],
        ids=["a manager", "items", "folders of another name"],
    )
    def test_they_are_found_and_read(self, tmp_path, write, item):
        write(tmp_path / "kept", item)
        found = foreign_items(tmp_path / "kept")
        assert [step for step, _ in found] == [5, 40]
        for (_, folder), held in zip(found, HELD, strict=True):
            assert_trees_equal(restore_foreign(folder), held)
            assert_trees_equal(restore_foreign(folder, like=held), held)

    def test_a_structure_may_be_asked_for(self, tmp_path):
        plain_folders(tmp_path, "")
        with pytest.raises(InputError) as error:
            restore_foreign(tmp_path / "step_000005", like={"other": np.ones(2)})
        assert "cannot be read (" in one_line(error)

    def test_which_of_several_items_must_be_said(self, tmp_path):
        both = {name: ocp.args.StandardSave({"a": np.ones(2, np.float32)}) for name in ("model", "average")}
        with ocp.CheckpointManager(tmp_path) as manager:
            manager.save(3, args=ocp.args.Composite(**both))
        with pytest.raises(InputError) as error:
            foreign_items(tmp_path)
        assert "has the items average, model; allowed: one that holds arrays; name it" in one_line(error)
        assert foreign_items(tmp_path, "average") == [(3, tmp_path / "3" / "average")]

    def test_a_step_twice(self, tmp_path):
        plain_folders(tmp_path, "")
        shutil.copytree(tmp_path / "step_000005", tmp_path / "5")
        with pytest.raises(InputError) as error:
            foreign_items(tmp_path)
        assert "holds step 5 twice" in one_line(error)
