"""The published networks: ResNets of He et al. (2016, arXiv:1512.03385) and InceptionV3 of Szegedy et al. (2016)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from i2x_jax import models
from i2x_jax.config import InputError
from i2x_jax.data import dataset as data
from i2x_jax.data.pictures import Reading
from i2x_jax.models.layers import Settings
from i2x_jax.training import loop as training
from tests.helpers import drawn, one_line

CLASSES = 7
create = functools.cache(models.create)

# Parameters with their number of classes and images. ResNet-20: He et al., section 4.2 and option A; the others as in
# torchvision, InceptionV3 without its auxiliary head.
PARAMETERS = [
    ("resnet20", 10, (32, 32, 3), 269_722),
    ("resnet18", 1000, (224, 224, 3), 11_689_512),
    pytest.param("resnet50", 1000, (224, 224, 3), 25_557_032, marks=pytest.mark.slow),
    pytest.param("inception_v3", 1000, (299, 299, 3), 23_834_568, marks=pytest.mark.slow),
]

# By tap: side of the map, channels, receptive field. Sides and channels are table 1 of either paper; ResNet-18 reaches
# 435, ResNet-50 with its stride on the 3x3 convolutions 427, and InceptionV3 1311 pixels (Araujo, Norris, Sim,
# "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019, for the last).
RESNET20 = {"stem": (32, 16, 3), "stage1": (32, 16, 15), "stage2": (16, 32, 37), "stage3": (8, 64, 81)}
RESNET18 = {
    "stem": (56, 64, 11),
    "stage1": (56, 64, 43),
    "stage2": (28, 128, 99),
    "stage3": (14, 256, 211),
    "stage4": (7, 512, 435),
}
RESNET18_CIFAR = {
    "stem": (32, 64, 3),
    "stage1": (32, 64, 11),
    "stage2": (16, 128, 25),
    "stage3": (8, 256, 53),
    "stage4": (4, 512, 109),
}
RESNET50 = {
    "stem": (56, 64, 11),
    "stage1": (56, 256, 35),
    "stage2": (28, 512, 91),
    "stage3": (14, 1024, 267),
    "stage4": (7, 2048, 427),
}
RESNET50_CIFAR = {
    "stem": (64, 64, 3),
    "stage1": (64, 256, 9),
    "stage2": (32, 512, 23),
    "stage3": (16, 1024, 67),
    "stage4": (8, 2048, 107),
}
INCEPTION = {
    "stem": (35, 192, 31),
    "mixed_5b": (35, 256, 63),
    "mixed_5c": (35, 288, 95),
    "mixed_5d": (35, 288, 127),
    "mixed_6a": (17, 768, 159),
    "mixed_6b": (17, 768, 351),
    "mixed_6c": (17, 768, 543),
    "mixed_6d": (17, 768, 735),
    "mixed_6e": (17, 768, 927),
    "mixed_7a": (8, 1280, 1055),
    "mixed_7b": (8, 2048, 1183),
    "mixed_7c": (8, 2048, 1311),
}
TAPS = [
    pytest.param("resnet20", "imagenet", 32, RESNET20, id="resnet20"),
    pytest.param("resnet18", "imagenet", 224, RESNET18, id="resnet18"),
    pytest.param("resnet18", "cifar", 32, RESNET18_CIFAR, id="resnet18-cifar"),
    pytest.param("resnet50", "imagenet", 224, RESNET50, id="resnet50", marks=pytest.mark.slow),
    pytest.param("resnet50", "cifar", 64, RESNET50_CIFAR, id="resnet50-cifar", marks=pytest.mark.slow),
    pytest.param("inception_v3", "imagenet", 299, INCEPTION, id="inception_v3", marks=pytest.mark.slow),
]


def count(params):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def shapes_of(model):
    return jax.eval_shape(model.init, jax.random.key(0))


@pytest.mark.parametrize(("name", "classes", "image_shape", "parameters"), PARAMETERS)
def test_has_the_published_number_of_parameters(name, classes, image_shape, parameters):
    model = create(name, num_classes=classes, image_shape=image_shape)
    assert count(shapes_of(model)["params"]) == parameters


@pytest.mark.parametrize(("name", "stem", "side", "expected"), TAPS)
def test_every_tap_has_its_map_its_logits_and_its_receptive_field(name, stem, side, expected):
    build, width = models.NETWORKS[name]
    settings = functools.partial(Settings, momentum=0.9, dtype=jnp.float32)

    # One network for all its taps: `create` would build it anew for each.
    network = nnx.eval_shape(lambda: build(CLASSES, 3, side, width, stem, settings(rngs=nnx.Rngs(0))))
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    assert network.names == tuple(expected)
    for tap, (map_side, channels, field) in expected.items():
        maps = nnx.eval_shape(lambda net, x, tap=tap: net.features(x, tap), network, images)
        logits = nnx.eval_shape(lambda net, x, tap=tap: net.head(x, tap), network, maps)
        assert maps.shape == (2, map_side, map_side, channels)
        assert logits.shape == (2, CLASSES)
        assert network.places(tap).side == field


@pytest.mark.parametrize(
    ("name", "tap"),
    [
        ("resnet20", "stage2"),
        ("resnet20", ""),
        ("resnet18", "stage3"),
        pytest.param("inception_v3", "mixed_6e", marks=pytest.mark.slow),
    ],
)
def test_a_model_declares_the_shapes_of_its_functions(name, tap):
    side = 75 if name == "inception_v3" else 64
    model = create(name, num_classes=CLASSES, image_shape=(side, side, 1), width=8, tap=tap)
    variables = shapes_of(model)
    maps = jax.eval_shape(model.features, variables, jax.ShapeDtypeStruct((5, side, side, 1), jnp.uint8))
    assert maps.shape == (5, *model.feature_shape)
    assert jax.eval_shape(model.head, variables, maps).shape == (5, CLASSES)
    assert (model.linear_head is None) == bool(tap)


class TestStem:
    def test_imagenet_takes_a_quarter_of_the_side_and_cifar_all_of_it(self):
        small, large = (
            create("resnet18", num_classes=3, image_shape=(64, 64, 3), width=4, stem=stem, tap="stem")
            for stem in ("imagenet", "cifar")
        )
        assert (small.feature_shape, large.feature_shape) == ((16, 16, 4), (64, 64, 4))
        # A 7x7 kernel against a 3x3 one, three channels to four; nothing else differs.
        assert count(shapes_of(small)["params"]) - count(shapes_of(large)["params"]) == 3 * 4 * (49 - 9)

    def test_resnet20_has_one_stem(self):
        shapes = [
            shapes_of(create("resnet20", num_classes=3, image_shape=(32, 32, 3), width=4, stem=stem))
            for stem in ("imagenet", "cifar")
        ]
        assert jax.tree.map(lambda leaf: leaf.shape, shapes[0]) == jax.tree.map(lambda leaf: leaf.shape, shapes[1])


class TestRefusals:
    def test_a_map_of_one_location_unless_asked_for(self):
        with pytest.raises(InputError) as error:
            models.create("resnet18", num_classes=3, image_shape=(32, 32, 3), width=4)
        line = one_line(error)
        assert "resnet18 at tap stage4 is 1x1 for images of 32x32" in line
        assert "data.image_size" in line
        asked_for = models.create("resnet18", num_classes=3, image_shape=(32, 32, 3), width=4, allow_1x1=True)
        assert asked_for.feature_shape[:2] == (1, 1)
        earlier = models.create("resnet18", num_classes=3, image_shape=(32, 32, 3), width=4, tap="stage3")
        assert earlier.feature_shape[:2] == (2, 2)

    @pytest.mark.slow
    @pytest.mark.parametrize("tap", ["", "mixed_6e"])
    def test_images_of_which_inception_leaves_nothing(self, tap):
        with pytest.raises(InputError) as error:
            models.create("inception_v3", num_classes=3, image_shape=(74, 74, 3), width=1, tap=tap, allow_1x1=True)
        line = one_line(error)
        assert "images of 74x74 are too small for inception_v3" in line
        assert "data.image_size" in line

    def test_an_unknown_tap_is_answered_with_those_there_are(self):
        with pytest.raises(InputError) as error:
            models.create("resnet18", num_classes=3, image_shape=(64, 64, 3), width=1, tap="layer4")
        assert "'layer4' of resnet18; allowed: stem, stage1, stage2, stage3, stage4;" in one_line(error)


@pytest.mark.slow
def test_bfloat16_is_used_inside_and_float32_comes_out():
    images = data.load("digits", "train", how=Reading(size=32)).images[:8]
    settings = {"num_classes": 10, "image_shape": (32, 32, 1), "width": 8, "stem": "cifar"}
    exact = create("resnet18", **settings)
    narrow = create("resnet18", **settings, dtype="bfloat16")
    variables = drawn(exact)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes_of(narrow))} == {jnp.dtype("float32")}
    found = [
        jax.jit(lambda variables, model=model: (maps := model.features(variables, images), model.head(variables, maps)))
        for model in (exact, narrow)
    ]
    for wide, short in zip(*(each(variables) for each in found), strict=True):
        assert wide.dtype == short.dtype == jnp.float32
        # Roundings of 4e-3 each in 18 layers.
        assert 1e-4 < np.linalg.norm(wide - short) / np.linalg.norm(wide) < 0.05


# That the others learn, with the optimizer of the paper's settings, is tested in test_experiments.py.
TRAINED = [
    pytest.param("resnet20", {}, 32, id="resnet20"),
    pytest.param("resnet18", {"width": 16, "stem": "cifar"}, 32, id="resnet18"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings", "side"), TRAINED)
def test_learns_64_images(name, settings, side):
    dataset = data.load("digits", "train", how=Reading(size=side)).take(np.arange(64))
    model = models.create(name, num_classes=10, image_shape=(side, side, 1), **settings)
    optimizer = training.make_optimizer("adamw", 1e-2, 0.0, 60, 0.1)
    state = training.init_state(drawn(model), optimizer)

    def loss(variables):
        exact = training.recompute_batch_norm(model, variables, dataset.images)
        return training.loss_and_accuracy(training.predict(model, exact, dataset, 64), dataset.labels)[0]

    assert loss(state.variables) > 1
    state, _ = training.run_steps(
        training.Recipe(model, optimizer, "none", 64, 0), state, training.zero_totals(), dataset, 0, 60
    )
    assert loss(state.variables) < 0.02
