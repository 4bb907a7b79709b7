"""A small convolutional network for small images."""

from i2x_jax.models.layers import ConvBlock, Settings, StagedNetwork, classifier

# The smallest side a feature map is halved to: prototypes need places to live in.
SMALLEST_MAP = 4


def cnn(num_classes: int, channels: int, side: int, width: int, stem: str, settings: Settings) -> StagedNetwork:
    """Four 3x3 convolutions; the second and third halve the map as long as it stays at least 4x4.

    Images of 8x8 give maps of 4x4, of 28x28 give 7x7, of 32x32 give 8x8; `2 * width` feature channels. It has one
    stem only.
    """
    del stem
    strides = []
    for wanted in (1, 2, 2, 1):
        strides.append(wanted if side // wanted >= SMALLEST_MAP else 1)
        side = -(-side // strides[-1])
    widths = (channels, width, 2 * width, 2 * width, 2 * width)
    stages = [(f"conv{i + 1}", ConvBlock(widths[i], widths[i + 1], 3, settings, stride=strides[i])) for i in range(4)]
    return StagedNetwork(stages, classifier(widths[-1], num_classes, settings))
