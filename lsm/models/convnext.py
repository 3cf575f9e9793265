"""ConvNeXt: a convolutional network of the shape of a vision Transformer."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np

from lsm.checks import require, require_sizes
from lsm.cpu import TWO_PASS, dot_rows
from lsm.errors import ConfigError
from lsm.mesh import Fsdp, Layout, Rule
from lsm.models.initializers import Gaussian
from lsm.models.layers import Dtype, require_pixels

_INIT = Gaussian(0.02)  # of the paper, of all kernels; biases start at 0


def _norm(dtype: Dtype, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, name=name, **TWO_PASS)


def _dense(width: int, dtype: Dtype, name: str) -> nn.Dense:
    return nn.Dense(width, dtype=dtype, kernel_init=_INIT, dot_general=dot_rows, name=name)


class _Block(nn.Module):
    """x + scale * down(gelu(up(norm(depthwise(x)))))."""

    layer_scale: float
    drop_path: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        width = x_BxHxWxC.shape[-1]
        y_BxHxWxC = nn.Conv(
            width,
            (7, 7),
            feature_group_count=width,
            dtype=self.dtype,
            kernel_init=_INIT,
            name="depthwise",
        )(x_BxHxWxC)
        y_BxHxWxC = _norm(self.dtype, "norm")(y_BxHxWxC)
        y_BxHxWxF = nn.gelu(_dense(4 * width, self.dtype, "up")(y_BxHxWxC), approximate=False)
        y_BxHxWxC = _dense(width, self.dtype, "down")(y_BxHxWxF)
        start = nn.initializers.constant(self.layer_scale)
        scale_C = self.param("layer_scale", start, (width,))
        # Dropped for an example as a whole.
        drop = nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3), deterministic=not train)
        return x_BxHxWxC + drop(y_BxHxWxC * scale_C.astype(self.dtype))


class ConvNeXt(nn.Module):
    """ConvNeXt (Liu et al. 2022, arXiv:2201.03545); `convnext_tiny` and the like are its sizes.

    Attributes:
      depths: blocks of each stage; a stage halves the picture.
      widths: channels of each stage.
      patch: side of the patches that the stem makes of the picture.
      outputs: number of classes.
      drop_path: share of examples for which the last block is left out while training (stochastic
        depth, arXiv:1603.09382); it rises from 0 at the first block.
      layer_scale: what each channel of a block's output is multiplied by, at the start.
      dtype: dtype of the computation.
    """

    layout: ClassVar[Layout] = Layout(
        rules=(
            # Filters are split over devices; so are the units of every other dense layer.
            Rule(
                r"(stem|downsample_\d|depthwise)/kernel$",
                (None, None, None, ("fsdp", "tensor")),
                otherwise=Fsdp(),
            ),
            Rule(r"(up|head)/kernel$", ("fsdp", "tensor"), otherwise=Fsdp()),
            Rule(r"down/kernel$", ("tensor", "fsdp"), otherwise=Fsdp()),
            Rule(".*", Fsdp()),
        ),
        axes=("tensor",),
    )

    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    patch: int = 4
    outputs: int = 1000
    drop_path: float = 0.0
    layer_scale: float = 1e-6
    dtype: Dtype = "float32"

    def __post_init__(self):
        require_sizes(self, "depths", "widths", "patch", "outputs")
        require(self, drop_path="[0, 1)")
        if len(self.depths) != len(self.widths):
            raise ConfigError(
                f"ConvNeXt.widths: {len(self.widths)} given for {len(self.depths)} stages (depths)."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, train: bool = False) -> jax.Array:
        """Maps (B, H, W, C) to logits (B, outputs)."""
        given_BxHxWxC = x_BxHxWxC
        drops = iter(np.linspace(0, self.drop_path, sum(self.depths)).tolist())
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 1):
            if stage == 1:
                x_BxHxWxC = self._patches(width, self.patch, "stem")(x_BxHxWxC)
                x_BxHxWxC = _norm(self.dtype, "stem_norm")(x_BxHxWxC)
            else:
                x_BxHxWxC = _norm(self.dtype, f"downsample_{stage}_norm")(x_BxHxWxC)
                x_BxHxWxC = self._patches(width, 2, f"downsample_{stage}")(x_BxHxWxC)
            for block in range(depth):
                name = f"stage_{stage}_block_{block}"
                block = _Block(self.layer_scale, next(drops), self.dtype, name=name)
                x_BxHxWxC = block(x_BxHxWxC, train)
        require_pixels(x_BxHxWxC, given_BxHxWxC, "ConvNeXt")
        x_BxC = _norm(self.dtype, "norm")(x_BxHxWxC.mean(axis=(1, 2)))
        return nn.Dense(self.outputs, dtype=self.dtype, kernel_init=_INIT, name="head")(x_BxC)

    def _patches(self, width: int, side: int, name: str) -> nn.Conv:
        """Returns a convolution of patches that do not overlap; a rest at the edge is left out."""
        return nn.Conv(
            width,
            (side, side),
            side,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=_INIT,
            name=name,
        )


def convnext_tiny(**changes: Any) -> ConvNeXt:
    """ConvNeXt-T: 28.6 M parameters with 1000 classes; `changes` are fields of `ConvNeXt`."""
    return ConvNeXt(**changes)


def convnext_small(**changes: Any) -> ConvNeXt:
    """ConvNeXt-S: 50.2 M parameters; see `convnext_tiny`."""
    return ConvNeXt(**{"depths": (3, 3, 27, 3)} | changes)


def convnext_base(**changes: Any) -> ConvNeXt:
    """ConvNeXt-B: 88.6 M parameters; see `convnext_tiny`."""
    return convnext_small(**{"widths": (128, 256, 512, 1024)} | changes)
