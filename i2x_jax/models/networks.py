"""The networks that this project trains, made by name and cut at a tap (DESIGN 2.1). NNX stays inside this package."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from i2x_jax.config import InputError
from i2x_jax.models.cnn import cnn
from i2x_jax.models.inception import inception_v3
from i2x_jax.models.layers import Settings
from i2x_jax.models.model import Model, Tap, Tapped, Variables
from i2x_jax.models.resnet import resnet18, resnet20, resnet50
from i2x_jax.models.vit import Shape, vit_b, vit_s, vit_ti

# Builders, and the width at which each is the published network.
NETWORKS = {
    "cnn": (cnn, 32),
    "resnet20": (resnet20, 16),
    "resnet18": (resnet18, 64),
    "resnet50": (resnet50, 64),
    "inception_v3": (inception_v3, 32),
}
TRANSFORMERS = {"vit_ti": (vit_ti, 192), "vit_s": (vit_s, 384), "vit_b": (vit_b, 768)}
BATCH_NORM_MOMENTUM = 0.9


def taps(
    name: str,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    width: int = 0,
    stem: str = "imagenet",
    **shape: Any,
) -> tuple[Tap, ...]:
    """All taps of a classifier in order, traced without computing anything; arguments and errors as in `create`."""
    wanted = name, num_classes, image_shape, width, stem, Shape(**shape)
    network = nnx.eval_shape(lambda: _build(*wanted, "float32", jax.random.key(0)))
    return _taps(name, network, image_shape)


def find_tap(name: str, tap: str, places: tuple[Tap, ...]) -> Tap:
    """The tap of that name among those of a network, '' for the last; raises `InputError` for an unknown one."""
    known = [place.name for place in places]
    if tap and tap not in known:
        raise InputError(f"unknown tap {tap!r} of {name}; allowed: {', '.join(known)}; set model.tap")
    return places[known.index(tap) if tap else -1]


def create(
    name: str,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    width: int = 0,
    stem: str = "imagenet",
    tap: str = "",
    dtype: str = "float32",
    allow_1x1: bool = False,
    **shape: Any,
) -> Model:
    """Makes a classifier.

    Args:
      name: 'cnn', 'resnet20', 'resnet18', 'resnet50', 'inception_v3', 'vit_ti', 'vit_s' or 'vit_b'.
      num_classes: M.
      image_shape: (H, W, C).
      width: channels of the first stage; 0 for the published network's.
      stem: 'imagenet' (7x7 convolution and pool, a quarter of the side) or 'cifar' (3x3, full side), for resnet18/50.
      tap: the stage whose output is explained; '' for the last.
      dtype: of the computation, 'float32' or 'bfloat16'; parameters, features and logits stay float32.
      allow_1x1: accept a feature map of a single location.
      **shape: members of `vit.Shape`; of no account to other networks.

    Raises:
      InputError: unknown model or tap; a 1x1 feature map that was not asked for; images too small for the network.
    """

    def build(key):
        return _build(name, num_classes, image_shape, width, stem, Shape(**shape), dtype, key)

    network = nnx.eval_shape(lambda: build(jax.random.key(0)))
    places = _taps(name, network, image_shape)
    cut = find_tap(name, tap, places)
    h, w, _ = cut.feature_shape
    if h * w == 1 and not allow_1x1:
        raise InputError(
            f"the feature map of {name} at tap {cut.name} is 1x1 for images of {image_shape[0]}x{image_shape[1]}; "
            "allowed: at least two locations; use a larger data.image_size, an earlier model.tap "
            "(run.py --list_taps names them), or model.allow_1x1"
        )
    tap = cut.name

    def graph(use_running_average, momentum=BATCH_NORM_MOMENTUM):
        normalises = any(isinstance(module, nnx.BatchNorm) for _, module in nnx.iter_modules(network))
        view = nnx.view(network, use_running_average=use_running_average) if normalises else network
        for _, module in nnx.iter_modules(view):
            if isinstance(module, nnx.BatchNorm):
                module.momentum = momentum
        return nnx.split(view, nnx.Param, nnx.BatchStat)[0]

    evaluation, training = graph(use_running_average=True), graph(use_running_average=False)
    # Momentum 0 keeps nothing of the old averages: what is left is the statistics of this batch.
    calibration = graph(use_running_average=False, momentum=0.0)

    def merge(graphdef, variables):
        return nnx.merge(graphdef, variables["params"], variables["batch_stats"])

    def init(key):
        _, params, stats = nnx.split(build(key), nnx.Param, nnx.BatchStat)
        return {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(stats)}

    def tapped(variables, images):
        features, beside = merge(evaluation, variables).tapped(_scaled(images), tap)
        return Tapped(features.astype(jnp.float32), beside if beside is None else beside.astype(jnp.float32))

    def head(variables, features, beside=None):
        return merge(evaluation, variables).head(features, tap, beside).astype(jnp.float32)

    def train_mode(graphdef, variables, images):
        network = merge(graphdef, variables)
        features, beside = network.tapped(_scaled(images), tap)
        logits = network.head(features, tap, beside).astype(jnp.float32)
        return logits, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))

    def linear_head(variables):
        return variables["params"]["classifier"]["kernel"], variables["params"]["classifier"]["bias"]

    return Model(
        features=lambda variables, images: tapped(variables, images).features,
        head=head,
        init=jax.jit(init),
        train_logits=lambda variables, images: train_mode(training, variables, images),
        batch_statistics=lambda variables, images: train_mode(calibration, variables, images)[1],
        linear_head=linear_head if cut == places[-1] and network.pooled else None,
        feature_shape=cut.feature_shape,
        places=cut.places,
        tap=tap,
        tapped=tapped if network.goes_round else None,
    )


def with_classifier(variables: Variables, weights: jax.Array, bias: jax.Array) -> Variables:
    """Variables of a network of this project with another last layer: weights `[d, M]`, bias `[M]`."""
    params = variables["params"] | {"classifier": {"kernel": weights, "bias": bias}}
    return variables | {"params": params}


def _build(name, num_classes, image_shape, width, stem, shape, dtype, key):
    known = NETWORKS | TRANSFORMERS
    if name not in known:
        raise InputError(f"unknown model {name!r}; allowed: {', '.join(known)}; set model.name")
    builder, own_width = known[name]
    settings = Settings(rngs=nnx.Rngs(params=key), momentum=BATCH_NORM_MOMENTUM, dtype=jnp.dtype(dtype))
    if name in TRANSFORMERS:
        return builder(num_classes, image_shape, width or own_width, shape, settings)
    return builder(num_classes, image_shape[2], min(image_shape[:2]), width or own_width, stem, settings)


def _taps(name, network, image_shape):
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    maps = nnx.eval_shape(lambda network, images: network.maps(images), network, images)
    # Convolutions without padding may leave nothing: no error in JAX, but a mean over nothing, and logits of NaN.
    if 0 in maps[network.names[-1]].shape:
        raise InputError(
            f"images of {image_shape[0]}x{image_shape[1]} are too small for {name}: its last feature map would be "
            "empty; allowed: images that leave a map; set a larger data.image_size or another "
            "model.name"
        )
    return tuple(Tap(stage, maps[stage].shape[1:], network.places(stage)) for stage in network.names)


def _scaled(images):
    """Grey levels 0 to 255 to -1 to 1."""
    return images.astype(jnp.float32) / 127.5 - 1
