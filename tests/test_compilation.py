"""The CPU's form of a convolution, and the compiler options it comes with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i2x_jax import compilation
from i2x_jax.models import layers
from tests.helpers import DEEP

OPTIONS = {
    "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    "precision": jax.lax.Precision.HIGHEST,
}
# Image side (height, width), channels, kernel, stride, padding: products of 1x1, windows of few and of many locations,
# few and many products of the kernel.
SHAPES = [
    ((6, 6), 4, (1, 1), 1, 0),
    ((6, 5), 4, (1, 1), 2, 0),
    ((6, 6), 4, (1, 1), 1, 1),
    ((3, 3), 4, (3, 3), 1, 1),
    ((4, 4), 4, (3, 3), 2, 1),
    ((4, 5), 4, (1, 7), 2, (0, 3)),
    ((5, 4), 4, (7, 1), 1, (3, 0)),
    ((9, 9), 4, (3, 3), 2, 1),
    ((8, 8), 4, (5, 5), 1, 2),
    ((8, 7), 1, (3, 3), 1, 1),
    ((9, 8), 2, (2, 2), 2, (1, 0)),
    ((7, 9), 1, (1, 7), 2, (0, 2)),
]


@pytest.mark.parametrize(("sides", "channels", "window", "stride", "pad"), SHAPES)
def test_both_forms_agree_in_value_and_gradient(sides, channels, window, stride, pad):
    pads = (pad, pad) if isinstance(pad, int) else pad
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, *sides, channels)).astype(np.float32)
    kernel = rng.normal(size=(*window, channels, 5)).astype(np.float32)
    places = (stride, stride), tuple((side, side) for side in pads)

    def value_and_gradients(form, options):
        @functools.partial(jax.jit, compiler_options=options)
        def program(x, kernel):
            out, pull = jax.vjp(lambda x, kernel: form(x, kernel, *places, **OPTIONS), x, kernel)
            return out, pull(jnp.sin(out))

        return program(x, kernel)

    wanted = value_and_gradients(jax.lax.conv_general_dilated, None)
    found = value_and_gradients(layers.cpu_convolution, compilation.compiler_options())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **DEEP), found, wanted)


def test_few_locations_and_few_products_do_without_a_convolution():
    def primitives(sides, window, channels=4):
        program = jax.make_jaxpr(lambda x, kernel: layers.cpu_convolution(x, kernel, (1, 1), ((0, 0),) * 2, **OPTIONS))
        found = program(jnp.ones((1, *sides, channels)), jnp.ones((*window, channels, 3)))
        return {str(equation.primitive) for equation in found.eqns}

    assert "conv_general_dilated" in primitives((6, 6), (3, 3))
    assert "dot_general" in primitives((5, 5), (3, 3))
    assert "dot_general" in primitives((6, 6), (1, 1))
    assert "custom_vjp_call" in primitives((6, 6), (3, 3), channels=1)


def test_half_precision_is_summed_in_single_precision():
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=size), jnp.bfloat16) for size in ((2, 8, 8, 1), (3, 3, 1, 5)))
    found = layers.cpu_convolution(x, kernel, (1, 1), ((0, 0),) * 2, **OPTIONS)
    exact = jax.lax.conv_general_dilated(
        *(each.astype(jnp.float32) for each in (x, kernel)), (1, 1), ((0, 0),) * 2, **OPTIONS
    )
    assert found.dtype == jnp.bfloat16
    # Half a unit in the last place of bfloat16, and what cancels.
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize(("side", "window"), [(2, 3), (1, 3), (0, 1)])
def test_images_that_leave_nothing_give_an_empty_map(side, window):
    arguments = jnp.ones((2, side, side, 3)), jnp.ones((window, window, 3, 4)), (1, 1), ((0, 0),) * 2
    assert layers.cpu_convolution(*arguments, **OPTIONS).shape == (2, 0, 0, 4)


def test_other_platforms_take_the_plain_convolution(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    program = jax.make_jaxpr(lambda x, kernel: layers.convolution(x, kernel, (1, 1), ((0, 0),) * 2, **OPTIONS))(
        jnp.ones((1, 4, 4, 2)), jnp.ones((1, 1, 2, 3))
    )
    assert [str(equation.primitive) for equation in program.eqns] == ["conv_general_dilated"]


@pytest.fixture
def fresh():
    compilation.compiler_options.cache_clear()
    yield
    compilation.compiler_options.cache_clear()


@pytest.mark.usefixtures("fresh")
class TestCompilerOptions:
    def test_none_on_other_platforms(self, monkeypatch):
        monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
        assert compilation.compiler_options() is None

    def test_none_where_the_compiler_does_not_know_them(self, monkeypatch):
        monkeypatch.setattr(compilation, "OPTIONS", {"xla_cpu_no_such_option": "1"})
        assert compilation.compiler_options() is None

    def test_this_compiler_knows_them(self):
        assert compilation.compiler_options() == compilation.OPTIONS


def test_jit_passes_on_what_it_is_given_and_compiles_once():
    traces = []

    def power(x, exponent):
        traces.append(exponent)
        return x**exponent

    program = compilation.jit(power, static_argnames="exponent")
    assert [program(jnp.float32(3), exponent=2), program(jnp.float32(4), exponent=2)] == [9, 16]
    assert traces == [2]
    assert program.__name__ == "power"
