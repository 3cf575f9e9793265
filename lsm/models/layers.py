"""Types of fields that several models have."""

from collections.abc import Callable
from typing import Literal

import jax

Dtype = Literal["float32", "bfloat16"]
"""Dtype of the computation; parameters are float32 whatever this says."""

Activation = Callable[[jax.Array], jax.Array]
"""An elementwise function such as `jax.nn.gelu`."""

Initializer = Callable[..., jax.Array]
"""(key, shape, dtype) -> array; those of `lsm.models.initializers` print and compare."""
