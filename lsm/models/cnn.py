"""Convolutional network for small pictures: stages of 3x3 convolutions with pooling between."""

from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsm.checks import require, require_sizes
from lsm.cpu import conv, max_pool_2x2
from lsm.mesh import Fsdp, Layout, Rule
from lsm.models.batch_norm import BatchNorm
from lsm.models.initializers import HE
from lsm.models.layers import Activation, Dtype, Initializer, require_pixels


class CNN(nn.Module):
    """Stages of [conv 3x3, batch norm or bias, activation], a 2x2 max-pool between, dense head.

    Pooling comes directly after the convolution. With a bias and an activation that never falls
    (ReLU, tanh) that is, to the bit, the same as pooling after the activation, on a quarter of
    the values; with batch norm it is the order of Jordan 2024 (arXiv:2404.00498).

    The defaults are a small modern network (batch norm, global mean, He). The exact form of the
    Keras tutorial is
    `CNN(widths=(32, 64, 64), convs=1, padding="VALID", batch_norm=False, head="flatten",
    hidden=(64,), kernel_init=XAVIER)`.

    Attributes:
      widths: filters of each stage; 2x2 max-pooling stands between stages.
      convs: convolutions in each stage.
      pool_last: pool after the last stage as well.
      padding: "SAME" keeps the size of the picture, "VALID" loses a pixel at every edge.
      batch_norm: normalise after every convolution (Ioffe & Szegedy 2015, arXiv:1502.03167).
      head: how the last stage becomes a vector: "mean" over the picture, or "flatten".
      hidden: units of dense layers between head and output.
      outputs: number of classes.
      activation: after every convolution and hidden dense layer.
      dropout: share of the head's features dropped while training.
      kernel_init: initialiser of the kernels; biases start at 0.
      dtype: dtype of the computation.
    """

    layout: ClassVar[Layout] = Layout(
        rules=(
            # Filters are split over devices; so are the units of every other dense layer.
            Rule(r"Conv_\d+/kernel$", (None, None, None, ("fsdp", "tensor")), otherwise=Fsdp()),
            Rule(r"Dense_\d*[02468]/kernel$", ("fsdp", "tensor"), otherwise=Fsdp()),
            Rule(r"Dense_\d*[13579]/kernel$", ("tensor", "fsdp"), otherwise=Fsdp()),
            Rule(".*", Fsdp()),
        ),
        axes=("tensor",),
    )

    widths: tuple[int, ...] = (64, 128, 256)
    convs: int = 2
    pool_last: bool = False
    padding: Literal["SAME", "VALID"] = "SAME"
    batch_norm: bool = True
    head: Literal["mean", "flatten"] = "mean"
    hidden: tuple[int, ...] = ()
    outputs: int = 10
    activation: Activation = nn.relu
    dropout: float = 0.0
    kernel_init: Initializer = HE
    dtype: Dtype = "float32"

    def __post_init__(self):
        require_sizes(self, "widths", "convs", "hidden", "outputs")
        require(self, dropout="[0, 1)")
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, train: bool = False) -> jax.Array:
        """Maps (B, H, W, C) to logits (B, outputs)."""
        x = x_BxHxWxC
        for stage, width in enumerate(self.widths, 1):
            for number in range(1, self.convs + 1):
                pool = number == self.convs and (self.pool_last or stage < len(self.widths))
                x = self._convolve(x, width, pool, train)
        require_pixels(x, x_BxHxWxC, "CNN")
        x_BxD = x.mean(axis=(1, 2)) if self.head == "mean" else x.reshape(x.shape[0], -1)
        x_BxD = nn.Dropout(self.dropout, deterministic=not train)(x_BxD)
        for width in self.hidden:
            x_BxD = self.activation(self._dense(width)(x_BxD))
        return self._dense(self.outputs)(x_BxD)

    def _convolve(self, x_BxHxWxC: jax.Array, width: int, pool: bool, train: bool) -> jax.Array:
        x_BxHxWxC = nn.Conv(
            width,
            (3, 3),
            padding=self.padding,
            # Batch norm subtracts a bias and adds its own; without it, `Bias` comes after pooling.
            use_bias=False,
            dtype=self.dtype,
            conv_general_dilated=conv,
            kernel_init=self.kernel_init,
        )(x_BxHxWxC)
        if pool:
            x_BxHxWxC = max_pool_2x2(x_BxHxWxC)
        if self.batch_norm:
            x_BxHxWxC = BatchNorm(dtype=self.dtype)(x_BxHxWxC, train)
        else:
            x_BxHxWxC = Bias(self.dtype)(x_BxHxWxC)
        return self.activation(x_BxHxWxC)

    def _dense(self, width: int) -> nn.Dense:
        return nn.Dense(width, dtype=self.dtype, kernel_init=self.kernel_init)


class Bias(nn.Module):
    """Adds a learned value to each channel; it starts at 0.

    A layer of its own, so that pooling can come before it: the same values, to the bit, for a
    quarter of the additions.

    Attributes:
      dtype: dtype of the computation.
    """

    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns x (..., C) + bias (C,)."""
        bias_C = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        return x + bias_C.astype(self.dtype)
