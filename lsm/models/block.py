"""The Transformer's block: attention, MLP, and the block made of them.

Encoders, decoders and what is between them are arrangements of this one block; they differ in the
mask, and in whether there is a memory to attend to. `lsm.models.stack` stacks blocks.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsm.errors import ConfigError
from lsm.models.attention import Mask, attend, rotate
from lsm.models.cache import Cache
from lsm.models.experts import Mixture
from lsm.models.layers import between, drop_examples, inside
from lsm.models.transformer import ACTIVATIONS, GATED, Transformer


class Attention(nn.Module):
    """Attention of a sequence to itself.

    Attributes:
      config: hyper-parameters.
    """

    config: Transformer

    @nn.compact
    def __call__(
        self,
        x_BxTxD: jax.Array,
        mask: Mask,
        *,
        train: bool = False,
        is_global: jax.Array | bool | None = None,
        cache: Cache | None = None,
        maps: bool = False,
    ) -> tuple[jax.Array, Cache | None, jax.Array | None]:
        """Returns y (B, T, D), the cache with these positions, and the weights (B, H, T, S).

        The arguments are those of `Block`.
        """
        config, (b, t, _) = self.config, x_BxTxD.shape
        g, q, k = config.groups
        # One product for all three; each group's queries, key and value lie side by side, so that
        # splitting the columns over devices splits them by groups.
        qkv = config.dense((q + 2) * g * k, "qkv", reads=True)(x_BxTxD)
        qkv = qkv.reshape(b, t, g, q + 2, k)
        q_BxTxGxQxK, key, value = jnp.split(qkv, [q, q + 1], axis=3)
        k_BxTxGxK, v_BxTxGxK = key.squeeze(3), value.squeeze(3)
        if config.qk_norm:
            q_BxTxGxQxK = config.normalise("q_norm", of_heads=True)(q_BxTxGxQxK)
            k_BxTxGxK = config.normalise("k_norm", of_heads=True)(k_BxTxGxK)
        offset = 0 if cache is None else cache.length
        if config.theta is not None:
            # Before the cache: what it holds keeps its position.
            frequencies = config.frequencies(is_global)
            q_BxTxGxQxK = rotate(q_BxTxGxQxK, frequencies, offset)
            k_BxTxGxK = rotate(k_BxTxGxK, frequencies, offset)
        if config.window is not None:
            mask = dataclasses.replace(mask, window=config.window, unbounded=is_global)
        if cache is not None:
            cache = cache.extended(k_BxTxGxK, v_BxTxGxK)
            (k_BxTxGxK, v_BxTxGxK), mask = cache.read(), cache.masked(mask)
        options = {"train": train, "maps": maps, "offset": offset}
        y_BxTxD, weights = _read(config, q_BxTxGxQxK, k_BxTxGxK, v_BxTxGxK, mask, **options)
        return y_BxTxD, cache, weights


class CrossAttention(nn.Module):
    """Attention of a sequence to another, the memory; without positions or a window.

    Attributes:
      config: hyper-parameters.
    """

    config: Transformer

    @nn.compact
    def __call__(
        self,
        x_BxTxD: jax.Array,
        memory: jax.Array | tuple[jax.Array, jax.Array],
        mask: Mask,
        *,
        train: bool = False,
        maps: bool = False,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array], jax.Array | None]:
        """Returns y (B, T, D), the memory's keys and values, and the weights (B, H, T, S).

        The memory is (B, S, D), or its keys and values as an earlier call returned them.
        """
        config, (b, t, _) = self.config, x_BxTxD.shape
        g, q, k = config.groups
        dense = functools.partial(config.dense, reads=True)
        q_BxTxGxQxK = dense(q * g * k, "cross_q")(x_BxTxD).reshape(b, t, g, q, k)
        if config.qk_norm:
            q_BxTxGxQxK = config.normalise("cross_q_norm", of_heads=True)(q_BxTxGxQxK)
        if not isinstance(memory, tuple):
            kv = dense(2 * g * k, "cross_kv")(memory).reshape(b, -1, g, 2, k)
            key, value = jnp.split(kv, 2, axis=3)
            k_BxSxGxK, v_BxSxGxK = key.squeeze(3), value.squeeze(3)
            if config.qk_norm:
                k_BxSxGxK = config.normalise("cross_k_norm", of_heads=True)(k_BxSxGxK)
            memory = k_BxSxGxK, v_BxSxGxK
        options = {"train": train, "maps": maps, "prefix": "cross_"}
        y_BxTxD, weights = _read(config, q_BxTxGxQxK, *memory, mask, **options)
        return y_BxTxD, memory, weights


class Mlp(nn.Module):
    """The MLP, applied to each position: down(activation(up(x))), or gated.

    Attributes:
      config: hyper-parameters.
    """

    config: Transformer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., D) to (..., D)."""
        return _feed_forward(self.config, x, self.config.dense)


class BlockOutput(NamedTuple):
    """What a block returns.

    Attributes:
      x_BxTxD: the residual stream.
      balance_B: load-balancing loss of the experts, float32; 0 without.
      cache: with these positions; None without one.
      maps_BxHxTxS: attention weights, float32; None where they are not asked for.
      cross_maps_BxHxTxS: those on the memory.
    """

    x_BxTxD: jax.Array
    balance_B: jax.Array
    cache: Cache | None = None
    maps_BxHxTxS: jax.Array | None = None
    cross_maps_BxHxTxS: jax.Array | None = None


class Block(nn.Module):
    """Attention, attention to a memory where there is one, and MLP, each added to its input.

    Its parameters lie side by side: `qkv`, `out`, `cross_q`, `cross_kv`, `cross_out`, `up`,
    `gate`, `down`, `norm_1`, `norm_cross`, `norm_2`, ...

    Attributes:
      config: hyper-parameters.
    """

    config: Transformer

    @nn.compact
    def __call__(
        self,
        x_BxTxD: jax.Array,
        mask: Mask,
        *,
        train: bool = False,
        is_global: jax.Array | bool | None = None,
        memory_BxSxD: jax.Array | None = None,
        memory_mask: Mask = Mask(),
        cache: Cache | None = None,
        maps: bool = False,
        drop_path: jax.Array | None = None,
    ) -> BlockOutput:
        """Returns the residual stream and what else came of it.

        Args:
          x_BxTxD: the residual stream.
          mask: which positions each one sees, `Mask(causal=True)` in a decoder; the window is
            `config.window`.
          train: whether to drop.
          is_global: whether to see past the window, and turn by the global frequencies.
          memory_BxSxD: what cross-attention reads, such as an encoder's output.
          memory_mask: which of its positions are seen.
          cache: of the positions before these: they see it, and are added to it. It holds the
            memory's keys and values too, once a call had the memory.
          maps: whether to return the attention weights.
          drop_path: that of this block; None is the config's.
        """
        config = self.config
        memory = cache.memory if memory_BxSxD is None and cache is not None else memory_BxSxD
        self._check_memory(memory)
        attention, options = self._flat(Attention(config)), {"train": train, "maps": maps}

        # Parts: h to what is added to the residual stream, and what else comes of it. `_add` adds.
        def attend(h_BxTxD):
            return attention(h_BxTxD, mask, is_global=is_global, cache=cache, **options)

        def attend_memory(h_BxTxD):
            return self._flat(CrossAttention(config))(h_BxTxD, memory, memory_mask, **options)

        def think(h_BxTxD):
            if not config.experts:
                return self._flat(Mlp(config))(h_BxTxD), jnp.zeros(h_BxTxD.shape[0])
            mlp = functools.partial(_feed_forward, config)
            mixture = self._flat(Mixture(config.experts, mlp, config.kernel_init, config.dtype))
            return mixture(h_BxTxD, mask.keys_BxS if cache is None else None)  # of these positions

        dropout = nn.Dropout(config.dropout, deterministic=not train, name="drop")

        def drop(y_BxTxD):
            y_BxTxD = dropout(y_BxTxD)
            if not (train and config.drop_path):
                return y_BxTxD
            rate = config.drop_path if drop_path is None else drop_path
            return drop_examples(y_BxTxD, rate, self.make_rng("dropout"))

        x_BxTxD = between(x_BxTxD)
        x_BxTxD, new, seen = self._add(x_BxTxD, attend, "1", drop)
        cross = None
        if memory is not None:
            x_BxTxD, kept, cross = self._add(x_BxTxD, attend_memory, "cross", drop)
            new = None if new is None else dataclasses.replace(new, memory=kept)
        x_BxTxD, balance_B = self._add(x_BxTxD, think, "2", drop)
        return BlockOutput(between(x_BxTxD), balance_B, new, seen, cross)

    def _add(self, x_BxTxD: jax.Array, part: Callable, name: str, drop: Callable) -> Any:
        """Adds what `part` makes of x, normalised in the place that the config says."""
        config, norm = self.config, self.config.normalise(f"norm_{name}")
        h_BxTxD = x_BxTxD if config.norm_position == "post" else norm(x_BxTxD)
        y_BxTxD, *rest = part(inside(h_BxTxD))
        y_BxTxD = between(inside(y_BxTxD))  # in two steps: in one, XLA adds all-to-alls
        if config.norm_position == "sandwich":
            y_BxTxD = config.normalise(f"post_norm_{name}")(y_BxTxD)
        x_BxTxD = x_BxTxD + drop(y_BxTxD)
        return norm(x_BxTxD) if config.norm_position == "post" else x_BxTxD, *rest

    def _check_memory(self, memory: Any) -> None:
        # Linen names a missing parameter for the one, and has nothing to say to the other.
        made = self.has_variable("params", "cross_q")
        if not self.is_initializing() and made != (memory is not None):
            given, were = ("no memory", "one") if made else ("a memory", "none")
            raise ConfigError(f"Block: {given} given; its parameters were made with {were}.")

    def _flat(self, part: nn.Module) -> nn.Module:
        """A part whose parameters lie among those of the block."""
        nn.share_scope(self, part)
        return part


def _read(config: Transformer, q_BxTxGxQxK, *args, train, maps, offset=0, prefix=""):
    """Returns what attention adds to the residual stream (B, T, D), and its weights or None."""
    drop = None
    if train and config.dropout:
        drop = nn.Dropout(config.dropout, deterministic=False, name=f"{prefix}drop_weights")
    q_BxTxGxQxK = (
        q_BxTxGxQxK * (config.query_width or config.groups[2]) ** -0.5
    )  # T x K products, not T x S
    options = {"softcap": config.attention_softcap, "drop": drop, "maps": maps}
    y = attend(q_BxTxGxQxK, *args, offset=offset, **options)
    y_BxTxGxQxK, weights = y if maps else (y, None)
    out = config.dense(config.width, f"{prefix}out", residual=True)
    return out(y_BxTxGxQxK.reshape(*y_BxTxGxQxK.shape[:2], -1)), weights


def _feed_forward(config: Transformer, x: jax.Array, dense: Callable[..., nn.Module]) -> jax.Array:
    hidden, activation = config.hidden or 4 * config.width, ACTIVATIONS[config.mlp]
    h = dense(hidden, "up")(x)
    h = activation(dense(hidden, "gate")(x)) * h if config.mlp in GATED else activation(h)
    return dense(config.width, "down", residual=True)(h)
