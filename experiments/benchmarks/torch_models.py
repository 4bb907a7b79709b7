"""The project's networks in PyTorch, with torchvision's architecture and names, for the baseline and for comparisons.

Own code: torchvision itself need not be installed, and its state dicts load into these (`AuxLogits` apart). ResNet-20
and the CNN, which torchvision lacks, are named the same way. Every network is cut at a tap, as ours are:
`features(x, tap)` and `head(maps, tap)`; the taps have our names.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from experiments.benchmarks.torch_inception import InceptionV3
from experiments.benchmarks.torch_network import Network


class Cut(nn.Module):
    """A network with its tap as a module `tap`, where captum can take hold of the feature map."""

    def __init__(self, network: Network, tap: str):
        super().__init__()
        self.network, self.name, self.tap = network, tap, nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images to logits."""
        return self.network.head(self.tap(self.network.features(x, self.name)), self.name)


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias that keeps the side, or halves it."""
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


class Shortcut(nn.Module):
    """Option A of He et al.: every second place, new channels zero, half of them on either side."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.stride, self.fill = stride, (outputs - inputs) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies it."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.fill, self.fill))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inputs, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width), nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the block."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride) and 1x1 convolutions beside a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the block."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)), inplace=True)


class ResNet(Network):
    """Stages `stem`, `stage1`, ...; torchvision's `layer1`, ..."""

    def __init__(self, block, depths, num_classes: int, channels: int, width: int, small_stem: bool, project: bool):
        super().__init__()
        self.small_stem = small_stem
        self.conv1 = conv3x3(channels, width) if small_stem else nn.Conv2d(channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.depth, inputs = len(depths), width
        for number, depth in enumerate(depths):
            blocks = []
            for place in range(depth):
                stride = 2 if number > 0 and place == 0 else 1
                outputs = block.expansion * (width << number)
                blocks.append(block(inputs, width << number, stride, shortcut(inputs, outputs, stride, project)))
                inputs = outputs
            setattr(self, f"layer{number + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, num_classes)

    def stem(self, x: torch.Tensor) -> torch.Tensor:
        """The first convolution, and the pool behind a large one."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return x if self.small_stem else F.max_pool2d(x, 3, 2, 1)

    def stages(self) -> "OrderedDict[str, nn.Module]":
        """See `Network`."""
        layers = ((f"stage{n + 1}", getattr(self, f"layer{n + 1}")) for n in range(self.depth))
        return OrderedDict([("stem", self.stem), *layers])


def shortcut(inputs: int, outputs: int, stride: int, project: bool) -> nn.Module | None:
    """What brings a block's input to the shape of its output; None where it has it."""
    if stride == 1 and inputs == outputs:
        return None
    if not project:
        return Shortcut(inputs, outputs, stride)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class Cnn(Network):
    """Four 3x3 convolutions `conv1` to `conv4`; the second and third halve a map that stays at least 4x4."""

    def __init__(self, num_classes: int, channels: int, side: int, width: int):
        super().__init__()
        inputs = channels
        for number, (outputs, wanted) in enumerate(zip((1, 2, 2, 2), (1, 2, 2, 1), strict=True), 1):
            stride = wanted if side // wanted >= 4 else 1
            side = -(-side // stride)
            setattr(self, f"conv{number}", conv3x3(inputs, outputs * width, stride))
            setattr(self, f"bn{number}", nn.BatchNorm2d(outputs * width))
            inputs = outputs * width
        self.fc = nn.Linear(inputs, num_classes)

    def stages(self) -> "OrderedDict[str, nn.Module]":
        """See `Network`."""

        def stage(number):
            conv, norm = getattr(self, f"conv{number}"), getattr(self, f"bn{number}")
            return lambda x: F.relu(norm(conv(x)), inplace=True)

        return OrderedDict((f"conv{number}", stage(number)) for number in (1, 2, 3, 4))


def create(
    name: str, *, num_classes: int, image_shape: tuple[int, int, int], width: int = 0, stem: str = "imagenet"
) -> Network:
    """The counterpart of `i2x_jax.models.create`; the same arguments make the same network."""
    height, width_px, channels = image_shape
    if name == "cnn":
        return Cnn(num_classes, channels, min(height, width_px), width or 32)
    if name == "inception_v3":
        return InceptionV3(num_classes, channels, width or 32)
    block, depths, own_width = {
        "resnet20": (BasicBlock, (3, 3, 3), 16),
        "resnet18": (BasicBlock, (2, 2, 2, 2), 64),
        "resnet50": (Bottleneck, (3, 4, 6, 3), 64),
    }[name]
    small_stem = name == "resnet20" or stem == "cifar"
    return ResNet(block, depths, num_classes, channels, width or own_width, small_stem, project=name != "resnet20")
