"""`jax.jit` for programs that hold convolutions: on a CPU they need other compiler options than XLA's own."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Both measured by experiments/convolutions.py. YNNPACK keeps products and reductions, but its convolutions use one
# thread where channels are few: Eigen's use all.
LIBRARIES = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"}
# Barriers outlive fusion. Else the layers before a convolution are computed anew, element by element, inside the
# transposes that the gradient of its kernel asks for. A program without gradients is faster without barriers.
KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def jit(function: Callable[..., Any], gradients: bool = False, **options: Any) -> Callable[..., Any]:
    """`jax.jit(function, **options)` with the compiler options of the platform, which is asked for at the first call.

    (Asking earlier would start JAX before several processes could be joined.) Such a function cannot be called from
    inside another jitted one.

    Args:
      function: to be jitted.
      gradients: whether it differentiates convolutions.
      options: of `jax.jit`.
    """

    @functools.cache
    def jitted():
        return jax.jit(function, compiler_options=compiler_options(gradients), **options)

    @functools.wraps(function)
    def call(*args, **kwargs):
        return jitted()(*args, **kwargs)

    return call


@functools.cache
def compiler_options(gradients: bool) -> dict[str, str] | None:
    """What to tell the compiler: nothing, except on a CPU, if it knows these options."""
    if jax.default_backend() != "cpu":
        return None
    wanted = {**LIBRARIES, **KEEP_BARRIERS} if gradients else LIBRARIES
    try:
        jax.jit(jax.lax.optimization_barrier, compiler_options=wanted)(jnp.zeros(1)).block_until_ready()
    except jax.errors.JaxRuntimeError:
        return None
    return wanted
