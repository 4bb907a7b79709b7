"""What the networks of the PyTorch baseline have in common: stages, and a tap to cut them at."""

from collections import OrderedDict

import torch
from torch import nn


class Network(nn.Module):
    """A network whose `stages()` follow each other; then a global average pool and `fc`."""

    def stages(self) -> "OrderedDict[str, nn.Module]":
        """The stages by the names of our taps, in order."""
        raise NotImplementedError

    def features(self, x: torch.Tensor, tap: str) -> torch.Tensor:
        """From images `[B, C, H, W]` scaled to -1..1 to the feature map after stage `tap`.

        Raises:
          ValueError: there is no such stage.
        """
        for name, stage in self.stages().items():
            x = stage(x)
            if name == tap:
                return x
        raise ValueError(f"unknown tap {tap!r}; allowed: {', '.join(self.stages())}")

    def head(self, maps: torch.Tensor, tap: str) -> torch.Tensor:
        """From the feature map after stage `tap` to logits `[B, M]`."""
        names = list(self.stages())
        for name in names[names.index(tap) + 1 :]:
            maps = self.stages()[name](maps)
        return self.fc(maps.mean((2, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images to logits."""
        last = next(reversed(self.stages()))
        return self.head(self.features(x, last), last)
