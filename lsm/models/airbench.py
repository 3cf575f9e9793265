"""The network of the fast CIFAR runs: whitening, three groups of convolutions, a head."""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsm.checks import require, require_sizes
from lsm.cpu import conv, max_pool_2x2
from lsm.mesh import Fsdp, Layout, Rule
from lsm.models.batch_norm import BatchNorm
from lsm.models.initializers import TORCH, Dirac, Scaled
from lsm.models.layers import Dtype, require_pixels


class Airbench(nn.Module):
    """Network of airbench94 (Jordan 2024, arXiv:2404.00498; KellerJordan/cifar10-airbench).

    A whitening convolution and GELU; groups of [conv 3x3, pool 2, norm, GELU, conv 3x3, norm,
    GELU]; the maximum over what is left of the picture; a head without bias whose outputs are
    divided by its inputs. The whitening's kernel is a constant, drawn at random here: let it be
    computed by `Experiment.start=PatchWhitening("constants/whiten/kernel")`.

    Attributes:
      widths: filters of each group.
      outputs: number of classes.
      patch: height and width of the whitening's patches.
      momentum: of the batch norms, whose factors are 1.
      epsilon: of the batch norms.
      dtype: dtype of the computation.
    """

    layout: ClassVar[Layout] = Layout(
        rules=(
            Rule(r"conv_\d+/kernel$", (None, None, None, "fsdp"), otherwise=Fsdp()),
            Rule(".*", Fsdp()),
        )
    )

    widths: tuple[int, ...] = (64, 256, 256)
    outputs: int = 10
    patch: int = 2
    momentum: float = 0.6
    epsilon: float = 1e-12
    dtype: Dtype = "float32"

    def __post_init__(self):
        require_sizes(self, "widths", "outputs", "patch")
        require(self, momentum="[0, 1)", epsilon="[0, inf)")
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, train: bool = False) -> jax.Array:
        """Maps (B, H, W, C) to logits (B, outputs)."""
        x = _gelu(Whitening(self.patch, self.dtype, name="whiten")(x_BxHxWxC))
        for group, width in enumerate(self.widths):
            x = max_pool_2x2(self._conv(width, 2 * group)(x))
            x = _gelu(self._norm(2 * group)(x, train))
            x = self._conv(width, 2 * group + 1)(x)
            x = _gelu(self._norm(2 * group + 1)(x, train))
        require_pixels(x, x_BxHxWxC, "Airbench")
        x_BxD = x.max(axis=(1, 2))
        # Of variance 1, whatever the inputs are.
        unit = Scaled(scale=x_BxD.shape[-1], distribution="uniform")
        head = nn.Dense(
            self.outputs, use_bias=False, dtype=self.dtype, kernel_init=unit, name="head"
        )
        return head(x_BxD) / x_BxD.shape[-1]

    def _conv(self, width: int, number: int) -> nn.Conv:
        return nn.Conv(
            width,
            (3, 3),
            use_bias=False,
            dtype=self.dtype,
            conv_general_dilated=conv,
            kernel_init=Dirac(),
            name=f"conv_{number}",
        )

    def _norm(self, number: int) -> BatchNorm:
        return BatchNorm(
            self.momentum, self.epsilon, use_scale=False, dtype=self.dtype, name=f"norm_{number}"
        )


class Whitening(nn.Module):
    """A convolution of patches with a constant kernel and a learnt bias, without padding.

    It has two filters for each number in a patch: an eigenvector and its negative.

    Attributes:
      patch: height and width of a patch.
      dtype: dtype of the computation.
    """

    patch: int = 2
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to (B, H - patch + 1, W - patch + 1, 2 x patch^2 x C)."""
        size = self.patch**2 * x_BxHxWxC.shape[-1]
        shape = (self.patch, self.patch, x_BxHxWxC.shape[-1], 2 * size)
        # "constants" is what nothing trains; its key is asked for when it is drawn, and only then.
        kernel = self.variable(
            "constants", "kernel", lambda: TORCH(self.make_rng("params"), shape, jnp.float32)
        )
        bound = 1 / math.sqrt(size)  # PyTorch's draw of biases
        bias = self.param(
            "bias", lambda key: jax.random.uniform(key, shape[-1:], minval=-bound, maxval=bound)
        )
        x_BxHxWxC, kernel, bias = (a.astype(self.dtype) for a in (x_BxHxWxC, kernel.value, bias))
        options = {"window_strides": (1, 1), "padding": "VALID"}
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x_BxHxWxC, kernel, dimension_numbers=numbers, **options)
        return y + bias


def _gelu(x: jax.Array) -> jax.Array:
    return nn.gelu(x, approximate=False)
