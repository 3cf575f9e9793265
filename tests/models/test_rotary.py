"""Rotary frequencies and their rescaling, against the formulas written out in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.errors import ConfigError
from lsm.models import Mask, Transformer
from lsm.models.block import Attention
from lsm.models.norms import OffsetRMSNorm
from lsm.models.rotary import LinearRescale, Llama3Rescale, frequencies


def llama3(plain, factor, low, high, context):
    """As the reference implementation of Llama 3.1 has it, one frequency at a time."""
    found = []
    for frequency in plain:
        wavelength = 2 * math.pi / frequency
        if wavelength < context / high:
            found.append(frequency)
        elif wavelength > context / low:
            found.append(frequency / factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            found.append((1 - smooth) * frequency / factor + smooth * frequency)
    return np.array(found)


def test_llama_3_1_divides_low_frequencies_alone():
    plain = 500_000.0 ** -(np.arange(64) / 64)
    expected = llama3(plain, 8.0, 1.0, 4.0, 8192)
    found = frequencies(128, 500_000.0, Llama3Rescale())
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # All three kinds are among them.
    ratio = plain / expected
    assert ratio[0] == 1 and ratio[-1] == 8 and np.any((ratio > 1.1) & (ratio < 7.9))


def test_linear_divides_all():
    plain = frequencies(16, 100.0)
    np.testing.assert_allclose(frequencies(16, 100.0, LinearRescale(factor=4.0)), plain / 4)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: LinearRescale(factor=0.0), r"LinearRescale\.factor: 0\.0 given"),
        (lambda: Llama3Rescale(low=4.0), r"Llama3Rescale\.high: 4\.0 given; allowed: above low"),
        (lambda: Llama3Rescale(context=0), r"Llama3Rescale\.context: 0 given"),
    ],
)
def test_what_cannot_be_is_refused(make, told):
    with pytest.raises(ConfigError, match=told):
        make()


def test_blocks_that_see_all_have_frequencies_of_their_own():
    local, wide = frequencies(8, 10.0), frequencies(8, 1000.0, LinearRescale(factor=2.0))
    config = Transformer(
        heads=2,
        width=16,
        theta=10.0,
        global_theta=1000.0,
        global_rescale=LinearRescale(factor=2.0),
    )
    np.testing.assert_array_equal(config.frequencies(False), local)
    np.testing.assert_array_equal(config.frequencies(True), wide)
    np.testing.assert_array_equal(config.frequencies(None), local)


def test_the_offset_norm_multiplies_by_one_and_the_scale():
    x, scale = np.random.default_rng(0).normal(size=(2, 3, 8)), np.linspace(-1, 1, 8)
    norm = OffsetRMSNorm(epsilon=1e-5)
    fresh = norm.init(jax.random.key(0), jnp.zeros((1, 8)))["params"]["scale"]
    np.testing.assert_array_equal(fresh, np.zeros(8))
    found = norm.apply({"params": {"scale": jnp.float32(scale)}}, jnp.float32(x))
    expected = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5) * (1 + scale)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_scores_are_divided_by_the_root_of_the_query_width():
    x_BxTxD = jnp.float32(np.random.default_rng(0).normal(size=(1, 5, 16)))
    wide = Attention(Transformer(heads=2, width=16, query_width=32))
    variables = wide.init(jax.random.key(0), x_BxTxD, Mask())
    maps = wide.apply(variables, x_BxTxD, Mask(), maps=True)[2]
    # Half the scores of the default, whose heads are 8 wide.
    usual = Attention(Transformer(heads=2, width=16))
    scores = jnp.log(usual.apply(variables, x_BxTxD, Mask(), maps=True)[2])
    np.testing.assert_allclose(maps, jax.nn.softmax(scores / 2), rtol=1e-5)


@pytest.mark.parametrize(
    ("bias", "biased"),
    [
        (True, {"qkv", "out"}),
        ("attention", {"qkv", "out"}),
        ("qkv", {"qkv"}),
        ("but_qkv", {"out"}),
        (False, set()),
    ],
)
def test_which_layers_of_attention_have_biases(bias, biased):
    attention = Attention(Transformer(heads=2, width=8, bias=bias))
    shapes = jax.eval_shape(attention.init, jax.random.key(0), jnp.zeros((1, 2, 8)), Mask())
    assert {name for name, layer in shapes["params"].items() if "bias" in layer} == biased
