"""Convolutions whose kernel's gradient is made of products, against those of `jax.lax`."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.cost import model_flops
from lsm.cpu import conv, convolution

NUMBERS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def arrays(kernel=(3, 3), batch=7, size=(9, 11), filters=5):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, *size, 4)).astype(np.float32)
    return x, rng.standard_normal((*kernel, 4, filters)).astype(np.float32)


def gradients(convolve, x, kernel):
    y, back = jax.vjp(jax.jit(convolve), x, kernel)
    weights = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    return y, *back(weights)


@pytest.fixture
def always(monkeypatch):
    """As if everything were large, in chunks of two or three pictures with a rest."""
    monkeypatch.setattr(convolution, "_LARGE", 0)
    monkeypatch.setattr(convolution, "_CHUNK", 2500)


@pytest.mark.parametrize("padding", ["SAME", "VALID", "uneven"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 2), (1, 3)])
def test_values_and_gradients_are_those_of_lax(always, kernel, strides, padding):
    if padding == "uneven":  # more than a place less is beyond jax 0.10: its input gradient is junk
        padding = ((kernel[0] - 1, 0), (0, kernel[1] - 1))
    options = {"window_strides": strides, "padding": padding, **NUMBERS}
    x, kernel = arrays(kernel)
    ours = functools.partial(conv, strides=strides, padding=padding, **NUMBERS)
    y, dx, dkernel = gradients(ours, x, kernel)
    lax = functools.partial(jax.lax.conv_general_dilated, **options)
    expected, dx_expected, dkernel_expected = gradients(lax, x, kernel)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(dx, dx_expected)
    np.testing.assert_allclose(dkernel, dkernel_expected, rtol=1e-5, atol=1e-4)


def products(convolve, x, kernel) -> int:
    """How many products of matrices the gradient takes."""

    def loss(x, kernel):
        return convolve(x, kernel).astype(jnp.float32).sum()

    text = jax.jit(jax.grad(loss, argnums=1)).lower(x, kernel).as_text()
    return text.count("stablehlo.dot_general")


def test_each_place_of_the_kernel_takes_one_product(always):
    convolve = functools.partial(conv, strides=(1, 1), padding="SAME", **NUMBERS)
    x, kernel = arrays()
    # 7 pictures in 3 chunks of 2, and one that is left: the first, the loop's and the last.
    assert products(convolve, x, kernel) == 3 * 9


@pytest.mark.parametrize(
    ("kernel", "dtype", "options"),
    [
        ((3, 3), jnp.bfloat16, {}),
        ((1, 1), jnp.float32, {}),
        ((4, 3), jnp.float32, {}),
        ((3, 3), jnp.float32, {"rhs_dilation": (2, 2)}),
        ((3, 3), jnp.float32, {"lhs_dilation": (2, 1)}),
    ],
)
def test_others_are_left_to_xla(always, kernel, dtype, options):
    x, kernel = (a.astype(dtype) for a in arrays(kernel))
    convolve = functools.partial(conv, strides=(1, 1), padding="SAME", **NUMBERS, **options)
    if "lhs_dilation" in options:
        convolve = functools.partial(convolve, padding=((1, 1), (1, 1)))
    assert products(convolve, x, kernel) == 0


def test_groups_are_left_to_xla(always):
    x, kernel = arrays(filters=4)
    convolve = functools.partial(
        conv, strides=(1, 1), padding="SAME", feature_group_count=2, **NUMBERS
    )
    assert products(convolve, x, kernel[:, :, :2]) == 0


def test_what_fits_a_cache_is_left_to_xla():
    convolve = functools.partial(conv, strides=(1, 1), padding="SAME", **NUMBERS)
    assert products(convolve, *arrays()) == 0


def test_a_mesh_is_left_to_xla(always):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x, kernel = arrays(batch=8)
    with jax.set_mesh(mesh):
        x = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
        convolve = functools.partial(conv, strides=(1, 1), padding="SAME", **NUMBERS)
        assert products(convolve, x, kernel) == 0


def test_a_layer_of_flax_takes_it_and_counts_as_before(always):
    x, _ = arrays()
    with_conv, plain = (nn.Conv(5, (3, 3), conv_general_dilated=c) for c in (conv, None))
    params = plain.init(jax.random.key(0), x)

    def loss(module, params):
        return (module.apply(params, x) ** 2).sum()

    ours, theirs = (jax.grad(functools.partial(loss, m))(params) for m in (with_conv, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-3), ours, theirs)
    counts = [model_flops(functools.partial(loss, m), params).total for m in (with_conv, plain)]
    assert counts[0] == counts[1] > 0
