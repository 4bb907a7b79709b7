import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import sklearn.metrics

from i2x_jax import models
from i2x_jax.data import dataset as data
from i2x_jax.training import loop as training
from i2x_jax.training.loop import NotFiniteError, Recipe, init_state, make_optimizer, run_steps, zero_totals
from tests.helpers import ROUNDING, assert_trees_equal, counted, drawn, planted, tiny_model

PLANTED = planted(48)
STEPS = 6


@functools.cache
def optimizer_of(name="adamw", learning_rate=1e-2, weight_decay=1e-2, total=STEPS, warmup=0.1):
    """One object for each set of arguments: a fresh one would be compiled again."""
    return make_optimizer(name, learning_rate, weight_decay, total, warmup)


def trained(seed, start=0, stop=STEPS, state=None, augmentation="shift"):
    model, optimizer = tiny_model(), optimizer_of()
    state = state or init_state(drawn(model, seed), optimizer)
    return run_steps(Recipe(model, optimizer, augmentation, 16, seed), state, zero_totals(), PLANTED, start, stop)


@functools.cache
def digits():
    return data.load_splits("digits", 0.15).train


@functools.cache
def digits_model():
    return models.create("cnn", num_classes=10, image_shape=(8, 8, 1), width=8)


class TestRunSteps:
    def test_learns_64_digits_by_heart(self):
        model, few = digits_model(), digits().take(np.arange(64))
        optimizer = optimizer_of("adamw", 3e-2, 1e-4, 60)
        state = init_state(drawn(model, 0), optimizer)
        state, totals = run_steps(Recipe(model, optimizer, "none", 64, 0), state, zero_totals(), few, 0, 60)
        variables = training.recompute_batch_norm(model, state.variables, few.images)
        loss, accuracy = training.loss_and_accuracy(training.predict(model, variables, few, 64), few.labels)
        assert loss < 0.05
        assert accuracy == 1
        assert int(totals.count) == 60 * 64
        assert float(totals.loss) / int(totals.count) > loss

    def test_recomputed_statistics_evaluate_as_training_does_and_running_averages_do_not(self):
        """DESIGN 2.1: at step 10 the loss in evaluation mode is within 10 % of that in training mode."""
        model, optimizer = digits_model(), optimizer_of("adamw", 3e-2, 1e-4, 60)
        state = init_state(drawn(model, 0), optimizer)
        state, _ = run_steps(Recipe(model, optimizer, "none", 64, 0), state, zero_totals(), digits(), 0, 10)
        # Not the images that the statistics are computed from, but some of them.
        some = digits().take(np.arange(256))
        logits, _ = jax.jit(model.train_logits)(state.variables, some.images)
        expected, _ = training.loss_and_accuracy(np.asarray(logits), some.labels)

        def evaluated(variables):
            return training.loss_and_accuracy(training.predict(model, variables, some, 256), some.labels)[0]

        recomputed = training.recompute_batch_norm(model, state.variables, training.batch_norm_images(digits(), seed=0))
        assert evaluated(recomputed) == pytest.approx(expected, rel=0.1)
        assert evaluated(state.variables) > 1.1 * expected

    def test_the_same_seed_gives_the_same_weights_and_another_does_not(self):
        one, again, other = trained(1)[0], trained(1)[0], trained(2)[0]
        assert_trees_equal(one, again)
        kernels = [state.variables["params"]["conv2"]["conv"]["kernel"] for state in (one, other)]
        assert (np.asarray(kernels[0]) != np.asarray(kernels[1])).all()

    def test_the_seed_orders_the_samples_too(self):
        start = drawn(tiny_model(), 0)
        one, other = (trained(seed, state=init_state(start, optimizer_of()))[0] for seed in (1, 2))
        kernels = [state.variables["params"]["conv2"]["conv"]["kernel"] for state in (one, other)]
        assert (np.asarray(kernels[0]) != np.asarray(kernels[1])).any()

    @pytest.mark.parametrize("kind", ["shift", "shift_flip"])
    def test_every_step_augments_anew(self, kind):
        def loss_at(step, augmentation):
            state = init_state(drawn(tiny_model(), 0), optimizer_of())._replace(step=jnp.int32(step))
            # The step in the state chooses the augmentation; rows and weights are the same.
            return float(trained(0, 0, 1, state, augmentation)[1].loss)

        assert loss_at(0, kind) == loss_at(0, kind)
        assert loss_at(0, kind) != loss_at(1, kind)
        assert loss_at(0, "none") == loss_at(1, "none")

    def test_two_halves_are_the_whole_exactly(self):
        whole, totals = trained(1)
        half, first = trained(1, 0, 3)
        both, second = trained(1, 3, 6, half)
        assert_trees_equal(whole, both)
        assert int(whole.step) == 6
        assert int(totals.correct) == int(first.correct) + int(second.correct)
        assert int(totals.count) == 6 * 16

    def test_the_start_can_be_used_again(self):
        start = drawn(tiny_model(), 0)
        trained(0, state=init_state(start, optimizer_of()))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(start))

    def test_totals_are_sums_over_the_batches(self):
        model, optimizer = tiny_model(), optimizer_of()
        state = init_state(drawn(model, 1), optimizer)
        expected_loss, expected_correct = 0, 0
        for step in range(2):
            rows = data.training_indices(48, 16, step, 1)
            logits, _ = jax.jit(model.train_logits)(state.variables, PLANTED.images[rows])
            loss, accuracy = training.loss_and_accuracy(np.asarray(logits), PLANTED.labels[rows])
            expected_loss, expected_correct = expected_loss + 16 * loss, expected_correct + 16 * accuracy
            state, _ = trained(1, step, step + 1, state, augmentation="none")
        _, totals = trained(1, 0, 2, augmentation="none")
        assert float(totals.loss) == pytest.approx(expected_loss, rel=1e-4)
        assert int(totals.correct) == round(expected_correct)

    def test_progress_hears_of_every_step(self):
        model, optimizer, heard = tiny_model(), optimizer_of(), []
        state = init_state(drawn(model, 1), optimizer)
        run_steps(Recipe(model, optimizer, "shift", 16, 1), state, zero_totals(), PLANTED, 0, 3, heard.append)
        assert heard == [16, 16, 16]

    def test_is_traced_once_over_many_batches_and_calls(self):
        (model, traces), optimizer = counted(tiny_model(), "train_logits"), optimizer_of()
        state = init_state(drawn(model, 0), optimizer)
        for start in (0, 5):
            state, _ = run_steps(
                Recipe(model, optimizer, "shift", 20, 7), state, zero_totals(), PLANTED, start, start + 5
            )
        assert len(traces) == 1


class TestNotFinite:
    def test_weights_of_nan_are_noticed_at_the_first_step(self):
        model, optimizer = tiny_model(), optimizer_of()
        variables = jax.tree.map(lambda leaf: leaf * jnp.nan, drawn(model, 0))
        with pytest.raises(NotFiniteError, match=r"not finite at step 1$") as error:
            run_steps(
                Recipe(model, optimizer, "shift", 16, 0), init_state(variables, optimizer), zero_totals(), PLANTED, 0, 3
            )
        assert error.value.step == 1

    def test_the_first_of_several_bad_steps_is_named(self):
        # Step 1 ruins the weights, and step 2 is the first to show it.
        model, optimizer = tiny_model(), optimizer_of("sgd", 1e38)
        state = init_state(drawn(model, 0), optimizer)
        with pytest.raises(NotFiniteError) as error:
            run_steps(Recipe(model, optimizer, "shift", 16, 0), state, zero_totals(), PLANTED, 0, 6)
        assert error.value.step == 2
        assert "step 2" in str(error.value)


class TestOptimizer:
    """Warm-up, decay and mask, read off from the updates themselves."""

    def updates(self, optimizer, params, gradients, steps):
        state, seen = optimizer.init(params), []
        for _ in range(steps):
            update, state = optimizer.update(gradients, state, params)
            seen.append(jax.device_get(update))
        return seen

    def rates(self, total, warmup, steps):
        """Learning rates by step: with equal gradients, AdamW without decay moves each weight by exactly the rate."""
        seen = self.updates(
            make_optimizer("adamw", 1.0, 0.0, total, warmup), {"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, steps
        )
        return [-float(update["w"][0]) for update in seen]

    def test_the_rate_warms_up_linearly_and_decays_as_a_cosine(self):
        # Zero would come just before the first step and just after the last.
        rise = [0.25, 0.5, 0.75]
        fall = [0.5 * (1 + np.cos(np.pi * step / 17)) for step in range(18)]
        np.testing.assert_allclose(self.rates(20, 0.2, 21), rise + fall, atol=1e-5)

    @pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 10])
    @pytest.mark.parametrize("warmup", [0.0, 0.1, 0.9])
    def test_every_length_and_warm_up_that_the_config_allows_gives_rates_above_0_and_up_to_1(self, total, warmup):
        rates = np.array(self.rates(total, warmup, total))
        assert ((rates > 0) & (rates <= 1 + 1e-5)).all()

    @pytest.mark.parametrize("name", ["sgd", "adamw"])
    def test_weight_decay_touches_kernels_only(self, name):
        params = jax.tree.map(jnp.ones_like, drawn(tiny_model(), 0)["params"])
        still = jax.tree.map(jnp.zeros_like, params)
        last = self.updates(make_optimizer(name, 0.1, 0.5, 10, 0.1), params, still, 1)[-1]
        for path, update in jax.tree_util.tree_leaves_with_path(last):
            # Step 1 has the full rate; Nesterov's momentum makes 1.9 g of the first gradient g.
            expected = -0.1 * 0.5 * (1.9 if name == "sgd" else 1.0) if path[-1].key == "kernel" else 0.0
            np.testing.assert_allclose(update, expected, rtol=1e-5, err_msg=str(path))
        names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(last)}
        assert names == {"kernel", "bias", "scale"}


class TestBatchNormImages:
    def test_are_a_fixed_seeded_subset_of_at_most_2048(self):
        many = planted(3000)
        chosen = training.batch_norm_images(many, 5)
        assert len(chosen) == 2048
        np.testing.assert_array_equal(chosen, training.batch_norm_images(many, 5))
        assert (chosen != training.batch_norm_images(many, 6)).any()
        assert len({image.tobytes() for image in chosen}) == 2048

    def test_of_large_images_there_are_fewer(self):
        assert training.batch_norm_count(10**6, 104 * 104 * 3) == 2048
        assert training.batch_norm_count(10**6, 224 * 224 * 3) == 2**26 // (224 * 224 * 3)
        assert training.batch_norm_count(300, 224 * 224 * 3) == 300
        assert training.batch_norm_count(300, 2**27) == 1

    def test_are_all_images_of_a_small_set(self):
        np.testing.assert_array_equal(training.batch_norm_images(PLANTED, 5), PLANTED.images)


class TestAugment:
    def images(self, count=200, side=16):
        """Each pixel holds its own row and column, so that a shift can be read off."""
        rows, columns = np.indices((side, side))
        return np.broadcast_to(np.stack([rows, columns], -1).astype(np.uint8), (count, side, side, 2))

    def test_none_changes_nothing(self):
        images = self.images()
        assert training.augment(images, "none", jax.random.key(0)) is images

    @pytest.mark.parametrize(("side", "reach"), [(16, 2), (8, 1), (4, 1), (20, 2)])
    def test_shifts_reach_an_eighth_of_the_side_in_every_direction(self, side, reach):
        shifted = np.asarray(training.augment(self.images(side=side), "shift", jax.random.key(0))).astype(int)
        centre = side // 2
        offsets = shifted[:, centre, centre] - centre
        assert {tuple(offset) for offset in offsets} == {
            (row, column) for row in range(-reach, reach + 1) for column in range(-reach, reach + 1)
        }
        # Edges are replicated: a pixel beyond the border holds the border's value.
        places = np.indices((side, side)).transpose(1, 2, 0) + offsets[:, None, None]
        np.testing.assert_array_equal(shifted, np.clip(places, 0, side - 1))

    def test_shift_flip_mirrors_about_half_of_the_images_left_to_right(self):
        key = jax.random.key(1)
        shifted, flipped = (np.asarray(training.augment(self.images(), kind, key)) for kind in ("shift", "shift_flip"))
        same = (flipped == shifted).all((1, 2, 3))
        mirrored = (flipped == shifted[:, :, ::-1]).all((1, 2, 3))
        assert (same ^ mirrored).all()
        assert 60 < mirrored.sum() < 140

    @pytest.mark.parametrize("kind", ["shift", "shift_flip"])
    def test_is_a_function_of_the_key_and_keeps_the_dtype(self, kind):
        one, again, other = (training.augment(self.images(), kind, jax.random.key(seed)) for seed in (0, 0, 1))
        assert one.dtype == jnp.uint8
        np.testing.assert_array_equal(one, again)
        assert (np.asarray(one) != np.asarray(other)).any()


class TestMeasures:
    logits = (np.random.default_rng(0).normal(size=(50, 4)) * 5).astype(np.float32)
    labels = np.random.default_rng(1).integers(4, size=50)

    def test_loss_and_accuracy_equal_sklearn(self):
        loss, accuracy = training.loss_and_accuracy(self.logits, self.labels)
        probabilities = scipy.special.softmax(self.logits.astype(np.float64), axis=-1)
        assert loss == pytest.approx(sklearn.metrics.log_loss(self.labels, probabilities), rel=1e-9)
        assert accuracy == sklearn.metrics.accuracy_score(self.labels, self.logits.argmax(-1))

    def test_confidence_equals_scipy(self):
        found = training.confidence(self.logits)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, scipy.special.softmax(self.logits.astype(np.float64), axis=-1), **ROUNDING)

    def test_large_logits_neither_overflow_nor_lose_the_loss(self):
        logits = np.array([[1000.0, 0.0], [-1000.0, 0.0]], np.float32)
        loss, accuracy = training.loss_and_accuracy(logits, np.array([1, 1]))
        assert (loss, accuracy) == (500.0, 0.5)
        np.testing.assert_array_equal(training.confidence(logits), [[1, 0], [0, 1]])

    def test_predict_gives_every_sample_its_row_whatever_the_batch(self):
        model = tiny_model()
        variables = drawn(model, 0)
        whole = training.predict(model, variables, PLANTED, 48)
        assert whole.shape == (48, 3)
        np.testing.assert_allclose(training.predict(model, variables, PLANTED, 20), whole, **ROUNDING)
