"""Attention against NumPy, rotary positions against complex numbers, the TPU kernel against both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from lsm.models.attention import _splash, attend, rotate

B, T, G, Q, K = 2, 9, 2, 3, 4


def qkv(b=B, t=T, g=G, q=Q, k=K):
    random = np.random.default_rng(0)
    shapes = [(b, t, g, q, k), (b, t, g, k), (b, t, g, k)]
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


def reference(q_BxTxGxQxK, k_BxTxGxK, v_BxTxGxK, window=None, softcap=None):
    """One query after the other, in float64."""
    y = np.zeros(q_BxTxGxQxK.shape)
    for b, t, g, q in np.ndindex(y.shape[:-1]):
        first = 0 if window is None else max(t - window + 1, 0)
        scores_S = k_BxTxGxK[b, first : t + 1, g] @ q_BxTxGxQxK[b, t, g, q].astype(float)
        if softcap is not None:
            scores_S = softcap * np.tanh(scores_S / softcap)
        weights_S = np.exp(scores_S - scores_S.max())
        y[b, t, g, q] = weights_S / weights_S.sum() @ v_BxTxGxK[b, first : t + 1, g]
    return y


@pytest.mark.parametrize("groups", [{"g": 2, "q": 3}, {"g": 6, "q": 1}, {"g": 1, "q": 2}])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (3, None), (1, None), (4, 0.8)])
def test_attention_is_numpys(groups, window, softcap):
    arrays = qkv(**groups)
    found = attend(*map(jnp.array, arrays), window=window, softcap=softcap)
    np.testing.assert_allclose(found, reference(*arrays, window, softcap), rtol=1e-4, atol=1e-6)


def test_dropout_is_on_the_weights():
    arrays = [jnp.array(x) for x in qkv()]
    doubled = attend(*arrays, drop=lambda weights: 2 * weights)
    np.testing.assert_allclose(doubled, 2 * attend(*arrays), rtol=1e-5)


def test_softmax_is_in_float32():
    """In bfloat16 a hundred equal weights of 1 / 100 would not sum to 1 so well."""
    q, k, v = (jnp.array(x, jnp.bfloat16) for x in qkv(t=100))
    found = attend(q * 0, k, jnp.ones_like(v))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(np.float32), 1, atol=2**-8)


def test_rotary_positions_turn_complex_numbers():
    x_BxTxHxK = np.random.default_rng(0).normal(size=(2, 7, 3, 8)).astype(np.float32)
    theta = 100.0
    pairs = x_BxTxHxK[..., :4] + 1j * x_BxTxHxK[..., 4:]
    angle_TxP = np.arange(7)[:, None] * theta ** (-2 * np.arange(4) / 8)
    turned = pairs * np.exp(1j * angle_TxP)[:, None]
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(rotate(x_BxTxHxK, theta), expected, rtol=1e-5, atol=1e-5)


def test_rotated_products_depend_on_the_distance_alone():
    q_K, k_K = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
    everywhere = [np.broadcast_to(x, (1, 12, 1, 16)) for x in (q_K, k_K)]
    q_TxK, k_TxK = (np.asarray(rotate(jnp.array(x), 1e4))[0, :, 0] for x in everywhere)
    products_TxS = q_TxK @ k_TxK.T
    for distance in range(-11, 12):
        diagonal = np.diagonal(products_TxS, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-4)
    assert np.ptp(products_TxS[0]) > 0.1
    np.testing.assert_allclose(q_TxK[0], q_K, rtol=1e-6)  # position 0 is not turned


def test_rotation_keeps_the_dtype_but_is_computed_in_float32():
    x = jnp.ones((1, 300, 1, 4), jnp.bfloat16)
    found = rotate(x, 1e4)
    assert found.dtype == jnp.bfloat16
    exact = rotate(x.astype(jnp.float32), 1e4)
    np.testing.assert_allclose(found.astype(np.float32), exact, atol=2**-7)


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (16, 30.0)])
def test_the_kernel_is_plain_attention(window, softcap):
    """Pallas interprets it on a CPU; `attend` takes the plain way there."""
    arrays = [jnp.array(x) for x in qkv(b=1, t=128, g=1, q=2, k=64)]
    arrays[0] *= 64**-0.5
    weights = jnp.array(np.random.default_rng(1).normal(size=arrays[0].shape), jnp.float32)

    def scored(attention):
        def score(*arrays):
            y = attention(*arrays, window=window, softcap=softcap)
            return (y * weights).sum(), y

        return jax.jit(jax.grad(score, (0, 1, 2), has_aux=True))(*arrays)

    with pltpu.force_tpu_interpret_mode():
        found = scored(_splash)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=3e-5), found, scored(attend)
    )
