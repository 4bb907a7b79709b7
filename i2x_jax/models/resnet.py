"""Residual networks: ResNet-20 for CIFAR and ResNet-18/50 (He, Zhang, Ren, Sun 2016, arXiv:1512.03385)."""

import jax
import jax.numpy as jnp
from flax import nnx

from i2x_jax.models.layers import ConvBlock, MaxPool, Row, Settings, StagedNetwork, classifier
from i2x_jax.models.places import Places, side_by_side, window


class Residual(nnx.Module):
    """`relu(x + branch(x))`; where the shape changes, x goes through a 1x1 convolution, or is subsampled and padded.

    The latter (`project=False`) is option A of section 3.3 of the paper: it has no parameters.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, branch: Row, project: bool, settings: Settings):
        self.branch = branch
        self.inputs, self.outputs, self.stride = inputs, outputs, stride
        self.project = project and (stride > 1 or inputs != outputs)
        if self.project:
            self.shortcut = ConvBlock(inputs, outputs, 1, settings, stride=stride, relu=False)
        self.places = side_by_side([branch.places, Places(*[window(1, stride)] * 2)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block."""
        if self.project:
            short = self.shortcut(x)
        else:
            fill = (self.outputs - self.inputs) // 2
            short = jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), (fill, fill)))
        return nnx.relu(short + self.branch(x))


def basic(inputs: int, width: int, stride: int, project: bool, settings: Settings) -> Residual:
    """Two 3x3 convolutions; `width` output channels."""
    branch = Row(
        {
            "conv1": ConvBlock(inputs, width, 3, settings, stride=stride),
            "conv2": ConvBlock(width, width, 3, settings, relu=False),
        }
    )
    return Residual(inputs, width, stride, branch, project, settings)


def bottleneck(inputs: int, width: int, stride: int, project: bool, settings: Settings) -> Residual:
    """1x1, 3x3 (which carries the stride, as in torchvision), 1x1; `4 * width` output channels."""
    branch = Row(
        {
            "conv1": ConvBlock(inputs, width, 1, settings),
            "conv2": ConvBlock(width, width, 3, settings, stride=stride),
            "conv3": ConvBlock(width, 4 * width, 1, settings, relu=False),
        }
    )
    return Residual(inputs, 4 * width, stride, branch, project, settings)


def resnet(block, expansion: int, depths: tuple[int, ...], project: bool, small_stem: bool):
    """A builder of residual networks with stages `stem`, `stage1`, ...; each stage after the first halves the map.

    Args:
      block: `basic` or `bottleneck`.
      expansion: output channels of a block over its width.
      depths: blocks in each stage; the width doubles from stage to stage.
      project: shortcuts by 1x1 convolution (option B) instead of padding (option A).
      small_stem: always one 3x3 convolution first, whatever `stem` says.
    """

    def build(num_classes: int, channels: int, side: int, width: int, stem: str, settings: Settings) -> StagedNetwork:
        del side
        if small_stem or stem == "cifar":
            first = ConvBlock(channels, width, 3, settings)
        else:
            first = Row({"conv": ConvBlock(channels, width, 7, settings, stride=2), "pool": MaxPool(3, 2, 1)})
        stages, inputs = [("stem", first)], width
        for number, depth in enumerate(depths):
            blocks = {}
            for place in range(depth):
                stride = 2 if number > 0 and place == 0 else 1
                blocks[f"block{place + 1}"] = block(inputs, width << number, stride, project, settings)
                inputs = expansion * (width << number)
            stages.append((f"stage{number + 1}", Row(blocks)))
        return StagedNetwork(stages, classifier(inputs, num_classes, settings))

    return build


resnet20 = resnet(basic, 1, (3, 3, 3), project=False, small_stem=True)
resnet18 = resnet(basic, 1, (2, 2, 2, 2), project=True, small_stem=False)
resnet50 = resnet(bottleneck, 4, (3, 4, 6, 3), project=True, small_stem=False)
