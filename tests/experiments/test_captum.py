"""Evidence in the pixels as captum computes it, on the same weights carried over to PyTorch."""

import numpy as np
import pytest

from experiments.benchmarks import truth_parts
from i2x_jax import models
from i2x_jax.evidence import pixels
from i2x_jax.models.torch_weights import to_torch
from tests.helpers import drawn

try:
    import torch
    from captum.attr import InputXGradient, IntegratedGradients, Occlusion

    from experiments.benchmarks import torch_models
except ImportError:
    torch = None

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch is None, reason="PyTorch or captum is missing (requirements-baseline.txt)"),
]
SIDE, CLASSES = 16, 3


@pytest.fixture(scope="module", params=["cnn", "resnet20"])
def both(request):
    """A network of ours with its weights, and the same in PyTorch, of images 0 to 255."""
    name, width = request.param, 4
    model = models.create(name, num_classes=CLASSES, image_shape=(SIDE, SIDE, 1), width=width)
    variables = drawn(model)
    network = torch_models.create(name, num_classes=CLASSES, image_shape=(SIDE, SIDE, 1), width=width)
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in to_torch(name, variables).items()}
    network.load_state_dict(tensors, strict=False)
    network.eval()
    return model, variables, lambda images: network(images / 127.5 - 1)


@pytest.fixture(scope="module")
def seen():
    """Images, and what is asked of each: the logit of one class, by both sides."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (3, SIDE, SIDE, 1)).astype(np.uint8), np.array([0, 2, 1])
    return truth_parts.Seen(images, None, np.eye(CLASSES, dtype=np.float32)[labels], None), torch.from_numpy(labels)


def tensor(images):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.float32(images), -1, 1)))


def close(ours, theirs):
    theirs = theirs.detach().numpy().sum(1)
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max())


def test_integrated_gradients(both, seen):
    (model, variables, forward), (asked, labels) = both, seen
    level = pixels.level_of(asked.images)
    theirs = IntegratedGradients(forward).attribute(
        tensor(asked.images), tensor(level), labels, n_steps=pixels.POINTS, method="riemann_middle"
    )
    close(truth_parts.path(model, variables, asked, level), theirs)


def test_input_times_gradient(both, seen):
    (model, variables, forward), (asked, labels) = both, seen
    slopes = truth_parts.slope(model, variables, np.float32(asked.images), asked.toward)
    given = tensor(asked.images).requires_grad_()
    close((slopes * asked.images).sum(-1), InputXGradient(forward).attribute(given, labels))


def test_occlusion(both, seen):
    (model, variables, forward), (asked, labels) = both, seen
    # A half would be cut off where patches are put into images of whole levels.
    level = np.round(pixels.level_of(asked.images))
    theirs = Occlusion(forward).attribute(
        tensor(asked.images),
        (1, truth_parts.PATCH, truth_parts.PATCH),
        (1, truth_parts.PATCH_STRIDE, truth_parts.PATCH_STRIDE),
        tensor(level),
        labels,
    )
    close(truth_parts.occluded(model, variables, asked, level), theirs)
