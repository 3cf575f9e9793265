"""Hyper-parameters of a stack of Transformer blocks, and the layers that they say.

`lsm.models.block` has the block itself.
"""

import dataclasses
import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsm.checks import require, require_choice, require_sizes
from lsm.cpu import TWO_PASS, dot_rows
from lsm.errors import ConfigError, MeshError
from lsm.mesh import ways
from lsm.models.cache import Caches
from lsm.models.experts import Experts
from lsm.models.initializers import Gaussian
from lsm.models.layers import Dtype, Initializer
from lsm.models.norms import OffsetRMSNorm
from lsm.models.remat import Remat
from lsm.models.rotary import LinearRescale, Llama3Rescale, frequencies

ACTIVATIONS = {
    "gelu": nn.gelu,
    "gelu_exact": functools.partial(nn.gelu, approximate=False),
    "relu": nn.relu,
    "swiglu": nn.silu,
    "geglu": nn.gelu,
}
"""The function of each kind of MLP."""

GATED = ("swiglu", "geglu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transformer:
    """Hyper-parameters of a stack of blocks, which hold them as their `config`.

    Attributes:
      layers: number of blocks.
      heads: query heads.
      width: size D of the residual stream.
      kv_heads: heads of keys and values, each shared by heads / kv_heads queries; None is `heads`.
      head_width: size of a head; None is width / heads.
      hidden: size of the MLP's hidden layer; None is 4 x width.
      theta: base of rotary frequencies (arXiv:2104.09864); None leaves positions to the model.
      window: positions that a token sees, itself among them; None is all.
      global_every: with a window, every so many-th block sees all; 0 for none.
      global_theta: base of the rotary frequencies in those blocks; None is `theta`.
      rescale: how rotary frequencies are rescaled for longer texts than were learnt from; None is
        not at all.
      global_rescale: the same of blocks that see all; None is `rescale`.
      query_width: scores are q k / sqrt of this (Gemma); None is the size of a head.
      norm: "layer" norm, "rms" norm, or "rms_offset", whose factor is 1 + scale (Gemma).
      epsilon: added to the variance in norms.
      norm_position: "pre" is x + f(norm(x)); "post" is norm(x + f(x)) (arXiv:1706.03762, BERT);
        "sandwich" is x + norm(f(norm(x))) (Gemma).
      qk_norm: RMS norms on queries and keys (Qwen 3, Gemma 3).
      mlp: activation of the MLP: "gelu" (by tanh, GPT-2), "gelu_exact" (by erf, BERT and ViT) or
        "relu"; or gated (arXiv:2002.05202): "swiglu", or "geglu" (by tanh).
      bias: biases in dense layers and layer norms: True, False, "qkv" alone (Qwen 2), those of
        "attention" alone, which are "qkv" and its output's, or all "but_qkv" (CCT).
      initializer: of kernels; None is GPT-2's: normal(0.02), and 0.02 / sqrt(2 layers) for what
        writes into the residual stream.
      attention_softcap: bound of attention scores (Gemma 2); None for none.
      experts: a mixture of experts instead of the MLP.
      dropout: dropout on attention weights and on what each block adds.
      drop_path: share of examples for which the last block's parts add nothing; it rises from 0 in
        the first, linearly (stochastic depth, arXiv:1603.09382).
      unroll: blocks compiled out in each turn of the loop over them: more are faster on a CPU and
        slower to compile.
      remat: what the backward pass computes again: "none", "dots", "full" or "offload"; see
        `lsm.models.remat`.
      dtype: dtype of the computation.
    """

    layers: int = 4
    heads: int = 4
    width: int = 128
    kv_heads: int | None = None
    head_width: int | None = None
    hidden: int | None = None
    theta: float | None = None
    window: int | None = None
    global_every: int = 0
    global_theta: float | None = None
    rescale: LinearRescale | Llama3Rescale | None = None
    global_rescale: LinearRescale | Llama3Rescale | None = None
    query_width: int | None = None
    norm: Literal["layer", "rms", "rms_offset"] = "layer"
    epsilon: float = 1e-6
    norm_position: Literal["pre", "post", "sandwich"] = "pre"
    qk_norm: bool = False
    mlp: Literal["gelu", "gelu_exact", "relu", "swiglu", "geglu"] = "gelu"
    bias: bool | Literal["qkv", "attention", "but_qkv"] = False
    initializer: Initializer | None = None
    attention_softcap: float | None = None
    experts: Experts | None = None
    dropout: float = 0.0
    drop_path: float = 0.0
    unroll: int = 1
    remat: Remat = "none"
    dtype: Dtype = "float32"

    def __post_init__(self):
        require_sizes(self, "layers", "heads", "width", "unroll")
        require(self, kv_heads="[1, inf)", head_width="[1, inf)", hidden="[1, inf)")
        require(self, dropout="[0, 1)", drop_path="[0, 1)")
        require(self, window="[1, inf)", global_every="[0, inf)")
        require(self, theta="(0, inf)", global_theta="(0, inf)", attention_softcap="(0, inf)")
        require(self, query_width="[1, inf)")
        require_choice(self, "norm", "layer", "rms", "rms_offset")
        require_choice(self, "norm_position", "pre", "post", "sandwich")
        require_choice(self, "mlp", *ACTIVATIONS)
        if self.head_width is None and self.width % self.heads:
            raise ConfigError(f"heads: {self.heads} does not divide width {self.width}.")
        size = self.head_width or self.width // self.heads
        if self.theta is not None and size % 2:
            raise ConfigError(f"theta: turns pairs of a head's {size} numbers; let them be even.")
        if self.heads % (self.kv_heads or self.heads):
            raise ConfigError(f"kv_heads: {self.kv_heads} does not divide heads {self.heads}.")

    @property
    def groups(self) -> tuple[int, int, int]:
        """G groups of Q query heads that share a key head, and the size K of a head."""
        g = self.kv_heads or self.heads  # a group is what "tensor" leaves in one piece
        if g % ways("tensor"):
            raise MeshError(f"mesh.tensor={ways('tensor')} does not divide the {g} key heads.")
        return g, self.heads // g, self.head_width or self.width // self.heads

    def normalise(self, name: str | None = None, of_heads: bool = False) -> nn.Module:
        """Returns a norm of the residual stream, or of queries or keys."""
        # `dtype` is that of the result: Flax computes mean and variance in float32.
        options = {"epsilon": self.epsilon, "dtype": self.dtype, "name": name}
        if self.norm == "rms_offset":
            return OffsetRMSNorm(**options)
        if self.norm == "rms" or of_heads:
            return nn.RMSNorm(**options)
        return nn.LayerNorm(use_bias=self.bias in (True, "but_qkv"), **options, **TWO_PASS)

    def dense(
        self, features: int, name: str, residual: bool = False, reads: bool = False
    ) -> nn.Dense:
        """Returns a dense layer: that writes into the `residual` stream; that `reads` q, k or v."""
        biased = (True, "qkv", "attention") if reads else (True, "but_qkv")
        if name in ("out", "cross_out"):
            biased = (True, "attention", "but_qkv")
        return nn.Dense(
            features,
            use_bias=self.bias in biased,
            dtype=self.dtype,
            kernel_init=self.kernel_init(residual),
            dot_general=dot_rows,
            name=name,
        )

    def kernel_init(self, residual: bool) -> Initializer:
        """Returns how kernels start."""
        return self.initializer or Gaussian(0.02 / (2 * self.layers) ** 0.5 if residual else 0.02)

    def frequencies(self, everywhere: jax.Array | bool | None) -> jax.Array:
        """Returns the rotary frequencies (K / 2,) of a block; of one that sees `everywhere`."""
        k = self.groups[2]
        own = frequencies(k, self.theta, self.rescale)
        if everywhere is None or self.global_theta is self.global_rescale is None:
            return own
        theta, rescale = self.global_theta or self.theta, self.global_rescale or self.rescale
        return jnp.where(everywhere, frequencies(k, theta, rescale), own)

    def cache(self, batch_size: int, length: int) -> Caches:
        """Returns empty caches for `length` positions in every block."""
        g, _, k = self.groups
        return Caches.empty(self.layers, batch_size, g, length, k, self.dtype)
