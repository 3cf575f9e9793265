"""Several tokens for one reading of the weights: a small model goes ahead, the large one checks."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lsm.checks import require_sizes
from lsm.errors import ConfigError
from lsm.generate.decoding import Decoder, Drawn, State, decoded
from lsm.generate.sampling import Draws, kept
from lsm.mesh import batch_ways, jit, replicated


class _Ahead(NamedTuple):
    """A text as both models have it, and what was drawn and not given out yet."""

    target: State
    draft: State
    last: jax.Array
    pending: list[Drawn]


@dataclasses.dataclass(frozen=True, eq=False)
class Speculative:
    """A decoder whose texts are those of `target`, in fewer steps of it, one text at a time.

    `draft` writes `ahead` tokens; `target` reads them all at once and takes as many as speculative
    sampling accepts, and one more of its own (Leviathan et al. 2022, arXiv:2211.17192). What is
    drawn has `target`'s distribution exactly, and with temperature 0 is the same text; other draws
    than without a draft come from the same seed.

    Attributes:
      target: the model whose texts are written.
      draft: a faster one with the same vocabulary.
      ahead: tokens that it goes ahead.
    """

    target: Decoder
    draft: Decoder
    ahead: int = 4

    def __post_init__(self):
        require_sizes(self, "ahead")
        if self.target.mesh != self.draft.mesh or batch_ways(self.target.mesh) > 1:
            raise ConfigError(
                "Speculative: target and draft lie on other devices, or rows over several; both "
                "are needed on one mesh without data or fsdp."
            )
        sizes = [decoder.model.vocabulary for decoder in (self.target, self.draft)]
        if sizes[0] != sizes[1]:
            raise ConfigError(
                f"Speculative.draft: its vocabulary has {sizes[1]} tokens, the target's {sizes[0]}."
            )

    @property
    def context(self) -> int | None:
        """As `Decoder.context`; the draft runs ahead within it."""
        known = [d.context for d in (self.target, self.draft) if d.context is not None]
        return min(known) - self.ahead if known else None

    @property
    def vocabulary(self) -> int:
        """As `Decoder.vocabulary`."""
        return self.target.vocabulary

    def start(
        self,
        prompts: Sequence[np.ndarray],
        longest: int,
        draws: Draws,
        number: int = 0,
        forgotten: Sequence[Sequence[int]] = (),
    ) -> tuple[_Ahead, Drawn]:
        """As `Decoder.start`.

        Raises:
          ConfigError: there are several prompts, or one is too long.
        """
        if len(prompts) != 1:
            raise ConfigError(f"Speculative: {len(prompts)} texts given; one at a time is written.")
        given = prompts, longest + self.ahead, draws, number, forgotten
        target, first = self.target.start(*given)
        draft, _ = self.draft.start(*given)
        return _Ahead(target, draft, first.token_B, []), first

    def step(self, state: _Ahead, drawn: Drawn) -> tuple[_Ahead, Drawn]:
        """As `Decoder.step`; most steps give out what was drawn already."""
        del drawn
        if not state.pending:
            target, draft, tokens_N, log_p_N, count = self._round(
                self.target.variables, self.draft.variables, *state[:3]
            )
            few = range(int(count))
            pending = [Drawn(tokens_N[n, None], log_p_N[n, None]) for n in few]
            state = _Ahead(target, draft, pending[-1].token_B, pending)
        return state, state.pending.pop(0)

    @functools.cached_property
    def _round(self) -> Callable[..., Any]:
        decode = functools.partial(decoded, self.target.model)
        draft = functools.partial(decoded, self.draft.model)
        turn = functools.partial(_turn, decode, draft, self.ahead)
        (state, drawn), (draft_state, _) = self.target.placed, self.draft.placed
        whole = replicated(self.target.mesh)
        return jit(
            turn,
            in_shardings=(self.target.held, self.draft.held, state, draft_state, drawn.token_B),
            out_shardings=(state, draft_state, whole, whole, whole),
            donate=(2, 3),
            mesh=self.target.mesh,
        )


def _turn(decode, draft, ahead, variables, draft_variables, state, draft_state, token_1):
    """Returns both states after a turn, the tokens (ahead + 1,) of which `count` are drawn."""
    key = jax.random.fold_in(jax.random.key(1), state.draws.seed_B[0])
    key = jax.random.fold_in(key, state.number_B[0])

    def guess(held, place):
        cache, token_1, seen_1xV = held
        logits, cache = draft(draft_variables, token_1[:, None], cache)
        logits_1xV = kept(logits[:, 0], seen_1xV, state.draws)
        next_1 = jax.random.categorical(jax.random.fold_in(key, place), logits_1xV)
        next_1 = next_1.astype(jnp.int32)
        after_1xV = seen_1xV.at[0, next_1[0]].set(True)
        return (cache, next_1, after_1xV), (next_1[0], logits_1xV[0], seen_1xV[0])

    # One more than is checked: its cache must hold the last token too, where all are taken.
    begin = draft_state.cache, token_1, state.seen_BxV
    (draft_cache, *_), (guess_N, draft_NxV, seen_NxV) = jax.lax.scan(
        guess, begin, jnp.arange(ahead + 1)
    )
    read_1xN = jnp.concatenate([token_1, guess_N[:-1]])[None]
    logits, cache = decode(variables, read_1xN, state.cache)
    rows = jax.tree.map(lambda x: jnp.repeat(x, ahead + 1, axis=0), state.draws)
    p_NxV = jax.nn.softmax(kept(logits[0], seen_NxV, rows))
    q_NxV = jax.nn.softmax(draft_NxV)

    at_N = jnp.arange(ahead + 1)
    u_N = jax.random.uniform(jax.random.fold_in(key, ahead + 1), (ahead + 1,))
    taken_N = (u_N * q_NxV[at_N, guess_N] < p_NxV[at_N, guess_N]) & (at_N < ahead)
    count = jnp.cumprod(taken_N).sum()
    # Behind the last that is taken: what the draft gave too little of; behind all, the target's.
    rest_V = jnp.where(count < ahead, jnp.maximum(p_NxV[count] - q_NxV[count], 0), p_NxV[count])
    own = jax.random.categorical(jax.random.fold_in(key, ahead + 2), jnp.log(rest_V))
    tokens_N = jnp.where(at_N < count, guess_N, own.astype(jnp.int32))
    log_p_N = jax.nn.log_softmax(logits[0])[at_N, tokens_N]

    length = state.cache.length + count + 1  # the token before these, and what was taken
    seen_BxV = state.seen_BxV.at[0, tokens_N].max(at_N <= count)
    number_B = state.number_B + count + 1
    draft_cache = draft_cache.filled(length)
    state = dataclasses.replace(
        state, cache=cache.filled(length), seen_BxV=seen_BxV, number_B=number_B
    )
    draft_state = dataclasses.replace(draft_state, cache=draft_cache)
    return state, draft_state, tokens_N, log_p_N, count + 1
