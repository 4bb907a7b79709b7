"""InceptionV3 (Szegedy et al. 2016) in PyTorch with torchvision's names, without `AuxLogits` and `transform_input`."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from experiments.benchmarks.torch_network import Network


class Conv(nn.Module):
    """Convolution `conv`, BatchNorm `bn` and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel, stride: int = 1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies them."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Block(nn.Module):
    """Branches side by side on one input, each a chain of convolutions that are named after it.

    A branch is (name, layers); a layer is (outputs, kernel) with padding that keeps the side, or (outputs, kernel, 2)
    without padding; a layer 'fork' puts a 1x3 and a 3x1 convolution side by side. One layer alone has the name of its
    branch, several are numbered. The branch 'branch_pool' averages first; the name None stands for the max pool.
    """

    def __init__(self, inputs: int, scale, branches):
        super().__init__()
        self.chains = []
        for branch, layers in branches:
            chain, before = [], inputs
            for number, layer in enumerate(layers, 1):
                name = branch if len(layers) == 1 else f"{branch}_{number}"
                if layer == "fork":
                    sides = [(f"{name}a", (1, 3), (0, 1)), (f"{name}b", (3, 1), (1, 0))]
                    for side, kernel, padding in sides:
                        setattr(self, side, Conv(before, scale(384), kernel, padding=padding))
                    chain.append([side for side, _, _ in sides])
                    continue
                outputs, kernel, *stride = layer
                sides = (kernel, kernel) if isinstance(kernel, int) else kernel
                padding = (0, 0) if stride else tuple((side - 1) // 2 for side in sides)
                setattr(self, name, Conv(before, scale(outputs), sides, *stride, padding=padding))
                chain.append([name])
                before = scale(outputs)
            self.chains.append((branch, chain))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the branches and joins their channels."""
        outputs = []
        for branch, chain in self.chains:
            if branch is None:
                outputs.append(F.max_pool2d(x, 3, 2))
                continue
            y = F.avg_pool2d(x, 3, 1, 1) if branch == "branch_pool" else x
            for names in chain:
                parts = [getattr(self, name)(y) for name in names]
                y = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
            outputs.append(y)
        return torch.cat(outputs, 1)


def block_a(pool: int):
    """Mixed_5b, c and d."""
    return [
        ("branch1x1", [(64, 1)]),
        ("branch5x5", [(48, 1), (64, 5)]),
        ("branch3x3dbl", [(64, 1), (96, 3), (96, 3)]),
        ("branch_pool", [(pool, 1)]),
    ]


def block_c(mid: int):
    """Mixed_6b to e."""
    return [
        ("branch1x1", [(192, 1)]),
        ("branch7x7", [(mid, 1), (mid, (1, 7)), (192, (7, 1))]),
        ("branch7x7dbl", [(mid, 1), (mid, (7, 1)), (mid, (1, 7)), (mid, (7, 1)), (192, (1, 7))]),
        ("branch_pool", [(192, 1)]),
    ]


BLOCK_B = [("branch3x3", [(384, 3, 2)]), ("branch3x3dbl", [(64, 1), (96, 3), (96, 3, 2)]), (None, [])]
BLOCK_D = [
    ("branch3x3", [(192, 1), (320, 3, 2)]),
    ("branch7x7x3", [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)]),
    (None, []),
]
BLOCK_E = [
    ("branch1x1", [(320, 1)]),
    ("branch3x3", [(384, 1), "fork"]),
    ("branch3x3dbl", [(448, 1), (384, 3), "fork"]),
    ("branch_pool", [(192, 1)]),
]
# Of each block, the channels that its convolutions put out; a max pool adds those that came in.
BLOCKS = {
    "Mixed_5b": (block_a(32), (64, 64, 96, 32)),
    "Mixed_5c": (block_a(64), (64, 64, 96, 64)),
    "Mixed_5d": (block_a(64), (64, 64, 96, 64)),
    "Mixed_6a": (BLOCK_B, (384, 96)),
    "Mixed_6b": (block_c(128), (192,) * 4),
    "Mixed_6c": (block_c(160), (192,) * 4),
    "Mixed_6d": (block_c(160), (192,) * 4),
    "Mixed_6e": (block_c(192), (192,) * 4),
    "Mixed_7a": (BLOCK_D, (320, 192)),
    "Mixed_7b": (BLOCK_E, (320, 384, 384, 384, 384, 192)),
    "Mixed_7c": (BLOCK_E, (320, 384, 384, 384, 384, 192)),
}


class InceptionV3(Network):
    """Stages `stem`, `mixed_5b` to `mixed_7c`; `width` 32 is the published network."""

    def __init__(self, num_classes: int, channels: int, width: int):
        super().__init__()

        def scale(count):
            return max(1, count * width // 32)

        self.Conv2d_1a_3x3 = Conv(channels, scale(32), 3, 2)
        self.Conv2d_2a_3x3 = Conv(scale(32), scale(32), 3)
        self.Conv2d_2b_3x3 = Conv(scale(32), scale(64), 3, padding=1)
        self.Conv2d_3b_1x1 = Conv(scale(64), scale(80), 1)
        self.Conv2d_4a_3x3 = Conv(scale(80), scale(192), 3)
        inputs = scale(192)
        for name, (branches, outputs) in BLOCKS.items():
            setattr(self, name, Block(inputs, scale, branches))
            pooled = inputs if branches[-1][0] is None else 0
            inputs = sum(map(scale, outputs)) + pooled
        self.fc = nn.Linear(inputs, num_classes)

    def stem(self, x: torch.Tensor) -> torch.Tensor:
        """Everything before the first block."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        return F.max_pool2d(x, 3, 2)

    def stages(self) -> "OrderedDict[str, nn.Module]":
        """See `Network`."""
        return OrderedDict([("stem", self.stem), *((name.lower(), getattr(self, name)) for name in BLOCKS)])
