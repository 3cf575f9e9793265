"""Slots of one cache, in which texts are read and written beside each other, each for itself."""

import functools
import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lsm.errors import ConfigError
from lsm.generate.cut import few, of_slots, with_few, written_in
from lsm.generate.decoding import Decoder, State, decoded, drawn_from
from lsm.generate.sampling import GREEDY, Draws
from lsm.mesh import batch_sharding, batch_ways, jit, replicated
from lsm.models.cache import Caches

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
    """What a step has drawn, in N slots.

    Attributes:
      slots: which they are.
      token_N: int32.
      log_probability_N: float32, the model's own of it, in nats: before temperature and filters.
      likeliest_NxM: int32, the likeliest tokens; zeros where nobody asked for them.
      log_probability_NxM: float32, of those.
    """

    slots: tuple[int, ...]
    token_N: jax.Array
    log_probability_N: jax.Array
    likeliest_NxM: jax.Array
    log_probability_NxM: jax.Array


class _Held(NamedTuple):
    """What lies on the devices: caches, whose lengths the host knows, and the tokens of texts."""

    cache: Any
    seen_SxV: jax.Array


class Slots:
    """A cache for so many texts of so many tokens, made once; every program writes it in place.

    Each slot is computed by itself: what is in one depends on no other. A step is of all slots, or
    of a few, and looks at all positions, or at the first ones; between such programs, results may
    differ by rounding. On a mesh, slots lie over "data" and "fsdp" in equal parts, heads over
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
          ConfigError: a number cannot be.
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

    @functools.cached_property
    def spans(self) -> tuple[int, ...]:
        """How many positions of the cache a program may look at: all, a quarter of that, ..."""
        spans = [self.length]
        while spans[-1] >= 4 * _LEAST_SPAN:
            spans.append(-(-spans[-1] // 4))
        return tuple(spans)

    @functools.cached_property
    def batches(self) -> tuple[int, ...]:
        """In how many slots a step may draw: all, a quarter of them, ...; on a mesh, all."""
        sizes = [self.count]
        while sizes[-1] > 1 and self.parts == 1:
            sizes.append(-(-sizes[-1] // 4))
        return tuple(sizes)

    def reset(self) -> None:
        """Makes the cache anew, with nothing in it."""
        self._held = self._last = None  # so that there are not two of them
        state = self.decoder.empty(self.length)(Rows.idle(self.count).draws, np.int32(0))
        self._held = _Held(state.cache, state.seen_BxV)
        rows = batch_sharding(self.decoder.mesh)
        self._last = jax.device_put(np.zeros(self.count, np.int32), rows)

    def compile(self) -> None:
        """Runs each program once, with every slot empty."""
        reads = {}  # one of each program: where it begins, and of how many tokens it is
        for begin in range(0, self.length, self.chunk):
            for count in range(1, min(self.chunk, self.length - begin) + 1):
                size = self.size(count, begin)
                reads.setdefault((self.span(begin + size), size), (begin, count))
        for begin, count in reads.values():
            self.read({0: (begin, np.zeros(count, np.int32))})
        self.copy(0, 0)
        self.clear(0)
        self.see(0, np.zeros(1, np.int32))
        for size, span in itertools.product(self.batches, self.spans):
            rows = Rows.idle(self.count)
            rows.length_S[:] = span - 1
            self.step(rows, range(size))
        self.reset()

    def part(self, slot: int) -> int:
        """Returns in which part a slot lies."""
        return slot // (self.count // self.parts)

    def size(self, tokens: int, begin: int) -> int:
        """Returns the size of the program that reads so many tokens from `begin` on.

        It depends on nothing else: a prompt is cut in the same way whoever is there.
        """
        least = min(_LEAST, self.chunk)
        size = max(least, 1 << (tokens - 1).bit_length())
        # Most prompts are one chunk, and somebody waits for it: a size between two powers as well.
        if begin == 0 and size > least and tokens <= size * 3 // 4:
            size = size * 3 // 4
        return min(size, self.chunk, self.length - begin)

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

    def clear(self, slot: int) -> None:
        """Writes zeros into a slot: a NaN there would reach texts that do not see it."""
        cache = self._clear(self._held.cache, np.int32(slot))
        self._held = self._held._replace(cache=cache)

    def see(self, slot: int, prompt: np.ndarray) -> None:
        """Says which tokens the text of a slot has, for the penalty of repetition."""
        seen_V = np.zeros(self.decoder.model.vocabulary, bool)
        seen_V[prompt] = True
        seen_SxV = self._see(self._held.seen_SxV, np.int32(slot), seen_V)
        self._held = self._held._replace(seen_SxV=seen_SxV)

    def step(self, rows: Rows, live: Collection[int], listed: bool = False) -> Chosen:
        """Draws a token in slots; of the others, what is past `length_S` may change.

        Args:
          rows: how, and after what, in every slot.
          live: the slots in which to.
          listed: whether to tell the likeliest tokens, too.
        """
        span = self.span(max(int(rows.length_S[slot]) for slot in live) + 1)
        size = min(size for size in self.batches if size >= len(live))
        others = (slot for slot in range(self.count) if slot not in live)
        slot_N = sorted([*live, *itertools.islice(others, size - len(live))])
        # Copies: the device may read them later than the host writes on.
        rows_N = jax.tree.map(lambda x: x[slot_N], rows)
        given = (self._held, self._last, np.array(slot_N, np.int32), rows_N, np.bool_(listed))
        self._held, self._last, *found = self._step[size, span](self.decoder.variables, *given)
        return Chosen(tuple(slot_N), *found)

    @functools.cached_property
    def _step(self) -> dict[tuple[int, int], Callable[..., tuple]]:
        """The programs by how many slots they are of, and at how many positions they look."""
        rows, whole = batch_sharding(self.decoder.mesh), replicated(self.decoder.mesh)
        held = _Held(self._placed, rows)
        given = Rows(self.decoder.placed[0].draws, rows, rows, rows)
        given = (self.decoder.held, held, rows, whole, given, whole)
        made = (held, rows, rows, rows, rows, rows)
        return {
            (size, span): self._jit(self._step_of(size, span), given, made, donate=(1,))
            for size, span in itertools.product(self.batches, self.spans)
        }

    def _step_of(self, size: int, span: int) -> Callable[..., tuple]:
        model = self.decoder.model

        def step(variables, held, last_S, slot_N, given: Rows, listed):
            if everyone := size == self.count:  # where they are; else a copy of their own
                slot_N = jnp.arange(size)
                cache = held.cache.filled(given.length_S).within(span)
            else:
                cache = Caches(few(one, slot_N, given.length_S, span) for one in held.cache)
            last_N, seen_NxV = (x if everyone else x[slot_N] for x in (last_S, held.seen_SxV))
            token_N = jnp.where(given.given_S < 0, last_N, given.given_S)
            logits, cache = decoded(model, variables, token_N[:, None], cache)
            state = State(
                cache=cache, draws=given.draws, seen_BxV=seen_NxV, number_B=given.number_S
            )
            state, drawn = drawn_from(state, logits[:, 0])
            found = *drawn, *_likeliest(logits[:, 0], listed)
            if everyone:
                cache = cache.filled(0).within(None)
                return _Held(cache, state.seen_BxV), drawn.token_B, *found
            cache = Caches(
                with_few(one, own, slot_N, given.length_S)
                for one, own in zip(held.cache, cache, strict=True)
            )
            seen_SxV = held.seen_SxV.at[slot_N].set(state.seen_BxV)
            return _Held(cache, seen_SxV), last_S.at[slot_N].set(drawn.token_B), *found

        return step

    @functools.cached_property
    def _read(self) -> Callable[..., Caches]:
        model = self.decoder.model

        def read(span, variables, cache, tokens_WxT, slot_W, begin_W, reads_W):
            own = Caches(of_slots(one, slot_W, begin_W, span) for one in cache)
            _, own = model.apply(variables, tokens_WxT, own, method="extend")
            t = tokens_WxT.shape[1]
            return Caches(
                written_in(one, new, slot_W, begin_W, t, reads_W)
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
                written_in(one, of_slots(one, source_W, nothing_W, room), target_W, nothing_W, room)
                for one in cache
            )

        given = (self._placed, batch_sharding(self.decoder.mesh))
        return self._jit(copy, given, self._placed, donate=(0,))

    @functools.cached_property
    def _clear(self) -> Callable[..., Caches]:
        def clear(cache, slot):
            return jax.tree.map(lambda x: x.at[slot].set(0) if x.ndim else x, cache)

        given = (self._placed, replicated(self.decoder.mesh))
        return self._jit(clear, given, self._placed, donate=(0,))

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


def _likeliest(logits_SxV: jax.Array, listed: jax.Array) -> tuple[jax.Array, jax.Array]:
    n = min(LIKELIEST, logits_SxV.shape[1])

    def found() -> tuple[jax.Array, jax.Array]:
        top_SxN, token_SxN = jax.lax.top_k(logits_SxV, n)
        return token_SxN, top_SxN - jax.nn.logsumexp(logits_SxV, axis=-1, keepdims=True)

    def nothing() -> tuple[jax.Array, jax.Array]:
        shape = (len(logits_SxV), n)
        return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)

    return jax.lax.cond(listed, found, nothing)
