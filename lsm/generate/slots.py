"""Slots of one cache, in which texts are read and written beside each other, each for itself."""

import functools
import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lsm.errors import ConfigError
from lsm.generate.decoding import Decoder, State, drawn_from
from lsm.generate.sampling import GREEDY, Draws
from lsm.mesh import batch_sharding, batch_ways, jit, replicated
from lsm.models.cache import Cache, Caches
from lsm.models.experts import mixtures

LIKELIEST = 20
"""How many of the likeliest tokens can be told beside the one that is drawn."""
_LEAST = 32
_LEAST_SPAN = 128


class Rows(NamedTuple):
    """What a step does in each slot; what it makes of one where nobody writes is never seen.

    Attributes:
      draws: how each is drawn.
      length_S: int32, positions of its cache that are filled: the next token's keys come there.
      number_S: int32, how many tokens it has drawn before.
      given_S: int32, the token that goes in; -1 is the one that the last step has drawn.
    """

    draws: Draws
    length_S: np.ndarray
    number_S: np.ndarray
    given_S: np.ndarray

    @classmethod
    def idle(cls, slots: int) -> "Rows":
        """Returns those of slots that are all free; arrays that may be written."""
        draws = Draws.of([GREEDY] * slots, [0] * slots)
        return cls(draws, *(np.zeros(slots, np.int32) for _ in range(3)))


class Chosen(NamedTuple):
    """What a step has drawn.

    Attributes:
      token_S: int32.
      log_probability_S: float32, the model's own of it, in nats: before temperature and filters.
      likeliest_SxN: int32, the likeliest tokens; zeros where nobody asked for them.
      log_probability_SxN: float32, of those.
    """

    token_S: jax.Array
    log_probability_S: jax.Array
    likeliest_SxN: jax.Array
    log_probability_SxN: jax.Array


class _Held(NamedTuple):
    """What lies on the devices: caches, whose lengths the host knows, and the tokens of texts."""

    cache: Any
    seen_SxV: jax.Array


class Slots:
    """A cache for so many texts of so many tokens, made once; every program writes it in place.

    Each slot is computed by itself, and programs are of fixed shapes: what is in one depends on no
    other, to the bit. On a mesh, slots lie over "data" and "fsdp" in equal parts, heads over
    "tensor".

    Attributes:
      decoder: the model.
      count: number of slots.
      length: tokens of prompt and text together, at the most.
      chunk: tokens of a prompt that are read at a time.
      parts: in how many parts the slots lie on devices.
    """

    def __init__(
        self, decoder: Decoder, count: int = 8, length: int | None = None, chunk: int = 128
    ):
        """Makes the cache; without `length`, for the model's context.

        Raises:
          ConfigError: a number cannot be, or experts would drop tokens.
        """
        self.decoder, self.count, self.chunk = decoder, count, chunk
        self.length, self.parts = length or decoder.context, batch_ways(decoder.mesh)
        self._check()
        self._held = self._last = None
        self.reset()

    def _check(self) -> None:
        longest = self.decoder.context
        if self.length is None or not 2 <= self.length <= (longest or self.length):
            raise ConfigError(
                f"Slots.length: {self.length} given; allowed: 2 to {longest or 'any number'}, "
                "the model's context."
            )
        if self.count < 1 or self.count % self.parts:
            raise ConfigError(
                f"Slots.count: {self.count} given; allowed: multiples of {self.parts}, the parts "
                "of rows on the mesh."
            )
        if self.chunk < 1:
            raise ConfigError(f"Slots.chunk: {self.chunk} given; allowed: 1 or more.")
        for experts in mixtures(self.decoder.model):
            if experts.capacity is not None:
                raise ConfigError(
                    f"Slots: experts with capacity={experts.capacity} given, which drop tokens by "
                    "how a prompt is cut; give a model with None (`lsm.models.experts.dropless`)."
                )

    @functools.cached_property
    def spans(self) -> tuple[int, ...]:
        """How many positions of the cache a program may look at: all, a quarter of that, ..."""
        spans = [self.length]
        while spans[-1] >= 4 * _LEAST_SPAN:
            spans.append(-(-spans[-1] // 4))
        return tuple(spans)

    def reset(self) -> None:
        """Makes the cache anew, with nothing in it."""
        self._held = self._last = None  # so that there are not two of them
        state = self.decoder.empty(self.length)(Rows.idle(self.count).draws, np.int32(0))
        self._held = _Held(state.cache, state.seen_BxV)
        self._last = np.zeros(self.count, np.int32)

    def compile(self) -> None:
        """Runs each program once, with every slot empty."""
        sizes = sorted({self.size(n, 0) for n in range(1, self.chunk + 1)})
        for span, size in itertools.product(self.spans, sizes):
            if span >= size:
                self.read({0: (span - size, np.zeros(size, np.int32))})
        self.copy(0, 0)
        self.see(0, np.zeros(1, np.int32))
        for span in self.spans:
            rows = Rows.idle(self.count)
            rows.length_S[:] = span - 1
            self.step(rows, [0])
        self.reset()

    def part(self, slot: int) -> int:
        """Returns in which part a slot lies."""
        return slot // (self.count // self.parts)

    def size(self, tokens: int, begin: int) -> int:
        """Returns the size of the program that reads so many tokens from `begin` on.

        It depends on nothing else: a prompt is cut in the same way whoever is there.
        """
        least = max(min(_LEAST, self.chunk), 1 << (tokens - 1).bit_length())
        return min(least, self.chunk, self.length - begin)

    def span(self, positions: int) -> int:
        """Returns how many positions the programs look at where so many are filled."""
        return min(span for span in self.spans if span >= positions)

    def read(self, chunks: Mapping[int, tuple[int, np.ndarray]]) -> None:
        """Reads on in slots, at most one of each part.

        Args:
          chunks: by slot, the position to go on at, and at most `chunk` tokens, all of one `size`.
        """
        sizes = {self.size(len(tokens), begin) for begin, tokens in chunks.values()}
        tokens_WxT = np.zeros((self.parts, *sizes), np.int32)
        slot_W, begin_W = np.zeros((2, self.parts), np.int32)
        reads_W = np.zeros(self.parts, bool)
        for slot, (begin, tokens) in chunks.items():
            part = self.part(slot)
            tokens_WxT[part, : len(tokens)] = tokens
            slot_W[part], begin_W[part] = slot % (self.count // self.parts), begin
            reads_W[part] = True
        span = self.span(max(begin + tokens_WxT.shape[1] for begin, _ in chunks.values()))
        given = (self._held.cache, tokens_WxT, slot_W, begin_W, reads_W)
        self._held = self._held._replace(cache=self._read[span](self.decoder.variables, *given))

    def copy(self, source: int, target: int) -> None:
        """Copies what is in a slot into another one of the same part."""
        slot_Wx2 = np.zeros((self.parts, 2), np.int32)
        slot_Wx2[self.part(source)] = np.array([source, target]) % (self.count // self.parts)
        self._held = self._held._replace(cache=self._copy(self._held.cache, slot_Wx2))

    def see(self, slot: int, prompt: np.ndarray) -> None:
        """Says which tokens the text of a slot has, for the penalty of repetition."""
        seen_V = np.zeros(self.decoder.model.vocabulary, bool)
        seen_V[prompt] = True
        seen_SxV = self._see(self._held.seen_SxV, np.int32(slot), seen_V)
        self._held = self._held._replace(seen_SxV=seen_SxV)

    def step(self, rows: Rows, live: Collection[int], listed: bool = False) -> Chosen:
        """Draws a token in each slot.

        Args:
          rows: how, and after what.
          live: the slots of which it is wanted.
          listed: whether to tell the likeliest tokens, too.
        """
        span = self.span(max(int(rows.length_S[slot]) for slot in live) + 1)
        # Copies: the device may read them later than the host writes on.
        rows = jax.tree.map(np.copy, rows)
        given = (self._held, self._last, rows, np.bool_(listed))
        self._held, found = self._step[span](self.decoder.variables, *given)
        self._last = found.token_S
        return found

    @functools.cached_property
    def _step(self) -> Callable[..., tuple[_Held, Chosen]]:
        model, rows = self.decoder.model, batch_sharding(self.decoder.mesh)

        def step(span, variables, held, last_S, given: Rows, listed):
            token_Sx1 = jnp.where(given.given_S < 0, last_S, given.given_S)[:, None]
            cache = held.cache.filled(given.length_S).within(span)
            logits, cache = model.apply(variables, token_Sx1, cache, method="decode")
            state = State(
                cache=cache,
                draws=given.draws,
                seen_BxV=held.seen_SxV,
                number_B=given.number_S,
            )
            state, drawn = drawn_from(state, logits[:, 0])
            found = Chosen(*drawn, *_likeliest(logits[:, 0], listed))
            return _Held(cache.filled(0).within(None), state.seen_BxV), found

        held = _Held(self._placed, rows)
        given = Rows(self.decoder.placed[0].draws, rows, rows, rows)
        given = (self.decoder.held, held, rows, given, replicated(self.decoder.mesh))
        made = held, Chosen(rows, rows, rows, rows)
        return {
            span: self._jit(functools.partial(step, span), given, made, donate=(1,))
            for span in self.spans
        }

    @functools.cached_property
    def _read(self) -> Callable[..., Caches]:
        model = self.decoder.model

        def read(span, variables, cache, tokens_WxT, slot_W, begin_W, reads_W):
            own = Caches(_of_slots(one, slot_W, begin_W, span) for one in cache)
            _, own = model.apply(variables, tokens_WxT, own, method="extend")
            t = tokens_WxT.shape[1]
            return Caches(
                _written(one, new, slot_W, begin_W, t, reads_W)
                for one, new in zip(cache, own, strict=True)
            )

        rows = batch_sharding(self.decoder.mesh)
        given = (self.decoder.held, self._placed, rows, rows, rows, rows)
        return {
            span: self._jit(functools.partial(read, span), given, self._placed, donate=(1,))
            for span in self.spans
        }

    @functools.cached_property
    def _copy(self) -> Callable[..., Caches]:
        def copy(cache, slot_Wx2):
            source_W, target_W = slot_Wx2.T
            nothing_W, room = jnp.zeros_like(source_W), self.length
            return Caches(
                _written(one, _of_slots(one, source_W, nothing_W, room), target_W, nothing_W, room)
                for one in cache
            )

        given = (self._placed, batch_sharding(self.decoder.mesh))
        return self._jit(copy, given, self._placed, donate=(0,))

    @functools.cached_property
    def _see(self) -> Callable[..., jax.Array]:
        def see(seen_SxV, slot, seen_V):
            return seen_SxV.at[slot].set(seen_V)

        rows, whole = batch_sharding(self.decoder.mesh), replicated(self.decoder.mesh)
        return self._jit(see, (rows, whole, whole), rows, donate=(0,))

    @property
    def _placed(self) -> Any:
        return self.decoder.placed[0].cache

    def _jit(self, function: Callable, given: Any, made: Any, donate: tuple[int, ...]) -> Callable:
        options = {"in_shardings": given, "out_shardings": made, "mesh": self.decoder.mesh}
        return jit(function, **options, donate=donate)


def _each(function: Callable, x_SxAxBxC: jax.Array, *args: jax.Array) -> jax.Array:
    """Calls `function` with the slots of each part, and what it is given: (W, ...) each."""
    parts = len(args[0])
    x_WxSxAxBxC = x_SxAxBxC.reshape(parts, -1, *x_SxAxBxC.shape[1:])
    if parts == 1:  # slices, where `vmap` would gather and scatter
        return function(x_WxSxAxBxC[0], *(x[0] for x in args))[None]
    return jax.vmap(function)(x_WxSxAxBxC, *args)


def _of_slots(cache: Cache, slot_W: jax.Array, length_W: jax.Array, span: int) -> Cache:
    """Returns the cache of one slot of each part."""

    def of(x_SxAxBxC: jax.Array, axis: int) -> jax.Array:
        def one(x_SxAxBxC, slot):
            size = [1, *x_SxAxBxC.shape[1:]]
            size[axis] = span
            return jax.lax.dynamic_slice(x_SxAxBxC, [slot, 0, 0, 0], size)[0]

        return _each(one, x_SxAxBxC, slot_W)

    # A copy, once and for all: else XLA reads again from what is written meanwhile, and copies.
    k_WxGxKxL, v_WxGxLxK = jax.lax.optimization_barrier(
        (of(cache.k_BxGxKxS, 3), of(cache.v_BxGxSxK, 2))
    )
    return Cache(k_BxGxKxS=k_WxGxKxL, v_BxGxSxK=v_WxGxLxK, length=length_W)


def _written(
    cache: Cache,
    new: Cache,
    slot_W: jax.Array,
    begin_W: jax.Array,
    t: int,
    writes_W: jax.Array | None = None,
) -> Cache:
    """Returns the cache with T positions of `new` (W rows) in slots, where a part writes."""

    def written(x_SxAxBxC: jax.Array, new_WxAxBxC: jax.Array, axis: int) -> jax.Array:
        def one(x_SxAxBxC, new_AxBxC, slot, begin, writes):
            start = [slot, 0, 0, 0]
            start[axis] = begin
            size = [1, *new_AxBxC.shape]
            size[axis] = t
            new_1xAxBxC = jax.lax.dynamic_slice(new_AxBxC[None], [0, *start[1:]], size)
            if len(slot_W) > 1:
                old_1xAxBxC = jax.lax.dynamic_slice(x_SxAxBxC, start, size)
                new_1xAxBxC = jnp.where(writes, new_1xAxBxC, old_1xAxBxC)
            return jax.lax.dynamic_update_slice(x_SxAxBxC, new_1xAxBxC, start)

        all_W = jnp.ones(len(slot_W), bool) if writes_W is None else writes_W
        y = _each(one, x_SxAxBxC, new_WxAxBxC, slot_W, begin_W, all_W)
        return y.reshape(x_SxAxBxC.shape)

    return Cache(
        k_BxGxKxS=written(cache.k_BxGxKxS, new.k_BxGxKxS, 3),
        v_BxGxSxK=written(cache.v_BxGxSxK, new.v_BxGxSxK, 2),
        length=jnp.zeros((), jnp.int32),
    )


def _likeliest(logits_SxV: jax.Array, listed: jax.Array) -> tuple[jax.Array, jax.Array]:
    n = min(LIKELIEST, logits_SxV.shape[1])

    def found() -> tuple[jax.Array, jax.Array]:
        top_SxN, token_SxN = jax.lax.top_k(logits_SxV, n)
        return token_SxN, top_SxN - jax.nn.logsumexp(logits_SxV, axis=-1, keepdims=True)

    def nothing() -> tuple[jax.Array, jax.Array]:
        shape = (len(logits_SxV), n)
        return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)

    return jax.lax.cond(listed, found, nothing)
