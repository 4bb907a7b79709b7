"""Which training images are explained: some classes, as many of each as of any other, by a hash of the row."""

import numpy as np
import pytest

from i2x_jax.config import ExplainConfig, InputError
from i2x_jax.data.dataset import Dataset
from i2x_jax.data.part import check_part, explained
from tests.helpers import one_line

NAMES = ("tench, Tinca tinca", "goldfish", "shark", "猫")
COUNTS = (40, 30, 20, 12)


@pytest.fixture
def train():
    """Images that hold their own number, of a set of which every third was left out."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), COUNTS)).astype(np.int32)
    whole = Dataset(np.arange(len(labels) * 3, dtype=np.uint8).reshape(-1, 1, 1, 1), np.repeat(labels, 3), NAMES)
    return whole.take(np.arange(0, len(whole.labels), 3))


def test_the_whole_set_is_not_copied(train):
    assert explained(train, ExplainConfig(), 0) is train
    assert explained(train, ExplainConfig(max_images=len(train.labels)), 0) is train
    assert explained(train, ExplainConfig(max_images=10**9, classes=NAMES), 0) is train


def test_classes(train):
    part = explained(train, ExplainConfig(classes=("猫", "goldfish")), 0)
    assert part.class_names == NAMES
    np.testing.assert_array_equal(part.rows, train.rows[np.isin(train.labels, [1, 3])])
    np.testing.assert_array_equal(part.labels, train.labels[np.isin(train.labels, [1, 3])])


@pytest.mark.parametrize(("most", "counts"), [(60, [16, 16, 16, 12]), (48, [12] * 4), (90, [29, 29, 20, 12])])
def test_as_many_of_each_as_of_any_other_as_far_as_there_are(train, most, counts):
    part = explained(train, ExplainConfig(max_images=most), 3)
    found = np.bincount(part.labels)
    assert found.sum() == most
    assert np.abs(found - counts).max() <= 1
    assert (np.diff(part.rows) > 0).all()


def test_fewer_are_some_of_more_and_the_seed_chooses(train):
    few, more, other = (
        set(explained(train, ExplainConfig(max_images=most), seed).rows.tolist())
        for most, seed in ((42, 0), (70, 0), (42, 1))
    )
    assert few < more
    assert few != other


def test_a_row_is_chosen_by_its_index_in_the_given_data(train):
    """Whatever the order in which the images come, and wherever they are in memory."""
    turned = train.take(np.arange(len(train.labels))[::-1])
    settings = ExplainConfig(max_images=50)
    assert set(explained(turned, settings, 0).rows) == set(explained(train, settings, 0).rows)


@pytest.mark.parametrize(
    ("settings", "pair", "line"),
    [
        ({"classes": ("goldfisch", "shark")}, (), "names 'goldfisch'; allowed: tench.*; did you mean .goldfish.[?]$"),
        ({"classes": ("zebra", "shark")}, (), "names 'zebra'; allowed: .*; set explain.classes$"),
        ({"max_images": 39}, (), "explain.max_images is 39 for 4 classes; allowed: 0 for all, or at least 40, 10 of"),
        ({"classes": ("shark", "猫")}, ("shark", "goldfish"), "refine.pair names 'goldfish', which is not explained"),
    ],
)
def test_what_cannot_be_used_is_one_line(train, settings, pair, line):
    with pytest.raises(InputError, match=line) as error:
        check_part(train, ExplainConfig(**settings), pair, 0)
    one_line(error)


def test_a_class_that_has_too_few(train):
    few = train.take(np.flatnonzero(train.labels != 3))
    with pytest.raises(InputError, match="0 images of class '猫' would be explained; allowed: at least 10"):
        check_part(few, ExplainConfig(classes=("猫", "shark")), (), 0)


def test_of_a_thousand_classes_a_line_names_some(train):
    many = train._replace(class_names=tuple(map(str, range(1000))))
    with pytest.raises(InputError, match=r"allowed: 0, 1, .*, 19 and 980 more; did you mean '99"):
        check_part(many, ExplainConfig(classes=("99a", "3")), (), 0)
