"""Beam search: the likeliest continuation that a search of limited breadth finds.

A model takes part as a function that decodes: (tokens (N, 1), cache) -> (logits (N, 1, V), cache).
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from lsm.checks import require


class Branching(Protocol):
    """What a cache must be able to do; `lsm.models.Cache` is one."""

    def branched(self, parents_BxK: jax.Array) -> "Branching":
        """Returns the cache of K hypotheses for each of B rows, in rows b x K + k.

        Each goes on from hypothesis `parents_BxK[b, k]` of the same b; there is one at first.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beam:
    """How texts are searched for.

    Hypotheses are compared by log P / lp, where lp = ((5 + n) / 6)^length_penalty is GNMT's length
    penalty of n tokens (Wu et al. 2016, arXiv:1609.08144, equation 14, without coverage); the end
    token counts as one.

    Attributes:
      size: hypotheses that are kept; 1 takes the likeliest token each time (greedy).
      length_penalty: 0 compares log-probabilities, which favours short texts; 1 is nearly their
        mean over tokens.
      longest: tokens at the most, the end token among them.
    """

    size: int = 4
    length_penalty: float = 0.6
    longest: int = 64

    def __post_init__(self):
        require(self, size="[1, inf)", length_penalty="[0, inf)", longest="[1, inf)")

    def penalty(self, length: int | jax.Array) -> float | jax.Array:
        """Returns lp of so many tokens."""
        return ((5 + length) / 6) ** self.length_penalty


class Found(NamedTuple):
    """The best hypothesis of each row.

    Attributes:
      tokens_BxT: int32, the end token its last, and 0 behind it; T is `Beam.longest`.
      length_B: int32, tokens with the end token. A text that came to no end is `longest`.
      log_probability_B: float32, log P in nats, without the penalty.
    """

    tokens_BxT: jax.Array
    length_B: jax.Array
    log_probability_B: jax.Array

    def or_better(self, other: "Found", better_B: jax.Array) -> "Found":
        """Returns this, and in the rows that say so the other."""
        return Found(
            *(
                jnp.where(better_B.reshape(-1, *[1] * (mine.ndim - 1)), theirs, mine)
                for mine, theirs in zip(self, other, strict=True)
            )
        )


class _State(NamedTuple):
    """The search after `step` tokens; -inf stands for a hypothesis that is none."""

    step: jax.Array
    cache: Branching
    logits_BxKxV: jax.Array
    tokens_BxKxT: jax.Array
    log_p_BxK: jax.Array
    found: Found
    ended_B: jax.Array  # hypotheses that have come to their end
    done_B: jax.Array


def beam_search(
    decode: Callable[[jax.Array, Branching], tuple[jax.Array, Branching]],
    logits_BxV: jax.Array,
    cache: Branching,
    end: int,
    beam: Beam,
) -> Found:
    """Returns the best continuation of each row that the search finds.

    Each step takes the 2 K best of all K x V continuations. Those of the best K that end are put
    aside; the best K of the others go on. A row is done when K have ended, or when none that goes
    on can beat the best of these, and then nothing changes it any more: rows do not depend on each
    other. If none has ended after `beam.longest` tokens, the best that goes on is taken.

    Args:
      decode: maps the next tokens (B x K, 1) and a cache to logits (B x K, 1, V), and the cache
        with them.
      logits_BxV: of the first token, after what was given (a begin token, a prompt).
      cache: of what was given, a row each; with room for `beam.longest` tokens more.
      end: the token that ends a text.
      beam: size and length penalty.
    """
    (b, v), k = logits_BxV.shape, beam.size
    started_BxK = jnp.broadcast_to(jnp.where(jnp.arange(k) == 0, 0.0, -jnp.inf), (b, k))
    tokens_BxKxT = jnp.zeros((b, k, beam.longest), jnp.int32)
    nothing = Found(tokens_BxKxT[:, 0], jnp.zeros(b, jnp.int32), jnp.full(b, -jnp.inf))
    state = _State(
        step=jnp.int32(0),
        cache=cache.branched(jnp.zeros((b, k), jnp.int32)),
        logits_BxKxV=jnp.broadcast_to(logits_BxV[:, None], (b, k, v)),
        tokens_BxKxT=tokens_BxKxT,
        log_p_BxK=started_BxK,
        found=nothing,
        ended_B=jnp.zeros(b, jnp.int32),
        done_B=jnp.zeros(b, bool),
    )

    def unfinished(state: _State) -> jax.Array:
        return (state.step < beam.longest) & ~state.done_B.all()

    def turn(state: _State) -> _State:
        state, parents_BxK = _chosen(state, end, beam)
        new_BxK = jnp.take(state.tokens_BxKxT, state.step - 1, axis=-1)
        logits, cache = decode(new_BxK.reshape(b * k, 1), state.cache.branched(parents_BxK))
        return state._replace(logits_BxKxV=logits.reshape(b, k, v), cache=cache)

    state = jax.lax.while_loop(unfinished, turn, state)
    best = Found(state.tokens_BxKxT[:, 0], jnp.full(b, beam.longest), state.log_p_BxK[:, 0])
    return state.found.or_better(best, state.ended_B == 0)


def _chosen(state: _State, end: int, beam: Beam) -> tuple[_State, jax.Array]:
    """Returns the state with one token more, but for the model, and whom each hypothesis is of."""
    (b, k, v), step = state.logits_BxKxV.shape, state.step
    log_p_BxKxV = state.log_p_BxK[..., None] + jax.nn.log_softmax(state.logits_BxKxV)
    log_p_BxN, where_BxN = jax.lax.top_k(log_p_BxKxV.reshape(b, k * v), 2 * k)
    parents_BxN, new_BxN = where_BxN // v, where_BxN % v
    tokens_BxNxT = jnp.take_along_axis(state.tokens_BxKxT, parents_BxN[..., None], axis=1)
    tokens_BxNxT = tokens_BxNxT.at[..., step].set(new_BxN)
    ends_BxN = new_BxN == end

    # All that end now are equally long, and the first is the likeliest.
    ended_BxN = ends_BxN & (jnp.arange(2 * k) < k) & (log_p_BxN > -jnp.inf)
    first_B = ended_BxN.argmax(1)
    best = Found(
        _pick(tokens_BxNxT, first_B[:, None])[:, 0],
        jnp.full(b, step + 1),
        _pick(log_p_BxN, first_B[:, None])[:, 0],
    )
    better_B = ended_BxN.any(1) & ~state.done_B & (_score(best, beam) > _score(state.found, beam))
    found = state.found.or_better(best, better_B)
    ended_B = state.ended_B + jnp.where(state.done_B, 0, ended_BxN.sum(1))

    # A stable sort: those that do not end come first, in their order.
    live_BxK = jnp.argsort(ends_BxN, axis=1, stable=True)[:, :k]
    log_p_BxK = _pick(log_p_BxN, live_BxK)
    # Log P only falls, and no penalty is greater than that of the longest.
    most_B = log_p_BxK[:, 0] / beam.penalty(beam.longest)
    done_B = state.done_B | (ended_B >= k) | (_score(found, beam) >= most_B)
    state = state._replace(
        step=step + 1,
        tokens_BxKxT=_pick(tokens_BxNxT, live_BxK),
        log_p_BxK=log_p_BxK,
        found=found,
        ended_B=ended_B,
        done_B=done_B,
    )
    return state, _pick(parents_BxN, live_BxK)


def _score(found: Found, beam: Beam) -> jax.Array:
    return found.log_probability_B / beam.penalty(found.length_B)


def _pick(x_BxN: jax.Array, which_BxK: jax.Array) -> jax.Array:
    """Returns (B, K, ...): of each row those of the N that `which_BxK` says."""
    which = which_BxK.reshape(*which_BxK.shape, *[1] * (x_BxN.ndim - 2))
    return jnp.take_along_axis(x_BxN, which, axis=1)
