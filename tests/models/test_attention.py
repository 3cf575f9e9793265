"""Attention against NumPy, rotary positions against complex numbers, the TPU kernel against both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from lsm.errors import ConfigError
from lsm.models import Cache, Caches, Mask, Transformer, attend
from lsm.models.attention import _splash, rotate
from lsm.models.block import Attention
from lsm.models.rotary import frequencies

B, T, G, Q, K = 2, 9, 2, 3, 4


def qkv(b=B, t=T, g=G, q=Q, k=K):
    random = np.random.default_rng(0)
    shapes = [(b, t, g, q, k), (b, t, g, k), (b, t, g, k)]
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


def reference(q_BxTxGxQxK, k_BxSxGxK, v_BxSxGxK, seen, softcap=None):
    """One query after the other, in float64; `seen(b, i, j)` says whether i sees j."""
    y = np.zeros(q_BxTxGxQxK.shape)
    for b, t, g, q in np.ndindex(y.shape[:-1]):
        keys = [s for s in range(k_BxSxGxK.shape[1]) if seen(b, t, s)]
        if not keys:
            continue
        scores_S = k_BxSxGxK[b, keys, g] @ q_BxTxGxQxK[b, t, g, q].astype(float)
        if softcap is not None:
            scores_S = softcap * np.tanh(scores_S / softcap)
        weights_S = np.exp(scores_S - scores_S.max())
        y[b, t, g, q] = weights_S / weights_S.sum() @ v_BxSxGxK[b, keys, g]
    return y


def test_attention_printed_without_softmax_and_with_q_k_v_the_same_true_weights_and_projections():
    """Attention(Q, K, V) = (Q K^T / sqrt(d)) V, where Q, K and V "are the same" x."""
    x_TxD = np.array([[3.0, -1.0, 0, 1], [1, 2, -2, 0], [-1, 0, 1, 1]], np.float32)
    printed_TxD = (x_TxD @ x_TxD.T / 2) @ x_TxD
    assert (abs(printed_TxD).max(0) > abs(x_TxD).max(0)).all(), "no weights: rows sum to anything"
    one = x_TxD[None, :, None]  # one example, one group
    query = jnp.array(one[:, :, :, None]) / 2  # by sqrt(d): `attend` takes them scaled
    true_TxD = attend(query, jnp.array(one), jnp.array(one), Mask()).reshape(3, 4)
    weights_TxT = np.exp(x_TxD @ x_TxD.T / 2)
    weights_TxT /= weights_TxT.sum(1, keepdims=True)
    np.testing.assert_allclose(true_TxD, weights_TxT @ x_TxD, rtol=1e-5, atol=1e-6)
    assert (true_TxD <= x_TxD.max(0) + 1e-6).all() and (true_TxD >= x_TxD.min(0) - 1e-6).all()
    # The layer makes queries, keys and values by weights of their own.
    layer = Attention(Transformer(layers=1, heads=1, width=4))
    kernel_Dx3D = layer.init(jax.random.key(0), one[:, :, 0], Mask())["params"]["qkv"]["kernel"]
    q, k, v = np.split(np.asarray(kernel_Dx3D), 3, axis=1)
    assert q.shape == (4, 4) and not (np.allclose(q, k) or np.allclose(k, v) or np.allclose(q, v))


KEYS = np.random.default_rng(1).random((B, T)) < 0.7
KEYS[0, :3], KEYS[1] = False, False  # under a causal mask the first see nothing; row 1 nothing
SEGMENTS = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2], [5, 5, 5, 5, 5, 3, 3, 3, 3]])
KINDS = {
    "full": (Mask(), lambda b, i, j: True),
    "causal": (Mask(causal=True), lambda b, i, j: j <= i),
    "window": (Mask(causal=True, window=3), lambda b, i, j: i - 3 < j <= i),
    "window of 1": (Mask(causal=True, window=1), lambda b, i, j: i == j),
    "both ways": (Mask(window=3), lambda b, i, j: abs(i - j) < 3),
    "padding": (Mask(keys_BxS=KEYS), lambda b, i, j: KEYS[b, j]),
    "causal padding": (Mask(causal=True, keys_BxS=KEYS), lambda b, i, j: j <= i and KEYS[b, j]),
    "segments": (Mask(segments_BxT=SEGMENTS), lambda b, i, j: SEGMENTS[b, i] == SEGMENTS[b, j]),
    "keys' segments": (
        Mask(segments_BxT=SEGMENTS, key_segments_BxS=SEGMENTS[:, ::-1]),
        lambda b, i, j: SEGMENTS[b, i] == SEGMENTS[b, -1 - j],
    ),
    "all": (
        Mask(causal=True, window=4, keys_BxS=KEYS, segments_BxT=SEGMENTS),
        lambda b, i, j: i - 4 < j <= i and KEYS[b, j] and SEGMENTS[b, i] == SEGMENTS[b, j],
    ),
}


@pytest.mark.parametrize("softcap", [None, 0.8])
@pytest.mark.parametrize("kind", KINDS)
def test_every_mask_is_numpys(kind, softcap):
    (mask, seen), arrays = KINDS[kind], qkv()
    found = attend(*map(jnp.array, arrays), mask, softcap=softcap)
    np.testing.assert_allclose(found, reference(*arrays, seen, softcap), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("groups", [{"g": 6, "q": 1}, {"g": 1, "q": 2}])
def test_groups_are_numpys(groups):
    arrays = qkv(**groups)
    found = attend(*map(jnp.array, arrays), Mask(causal=True))
    expected = reference(*arrays, lambda b, i, j: j <= i)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("offset", [2, np.array(2), np.array([0, 5])], ids=str)
@pytest.mark.parametrize("mask", [Mask(causal=True), Mask(causal=True, window=3), Mask(window=2)])
def test_queries_that_begin_later(mask, offset):
    q, k, v = qkv()
    place = np.broadcast_to(offset, B)

    def seen(b, i, j):
        away = place[b] + i - j
        near = mask.window is None or abs(away) < mask.window
        return near and (away >= 0 or not mask.causal)

    found = jax.jit(lambda *x: attend(*x, mask, offset=offset))(q[:, :4], k, v)
    np.testing.assert_allclose(found, reference(q[:, :4], k, v, seen), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["padding", "causal padding", "all"])
def test_queries_that_see_nothing_give_zeros_and_no_nan_in_the_gradient(kind):
    arrays, (mask, seen) = [jnp.array(x) for x in qkv()], KINDS[kind]
    blind = [(b, i) for b in range(B) for i in range(T) if not any(seen(b, i, j) for j in range(T))]
    y, backward = jax.vjp(lambda *x: attend(*x, mask), *arrays)
    assert blind and all((y[row] == 0).all() for row in blind)
    q_gradient, k_gradient, _ = gradients = backward(jnp.ones_like(y))
    assert all(np.isfinite(x).all() for x in gradients)
    assert all((q_gradient[row] == 0).all() for row in blind)
    assert (k_gradient[1] == 0).all() and (k_gradient[0] != 0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_maps_are_the_weights_by_head(kind):
    (mask, seen), (q, k, v) = KINDS[kind], map(jnp.array, qkv())
    y, maps_BxHxTxS = attend(q, k, v, mask, maps=True)
    assert maps_BxHxTxS.shape == (B, G * Q, T, T) and maps_BxHxTxS.dtype == jnp.float32
    sees = [[any(seen(b, i, j) for j in range(T)) for i in range(T)] for b in range(B)]
    np.testing.assert_allclose(
        maps_BxHxTxS.sum(-1), np.array(sees)[:, None] * np.ones(Q * G)[:, None], rtol=1e-5
    )
    read = np.einsum("bgqts,bsgk->btgqk", maps_BxHxTxS.reshape(B, G, Q, T, T), v)
    np.testing.assert_allclose(y, read, rtol=1e-4, atol=1e-6)


def test_windows_are_positive():
    with pytest.raises(ConfigError, match="Mask.window: 0 given"):
        Mask(window=0)


def test_dropout_is_on_the_weights():
    arrays = [jnp.array(x) for x in qkv()]
    doubled = attend(*arrays, Mask(), drop=lambda weights: 2 * weights)
    np.testing.assert_allclose(doubled, 2 * attend(*arrays, Mask()), rtol=1e-5)


def test_softmax_is_in_float32():
    """In bfloat16 a hundred equal weights of 1 / 100 would not sum to 1 so well."""
    q, k, v = (jnp.array(x, jnp.bfloat16) for x in qkv(t=100))
    found = attend(q * 0, k, jnp.ones_like(v), Mask(causal=True))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(np.float32), 1, atol=2**-8)


def test_rotary_positions_turn_complex_numbers():
    x_BxTxHxK = np.random.default_rng(0).normal(size=(2, 7, 3, 8)).astype(np.float32)
    theta = 100.0
    turns = frequencies(8, theta)
    pairs = x_BxTxHxK[..., :4] + 1j * x_BxTxHxK[..., 4:]
    angle_TxP = np.arange(7)[:, None] * theta ** (-2 * np.arange(4) / 8)
    turned = pairs * np.exp(1j * angle_TxP)[:, None]
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(rotate(x_BxTxHxK, turns), expected, rtol=1e-5, atol=1e-5)
    later = rotate(x_BxTxHxK[:, 4:], turns, 4)
    np.testing.assert_allclose(later, expected[:, 4:], rtol=1e-5, atol=1e-5)
    offset_B = jnp.array([4, 2])
    rows = np.stack([x_BxTxHxK[0, 4:6], x_BxTxHxK[1, 2:4]])
    by_row = np.stack([expected[0, 4:6], expected[1, 2:4]])
    np.testing.assert_allclose(rotate(rows, turns, offset_B), by_row, rtol=1e-5, atol=1e-5)


def test_rotated_products_depend_on_the_distance_alone():
    q_K, k_K = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
    everywhere = [np.broadcast_to(x, (1, 12, 1, 16)) for x in (q_K, k_K)]
    q_TxK, k_TxK = (
        np.asarray(rotate(jnp.array(x), frequencies(16, 1e4)))[0, :, 0] for x in everywhere
    )
    products_TxS = q_TxK @ k_TxK.T
    for distance in range(-11, 12):
        diagonal = np.diagonal(products_TxS, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-4)
    assert np.ptp(products_TxS[0]) > 0.1
    np.testing.assert_allclose(q_TxK[0], q_K, rtol=1e-6)  # position 0 is not turned


def test_rotation_keeps_the_dtype_but_is_computed_in_float32():
    x = jnp.ones((1, 300, 1, 4), jnp.bfloat16)
    found = rotate(x, frequencies(4, 1e4))
    assert found.dtype == jnp.bfloat16
    exact = rotate(x.astype(jnp.float32), frequencies(4, 1e4))
    np.testing.assert_allclose(found.astype(np.float32), exact, atol=2**-7)


HALVES = jnp.repeat(jnp.arange(2), 64)[None]


@pytest.mark.parametrize(
    ("mask", "softcap"),
    [
        (Mask(causal=True), None),
        (Mask(causal=True, window=16), 30.0),
        (Mask(), None),
        (Mask(window=16), None),
        (Mask(causal=True, segments_BxT=HALVES), None),
    ],
    ids=["causal", "window", "full", "both ways", "segments"],
)
def test_the_kernel_is_plain_attention(mask, softcap):
    """Pallas interprets it on a CPU; `attend` takes the plain way there."""
    arrays = [jnp.array(x) for x in qkv(b=1, t=128, g=1, q=2, k=64)]
    arrays[0] *= 64**-0.5
    weights = jnp.array(np.random.default_rng(1).normal(size=arrays[0].shape), jnp.float32)

    def scored(attention):
        def score(*arrays):
            y = attention(*arrays, mask, softcap=softcap)
            return (y * weights).sum(), y

        return jax.jit(jax.grad(score, (0, 1, 2), has_aux=True))(*arrays)

    with pltpu.force_tpu_interpret_mode():
        found = scored(_splash)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=3e-5), found, scored(attend)
    )


@pytest.mark.parametrize(
    ("mask", "keys", "offset", "taken"),
    [
        (Mask(causal=True), 128, 0, True),
        (Mask(), 128, 0, True),
        (Mask(causal=True, window=3), 128, 0, True),
        (Mask(causal=True, segments_BxT=HALVES), 128, 0, True),
        (Mask(keys_BxS=HALVES > 0), 128, 0, False),
        (Mask(causal=True), 256, 0, False),
        (Mask(causal=True), 128, jnp.int32(0), False),
    ],
)
def test_a_tpu_takes_the_kernel_where_it_serves(mask, keys, offset, taken):
    q, *_ = qkv(b=1, t=128, g=1, q=2, k=64)
    _, k, v = qkv(b=1, t=keys, g=1, q=2, k=64)
    jaxpr = str(jax.make_jaxpr(lambda *x: attend(*x, mask, offset=offset))(q, k, v))
    assert ("pallas_call" in jaxpr) == taken


@pytest.mark.parametrize("length", [3, np.array([0, 4])], ids=str)
def test_a_cache_is_written_at_its_length(length):
    _, k, v = qkv()
    (empty,) = Caches.empty(1, B, G, T, K, jnp.float32)
    cache = empty.filled(length)
    new = jax.jit(Cache.extended)(cache, k[:, :2], v[:, :2])
    expected = np.zeros((B, T, G, K), np.float32)
    for b, start in enumerate(np.broadcast_to(length, B)):
        expected[b, start : start + 2] = k[b, :2]
    np.testing.assert_array_equal(new.read()[0], expected)
    np.testing.assert_array_equal(new.length, np.asarray(length) + 2)
    with pytest.raises(ConfigError, match="cache: 10 positions given, but it has room for 9"):
        empty.extended(*(jnp.concatenate([x, x[:, :1]], axis=1) for x in (k, v)))


@pytest.mark.parametrize(
    ("mask", "line"),
    [
        ({"keys_BxS": (2, 1)}, r"Mask.keys_BxS: shape \(2, 1\) given for 4 queries and 6 keys"),
        ({"segments_BxT": (2, 4)}, r"Mask.key_segments_BxS: shape \(2, 4\)"),
        (
            {"segments_BxT": (2, 1), "key_segments_BxS": (2, 6)},
            r"Mask.segments_BxT: shape \(2, 1\)",
        ),
    ],
    ids=["keys", "keys as queries", "queries"],
)
def test_a_mask_of_another_length_is_one_line(mask, line):
    """One of length 1 would else be spread over all of them."""
    arrays = {
        name: jnp.ones(shape, bool if name == "keys_BxS" else int) for name, shape in mask.items()
    }
    with pytest.raises(ConfigError, match=line):
        Mask(**arrays).seen(4, 6)
