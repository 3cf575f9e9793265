"""Prompts in, tokens out one by one: two pure functions, compiled once for each size of room."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lsm.errors import ConfigError
from lsm.generate.sampling import Draws, draw
from lsm.mesh import BATCH_AXES, Mesh, batch_sharding, batch_ways, jit, make_mesh, replicated
from lsm.models.experts import dropless
from lsm.models.stack import unstacked

_CHUNK = 512
"""Tokens of a prompt that go through the model at a time: a bound of memory."""
_LEAST = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """Texts that are being written.

    Attributes:
      cache: of all tokens but the last of each row.
      draws: how each row is drawn.
      seen_BxV: bool, the tokens of prompt and text.
      number_B: int32, how many were drawn.
    """

    cache: Any
    draws: Draws
    seen_BxV: jax.Array
    number_B: jax.Array


class Drawn(NamedTuple):
    """The last token of each text.

    Attributes:
      token_B: int32.
      log_probability_B: float32, the model's own of it, in nats: before temperature and filters.
    """

    token_B: jax.Array
    log_probability_B: jax.Array


class Decoder:
    """A model with its parameters as tokens are written: an array for each block.

    It holds a copy of the blocks' parameters, since each cut out of the stack at every token would
    be read twice.

    Attributes:
      model: with the methods `cache`, `extend` and `logits` of `lsm.models.GPT`; experts drop no
        token here, whatever their capacity.
      variables: its variables; "blocks" are a tuple.
      mesh: where they lie.
      held: their shardings.
    """

    def __init__(self, model: Any, variables: Any, mesh: jax.sharding.Mesh | None = None):
        """Takes a model's variables, as they lie on `mesh`; None is one device."""
        # Else what an expert drops would go by how prompts are cut, and by who is beside them.
        self.model = dropless(model)
        self.mesh = mesh or make_mesh(Mesh(), jax.devices()[:1])
        self.variables = _by_block(jax.tree.map(jnp.asarray, variables))
        self.held = jax.tree.map(lambda x: x.sharding, self.variables)

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows."""
        return self.model.vocabulary

    @property
    def context(self) -> int | None:
        """Tokens of prompt and text together, at the most; None where there is no bound."""
        return getattr(self.model, "context", None)

    def start(
        self,
        prompts: Sequence[np.ndarray],
        longest: int,
        draws: Draws,
        number: int = 0,
        forgotten: Sequence[Sequence[int]] = (),
    ) -> tuple[State, Drawn]:
        """Returns the state after prompts (n,) int of any lengths, and the first token of each.

        Args:
          prompts: at least a token each; with `longest`, no longer than `context`.
          longest: tokens that will be drawn at the most.
          draws: how, of each row.
          number: how many tokens were drawn before, of texts that go on.
          forgotten: ids of each before its prompt, which are not read, but were seen.

        Raises:
          ConfigError: the longest text would be longer than `context`.
        """
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        needed = int(lengths.max()) + longest
        if self.context is not None and needed > self.context:
            raise ConfigError(
                f"generate: {lengths.max()} tokens given and {longest} to come, where the model's "
                f"context is {self.context}."
            )
        # The next power of two: few programs, however long prompts are.
        room = max(_LEAST, 1 << (needed - 1).bit_length())
        room = room if self.context is None else min(room, self.context)
        extra = -len(prompts) % batch_ways(self.mesh)
        rows = [*range(len(prompts)), *[0] * extra]  # all devices have as many
        lengths, draws = lengths[rows], jax.tree.map(lambda x: x[rows], draws)
        tokens_BxT = np.zeros((len(rows), lengths.max()), np.int32)
        for row, given in enumerate(rows):
            tokens_BxT[row, : lengths[row]] = prompts[given]
        state = self.empty(room)(draws, np.int32(number))
        if any(forgotten):
            seen_BxV = np.zeros(state.seen_BxV.shape, bool)
            for row, given in enumerate(rows):
                seen_BxV[row, forgotten[given]] = True
            state = dataclasses.replace(state, seen_BxV=jax.device_put(seen_BxV, self._rows))
        last_BxD = None
        for begin, chunk_BxT in _chunks(tokens_BxT, room):
            given = (state, last_BxD, chunk_BxT, lengths, np.int32(begin))
            state, last_BxD = self._extend(self.variables, *given)
        return self._begin(self.variables, state, last_BxD, lengths)

    def step(self, state: State, drawn: Drawn) -> tuple[State, Drawn]:
        """Returns what is so with `drawn`, and the next token; the old state's arrays are taken."""
        return self._step(self.variables, state, drawn)

    @property
    def _whole(self) -> jax.sharding.NamedSharding:
        return replicated(self.mesh)

    @property
    def _rows(self) -> jax.sharding.NamedSharding:
        return batch_sharding(self.mesh)

    @functools.cached_property
    def placed(self) -> tuple[State, Drawn]:
        """The shardings of what a step takes and gives."""
        kept = jax.NamedSharding(self.mesh, jax.P(BATCH_AXES, "tensor"))
        cache, rows = jax.eval_shape(lambda: self.model.cache(1, 1)), self._rows
        state = State(
            cache=jax.tree.map(lambda x: kept if x.ndim == 4 else self._whole, cache),
            draws=Draws(*[rows] * len(Draws._fields)),
            seen_BxV=rows,
            number_B=rows,
        )
        return state, Drawn(rows, rows)

    @functools.cached_property
    def empty(self) -> Callable[[int], Callable[..., State]]:
        """Returns, by room, what makes the state of nothing, of `Draws` and the number before."""

        def empty(room: int, draws: Draws, number: jax.Array) -> State:
            rows = len(draws.seed_B)
            return State(
                cache=self.model.cache(rows, room),
                draws=draws,
                seen_BxV=jnp.zeros((rows, self.model.vocabulary), bool),
                number_B=jnp.full(rows, number, jnp.int32),
            )

        def of(room: int) -> Callable[..., State]:
            state, _ = self.placed
            return self._jit(functools.partial(empty, room), (state.draws, self._whole), state)

        return functools.cache(of)

    @functools.cached_property
    def _extend(self) -> Any:
        """One chunk of the prompts more."""

        def extend(variables, state, last_BxD, tokens_BxT, lengths_B, begin):
            x_BxTxD, cache = self.model.apply(variables, tokens_BxT, state.cache, method="extend")
            place_B = lengths_B - 1 - begin
            here_B = (place_B >= 0) & (place_B < tokens_BxT.shape[1])
            at_Bx1x1 = jnp.clip(place_B, 0, tokens_BxT.shape[1] - 1)[:, None, None]
            found_BxD = jnp.take_along_axis(x_BxTxD, at_Bx1x1, axis=1)[:, 0]
            if last_BxD is not None:
                found_BxD = jnp.where(here_B[:, None], found_BxD, last_BxD)
            real_BxT = begin + jnp.arange(tokens_BxT.shape[1]) < lengths_B[:, None]
            rows_Bx1 = jnp.arange(len(tokens_BxT))[:, None]
            seen_BxV = state.seen_BxV.at[rows_Bx1, tokens_BxT].max(real_BxT)
            return dataclasses.replace(state, cache=cache, seen_BxV=seen_BxV), found_BxD

        (state, _), rows = self.placed, self._rows
        given = (self.held, state, rows, rows, rows, self._whole)
        return self._jit(extend, given, (state, rows), donate=(1,))

    @functools.cached_property
    def _begin(self) -> Any:
        """The first token after the prompts."""

        def begin(variables, state, last_BxD, lengths_B):
            state = dataclasses.replace(state, cache=state.cache.filled(lengths_B))
            logits = self.model.apply(variables, last_BxD[:, None], method="logits")
            return drawn_from(state, logits[:, 0])

        given = (self.held, self.placed[0], self._rows, self._rows)
        return self._jit(begin, given, self.placed, donate=(1,))

    @functools.cached_property
    def _step(self) -> Any:
        def step(variables, state, drawn):
            token_Bx1 = drawn.token_B[:, None]
            logits, cache = decoded(self.model, variables, token_Bx1, state.cache)
            return drawn_from(dataclasses.replace(state, cache=cache), logits[:, 0])

        return self._jit(step, (self.held, *self.placed), self.placed, donate=(1,))

    def _jit(self, function: Callable, given: Any, made: Any, donate: Sequence[int] = ()) -> Any:
        # Programs for "many" calls gain nothing here, and on some CPUs are not kept between runs.
        options = {"in_shardings": given, "out_shardings": made, "mesh": self.mesh}
        return jit(function, **options, donate=donate, calls="some")


def decoded(model: Any, variables: Any, tokens_BxT: jax.Array, cache: Any) -> tuple[Any, Any]:
    """Returns the logits (B, T, V) of what comes after the next tokens, and the cache with them."""

    def extended(module: Any) -> tuple[Any, Any]:
        x_BxTxD, after = module.extend(tokens_BxT, cache)
        return module.logits(x_BxTxD), after

    return model.apply(variables, method=extended)


def _by_block(variables: Any) -> Any:
    """Variables whose stacked blocks are a tuple of each block's."""
    if not isinstance(variables, Mapping):
        return variables
    return {
        name: unstacked(x) if name == "blocks" else _by_block(x) for name, x in variables.items()
    }


def _chunks(tokens_BxT: np.ndarray, room: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields where each chunk begins, and it, of a few sizes: powers of two up to `_CHUNK`."""
    begin, length = 0, tokens_BxT.shape[1]
    while begin < length:
        size = min(_CHUNK, max(_LEAST, 1 << (length - begin - 1).bit_length()), room - begin)
        chunk = tokens_BxT[:, begin : begin + size]
        yield begin, np.pad(chunk, ((0, 0), (0, size - chunk.shape[1])))
        begin += size


def drawn_from(state: State, logits_BxV: jax.Array) -> tuple[State, Drawn]:
    """Returns the token drawn from the logits of each row, and the state that has seen it."""
    token_B = draw(logits_BxV, state.seen_BxV, state.draws, state.number_B)
    chosen_B = jnp.take_along_axis(logits_BxV, token_B[:, None], axis=1)[:, 0]
    seen_BxV = state.seen_BxV.at[jnp.arange(len(token_B)), token_B].set(True)
    state = dataclasses.replace(state, seen_BxV=seen_BxV, number_B=state.number_B + 1)
    return state, Drawn(token_B, chosen_B - jax.nn.logsumexp(logits_BxV, axis=-1))
