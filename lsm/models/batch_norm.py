"""Batch norm whose gradient is in closed form."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsm.checks import require
from lsm.cpu import mean_of_rows
from lsm.models.layers import Dtype


class BatchNorm(nn.Module):
    """Batch norm (Ioffe & Szegedy 2015, arXiv:1502.03167); `nn.BatchNorm` in half its time.

    Mean and variance are those of the whole batch, on however many devices it lies. Variables have
    the names of `nn.BatchNorm`'s.

    Attributes:
      momentum: share of the running statistics that stays at a step; PyTorch counts what goes.
      epsilon: added to the variance.
      use_scale: whether each channel has a factor; it always has a bias.
      scale_init: initialiser of the factors.
      dtype: dtype of the result; all else is float32.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: Dtype = "float32"

    def __post_init__(self):
        require(self, momentum="[0, 1)", epsilon="[0, inf)")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns x (..., C) with mean 0 and variance 1 over the batch, scaled and shifted."""
        shape_C = x.shape[-1:]
        scale_C = self.param("scale", self.scale_init, shape_C) if self.use_scale else jnp.ones(1)
        bias_C = self.param("bias", nn.initializers.zeros, shape_C)
        means = self.variable("batch_stats", "mean", jnp.zeros, shape_C)
        variances = self.variable("batch_stats", "var", jnp.ones, shape_C)
        if not train:
            factor_C = jax.lax.rsqrt(variances.value + self.epsilon) * scale_C
            return ((x - means.value) * factor_C + bias_C).astype(self.dtype)
        scale_C = jnp.broadcast_to(scale_C, shape_C)
        y, mean_C, variance_C = normalized(x, scale_C, bias_C, self.epsilon)
        if not self.is_initializing():
            for held, new_C in ((means, mean_C), (variances, variance_C)):
                held.value = self.momentum * held.value + (1 - self.momentum) * new_C
        return y.astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalized(
    x: jax.Array, scale_C: jax.Array, bias_C: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns x (..., C) normalised, scaled and shifted in float32; the mean; the variance (C,).

    Its gradient is that of the first result alone, in the closed form of the paper: half the time
    of what JAX derives.
    """
    return _forward(x, scale_C, bias_C, epsilon)[0]


def _forward(x: jax.Array, scale_C: jax.Array, bias_C: jax.Array, epsilon: float) -> Any:
    x_NxC = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    mean_C = mean_of_rows(x_NxC)
    # In one pass over x; below 0 it falls by rounding alone.
    variance_C = jnp.maximum(mean_of_rows(x_NxC**2) - mean_C**2, 0)
    factor_C = jax.lax.rsqrt(variance_C + epsilon)
    y_NxC = (x_NxC - mean_C) * (factor_C * scale_C) + bias_C
    return (y_NxC.reshape(x.shape), mean_C, variance_C), (x, mean_C, factor_C, scale_C)


def _backward(epsilon: float, saved: Any, gradients: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    (x, mean_C, factor_C, scale_C), (g, _, _) = saved, gradients
    g_NxC = g.reshape(-1, g.shape[-1])
    x_NxC = (x.reshape(g_NxC.shape).astype(jnp.float32) - mean_C) * factor_C
    bias_C, along_C = mean_of_rows(g_NxC), mean_of_rows(g_NxC * x_NxC)
    dx_NxC = (factor_C * scale_C) * (g_NxC - bias_C - x_NxC * along_C)
    n = len(g_NxC)
    return dx_NxC.reshape(x.shape).astype(x.dtype), n * along_C, n * bias_C


normalized.defvjp(_forward, _backward)
