"""A mixture of experts: every token goes to a few of many MLPs."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lsm.checks import require
from lsm.mesh import BATCH_AXES, constrain, ways
from lsm.models.layers import Dtype, Initializer

_AT_EXPERTS = (("data", "fsdp"), "expert", None, None)
"""Where tokens (B, E, P, D) are while experts work on them; elsewhere rows take all of the axes."""

EXPERT_KERNELS = r"(^|/)experts_\w+/kernel$"
"""Pattern of the parameters that belong to one expert each."""


@dataclasses.dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of the MLP: every token goes to `top_k` of `count`.

    Attributes:
      count: number of experts.
      top_k: experts that a token goes to, weighed by their renormalised probabilities; a single one
        by its probability (Switch, equation 2), which is how the loss reaches the router then.
      capacity: None drops no token: they are sorted by expert (MegaBlocks, arXiv:2211.15841), or,
        on a mesh with other axes than "data" and "fsdp", and for a single row, every expert has
        room for all; docs/scale.md says what either costs. Else the places of an expert in a
        sequence of T tokens that are no padding, as a multiple of T x top_k / count (GShard,
        arXiv:2006.16668), which tokens take in the order of their positions, so that no token
        depends on later ones; who finds none is dropped.
      balance: weight of the load-balancing loss (Switch, arXiv:2101.03961), taken by sequence.
    """

    count: int = 8
    top_k: int = 2
    capacity: float | None = None
    balance: float = 0.01

    def __post_init__(self):
        require(self, top_k=f"[1, {self.count}]", balance="[0, inf)")
        if self.capacity is not None:
            require(self, capacity="(0, inf)")

    def places(self, length: int) -> int:
        """Returns the tokens of a sequence of `length` that one expert takes."""
        if self.capacity is None:
            return length
        return min(length, math.ceil(length * self.top_k * self.capacity / self.count))

    def sorts(self, rows: int) -> bool:
        """Returns whether the tokens of so many rows are sorted, on the ambient mesh."""
        # Where experts are split, XLA would bring all tokens to all of them. `ragged_dot` knows no
        # `vmap`: there is one around stages, and may be one around a single row.
        alone = ways("expert", "pipeline", "sequence", "tensor") == 1
        return self.capacity is None and alone and rows > 1 and rows % ways(*BATCH_AXES) == 0


class ExpertDense(nn.Module):
    """A dense layer for each expert, without bias: (..., D) to (..., features).

    Attributes:
      count: number of experts.
      features: outputs.
      kernel_init: draws the kernel (E, D, features).
      dtype: dtype of the computation.
      multiply: (x, kernel) -> the product of each row with its expert's matrix.
    """

    count: int
    features: int
    kernel_init: Initializer
    dtype: Dtype
    multiply: Callable[[jax.Array, jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Multiplies each expert's tokens by its kernel."""
        shape = (self.count, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        return self.multiply(x, kernel.astype(self.dtype))


class Mixture(nn.Module):
    """An MLP for each expert, and a router that sends every token to some of them.

    Attributes:
      experts: how many there are, and how many a token goes to.
      mlp: (x, dense) -> y, of layers made by `dense(features, name, residual=False)`.
      kernel_init: residual -> initialiser of those layers' kernels.
      dtype: dtype of the computation.
    """

    experts: Experts
    mlp: Callable[..., jax.Array]
    kernel_init: Callable[[bool], Initializer]
    dtype: Dtype

    @nn.compact
    def __call__(
        self, x_BxTxD: jax.Array, real_BxT: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns y (B, T, D), and the load-balancing loss (B,).

        Where `real_BxT` is False there is padding: it takes no place, and counts in no balance.
        """
        experts, init = self.experts, self.kernel_init(False)
        # In float32 whatever `dtype` says: in bfloat16 training is unstable (Switch, section 2.4).
        router = nn.Dense(experts.count, use_bias=False, kernel_init=init, name="router")
        logits_BxTxE = router(x_BxTxD.astype(jnp.float32))
        weights, choice, balance_B = route(logits_BxTxE, experts, real_BxT)
        if experts.sorts(len(x_BxTxD)):
            x, sizes_SxE, back_SxN = in_order(x_BxTxD, choice, experts.count)
            y = self.mlp(x, self._layers(lambda x, kernel: _ragged(x, kernel, sizes_SxE)))
            return in_place(y, weights, back_SxN), balance_B
        slots = places(choice, experts, real_BxT)
        dense = self._layers(lambda x, kernel: jnp.einsum("becd,edf->becf", x, kernel))
        return combine(
            self.mlp(dispatch(x_BxTxD, slots, experts), dense), weights, slots
        ), balance_B

    def _layers(self, multiply: Callable) -> Callable[..., ExpertDense]:
        # The MLP is the dense block's: it asks for layers, and gets those with a kernel an expert.
        def dense(features: int, name: str, residual: bool = False) -> ExpertDense:
            init, name = self.kernel_init(residual), f"experts_{name}"
            return ExpertDense(self.experts.count, features, init, self.dtype, multiply, name=name)

        return dense


def dropless(value: Any) -> Any:
    """Returns a task, a model or its config whose experts, wherever they are, drop no token.

    It is of the same parameters, and of them each token needs what the convention counts.
    """
    if isinstance(value, Experts):
        return dataclasses.replace(value, capacity=None)
    changes = {name: dropless(x) for name, x in _fields(value) if mixtures(x)}
    return dataclasses.replace(value, **changes) if changes else value


def mixtures(value: Any) -> list[Experts]:
    """Returns the experts in a task, a model or its config."""
    if isinstance(value, Experts):
        return [value]
    return [found for _, x in _fields(value) for found in mixtures(x)]


def _fields(value: Any) -> list[tuple[str, Any]]:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return []
    names = [field.name for field in dataclasses.fields(value) if field.init]
    return [(name, getattr(value, name)) for name in names if name not in ("parent", "name")]


def route(
    logits_BxTxE: jax.Array, experts: Experts, real_BxT: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Says which experts each token goes to.

    Args:
      logits_BxTxE: float32 logits of the router.
      experts: gives top_k.
      real_BxT: bool; False where there is padding. None has none.

    Returns:
      weights (B, T, K) of a token's choices, which sum to 1 where there are several; the choices
      (B, T, K), experts; the balance loss (B,), 1 where the load is even.
    """
    e = logits_BxTxE.shape[-1]
    probability_BxTxE = jax.nn.softmax(logits_BxTxE)
    weights_BxTxK, choice_BxTxK = _top_k(probability_BxTxE, experts.top_k)
    if experts.top_k > 1:
        weights_BxTxK /= weights_BxTxK.sum(-1, keepdims=True)
    chosen_BxTxE = jax.nn.one_hot(choice_BxTxK, e).mean(2)
    # Switch, equations 4 to 6, with all K choices counted: counts have no gradient, so it is the
    # mean probability that moves.
    where = None if real_BxT is None else real_BxT[..., None]
    share_BxE, mean_BxE = (x.mean(1, where=where) for x in (chosen_BxTxE, probability_BxTxE))
    balance_B = e * (share_BxE * mean_BxE).sum(-1)
    # The mean of a row of nothing but padding is NaN.
    return (
        weights_BxTxK,
        choice_BxTxK,
        jnp.nan_to_num(balance_B) if where is not None else balance_B,
    )


def places(
    choice_BxTxK: jax.Array, experts: Experts, real_BxT: jax.Array | None = None
) -> jax.Array:
    """Returns which place of its expert each choice gets, of those that are free in turn.

    It is the slot (B, T, K), expert x P + place, or E x P where the token is dropped or padding; P
    is `experts.places(T)`.
    """
    b, t, k = choice_BxTxK.shape
    e, p = experts.count, experts.places(t)
    chosen_BxTxKxE = jax.nn.one_hot(choice_BxTxK, e, dtype=jnp.int32)
    own_Bx1x1 = p
    if real_BxT is not None:
        chosen_BxTxKxE *= real_BxT[..., None, None]
        # A row has the places of its own tokens, whatever it is padded to.
        of_length = np.array([experts.places(length) for length in range(t + 1)])
        own_Bx1x1 = jnp.asarray(of_length)[real_BxT.sum(1)][:, None, None]
    # By positions, then choices: later tokens never take the place of earlier ones.
    queue_BxQxE = chosen_BxTxKxE.reshape(b, t * k, e)
    # How many before it in the queue chose the same expert; -1 of padding.
    place_BxQ = (jnp.cumsum(queue_BxQxE, axis=1) * queue_BxQxE).sum(-1) - 1
    place_BxTxK = place_BxQ.reshape(b, t, k)
    free = (place_BxTxK >= 0) & (place_BxTxK < own_Bx1x1)
    # Out of range where there is no place left: `dispatch` and `combine` pass over such slots.
    return jnp.where(free, choice_BxTxK * p + place_BxTxK, e * p)


def in_order(
    x_BxTxD: jax.Array, choice_BxTxK: jax.Array, count: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sorts tokens by expert, on every device by itself: S devices have N = B T K / S each.

    Returns:
      x (S, N, D), each token once for each choice; how many of them each expert has, int32 (S, E);
      and where in that order each choice is, (S, N).
    """
    s, k = ways(*BATCH_AXES), choice_BxTxK.shape[-1]
    choice_SxN = choice_BxTxK.reshape(s, -1)
    order_SxN = jnp.argsort(choice_SxN, axis=1)
    sizes_SxE = jax.nn.one_hot(choice_SxN, count, dtype=jnp.int32).sum(1)
    tokens_SxMxD = x_BxTxD.reshape(s, -1, x_BxTxD.shape[-1])
    x_SxNxD = jnp.take_along_axis(tokens_SxMxD, order_SxN[..., None] // k, axis=1)
    return x_SxNxD, sizes_SxE, jnp.argsort(order_SxN, axis=1)


def in_place(y_SxNxD: jax.Array, weights_BxTxK: jax.Array, back_SxN: jax.Array) -> jax.Array:
    """Returns the weighted sum (B, T, D) of what each token's experts made of it."""
    y_SxNxD = jnp.take_along_axis(y_SxNxD, back_SxN[..., None], axis=1)
    y_BxTxKxD = y_SxNxD.reshape(*weights_BxTxK.shape, -1)
    return jnp.einsum("btkd,btk->btd", y_BxTxKxD, weights_BxTxK.astype(y_SxNxD.dtype))


def _ragged(x_SxNxD: jax.Array, kernel_ExDxF: jax.Array, sizes_SxE: jax.Array) -> jax.Array:
    """Multiplies rows that are sorted by expert, each device its own."""

    def one(x, kernel, sizes):
        return jax.lax.ragged_dot(x[0], kernel, sizes[0])[None]

    args = (x_SxNxD, kernel_ExDxF, sizes_SxE)
    if len(x_SxNxD) == 1:
        return one(*args)
    rows, whole = jax.sharding.PartitionSpec(BATCH_AXES), jax.sharding.PartitionSpec()
    return jax.shard_map(one, in_specs=(rows, whole, rows), out_specs=rows)(*args)


def _top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k` by one maximum after the other, which splits over devices; that does not."""
    values, choices = [], []
    for _ in range(k):
        choices.append(x.argmax(-1))
        chosen = choices[-1][..., None] == jnp.arange(x.shape[-1])
        values.append(jnp.where(chosen, x, 0).sum(-1))
        x = jnp.where(chosen, -jnp.inf, x)
    return jnp.stack(values, -1), jnp.stack(choices, -1)


def dispatch(x_BxTxD: jax.Array, slot_BxTxK: jax.Array, experts: Experts) -> jax.Array:
    """Returns every expert's tokens (B, E, P, D), zeros in places that nobody took.

    On a mesh the rows leave for the devices that hold the experts: an all-to-all.
    """
    b, t, d = x_BxTxD.shape
    e, p = experts.count, experts.places(t)
    x_BxTxD = constrain(x_BxTxD, BATCH_AXES, None, None)
    token_BxTxK = jnp.broadcast_to(jnp.arange(t)[:, None], slot_BxTxK.shape)
    flat = (slot_BxTxK.reshape(b, -1), token_BxTxK.reshape(b, -1))
    # The token in each slot, or T where none is: T is out of range, and fills with zeros below.
    source_BxS = jax.vmap(lambda slot, token: jnp.full(e * p, t).at[slot].set(token, mode="drop"))(
        *flat
    )
    taken_BxSxD = jnp.take_along_axis(
        x_BxTxD, source_BxS[..., None], axis=1, mode="fill", fill_value=0
    )
    # Filled where the rows are, then sent: without this line the step has an all-to-all more.
    taken_BxExPxD = constrain(taken_BxSxD.reshape(b, e, p, d), BATCH_AXES, None, None, None)
    return constrain(taken_BxExPxD, *_AT_EXPERTS)


def combine(y_BxExPxD: jax.Array, weights_BxTxK: jax.Array, slot_BxTxK: jax.Array) -> jax.Array:
    """Returns the weighted sum (B, T, D) of what each token's experts made of it."""
    b, e, p, d = y_BxExPxD.shape
    t, k = slot_BxTxK.shape[1:]
    y_BxExPxD = constrain(y_BxExPxD, *_AT_EXPERTS)  # for its gradient, which leaves here too
    y_BxExPxD = constrain(y_BxExPxD, BATCH_AXES, None, None, None)
    # Rows are home again: each token fetches what its K slots hold, and 0 from one out of range.
    back_BxQxD = jnp.take_along_axis(
        y_BxExPxD.reshape(b, e * p, d),
        slot_BxTxK.reshape(b, t * k)[..., None],
        axis=1,
        mode="fill",
        fill_value=0,
    )
    weights_BxTxK = weights_BxTxK.astype(y_BxExPxD.dtype)
    return jnp.einsum("btkd,btk->btd", back_BxQxD.reshape(b, t, k, d), weights_BxTxK)
