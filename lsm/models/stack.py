"""Blocks one after the other, their parameters stacked: the body of every Transformer."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsm.errors import MeshError
from lsm.mesh import Layout, Rule, unplaced, ways
from lsm.models.attention import Mask
from lsm.models.block import Block, BlockOutput
from lsm.models.cache import Caches
from lsm.models.pipeline import run_layers
from lsm.models.remat import rematerialised
from lsm.models.transformer import Transformer

_SOWN = "intermediates"

LAYOUT = Layout(
    rules=(
        # Columns over "tensor", then rows: one sum over devices for each pair of products
        # (Megatron-LM, arXiv:1909.08053). The first dimension is the layer's.
        Rule(r"blocks/experts_(gate|up)/kernel$", ("pipeline", "expert", "fsdp", "tensor")),
        Rule(r"blocks/experts_down/kernel$", ("pipeline", "expert", "tensor", "fsdp")),
        Rule(r"blocks/(qkv|cross_q|cross_kv|gate|up)/kernel$", ("pipeline", "fsdp", "tensor")),
        Rule(r"blocks/(out|cross_out|down)/kernel$", ("pipeline", "tensor", "fsdp")),
        Rule(r"blocks/router/kernel$", ("pipeline", "fsdp", None)),
        Rule(r"blocks/(qkv|cross_q|cross_kv|gate|up)/bias$", ("pipeline", "tensor")),
        Rule(r"blocks/", ("pipeline", None)),
    ),
    axes=("tensor", "sequence", "pipeline"),
    stacks=((r"blocks/experts_", 2), (r"blocks/", 1)),
)
"""How a stack's parameters lie on a mesh, and the axes it uses: for the `layout` of a model."""


def unstacked(blocks: Any) -> tuple[Any, ...]:
    """Returns the parameters of each block, of those stacked (L, ...), or as they are already.

    Outside of a trace they lie on devices as they did.
    """
    if isinstance(blocks, tuple):
        return blocks
    depth = len(jax.tree.leaves(blocks)[0])
    return tuple(
        jax.tree.map(functools.partial(_layer_of, layer), blocks) for layer in range(depth)
    )


def _layer_of(layer: int, x: jax.Array) -> jax.Array:
    if isinstance(x, jax.core.Tracer) or not isinstance(x.sharding, jax.NamedSharding):
        return x[layer]
    return jax.device_put(x[layer], jax.NamedSharding(x.sharding.mesh, jax.P(*x.sharding.spec[1:])))


class Stack(nn.Module):
    """The blocks of an encoder or a decoder; what they lack is an embedding and a head.

    Parameters lie under "blocks", with a leading layer axis; with a cache they may come as a tuple
    of each block's, too, so that none is cut out of the whole first (`unstacked`). Rows go through
    stages on different devices where the mesh has the axis "pipeline".

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
        memory_BxSxD: jax.Array | None = None,
        memory_mask: Mask = Mask(),
        cache: Caches | None = None,
        maps: bool = False,
    ) -> BlockOutput:
        """Returns the residual stream after all blocks, and the sum of their balance losses.

        The arguments are those of `Block`, but for a cache of each block, in and out; attention
        weights have a leading layer dimension. Cross-attention is there if a memory was when the
        parameters were made. Where the collection "intermediates" is mutable, the stream after
        block i is sown there as "block_i".

        Raises:
          MeshError: a cache on a mesh with stages, or stages that do not divide the layers.
        """
        config = self.config
        if cache is not None and ways("pipeline") > 1:
            raise MeshError(f"mesh.pipeline={ways('pipeline')} given, but a cache needs 1.")
        # `self.param` alone would trace the initialiser in every call to compare shapes, and raise
        # where a cache holds the memory and none is given.
        if not self.has_variable("params", "blocks"):
            self.param("blocks", self._init_blocks, memory_BxSxD is not None)
        # Balance losses are added up row by row and go along: each stage has other rows at a tick.
        rows = (x_BxTxD.astype(config.dtype), jnp.zeros(x_BxTxD.shape[0]))
        sown = self.is_mutable_collection(_SOWN) and not self.is_initializing() and cache is None
        layer, beside = _layer(config, train, maps, sown), (mask, memory_BxSxD, memory_mask)
        if cache is not None:
            return self._cached(layer, rows, cache, beside)
        layer = rematerialised(layer, config.remat, looped=config.unroll < config.layers)
        layers = self._layers(train)
        rows, results = run_layers(layer, layers, rows, config.unroll, beside=beside)
        *results, x_LxBxTxD = results
        for number in range(config.layers if sown else 0):
            self.sow(_SOWN, f"block_{number}", x_LxBxTxD[number])
        return BlockOutput(*rows, *results)

    def _cached(self, layer: Callable, rows: Any, cache: Caches, beside: Any) -> BlockOutput:
        """As `run_layers`, written out: a loop would copy the cache of each block out and in."""
        config, found = self.config, []
        blocks = self.get_variable("params", "blocks")
        for number, (params, own) in enumerate(zip(unstacked(blocks), cache, strict=True), 1):
            is_global = number % config.global_every == 0 if config.global_every else None
            rows, results = layer(rows, (params, None, is_global, own, None), jnp.int32(0), *beside)
            found.append(results[:-1])
        caches, *maps = zip(*found, strict=True)
        stacked = (None if m[0] is None else jnp.stack(m) for m in maps)
        return BlockOutput(*rows, Caches(caches), *stacked)

    def _layers(self, train: bool) -> tuple[Any, ...]:
        """Returns what each layer has of its own (L, ...), as `_layer` takes it."""
        config, keys_L, global_L = self.config, None, None
        if train and (config.dropout or config.drop_path):
            keys_L = jax.random.split(self.make_rng("dropout"), config.layers)
        if config.global_every:  # the last of every so many, as in Gemma
            global_L = (jnp.arange(config.layers) + 1) % config.global_every == 0
        drop_L = jnp.linspace(0, config.drop_path, config.layers) if config.drop_path else None
        return self.get_variable("params", "blocks"), keys_L, global_L, None, drop_L

    def _init_blocks(self, key: jax.Array, cross: bool) -> Any:
        x_BxTxD = jnp.zeros((1, 1, self.config.width), self.config.dtype)
        block = Block(self.config, parent=None)
        init = functools.partial(block.init, memory_BxSxD=x_BxTxD if cross else None)
        with unplaced():
            # Layer by layer, so that fan-in is one layer's. No parameter depends on B or T.
            return jax.vmap(lambda key: init(key, x_BxTxD, Mask())["params"])(
                jax.random.split(key, self.config.layers)
            )


def _layer(
    config: Transformer, train: bool, maps: bool, sown: bool
) -> Callable[..., tuple[Any, Any]]:
    """Returns one layer as `run_layers` calls it; `own` is its part of `Stack._layers`."""

    def layer(rows: Any, own: Any, tick: jax.Array, mask: Mask, memory: Any, memory_mask: Mask):
        (x_BxTxD, balance_B), (params, key, is_global, cache, drop_path) = rows, own
        # A pure function of the layer's arrays, which scan, checkpoint and the stages' vmap can
        # take: they know nothing of Linen's scopes.
        y = Block(config, parent=None).apply(
            {"params": params},
            x_BxTxD,
            mask,
            train=train,
            is_global=is_global,
            memory_BxSxD=memory,
            memory_mask=memory_mask,
            cache=cache,
            maps=maps,
            drop_path=drop_path,
            # In stages a layer meets a micro-batch a tick: each needs dropout of its own.
            rngs={} if key is None else {"dropout": jax.random.fold_in(key, tick)},
        )
        results = (y.cache, y.maps_BxHxTxS, y.cross_maps_BxHxTxS, y.x_BxTxD if sown else None)
        return (y.x_BxTxD, balance_B + y.balance_B), results

    return layer
