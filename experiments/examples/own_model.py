"""Explains a network that i2x_jax did not define: Flax Linen, trained on scikit-learn's digits with plain optax.

    python experiments/examples/own_model.py

What is asked of a network is that it can be cut in two, `features` and `head`, and that somebody kept its variables at
several steps. How it was trained does not matter.

Measured on 2 busy CPU cores: 45 s, test accuracy 93.60 %.
"""

import argparse
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import i2x_jax


class DigitNet(nn.Module):
    """Two convolutions to a map of 4x4, and a head that is not linear."""

    def setup(self):
        """The layers."""
        self.first, self.second = nn.Conv(24, (3, 3)), nn.Conv(48, (3, 3), strides=2)
        self.hidden, self.logits = nn.Dense(32), nn.Dense(10)

    def features(self, images):
        """Images 0 to 255, `[B, 8, 8, 1]`, to `[B, 4, 4, 48]`."""
        return nn.relu(self.second(nn.relu(self.first(images / 127.5 - 1))))

    def head(self, features):
        """Features to logits `[B, 10]`."""
        return self.logits(nn.relu(self.hidden(features.mean((1, 2)))))

    def __call__(self, images):
        """Logits."""
        return self.head(self.features(images))


def load(seed):
    """Training, validation and test images of scikit-learn's digits, as uint8."""
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    names = tuple(str(name) for name in digits.target_names)
    parts = np.split(np.random.default_rng(seed).permutation(len(images)), [1200, 1500])
    return [i2x_jax.Dataset(images[rows], digits.target[rows], names) for rows in parts]


def train(net, data, steps, seed, batch_size=64):
    """Trains, and returns pairs of step and variables: at the start, at powers of 3, and at the end."""
    rng = np.random.default_rng(seed)
    variables = net.init(jax.random.key(seed), data.images[:1])
    optimizer = optax.adam(2e-3)
    state = optimizer.init(variables)

    @jax.jit
    def update(variables, state, images, labels):
        def loss(variables):
            logits = net.apply(variables, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        changes, state = optimizer.update(jax.grad(loss)(variables), state)
        return optax.apply_updates(variables, changes), state

    kept = [(0, variables)]
    for step in range(1, steps + 1):
        rows = rng.integers(len(data.labels), size=batch_size)
        variables, state = update(variables, state, data.images[rows], jnp.asarray(data.labels[rows]))
        if step == steps or step in (1, 3, 9, 27, 81, 243, 729):
            kept.append((step, variables))
    return kept


def main(workdir="runs/own_model", steps=600, num_prototypes=16, seed=0):
    """Trains and explains; returns the run."""
    net = DigitNet()
    data, validation, test = load(seed)
    kept = train(net, data, steps, seed)
    model = i2x_jax.OwnModel(
        features=lambda variables, images: net.apply(variables, images, method="features"),
        head=lambda variables, features: net.apply(variables, features, method="head"),
        receptive_field=5,
    )
    settings = {"seed": seed, "explain": {"num_prototypes": num_prototypes}}
    run = i2x_jax.explain(model, kept, data, settings, workdir, validation=validation, test=test)
    print(run.summary())
    print()
    for pair in run.explanation.pairs[:3]:
        since = "never told apart" if pair.told_apart is None else f"told apart from step {pair.told_apart}"
        evidence = ", ".join(
            f"{each.prototype} ({each.evidence_a:+.2f} for {pair.a}, {each.evidence_b:+.2f} for {pair.b})"
            for each in pair.separating[:2]
        )
        print(f"{pair.a} and {pair.b}: {since}; separated by prototypes {evidence}")
    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/own_model", help="the run directory")
    main(parser.parse_args().workdir)
