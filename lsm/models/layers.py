"""Blocks that several models share."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

Dtype = Literal["float32", "bfloat16"]
"""Dtype of the computation; parameters are float32 whatever this says."""

Activation = Callable[[jax.Array], jax.Array]
"""An elementwise function such as `jax.nn.gelu`."""

Initializer = Callable[..., jax.Array]
"""(key, shape, dtype) -> array; those of `lsm.models.initializers` print and compare."""


def max_pool_2x2(x_BxHxWxC: jax.Array) -> jax.Array:
    """Max over disjoint 2x2 windows; a last odd row or column is dropped (VALID).

    Written as reshape + max because the gradient of `reduce_window` costs XLA's CPU back end
    ten times as much. Where values tie, the gradient is shared evenly among them instead of
    going to the first: another subgradient of the same function.
    """
    b, h, w, c = x_BxHxWxC.shape
    x_BxHxWxC = x_BxHxWxC[:, : h // 2 * 2, : w // 2 * 2]
    return jnp.max(x_BxHxWxC.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))
