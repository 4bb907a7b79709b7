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


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The blocks of the network, as wide as it is.

    Attributes:
      width: 32 for the published network.
      settings: of all layers.
    """

    width: int
    settings: Settings

    def n(self, channels: int) -> int:
        """So many channels of the published network in this one."""
        return max(1, channels * self.width // 32)

    def outputs(self, *branches: int) -> int:
        """Channels of branches side by side, given as those of the published network."""
        return sum(self.n(branch) for branch in branches)

    def conv(self, inputs, outputs, kernel, stride=1, padding=None):
        """A convolution; channels are those of this network."""
        return ConvBlock(inputs, outputs, kernel, self.settings, stride=stride, padding=padding)

    def chain(self, inputs, *layers):
        """Convolutions in a row, each given as (outputs, kernel) or (outputs, kernel, stride)."""
        modules = {}
        for place, (outputs, kernel, *stride) in enumerate(layers):
            # A stride comes without padding, as everywhere in this network.
            padding = {"padding": 0} if stride else {}
            modules[f"conv{place + 1}"] = self.conv(inputs, self.n(outputs), kernel, *stride, **padding)
            inputs = self.n(outputs)
        return Row(modules)

    def pooled(self, inputs, outputs):
        """A mean pool and a 1x1 convolution."""
        return Row({"pool": AveragePool(), "conv": self.conv(inputs, self.n(outputs), 1)})

    def forked(self, inputs, *before):
        """Convolutions, then a 1x3 and a 3x1 side by side."""
        first = self.chain(inputs, *before)
        inputs = self.n(before[-1][0])
        fork = Branches(
            {name: self.conv(inputs, self.n(384), kernel) for name, kernel in (("wide", (1, 3)), ("tall", (3, 1)))}
        )
        return Row({**{name: getattr(first, name) for name in first.names}, "fork": fork})

    def stem(self, channels):
        """From the image to the first block."""
        n = self.n
        return Row(
            {
                "conv1": self.conv(channels, n(32), 3, 2, padding=0),
                "conv2": self.conv(n(32), n(32), 3, padding=0),
                "conv3": self.conv(n(32), n(64), 3),
                "pool1": MaxPool(3, 2, 0),
                "conv4": self.conv(n(64), n(80), 1),
                "conv5": self.conv(n(80), n(192), 3, padding=0),
                "pool2": MaxPool(3, 2, 0),
            }
        )

    def a(self, inputs, pool):
        """`mixed_5b` to `mixed_5d`."""
        return Branches(
            {
                "one": self.chain(inputs, (64, 1)),
                "five": self.chain(inputs, (48, 1), (64, 5)),
                "double": self.chain(inputs, (64, 1), (96, 3), (96, 3)),
                "pool": self.pooled(inputs, pool),
            }
        )

    def b(self, inputs):
        """`mixed_6a`, which halves the map."""
        return Branches(
            {
                "three": self.chain(inputs, (384, 3, 2)),
                "double": self.chain(inputs, (64, 1), (96, 3), (96, 3, 2)),
                "pool": MaxPool(3, 2, 0),
            }
        )

    def c(self, inputs, mid):
        """`mixed_6b` to `mixed_6e`."""
        return Branches(
            {
                "one": self.chain(inputs, (192, 1)),
                "seven": self.chain(inputs, (mid, 1), (mid, (1, 7)), (192, (7, 1))),
                "double": self.chain(inputs, (mid, 1), (mid, (7, 1)), (mid, (1, 7)), (mid, (7, 1)), (192, (1, 7))),
                "pool": self.pooled(inputs, 192),
            }
        )

    def d(self, inputs):
        """`mixed_7a`, which halves the map."""
        return Branches(
            {
                "three": self.chain(inputs, (192, 1), (320, 3, 2)),
                "seven": self.chain(inputs, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)),
                "pool": MaxPool(3, 2, 0),
            }
        )

    def e(self, inputs):
        """`mixed_7b` and `mixed_7c`."""
        return Branches(
            {
                "one": self.chain(inputs, (320, 1)),
                "three": self.forked(inputs, (384, 1)),
                "double": self.forked(inputs, (448, 1), (384, 3)),
                "pool": self.pooled(inputs, 192),
            }
        )


def inception_v3(
    num_classes: int, channels: int, side: int, width: int, stem: str, settings: Settings
) -> StagedNetwork:
    """Stages `stem`, `mixed_5b` to `mixed_7c`; `width` 32 is the published network, other widths scale all channels."""
    del side, stem
    blocks = Blocks(width, dataclasses.replace(settings, epsilon=EPSILON))
    outputs = blocks.outputs
    after_5b = outputs(64, 64, 96, 32)
    after_5c = outputs(64, 64, 96, 64)
    after_6a = outputs(384, 96) + after_5c
    after_6b = outputs(192, 192, 192, 192)
    after_7a = outputs(320, 192) + after_6b
    after_7b = outputs(320, 384, 384, 384, 384, 192)
    stages = [
        ("stem", blocks.stem(channels)),
        ("mixed_5b", blocks.a(blocks.n(192), 32)),
        ("mixed_5c", blocks.a(after_5b, 64)),
        ("mixed_5d", blocks.a(after_5c, 64)),
        ("mixed_6a", blocks.b(after_5c)),
        ("mixed_6b", blocks.c(after_6a, 128)),
        ("mixed_6c", blocks.c(after_6b, 160)),
        ("mixed_6d", blocks.c(after_6b, 160)),
        ("mixed_6e", blocks.c(after_6b, 192)),
        ("mixed_7a", blocks.d(after_6b)),
        ("mixed_7b", blocks.e(after_7a)),
        ("mixed_7c", blocks.e(after_7b)),
    ]
    return StagedNetwork(stages, classifier(after_7b, num_classes, settings))
