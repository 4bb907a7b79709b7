"""A user's functions are tried before anything is written: as a network in use, and returning logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from own_networks import CHECKPOINTS, PLAIN, SETTINGS, plain_features, plain_head

import i2x_jax
from i2x_jax.config import InputError
from i2x_jax.pipeline.promises import are_probabilities
from tests.helpers import one_line


def of_the_batch(held, images):
    """BatchNorm by the batch, as in training."""
    features = plain_features(held, images)
    mean, deviation = features.mean((0, 1, 2)), features.std((0, 1, 2))
    return (features - mean) / (deviation + 1e-3)


def with_dropout(held, images):
    """Dropout that somebody left on, with a key of its own."""
    features = plain_features(held, images)
    return features * jax.random.bernoulli(jax.random.key(1), 0.8, features.shape) / 0.8


def drawn_outside(held, images):
    """Noise of NumPy's, another each time it is traced."""
    return plain_features(held, images) * np.random.default_rng().uniform(0.5, 1.5, (4, 4, 1)).astype(np.float32)


def drawn_at_run_time(held, images):
    features = plain_features(held, images)
    draw = lambda: np.random.default_rng().uniform(0.2, 1.8, features.shape).astype(np.float32)  # noqa: E731
    return features * jax.pure_callback(draw, jax.ShapeDtypeStruct(features.shape, jnp.float32))


def head_of_the_batch(held, features):
    logits = plain_head(held, features)
    return logits - logits.mean(0)


def probabilities(held, features):
    return jax.nn.softmax(plain_head(held, features))


def sigmoids(held, features):
    return jax.nn.sigmoid(plain_head(held, features))


def blind(held, features):
    """Logits of something that does not pass through the map."""
    return jnp.broadcast_to(held["bias"], (len(features), len(held["bias"])))


REFUSED = {
    "sigmoids": (
        {"head": sigmoids},
        "for 32 images, all within 0 and 1, as a sigmoid does",
        "leave the sigmoid out of `head`",
    ),
    "a head that does not see the map": ({"head": blind}, "`head` does not depend on the map", "cut the network"),
    "probabilities": ({"head": probabilities}, "`head` returned probabilities", "leave the softmax out of `head`"),
    "probabilities in half precision": (
        {"head": lambda held, features: probabilities(held, features).astype(jnp.bfloat16)},
        "`head` returned probabilities",
        "allowed: logits",
    ),
    "BatchNorm in training": (
        {"features": of_the_batch},
        "`features` returns another map for an image alone than beside others: the confidence in a class moves by",
        "switch training off in `features`",
    ),
    "dropout": ({"features": with_dropout}, "for an image alone than beside others", "no dropout"),
    "another trace, another noise": (
        {"features": drawn_outside},
        "`features` returns another map for the same images the second time",
        "a function without chance",
    ),
    "random when it runs": ({"features": drawn_at_run_time}, "the second time", "random augmentation off"),
    "a head of the batch": (
        {"head": head_of_the_batch},
        "`head` returns other logits for an image alone than beside others",
        "each sample for itself",
    ),
}


@pytest.mark.parametrize(("changed", "what", "mend"), REFUSED.values(), ids=REFUSED)
def test_what_breaks_a_promise_is_refused_with_the_mend(tmp_path, data, changed, what, mend):
    model = dataclasses.replace(PLAIN, **changed)
    with pytest.raises(InputError) as error:
        i2x_jax.explain(model, CHECKPOINTS, data, SETTINGS, workdir=tmp_path / "run")
    line = one_line(error)
    assert what in line
    assert mend in line
    assert not (tmp_path / "run").exists()


KEPT = {
    "half precision": {"features": lambda held, images: plain_features(held, images).astype(jnp.bfloat16)},
    "logarithms of probabilities": {"head": lambda held, f: jax.nn.log_softmax(plain_head(held, f))},
    "logits that are all positive": {"head": lambda held, f: plain_head(held, f) + 100},
    "maps that are mostly empty": {
        "features": lambda held, images: plain_features(held, images) * (images.max() > 300)
    },
}


@pytest.mark.parametrize("changed", KEPT.values(), ids=KEPT)
def test_what_keeps_them_is_not_refused(data, changed):
    from i2x_jax.api import _cut
    from i2x_jax.pipeline.promises import check_promises

    own = _cut(dataclasses.replace(PLAIN, **changed), CHECKPOINTS[-1], data, allow_1x1=False)
    check_promises(own, CHECKPOINTS[-1], data.images)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[0.2, 0.8], [1, 0]], True),
        ([[0.2, 0.8], [1.1, -0.1]], False),
        ([[0.2, 0.8], [0.9, 0.4]], False),
        ([[0.0, 0.0], [0.0, 0.0]], False),
    ],
)
def test_probabilities_are_known_by_sign_and_sum(rows, expected):
    assert are_probabilities(np.array(rows)) == expected
