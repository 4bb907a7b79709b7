"""oneDNN's convolution, which jaxlib contains for Linux on x86-64, but which XLA does not choose by itself.

On a CPU it is up to twice as fast as Eigen's, which XLA chooses (experiments/benchmarks/layer_times.py). The call and
its description are XLA's own: xla/backends/cpu/runtime/onednn/onednn_op_thunk.cc, xla/service/cpu/onednn_config.proto.
"""

import json

import jax

from i2x_jax.devices import inside

IMAGES = {"dims": 4, "data": {"batch_dim": 0, "feature_dim": 3, "spatial_dims": [1, 2]}}
KERNEL = {"dims": 4, "filter": {"spatial_dims": [0, 1], "input_feature_dim": 2, "output_feature_dim": 3}}


def convolution(x: jax.Array, kernel: jax.Array, strides: tuple, padding: tuple, locations: list) -> jax.Array:
    """The convolution, without a gradient, to be called under `compilation.jit` for inference only.

    A description that does not fit the arrays ends the process.

    Args:
      x: float32 `[B, H, W, inputs]`.
      kernel: float32 `[rows, columns, inputs, outputs]`.
      strides: along rows and columns.
      padding: (before, after) of rows and of columns.
      locations: rows and columns of the result, both at least 1.

    Returns:
      float32 `[B, *locations, outputs]`.
    """
    description = {
        "dims": 4,
        "input": IMAGES,
        "kernel": KERNEL,
        "output": IMAGES,
        "window": {
            "size": kernel.shape[:2],
            "strides": strides,
            "pad_left": [before for before, _ in padding],
            "pad_right": [after for _, after in padding],
            "window_dilations": [1, 1],
        },
        "feature_groups": 1,
    }
    call = inside.ffi_call(
        "__onednn$convolution",
        jax.ShapeDtypeStruct((len(x), *locations, kernel.shape[3]), x.dtype),
        vmap_method="sequential",
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({"outer_dimension_partitions": [], "onednn_conv_config": description}),
    )
    return call(x, kernel)
