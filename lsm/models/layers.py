"""What several models share: types of fields, stochastic depth, where activations lie."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from lsm.errors import ConfigError
from lsm.mesh import BATCH_AXES, constrain, ways

Dtype = Literal["float32", "bfloat16"]
"""Dtype of the computation; parameters are float32 whatever this says."""

Activation = Callable[[jax.Array], jax.Array]
"""An elementwise function such as `jax.nn.gelu`."""

Initializer = Callable[..., jax.Array]
"""(key, shape, dtype) -> array; those of `lsm.models.initializers` print and compare."""


def require_pixels(x_BxHxWxC: jax.Array, given_BxHxWxC: jax.Array, model: str) -> None:
    """Raises ConfigError where stages have left nothing of the pictures that were given."""
    if 0 in x_BxHxWxC.shape[1:3]:
        h, w = given_BxHxWxC.shape[1:3]
        raise ConfigError(
            f"{model}: nothing is left of pictures of {h} x {w}; fewer stages, or larger pictures "
            "are needed."
        )


def drop_examples(x: jax.Array, rate: float | jax.Array, key: jax.Array) -> jax.Array:
    """Sets x (B, ...) of whole examples to 0, a share `rate` of them; the others grow as much.

    Stochastic depth (Huang et al. 2016, arXiv:1603.09382), on what a layer adds to its input.
    """
    kept = jax.random.bernoulli(key, 1 - rate, (len(x), *[1] * (x.ndim - 1)))
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def inside(x_BxTxD: jax.Array) -> jax.Array:
    """Placed for products that are split over "tensor"."""
    return constrain(x_BxTxD, BATCH_AXES, "sequence", None)


def between(x_BxTxD: jax.Array) -> jax.Array:
    """Placed for norms, sums and what the backward pass keeps: split by positions.

    Devices along "tensor" would else hold the same (Korthikanti et al. 2022, arXiv:2205.05198).
    """
    split = ("sequence", "tensor")
    fits = x_BxTxD.shape[1] % ways(*split) == 0
    return constrain(x_BxTxD, BATCH_AXES, split if fits else "sequence", None)
