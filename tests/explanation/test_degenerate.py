"""Runs that came to nothing, planted one way at a time; a sound one says nothing."""

import dataclasses

import numpy as np
import pytest
from own_networks import CHECKPOINTS, PLAIN, SETTINGS, plain_features

import i2x_jax
from i2x_jax.explanation.degenerate import Arrays, degenerate
from i2x_jax.explanation.types import Explanation, Interval
from i2x_jax.results.files import REPORT

N, K, CLASSES = 200, 6, ("red", "green", "blue")
NULL = (0.0, 0.0, 0.0)


def interval(r2=0.5, fallbacks=()):
    return Interval(0, 1, 5, 2, 3, tuple(fallbacks), r2, 0.1, 0.1, 0.1, 0.2, 0.1, NULL, True)


def explanation(*intervals):
    return Explanation(1, CLASSES, tuple(range(len(intervals) + 1)), "class", "samples", (), (), (), intervals)


def sound(**changed):
    rng = np.random.default_rng(0)
    labels = np.arange(N) % 3
    arrays = Arrays(
        intensity=rng.uniform(0.1, 1, (N, K)).astype(np.float32),
        labels=labels,
        counts=np.array([900, 800, 700, 600, 500, 100]),
        channel_mean=rng.uniform(0.1, 1, 8),
        groups=rng.integers(-1, 3, (2, N)),
        validation_labels=labels[:30],
        validation_confidence=np.eye(3)[labels[:30]],
    )
    return arrays._replace(**changed)


def changed(array, place, value):
    array = np.array(array)
    array[place] = value
    return array


SOUND = sound()
TWO = (interval(), interval())


def test_a_sound_run_says_nothing():
    assert degenerate(explanation(*TWO), SOUND) == []
    # Nor what a sound run has too.
    few = SOUND._replace(
        intensity=changed(SOUND.intensity, slice(0, 3), 0), channel_mean=changed(SOUND.channel_mean, slice(0, 4), 0)
    )
    assert degenerate(explanation(interval(), interval(None, ("red: all",))), few) == []


PLANTED = {
    "a third without saliency": (
        {"intensity": changed(SOUND.intensity, SOUND.labels == 1, 0)},
        "67 of 200 images (34 %) have no saliency at all at the last checkpoint, and so have all of class green",
    ),
    "some without saliency": (
        {"intensity": changed(SOUND.intensity, slice(0, 4), 0)},
        "4 of 200 images (2 %) have no saliency at all at the last checkpoint: nothing raises the logit",
    ),
    "empty prototypes": (
        {"counts": np.array([500, 400, 0, 0, 0, 0])},
        "4 of 6 prototypes are empty: there are fewer different feature vectors than prototypes",
    ),
    "one prototype": ({"counts": np.array([9500, 100, 100, 100, 100, 100])}, "Prototype 0 holds 95 % of all locations"),
    "unseen prototypes": (
        {"intensity": changed(SOUND.intensity, (slice(None), slice(0, 2)), 0)},
        "2 of 6 prototypes have no saliency in any image at the last checkpoint",
    ),
    "dead channels": (
        {"channel_mean": changed(SOUND.channel_mean, slice(0, 5), 0)},
        "5 of 8 feature channels are 0 in every image",
    ),
    "no change": (
        {"groups": changed(SOUND.groups, (slice(None), slice(0, 150)), -2)},
        "The confidence in 150 of 200 images (75 %) never changed",
    ),
    "no validation": (
        {"validation_labels": np.arange(30) % 2},
        "1 of 3 classes have no validation image (blue): when they were told apart",
    ),
    "never predicted": (
        {"validation_confidence": np.eye(3)[np.zeros(30, int)]},
        "2 of 3 classes are predicted for no validation image at the last checkpoint (green, blue)",
    ),
}


@pytest.mark.parametrize(("planted", "words"), PLANTED.values(), ids=PLANTED)
def test_what_was_planted_is_counted_and_alone(planted, words):
    (sentence,) = degenerate(explanation(*TWO), sound(**planted))
    assert words in sentence
    assert sentence.endswith(".")


def test_intervals_and_groups():
    every = [f"{name}: {kind}" for name, kind in zip(CLASSES, ("all", "single", "too_few"), strict=True)]
    found = degenerate(explanation(interval(None, every), interval(None, every[:2]), interval()), SOUND)
    assert [sentence.split(":")[0] for sentence in found] == [
        "2 of 3 intervals cannot be measured",
        "In 5 of 9 groupings all images whose confidence changed are one group",
    ]


def test_summary_and_report_say_it_first(tmp_path, data):
    """Maps that are empty but for a few images: no saliency, and hardly anything to cluster."""
    dark = lambda held, images: plain_features(held, images) * (images[:, :1, :1] > 240)  # noqa: E731
    model = dataclasses.replace(PLAIN, features=dark)
    bright = np.array(data.images)
    bright[::2, 0, 0] = 250
    bright[1::2, 0, 0] = 0
    run = i2x_jax.explain(model, CHECKPOINTS, data._replace(images=bright), SETTINGS, tmp_path / "run")
    text = run.summary()
    heading = text.index("Before anything is read from this run:")
    assert text.index("Accuracy at step") < heading < text.index("How much prototype change explains")
    assert " of 111 images (4" in text[heading:]
    assert "have no saliency at all at the last checkpoint" in text[heading:]
    assert "have no saliency at all at the last checkpoint" in (run.path / REPORT).read_text()
