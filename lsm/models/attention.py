"""Causal self-attention: rotary positions, and the attention itself, plain or as a TPU kernel."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lsm.axes import BATCH_AXES, constrain, ways

ATTENTION = "attention"
"""Name of the kernel's results, for rematerialisation policies."""


def rotate(x: jax.Array, theta: float | jax.Array) -> jax.Array:
    """Turns pairs (i, i + K/2) of heads (B, T, ..., K) by position x theta^(-2i/K).

    Rotary positions, arXiv:2104.09864, in the order of pairs of Hugging Face's checkpoints.
    """
    t, k = x.shape[1], x.shape[-1]
    frequency = theta ** (-jnp.arange(0, k, 2, dtype=jnp.float32) / k)
    angle_TxP = jnp.arange(t, dtype=jnp.float32)[:, None] * frequency
    angle = angle_TxP.reshape(t, *[1] * (x.ndim - 3), k // 2)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return rotated.astype(x.dtype)


def capped(x: jax.Array, cap: float | None) -> jax.Array:
    """Returns cap x tanh(x / cap), or `x` where there is no cap (Gemma 2, arXiv:2408.00118)."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def attend(
    q_BxTxGxQxK: jax.Array,
    k_BxTxGxK: jax.Array,
    v_BxTxGxK: jax.Array,
    *,
    window: int | None = None,
    unbounded: jax.Array | bool | None = None,
    softcap: float | None = None,
    drop: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Returns softmax(q k^T) v with a causal mask: (B, T, G, Q, K).

    G groups of Q query heads share a head of keys and values (arXiv:2305.13245); queries come
    scaled. On a TPU, without dropout and for whole blocks of 128, it runs as the Pallas splash
    attention kernel, which holds no T x T array; elsewhere as products with a softmax in float32.

    Args:
      q_BxTxGxQxK: queries.
      k_BxTxGxK: keys.
      v_BxTxGxK: values.
      window: how many positions a query sees, itself the last of them; None for all.
      unbounded: boolean scalar, not known before it runs: whether to see all in spite of `window`.
      softcap: bound of the scores; see `capped`.
      drop: dropout of the attention weights.
    """
    q_BxTxGxQxK = constrain(q_BxTxGxQxK, BATCH_AXES, "sequence", "tensor", None, None)
    k_BxTxGxK, v_BxTxGxK = (
        constrain(x, BATCH_AXES, None, "tensor", None) for x in (k_BxTxGxK, v_BxTxGxK)
    )
    local = functools.partial(_attend, softcap=softcap, drop=drop, window=window)
    qkv = (q_BxTxGxQxK, k_BxTxGxK, v_BxTxGxK)
    if window is None or unbounded is None:
        return local(*qkv)
    return jax.lax.cond(unbounded, functools.partial(local, window=None), local, *qkv)


def _attend(q_BxTxGxQxK, k_BxTxGxK, v_BxTxGxK, *, window, softcap, drop) -> jax.Array:
    plain = functools.partial(_plain, window=window, softcap=softcap, drop=drop)
    if drop is None and _fits_kernel(q_BxTxGxQxK):
        kernel = functools.partial(_splash, window=window, softcap=softcap)
        return jax.lax.platform_dependent(
            q_BxTxGxQxK, k_BxTxGxK, v_BxTxGxK, tpu=kernel, default=plain
        )
    return plain(q_BxTxGxQxK, k_BxTxGxK, v_BxTxGxK)


def _plain(q_BxTxGxQxK, k_BxTxGxK, v_BxTxGxK, *, window, softcap, drop) -> jax.Array:
    b, t, g, q, k = q_BxTxGxQxK.shape
    # A group's queries in one dimension: XLA's CPU back end is slow where products have more.
    q_BxGxNxK = q_BxTxGxQxK.swapaxes(1, 2).reshape(b, g, t * q, k)
    scores = jnp.einsum("bgnk,bsgk->bgns", q_BxGxNxK, k_BxTxGxK).astype(jnp.float32)
    seen_TxS = jnp.tri(t, dtype=bool)
    if window is not None:
        seen_TxS &= ~jnp.tri(t, k=-window, dtype=bool)
    scores = jnp.where(jnp.repeat(seen_TxS, q, axis=0), capped(scores, softcap), -jnp.inf)
    weights_BxGxNxS = jax.nn.softmax(scores).astype(q_BxTxGxQxK.dtype)
    if drop is not None:
        weights_BxGxNxS = drop(weights_BxGxNxS)
    y_BxGxNxK = jnp.einsum("bgns,bsgk->bgnk", weights_BxGxNxS, v_BxTxGxK)
    return y_BxGxNxK.reshape(b, g, t, q, k).swapaxes(1, 2)


def _fits_kernel(q_BxTxGxQxK: jax.Array) -> bool:
    """Whether the kernel takes these shapes: whole blocks, and not split along the sequence."""
    _, t, *_, k = q_BxTxGxQxK.shape
    return t % 128 == 0 and k % 64 == 0 and ways("sequence") == 1


def _splash(q_BxTxGxQxK, k_BxTxGxK, v_BxTxGxK, *, window, softcap) -> jax.Array:
    """The kernel on each device's rows and heads."""
    local = functools.partial(_splash_local, window=window, softcap=softcap)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        spec = jax.P(BATCH_AXES, None, "tensor")
        local = jax.shard_map(
            local, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False
        )
    return local(q_BxTxGxQxK, k_BxTxGxK, v_BxTxGxK)


def _splash_local(q_BxTxGxQxK, k_BxTxGxK, v_BxTxGxK, *, window, softcap) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    _, t, _, q, _ = q_BxTxGxQxK.shape
    mask = splash.CausalMask((t, t))
    if window is not None:
        mask = splash.LocalMask((t, t), (window - 1, 0), 0)
    block = next(size for size in (1024, 512, 256, 128) if t % size == 0)
    part = min(block, 512)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=part,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=part,
        block_q_dq=block,
        block_kv_dq=block,
    )
    kernel = splash.make_splash_mqa_single_device(
        splash.MultiHeadMask([mask] * q),
        block_sizes=sizes,
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name=ATTENTION,
    )
    y_BxGxQxTxK = jax.vmap(jax.vmap(kernel))(
        q_BxTxGxQxK.transpose(0, 2, 3, 1, 4),
        k_BxTxGxK.transpose(0, 2, 1, 3),
        v_BxTxGxK.transpose(0, 2, 1, 3),
    )
    return y_BxGxQxTxK.transpose(0, 3, 1, 2, 4)
