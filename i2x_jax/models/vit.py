"""Vision transformers (Dosovitskiy et al. 2021, arXiv:2010.11929), laid out as in timm; the map is that of the patches.

Where a network ends in a mean over patches behind its last norm, its head is a pool and a linear layer, as a CNN's.
Where it ends in a class token, that token goes round the map: the last cut lies before the last block, whose attention
is all that the map still does for the logits.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from i2x_jax.config import InputError
from i2x_jax.models.layers import Settings, classifier
from i2x_jax.models.model import Tapped
from i2x_jax.models.places import Places, Span, window

EPSILON = 1e-6
WIDER = 4  # hidden layer of a block, over its width
POSITION_DEVIATION = 0.02


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is set about a transformer.

    Attributes:
      patch: side of a patch in pixels.
      depth: blocks; 0 for the network's own 12.
      pool: 'mean' over the patches behind the last norm, 'mean_norm' with the norm behind the mean, or the class
        'token'.
    """

    patch: int = 16
    depth: int = 0
    pool: str = "mean"


class Embedding(nnx.Module):
    """Patches to tokens with their positions, and the class token before them: `[B, n, d]`."""

    def __init__(self, channels: int, width: int, patch: int, count: int, token: bool, settings: Settings):
        self.project = nnx.Conv(
            channels,
            width,
            (patch, patch),
            strides=patch,
            padding="VALID",
            dtype=settings.dtype,
            rngs=settings.rngs,
            conv_general_dilated=patch_product,
        )
        drawn = POSITION_DEVIATION * jax.random.normal(settings.rngs.params(), (1, count + token, width))
        self.positions = nnx.Param(drawn)
        self.token = nnx.Param(jnp.zeros((1, 1, width))) if token else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layer to images `[B, H, W, C]`."""
        x = self.project(x)
        x = x.reshape(len(x), -1, x.shape[-1])
        if self.token is not None:
            x = jnp.concatenate([jnp.broadcast_to(self.token[...], (len(x), 1, x.shape[-1])).astype(x.dtype), x], 1)
        return x + self.positions[...].astype(x.dtype)


def patch_product(x: jax.Array, kernel: jax.Array, strides: tuple, padding: str, **options) -> jax.Array:
    """A convolution whose windows do not overlap and fill the image, as one matrix product."""
    del strides, padding
    rows, columns, channels, outputs = kernel.shape
    h, w = x.shape[1] // rows, x.shape[2] // columns
    patches = x.reshape(len(x), h, rows, w, columns, channels).swapaxes(2, 3).reshape(len(x), h, w, -1)
    return jnp.matmul(patches, kernel.reshape(-1, outputs), precision=options["precision"])


class Block(nnx.Module):
    """A pre-norm block: self-attention, then two layers token by token, each added to what it was given."""

    def __init__(self, width: int, heads: int, settings: Settings):
        norm = functools.partial(nnx.LayerNorm, width, epsilon=EPSILON, dtype=settings.dtype, rngs=settings.rngs)
        linear = functools.partial(
            nnx.Linear, kernel_init=nnx.initializers.xavier_uniform(), dtype=settings.dtype, rngs=settings.rngs
        )
        self.heads = heads
        self.norm1, self.norm2 = norm(), norm()
        self.qkv, self.project = linear(width, 3 * width), linear(width, width)
        self.hidden, self.out = linear(width, WIDER * width), linear(WIDER * width, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block to tokens `[B, n, d]`."""
        count, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(count, tokens, 3, self.heads, width // self.heads)
        seen = jax.nn.dot_product_attention(*jnp.moveaxis(parts, 2, 0)).reshape(x.shape)
        x = x + self.project(seen)
        return x + self.out(nnx.gelu(self.hidden(self.norm2(x)), approximate=False))


class VisionTransformer(nnx.Module):
    """Stages `embed`, `block1`, ..., and `norm` where it lies before the pool; see `Shape`.

    As a `StagedNetwork` it is cut after a named stage.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        width: int,
        heads: int,
        shape: Shape,
        settings: Settings,
    ):
        self.shape, self.image_shape = shape, image_shape[:2]
        self.goes_round, self.pooled = shape.pool == "token", shape.pool == "mean"
        self.grid = tuple(side // shape.patch for side in image_shape[:2])
        count = self.grid[0] * self.grid[1]
        self.embed = Embedding(image_shape[2], width, shape.patch, count, self.goes_round, settings)
        blocks = [f"block{number + 1}" for number in range(shape.depth)]
        for name in blocks:
            setattr(self, name, Block(width, heads, settings))
        # As in timm, the two norms have names of their own.
        self.last_norm = "fc_norm" if shape.pool == "mean_norm" else "norm"
        setattr(self, self.last_norm, nnx.LayerNorm(width, epsilon=EPSILON, dtype=settings.dtype, rngs=settings.rngs))
        self.classifier = classifier(width, num_classes, settings)
        self.layers = ("embed", *blocks, *(["norm"] if self.pooled else []))
        # Behind the last block nothing of the map reaches a class token.
        self.names = self.layers[:-1] if self.goes_round else self.layers

    def tokens(self, x: jax.Array, layers: tuple[str, ...]) -> jax.Array:
        """Applies layers."""
        for name in layers:
            x = getattr(self, name)(x)
        return x

    def tapped(self, x: jax.Array, tap: str) -> Tapped:
        """From images `[B, H, W, C]` to the map of the patches after stage `tap`, and the class token, if any."""
        return self._split(self.tokens(x, self.layers[: self.layers.index(tap) + 1]))

    def _split(self, tokens):
        patches = tokens[:, int(self.goes_round) :].reshape(len(tokens), *self.grid, -1)
        return Tapped(patches, tokens[:, 0] if self.goes_round else None)

    def head(self, x: jax.Array, tap: str, beside: jax.Array | None = None) -> jax.Array:
        """From the map after stage `tap`, and the class token, if any, to logits `[B, M]`."""
        tokens = x.reshape(len(x), -1, x.shape[-1])
        if beside is not None:
            tokens = jnp.concatenate([beside[:, None].astype(x.dtype), tokens], axis=1)
        tokens = self.tokens(tokens, self.layers[self.layers.index(tap) + 1 :])
        pooled = tokens[:, 0] if beside is not None else tokens.astype(jnp.float32).mean(axis=1)
        pooled = pooled if self.pooled else getattr(self, self.last_norm)(pooled)
        return self.classifier(pooled.astype(jnp.float32))

    def maps(self, x: jax.Array) -> dict[str, jax.Array]:
        """The map after each stage."""
        found = {}
        for name in self.names:
            x = getattr(self, name)(x)
            found[name] = self._split(x).features
        return found

    def places(self, tap: str) -> Places:
        """Where the patches lie; after the first block each may have seen all of the image."""
        own = Places(*[window(self.shape.patch, self.shape.patch)] * 2)
        if tap == "embed":
            return own
        # So wide around any pixel, a field holds the whole image.
        sides = [2 * side - 1 for side in self.image_shape]
        return Places(*(Span(span.start, span.stride, side) for span, side in zip(own, sides, strict=True)))


def vit(heads: int):
    """A builder of transformers with so many heads in each block; see `networks.create`."""

    def build(
        num_classes: int, image_shape: tuple[int, int, int], width: int, shape: Shape, settings: Settings
    ) -> VisionTransformer:
        if any(side % shape.patch for side in image_shape[:2]):
            raise InputError(
                f"config key model.patch is {shape.patch} for images of {image_shape[0]}x{image_shape[1]}; allowed: "
                "what both sides are multiples of; set model.patch or data.image_size"
            )
        if width % heads:
            raise InputError(
                f"config key model.width is {width}; allowed: a multiple of the {heads} heads of this network, or 0 "
                "for its own; set model.width"
            )
        shape = dataclasses.replace(shape, depth=shape.depth or DEPTH)
        return VisionTransformer(num_classes, image_shape, width, heads, shape, settings)

    return build


DEPTH = 12
vit_ti, vit_s, vit_b = vit(3), vit(6), vit(12)
