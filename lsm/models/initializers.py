"""Initialisers that a config can hold: frozen, comparable, printable, with the usual call."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax.nn import initializers

from lsm.checks import require


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Normal with mean 0.

    Attributes:
      std: standard deviation.
    """

    std: float = 0.02

    def __call__(self, key: jax.Array, shape, dtype) -> jax.Array:
        """Draws an array of `shape` and `dtype`."""
        return initializers.normal(self.std)(key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class Scaled:
    """Variance scaling: variance = scale / fan.

    Attributes:
      scale: numerator of the variance.
      fan: which count of units divides it.
      distribution: shape of the draw; "normal" is truncated at two deviations.
    """

    scale: float = 1.0
    fan: Literal["fan_in", "fan_out", "fan_avg"] = "fan_in"
    distribution: Literal["normal", "uniform"] = "normal"

    def __post_init__(self):
        require(self, scale="(0, inf)")

    def __call__(self, key: jax.Array, shape, dtype) -> jax.Array:
        """Draws an array of `shape` and `dtype`."""
        distribution = "truncated_normal" if self.distribution == "normal" else "uniform"
        # JAX widens the normal first, so that the variance is right after truncation.
        draw = initializers.variance_scaling(self.scale, self.fan, distribution)
        return draw(key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class Dirac:
    """Convolutions of which the first pass their input on: filter i is 1 at the centre of input i.

    Zagoruyko & Komodakis 2017 (arXiv:1706.00388), and Jordan 2024 (arXiv:2404.00498), where only as
    many filters as there are inputs are made so.

    Attributes:
      rest: initialiser of the other filters.
    """

    rest: Scaled = Scaled(scale=1 / 3, distribution="uniform")

    def __call__(self, key: jax.Array, shape, dtype) -> jax.Array:
        """Draws a kernel (H, W, inputs, outputs)."""
        (h, w, inputs, outputs), kernel = shape, self.rest(key, shape, dtype)
        passed = min(inputs, outputs)
        identity = jnp.zeros((h, w, inputs, passed), dtype)
        identity = identity.at[h // 2, w // 2].set(jnp.eye(inputs, passed, dtype=dtype))
        return kernel.at[..., :passed].set(identity)


LECUN = Scaled()
"""LeCun et al. 1998: variance 1 / fan_in."""

HE = Scaled(scale=2.0)
"""He et al. 2015 (arXiv:1502.01852): variance 2 / fan_in, for ReLU."""

XAVIER = Scaled(fan="fan_avg", distribution="uniform")
"""Glorot & Bengio 2010, the Keras default: variance 2 / (fan_in + fan_out), uniform."""

# Within +-a the variance of a uniform draw is a^2 / 3.
TORCH = Scaled(scale=1 / 3, distribution="uniform")
"""The PyTorch default for kernels: uniform within 1 / sqrt(fan_in)."""
