"""Vision Transformer: patches or convolutions, the Transformer's blocks, pooling, a head."""

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lsm.checks import require_choice, require_sizes
from lsm.cpu import max_pool_3x3
from lsm.errors import ConfigError
from lsm.mesh import Fsdp, Layout, Rule
from lsm.models import stack
from lsm.models.attention import Mask
from lsm.models.batch_norm import BatchNorm
from lsm.models.initializers import HE, LECUN, Gaussian
from lsm.models.transformer import Transformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convolutions:
    """A stem of [convolution, ReLU, 3x3 max-pool of stride 2] (CCT, arXiv:2104.05704).

    Attributes:
      widths: channels of all but the last, which has the Transformer's width: () in CCT-7/3x1.
      kernel: side of the kernels, odd; the stride is 1, and from 7 on kernel // 2 - 1.
      batch_norm: normalise after every convolution (arXiv:2106.14881); CCT does not.
    """

    widths: tuple[int, ...] = (64,)
    kernel: int = 3
    batch_norm: bool = False

    def __post_init__(self):
        require_sizes(self, "widths", "kernel")
        if self.kernel % 2 == 0:
            raise ConfigError(f"Convolutions.kernel: {self.kernel} given; an odd number is needed.")


class ViT(nn.Module):
    """An encoder of pictures (Dosovitskiy et al. 2020, arXiv:2010.11929), and CCT.

    `lsm.models.families` has the published ones. Dropout is on the embedding too. The head starts
    at 0, as in big_vision: the first loss is log(outputs).

    Attributes:
      outputs: number of classes.
      transformer: the blocks.
      stem: side of a patch in pixels, or convolutions.
      position: what tells tokens where they are, added to them: "learned" for the picture's size;
        "sincos2d", sines and cosines of row and column (MoCo v3, in big_vision's form); None.
      pooling: what the head reads: the "mean" of the tokens; "cls", a learned token put before
        them; or "sequence", their mean by learned attention (CCT).
    """

    layout: ClassVar[Layout] = dataclasses.replace(
        stack.LAYOUT,
        rules=(*stack.LAYOUT.rules, Rule(r".*", Fsdp())),
        axes=("tensor", "pipeline"),
    )

    outputs: int = 1000
    transformer: Transformer = Transformer(mlp="gelu_exact", bias=True)
    stem: int | Convolutions = 16
    position: Literal["learned", "sincos2d"] | None = "learned"
    pooling: Literal["mean", "cls", "sequence"] = "mean"

    def __post_init__(self):
        require_sizes(self, "outputs", *(["stem"] if isinstance(self.stem, int) else []))
        if self.position is not None:
            require_choice(self, "position", "learned", "sincos2d")
        require_choice(self, "pooling", "mean", "cls", "sequence")
        width = self.transformer.width
        if self.position == "sincos2d" and (width % 4 or width < 8):
            raise ConfigError(f'ViT.position: "sincos2d" needs a width of 8, 12, ...; not {width}.')
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, train: bool = False) -> jax.Array:
        """Maps (B, H, W, C) to logits (B, outputs).

        Raises:
          ConfigError: patches do not divide the picture.
        """
        config = self.transformer
        x_BxTxD = self._tokens(x_BxHxWxC, train)
        x_BxTxD = nn.Dropout(config.dropout, deterministic=not train)(x_BxTxD)
        blocks = stack.Stack(config)
        nn.share_scope(self, blocks)  # so that its parameters are at "blocks"
        y = blocks(x_BxTxD, Mask(), train=train)
        if config.experts and not self.is_initializing():  # as in GPT
            self.sow("losses", "balance", config.experts.balance * y.balance_B / config.layers)
        x_BxTxD = y.x_BxTxD
        if config.norm_position != "post":
            x_BxTxD = config.normalise("norm_f")(x_BxTxD)
        return self._dense(self.outputs, "head")(self._pooled(x_BxTxD))

    def _tokens(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        """The embedded picture (B, T, D), with what stands before it, and positions."""
        dtype = self.transformer.dtype
        x_BxHxWxD = self._embedded(x_BxHxWxC.astype(dtype), train)
        b, h, w, d = x_BxHxWxD.shape
        x_BxTxD = x_BxHxWxD.reshape(b, h * w, d)
        before = self.pooling == "cls"
        if before:
            cls_D = self.param("cls", nn.initializers.zeros, (d,), jnp.float32).astype(dtype)
            x_BxTxD = jnp.concatenate([jnp.broadcast_to(cls_D, (b, 1, d)), x_BxTxD], axis=1)
        if self.position is None:
            return x_BxTxD
        if self.position == "learned":
            at_TxD = self.param("positions", Gaussian(0.02), x_BxTxD.shape[1:], jnp.float32)
        else:
            at_TxD = np.pad(sincos2d(h, w, d), ((int(before), 0), (0, 0)))
        # The barrier is for the gradient on a CPU, as in GPT.
        return jax.lax.optimization_barrier(x_BxTxD + jnp.asarray(at_TxD, dtype))

    def _embedded(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        config, stem = self.transformer, self.stem
        if isinstance(stem, Convolutions):
            options = {"use_bias": False, "dtype": config.dtype, "kernel_init": HE}
            stride, edge = max(stem.kernel // 2 - 1, 1), stem.kernel // 2
            square, pads = (stem.kernel, stem.kernel), [(edge, edge)] * 2
            for layer, width in enumerate((*stem.widths, config.width), 1):
                conv = nn.Conv(width, square, stride, pads, name=f"conv_{layer}", **options)
                x_BxHxWxC = max_pool_3x3(conv(x_BxHxWxC))
                if stem.batch_norm:
                    norm = BatchNorm(dtype=config.dtype, name=f"norm_{layer}")
                    x_BxHxWxC = norm(x_BxHxWxC, train)
                # ReLU never falls: after pooling it is the same, on a quarter of the values.
                x_BxHxWxC = nn.relu(x_BxHxWxC)
            return x_BxHxWxC
        _, h, w, _ = x_BxHxWxC.shape
        if h % stem or w % stem:
            raise ConfigError(f"ViT.stem: patches of {stem} do not divide pictures of {h} x {w}.")
        square, options = (stem, stem), {"dtype": config.dtype, "kernel_init": LECUN}
        return nn.Conv(config.width, square, square, "VALID", name="patches", **options)(x_BxHxWxC)

    def _pooled(self, x_BxTxD: jax.Array) -> jax.Array:
        if self.pooling == "cls":
            return x_BxTxD[:, 0]
        if self.pooling == "mean":
            return x_BxTxD.mean(axis=1)
        weights_BxTx1 = nn.softmax(self._dense(1, "pool")(x_BxTxD), axis=1)
        return (weights_BxTx1 * x_BxTxD).sum(axis=1)

    def _dense(self, features: int, name: str) -> nn.Dense:
        zeros = nn.initializers.zeros
        return nn.Dense(features, dtype=self.transformer.dtype, kernel_init=zeros, name=name)


def sincos2d(h: int, w: int, width: int, temperature: float = 10_000.0) -> np.ndarray:
    """Returns positions (h x w, width), float32: sin and cos of the column, then of the row.

    Frequencies are temperature^(-i / (width / 4 - 1)), as in big_vision; MoCo v3
    (arXiv:2104.02057) divides by width / 4.
    """
    frequencies_F = temperature ** -np.linspace(0, 1, width // 4)
    rows, columns = (at.reshape(-1, 1) * frequencies_F for at in np.indices((h, w)))
    parts = [np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)]
    return np.concatenate(parts, axis=1).astype(np.float32)
