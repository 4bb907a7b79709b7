"""Acting on prototypes, and how it is wired into a training step, against loops over images and pixels."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i2x_jax.data.dataset import training_indices
from i2x_jax.models.places import Places, Span
from i2x_jax.refinement import actions
from i2x_jax.refinement.actions import KINDS, Acted, Acting, Swapped
from i2x_jax.training import loop as training
from tests.helpers import counted, planted, tiny_model, tiny_variables

TRAIN = planted(24)
SIDE, BATCH, COLOUR = 8, 8, 77
PLACES = Places(Span(1.0, 2.0, 3), Span(0.0, 2.0, 3))


@pytest.fixture
def cells():
    """Locations of a cue in a map of 4x4: in a corner of a third of the images."""
    found = np.zeros((24, 4, 4), bool)
    found[::3, 0, 1] = True
    return found


def masked(cells):
    return actions.masks_of("pattern", cells, cells, PLACES, (SIDE, SIDE, 1))


class TestMasks:
    def test_dilated_as_by_a_loop(self):
        cells = np.random.default_rng(0).random((5, 4, 6)) < 0.1
        expected = np.zeros_like(cells)
        for n, i, j in np.argwhere(cells):
            expected[n, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2] = True
        np.testing.assert_array_equal(actions.dilated(cells), expected)

    def test_pixels_are_those_within_a_stride_of_the_measured_centre(self):
        cells = np.random.default_rng(1).random((3, 4, 4)) < 0.3
        expected = np.zeros((3, SIDE, SIDE), bool)
        for n, i, j in np.argwhere(cells):
            for row in range(SIDE):
                for column in range(SIDE):
                    inside = -2 <= row - (1 + 2 * i) < 2 and -2 <= column - 2 * j < 2
                    expected[n, row, column] |= inside
        np.testing.assert_array_equal(actions.pixel_masks(cells, PLACES, (SIDE, SIDE, 1)), expected)

    def test_a_place_is_the_fewest_cells_of_nine_tenths(self):
        cells = np.zeros((100, 2, 3), bool)
        for (i, j), count in {(0, 0): 50, (1, 2): 40, (0, 1): 6, (1, 1): 4}.items():
            cells[:count, i, j] = True
        np.testing.assert_array_equal(actions.place_cells(cells), [[True, False, False], [False, False, True]])
        cells[:, 0, 0] = False
        assert actions.place_cells(cells).sum() == 2  # 40 and 6 of 50
        assert not actions.place_cells(cells[:0]).any()

    def test_a_pattern_is_dilated_and_of_each_image_a_place_is_the_same_of_all(self, cells):
        pattern = masked(cells)(np.arange(24))
        expected = actions.pixel_masks(actions.dilated(cells), PLACES, (SIDE, SIDE))
        np.testing.assert_array_equal(pattern, expected)
        assert pattern.any((1, 2)).tolist() == ([True, False, False] * 8)
        place = actions.masks_of("place", cells[1:2], cells, PLACES, (SIDE, SIDE))(np.arange(5))
        assert place.shape == (5, SIDE, SIDE)
        np.testing.assert_array_equal(place, np.tile(actions.pixel_masks(cells[0], PLACES, (SIDE, SIDE)), (5, 1, 1)))


def by_hand(kind, images, masks, donors, squares):
    """What an action leaves of uint8 images, pixel by pixel; labels are not touched, for there are none here."""
    after = images.copy()
    for i, j in enumerate(donors):
        for row in range(SIDE):
            for column in range(SIDE):
                own, other = masks[i, row, column], masks[j, row, column]
                either = squares[i, row, column] or squares[j, row, column]
                if (kind == "swap" and (own or other)) or (kind == "paste" and other):
                    after[i, row, column] = images[j, row, column]
                if kind == "random_patch" and either:
                    after[i, row, column] = images[j, row, column]
                if (kind == "fill_mean" and own) or (kind == "cutout" and squares[i, row, column]):
                    after[i, row, column] = COLOUR
                if kind == "fill_blur" and own:
                    window = [np.clip(np.arange(at - 3, at + 4), 0, SIDE - 1) for at in (row, column)]
                    after[i, row, column] = np.round(images[i][np.ix_(*window)].mean((0, 1)))
    return after


@functools.cache
def witness():
    """A model that leaves the images that it was trained on in the place of its statistics, and an optimizer."""
    original = tiny_model().train_logits

    def noted(variables, images):
        return original(variables, images)[0], {"seen": images.astype(jnp.float32)}

    return dataclasses.replace(tiny_model(), train_logits=noted), training.make_optimizer("adamw", 1e-3, 0.0, 4, 0.1)


def seen_by(kind, cells, key, augmentation="none", area=0):
    """The images that the network was given in the first step on `Acted` images, and the batch."""
    batch = Acted(TRAIN.images, kind, masked(cells), COLOUR, area)[np.arange(BATCH)]
    model, optimizer = witness()
    state = training.init_state(tiny_variables(), optimizer)
    labels = TRAIN.labels[:BATCH]
    state, _ = training.train_step(model, optimizer, augmentation, state, training.zero_totals(), batch, labels, key)
    return np.asarray(state.variables["batch_stats"]["seen"]).astype(np.uint8), batch


def drawn(key, batch):
    """Donors and squares of the first step."""
    own = jax.random.fold_in(jax.random.fold_in(key, 0), training.CHANGES)
    donors = np.asarray(actions.donors_of(own, BATCH))
    return donors, np.asarray(actions.patches(actions.squares_key(own), batch.areas, SIDE, SIDE))


class TestStep:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_step_sees_what_a_loop_over_pixels_makes(self, kind, cells):
        key = jax.random.key(3)
        found, batch = seen_by(kind, cells, key, area=9 if kind == "cutout" else 0)
        donors, squares = drawn(key, batch)
        assert sorted(donors) == list(range(BATCH))
        assert (donors != np.arange(BATCH)).any()
        expected = by_hand(kind, TRAIN.images[:BATCH], batch.masks, donors, squares)
        np.testing.assert_array_equal(found, expected)
        assert (expected != TRAIN.images[:BATCH]).any() == (kind != "plain")

    def test_the_swap_comes_before_the_augmentation(self, cells):
        key = jax.random.key(4)
        found, batch = seen_by("swap", cells, key, "shift")
        donors, squares = drawn(key, batch)
        of_step = jax.random.fold_in(key, 0)
        before = by_hand("swap", TRAIN.images[:BATCH], batch.masks, donors, squares)
        np.testing.assert_array_equal(found, training.augment(before, "shift", of_step))
        shifted = np.asarray(training.augment(TRAIN.images[:BATCH], "shift", of_step))
        assert (found != by_hand("swap", shifted, batch.masks, donors, squares)).any()

    def test_plain_steps_are_those_of_a_training(self, cells):
        """The augmentation is the same whether something is changed or not."""
        key = jax.random.key(5)
        found, _ = seen_by("plain", cells, key, "shift")
        expected = training.augment(TRAIN.images[:BATCH], "shift", jax.random.fold_in(key, 0))
        np.testing.assert_array_equal(found, expected)

    def test_the_swap_takes_the_masks_of_both(self, cells):
        """An image without the cue gets its donor's, and one with the cue loses it."""
        key = jax.random.key(3)
        found, batch = seen_by("swap", cells, key)
        donors, _ = drawn(key, batch)
        holds = batch.masks.any((1, 2))
        gains, loses = ~holds & holds[donors], holds & ~holds[donors]
        assert gains.any()
        assert loses.any()
        for i in np.flatnonzero(gains | loses):
            mask = batch.masks[i] | batch.masks[donors[i]]
            np.testing.assert_array_equal(found[i][mask], TRAIN.images[donors[i]][mask])
            np.testing.assert_array_equal(found[i][~mask], TRAIN.images[i][~mask])

    def test_labels_stay_with_their_images_and_all_actions_share_one_program(self, cells, monkeypatch):
        model, traced = counted(tiny_model(), "train_logits")
        optimizer = training.make_optimizer("adamw", 1e-3, 0.0, 2, 0.1)
        seen, original = [], training.train_step

        def noted(model, optimizer, augmentation, state, totals, images, labels, key):
            seen.append((np.asarray(images.images), np.asarray(labels)))
            return original(model, optimizer, augmentation, state, totals, images, labels, key)

        monkeypatch.setattr(training, "train_step", noted)
        for kind in KINDS:
            dataset = TRAIN._replace(images=Acted(TRAIN.images, kind, masked(cells), COLOUR, 4))
            if kind == "plain":
                dataset = dataset.take(np.arange(3, 20))
            recipe = training.Recipe(model, optimizer, "shift", BATCH, 7)
            state = training.init_state(tiny_variables(), optimizer)
            training.run_steps(recipe, state, training.zero_totals(), dataset, 0, 2)
        assert len(traced) == 1
        assert len(seen) == 2 * len(KINDS)
        for step, (images, labels) in enumerate(seen[2:]):
            rows = training_indices(24, BATCH, step % 2, 7)
            np.testing.assert_array_equal(labels, TRAIN.labels[rows])
            np.testing.assert_array_equal(images, TRAIN.images[rows])


def test_squares_have_their_area_and_lie_inside():
    areas = np.array([0, 1, 4, 9, 10, 25, 64, 400] * 20)
    found = np.asarray(actions.patches(jax.random.key(0), areas, 8, 12))
    sides = np.minimum(np.round(np.sqrt(areas)), 8).astype(int)
    np.testing.assert_array_equal(found.sum((1, 2)), sides**2)
    for square, side in zip(found[areas > 0], sides[areas > 0], strict=True):
        rows, columns = np.flatnonzero(square.any(1)), np.flatnonzero(square.any(0))
        assert (len(rows), len(columns)) == (side, side)
        assert square[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    # Every place of the image is reached.
    assert found[areas == 9].any(0).sum() > 60


def test_swapped_images_are_those_of_the_swap(cells):
    donors = np.random.default_rng(0).permutation(24)
    masks = masked(cells)
    found = Swapped(TRAIN.images, masks, donors)
    expected = by_hand("swap", TRAIN.images, masks(np.arange(24)), donors, np.zeros((24, SIDE, SIDE), bool))
    np.testing.assert_array_equal(found[np.array([5, 3])], expected[[5, 3]])
    np.testing.assert_array_equal(found[:], expected)
    assert (expected != TRAIN.images).any()


def test_a_batch_has_areas_of_its_own_masks_unless_one_is_given(cells):
    own = Acted(TRAIN.images, "random_patch", masked(cells))[np.arange(4)]
    assert own.areas.tolist() == own.masks.sum((1, 2)).tolist()
    assert own.areas[0] > 0 == own.areas[1]
    assert Acted(TRAIN.images, "cutout", None, area=9)[np.arange(4)].areas.tolist() == [9] * 4
    assert isinstance(own, Acting)


class TestSamples:
    def test_balanced_the_cue_does_not_depend_on_the_class(self):
        labels, rng = np.repeat(np.arange(3), 400), np.random.default_rng(0)
        holds = rng.random(1200) < np.array([0.95, 0.01, 0.04])[labels]
        rows = actions.balanced_rows(labels, holds, rng)
        np.testing.assert_array_equal(np.bincount(labels[rows]), [400] * 3)
        shares = [holds[rows][labels[rows] == label].mean() for label in range(3)]
        np.testing.assert_allclose(shares, holds.mean(), atol=1 / 400)

    def test_a_class_that_cannot_be_balanced_keeps_its_samples(self):
        labels, holds = np.repeat([0, 1], 6), np.repeat([True, False], [6, 6])
        assert sorted(actions.balanced_rows(labels, holds, np.random.default_rng(0))) == list(range(12))

    def test_those_that_hold_most_are_left_out_to_a_share_of_each_class(self):
        cells = np.zeros((10, 2, 2), bool)
        cells[1, 0], cells[3], cells[7, 0, 0] = True, True, True
        labels = np.repeat([0, 1], 5)
        assert actions.holding_rows(cells, labels, 0.2).tolist() == [3, 7]
        assert actions.holding_rows(cells, labels, 0.4).tolist() == [1, 3, 7]
        assert actions.holding_rows(cells, labels, 0.1).tolist() == []
