"""A run that explains a part of its training images."""

import numpy as np
import pytest

import i2x_jax
from i2x_jax import Run
from i2x_jax.config import InputError
from i2x_jax.explanation import ranking
from i2x_jax.results.files import REPORT, read_header
from i2x_jax.training.loop import confidence
from tests.helpers import DEEP
from tests.own_networks import plain_features, plain_head
from tests.pipeline.test_many_classes import CLASSES, SETTINGS, STEPS, data, held

CHOSEN, MOST = ("c1", "c3", "c6"), 50


def explain(folder, **settings):
    checkpoints = [(step, held(seed)) for seed, step in enumerate(STEPS)]
    model = i2x_jax.OwnModel(plain_features, plain_head)
    explained = SETTINGS["explain"] | {"batch_size": 16} | settings
    return i2x_jax.explain(model, checkpoints, data(), SETTINGS | {"explain": explained}, folder)


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    return explain(tmp_path_factory.mktemp("part") / "run", classes=CHOSEN, max_images=MOST)


def test_rows_keep_their_index_in_the_given_data(part):
    rows, labels = np.array(part.array("rows")), np.array(part.array("labels"))
    np.testing.assert_array_equal(labels, data().labels[rows])
    np.testing.assert_array_equal(part.dataset.images[:], data().images[rows])
    assert {part.explanation.classes[label] for label in labels} == set(CHOSEN)
    assert len(rows) == MOST < np.isin(part.splits.train.labels, [1, 3, 6]).sum()
    image = int(rows[7])
    assert part.story(7).row == image
    assert part.story(image, split="given").image == 7
    left_out = np.setdiff1d(part.splits.train.rows, rows)[0]
    with pytest.raises(InputError, match="was not explained"):
        part.story(int(left_out), split="given")


def test_all_classes_stay_in_the_softmax(part):
    images = data().images[np.array(part.array("rows"))]
    logits = [plain_head(held(seed), plain_features(held(seed), images)) for seed in range(len(STEPS))]
    np.testing.assert_allclose(part.array("confidence"), confidence(np.array(logits)), **DEEP)
    assert part.array("confidence").shape == (len(STEPS), MOST, CLASSES)


def test_pairs_and_first_looks_are_of_what_was_explained(part):
    assert {name for pair in part.explanation.pairs for name in (pair.a, pair.b)} == set(CHOSEN)
    assert {each.name for each in part.ranking} <= set(CHOSEN)
    assert [each.samples > 0 for each in part.explanation.per_class] == [f"c{c}" in CHOSEN for c in range(CLASSES)]
    found = part.arrays("ranking")
    others = [found["present"][part.ranking[0].prototype, c] for c in (1, 3, 6)]
    first = part.ranking[0]
    others.remove(first.in_class)
    assert first.in_others == pytest.approx(np.mean(others))
    assert len(part.ranking) == len(ranking.order(found))


def test_a_class_of_which_no_image_was_explained_has_no_ledger(part):
    assert part.ledger("c3").intervals
    with pytest.raises(InputError, match="no image of class 'c2' was explained; allowed: c1, c3, c6"):
        part.ledger("c2")


def test_it_is_recorded_and_told(part):
    images = read_header(part.path)["provenance"]["images"]
    assert images == {name: len(each.labels) for name, each in part.splits.sets().items()} | {"explained": MOST}
    told = f"{MOST} of {images['train']} training images (3 of 8 classes, at most 50)"
    assert f"Explained: {told}\n" in part.summary()
    assert f"explained are {told}, 8 classes" in (part.path / REPORT).read_text()


def test_the_directory_alone_knows_the_rows(part):
    alone = Run(part.path)
    np.testing.assert_array_equal(alone.array("rows"), part.dataset.rows)


def test_it_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="did you mean 'c3'"):
        explain(tmp_path / "run", classes=("c33", "c1"))
    assert not (tmp_path / "run").exists()
