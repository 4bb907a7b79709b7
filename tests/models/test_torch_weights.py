"""Weights to and from PyTorch: the same outputs in both frameworks, and what is said of files that do not fit."""

import functools
import json
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from i2x_jax import Run, config, models
from i2x_jax.config import InputError
from i2x_jax.evidence import saliency
from i2x_jax.models import torch_weights
from i2x_jax.models.layers import Settings
from i2x_jax.pipeline import stages as pipeline
from i2x_jax.pipeline import train as stage_train
from i2x_jax.pipeline.directory import RunDirectory
from tests.helpers import assert_trees_equal, one_line

try:
    import torch
    from captum.attr import LayerGradCam

    from experiments.benchmarks import torch_models
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(
    torch is None, reason="PyTorch and captum are not installed (requirements-baseline.txt)"
)
ROOT = pathlib.Path(__file__).parents[2]
CLASSES, AGREE = 5, 1e-4  # the latter relative to the largest absolute value

# Network, its settings and the side of its images; narrow, except where the test is slow.
NETWORKS = [
    pytest.param("cnn", {"width": 8}, 28, id="cnn"),
    pytest.param("resnet20", {"width": 8}, 32, id="resnet20"),
    pytest.param("resnet18", {"width": 8}, 64, id="resnet18"),
    pytest.param("resnet18", {"width": 8, "stem": "cifar"}, 33, id="resnet18-cifar", marks=pytest.mark.slow),
    pytest.param("resnet18", {}, 64, id="resnet18-full", marks=pytest.mark.slow),
    pytest.param("resnet50", {}, 64, id="resnet50-full", marks=pytest.mark.slow),
    pytest.param("inception_v3", {}, 107, id="inception_v3-full", marks=pytest.mark.slow),
]
SLOW = ("resnet50", "inception_v3")
EVERY = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in models.NETWORKS]


@functools.cache
def network(name, side, settings=(), tap="", channels=3):
    return models.create(
        name, num_classes=CLASSES, image_shape=(side, side, channels), tap=tap, allow_1x1=True, **dict(settings)
    )


def moved(shapes, seed=0):
    """Variables in which no leaf keeps its start, and whose activations neither vanish nor grow."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            return (rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))).astype(np.float32)
        middle = path[-1].key in ("scale", "var")
        return (middle + rng.uniform(-0.2, 0.2, leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def variables_of(model, seed=0):
    return moved(jax.eval_shape(model.init, jax.random.key(0)), seed)


def images_of(side, count=2, channels=3):
    return np.random.default_rng(7).integers(0, 256, (count, side, side, channels)).astype(np.uint8)


def tensors_of(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def torch_network(name, side, settings, tensors):
    made = torch_models.create(name, num_classes=CLASSES, image_shape=(side, side, 3), **settings).eval()
    made.load_state_dict({key: torch.from_numpy(value) for key, value in tensors.items()})
    return made


def assert_agree(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 1e-3, "nothing is compared"
    assert np.abs(ours - theirs).max() <= AGREE * np.abs(theirs).max()


@needs_torch
@pytest.mark.parametrize(("name", "settings", "side"), NETWORKS)
def test_outputs_agree_with_pytorch_at_every_tap_in_both_directions(name, settings, side):
    build, own_width = models.NETWORKS[name]
    stem, width = settings.get("stem", "imagenet"), settings.get("width", own_width)

    def made(rngs):
        return build(CLASSES, 3, side, width, stem, Settings(rngs=rngs, momentum=0.9, dtype=jnp.float32))

    # One network for all its taps: `models.create` would trace it anew for each.
    graph, params, stats = nnx.split(nnx.eval_shape(lambda: made(nnx.Rngs(0))), nnx.Param, nnx.BatchStat)
    shapes = {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(stats)}

    @jax.jit
    def run(variables, images):
        net = nnx.merge(graph, variables["params"], variables["batch_stats"])
        net = nnx.view(net, use_running_average=True)
        x, maps = images.astype(jnp.float32) / 127.5 - 1, []
        for place in range(len(net.names)):
            (stage,) = net.stages(place, place + 1)
            maps.append(x := stage(x))
        return maps, net.head(x, net.names[-1])

    ours = moved(shapes)
    theirs = torch_network(name, side, settings, torch_weights.to_torch(name, ours))
    # The way back, from another network of PyTorch's own making, its counters included.
    torch.manual_seed(3)
    other = torch_models.create(name, num_classes=CLASSES, image_shape=(side, side, 3), **settings).eval()
    with torch.no_grad():
        for value in other.state_dict().values():
            if value.is_floating_point() and value.ndim == 1:
                value += 0.2 * torch.rand(value.shape)
    state = {key: value.numpy() for key, value in other.state_dict().items()}
    back, _ = torch_weights.from_torch(name, state, shapes, "them")
    images = images_of(side)
    for network, variables in ((theirs, ours), (other, back)):
        maps, logits = run(variables, images)
        x = tensors_of(images)
        with torch.no_grad():
            for features, tap in zip(maps, network.stages(), strict=True):
                assert_agree(features, network.features(x, tap).permute(0, 2, 3, 1))
                assert_agree(logits, network.head(network.features(x, tap), tap))


@needs_torch
@pytest.mark.parametrize("tap", ["conv4", "conv3", "conv2"])
def test_gradcam_is_that_of_captum(tap):
    """At the last tap by the closed form, before it by differentiating the head."""
    model = network("cnn", 28, (("width", 8),), tap)
    variables, images, labels = variables_of(model), images_of(28, 4), np.array([0, 2, 4, 1])
    assert (model.linear_head is None) == (tap != "conv4")
    found = jax.jit(lambda v, x: saliency.saliency_maps(model, v, model.features(v, x), labels))(variables, images)
    made = torch_network("cnn", 28, {"width": 8}, torch_weights.to_torch("cnn", variables))
    cut = torch_models.Cut(made, tap)
    expected = LayerGradCam(cut, cut.tap).attribute(
        tensors_of(images), torch.from_numpy(labels), relu_attributions=True
    )
    assert_agree(found, expected[:, 0].detach())


@pytest.mark.parametrize("name", EVERY)
def test_there_and_back_is_the_same(name):
    model = network(name, 107, (("width", 4),))
    variables = variables_of(model)
    tensors = torch_weights.to_torch(name, variables)
    assert len(tensors) == len(jax.tree.leaves(variables))
    back, other = torch_weights.from_torch(name, tensors, jax.eval_shape(model.init, jax.random.key(0)), "them")
    assert other is None
    assert_trees_equal(back, variables)


# Some of torchvision's names, of every kind, with their shapes at 1,000 classes.
TORCHVISION = {
    "resnet18": {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_var": (64,),
        "layer1.1.conv2.weight": (64, 64, 3, 3),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer2.0.downsample.1.running_mean": (128,),
        "fc.weight": (1000, 512),
    },
    "resnet50": {
        "layer1.0.conv3.weight": (256, 64, 1, 1),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer3.5.bn2.bias": (256,),
        "layer4.2.conv2.weight": (512, 512, 3, 3),
        "fc.bias": (1000,),
    },
    "inception_v3": {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.weight": (192,),
        "Mixed_5b.branch1x1.conv.weight": (64, 192, 1, 1),
        "Mixed_5d.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_5c.branch_pool.conv.weight": (64, 256, 1, 1),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
        "Mixed_6c.branch7x7_2.conv.weight": (160, 160, 1, 7),
        "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "fc.weight": (1000, 2048),
    },
}


@pytest.mark.parametrize("name", [each for each in EVERY if each.values[0] in TORCHVISION])
def test_names_and_shapes_are_torchvisions(name):
    model = models.create(name, num_classes=1000, image_shape=(107, 107, 3), allow_1x1=True)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    tensors = torch_weights.to_torch(name, jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes))
    assert {key: tensors[key].shape for key in TORCHVISION[name]} == TORCHVISION[name]


class TestNormalisation:
    MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

    def stem(self, variables, images):
        return np.asarray(network("resnet18", 64, (("width", 4),), "stem").features(variables, images))

    def test_is_folded_exactly_except_at_the_border(self):
        variables, images = variables_of(network("resnet18", 64, (("width", 4),))), images_of(64).astype(np.float32)
        tensors = torch_weights.to_torch("resnet18", variables)
        folded = torch_weights.fold_normalization(tensors, self.MEAN, self.STD)
        folded, _ = torch_weights.from_torch("resnet18", folded, variables, "them")
        normalised = (images / 255 - self.MEAN) / self.STD
        # What the network scales to -1..1 must come out normalised.
        expected = self.stem(variables, ((normalised + 1) * 127.5).astype(np.float32))
        found = self.stem(folded, images)
        inside = np.s_[:, 2:-2, 2:-2]
        assert_agree(found[inside], expected[inside])
        assert np.abs(found - expected).max() > AGREE * np.abs(expected).max(), "the border was expected to differ"

    @pytest.mark.slow
    def test_inception_pads_nothing_there_and_is_exact(self):
        model = network("inception_v3", 107, (("width", 4),), "stem")
        variables, images = variables_of(model), images_of(107).astype(np.float32)
        tensors = torch_weights.to_torch("inception_v3", variables)
        folded = torch_weights.fold_normalization(tensors, self.MEAN, self.STD)
        # One channel apart, only the first layer may change.
        assert sum(not np.array_equal(folded[key], tensors[key]) for key in tensors) == 2
        folded, _ = torch_weights.from_torch("inception_v3", folded, variables, "them")
        normalised = ((images / 255 - self.MEAN) / self.STD + 1) * 127.5
        features = jax.jit(model.features)
        assert_agree(features(folded, images), features(variables, normalised.astype(np.float32)))

    def test_of_another_number_of_channels(self):
        tensors = torch_weights.to_torch("cnn", variables_of(network("cnn", 28, (("width", 8),))))
        with pytest.raises(InputError) as error:
            torch_weights.fold_normalization(tensors, np.array([0.5]), np.array([0.5]))
        assert "allowed: 3 of each" in one_line(error)

    def test_grey_weights_see_grey_images_as_colour_weights_do(self):
        colour = network("cnn", 28, (("width", 8),))
        grey = network("cnn", 28, (("width", 8),), channels=1)
        variables, images = variables_of(colour), images_of(28, channels=1)
        tensors = torch_weights.fold_channels(torch_weights.to_torch("cnn", variables))
        folded, _ = torch_weights.from_torch("cnn", tensors, jax.eval_shape(grey.init, jax.random.key(0)), "them")
        assert_agree(grey.features(folded, images), colour.features(variables, images.repeat(3, -1)))


class TestWhatDoesNotFit:
    @pytest.fixture
    def model(self):
        return network("cnn", 28, (("width", 8),))

    @pytest.fixture
    def tensors(self, model):
        return torch_weights.to_torch("cnn", variables_of(model))

    def refusal(self, model, tensors):
        with pytest.raises(InputError) as error:
            torch_weights.from_torch("cnn", tensors, jax.eval_shape(model.init, jax.random.key(0)), "them")
        line = one_line(error)
        assert "set model.init_from" in line
        return line

    def test_what_is_not_a_weight_is_passed_over(self, model, tensors):
        more = {"bn1.num_batches_tracked": np.array(3), "AuxLogits.fc.weight": np.zeros((5, 2), np.float32)}
        found, _ = torch_weights.from_torch("cnn", {**tensors, **more}, variables_of(model), "them")
        assert_trees_equal(found, variables_of(model))

    def test_another_number_of_classes_keeps_the_initial_classifier(self, model, tensors):
        wide = {**tensors, "fc.weight": np.ones((9, 16), np.float32), "fc.bias": np.ones(9, np.float32)}
        initial = variables_of(model, seed=1)
        found, other = torch_weights.from_torch("cnn", wide, initial, "them")
        assert other == 9
        expected = variables_of(model)
        assert_trees_equal(found["params"]["conv1"], expected["params"]["conv1"])
        assert_trees_equal(found["params"]["classifier"], initial["params"]["classifier"])

    def test_missing_tensors(self, model, tensors):
        for name in ("bn1.weight", "bn2.weight", "bn3.weight", "bn4.weight"):
            del tensors[name]
        assert "them lacks bn1.weight, bn2.weight, bn3.weight and 1 more" in self.refusal(model, tensors)

    def test_unexpected_tensors(self, model, tensors):
        tensors["layer1.0.conv1.weight"] = np.zeros(3, np.float32)
        assert "has unexpected layer1.0.conv1.weight" in self.refusal(model, tensors)

    def test_another_shape(self, model, tensors):
        tensors["conv1.weight"] = np.zeros((8, 1, 3, 3), np.float32)
        assert "another shape in conv1.weight [8, 1, 3, 3] instead of [8, 3, 3, 3]" in self.refusal(model, tensors)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_no_finite_number(self, model, tensors, value):
        tensors["bn2.bias"] = np.full(16, value, np.float32)
        assert "holds NaN, infinity or no numbers in bn2.bias" in self.refusal(model, tensors)

    def test_half_precision_is_taken(self, model, tensors):
        half = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
        found, _ = torch_weights.from_torch("cnn", half, variables_of(model), "them")
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}

    @pytest.mark.parametrize(
        ("content", "told"),
        [(None, "are not a file"), (b"", "are not safetensors"), (b"\x80\x02}q\x00.", "not safetensors")],
    )
    def test_files(self, tmp_path, content, told):
        path = tmp_path / "them.safetensors"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError) as error:
            torch_weights.read(path)
        line = one_line(error)
        assert told in line
        assert str(path) in line

    def test_a_folder(self, tmp_path):
        with pytest.raises(InputError) as error:
            torch_weights.read(tmp_path)
        assert str(tmp_path) in one_line(error)


def settings_of(weights, **model):
    """A training of four steps."""
    return config.from_config_dict(
        {
            "data": {"max_train": 200, "augment": "none"},
            "model": {"width": 4, "init_from": str(weights), **model},
            "train": {"epochs": 2, "batch_size": 100, "num_checkpoints": 2},
            "explain": {"pca_dims": 4},
        }
    )


@functools.cache
def digits_network():
    return models.create("cnn", num_classes=10, image_shape=(8, 8, 1), width=4)


class TestInitFrom:
    @pytest.fixture
    def expected(self):
        return variables_of(digits_network())

    @pytest.fixture
    def weights(self, expected, tmp_path):
        path = tmp_path / "weights.safetensors"
        save_file(torch_weights.to_torch("cnn", expected), path)
        return path

    def test_training_starts_from_the_file_and_notices_when_it_changes(self, expected, weights, tmp_path):
        folder, settings = tmp_path / "run", settings_of(weights)
        pipeline.run(settings, folder, ["train"])
        assert_trees_equal(jax.device_get(Run(folder).variables(0)["params"]), expected["params"])
        provenance = json.loads((folder / "config.json").read_text())["provenance"]
        assert provenance["init_from_sha256"] == torch_weights.sha256(weights)

        (folder / "steps.npy").unlink()
        tensors = load_file(weights)
        save_file({**tensors, "fc.bias": tensors["fc.bias"] + 1}, weights)
        with pytest.raises(InputError) as error:
            pipeline.run(settings, folder, ["train"])
        assert f"the weights in {weights} differ from those" in one_line(error)

        save_file(tensors, weights)
        pipeline.run(settings, folder, ["train"])
        # The training is done: what it started from is not needed any more.
        weights.unlink()
        pipeline.run(settings, folder, ["train"])

    def test_another_number_of_classes_is_told(self, expected, weights, tmp_path, capsys):
        tensors = load_file(weights) | {"fc.weight": np.ones((3, 8), np.float32), "fc.bias": np.ones(3, np.float32)}
        save_file(tensors, weights)
        work = types.SimpleNamespace(
            config=settings_of(weights), model=digits_network(), dataset=types.SimpleNamespace(class_names=range(10))
        )
        found = stage_train.initial_variables(RunDirectory(tmp_path), work)["params"]
        told = f"{weights} knows 3 classes and the data have 10: its classifier is not used, a new one is drawn"
        assert capsys.readouterr().out.splitlines() == [told]
        np.testing.assert_array_equal(found["conv1"]["conv"]["kernel"], expected["params"]["conv1"]["conv"]["kernel"])
        assert found["classifier"]["kernel"].shape == (8, 10)

    def test_a_file_that_does_not_fit_leaves_nothing_behind(self, weights, tmp_path):
        with pytest.raises(InputError) as error:
            pipeline.run(settings_of(weights, width=5), tmp_path / "run", ["train"])
        assert "another shape in" in one_line(error)
        assert not (tmp_path / "run").exists()


@needs_torch
class TestConvertTorch:
    def convert(self, *arguments):
        command = [sys.executable, str(ROOT / "experiments" / "tools" / "convert_torch.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    def test_a_state_dict(self, tmp_path):
        made = torch_models.create("cnn", num_classes=3, image_shape=(8, 8, 3), width=4)
        torch.save({"state_dict": {f"module.{k}": v for k, v in made.state_dict().items()}}, tmp_path / "w.pth")
        target = tmp_path / "w.safetensors"
        done = self.convert(f"--input={tmp_path / 'w.pth'}", f"--output={target}", "--grey")
        assert (done.returncode, done.stderr) == (0, "")
        found = load_file(target)
        assert set(found) == set(made.state_dict())
        np.testing.assert_array_equal(found["fc.weight"], made.fc.weight.detach())
        np.testing.assert_allclose(found["conv1.weight"], made.conv1.weight.detach().sum(1, keepdim=True), rtol=1e-5)

    def test_a_pickle_that_would_run_something_is_refused(self, tmp_path):
        class Hostile:
            def __reduce__(self):
                return (pathlib.Path.touch, (tmp_path / "was_run",))

        torch.save({"conv1.weight": Hostile()}, tmp_path / "w.pth")
        done = self.convert(f"--input={tmp_path / 'w.pth'}", f"--output={tmp_path / 'w.safetensors'}")
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["w.pth"]

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--mean=0.5"],
            pytest.param(["--mean=a", "--std=1"], marks=pytest.mark.slow),
            pytest.param(["--mean=0.5", "--std=0.5"], marks=pytest.mark.slow),
        ],
    )
    def test_a_normalisation_that_does_not_fit(self, tmp_path, arguments):
        made = torch_models.create("cnn", num_classes=3, image_shape=(8, 8, 3), width=4)
        torch.save(made.state_dict(), tmp_path / "w.pth")
        done = self.convert(f"--input={tmp_path / 'w.pth'}", f"--output={tmp_path / 'w.safetensors'}", *arguments)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert "allowed: " in done.stderr
