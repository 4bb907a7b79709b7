"""Where a network loses its time: each of its convolutions, in inference and in training, beside PyTorch's.

    pip install -r requirements-baseline.txt
    python experiments/benchmarks/layer_times.py --model=cnn

For every distinct convolution of a training batch: milliseconds, and billions of floating-point operations a second, of
the convolution in inference and in training, of its gradient for the kernel and of its gradient for the image; ours as
models/layers.py lowers them, then PyTorch's (channels_last), with as many threads. Medians.
"""

import collections
import functools
import os
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
import numpy as np
import torch
from absl import app, flags

from experiments.benchmarks.convolutions import NETWORKS, REPEATS
from i2x_jax import models
from i2x_jax.devices.compilation import jit
from i2x_jax.devices.host_memory import keep_freed_memory
from i2x_jax.models import layers

MODEL = flags.DEFINE_enum("model", "cnn", list(NETWORKS), "The network.")
WHAT = ("inference", "training", "kernel gradient", "image gradient")
REST_SECONDS = 0.2


def convolutions_of(name: str) -> collections.Counter:
    """How often each convolution occurs: (image shape, kernel shape, strides, padding), a training batch at a time."""
    shape, stem, tap, batch, _ = NETWORKS[name]
    found, lowered = collections.Counter(), layers.convolution

    def noted(x, kernel, strides, padding, **options):
        found[x.shape, kernel.shape, tuple(strides), tuple(map(tuple, padding))] += 1
        return lowered(x, kernel, strides, padding, **options)

    layers.convolution = noted
    try:
        model = models.create(name, num_classes=10, image_shape=shape, stem=stem, tap=tap)
        variables = jax.eval_shape(model.init, jax.random.key(0))
        found.clear()  # of the trace that drew the weights
        images = jax.ShapeDtypeStruct((batch, *shape), np.uint8)
        jax.eval_shape(lambda v, x: model.head(v, model.features(v, x)), variables, images)
    finally:
        layers.convolution = lowered
    return found


def ours(x, kernel, slope, strides, padding):
    """The four programs on a CPU's own form: functions without arguments that wait for their result."""
    numbers = ("NHWC", "HWIO", "NHWC")

    def convolve(x, kernel):
        return layers.convolution(x, kernel, strides, padding, dimension_numbers=numbers, precision=None)

    programs = (
        (jit(convolve, inference=True), (x, kernel)),
        (jit(convolve), (x, kernel)),
        (jit(lambda x, k, g: jax.vjp(lambda k: convolve(x, k), k)[1](g)), (x, kernel, slope)),
        (jit(lambda x, k, g: jax.vjp(lambda x: convolve(x, k), x)[1](g)), (x, kernel, slope)),
    )
    return [functools.partial(waited, function, jax.device_put(arguments)) for function, arguments in programs]


def waited(function, arguments):
    """Calls a jitted function and waits for its result."""
    jax.block_until_ready(function(*arguments))


def theirs(x, kernel, slope, strides, padding):
    """The same by PyTorch."""
    x, slope = (torch.from_numpy(each).permute(0, 3, 1, 2) for each in (x, slope))
    kernel = torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    sides = [low for low, _ in padding]

    def gradient(*wanted):
        return torch.ops.aten.convolution_backward(
            slope, x, kernel, None, strides, sides, (1, 1), False, (0, 0), 1, (*wanted, False)
        )

    def convolve():
        return torch.nn.functional.conv2d(x, kernel, None, strides, sides)

    return [
        convolve,
        convolve,
        lambda: gradient(False, True),
        lambda: gradient(True, False),
    ]


def medians(programs: list) -> list[float]:
    """Median seconds of each, one program after the other: threads of PyTorch that still spin slow XLA's down."""
    found = []
    for program in programs:
        time.sleep(REST_SECONDS)
        seconds = []
        for _ in range(REPEATS.value + 2):
            start = time.perf_counter()
            program()
            seconds.append(time.perf_counter() - start)
        found.append(statistics.median(seconds[2:]))  # the first compiles, the second finds caches cold
    return found


def main(_):
    """Prints the table and its sums."""
    keep_freed_memory()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    print(f"jax {jax.__version__} on {jax.default_backend()}, torch {torch.__version__}; ms (GFLOP/s): ours, PyTorch")
    print(f"{'image':<20}{'kernel':<18}{'times':>5}  " + "".join(f"{name:<32}" for name in WHAT))
    sums = np.zeros((2, len(WHAT)))
    for (image, kernel_shape, strides, padding), count in convolutions_of(MODEL.value).items():
        rng = np.random.default_rng(0)
        x, kernel = (rng.standard_normal(shape, np.float32) for shape in (image, kernel_shape))
        sides = [
            (side + sum(pad) - window) // stride + 1
            for side, pad, window, stride in zip(image[1:3], padding, kernel_shape[:2], strides, strict=True)
        ]
        slope = rng.standard_normal((len(x), *sides, kernel_shape[3]), np.float32)
        operations = 2 * slope.size * np.prod(kernel_shape[:3])
        arguments = (x, kernel, slope, strides, padding)
        found = np.reshape(medians(ours(*arguments) + theirs(*arguments)), sums.shape)
        if sum(sums[0]) == 0:
            found[:, -1] = 0  # nobody wants the gradient of the network's own images
        sums += count * found
        cells = [
            f"{1e3 * a:7.2f} ({operations / 1e9 / a:4.0f}) {1e3 * b:7.2f} ({operations / 1e9 / b:4.0f})" if a else "-"
            for a, b in found.T
        ]
        name = f"{'x'.join(map(str, kernel_shape))} /{strides[0]}"
        print(f"{'x'.join(map(str, image)):<20}{name:<18}{count:>5}  " + "".join(f"{cell:<32}" for cell in cells))
    totals = "".join(f"{f'{1e3 * a:7.2f}        {1e3 * b:7.2f}':<32}" for a, b in sums.T)
    print(f"{'all':<45}{totals}".rstrip())


if __name__ == "__main__":
    app.run(main)
