"""MLP-Mixer: MLPs over tokens and over channels, in turn."""

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsm.checks import require_sizes
from lsm.cpu import TWO_PASS, dot_rows
from lsm.errors import ConfigError
from lsm.mesh import Fsdp, Layout, Rule, unplaced
from lsm.models.initializers import LECUN
from lsm.models.layers import Dtype
from lsm.models.pipeline import run_layers


class MixerBlock(nn.Module):
    """An MLP across the tokens of each channel, then one across the channels of each token.

    Attributes:
      tokens: units of the first MLP's hidden layer.
      channels: units of the second's.
      dtype: dtype of the computation.
    """

    tokens: int
    channels: int
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        """Maps (B, T, D) to (B, T, D)."""
        h_BxDxT = _norm(self.dtype, "norm_1")(x_BxTxD).swapaxes(1, 2)
        x_BxTxD = x_BxTxD + self._mlp(h_BxDxT, self.tokens, "tokens").swapaxes(1, 2)
        return x_BxTxD + self._mlp(_norm(self.dtype, "norm_2")(x_BxTxD), self.channels, "channels")

    def _mlp(self, x: jax.Array, hidden: int, name: str) -> jax.Array:
        options = {"dtype": self.dtype, "kernel_init": LECUN, "dot_general": dot_rows}
        h = nn.Dense(hidden, name=f"{name}_up", **options)(x)
        h = nn.gelu(h, approximate=False)
        return nn.Dense(x.shape[-1], name=f"{name}_down", **options)(h)


class Mixer(nn.Module):
    """MLP-Mixer (Tolstikhin et al. 2021, arXiv:2105.01601); by default B/16.

    Its parameters are for pictures of one size. Those of the blocks are stacked (layers, ...) under
    "blocks". Kernels start as in the paper's code, LeCun's, and the head at 0.

    Attributes:
      outputs: number of classes.
      layers: number of blocks.
      width: channels of a token.
      tokens: units of the hidden layer across tokens.
      channels: units of the hidden layer across channels.
      patch: side of a patch in pixels.
      dtype: dtype of the computation.
    """

    layout: ClassVar[Layout] = Layout(
        rules=(
            # Columns, then rows, as in `lsm.models.stack`; the number of tokens may be odd.
            Rule(r"blocks/channels_up/kernel$", (None, "fsdp", "tensor")),
            Rule(r"blocks/channels_down/kernel$", (None, "tensor", "fsdp")),
            Rule(r"blocks/tokens_up/kernel$", (None, None, ("fsdp", "tensor")), otherwise=Fsdp()),
            Rule(r"blocks/tokens_down/kernel$", (None, ("fsdp", "tensor"), None), otherwise=Fsdp()),
            Rule(r"blocks/(channels|tokens)_up/bias$", (None, "tensor")),
            Rule(r"blocks/", (None, None)),
            Rule(r".*", Fsdp()),
        ),
        axes=("tensor",),
        stacks=((r"blocks/", 1),),
    )

    outputs: int = 1000
    layers: int = 12
    width: int = 768
    tokens: int = 384
    channels: int = 3072
    patch: int = 16
    dtype: Dtype = "float32"

    def __post_init__(self):
        names = ("outputs", "layers", "width", "tokens", "channels", "patch")
        require_sizes(self, *names)
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, train: bool = False) -> jax.Array:
        """Maps (B, H, W, C) to logits (B, outputs).

        Raises:
          ConfigError: patches do not divide the picture.
        """
        del train
        (b, h, w, _), square = x_BxHxWxC.shape, (self.patch, self.patch)
        if h % self.patch or w % self.patch:
            raise ConfigError(
                f"Mixer.patch: patches of {self.patch} do not divide pictures of {h} x {w}."
            )
        options = {"dtype": self.dtype, "kernel_init": LECUN, "name": "patches"}
        x = nn.Conv(self.width, square, square, "VALID", **options)(x_BxHxWxC)
        x_BxTxD = x.reshape(b, -1, self.width)
        block = MixerBlock(self.tokens, self.channels, self.dtype, parent=None)
        params = self.param("blocks", functools.partial(self._init_blocks, block), x_BxTxD.shape)
        x_BxTxD, _ = run_layers(
            lambda x, own, tick: (block.apply({"params": own}, x), None), params, x_BxTxD
        )
        x_BxD = _norm(self.dtype, "norm_f")(x_BxTxD).mean(axis=1)
        zeros = nn.initializers.zeros
        return nn.Dense(self.outputs, dtype=self.dtype, kernel_init=zeros, name="head")(x_BxD)

    def _init_blocks(self, block: nn.Module, key: jax.Array, shape: tuple[int, ...]) -> Any:
        x_BxTxD = jnp.zeros((1, *shape[1:]), self.dtype)
        with unplaced():  # layer by layer, so that fan-in is one layer's
            keys = jax.random.split(key, self.layers)
            return jax.vmap(lambda key: block.init(key, x_BxTxD)["params"])(keys)


def _norm(dtype: Dtype, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, name=name, **TWO_PASS)
