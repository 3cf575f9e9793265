"""Attention: who sees whom, and softmax(q k^T) v itself."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lsm.checks import require
from lsm.errors import ConfigError
from lsm.mesh import BATCH_AXES, constrain, ways

ATTENTION = "attention"
"""Name of the kernel's results, for rematerialisation policies."""

_STATIC = {"static": True}  # for jax.tree_util.register_dataclass: no array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask:
    """Which keys a query sees: those that all of the conditions allow. `Mask()` allows all.

    A query that sees no key at all gets zeros, and so does its gradient.

    Attributes:
      causal: none after its own position.
      window: none as far away as this: of the past, its own and the window - 1 before it; where
        not causal, the same to both sides, |i - j| < window.
      keys_BxS: bool; none where it is False, such as padding.
      segments_BxT: int, the document of each query; none of another document.
      key_segments_BxS: the documents of the keys; None is `segments_BxT`.
      unbounded: boolean scalar, not known before it runs: whether to ignore `window`.
    """

    causal: bool = dataclasses.field(default=False, metadata=_STATIC)
    window: int | None = dataclasses.field(default=None, metadata=_STATIC)
    keys_BxS: jax.Array | None = None
    segments_BxT: jax.Array | None = None
    key_segments_BxS: jax.Array | None = None
    unbounded: jax.Array | bool | None = None

    def __post_init__(self):
        require(self, window="[1, inf)")

    def seen(self, t: int, s: int, offset: int | jax.Array = 0) -> jax.Array | None:
        """Returns bool (T, S) or (B, T, S), or None where T queries see all S keys.

        `offset` is the position of the first query among the keys; `unbounded` is not looked at.
        """
        self._check(t, s)
        # Queries are (T, 1), or (B, T, 1) where every row has an offset of its own.
        query, key_S = positions(t, offset)[..., None], jnp.arange(s)
        conditions = []
        if self.causal:
            conditions.append(key_S <= query)
        if self.window is not None:
            conditions.append(key_S > query - self.window)
            if not self.causal:
                conditions.append(key_S < query + self.window)
        if self.keys_BxS is not None:
            conditions.append(self.keys_BxS[:, None])  # (B, 1, S)
        if self.segments_BxT is not None:
            keys = self.segments_BxT if self.key_segments_BxS is None else self.key_segments_BxS
            conditions.append(self.segments_BxT[..., None] == keys[:, None])  # (B, T, S)
        if not conditions:
            return None
        seen = functools.reduce(jnp.logical_and, conditions)
        # A condition on keys alone is (B, 1, S) so far.
        return jnp.broadcast_to(seen, (*seen.shape[:-2], t, s))

    def _check(self, t: int, s: int) -> None:
        """Raises ConfigError where an array is not as long as the queries, or the keys.

        One of length 1 would spread over all of them without a word.
        """
        keys = self.segments_BxT if self.key_segments_BxS is None else self.key_segments_BxS
        lengths = {"keys_BxS": s, "segments_BxT": t, "key_segments_BxS": s}
        given = (self.keys_BxS, self.segments_BxT, keys)
        for (name, length), x in zip(lengths.items(), given, strict=True):
            if x is not None and x.shape[1:] != (length,):
                raise ConfigError(
                    f"Mask.{name}: shape {x.shape} given for {t} queries and {s} keys; (B, "
                    f"{length}) is needed (with a cache, keys are all of its room)."
                )


def positions(t: int, offset: int | jax.Array = 0) -> jax.Array:
    """Returns the positions (T,) from `offset` on, or (B, T) from each row's own."""
    return jnp.asarray(offset)[..., None] + jnp.arange(t)


def rotate(x: jax.Array, frequency_F: jax.Array, offset: int | jax.Array = 0) -> jax.Array:
    """Turns pair (i, i + K/2) of heads (B, T, ..., K) by position x frequency i, of K/2.

    Rotary positions, arXiv:2104.09864, in the order of pairs of Hugging Face's checkpoints.
    `offset` is the position of the first, scalar or (B,).
    """
    t, k = x.shape[1], x.shape[-1]
    # In float32: in bfloat16, position 257 is 256.
    angle = positions(t, offset).astype(jnp.float32)[..., None] * frequency_F
    # (T, K/2) or (B, T, K/2), with ones for the dimensions of heads in between.
    angle = angle.reshape(*angle.shape[:-1], *[1] * (x.ndim - 3), k // 2)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return rotated.astype(x.dtype)


def capped(x: jax.Array, cap: float | None) -> jax.Array:
    """Returns cap x tanh(x / cap), or `x` where there is no cap (Gemma 2, arXiv:2408.00118)."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def attend(
    q_BxTxGxQxK: jax.Array,
    k_BxSxGxK: jax.Array,
    v_BxSxGxK: jax.Array,
    mask: Mask,
    *,
    offset: int | jax.Array = 0,
    softcap: float | None = None,
    drop: Callable[[jax.Array], jax.Array] | None = None,
    maps: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Returns softmax(q k^T) v under a mask: (B, T, G, Q, K).

    G groups of Q query heads share a head of keys and values (arXiv:2305.13245); queries come
    scaled. On a TPU a sequence's attention to itself runs, without dropout and for whole blocks
    of 128, as the Pallas splash attention kernel, which holds no T x S array; elsewhere as
    products with a softmax in float32.

    There may be N rows of queries for each of keys: row b x N + n reads row b. Branches of a text
    share a memory so, under a mask of keys alone.

    Args:
      q_BxTxGxQxK: queries.
      k_BxSxGxK: keys.
      v_BxSxGxK: values.
      mask: which keys a query sees.
      offset: position of the first query among the keys, scalar or (B,).
      softcap: bound of the scores; see `capped`.
      drop: dropout of the attention weights.
      maps: return the weights as well, before dropout: float32 (B, G x Q, T, S).
    """
    if q_BxTxGxQxK.shape[0] != k_BxSxGxK.shape[0]:
        options = {"softcap": softcap, "drop": drop, "maps": maps}
        return _attend_shared(q_BxTxGxQxK, k_BxSxGxK, v_BxSxGxK, mask, **options)
    # Queries stay where their positions are; keys and values are gathered along the sequence.
    q_BxTxGxQxK = constrain(q_BxTxGxQxK, BATCH_AXES, "sequence", "tensor", None, None)
    k_BxSxGxK, v_BxSxGxK = (
        constrain(x, BATCH_AXES, None, "tensor", None) for x in (k_BxSxGxK, v_BxSxGxK)
    )
    local = functools.partial(_attend, offset=offset, softcap=softcap, drop=drop, maps=maps)
    qkv, unbounded = (q_BxTxGxQxK, k_BxSxGxK, v_BxSxGxK), mask.unbounded
    mask = dataclasses.replace(mask, unbounded=None)
    if mask.window is None or unbounded is None:
        return local(*qkv, mask)
    whole = dataclasses.replace(mask, window=None)
    # Two branches, not one computed mask: the kernel's masks must be known while tracing.
    return jax.lax.cond(unbounded, lambda *x: local(*x, whole), lambda *x: local(*x, mask), *qkv)


def _attend_shared(q, k_BxSxGxK, v_BxSxGxK, mask, **options):
    """`attend` where rows share keys: all their queries are one row's, in any order."""
    if mask.causal or mask.window is not None or mask.segments_BxT is not None:
        raise ConfigError(
            f"attend: {q.shape[0]} rows of queries share {k_BxSxGxK.shape[0]} of keys; these "
            "can be masked by Mask.keys_BxS alone."
        )
    (rows, t, *heads), b = q.shape, k_BxSxGxK.shape[0]
    y = attend(q.reshape(b, -1, *heads), k_BxSxGxK, v_BxSxGxK, mask, **options)
    if not options["maps"]:
        return y.reshape(rows, t, *heads)
    weights = y[1].reshape(b, y[1].shape[1], rows // b, t, -1).swapaxes(1, 2)
    return y[0].reshape(rows, t, *heads), weights.reshape(rows, -1, *weights.shape[3:])


def _attend(q_BxTxGxQxK, k_BxSxGxK, v_BxSxGxK, mask, *, offset, softcap, drop, maps):
    args = (q_BxTxGxQxK, k_BxSxGxK, v_BxSxGxK, mask)
    plain = functools.partial(_plain, offset=offset, softcap=softcap, drop=drop, maps=maps)
    if drop is None and not maps and _fits_kernel(*args, offset):
        # Chosen when it is lowered, not by the back end that is there: `launch.plan` lowers for
        # TPUs on a machine without one.
        kernel = functools.partial(_splash, softcap=softcap)
        return jax.lax.platform_dependent(*args, tpu=kernel, default=plain)
    return plain(*args)


def _plain(q_BxTxGxQxK, k_BxSxGxK, v_BxSxGxK, mask, *, offset=0, softcap, drop=None, maps=False):
    (b, t, g, q, k), s = q_BxTxGxQxK.shape, k_BxSxGxK.shape[1]
    # A group's queries in one dimension: XLA's CPU back end is slow where products have more.
    q_BxGxNxK = q_BxTxGxQxK.swapaxes(1, 2).reshape(b, g, t * q, k)
    # N counts positions first: row t x Q + i is query head i at position t.
    scores = jnp.einsum("bgnk,bsgk->bgns", q_BxGxNxK, k_BxSxGxK).astype(jnp.float32)
    seen = mask.seen(t, s, offset)
    if seen is not None:
        seen = jnp.repeat(seen, q, axis=-2)  # (N, S) or (B, N, S): all heads see the same
        seen = seen[:, None] if seen.ndim == 3 else seen
    weights_BxGxNxS = _softmax(capped(scores, softcap), seen, _sees_some(mask, t, s, offset))
    kept = weights_BxGxNxS.astype(q_BxTxGxQxK.dtype)
    if drop is not None:
        kept = drop(kept)
    y_BxGxNxK = jnp.einsum("bgns,bsgk->bgnk", kept, v_BxSxGxK)
    y_BxTxGxQxK = y_BxGxNxK.reshape(b, g, t, q, k).swapaxes(1, 2)
    if not maps:
        return y_BxTxGxQxK
    # (B, G, T x Q, S) to (B, G x Q, T, S).
    return y_BxTxGxQxK, weights_BxGxNxS.reshape(b, g, t, q, s).swapaxes(2, 3).reshape(b, -1, t, s)


def _softmax(scores: jax.Array, seen: jax.Array | None, sees_some: bool) -> jax.Array:
    """The softmax over what is seen; zeros where that may be nothing and is."""
    if seen is None:
        return jax.nn.softmax(scores)
    if sees_some:
        # No row is all -inf, which saves a second `where` over all scores.
        return jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
    least = jnp.finfo(scores.dtype).min  # with -inf alone, a row and its gradient would be NaN
    return jnp.where(seen, jax.nn.softmax(jnp.where(seen, scores, least)), 0)


def _sees_some(mask: Mask, t: int, s: int, offset: int | jax.Array) -> bool:
    """Whether it is known that every query sees some key."""
    if mask.keys_BxS is not None or mask.segments_BxT is not None:
        return False
    # Causal alone, all see key 0; in a window, each its own position, where that is among the keys.
    return mask.window is None or (isinstance(offset, int) and offset + t <= s)


def _fits_kernel(q_BxTxGxQxK, k_BxSxGxK, v_BxSxGxK, mask: Mask, offset: int | jax.Array) -> bool:
    """Whether the kernel takes these: a sequence and itself, whole on its device, in blocks."""
    b, t, *_, k = q_BxTxGxQxK.shape
    # The kernel's mask starts at position 0, and its segments are those of queries and keys alike.
    itself = t == k_BxSxGxK.shape[1] and isinstance(offset, int) and offset == 0
    itself &= mask.keys_BxS is None and mask.key_segments_BxS is None
    # `shard_map` wants rows that divide, and gives each device its own positions alone.
    whole = ways("sequence") == 1 and b % ways(*BATCH_AXES) == 0
    return itself and whole and t % 128 == 0 and k % 64 == 0


def _splash(q_BxTxGxQxK, k_BxTxGxK, v_BxTxGxK, mask, *, softcap) -> jax.Array:
    """The kernel on each device's rows and heads."""
    # The compiler cannot split a Pallas kernel by itself: each device calls it on what it has.
    local = functools.partial(_splash_local, softcap=softcap)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        spec = jax.P(BATCH_AXES, None, "tensor")
        in_specs = (spec, spec, spec, jax.P(BATCH_AXES))
        # The check wants results that say over which axes they vary; the kernel's do not.
        local = jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=spec, check_vma=False)
    return local(q_BxTxGxQxK, k_BxTxGxK, v_BxTxGxK, mask)


def _splash_local(q_BxTxGxQxK, k_BxTxGxK, v_BxTxGxK, mask, *, softcap) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    _, t, _, q, _ = q_BxTxGxQxK.shape
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
    if mask.window is not None:
        # `LocalMask` counts the positions on each side, without the query's own.
        after = 0 if mask.causal else mask.window - 1
        one_head = splash.LocalMask((t, t), (mask.window - 1, after), 0)
    else:
        one_head = (splash.CausalMask if mask.causal else splash.FullMask)((t, t))
    # The variant where Q query heads share one key head; vmapped over rows, then over groups.
    kernel = splash.make_splash_mqa_single_device(
        splash.MultiHeadMask([one_head] * q),
        block_sizes=sizes,
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name=ATTENTION,
    )
    segments = mask.segments_BxT
    # (B, T), of all groups alike: the inner vmap does not map them.
    ids = None if segments is None else splash.SegmentIds(q=segments, kv=segments)
    y_BxGxQxTxK = jax.vmap(jax.vmap(kernel, (0, 0, 0, None)), (0, 0, 0, 0))(
        q_BxTxGxQxK.transpose(0, 2, 3, 1, 4),
        k_BxTxGxK.transpose(0, 2, 1, 3),
        v_BxTxGxK.transpose(0, 2, 1, 3),
        ids,
    )
    return y_BxGxQxTxK.transpose(0, 3, 1, 2, 4)
