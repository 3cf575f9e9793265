"""Decoder-only Transformer: GPT-2, Llama, Qwen and Gemma, dense or with a mixture of experts."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsm.axes import BATCH_AXES, Fsdp, Layout, Rule, constrain, unplaced, ways
from lsm.errors import MeshError
from lsm.models.attention import attend, capped, rotate
from lsm.models.decoder import Decoder
from lsm.models.experts import ExpertDense, combine, dispatch, route
from lsm.models.initializers import Gaussian
from lsm.models.layers import dot_rows
from lsm.models.pipeline import run_layers
from lsm.models.remat import rematerialised


class GPT(Decoder):
    """GPT-2's decoder (Radford et al. 2019) by default; `lsm.models.families` has the others.

    Initialised as GPT-2: normal(0.02), and 0.02 / sqrt(2 layers) for what writes into the
    residual stream. Parameters of the blocks are stacked along a leading layer axis.
    """

    layout: ClassVar[Layout] = Layout(
        rules=(
            Rule(r"blocks/experts_(gate|up)/kernel$", ("pipeline", "expert", "fsdp", "tensor")),
            Rule(r"blocks/experts_down/kernel$", ("pipeline", "expert", "tensor", "fsdp")),
            Rule(r"blocks/(qkv|gate|up)/kernel$", ("pipeline", "fsdp", "tensor")),
            Rule(r"blocks/(out|down)/kernel$", ("pipeline", "tensor", "fsdp")),
            Rule(r"blocks/router/kernel$", ("pipeline", "fsdp", None)),
            Rule(r"blocks/(qkv|gate|up)/bias$", ("pipeline", "tensor")),
            Rule(r"blocks/", ("pipeline", None)),
            Rule(r"tokens/embedding$", ("tensor", "fsdp"), otherwise=(None, "fsdp")),
            Rule(r"head/kernel$", ("fsdp", "tensor"), otherwise=("fsdp", None)),
            Rule(r".*", Fsdp()),
        ),
        axes=("tensor", "sequence", "pipeline"),
    )

    def setup(self):
        """Makes the parameters."""
        self.tokens = nn.Embed(self.vocabulary, self.width, embedding_init=Gaussian(0.02))
        if self.positions == "learned":
            self.learned = self.param(
                "positions", Gaussian(0.02), (self.context, self.width), jnp.float32
            )
        self.param("blocks", self._init_blocks)
        self.drop = nn.Dropout(self.dropout)
        self.norm_f = self.normalise()
        if not self.tied:
            self.head = nn.Dense(
                self.vocabulary,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=Gaussian(0.02),
                dot_general=dot_rows,
            )

    def __call__(self, tokens_BxT: jax.Array, train: bool = False) -> jax.Array:
        """Maps int tokens (B, T), T <= context, to float32 logits (B, T, vocabulary)."""
        return self.logits(self.features(tokens_BxT, train))

    def features(self, tokens_BxT: jax.Array, train: bool = False) -> jax.Array:
        """Maps tokens (B, T) to what `logits` reads (B, T, D).

        With experts, the load-balancing loss (B,) is sown as "balance" into "losses".
        """
        x_BxTxD = self._table()[tokens_BxT]
        if self.scale_embedding:
            x_BxTxD = x_BxTxD * jnp.asarray(self.width**0.5, self.dtype)
        if self.positions == "learned":
            x_BxTxD = x_BxTxD + self.learned[: tokens_BxT.shape[1]].astype(self.dtype)
        x_BxTxD = self.drop(x_BxTxD, deterministic=not train)
        x_BxTxD, balance_B = self._run_blocks(x_BxTxD, train)
        if self.experts and not self.is_initializing():
            self.sow("losses", "balance", self.experts.balance * balance_B / self.layers)
        # Stages that are done with the layers share the rest of the work, by rows.
        everyone = (*BATCH_AXES, "pipeline")
        rows = everyone if x_BxTxD.shape[0] % ways(*everyone) == 0 else BATCH_AXES
        return self.norm_f(constrain(x_BxTxD, rows, "sequence", None))

    def logits(self, x_BxTxD: jax.Array) -> jax.Array:
        """Maps features to float32 logits (B, T, vocabulary)."""
        if self.tied:
            x_NxD = x_BxTxD if ways("sequence", "tensor") > 1 else x_BxTxD.reshape(-1, self.width)
            y = jnp.einsum("...d,vd->...v", x_NxD, self._table())
            y_BxTxV = y.reshape(*x_BxTxD.shape[:-1], self.vocabulary)
        else:
            y_BxTxV = self.head(x_BxTxD)
        return capped(y_BxTxV.astype(jnp.float32), self.logit_softcap)

    def _table(self) -> jax.Array:
        """The embedding (V, D) in the computation's dtype, whole along D."""
        split = "tensor" if self.vocabulary % ways("tensor") == 0 else None
        return constrain(self.tokens.embedding.astype(self.dtype), split, None)

    def _block(self) -> "Block":
        """One block with this model's hyper-parameters, outside of the module tree."""
        names = [f.name for f in dataclasses.fields(self) if f.name not in ("parent", "name")]
        return Block(**{name: getattr(self, name) for name in names}, parent=None)

    def _init_blocks(self, key: jax.Array) -> Any:
        x_BxTxD = jnp.zeros((1, 1, self.width), self.dtype)
        init = functools.partial(self._block().init, train=False, is_global=False)
        with unplaced():
            return jax.vmap(lambda key: init(key, x_BxTxD)["params"])(
                jax.random.split(key, self.layers)
            )

    def _run_blocks(self, x_BxTxD: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Returns the residual stream after all blocks, and the sum of balance losses (B,)."""
        keys_L = None
        if train and self.dropout:
            keys_L = jax.random.split(self.make_rng("dropout"), self.layers)
        every = self.global_every
        global_L = (jnp.arange(self.layers) + 1) % every == 0 if every else None
        layers = (self.get_variable("params", "blocks"), keys_L, global_L)

        def one(rows: Any, layer: Any, tick: jax.Array) -> Any:
            (x_BxTxD, balance_B), (params, key, is_global) = rows, layer
            rngs = {} if key is None else {"dropout": jax.random.fold_in(key, tick)}
            args = (x_BxTxD, train, is_global)
            x_BxTxD, more_B = self._block().apply({"params": params}, *args, rngs=rngs)
            return x_BxTxD, balance_B + more_B

        rows = (x_BxTxD, jnp.zeros(x_BxTxD.shape[0]))
        return run_layers(rematerialised(one, self.remat), layers, rows, self.unroll)


class Block(Decoder):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    @nn.compact
    def __call__(
        self, x_BxTxD: jax.Array, train: bool, is_global: jax.Array | bool | None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the new residual stream (B, T, D) and the balance loss (B,)."""
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x_BxTxD = self._between(x_BxTxD)
        h_BxTxD = self._inside(self.normalise("norm_1")(x_BxTxD))
        y_BxTxD = self._inside(self._attention(h_BxTxD, drop, train, is_global))
        x_BxTxD = x_BxTxD + drop(self._post(self._between(y_BxTxD), "post_norm_1"))
        h_BxTxD = self._inside(self.normalise("norm_2")(x_BxTxD))
        y_BxTxD, balance_B = self._mlp_or_experts(h_BxTxD)
        y_BxTxD = self._between(self._inside(y_BxTxD))
        x_BxTxD = x_BxTxD + drop(self._post(y_BxTxD, "post_norm_2"))
        return self._between(x_BxTxD), balance_B

    def _inside(self, x_BxTxD: jax.Array) -> jax.Array:
        """Placed for products that are split over "tensor"."""
        return constrain(x_BxTxD, BATCH_AXES, "sequence", None)

    def _between(self, x_BxTxD: jax.Array) -> jax.Array:
        """Placed for norms, sums and what the backward pass keeps: split by positions.

        Devices along "tensor" would else hold the same (Korthikanti et al. 2022, arXiv:2205.05198).
        """
        split = ("sequence", "tensor")
        fits = x_BxTxD.shape[1] % ways(*split) == 0
        return constrain(x_BxTxD, BATCH_AXES, split if fits else "sequence", None)

    def _attention(
        self, x_BxTxD: jax.Array, drop: nn.Dropout, train: bool, is_global: jax.Array | bool | None
    ) -> jax.Array:
        b, t, d = x_BxTxD.shape
        g, k = self.kv_heads or self.heads, self.head_width or d // self.heads
        if g % ways("tensor"):
            raise MeshError(f"mesh.tensor={ways('tensor')} does not divide the {g} key heads.")
        q = self.heads // g
        # One product for all three; each group's queries, key and value lie side by side, so that
        # splitting the columns over devices splits them by groups.
        qkv = self._dense((q + 2) * g * k, "qkv", bias=bool(self.bias))(x_BxTxD)
        qkv = qkv.reshape(b, t, g, q + 2, k)
        q_BxTxGxQxK, key, value = jnp.split(qkv, [q, q + 1], axis=3)
        k_BxTxGxK, v_BxTxGxK = key.squeeze(3), value.squeeze(3)
        if self.qk_norm:
            norm = functools.partial(nn.RMSNorm, epsilon=self.epsilon, dtype=self.dtype)
            q_BxTxGxQxK = norm(name="q_norm")(q_BxTxGxQxK)
            k_BxTxGxK = norm(name="k_norm")(k_BxTxGxK)
        if self.positions == "rotary":
            theta = self.theta
            if self.global_theta is not None:
                theta = jnp.where(is_global, self.global_theta, theta)
            q_BxTxGxQxK, k_BxTxGxK = rotate(q_BxTxGxQxK, theta), rotate(k_BxTxGxK, theta)
        y_BxTxGxQxK = attend(
            q_BxTxGxQxK * k**-0.5,
            k_BxTxGxK,
            v_BxTxGxK,
            window=self.window,
            unbounded=is_global,
            softcap=self.attention_softcap,
            drop=drop if train and self.dropout else None,
        )
        y_BxTxE = y_BxTxGxQxK.reshape(b, t, self.heads * k)
        return self._dense(d, "out", residual=True)(y_BxTxE)

    def _mlp_or_experts(self, x_BxTxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        if not self.experts:
            return self._mlp(x_BxTxD, self._dense), jnp.zeros(x_BxTxD.shape[0])
        router = nn.Dense(
            self.experts.count, use_bias=False, kernel_init=Gaussian(0.02), name="router"
        )
        weights, slots, balance_B = route(router(x_BxTxD.astype(jnp.float32)), self.experts)
        x_BxExPxD = dispatch(x_BxTxD, slots, self.experts)
        y_BxExPxD = self._mlp(x_BxExPxD, self._expert_dense)
        return combine(y_BxExPxD, weights, slots), balance_B

    def _mlp(self, x: jax.Array, dense: Callable[..., nn.Module]) -> jax.Array:
        hidden = self.hidden or 4 * self.width
        h = dense(hidden, "up")(x)
        if self.mlp == "gelu":
            h = nn.gelu(h)
        else:
            gate = nn.silu if self.mlp == "swiglu" else nn.gelu
            h = gate(dense(hidden, "gate")(x)) * h
        return dense(self.width, "down", residual=True)(h)

    def _dense(
        self, features: int, name: str, residual: bool = False, bias: bool | None = None
    ) -> nn.Dense:
        return nn.Dense(
            features,
            use_bias=self.bias is True if bias is None else bias,
            dtype=self.dtype,
            kernel_init=self._kernel_init(residual),
            dot_general=dot_rows,
            name=name,
        )

    def _expert_dense(self, features: int, name: str, residual: bool = False) -> ExpertDense:
        return ExpertDense(
            features, self._kernel_init(residual), self.dtype, name=f"experts_{name}"
        )

    def _kernel_init(self, residual: bool) -> Gaussian:
        return Gaussian(0.02 / (2 * self.layers) ** 0.5 if residual else 0.02)

    def _post(self, y_BxTxD: jax.Array, name: str) -> jax.Array:
        return self.normalise(name)(y_BxTxD) if self.post_norm else y_BxTxD
