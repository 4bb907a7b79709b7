"""What the networks are made of, and the network that can be cut in two at a named stage."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from i2x_jax.devices import compilation, onednn
from i2x_jax.models.model import Tapped
from i2x_jax.models.places import Places, in_a_row, window


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all layers of a network share.

    Attributes:
      rngs: where initial weights come from.
      momentum: of BatchNorm's running averages.
      dtype: of the computation; parameters stay float32.
      epsilon: of BatchNorm.
    """

    rngs: nnx.Rngs
    momentum: float
    dtype: Any
    epsilon: float = 1e-5


# XLA's convolutions on a CPU are up to 80 times slower than a product where they give fewer locations than this.
FEW_LOCATIONS = 16
# And 6 times slower than the products of a 3x3 kernel on one channel, one after the other; on three, no slower.
FEW_PRODUCTS = 9


def convolution(x: jax.Array, kernel: jax.Array, strides: tuple, padding: tuple, **options) -> jax.Array:
    """`jax.lax.conv_general_dilated`, on a CPU in the form that XLA compiles best there."""
    form = cpu_convolution if jax.default_backend() == "cpu" else jax.lax.conv_general_dilated
    return form(x, kernel, strides, padding, **options)


def cpu_convolution(x: jax.Array, kernel: jax.Array, strides: tuple, padding: tuple, **options) -> jax.Array:
    """A convolution without XLA's own where that is faster.

    It is a matrix product for 1x1 kernels and for few locations, and a sum of shifted images, each times an entry of
    the kernel, where the kernel and the image's channels are few. Else, in inference, it is oneDNN's where there is
    one. Barriers keep what stands before and after it from being computed again inside the transposes of its gradient
    (see `compilation`).
    """
    x = jax.lax.optimization_barrier(x)
    rows, columns, inputs, outputs = kernel.shape
    locations = [
        (side + sum(pad) - window) // stride + 1
        for side, pad, window, stride in zip(x.shape[1:3], padding, (rows, columns), strides, strict=True)
    ]
    plain = functools.partial(jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **options)

    def windows(x):
        x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        reach = [(count - 1) * stride + 1 for count, stride in zip(locations, strides, strict=True)]
        return [
            x[:, row : row + reach[0] : strides[0], column : column + reach[1] : strides[1]]
            for row in range(rows)
            for column in range(columns)
        ]

    if min(len(x), *locations) <= 0:  # an empty result
        return plain(x, kernel)
    if (rows, columns) == (1, 1) or math.prod(locations) < FEW_LOCATIONS:
        flat = jnp.concatenate(windows(x), -1).reshape(-1, rows * columns * inputs)
        product = jnp.matmul(flat, kernel.reshape(-1, outputs), precision=options["precision"])
        y = product.reshape(len(x), *locations, outputs)
    elif rows * columns * inputs <= FEW_PRODUCTS:
        return with_gradient_of(plain, functools.partial(shifted_sum, windows))(x, kernel)
    elif compilation.calls_onednn() and x.dtype == kernel.dtype == jnp.float32:
        form = functools.partial(onednn.convolution, strides=strides, padding=padding, locations=locations)
        return with_gradient_of(plain, form)(x, kernel)
    else:
        y = plain(x, kernel)
    return jax.lax.optimization_barrier(y)


def shifted_sum(windows: Callable, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution as a sum of shifted images, each times an entry of the kernel; summed in float32.

    Args:
      windows: from images to the shifted ones, in the order of the kernel's entries.
      x: images.
      kernel: of the convolution.
    """
    entries = kernel.astype(jnp.float32).reshape(-1, *kernel.shape[2:])
    parts = zip(windows(x.astype(jnp.float32)), entries, strict=True)
    total = sum(window[..., i : i + 1] * row for window, entry in parts for i, row in enumerate(entry))
    return total.astype(x.dtype)


def with_gradient_of(plain: Callable, form: Callable) -> Callable:
    """A form of a convolution of (x, kernel) with the gradient of the plain one, because its own is slow or missing."""
    convolve = jax.custom_vjp(form)

    # Barriers as in `cpu_convolution`, but only for a gradient: elsewhere a sum is one pass with what follows it.
    def forward(x, kernel):
        return jax.lax.optimization_barrier(convolve(x, kernel)), (x, kernel)

    def backward(saved, slope):
        return jax.vjp(plain, *saved)[1](jax.lax.optimization_barrier(slope))

    convolve.defvjp(forward, backward)
    return convolve


class ConvBlock(nnx.Module):
    """Convolution and BatchNorm, then ReLU unless told otherwise: `[B, H, W, inputs]` to `[B, H', W', outputs]`.

    Padding is symmetric, `(kernel - 1) // 2` unless given, as PyTorch's: with a stride, 'SAME' would pad one side only.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        settings: Settings,
        stride: int = 1,
        padding: int | tuple[int, int] | None = None,
        relu: bool = True,
    ):
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = tuple((side - 1) // 2 for side in kernel) if padding is None else padding
        padding = (padding, padding) if isinstance(padding, int) else padding
        self.conv = nnx.Conv(
            inputs,
            outputs,
            kernel,
            strides=stride,
            padding=tuple((side, side) for side in padding),
            use_bias=False,
            kernel_init=nnx.initializers.he_normal(),
            dtype=settings.dtype,
            rngs=settings.rngs,
            conv_general_dilated=convolution,
        )
        self.norm = nnx.BatchNorm(
            outputs, momentum=settings.momentum, epsilon=settings.epsilon, dtype=settings.dtype, rngs=settings.rngs
        )
        self.relu = relu
        self.places = Places(*(window(side, stride, before) for side, before in zip(kernel, padding, strict=True)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block."""
        x = self.norm(self.conv(x))
        return nnx.relu(x) if self.relu else x


class MaxPool(nnx.Module):
    """Largest value in each window; padding counts as minus infinity."""

    def __init__(self, kernel: int, stride: int, padding: int):
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.places = Places(*[window(kernel, stride, padding)] * 2)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the pool."""
        sides = ((self.padding, self.padding),) * 2
        return nnx.max_pool(x, (self.kernel,) * 2, strides=(self.stride,) * 2, padding=sides)


class Row(nnx.Module):
    """Modules one after the other."""

    def __init__(self, modules: dict[str, nnx.Module]):
        self.names = tuple(modules)
        for name, module in modules.items():
            setattr(self, name, module)
        self.places = in_a_row([module.places for module in modules.values()])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the modules in order."""
        for name in self.names:
            x = getattr(self, name)(x)
        return x


class StagedNetwork(nnx.Module):
    """Named stages in a row, a global average pool and a linear classifier.

    Each stage carries `places`: what a location of its output sees of its input.
    """

    goes_round, pooled = False, True  # whether something goes round the map; whether the last map is pooled

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

    def tapped(self, x: jax.Array, tap: str) -> Tapped:
        """From images to all that `head` takes; see `features`."""
        return Tapped(self.features(x, tap))

    def maps(self, x: jax.Array) -> dict[str, jax.Array]:
        """The map after each stage."""
        found = {}
        for name in self.names:
            found[name] = x = getattr(self, name)(x)
        return found

    def head(self, x: jax.Array, tap: str, beside: None = None) -> jax.Array:
        """From the feature map after stage `tap` to logits `[B, M]`; nothing goes beside it."""
        for stage in self.stages(self.names.index(tap) + 1, None):
            x = stage(x)
        return self.classifier(x.astype(jnp.float32).mean(axis=(1, 2)))

    def places(self, tap: str) -> Places:
        """Where in the image the locations of the map after `tap` lie, and what they see."""
        return in_a_row([stage.places for stage in self.stages(0, self.names.index(tap) + 1)])


def classifier(inputs: int, num_classes: int, settings: Settings) -> nnx.Linear:
    """The linear layer after the global average pool; float32 throughout, so that contributions add up to logits."""
    return nnx.Linear(inputs, num_classes, dtype=jnp.float32, rngs=settings.rngs)
