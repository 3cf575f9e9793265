"""How the next token is drawn."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lsm.checks import LARGEST, require

COLDEST = 1e-6
"""Lowest temperature but 0: logits divided by a lower one would not be finite."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """What the next token is drawn from; the fields act in this order, after the penalty.

    Attributes:
      temperature: logits are divided by it; 0, and what is below COLDEST, takes the likeliest token
        and ignores what follows.
      top_k: so many of the likeliest tokens stay, with those that tie with the last; None for all.
      top_p: of them, the likeliest whose probabilities first come to this (nucleus sampling,
        arXiv:1904.09751), with those that tie with the last.
      min_p: of them, those with at least this share of the likeliest's probability
        (arXiv:2407.01082).
      repetition_penalty: logits of tokens in the text so far are divided by it where positive, and
        multiplied where negative (CTRL, arXiv:1909.05858).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        require(self, temperature="[0, inf)", top_k=f"[1, {LARGEST}]", top_p="(0, 1]")
        require(self, min_p="[0, 1]", repetition_penalty="(0, inf)")


GREEDY = Sampling(temperature=0.0)
"""The likeliest token each time."""


class Draws(NamedTuple):
    """How each row is drawn: arrays, so that one program serves all ways.

    Attributes:
      temperature_B: float32; and so on, as in `Sampling`.
      top_k_B: int32; 0 for all.
      top_p_B: float32.
      min_p_B: float32.
      penalty_B: float32.
      seed_B: uint32; what a row draws is a function of its seed and the number of its token.
    """

    temperature_B: jax.Array
    top_k_B: jax.Array
    top_p_B: jax.Array
    min_p_B: jax.Array
    penalty_B: jax.Array
    seed_B: jax.Array

    @classmethod
    def of(cls, rows: Sequence[Sampling], seeds: Sequence[int]) -> "Draws":
        """Returns the arrays of rows, each with a seed of its own."""
        return cls(
            np.array([t if (t := row.temperature) >= COLDEST else 0 for row in rows], np.float32),
            np.array([row.top_k or 0 for row in rows], np.int32),
            np.array([row.top_p for row in rows], np.float32),
            np.array([row.min_p for row in rows], np.float32),
            np.array([row.repetition_penalty for row in rows], np.float32),
            np.array(seeds, np.int64).astype(np.uint32),
        )


def draw(
    logits_BxV: jax.Array, seen_BxV: jax.Array, draws: Draws, number_B: jax.Array
) -> jax.Array:
    """Returns the next token of each row, int32 (B,).

    Args:
      logits_BxV: float32.
      seen_BxV: bool, which tokens the text has already.
      draws: how each row is drawn.
      number_B: int32, how many tokens it has drawn before.
    """
    penalised_BxV = _penalised(logits_BxV, seen_BxV, draws.penalty_B)
    likeliest_B = penalised_BxV.argmax(-1).astype(jnp.int32)

    def drawn() -> jax.Array:
        noise_BxV = jax.vmap(_noise, (0, 0, None))(draws.seed_B, number_B, logits_BxV.shape[1])
        # The largest of log-probabilities plus Gumbel noise is a draw.
        found_B = (_kept(penalised_BxV, draws) + noise_BxV).argmax(-1).astype(jnp.int32)
        return jnp.where(draws.temperature_B > 0, found_B, likeliest_B)

    return jax.lax.cond((draws.temperature_B > 0).any(), drawn, lambda: likeliest_B)


def kept(logits_BxV: jax.Array, seen_BxV: jax.Array, draws: Draws) -> jax.Array:
    """Returns the logits (B, V) that are drawn from: -inf where a token cannot be drawn.

    Where the temperature is 0, that is all but the likeliest token.
    """
    penalised_BxV = _penalised(logits_BxV, seen_BxV, draws.penalty_B)
    first_BxV = jnp.arange(logits_BxV.shape[1]) == penalised_BxV.argmax(-1, keepdims=True)
    greedy_BxV = jnp.where(first_BxV, 0.0, -jnp.inf)
    return jnp.where(draws.temperature_B[:, None] > 0, _kept(penalised_BxV, draws), greedy_BxV)


def _penalised(logits_BxV: jax.Array, seen_BxV: jax.Array, penalty_B: jax.Array) -> jax.Array:
    def penalised() -> jax.Array:
        by_Bx1 = penalty_B[:, None]
        less_BxV = jnp.where(logits_BxV > 0, logits_BxV / by_Bx1, logits_BxV * by_Bx1)
        return jnp.where(seen_BxV, less_BxV, logits_BxV)

    return jax.lax.cond((penalty_B != 1).any(), penalised, lambda: logits_BxV)


def _kept(logits_BxV: jax.Array, draws: Draws) -> jax.Array:
    temperature_B = jnp.where(draws.temperature_B > 0, draws.temperature_B, 1)
    logits_BxV = logits_BxV / temperature_B[:, None]

    def filtered() -> jax.Array:
        # All filters take away the least likely: together they are one bound.
        sorted_BxV = jnp.sort(logits_BxV, axis=-1, descending=True)
        v = sorted_BxV.shape[1]
        last_B = jnp.where(draws.top_k_B > 0, jnp.minimum(draws.top_k_B, v), v) - 1
        bound_Bx1 = jnp.take_along_axis(sorted_BxV, last_B[:, None], axis=-1)
        top_BxV = jnp.where(sorted_BxV >= bound_Bx1, sorted_BxV, -jnp.inf)
        p_BxV = jax.nn.softmax(top_BxV)
        before_BxV = p_BxV.cumsum(-1) - p_BxV
        # A sum that rounding takes past 1 ends no row that wants all: another row asked for this.
        top_p_Bx1 = draws.top_p_B[:, None]
        inside_BxV = (before_BxV < top_p_Bx1) | (top_p_Bx1 == 1)
        # The likeliest always stays, whatever rounding makes of the sum.
        inside_BxV = inside_BxV.at[:, 0].set(True) & (top_BxV > -jnp.inf)
        bound_Bx1 = jnp.where(inside_BxV, sorted_BxV, jnp.inf).min(-1, keepdims=True)
        least_B = sorted_BxV[:, 0] + jnp.log(draws.min_p_B)
        return jnp.where(
            logits_BxV >= jnp.maximum(bound_Bx1, least_B[:, None]), logits_BxV, -jnp.inf
        )

    asked = (draws.top_k_B > 0) | (draws.top_p_B < 1) | (draws.min_p_B > 0)
    return jax.lax.cond(asked.any(), filtered, lambda: logits_BxV)


def _noise(seed: jax.Array, number: jax.Array, size: int) -> jax.Array:
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), seed), number)
    return jax.random.gumbel(key, (size,))
