"""Evidence in the pixels: closed forms, sums, and what passes one prototype."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import one_line, tiny_model, tiny_variables

from i2x_jax import InputError, Run
from i2x_jax.evidence import pixels
from i2x_jax.evidence.measuring import batch_tapped
from i2x_jax.evidence.saliency import contributions


def images_of(seed, count=2, side=8):
    return np.float32(np.random.default_rng(seed).integers(0, 256, (count, side, side, 1)))


def toward(*weights):
    return np.float32([weights] * 2)


def squared(power):
    """A network whose logits are known: each location is a pixel to a power, and a class weighs all of them alike."""
    model = tiny_model()
    return dataclasses.replace(
        model,
        features=lambda variables, images: (images / 255) ** power,
        head=lambda variables, features: features.sum((1, 2)) * variables,
    )


@pytest.mark.parametrize("power", [1, 2])
def test_a_sum_of_pixels_gives_each_its_own(power):
    """Along a line each pixel moves alone: what it adds is the difference of its powers, weighted."""
    images = images_of(0)
    start = pixels.level_of(images)
    weights = np.float32([[1, -2, 0.5]])
    found, before, after = pixels.path_pixels(squared(power), weights, start, images, toward(0, 1, -1))
    each = (-2 - 0.5) * ((images / 255) ** power - (start / 255) ** power)[..., 0]
    np.testing.assert_allclose(found, each, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(after - before, each.sum((1, 2)), rtol=1e-4, atol=1e-4)


def test_the_level_is_the_median_of_each_channel():
    images = np.zeros((1, 3, 3, 2))
    images[0, ..., 0].flat[:5], images[0, ..., 1] = 9, 7
    levels = pixels.level_of(images)
    assert (levels[..., 0] == 9).all()
    assert (levels[..., 1] == 7).all()


@pytest.fixture(scope="module")
def seen():
    """Images, levels, and a random prototype of each location."""
    images = images_of(1)
    return images, pixels.level_of(images), np.random.default_rng(2).integers(0, 3, (2, 4, 4))


def test_it_adds_up_to_the_change_of_the_logits(seen):
    images, start, _ = seen
    model, variables = tiny_model(), tiny_variables()
    found, before, after = pixels.path_pixels(model, variables, start, images, toward(0, 1, 0))
    logits = [model.head(variables, model.features(variables, each))[:, 1] for each in (start, images)]
    np.testing.assert_allclose([before, after], logits, rtol=1e-4, atol=1e-4)
    change = np.abs(after - before)
    assert change.min() > 0.05  # of logits that hardly differ a sum would say nothing
    np.testing.assert_allclose(np.sum(found, (1, 2)), after - before, atol=0.03 * change.max())


def test_prototypes_share_the_whole_and_have_their_contributions(seen):
    """Behind a pool and a linear head each prototype's share adds up to the change of its contribution."""
    images, start, places = seen
    model, variables = tiny_model(), tiny_variables()
    whole = np.asarray(pixels.path_pixels(model, variables, start, images, toward(0, 0, 1))[0])
    shares = [pixels.path_pixels(model, variables, start, images, toward(0, 0, 1), places == k)[0] for k in range(3)]
    np.testing.assert_allclose(np.sum(shares, 0), whole, atol=1e-4 * np.abs(whole).max())
    owed = [
        np.asarray(contributions(model, variables, batch_tapped(model, variables, e), None)) for e in (images, start)
    ]
    change = (owed[0] - owed[1])[..., 2]
    for k, share in enumerate(shares):
        expected = np.where(places == k, change, 0).sum((1, 2))
        np.testing.assert_allclose(np.sum(share, (1, 2)), expected, atol=0.03 * np.abs(change).sum((1, 2)).max())


def test_of_a_margin_it_is_the_difference(seen):
    images, start, _ = seen
    model, variables = tiny_model(), tiny_variables()
    one, other, both = (
        np.asarray(pixels.path_pixels(model, variables, start, images, toward(*weights))[0])
        for weights in ((1, 0, 0), (0, 1, 0), (1, -1, 0))
    )
    np.testing.assert_allclose(both, one - other, atol=1e-5 * np.abs(both).max())


@pytest.fixture(scope="module")
def run(finished):
    return Run(finished)


class TestStory:
    def test_it_is_the_logit_of_the_story(self, run, explained):
        for told in (run.story(3), run.story(4, "test"), run.story(run.dataset.images[3]), explained.story(3)):
            found = told.pixels(against=told.classes[0]) if told.predicted != told.classes[0] else told.pixels()
            logits = told.logits[-1] - (told.logits[-1, 0] if told.predicted != told.classes[0] else 0)
            assert found.after == pytest.approx(logits[told.classes.index(told.predicted)], rel=1e-4, abs=1e-4)
            assert found.evidence.shape == (8, 8)
            assert found.evidence.sum() == pytest.approx(
                found.after - found.before, abs=0.1 * abs(found.after - found.before) + 0.05
            )

    def test_prototypes_share_it(self, run):
        told = run.story(3)
        shares = sum(told.pixels("4", prototype=each.prototype).evidence for each in told.prototypes)
        np.testing.assert_allclose(shares, told.pixels("4").evidence, atol=1e-3)
        absent = next(k for k in range(8) if k not in {each.prototype for each in told.prototypes})
        assert not told.pixels("4", prototype=absent).evidence.any()

    @pytest.mark.parametrize(
        ("asked", "said"),
        [({"name": "x"}, "unknown class"), ({"against": "x"}, "unknown class"), ({"prototype": 8}, "0 to 7")],
    )
    def test_what_is_refused(self, run, asked, said):
        with pytest.raises(InputError) as error:
            run.story(3).pixels(**asked)
        assert said in one_line(error)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda images: jax.numpy.round(images), "no gradient reaches the pixels"),
            (lambda images: images >> 1, "takes no images in floats"),
        ],
    )
    def test_a_network_that_cannot_be_differentiated_says_so(self, run, monkeypatch, change, said):
        model = run.model
        rounding = dataclasses.replace(model, features=lambda v, images: model.features(v, change(images)))
        told = run.story(3)
        monkeypatch.setitem(run.__dict__, "model", rounding)
        with pytest.raises(InputError) as error:
            told.pixels()
        assert said in one_line(error)
