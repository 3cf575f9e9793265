"""Residual networks: ResNet (v1.5 and the forms for CIFAR) and WideResNet."""

from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsm.checks import require, require_sizes
from lsm.cpu import conv, max_pool_3x3
from lsm.errors import ConfigError
from lsm.mesh import Fsdp, Layout, Rule
from lsm.models.batch_norm import BatchNorm
from lsm.models.initializers import Gaussian, Scaled
from lsm.models.layers import Dtype, Initializer

_FILTERS = (None, None, None, ("fsdp", "tensor"))
LAYOUT = Layout(
    rules=(
        # Filters are split over devices, as in `CNN`.
        Rule(r"(conv(_\d)?|shortcut)/kernel$", _FILTERS, otherwise=Fsdp()),
        Rule(r"head/kernel$", ("fsdp", "tensor"), otherwise=Fsdp()),
        Rule(".*", Fsdp()),
    ),
    axes=("tensor",),
)

HE_FAN_OUT = Scaled(scale=2.0, fan="fan_out")
"""He et al. 2015 (arXiv:1502.01852) for the backward pass: variance 2 / fan_out."""


def _conv(model: Any, width: int, kernel: int, stride: int, name: str) -> nn.Conv:
    return nn.Conv(
        width,
        (kernel, kernel),
        stride,
        # As many pixels on each side; "SAME" has one more at the end where the stride is 2.
        padding=kernel // 2,
        use_bias=False,
        dtype=model.dtype,
        conv_general_dilated=conv,
        kernel_init=model.kernel_init,
        name=name,
    )


def _norm(model: Any, name: str, scale: float = 1.0) -> BatchNorm:
    scale_init = nn.initializers.constant(scale)
    return BatchNorm(scale_init=scale_init, dtype=model.dtype, name=name)


def _head(model: Any, x_BxHxWxC: jax.Array) -> jax.Array:
    """Mean over the picture, and logits."""
    dense = nn.Dense(model.outputs, dtype=model.dtype, kernel_init=Gaussian(0.01), name="head")
    return dense(x_BxHxWxC.mean(axis=(1, 2)))


class _Block(nn.Module):
    """relu(shortcut(x) + convolutions(x)): two of 3x3, or 1x1, 3x3 and 1x1 to four times `width`.

    All but the last have `inner` filters. A `stride` is the first 3x3's (v1.5; He et al. have it in
    the first 1x1).
    """

    width: int
    inner: int
    stride: int
    bottleneck: bool
    shortcut: str
    zero_init: bool
    kernel_init: Initializer
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        width, inner, stride = self.width, self.inner, self.stride
        convs = [(inner, 3, stride), (width, 3, 1)]  # filters, size, stride
        if self.bottleneck:
            convs = [(inner, 1, 1), (inner, 3, stride), (4 * width, 1, 1)]
        y_BxHxWxC = x_BxHxWxC
        for number, shape in enumerate(convs, 1):
            last = number == len(convs)
            scale = 0.0 if last and self.zero_init else 1.0
            y_BxHxWxC = _conv(self, *shape, name=f"conv_{number}")(y_BxHxWxC)
            y_BxHxWxC = _norm(self, f"norm_{number}", scale)(y_BxHxWxC, train)
            y_BxHxWxC = y_BxHxWxC if last else nn.relu(y_BxHxWxC)
        return nn.relu(self._shortcut(x_BxHxWxC, y_BxHxWxC.shape[-1], train) + y_BxHxWxC)

    def _shortcut(self, x_BxHxWxC: jax.Array, width: int, train: bool) -> jax.Array:
        if self.stride == 1 and x_BxHxWxC.shape[-1] == width:
            return x_BxHxWxC
        if self.shortcut == "padding":
            more = width - x_BxHxWxC.shape[-1]
            small_BxHxWxC = x_BxHxWxC[:, :: self.stride, :: self.stride]
            return jnp.pad(small_BxHxWxC, ((0, 0), (0, 0), (0, 0), (0, more)))
        x_BxHxWxC = _conv(self, width, 1, self.stride, "shortcut")(x_BxHxWxC)
        return _norm(self, "shortcut_norm")(x_BxHxWxC, train)


class ResNet(nn.Module):
    """Residual network (He et al. 2016, arXiv:1512.03385); `resnet50` and the like are its sizes.

    Batch norm's statistics are those of the whole batch, on any mesh.

    Attributes:
      depths: blocks of each stage; from the second on a stage halves the picture.
      width: filters of the first stage; each of the others has twice those of the one before.
      bottleneck: blocks of 1x1, 3x3 and 1x1 with four times as many filters at their end.
      stem: "imagenet" is 7x7 with stride 2 and a 3x3 max-pool, "cifar" is 3x3 alone.
      shortcut: where shapes change: a 1x1 "projection" (option B), or "padding" with zeros (A).
      zero_init: the last scale of each block starts at 0, so that it is the identity (Goyal et al.
        2017, arXiv:1706.02677).
      inner: filters within the blocks of each stage, of all convolutions but a block's last; None
        is as many as the stage has.
      outputs: number of classes.
      kernel_init: initialiser of the convolutions; the head's is normal, of deviation 0.01.
      dtype: dtype of the computation.
    """

    layout: ClassVar[Layout] = LAYOUT

    depths: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64
    bottleneck: bool = False
    stem: Literal["imagenet", "cifar"] = "imagenet"
    shortcut: Literal["projection", "padding"] = "projection"
    zero_init: bool = False
    inner: tuple[int, ...] | None = None
    outputs: int = 1000
    kernel_init: Initializer = HE_FAN_OUT
    dtype: Dtype = "float32"

    def __post_init__(self):
        require_sizes(self, "depths", "width", "outputs", *(["inner"] if self.inner else []))
        if self.inner is not None and len(self.inner) != len(self.depths):
            raise ConfigError(
                f"ResNet.inner: {self.inner} given for {len(self.depths)} stages; one number for "
                "each is needed."
            )
        super().__post_init__()

    @property
    def within(self) -> tuple[int, ...]:
        """The filters within the blocks of each stage."""
        return self.inner or tuple(self.width * 2**stage for stage in range(len(self.depths)))

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, train: bool = False) -> jax.Array:
        """Maps (B, H, W, C) to logits (B, outputs)."""
        kernel, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        x_BxHxWxC = _conv(self, self.width, kernel, stride, "conv")(x_BxHxWxC)
        x_BxHxWxC = nn.relu(_norm(self, "norm")(x_BxHxWxC, train))
        if self.stem == "imagenet":
            x_BxHxWxC = max_pool_3x3(x_BxHxWxC)
        for stage, depth in enumerate(self.depths, 1):
            for block in range(depth):
                x_BxHxWxC = _Block(
                    width=self.width * 2 ** (stage - 1),
                    inner=self.within[stage - 1],
                    stride=2 if block == 0 and stage > 1 else 1,
                    bottleneck=self.bottleneck,
                    shortcut=self.shortcut,
                    zero_init=self.zero_init,
                    kernel_init=self.kernel_init,
                    dtype=self.dtype,
                    name=f"stage_{stage}_block_{block}",
                )(x_BxHxWxC, train)
        return _head(self, x_BxHxWxC)


def resnet18(**changes: Any) -> ResNet:
    """ResNet-18: 11.7 M parameters with 1000 classes; `changes` are fields of `ResNet`."""
    return ResNet(**{"depths": (2, 2, 2, 2)} | changes)


def resnet34(**changes: Any) -> ResNet:
    """ResNet-34: 21.8 M parameters; see `resnet18`."""
    return ResNet(**{"depths": (3, 4, 6, 3)} | changes)


def resnet50(**changes: Any) -> ResNet:
    """ResNet-50 v1.5: 25.6 M parameters; see `resnet18`."""
    return ResNet(**{"depths": (3, 4, 6, 3), "bottleneck": True} | changes)


def resnet101(**changes: Any) -> ResNet:
    """ResNet-101 v1.5: 44.5 M parameters; see `resnet18`."""
    return resnet50(**{"depths": (3, 4, 23, 3)} | changes)


def resnet152(**changes: Any) -> ResNet:
    """ResNet-152 v1.5: 60.2 M parameters; see `resnet18`."""
    return resnet50(**{"depths": (3, 8, 36, 3)} | changes)


def resnet_cifar(depth: int = 20, **changes: Any) -> ResNet:
    """The form for pictures of 32x32, of 6n + 2 layers: 20, 32, 44, 56, 110; see `resnet18`.

    Raises:
      ConfigError: `depth` is no 6n + 2.
    """
    if depth < 8 or depth % 6 != 2:
        raise ConfigError(
            f"resnet_cifar: depth {depth} given; it is 6n + 2, such as 20, 56 or 110."
        )
    small = {"depths": (depth // 6,) * 3, "width": 16, "stem": "cifar", "shortcut": "padding"}
    return ResNet(**small | {"outputs": 10} | changes)


class _WideBlock(nn.Module):
    """shortcut + conv(relu(norm(conv(relu(norm(x))))): normalised before each convolution."""

    width: int
    stride: int
    dropout: float
    kernel_init: Initializer
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        y_BxHxWxC = nn.relu(_norm(self, "norm_1")(x_BxHxWxC, train))
        if self.stride != 1 or x_BxHxWxC.shape[-1] != self.width:
            x_BxHxWxC = _conv(self, self.width, 1, self.stride, "shortcut")(y_BxHxWxC)
        y_BxHxWxC = _conv(self, self.width, 3, self.stride, "conv_1")(y_BxHxWxC)
        y_BxHxWxC = nn.relu(_norm(self, "norm_2")(y_BxHxWxC, train))
        y_BxHxWxC = nn.Dropout(self.dropout, deterministic=not train)(y_BxHxWxC)
        return x_BxHxWxC + _conv(self, self.width, 3, 1, "conv_2")(y_BxHxWxC)


class WideResNet(nn.Module):
    """Wide residual network for small pictures (Zagoruyko & Komodakis 2016, arXiv:1605.07146).

    WRN-28-10 is `WideResNet()`, WRN-16-4 is `WideResNet(depth=16, factor=4)`.

    Attributes:
      depth: layers, 6n + 4: three stages of n blocks, of two convolutions each.
      factor: times the 16, 32 and 64 filters of a plain network.
      outputs: number of classes.
      dropout: share of a block's features dropped between its convolutions while training.
      kernel_init: initialiser of the convolutions; the head's is normal, of deviation 0.01.
      dtype: dtype of the computation.
    """

    layout: ClassVar[Layout] = LAYOUT

    depth: int = 28
    factor: int = 10
    outputs: int = 10
    dropout: float = 0.0
    kernel_init: Initializer = HE_FAN_OUT
    dtype: Dtype = "float32"

    def __post_init__(self):
        require_sizes(self, "factor", "outputs")
        require(self, dropout="[0, 1)")
        if self.depth < 10 or self.depth % 6 != 4:
            raise ConfigError(
                f"WideResNet.depth: {self.depth} given; it is 6n + 4, such as 16, 28 or 40."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, train: bool = False) -> jax.Array:
        """Maps (B, H, W, C) to logits (B, outputs)."""
        x_BxHxWxC = _conv(self, 16, 3, 1, "conv")(x_BxHxWxC)
        for stage, width in enumerate((16, 32, 64), 1):
            for block in range(self.depth // 6):
                x_BxHxWxC = _WideBlock(
                    width=width * self.factor,
                    stride=2 if block == 0 and stage > 1 else 1,
                    dropout=self.dropout,
                    kernel_init=self.kernel_init,
                    dtype=self.dtype,
                    name=f"stage_{stage}_block_{block}",
                )(x_BxHxWxC, train)
        return _head(self, nn.relu(_norm(self, "norm")(x_BxHxWxC, train)))
