"""What attention keeps between calls: keys and values, as values that go in and come out."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from lsm.errors import ConfigError
from lsm.mesh import BATCH_AXES, constrain
from lsm.models.attention import Mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
    """Keys and values of the positions so far, in one block: goes into a call and comes out new.

    Both lie as the products with them want it.

    Attributes:
      k_BxGxKxS: keys, rotated; S is the room.
      v_BxGxSxK: values.
      length: int32, scalar or (B,): how many positions are filled.
      memory: keys and values (B, S, G, K) of what cross-attention reads, once they are computed.
      span: how many positions are read, from the first on; None is the room.
    """

    k_BxGxKxS: jax.Array
    v_BxGxSxK: jax.Array
    length: jax.Array
    memory: tuple[jax.Array, jax.Array] | None = None
    span: int | None = dataclasses.field(default=None, metadata={"static": True})

    def filled(self, length: jax.Array | int) -> "Cache":
        """See `Caches.filled`."""
        # A copy: one buffer in several caches could not be donated.
        return dataclasses.replace(self, length=jnp.array(length, jnp.int32))

    def extended(self, k_BxTxGxK: jax.Array, v_BxTxGxK: jax.Array) -> "Cache":
        """Returns the cache with T more positions.

        Whether there is room is not known before it runs: beyond its end, a cache writes over
        its last positions, and what comes out is wrong. Count on the host.

        Raises:
          ConfigError: there are more positions than the whole cache holds.
        """
        t, room = k_BxTxGxK.shape[1], self.k_BxGxKxS.shape[3]
        if t > room:
            raise ConfigError(f"cache: {t} positions given, but it has room for {room}.")
        length = self.length[0] if self.length.shape == (1,) else self.length

        def written(old: jax.Array, new: jax.Array, axis: int) -> jax.Array:
            write = jax.lax.dynamic_update_slice_in_dim
            new = new.astype(old.dtype)
            if not length.ndim:  # rows that are equally long are written as one slice
                return write(old, new, length, axis)
            return jax.vmap(functools.partial(write, axis=axis - 1))(old, new, length)  # a scatter

        k_BxGxKxS = written(self.k_BxGxKxS, k_BxTxGxK.transpose(0, 2, 3, 1), 3)
        v_BxGxSxK = written(self.v_BxGxSxK, v_BxTxGxK.swapaxes(1, 2), 2)
        # Else XLA writes twice, for the products and for the result, of which one is a copy.
        k_BxGxKxS, v_BxGxSxK = jax.lax.optimization_barrier((k_BxGxKxS, v_BxGxSxK))
        return dataclasses.replace(
            self, k_BxGxKxS=k_BxGxKxS, v_BxGxSxK=v_BxGxSxK, length=self.length + t
        )

    def read(self) -> tuple[jax.Array, jax.Array]:
        """Returns keys and values (B, S, G, K), as `attend` takes them.

        Where there is no `span`, no copies come of it.
        """
        k_BxGxKxS, v_BxGxSxK = self.k_BxGxKxS[..., : self.span], self.v_BxGxSxK[:, :, : self.span]
        return k_BxGxKxS.transpose(0, 3, 1, 2), v_BxGxSxK.swapaxes(1, 2)

    def branched(self, parents_BxN: jax.Array) -> "Cache":
        """See `Caches.branched`."""

        def gathered(x: jax.Array) -> jax.Array:
            (b, n), rest = parents_BxN.shape, x.shape[1:]
            x = x.reshape(b, x.shape[0] // b, *rest)
            chosen = parents_BxN.reshape(b, n, *[1] * len(rest))
            return jnp.take_along_axis(x, chosen, axis=1).reshape(b * n, *rest)

        length = gathered(self.length) if jnp.ndim(self.length) else self.length
        k, v = gathered(self.k_BxGxKxS), gathered(self.v_BxGxSxK)
        return dataclasses.replace(self, k_BxGxKxS=k, v_BxGxSxK=v, length=length)

    def masked(self, mask: Mask) -> Mask:
        """Returns `mask` without the room that is not filled: the future, where it is causal."""
        if mask.causal:
            return mask
        room = self.k_BxGxKxS.shape[0], self.span or self.k_BxGxKxS.shape[3]
        filled_BxS = jnp.broadcast_to(jnp.arange(room[1]) < self.length[..., None], room)
        keys_BxS = filled_BxS if mask.keys_BxS is None else filled_BxS & mask.keys_BxS
        return dataclasses.replace(mask, keys_BxS=keys_BxS)


class Caches(tuple[Cache, ...]):
    """Those of a stack of blocks, one each; arrays of their own, so that each is written in place.

    In one array of all layers, a loop over them would copy the whole at every token.
    """

    __slots__ = ()

    @classmethod
    def empty(cls, layers: int, b: int, g: int, s: int, k: int, dtype: Any) -> "Caches":
        """Returns caches with nothing in them, whose arrays may be donated."""

        def zeros(*shape: int) -> jax.Array:
            return constrain(jnp.zeros(shape, dtype), BATCH_AXES, "tensor", None, None)

        return cls(
            Cache(
                k_BxGxKxS=zeros(b, g, k, s),
                v_BxGxSxK=zeros(b, g, s, k),
                length=jnp.zeros((), jnp.int32),
            )
            for _ in range(layers)
        )

    @property
    def length(self) -> jax.Array:
        """How many positions are filled, int32, scalar or (B,)."""
        return self[0].length

    @property
    def room(self) -> int:
        """How many positions there is room for."""
        return self[0].k_BxGxKxS.shape[3]

    def filled(self, length: jax.Array | int) -> "Caches":
        """Returns the caches with another `length`, scalar or (B,).

        What lies behind it is never seen, and written over: after padded prompts have gone
        through a model together, `cache.filled(lengths_B)` goes on where each of them ends.
        """
        return Caches(cache.filled(length) for cache in self)

    def within(self, span: int | None) -> "Caches":
        """Returns the caches of which a call reads so many positions, from the first on.

        What comes of a row that has more then, the new ones among them, is not its text.
        """
        return Caches(dataclasses.replace(cache, span=span) for cache in self)

    def branched(self, parents_BxN: jax.Array) -> "Caches":
        """Returns the caches of N branches of each of B texts: row b x N + n is one of them.

        It goes on from branch `parents_BxN[b, n]` of the same text, which are as many as the rows
        are now: 1 before they branch. The memory stays as it is: branches of a text share it.
        """
        return Caches(cache.branched(parents_BxN) for cache in self)


jax.tree_util.register_pytree_node(
    Caches, lambda caches: (tuple(caches), None), lambda _, caches: Caches(caches)
)
