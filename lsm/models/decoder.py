"""The hyper-parameters of decoder-only Transformers; `lsm.models.gpt` is the model."""

from typing import Literal

import flax.linen as nn

from lsm.checks import require, require_sizes
from lsm.errors import ConfigError
from lsm.models.experts import Experts
from lsm.models.layers import Dtype
from lsm.models.remat import Remat


class Decoder(nn.Module):
    """Hyper-parameters of the model, which its blocks share.

    Attributes:
      vocabulary: number of tokens.
      layers: number of blocks.
      heads: query heads.
      width: size D of the residual stream.
      context: longest sequence.
      kv_heads: heads of keys and values, each shared by heads / kv_heads queries; None is `heads`.
      head_width: size of a head; None is width / heads.
      hidden: size of the MLP's hidden layer; None is 4 x width.
      positions: "learned", or "rotary" (arXiv:2104.09864).
      theta: base of the rotary frequencies.
      window: positions that a token sees, itself among them; None is all.
      global_every: with a window, every so many-th block sees all; 0 for none.
      global_theta: base of the rotary frequencies in those blocks; None is `theta`.
      norm: "layer" norm or "rms" norm.
      epsilon: added to the variance in norms.
      post_norm: norms also after attention and MLP, before the residual (Gemma).
      qk_norm: RMS norms on queries and keys (Qwen 3, Gemma 3).
      mlp: "gelu", or gated: "swiglu" or "geglu" (arXiv:2002.05202).
      bias: biases in dense layers and layer norms: True, False, or "qkv" alone (Qwen 2).
      tied: logits from the embedding's own table.
      scale_embedding: multiply embeddings by sqrt(width) (Gemma).
      attention_softcap: bound of attention scores (Gemma 2); None for none.
      logit_softcap: bound of logits (Gemma 2); None for none.
      experts: a mixture of experts instead of the MLP.
      dropout: dropout after the embedding, on attention weights and on what each block adds.
      unroll: blocks compiled out in each turn of the loop over them: more are faster on a CPU and
        slower to compile.
      remat: what the backward pass computes again: "none", "dots", "full" or "offload"; see
        `lsm.models.remat`.
      dtype: dtype of the computation; logits are float32.
    """

    vocabulary: int
    layers: int = 4
    heads: int = 4
    width: int = 128
    context: int = 64
    kv_heads: int | None = None
    head_width: int | None = None
    hidden: int | None = None
    positions: Literal["learned", "rotary"] = "learned"
    theta: float = 10_000.0
    window: int | None = None
    global_every: int = 0
    global_theta: float | None = None
    norm: Literal["layer", "rms"] = "layer"
    epsilon: float = 1e-6
    post_norm: bool = False
    qk_norm: bool = False
    mlp: Literal["gelu", "swiglu", "geglu"] = "gelu"
    bias: bool | Literal["qkv"] = False
    tied: bool = True
    scale_embedding: bool = False
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    experts: Experts | None = None
    dropout: float = 0.0
    unroll: int = 1
    remat: Remat = "none"
    dtype: Dtype = "float32"

    def __post_init__(self):
        require_sizes(self, "vocabulary", "layers", "heads", "width", "context", "unroll")
        require(self, dropout="[0, 1)", window="[1, inf)", global_every="[0, inf)")
        require(self, kv_heads="[1, inf)", head_width="[1, inf)", hidden="[1, inf)")
        if self.head_width is None and self.width % self.heads:
            raise ConfigError(f"heads: {self.heads} does not divide width {self.width}.")
        if self.heads % (self.kv_heads or self.heads):
            raise ConfigError(f"kv_heads: {self.kv_heads} does not divide heads {self.heads}.")
        super().__post_init__()

    def normalise(self, name: str | None = None) -> nn.Module:
        """Returns a norm; a layer norm's variance takes two passes, exact and fast on a CPU."""
        if self.norm == "rms":
            return nn.RMSNorm(epsilon=self.epsilon, dtype=self.dtype, name=name)
        return nn.LayerNorm(
            epsilon=self.epsilon,
            use_bias=self.bias is True,
            dtype=self.dtype,
            use_fast_variance=False,
            name=name,
        )
