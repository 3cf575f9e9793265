"""Metrics as (sum, weight) pairs, so that any way of splitting a batch gives the same mean."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Weighted(NamedTuple):
    """A weighted sum and its total weight; the value is their quotient.

    Sums add over micro-batches, devices, hosts and evaluation batches, so accumulation,
    padding and masking leave the mean exact. Both are float32 scalars.
    """

    sum: jax.Array
    weight: jax.Array

    @property
    def mean(self) -> jax.Array:
        """sum / weight, and 0 where nothing was weighed."""
        return self.sum / jnp.where(self.weight == 0, 1, self.weight)


def weigh(values: jax.Array, weights: jax.Array | None = None) -> Weighted:
    """Returns the weighted sum of `values`; `weights` broadcasts to them and defaults to ones."""
    values = values.astype(jnp.float32)
    if weights is None:
        return Weighted(values.sum(), jnp.float32(values.size))
    weights = jnp.broadcast_to(weights, values.shape).astype(jnp.float32)
    # An example of weight 0 may hold anything, a NaN included: it must not reach the sum.
    return Weighted((jnp.where(weights == 0, 0, values) * weights).sum(), weights.sum())


def accuracy(logits_BxK: jax.Array, labels_B: jax.Array, weights: jax.Array | None) -> Weighted:
    """Share of examples whose largest logit is the label; any leading dimensions."""
    return weigh(logits_BxK.argmax(-1) == labels_B, weights)
