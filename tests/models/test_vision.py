"""ViT, CCT and MLP-Mixer: published sizes, positions, pooling, meshes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.cpu import max_pool_3x3
from lsm.errors import ConfigError
from lsm.models import Convolutions, Mixer, ViT, families
from lsm.models.vit import sincos2d

KEY = jax.random.key(0)


def shapes(model, size):
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(model.init, KEY, x)["params"]


def count(model, size):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(model, size)))


def drawn(model, size):
    """Parameters by NumPy: to initialise would be a program more to compile."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        return rng.normal(scale=0.3, size=leaf.shape).astype(np.float32)

    return jax.tree.map(draw, shapes(model, size))


def test_parameters_are_as_many_as_published():
    published = {  # timm's, at 224 x 224 with 1000 classes
        families.vit_ti(): 5_717_416,
        families.vit_s(): 22_050_664,
        families.vit_b(): 86_567_656,
        families.vit_b(stem=32): 88_224_232,
        families.vit_l(): 304_326_632,
        families.mixer_s(): 18_528_264,
        families.mixer_b(): 59_880_472,
        families.mixer_l(): 208_196_168,
    }
    assert {model: count(model, 224) for model in published} == published
    # Hassani et al., table 1
    assert round(count(families.cct_2(), 32) / 1e6, 2) == 0.28
    assert round(count(families.cct_7(), 32) / 1e6, 2) == 3.76


def test_sincos2d_is_big_visions():
    # Its einsum, with explicit loops: sin and cos of x, then of y.
    at = sincos2d(2, 3, 8)
    omega = [1.0, 1e-4]
    expected = [
        [f(place * o) for place in (x, y) for f in (np.sin, np.cos) for o in omega]
        for y in range(2)
        for x in range(3)
    ]
    np.testing.assert_allclose(at, expected, atol=1e-7)


def test_a_picture_through_cct_equals_numpy():
    """Positions, pooling and stem around no more than one block that adds nothing."""
    model = families.cct_2(layers=1, width=8, heads=1, hidden=8, outputs=3)
    params = drawn(model, 8)
    for name in ("out", "down"):
        params["blocks"][name] = jax.tree.map(np.zeros_like, params["blocks"][name])
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)
    y = x
    for i in (1, 2):
        kernel = params[f"conv_{i}"]["kernel"]
        padded = np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        y = np.maximum(np.einsum("bhwcij,ijcd->bhwd", windows, kernel), 0)
        y = np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(y, (3, 3), axis=(1, 2))
        y = windows[:, ::2, ::2].max((-1, -2))
    y = y.reshape(2, 4, 8) + params["positions"]
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    y = y * params["norm_f"]["scale"] + params["norm_f"]["bias"]
    weights = np.exp(y @ params["pool"]["kernel"] + params["pool"]["bias"])
    y = (weights / weights.sum(1, keepdims=True) * y).sum(1)
    expected = y @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, x), expected, atol=2e-5)


def test_max_pool_3x3_is_reduce_windows():
    def reference(x):
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    def both(x):
        return *value_and_gradient(max_pool_3x3, x), *value_and_gradient(reference, x)

    def value_and_gradient(pool, x):
        y, back = jax.vjp(pool, x)
        return y, back(2.0**y)[0]  # whole numbers: their sums are exact

    x = np.random.default_rng(0).integers(0, 4, (2, 7, 6, 3)).astype(np.float32)  # with ties
    y, back, expected, expected_back = jax.jit(both)(x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(back, expected_back)


def test_a_share_of_examples_skips_the_last_block():
    """Drop path: 0 in the first block, its rate in the last; what stays is scaled."""
    model = ViT(
        outputs=3,
        transformer=families.vit_ti(layers=2, width=8, heads=1, drop_path=0.5).transformer,
        stem=4,
    )
    params, x = drawn(model, 4), np.ones((64, 4, 4, 3), np.float32)
    run = jax.jit(lambda key: model.apply({"params": params}, x, True, rngs={"dropout": key}))
    y = np.asarray(run(KEY))
    kinds, counts = np.unique(y.round(4), axis=0, return_counts=True)
    # The last block's two parts, each there or not: four kinds of equal pictures, a quarter each.
    assert len(kinds) == 4 and counts.min() > 4
    assert not np.array_equal(y, run(jax.random.key(1)))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: ViT(stem=16).init(KEY, jnp.zeros((1, 32, 30, 3))), "patches of 16 do not divide"),
        (lambda: Mixer(patch=7).init(KEY, jnp.zeros((1, 32, 32, 3))), "patches of 7 do not divide"),
        (lambda: families.vit_s(patch=16), "neither ViT nor Transformer has a field 'patch'"),
        (lambda: families.vit_s(position="sincos2d", width=6, heads=1), "needs a width of 8, 12"),
        (lambda: Convolutions(kernel=4), "Convolutions.kernel: 4 given; an odd number"),
    ],
)
def test_errors_are_lines(make, line):
    with pytest.raises(ConfigError, match=line):
        make()
