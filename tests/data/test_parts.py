"""Scenes of known parts: their design, what a removal changes, of what they depend, and what is refused."""

import itertools

import numpy as np
import pytest

from i2x_jax import parts
from i2x_jax.config import InputError
from i2x_jax.data import dataset as data
from i2x_jax.data import sources
from i2x_jax.data.pictures import Reading
from tests.helpers import one_line


@pytest.fixture(scope="module")
def train():
    """Not to be changed."""
    return parts.scenes("train", seed=3, count=1000)


@pytest.fixture(scope="module")
def test():
    """Not to be changed."""
    return parts.scenes("test", seed=3, count=1000)


def boxes(scenes, item):
    """Bool `[n, 32, 32]`, True in the box of an item."""
    place = np.arange(parts.SIDE)
    inside = [
        (place >= scenes.corners[:, item, axis, None]) & (place < scenes.corners[:, item, axis, None] + parts.BOX)
        for axis in (0, 1)
    ]
    return inside[0][:, :, None] & inside[1][:, None, :]


class TestDesign:
    def test_classes_are_different_sets_of_three_parts(self):
        sets = {frozenset(each) for each in parts.CLASSES.tolist()}
        assert {len(each) for each in sets} == {3}
        assert len(sets) == len(parts.CLASSES) == len(parts.CLASS_NAMES) == 10

    def test_every_part_is_in_two_to_five_classes_and_not_all_in_equally_many(self):
        counts = np.bincount(parts.CLASSES.ravel(), minlength=len(parts.PARTS))
        assert len(counts) == 8
        assert counts.min() == 2
        assert counts.max() == 5
        assert len(set(counts)) == 4

    def test_shapes_are_different_and_fill_their_box(self):
        assert parts.STENCILS.shape == (10, 7, 7)
        assert all((one != other).sum() >= 6 for one, other in itertools.combinations(parts.STENCILS, 2))
        # No part is told by its size: all reach the four sides of their box.
        stencils = parts.STENCILS[: len(parts.PARTS)]
        assert stencils[:, [0, -1]].any(2).all()
        assert stencils[:, :, [0, -1]].any(1).all()

    def test_no_foreign_part_completes_another_class(self):
        for own, foreign in zip(parts.CLASSES.tolist(), parts.FOREIGN, strict=True):
            assert foreign
            for part in foreign:
                assert part not in own
                complete = [each for each in parts.CLASSES.tolist() if set(each) <= {*own, part}]
                assert complete == [own]


class TestScenes:
    @pytest.mark.parametrize("split", ["train", "test"])
    def test_every_class_is_reached_by_its_parts_and_no_other_is_complete(self, split, request):
        scenes = request.getfixturevalue(split)
        for label, kinds in zip(scenes.labels, scenes.kinds.tolist(), strict=True):
            complete = [i for i, each in enumerate(parts.CLASSES) if set(each) <= set(kinds)]
            assert complete == [label] * (-1 not in kinds)
            own, foreign, neutral = kinds[:3], kinds[parts.FOREIGN_ITEM], kinds[parts.NEUTRAL_ITEM]
            assert all(kind in (part, -1) for kind, part in zip(own, parts.CLASSES[label], strict=True))
            assert foreign in parts.FOREIGN[label]
            assert neutral >= len(parts.PARTS)
        assert set(scenes.labels) == set(range(10))

    def test_a_fifth_of_the_training_scenes_lack_one_part_and_no_test_scene(self, train, test):
        lacking = (train.kinds < 0).sum(1)
        assert set(lacking) == {0, 1}
        assert abs(lacking.sum() - 200) < 5 * np.sqrt(1000 * 0.2 * 0.8)
        assert (train.kinds[:, :3] < 0).any(0).all()
        assert (test.kinds >= 0).all()

    def test_items_lie_in_the_image_and_never_overlap(self, train):
        covered = sum(boxes(train, item).astype(int) for item in range(parts.ITEMS))
        assert covered.max() == 1
        assert (covered.sum((1, 2)) == 5 * 49).all()
        # And everywhere: no pixel is never covered but those that no box of any place reaches.
        assert covered.any(0).all()

    def test_contrasts_have_both_signs_and_one_part_is_fainter(self, train):
        there = train.kinds >= 0
        faint = train.kinds == parts.FAINT
        strength = abs(train.contrast)
        assert strength[there & ~faint].min() >= np.float32(0.35)
        assert strength[there & ~faint].max() <= np.float32(0.6)
        assert strength[faint].max() <= np.float32(0.6 * 0.45)
        assert strength[faint].min() >= np.float32(0.35 * 0.45) - 1e-6
        assert abs((train.contrast[there] > 0).mean() - 0.5) < 0.05

    def test_the_ground_is_smooth_noise(self, train):
        assert abs(train.ground.mean() - 0.5) < 0.01
        within = train.ground.std((1, 2))
        assert 0.02 < within.mean() < 0.08
        assert abs(np.diff(train.ground, axis=1)).mean() < within.mean() / 3

    def test_a_scene_is_the_same_however_many_there_are_and_whoever_takes_it(self, train):
        few = parts.scenes("train", seed=3, count=7)
        for one, other in zip(few, train.take(np.arange(7)), strict=True):
            np.testing.assert_array_equal(one, other)
        rows = np.array([900, 3, 3, 41])
        np.testing.assert_array_equal(parts.draw(train.take(rows)), parts.draw(train)[rows])

    def test_seeds_and_splits_give_others(self, train, test):
        images = [parts.draw(each) for each in (train, test, parts.scenes("train", seed=4, count=1000))]
        seen = [{image.tobytes() for image in each} for each in images]
        assert len(set.union(*seen)) == 3000


class TestWithout:
    @pytest.mark.parametrize("item", range(parts.ITEMS))
    def test_a_removal_touches_only_the_box_of_the_item(self, train, item):
        before, after = parts.draw(train)[..., 0], parts.draw(parts.without(train, item))[..., 0]
        box, there = boxes(train, item), train.kinds[:, item] >= 0
        assert not ((before != after) & ~box).any()
        np.testing.assert_array_equal((before != after).any((1, 2)), there)
        ground = np.round(255 * train.ground).astype(np.uint8)
        np.testing.assert_array_equal(after[box], ground[box])

    def test_all_items_gone_leave_the_ground(self, train):
        bare = train
        for item in range(parts.ITEMS):
            bare = parts.without(bare, item)
        np.testing.assert_array_equal(parts.draw(bare)[..., 0], np.round(255 * train.ground).astype(np.uint8))

    def test_each_image_may_lose_another_item(self, train):
        items = np.arange(1000) % parts.ITEMS
        mixed = parts.draw(parts.without(train, items))
        for item in range(parts.ITEMS):
            one = parts.draw(parts.without(train, item))
            np.testing.assert_array_equal(mixed[items == item], one[items == item])
        assert (train.kinds[:, parts.NEUTRAL_ITEM] >= 0).all()


class TestAsADataSet:
    def test_its_images_are_those_of_the_scenes(self, test):
        made = data.load("parts:3", "test")
        assert made.images.shape == (2000, 32, 32, 1)
        assert (made.images.dtype, made.labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(made.images[:1000], parts.draw(test))
        np.testing.assert_array_equal(made.labels[:1000], test.labels)
        assert made.class_names == parts.CLASS_NAMES

    def test_rows_of_a_split_are_those_of_the_scenes(self):
        splits = data.load_splits("parts", 0.15, max_train=500)
        for split in (splits.train, splits.validation):
            again = parts.scenes("train").take(split.rows)
            np.testing.assert_array_equal(parts.draw(again), split.images)
            np.testing.assert_array_equal(again.labels, split.labels)

    def test_it_has_seeds(self):
        prints = [data.fingerprint(data.load(name, "test")) for name in ("parts", "parts:0", "parts:1")]
        assert prints[0] == prints[1] != prints[2]

    def test_it_can_be_resized_and_described(self):
        assert data.load("parts", "test", how=Reading(size=16)).images.shape == (2000, 16, 16, 1)
        assert sources.describe("parts:5", None) == ((32, 32, 1), 10)


class TestRefused:
    @pytest.mark.parametrize("name", ["parts:", "parts:x", "parts:-1", "parts:1.0", "parts:2147483648", "parts:٣"])
    def test_what_is_no_seed(self, name):
        with pytest.raises(InputError) as error:
            data.load(name, "test")
        assert "has no seed behind its colon; allowed: parts, or parts:SEED with 0 to 2147483647" in one_line(error)

    def test_a_name_that_is_nearly_this_one(self):
        with pytest.raises(
            InputError, match=r"allowed: digits, parts, folder:DIR, csv:FILE, or an image set.*did you mean parts\?"
        ):
            data.load("partz", "test")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"split": "validation"}, "unknown split 'validation' of parts; allowed: train, test"),
            ({"seed": -1}, "the seed of parts is -1; allowed: a whole number, 0 to 2147483647"),
            ({"seed": 2**31}, "the seed of parts is 2147483648"),
            ({"seed": 1.5}, "the seed of parts is 1.5"),
            ({"count": -1}, "the count of parts is -1; allowed: a whole number, at least 0"),
            ({"count": True}, "the count of parts is True"),
        ],
    )
    def test_arguments(self, arguments, message):
        with pytest.raises(InputError) as error:
            parts.scenes(**arguments)
        assert message in one_line(error)

    @pytest.mark.parametrize("item", [5, -1, 0.5, np.array([0, 7])])
    def test_no_such_item(self, test, item):
        scenes = test.take(np.arange(2))
        with pytest.raises(InputError, match="allowed: 0 to 4"):
            parts.without(scenes, item)
