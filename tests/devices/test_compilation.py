"""The CPU's form of a convolution, and the compiler options it comes with."""

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import ROOT

from i2x_jax.devices import compilation, inside
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
    ((17, 15), 3, (7, 7), 2, 3),
    ((8, 7), 1, (3, 3), 1, 1),
    ((9, 8), 2, (2, 2), 2, (1, 0)),
    ((7, 9), 1, (1, 7), 2, (0, 2)),
]


needs_onednn = pytest.mark.skipif(not compilation.has_onednn(), reason="this jaxlib or machine is without oneDNN")


def primitives(x, kernel, inference=False):
    """The primitives of a convolution, those inside its `custom_vjp` among them."""

    def convolve(x, kernel):
        return layers.cpu_convolution(x, kernel, (1, 1), ((0, 0),) * 2, **OPTIONS)

    with compilation.inferring() if inference else contextlib.nullcontext():
        program = jax.make_jaxpr(convolve)(x, kernel)
    inner = [each.jaxpr for equation in program.eqns for each in equation.params.values() if hasattr(each, "jaxpr")]
    return {str(equation.primitive) for jaxpr in (program, *inner) for equation in jaxpr.eqns}


@pytest.mark.parametrize("inference", [False, pytest.param(True, marks=needs_onednn)])
@pytest.mark.parametrize(("sides", "channels", "window", "stride", "pad"), SHAPES)
def test_all_forms_agree_in_value_and_gradient(sides, channels, window, stride, pad, inference):
    pads = (pad, pad) if isinstance(pad, int) else pad
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, *sides, channels)).astype(np.float32)
    kernel = rng.normal(size=(*window, channels, 5)).astype(np.float32)
    places = (stride, stride), tuple((side, side) for side in pads)

    def value_and_gradients(form, jit):
        def program(x, kernel):
            out, pull = jax.vjp(lambda x, kernel: form(x, kernel, *places, **OPTIONS), x, kernel)
            # Equal slopes for all: taken from the result, they would differ by what its own tolerance allows.
            slope = jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
            return out, form(x, kernel, *places, **OPTIONS), pull(slope)

        return jit(program)(x, kernel)

    wanted = value_and_gradients(jax.lax.conv_general_dilated, jax.jit)
    found = value_and_gradients(layers.cpu_convolution, functools.partial(compilation.jit, inference=inference))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **DEEP), found, wanted)


@pytest.mark.parametrize("inference", [False, pytest.param(True, marks=needs_onednn)])
def test_few_locations_and_few_products_do_without_a_convolution(inference):
    def found(sides, window, channels=4):
        return primitives(jnp.ones((1, *sides, channels)), jnp.ones((*window, channels, 3)), inference)

    assert {"conv_general_dilated", "ffi_call"} & found((6, 6), (3, 3)) == {
        "ffi_call" if inference else "conv_general_dilated"
    }
    assert "dot_general" in found((5, 5), (3, 3))
    assert "dot_general" in found((6, 6), (1, 1))
    few_products = found((6, 6), (3, 3), channels=1)
    assert "custom_vjp_call" in few_products
    assert not {"conv_general_dilated", "ffi_call", "dot_general"} & few_products


def test_the_pinned_jaxlibs_are_those_that_were_tested():
    """Whoever raises a version decides whether the tests below pass with it, else they are skipped."""
    pinned = re.findall(r"^jaxlib==([\d.]+)(?:;|$)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert tuple(pinned) == inside.JAXLIBS_WITH_ONEDNN


@needs_onednn
class TestOneDnn:
    @pytest.mark.parametrize(("images", "dtype"), [(1, jnp.bfloat16), (0, jnp.float32)])
    def test_half_precision_and_no_images_are_left_to_the_plain_convolution(self, images, dtype):
        x, kernel = jnp.ones((images, 6, 6, 4), dtype), jnp.ones((3, 3, 4, 3), dtype)
        assert "conv_general_dilated" in primitives(x, kernel, inference=True)

    def test_outside_nothing_is_taken_for_what_was_traced_for_inference(self):
        """Else it could be kept for the next process, which XLA cannot do with oneDNN's call."""
        x, kernel = jnp.ones((1, 6, 6, 4)), jnp.ones((3, 3, 4, 3))
        traces = []

        def convolve(x, kernel):
            traces.append(compilation.calls_onednn())
            return layers.convolution(x, kernel, (1, 1), ((0, 0),) * 2, **OPTIONS)

        inner = jax.jit(convolve)
        programs = {
            inference: compilation.jit(lambda x, kernel: inner(x, kernel), inference=inference)
            for inference in (True, False)
        }
        found = [programs[inference](x, kernel) for inference in (True, False, True)] + [inner(x, kernel)]
        assert traces == [True, False]
        np.testing.assert_allclose(found, np.full((4, 1, 4, 4, 3), 36), rtol=1e-6)

    def test_many_sets_of_images_at_once(self):
        rng = np.random.default_rng(0)
        x, kernel = (rng.normal(size=size).astype(np.float32) for size in ((3, 2, 7, 6, 4), (3, 3, 4, 5)))
        convolve = functools.partial(layers.convolution, strides=(2, 1), padding=((1, 1), (0, 1)), **OPTIONS)
        found = compilation.jit(lambda x: jax.vmap(lambda each: convolve(each, kernel))(x), inference=True)(x)
        np.testing.assert_allclose(found, [convolve(each, kernel) for each in x], **DEEP)

    @pytest.mark.parametrize(
        ("owner", "name", "value"),
        [
            (jax, "default_backend", lambda: "gpu"),
            (jax, "device_count", lambda: 2),
            (compilation.sys, "platform", "darwin"),
            (compilation.platform, "machine", lambda: "aarch64"),
            (compilation.jaxlib, "__version__", "0.10.3"),
        ],
    )
    def test_is_not_called_where_it_was_never_tested(self, owner, name, value, monkeypatch):
        compilation.has_onednn.cache_clear()
        try:
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, value)
                assert not compilation.has_onednn()
                assert not compilation.jit(lambda: jnp.bool_(compilation.calls_onednn()), inference=True)()
        finally:
            compilation.has_onednn.cache_clear()
        assert compilation.has_onednn()


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
