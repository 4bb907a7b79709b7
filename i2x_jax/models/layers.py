"""What the networks are made of, and the network that can be cut in two at a named stage."""

from collections.abc import Sequence

import jax
from flax import nnx


class ConvBlock(nnx.Module):
    """Convolution, BatchNorm, ReLU: `[B, H, W, inputs]` to `[B, H/stride, W/stride, outputs]`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, *, momentum: float, dtype, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (kernel, kernel),
            strides=stride,
            use_bias=False,
            kernel_init=nnx.initializers.he_normal(),
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(outputs, momentum=momentum, dtype=dtype, rngs=rngs)
        self.windows = ((kernel, stride),)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block."""
        return nnx.relu(self.norm(self.conv(x)))


class StagedNetwork(nnx.Module):
    """Named stages in a row, a global average pool and a linear classifier.

    Each stage carries `windows`, the (kernel, stride) of every window on its longest path.
    """

    def __init__(self, stages: Sequence[tuple[str, nnx.Module]], classifier: nnx.Linear):
        self.names = tuple(name for name, _ in stages)
        for name, stage in stages:
            setattr(self, name, stage)
        self.classifier = classifier

    def stages(self, start: int, stop: int | None) -> list[nnx.Module]:
        """The stages numbered `start` to `stop`."""
        return [getattr(self, name) for name in self.names[start:stop]]

    def features(self, x: jax.Array, tap: str) -> jax.Array:
        """From images `[B, H, W, C]` to the feature map after stage `tap`."""
        for stage in self.stages(0, self.names.index(tap) + 1):
            x = stage(x)
        return x

    def head(self, x: jax.Array, tap: str) -> jax.Array:
        """From the feature map after stage `tap` to logits `[B, M]`."""
        for stage in self.stages(self.names.index(tap) + 1, None):
            x = stage(x)
        return self.classifier(x.mean(axis=(1, 2)))

    def receptive_field(self, tap: str) -> int:
        """Side, in pixels, of the square of the image that one location of the map after `tap` depends on."""
        side, jump = 1, 1
        for stage in self.stages(0, self.names.index(tap) + 1):
            for kernel, stride in stage.windows:
                side += (kernel - 1) * jump
                jump *= stride
        return side
