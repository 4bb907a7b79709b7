"""How much the CPU's form of the convolutions and its compiler options are worth (models/layers.py, compilation.py).

    python experiments/benchmarks/convolutions.py --models=cnn,resnet20 --repeats=9

Each network's training step and forward pass, compiled as XLA comes and as this project compiles them, run in turns in
one process; prints medians, images a second and the ratio. Nothing to measure on a GPU or TPU: there both are the same.
"""

import functools
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
import numpy as np
from absl import app, flags

from i2x_jax import models
from i2x_jax.devices import compilation
from i2x_jax.devices.host_memory import keep_freed_memory
from i2x_jax.devices.mesh import replicate, shard
from i2x_jax.models import layers
from i2x_jax.training import loop as training

# Network: image shape, stem, tap, images a training step, images a forward pass.
NETWORKS = {
    "cnn": ((28, 28, 1), "imagenet", "", 128, 512),
    "resnet20": ((32, 32, 3), "imagenet", "", 128, 512),
    "resnet18": ((32, 32, 3), "cifar", "", 64, 128),
    "resnet50": ((64, 64, 3), "imagenet", "stage3", 32, 128),
    "inception_v3": ((107, 107, 3), "imagenet", "mixed_6e", 16, 64),
}
MODELS = flags.DEFINE_list("models", list(NETWORKS), "networks to measure")
KEEP_MEMORY = flags.DEFINE_bool("keep_memory", True, "keep freed memory, as run.py does")
REPEATS = flags.DEFINE_integer("repeats", 9, "how often each program runs", lower_bound=1)
# Convolution, and how training and inference are jitted.
FORMS = {
    "plain": (jax.lax.conv_general_dilated, jax.jit, jax.jit),
    "ours": (layers.cpu_convolution, compilation.jit, functools.partial(compilation.jit, inference=True)),
}


def programs(name, convolution, jit, inference_jit):
    """The two programs of one network in one form: name to (function without arguments, images)."""
    shape, stem, tap, step_images, forward_images = NETWORKS[name]
    layers.convolution = convolution
    model = models.create(name, num_classes=10, image_shape=shape, stem=stem, tap=tap)
    variables = model.init(jax.random.key(0))
    optimizer = training.make_optimizer("sgd", 0.1, 5e-4, 1000, 0.1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (max(step_images, forward_images), *shape)).astype(np.uint8)
    labels = rng.integers(0, 10, len(images)).astype(np.int32)
    few, own = shard((images[:step_images], labels[:step_images])), shard(images[:forward_images])
    key = replicate(jax.random.key(0))
    step = jit(
        training.train_step.__wrapped__,
        static_argnames=("model", "optimizer", "augmentation"),
        donate_argnames=("state", "totals"),
    )
    forward = inference_jit(lambda v, x: model.head(v, model.features(v, x)))
    carried = [training.init_state(variables, optimizer), training.zero_totals()]

    def train():
        carried[:] = step(model, optimizer, "shift", *carried, *few, key)
        jax.block_until_ready(carried)

    return {
        "train_step": (train, step_images),
        "forward": (lambda: jax.block_until_ready(forward(variables, own)), forward_images),
    }


def main(_):
    """Prints the table."""
    if KEEP_MEMORY.value:
        keep_freed_memory()
    print(f"jax {jax.__version__}, {jax.default_backend()}, {jax.device_count()} device(s)")
    print(f"{'network':<14}{'program':<12}{'plain ms':>10}{'ours ms':>10}{'ratio':>8}{'ours images/s':>15}")
    for name in MODELS.value:
        forms = {form: programs(name, *arguments) for form, arguments in FORMS.items()}
        for program in ("train_step", "forward"):
            seconds = {form: [] for form in forms}
            for repeat in range(REPEATS.value + 1):
                for form in forms:
                    function, images = forms[form][program]
                    start = time.perf_counter()
                    function()
                    if repeat > 0:  # the first compiles
                        seconds[form].append(time.perf_counter() - start)
            plain, ours = (statistics.median(seconds[form]) for form in FORMS)
            figures = f"{1e3 * plain:>10.1f}{1e3 * ours:>10.1f}{plain / ours:>8.2f}{images / ours:>15.0f}"
            print(f"{name:<14}{program:<12}{figures}", flush=True)


if __name__ == "__main__":
    app.run(main)
