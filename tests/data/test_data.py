import threading

import numpy as np
import pytest

from i2x_jax.config import InputError
from i2x_jax.data import dataset as data
from i2x_jax.data.dataset import Dataset, Splits
from i2x_jax.data.pictures import Reading, prepared_array
from tests.helpers import one_line, planted


def numbered(count, classes=2):
    """Images that each hold their own number, so that samples can be told apart after any shuffling."""
    images = np.zeros((count, 2, 2, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.arange(count) % 256, np.arange(count) // 256
    return Dataset(images, np.arange(count, dtype=np.int32) % classes, tuple("abcdef"[:classes]))


def hashes(dataset):
    return {image.tobytes() for image in dataset.images}


def counts(dataset):
    return np.bincount(dataset.labels, minlength=len(dataset.class_names))


class TestDigits:
    def test_loads_uint8_grey_images_and_int32_labels(self):
        digits = data.load("digits", "train")
        assert digits.images.shape[1:] == (8, 8, 1)
        assert (digits.images.dtype, digits.labels.dtype) == (np.uint8, np.int32)
        assert digits.class_names == tuple("0123456789")
        assert (digits.images.min(), digits.images.max()) == (0, 255)
        assert len(digits.labels) + len(data.load("digits", "test").labels) == 1797

    def test_splits_share_no_image(self):
        splits = data.load_splits("digits", 0.15, seed=3)
        train, validation, test = map(hashes, splits[:3])
        assert len(train | validation | test) == len(train) + len(validation) + len(test)

    def test_splits_are_stratified_within_one_sample(self):
        splits = data.load_splits("digits", 0.15, seed=3)
        total = counts(data.load("digits", "train")) + counts(splits.test)
        assert np.abs(counts(splits.test) - 0.2 * total).max() <= 1
        assert np.abs(counts(splits.validation) - 0.15 * (total - counts(splits.test))).max() <= 1
        assert (sum(map(counts, splits[:3])) == total).all()

    def test_the_test_split_does_not_depend_on_the_seed_and_validation_does(self):
        one, again, other = (data.load_splits("digits", 0.15, seed=seed) for seed in (3, 3, 4))
        assert data.fingerprint(one.test) == data.fingerprint(other.test)
        assert data.fingerprint(one.validation) == data.fingerprint(again.validation)
        assert data.fingerprint(one.validation) != data.fingerprint(other.validation)

    def test_max_train_keeps_at_most_so_many_of_the_training_samples_stratified(self):
        every, some = (data.load_splits("digits", 0.15, max_train=number, seed=3) for number in (0, 200))
        assert hashes(some.train) < hashes(every.train)
        assert 190 <= len(some.train.labels) <= 200
        assert np.abs(counts(some.train) - 200 * counts(every.train) / len(every.train.labels)).max() <= 1
        assert data.fingerprint(some.validation) == data.fingerprint(every.validation)

    def test_max_train_beyond_the_set_keeps_all(self):
        every, beyond = (data.load_splits("digits", 0.15, max_train=number) for number in (0, 10**6))
        assert data.fingerprint(every.train) == data.fingerprint(beyond.train)

    def test_image_size_resizes_every_split(self):
        splits = data.load_splits("digits", 0.15, how=Reading(size=12))
        assert {split.images.shape[1:] for split in splits[:3]} == {(12, 12, 1)}


def test_an_unknown_data_set_is_refused():
    with pytest.raises(InputError) as error:
        data.load("digitz", "train")
    assert "'digitz'" in one_line(error)
    assert "digits" in one_line(error).split("allowed:")[1]


def test_an_unknown_split_is_refused():
    with pytest.raises(InputError) as error:
        data.load("digits", "validation")
    assert one_line(error) == "unknown split 'validation' of digits; allowed: train, test"


class TestHoldOut:
    def test_duplicates_never_straddle(self):
        base = numbered(60, classes=3)
        order = np.random.default_rng(0).integers(60, size=300)
        repeated = base.take(order)
        rest, held = data.hold_out(repeated, 0.3, 1)
        assert len(rest.labels) + len(held.labels) == 300
        assert len(held.labels) > 0
        assert not hashes(rest) & hashes(held)

    def test_duplicates_with_two_labels_never_straddle_either(self):
        base = numbered(40)
        both = Dataset(
            np.concatenate([base.images, base.images]), np.concatenate([base.labels, 1 - base.labels]), base.class_names
        )
        rest, held = data.hold_out(both, 0.5, 0)
        assert not hashes(rest) & hashes(held)
        assert len(held.labels) == 40

    def test_both_sides_keep_the_order(self):
        rest, held = data.hold_out(numbered(200), 0.25, 5)
        for side in (rest, held):
            assert (np.diff(side.images[:, 0, 0, 0].astype(int)) > 0).all()
        assert len(held.labels) == 50


class TestCheckClasses:
    def splits(self, train=20, validation=2, test=2, classes=2):
        return Splits(*(numbered(count, classes) for count in (train, validation, test)))

    def test_accepts_just_enough(self):
        data.check_classes(self.splits())

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"train": 19}, "class 'b' has 9 train samples; allowed: at least 10"),
            ({"validation": 1}, "class 'b' has 0 validation samples; allowed: at least 1"),
            ({"test": 1}, "class 'b' has 0 test samples; allowed: at least 1"),
            ({"classes": 1}, "the data set has 1 class; allowed: at least 2"),
        ],
    )
    def test_refuses_less(self, given, message):
        with pytest.raises(InputError) as error:
            data.check_classes(self.splits(**given))
        assert message in one_line(error)

    def test_load_splits_checks(self):
        with pytest.raises(InputError, match="9 train samples"):
            data.load_splits("digits", 0.15, max_train=95)


class TestResized:
    @pytest.mark.parametrize("side", [5, 8, 20])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_shapes(self, side, channels):
        image = prepared_array(np.zeros((8, 10, channels), np.uint8), Reading(size=side))
        assert image.shape == (side, side, channels)
        assert image.dtype == np.uint8

    def test_channels_keep_their_places_and_rows_stay_rows(self):
        image = np.zeros((4, 4, 3), np.uint8)
        image[:2, :, 0], image[:, :2, 1] = 200, 100
        image = prepared_array(image, Reading(size=8))
        assert (image[:2, :, 0] == 200).all()
        assert (image[-2:, :, 0] == 0).all()
        assert (image[:, :2, 1] == 100).all()
        assert (image[:, -2:, 1] == 0).all()

    def test_shrinking_averages(self):
        # One bright column in four. Bilinear samples without antialiasing, at columns 1.5 and 5.5, would miss it.
        image = np.zeros((8, 8, 1), np.uint8)
        image[:, ::4] = 200
        assert prepared_array(image, Reading(size=2)).min() > 20

    def test_the_same_size_changes_nothing(self):
        image = planted(1).images[0]
        np.testing.assert_array_equal(prepared_array(image, Reading(size=8)), image)


class TestFingerprint:
    def test_is_64_hexadecimal_digits_of_the_contents_alone(self):
        dataset = planted(6)
        copy = Dataset(np.asfortranarray(dataset.images), dataset.labels.astype(np.int64), dataset.class_names)
        assert len(data.fingerprint(dataset)) == 64
        assert int(data.fingerprint(dataset), 16)
        assert data.fingerprint(dataset) == data.fingerprint(copy)

    def test_changes_with_one_pixel_label_name_or_the_shape(self):
        dataset = planted(6)
        pixel, label = dataset.images.copy(), dataset.labels.copy()
        pixel[3, 4, 5, 0] ^= 1
        label[2] = 0
        others = [
            dataset._replace(images=pixel),
            dataset._replace(labels=label),
            dataset._replace(class_names=("red", "green", "bleu")),
            dataset._replace(images=dataset.images.reshape(6, 16, 4, 1)),
        ]
        assert len({data.fingerprint(one) for one in [dataset, *others]}) == 5


class TestBatches:
    @pytest.mark.parametrize("batch_size", [1, 7, 10, 20, 21, 64])
    def test_cover_every_sample_once_in_order_and_mask_the_rest(self, batch_size):
        dataset = numbered(20)
        seen, labels = [], []
        for batch in data.batches(dataset, batch_size):
            assert batch.images.shape == (batch_size, 2, 2, 1)
            assert len(batch.labels) == len(batch.mask) == batch_size
            assert batch.start == len(seen)
            seen += batch.images[batch.mask][:, 0, 0, 0].tolist()
            labels += batch.labels[batch.mask].tolist()
        assert seen == list(range(20))
        assert labels == dataset.labels.tolist()

    def test_only_the_last_batch_is_masked(self):
        masks = [batch.mask for batch in data.batches(numbered(20), 8)]
        assert [mask.tolist() for mask in masks] == [[True] * 8, [True] * 8, [True] * 4 + [False] * 4]


class TestTrainingIndices:
    def stream(self, count, batch_size, steps, seed=0):
        return np.concatenate([data.training_indices(count, batch_size, step, seed) for step in range(steps)])

    # 10 samples: batches that divide the set, straddle two passes, and span several.
    @pytest.mark.parametrize("batch_size", [5, 3, 7, 10, 25])
    def test_every_pass_is_a_permutation(self, batch_size):
        rows = self.stream(10, batch_size, 12)
        passes = rows[: len(rows) // 10 * 10].reshape(-1, 10)
        assert (np.sort(passes, axis=1) == np.arange(10)).all()
        assert len({tuple(one) for one in passes}) == len(passes)

    def test_is_a_function_of_the_step_alone(self):
        forwards = [data.training_indices(10, 7, step, 3) for step in range(20)]
        backwards = [data.training_indices(10, 7, step, 3) for step in reversed(range(20))][::-1]
        np.testing.assert_array_equal(forwards, backwards)

    def test_depends_on_the_seed(self):
        assert (self.stream(10, 5, 4, seed=0) != self.stream(10, 5, 4, seed=1)).any()

    def test_batches_are_always_full(self):
        rows = data.training_indices(4, 11, 3, 0)
        assert rows.shape == (11,)
        assert rows.dtype == np.int64
        assert set(rows) == {0, 1, 2, 3}

    def test_what_a_caller_does_to_a_batch_does_not_change_the_next(self):
        first = data.training_indices(10, 10, 0, 9)
        kept = first.copy()
        first[:] = 0
        np.testing.assert_array_equal(data.training_indices(10, 10, 0, 9), kept)


class Decoded:
    """Images that are in no memory: each row is made when it is read, and counted."""

    def __init__(self, images):
        self._images, self.read = images, 0
        self.shape, self.dtype = images.shape, images.dtype

    def __getitem__(self, rows):
        found = np.array(self._images[rows])
        self.read += len(found)
        return found


def test_images_read_by_rows_are_split_and_batched_as_those_in_memory():
    dataset = planted(60)
    lazy = dataset._replace(images=Decoded(dataset.images))
    assert data.fingerprint(lazy) == data.fingerprint(dataset)
    for one, other in zip(data.hold_out(lazy, 0.3, 0), data.hold_out(dataset, 0.3, 0), strict=True):
        assert not isinstance(one.images, np.ndarray)
        np.testing.assert_array_equal(one.labels, other.labels)
        again = one.take(np.array([3, 1, 1]))
        np.testing.assert_array_equal(again.images[:], other.images[[3, 1, 1]])
        for left, right in zip(data.batches(one, 8), data.batches(other, 8), strict=True):
            np.testing.assert_array_equal(left.images, right.images)
    before = lazy.images.read
    data.checked(lazy, "dataset")
    assert lazy.images.read == before


class Waiting(Decoded):
    """Images of which the first batch is there only once the second has been asked for."""

    def __init__(self, images):
        super().__init__(images)
        self._asked = threading.Event()

    def __getitem__(self, rows):
        if rows[0] == 0:
            assert self._asked.wait(60)
        self._asked.set()
        return super().__getitem__(rows)


def test_batches_are_read_ahead_and_come_in_order():
    dataset = planted(40)
    found = list(data.batches(dataset._replace(images=Waiting(dataset.images)), 4))
    np.testing.assert_array_equal(np.concatenate([batch.images for batch in found]), dataset.images)
    assert [batch.start for batch in found] == list(range(0, 40, 4))


def test_whoever_looks_at_no_more_leaves_no_thread_and_an_error_comes_where_it_was():
    class Broken(Decoded):
        def __getitem__(self, rows):
            if 9 in rows:
                raise InputError("row 9")
            return super().__getitem__(rows)

    dataset = planted(40)
    before = threading.active_count()
    batches = data.batches(dataset._replace(images=Broken(dataset.images)), 4)
    assert [next(batches).start, next(batches).start] == [0, 4]
    with pytest.raises(InputError, match="row 9"):
        next(batches)
    abandoned = data.batches(dataset._replace(images=Decoded(dataset.images)), 4)
    next(abandoned)
    abandoned.close()
    for thread in threading.enumerate():
        if thread.name.startswith("read-ahead"):
            thread.join(60)
    assert threading.active_count() <= before


def test_a_memory_map_is_not_read_before_it_is_needed(tmp_path):
    dataset = planted(20)
    np.save(tmp_path / "images.npy", dataset.images)
    kept = data.checked(dataset._replace(images=np.load(tmp_path / "images.npy", mmap_mode="r")), "dataset")
    part = kept.take(np.arange(5))
    assert not isinstance(part.images, np.ndarray)
    np.testing.assert_array_equal(part.images[:], dataset.images[:5])
