"""One small network in plain JAX, Linen and NNX, as a user might bring it, with the same weights at four steps."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from i2x_jax import OwnModel

CHANNELS, CLASSES = 6, 3
SETTINGS = {"explain": {"num_prototypes": 4, "restarts": 1, "batch_size": 64}, "seed": 3}
STEPS = (5, 10, 40, 200)


def weights(seed):
    """The weights of one step, as everybody below holds them in a way of their own."""
    rng = np.random.default_rng(seed)
    return {
        "kernel": np.float32(rng.normal(size=(3, 3, 1, CHANNELS)) / 2),
        "shift": np.float32(rng.normal(size=CHANNELS) / 10),
        "classifier": np.float32(3 * rng.normal(size=(CHANNELS, CLASSES))),
        "bias": np.float32(rng.normal(size=CLASSES) / 10),
    }


CHECKPOINTS = [weights(seed) for seed in range(len(STEPS))]


def plain_features(variables, images):
    maps = jax.lax.conv_general_dilated(
        images / 255 - 0.3, variables["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(maps + variables["shift"])


def plain_head(variables, features):
    return features.mean((1, 2)) @ variables["classifier"] + variables["bias"]


PLAIN = OwnModel(plain_features, plain_head)


class LinenNet(linen.Module):
    def setup(self):
        self.conv = linen.Conv(CHANNELS, (3, 3), strides=2)
        self.classifier = linen.Dense(CLASSES)

    def features(self, images):
        return linen.relu(self.conv(images / 255 - 0.3))

    def head(self, features):
        return self.classifier(features.mean((1, 2)))


def linen_variables(held):
    conv = {"kernel": held["kernel"], "bias": held["shift"]}
    return {"params": {"conv": conv, "classifier": {"kernel": held["classifier"], "bias": held["bias"]}}}


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, CHANNELS, (3, 3), strides=2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.classifier = nnx.Linear(CHANNELS, CLASSES, rngs=rngs)

    def features(self, images):
        return self.dropout(nnx.relu(self.conv(images / 255 - 0.3)))

    def head(self, features):
        return self.classifier(features.mean((1, 2)))


def nnx_model_and_states():
    net = NnxNet(nnx.Rngs(0))
    graph, _, rest = nnx.split(net, nnx.Param, ...)
    states = []
    for held in CHECKPOINTS:
        net.conv.kernel[...], net.conv.bias[...] = held["kernel"], held["shift"]
        net.classifier.kernel[...], net.classifier.bias[...] = held["classifier"], held["bias"]
        # A copy: the state that is split off shares its variables with the network.
        states.append(jax.tree.map(jnp.copy, nnx.split(net, nnx.Param, ...)[1]))
    model = OwnModel(
        lambda state, images: nnx.merge(graph, state, rest).features(images),
        lambda state, features: nnx.merge(graph, state, rest).head(features),
    )
    return model, states
