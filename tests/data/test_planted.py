"""Cues that were planted: where they are, how often, of what they depend, and what is refused."""

import dataclasses

import numpy as np
import own_networks
import pytest

import i2x_jax
from i2x_jax import command
from i2x_jax.config import DataConfig, InputError
from i2x_jax.data import dataset as data_set
from i2x_jax.data import planted
from i2x_jax.data.dataset import Dataset, Splits
from i2x_jax.data.source import Chosen
from i2x_jax.results.opened_run import dataset_of
from tests.helpers import one_line
from tests.helpers import planted as images_of_classes

KINDS = ("tag", "tag_anywhere", "colour")


def grey(count=4000, classes=4, shape=(12, 14, 1)):
    """Images of one level, which no cue has; classes take turns."""
    labels = np.arange(count, dtype=np.int32) % classes
    return Dataset(np.full((count, *shape), 100, np.uint8), labels, tuple(map(str, range(classes))))


def settings(kind, **more):
    return DataConfig(name="own", plant=kind, **more)


def own_splits(count=900, classes=3):
    whole = images_of_classes(count, classes, side=12)
    rest, test = data_set.hold_out(whole, 0.2, 1)
    return Splits(*data_set.hold_out(rest, 0.2, 2), test)


def within_bounds(found, probability, count):
    """Whether so many of `count` are within 5 standard deviations, or 1, of what a binomial law expects."""
    return abs(found - count * probability) <= 1 + 5 * np.sqrt(count * probability * (1 - probability))


class TestPixels:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_masks_are_the_pixels_that_differ(self, kind, channels):
        before = grey(300, shape=(12, 14, channels))
        after = planted.plant(before, settings(kind), biased=False)
        differs = (after.images[:] != before.images).any(-1)
        np.testing.assert_array_equal(planted.masks(after), differs)
        shown = differs.any((1, 2))
        side = planted.SIZES[kind]
        assert (differs[shown].sum((1, 2)) == side**2).all()
        assert shown.all() if kind == "colour" else 0 < shown.sum() < 300
        assert after.images.shape == (300, 12, 14, 3 if kind == "colour" else channels)
        assert after.images[:].dtype == after.images.dtype == np.uint8

    @pytest.mark.parametrize("kind", KINDS)
    def test_any_rows_in_any_order_are_the_same_images(self, kind):
        seen = planted.plant(images_of_classes(60, side=12), settings(kind, plant_strength=0.7)).images
        whole = seen[:]
        order = np.random.default_rng(0).permutation(60)
        np.testing.assert_array_equal(seen[order], whole[order])
        np.testing.assert_array_equal(np.concatenate([seen[i : i + 7] for i in range(0, 60, 7)]), whole)
        np.testing.assert_array_equal(seen[17], whole[17])
        np.testing.assert_array_equal(seen[np.array([5, 5, -1])], whole[[5, 5, 59]])
        np.testing.assert_array_equal(seen[np.arange(60) % 2 == 0], whole[::2])
        np.testing.assert_array_equal(Chosen(seen, order)[3:9], whole[order][3:9])
        assert seen[:0].shape == (0, *seen.shape[1:])

    def test_the_images_themselves_stay_as_they_are(self):
        dataset = images_of_classes(60, side=12)
        before = dataset.images.copy()
        planted.plant(dataset, settings("tag", plant_strength=1.0)).images[:]
        np.testing.assert_array_equal(dataset.images, before)

    def test_an_image_has_its_cue_by_its_row_whatever_else_is_in_the_set(self):
        whole = grey(400)
        part = whole.take(np.array([3, 399, 17, 4, 200]))
        for kind in KINDS:
            for biased in (False, True):
                one, other = (planted.plant(each, settings(kind), biased).images for each in (whole, part))
                np.testing.assert_array_equal(other[:], one[part.rows])

    @pytest.mark.parametrize(
        ("place", "rows", "columns"),
        [
            ("top_left", {0, 1, 2}, {0, 1, 2}),
            ("top_right", {0, 1, 2}, {7, 8, 9}),
            ("bottom_left", {5, 6, 7}, {0, 1, 2}),
            ("bottom_right", {5, 6, 7}, {7, 8, 9}),
        ],
    )
    @pytest.mark.parametrize("kind", ["tag", "colour"])
    def test_the_cue_stands_in_its_corner_moved_by_a_pixel(self, kind, place, rows, columns):
        masks = planted.masks(planted.plant(grey(), settings(kind, plant_place=place, plant_size=5)))
        masks = masks[masks.any((1, 2))]
        assert set(masks.any(2).argmax(1)) == rows
        assert set(masks.any(1).argmax(1)) == columns

    def test_a_tag_anywhere_is_everywhere(self):
        masks = planted.masks(planted.plant(grey(), settings("tag_anywhere", plant_size=4), biased=False))
        masks = masks[masks.any((1, 2))]
        assert set(masks.any(2).argmax(1)) == set(range(9))
        assert set(masks.any(1).argmax(1)) == set(range(11))

    def test_the_tag_is_a_checker_in_every_channel(self):
        dataset = grey(100, shape=(12, 14, 3))
        after = planted.plant(dataset, settings("tag", plant_size=3, plant_strength=1.0))
        square = after.images[0][planted.masks(after)[0]].reshape(3, 3, 3)
        np.testing.assert_array_equal(square[..., 0], [[255, 0, 255], [0, 255, 0], [255, 0, 255]])
        assert (square == square[..., :1]).all()


class TestHowOften:
    @pytest.mark.parametrize("strength", [0.0, 0.6, 0.98, 1.0])
    @pytest.mark.parametrize("seed", [0, 6])
    def test_a_tag_is_in_its_class_as_often_as_asked(self, strength, seed):
        dataset = grey()
        after = planted.plant(dataset, settings("tag", plant_strength=strength, plant_seed=seed))
        shown, tagged = planted.masks(after).any((1, 2)), dataset.labels == seed % 4
        assert planted.cued_class(settings("tag", plant_seed=seed), 4) == seed % 4
        assert within_bounds(shown[tagged].sum(), strength, 1000)
        assert within_bounds(shown[~tagged].sum(), planted.ELSEWHERE, 3000)

    @pytest.mark.parametrize("strength", [0.25, 0.97, 1.0])
    def test_a_colour_is_that_of_the_class_as_often_as_asked_and_else_any_other(self, strength):
        codes = self.codes(strength, biased=True)
        dataset = grey()
        for label in range(4):
            counts = np.bincount(codes[dataset.labels == label], minlength=4)
            assert within_bounds(counts[label], strength, 1000)
            assert all(within_bounds(counts[c], (1 - strength) / 3, 1000) for c in range(4) if c != label)

    def test_unbiased_cues_are_independent_of_the_class(self):
        labels = grey().labels
        for kind in ("tag", "tag_anywhere"):
            shown = planted.masks(planted.plant(grey(), settings(kind), biased=False)).any((1, 2))
            assert all(within_bounds(shown[labels == label].sum(), 0.5, 1000) for label in range(4))
        codes = self.codes(0.97, biased=False)
        for label in range(4):
            counts = np.bincount(codes[labels == label], minlength=4)
            assert all(within_bounds(count, 0.25, 1000) for count in counts)

    def codes(self, strength, biased):
        """Which class's colour each square has, read from the pixels."""
        after = planted.plant(grey(), settings("colour", plant_strength=strength), biased)
        square = after.images[:][planted.masks(after)].reshape(4000, -1, 3)
        assert (square == square[:, :1]).all()
        same = (square[:, :1] == np.uint8(planted.COLOURS[:4])).all(-1)
        assert (same.sum(1) == 1).all()
        return same.argmax(1)

    def test_no_two_colours_are_alike(self):
        colours = np.array(planted.COLOURS)
        apart = abs(colours[:, None] - colours[None]).max(-1)
        assert (apart + 255 * np.eye(len(colours), dtype=int)).min() >= 127
        assert (colours.max(1) > colours.min(1)).all()


class TestSets:
    def test_the_sets_and_what_they_are_made_of(self):
        splits = own_splits()
        made = planted.completed(splits, settings("tag"), seed=0)
        assert set(made.sets()) == {"train", "validation", "test", "audit", "unbiased"}
        # The audit set is a part of what was the training set, by at most a fifth.
        assert 100 <= len(made.audit.labels) <= len(splits.train.labels) / 5
        assert sorted([*made.train.rows, *made.audit.rows]) == sorted(splits.train.rows)
        np.testing.assert_array_equal(made.unbiased.rows, splits.test.rows)
        tagged = {name: planted.masks(each).any((1, 2)).mean() for name, each in made.sets().items()}
        assert all(tagged[name] < 0.4 for name in ("train", "validation", "test"))
        assert all(tagged[name] > 0.4 for name in ("audit", "unbiased"))

    def test_without_a_plant_nothing_is_changed(self):
        splits = own_splits()
        assert planted.completed(splits, settings(""), seed=0) is splits
        assert planted.masks(splits.train) is None

    def test_some_200_images_are_audited_where_there_are_many(self):
        splits = Splits(grey(5000), grey(40), grey(40))
        distinct = np.random.default_rng(0).integers(0, 256, splits.train.images.shape).astype(np.uint8)
        made = planted.completed(splits._replace(train=splits.train._replace(images=distinct)), settings("tag"), 0)
        assert 190 <= len(made.audit.labels) <= 200

    def test_fingerprints_differ_with_the_plant_and_its_seed(self):
        splits = own_splits()
        kinds = [settings("tag"), settings("tag", plant_seed=3), settings("colour"), settings("colour", plant_seed=3)]
        for name in ("train", "validation", "test"):
            prints = {data_set.fingerprint(getattr(splits, name))} | {
                data_set.fingerprint(getattr(planted.completed(splits, each, 0), name)) for each in kinds
            }
            assert len(prints) == 1 + len(kinds)

    def test_named_sets_are_the_test_images_of_a_data_set(self, monkeypatch):
        named = {name: own_splits() for name in ("one", "two")}
        monkeypatch.setattr(planted, "load", lambda name, split, *_: getattr(named[name], split))
        made = planted.completed(own_splits(), DataConfig(audit="one", unbiased="two"), 0)
        np.testing.assert_array_equal(made.audit.images, named["one"].test.images)
        np.testing.assert_array_equal(made.unbiased.images, named["two"].test.images)


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"plant": "text"}, "config key data.plant is 'text'; allowed: '', 'tag', 'tag_anywhere', 'colour'"),
            ({"plant_strength": 1.01}, "config key data.plant_strength is 1.01; allowed: a finite number from 0 to 1"),
            ({"plant_strength": -0.1}, "config key data.plant_strength is -0.1"),
            ({"plant_strength": float("nan")}, "config key data.plant_strength is nan"),
            ({"plant_size": -1}, "config key data.plant_size is -1; allowed: a whole number of at least 0"),
            ({"plant_place": "middle"}, "config key data.plant_place is 'middle'; allowed: 'top_left', "),
            ({"plant_seed": -1}, "config key data.plant_seed is -1"),
            ({"plant_seed": 2**31}, "config key data.plant_seed is 2147483648"),
        ],
    )
    def test_settings(self, changes, message):
        with pytest.raises(InputError) as error:
            DataConfig(**changes)
        assert message in one_line(error)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_cue_that_does_not_fit_the_images(self, kind):
        planted.plant(grey(20), settings(kind, plant_size=10))
        with pytest.raises(InputError) as error:
            planted.plant(grey(20), settings(kind, plant_size=11))
        assert "config key data.plant_size is 11; allowed: 1 to 10, for images of 12x14; set" in one_line(error)

    def test_more_classes_than_colours(self):
        planted.plant(grey(100, classes=24), settings("colour"))
        with pytest.raises(InputError) as error:
            planted.plant(grey(100, classes=25), settings("colour"))
        assert "is 'colour' with 25 classes; allowed: at most 24" in one_line(error)

    def test_sets_beside_those_that_are_planted(self):
        splits = own_splits()
        with pytest.raises(InputError, match=r"unbiased images are given with data\.plant 'tag'"):
            planted.completed(splits._replace(unbiased=splits.test), settings("tag"), 0)
        with pytest.raises(InputError, match=r"audit images are given with data\.plant 'tag'"):
            planted.completed(splits, settings("tag", audit="digits"), 0)

    @pytest.mark.parametrize(
        ("changes", "key"),
        [({"audit": "digits"}, "audit"), ({"unbiased": "digits"}, "unbiased")],
    )
    def test_the_test_images_of_the_run_in_another_part(self, changes, key):
        with pytest.raises(InputError) as error:
            planted.completed(own_splits(), DataConfig(**changes), 0)
        assert f"config key data.{key} is 'digits', whose test images serve as another set already" in one_line(error)

    def test_one_set_to_choose_by_and_to_test_on(self):
        own = dataclasses.replace(DataConfig(audit="digits", unbiased="digits"), name="own")
        like = data_set.load("digits", "train")
        with pytest.raises(InputError, match=r"data\.unbiased is 'digits', whose test images"):
            planted.completed(Splits(like, like, like), own, 0)

    def test_a_named_set_of_other_images(self):
        with pytest.raises(InputError) as error:
            planted.completed(own_splits(), dataclasses.replace(DataConfig(audit="digits"), name="own"), 0)
        assert "data.audit has images of [8, 8, 1]" in one_line(error)

    def test_too_few_training_images_beside_the_audit_set(self):
        splits = own_splits()
        few = splits._replace(train=splits.train.take(np.arange(33)))
        data_set.check_classes(few)
        with pytest.raises(InputError, match=r"train samples; allowed: at least 10"):
            planted.completed(few, settings("tag"), 0)


PAIRS = list(zip(own_networks.STEPS, own_networks.CHECKPOINTS, strict=True))


def explain(dataset, workdir, plant="", **sets):
    """The run of a network that shares its compiled programs with those of other tests."""
    asked = own_networks.SETTINGS | {"data": {"plant": plant, "plant_seed": 1}}
    return i2x_jax.explain(own_networks.PLAIN, PAIRS, dataset, asked, workdir, **sets)


@pytest.fixture(scope="module")
def tagged(base, data):
    """A run on planted images of one's own, not to be changed."""
    return explain(data, base / "tagged", "tag")


class TestRun:
    def test_the_truth_is_that_of_the_rows_of_the_run(self, tagged, data):
        for split, each in tagged.splits.sets().items():
            truth, before = tagged.truth(split), data.images[each.rows]
            assert truth.shape == each.images.shape[:3]
            assert truth.dtype == bool
            assert not ((each.images[:] != before).any(-1) & ~truth).any()
            tags = truth.any((1, 2))
            assert (each.images[:] != before).any((1, 2, 3)).tolist() == tags.tolist()
            assert tags[each.labels == 1].mean() > 0.25
        tags = tagged.truth().any((1, 2))
        assert tags[tagged.array("labels") == 1].mean() > 0.9 > 0.1 > tags[tagged.array("labels") != 1].mean()

    def test_the_sets_are_measured_and_told(self, tagged):
        for name in ("audit", "unbiased"):
            found = tagged.arrays(name)
            np.testing.assert_array_equal(found["labels"], getattr(tagged.splits, name).labels)
            assert found["confidence"].shape == (len(tagged.steps), len(found["labels"]), 3)
            np.testing.assert_allclose(found["confidence"].sum(-1), 1, atol=1e-5)
        accuracy = (found["confidence"][-1].argmax(-1) == found["labels"]).mean()
        assert f", unbiased {100 * accuracy:.2f} %\n" in tagged.summary()
        last = [line["split"] for line in tagged.metrics if line["step"] == tagged.steps[-1]]
        assert last == ["validation", "train", "test", "audit", "unbiased"]

    def test_the_header_tells_the_data_with_the_cue(self, tagged, explained, data):
        header, plain = ((run.path / "config.json").read_text() for run in (tagged, explained))
        prints = {data_set.fingerprint(each) for each in tagged.splits.sets().values()}
        assert len(prints) == 5
        assert all(each in header and each not in plain for each in prints)
        with pytest.raises(InputError, match=r"data\.plant: 'tag' -> 'tag_anywhere'"):
            explain(data, tagged.path, "tag_anywhere")

    def test_a_run_without_a_cue_has_no_truth(self, explained):
        with pytest.raises(InputError, match="nothing was planted into the images"):
            explained.truth()

    def test_no_other_split_has_a_truth(self, tagged):
        with pytest.raises(InputError, match=r"unknown split 'given'; allowed: train, .*, unbiased"):
            tagged.truth("given")

    def test_sets_of_ones_own_are_measured(self, base, data):
        others = [images_of_classes(40, seed=seed) for seed in (1, 2)]
        run = explain(data, base / "audited", audit=others[0], unbiased=others[1], validation=None)
        np.testing.assert_array_equal(run.splits.audit.images, others[0].images)
        np.testing.assert_array_equal(run.arrays("unbiased")["labels"], others[1].labels)
        assert ", unbiased " in run.summary()
        with pytest.raises(InputError, match="the audit images of own differ"):
            explain(data, base / "audited", audit=others[1], unbiased=others[1])

    def test_sets_that_cannot_be_used_are_refused(self, data, tmp_path):
        with pytest.raises(InputError, match="audit has images of"):
            i2x_jax.train(data, {}, tmp_path / "new", audit=images_of_classes(60, side=9))
        with pytest.raises(InputError, match=r"data\.audit is 'digits'; allowed: '' for images of your own"):
            i2x_jax.train(data, {"data": {"audit": "digits"}}, tmp_path / "new")
        with pytest.raises(TypeError, match=r"train\(\) got an unexpected keyword argument 'audits'"):
            i2x_jax.train(data, {}, tmp_path / "new", audits=data)
        assert not (tmp_path / "new").exists()

    def test_any_data_set_by_its_name(self):
        changes = ["data.plant=tag", "data.image_size=16", "data.plant_seed=7"]
        config = command.chosen(None, None, changes)
        splits = dataset_of(config, None)
        shown = planted.masks(splits.train).any((1, 2))
        assert shown[splits.train.labels == 7].mean() > 0.9 > 0.1 > shown[splits.train.labels != 7].mean()
        # Where the cue is not does not depend on it: the same digits are held out.
        plain = dataset_of(command.chosen(None, None, changes[1:2]), None)
        np.testing.assert_array_equal(splits.test.rows, plain.test.rows)
        np.testing.assert_array_equal(splits.validation.rows, plain.validation.rows)
        assert set(splits.train.rows) < set(plain.train.rows)
