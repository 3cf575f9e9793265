"""Rematerialisation: the same gradients for less memory, and one program for any depth."""

import functools
import re

import jax
import numpy as np
import pytest

from lsm.models.experts import Experts
from lsm.models.families import gpt2
from lsm.tasks import LanguageModelling

pytestmark = pytest.mark.slow

B, T, V, D, L = 4, 32, 31, 32, 4
SIZES = {"vocabulary": V, "layers": L, "heads": 2, "width": D, "context": T, "bias": False}
MODELS = {
    "gpt2": {**SIZES, "dropout": 0.1},
    "experts": {**SIZES, "norm": "rms", "mlp": "swiglu", "experts": Experts(count=2, top_k=1)},
}
BATCH = {"tokens": np.random.default_rng(0).integers(0, V, (B, T + 1), dtype=np.int32)}


def gradient(model):
    """Returns the function params -> gradients of the loss, and parameters."""
    task = LanguageModelling(model=model)
    params, _ = task.init(jax.random.key(0), BATCH)

    def loss(params):
        return task.loss(params, {}, BATCH, {"dropout": jax.random.key(1)})[0]

    return jax.grad(loss), params, loss


@functools.cache
def compiled(name, remat="none"):
    grad, params, _ = gradient(gpt2(**MODELS[name], remat=remat))
    program = jax.jit(grad).lower(params).compile()
    return program, jax.device_get(program(params))


def kept(name, remat):
    """Bytes that the forward pass hands to the backward pass."""
    _, params, loss = gradient(gpt2(**MODELS[name], remat=remat))
    backward = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))


@pytest.mark.parametrize("remat", ["dots", "full", "offload"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_same(name, remat):
    """To float tolerance: the second forward pass may be fused differently."""
    found, expected = compiled(name, remat)[1], compiled(name)[1]
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6 * largest),
        found,
        expected,
    )


def test_less_is_kept_for_the_backward_pass():
    none, dots, full = (kept("gpt2", remat) for remat in ("none", "dots", "full"))
    assert none > 1.5 * dots > 1.5 * full
    deeper = gpt2(**MODELS["gpt2"] | {"layers": 2 * L}, remat="full")
    _, params, loss = gradient(deeper)
    backward = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
    twice = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params["blocks"])) / 2
    inputs = (twice - full - weights) / L  # what a layer keeps beside its parameters
    assert 4 * B * T * D <= inputs < 1.1 * 4 * B * T * D


def test_the_compiled_program_needs_less_memory():
    temporaries = [
        compiled("gpt2", remat)[0].memory_analysis().temp_size_in_bytes
        for remat in ("none", "dots", "full")
    ]
    assert temporaries == sorted(temporaries, reverse=True)
    assert temporaries[0] > 1.5 * temporaries[2]


def test_unrolled_layers_give_the_same():
    grad, params, _ = gradient(gpt2(**MODELS["gpt2"], unroll=L))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
        jax.device_get(jax.jit(grad)(params)),
        compiled("gpt2")[1],
    )


@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_program_does_not_grow_with_depth(remat):
    def instructions(layers):
        grad, params, _ = gradient(gpt2(**SIZES | {"layers": layers}, remat=remat))
        hlo = jax.jit(grad).lower(params).compile().as_text()
        return len(re.findall(r"^ +(ROOT )?%\S+ = ", hlo, re.MULTILINE))

    few, many = instructions(12), instructions(48)
    assert few > 100
    assert many / few == pytest.approx(1, abs=0.05)
