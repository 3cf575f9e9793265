"""Frequencies of rotary positions (arXiv:2104.09864), and rescaling for longer texts."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from lsm.checks import require
from lsm.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearRescale:
    """All frequencies divided by one number (arXiv:2306.15595; Gemma 3's global blocks).

    Attributes:
      factor: by which a text may be longer.
    """

    factor: float

    def __post_init__(self):
        require(self, factor="(0, inf)")

    def rescaled(self, frequency_F: jax.Array) -> jax.Array:
        """Returns frequencies (F,) rescaled."""
        return frequency_F / self.factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Rescale:
    """Low frequencies divided by a number, high ones not, those between in between (Llama 3.1).

    A frequency goes by how often it turns within `context` (arXiv:2407.21783).

    Attributes:
      factor: by which a text may be longer.
      low: turns up to which frequencies are divided.
      high: turns from which they stay.
      context: length of the texts that were learnt from before.
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    context: int = 8192

    def __post_init__(self):
        require(self, factor="(0, inf)", low="(0, inf)", high="(0, inf)", context="[1, inf)")
        if self.high <= self.low:
            raise ConfigError(
                f"Llama3Rescale.high: {self.high} given; allowed: above low, {self.low}."
            )

    def rescaled(self, frequency_F: jax.Array) -> jax.Array:
        """Returns frequencies (F,) rescaled."""
        turns_F = self.context * frequency_F / (2 * math.pi)
        kept_F = jnp.clip((turns_F - self.low) / (self.high - self.low), 0, 1)
        return (1 - kept_F) * frequency_F / self.factor + kept_F * frequency_F


def frequencies(
    width: int, theta: float, rescale: LinearRescale | Llama3Rescale | None = None
) -> jax.Array:
    """Returns theta^(-2i/K) for each pair of a head of `width` K, rescaled: float32 (K / 2,)."""
    frequency_F = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    return frequency_F if rescale is None else rescale.rescaled(frequency_F)
