"""InceptionV3 without the auxiliary head (Szegedy et al. 2016, arXiv:1512.00567), laid out as in torchvision."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from i2x_jax.models.layers import ConvBlock, MaxPool, Row, Settings, StagedNetwork, classifier
from i2x_jax.models.places import Places, side_by_side, window

# BatchNorm's epsilon in the published weights.
EPSILON = 1e-3


class AveragePool(nnx.Module):
    """Mean over 3x3 windows, padding counted."""

    places = Places(*[window(3, padding=1)] * 2)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the pool."""
        return nnx.avg_pool(x, (3, 3), strides=(1, 1), padding=((1, 1), (1, 1)), count_include_pad=True)


class Branches(nnx.Module):
    """Modules side by side on one input, their outputs joined along the channels."""

    def __init__(self, modules: dict[str, nnx.Module]):
        self.names = tuple(modules)
        for name, module in modules.items():
            setattr(self, name, module)
        self.places = side_by_side([module.places for module in modules.values()])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the modules."""
        return jnp.concatenate([getattr(self, name)(x) for name in self.names], axis=-1)


def inception_v3(
    num_classes: int, channels: int, side: int, width: int, stem: str, settings: Settings
) -> StagedNetwork:
    """Stages `stem`, `mixed_5b` to `mixed_7c`; `width` 32 is the published network, other widths scale all channels."""
    del side, stem
    settings = dataclasses.replace(settings, epsilon=EPSILON)

    def n(channels):
        return max(1, channels * width // 32)

    def conv(inputs, outputs, kernel, stride=1, padding=None):
        return ConvBlock(inputs, outputs, kernel, settings, stride=stride, padding=padding)

    def chain(inputs, *layers):
        """Convolutions in a row, each given as (outputs, kernel) or (outputs, kernel, stride)."""
        modules = {}
        for place, (outputs, kernel, *stride) in enumerate(layers):
            # A stride comes without padding, as everywhere in this network.
            modules[f"conv{place + 1}"] = conv(
                inputs, n(outputs), kernel, *stride, **({"padding": 0} if stride else {})
            )
            inputs = n(outputs)
        return Row(modules)

    def pooled(inputs, outputs):
        return Row({"pool": AveragePool(), "conv": conv(inputs, n(outputs), 1)})

    def block_a(inputs, pool):
        return Branches(
            {
                "one": chain(inputs, (64, 1)),
                "five": chain(inputs, (48, 1), (64, 5)),
                "double": chain(inputs, (64, 1), (96, 3), (96, 3)),
                "pool": pooled(inputs, pool),
            }
        )

    def block_b(inputs):
        return Branches(
            {
                "three": chain(inputs, (384, 3, 2)),
                "double": chain(inputs, (64, 1), (96, 3), (96, 3, 2)),
                "pool": MaxPool(3, 2, 0),
            }
        )

    def block_c(inputs, mid):
        return Branches(
            {
                "one": chain(inputs, (192, 1)),
                "seven": chain(inputs, (mid, 1), (mid, (1, 7)), (192, (7, 1))),
                "double": chain(inputs, (mid, 1), (mid, (7, 1)), (mid, (1, 7)), (mid, (7, 1)), (192, (1, 7))),
                "pool": pooled(inputs, 192),
            }
        )

    def block_d(inputs):
        return Branches(
            {
                "three": chain(inputs, (192, 1), (320, 3, 2)),
                "seven": chain(inputs, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)),
                "pool": MaxPool(3, 2, 0),
            }
        )

    def forked(inputs, *before):
        """Convolutions, then a 1x3 and a 3x1 side by side."""
        first = chain(inputs, *before)
        inputs = n(before[-1][0])
        return Row({**{name: getattr(first, name) for name in first.names}, "fork": fork(inputs)})

    def fork(inputs):
        return Branches({"wide": conv(inputs, n(384), (1, 3)), "tall": conv(inputs, n(384), (3, 1))})

    def block_e(inputs):
        return Branches(
            {
                "one": chain(inputs, (320, 1)),
                "three": forked(inputs, (384, 1)),
                "double": forked(inputs, (448, 1), (384, 3)),
                "pool": pooled(inputs, 192),
            }
        )

    first = Row(
        {
            "conv1": conv(channels, n(32), 3, 2, padding=0),
            "conv2": conv(n(32), n(32), 3, padding=0),
            "conv3": conv(n(32), n(64), 3),
            "pool1": MaxPool(3, 2, 0),
            "conv4": conv(n(64), n(80), 1),
            "conv5": conv(n(80), n(192), 3, padding=0),
            "pool2": MaxPool(3, 2, 0),
        }
    )

    def outputs(*branches):
        return sum(n(branch) for branch in branches)

    after_5b = outputs(64, 64, 96, 32)
    after_5c = outputs(64, 64, 96, 64)
    after_6a = outputs(384, 96) + after_5c
    after_6b = outputs(192, 192, 192, 192)
    after_7a = outputs(320, 192) + after_6b
    after_7b = outputs(320, 384, 384, 384, 384, 192)
    stages = [
        ("stem", first),
        ("mixed_5b", block_a(n(192), 32)),
        ("mixed_5c", block_a(after_5b, 64)),
        ("mixed_5d", block_a(after_5c, 64)),
        ("mixed_6a", block_b(after_5c)),
        ("mixed_6b", block_c(after_6a, 128)),
        ("mixed_6c", block_c(after_6b, 160)),
        ("mixed_6d", block_c(after_6b, 160)),
        ("mixed_6e", block_c(after_6b, 192)),
        ("mixed_7a", block_d(after_6b)),
        ("mixed_7b", block_e(after_7a)),
        ("mixed_7c", block_e(after_7b)),
    ]
    return StagedNetwork(stages, classifier(after_7b, num_classes, settings))
