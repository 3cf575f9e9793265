"""A mixture of experts: every token goes to a few of many MLPs."""

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsm.checks import require
from lsm.mesh import BATCH_AXES, constrain
from lsm.models.layers import Dtype, Initializer

_AT_EXPERTS = (("data", "fsdp"), "expert", None, None)
"""Where tokens (B, E, P, D) are while experts work on them; elsewhere rows take all of the axes."""


@dataclasses.dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of the MLP: every token goes to `top_k` of `count`.

    Each sequence fills the experts' places in turn, first choices first, so that what is dropped
    does not depend on the mesh or on the other rows (GShard, arXiv:2006.16668).

    Attributes:
      count: number of experts.
      top_k: experts that a token goes to, weighed by their renormalised probabilities.
      capacity: places of an expert in a sequence, as a multiple of T x top_k / count; tokens
        beyond it are dropped. None has room for all.
      balance: weight of the load-balancing loss (Switch, arXiv:2101.03961), taken by sequence.
    """

    count: int = 8
    top_k: int = 2
    capacity: float | None = 1.25
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


class ExpertDense(nn.Module):
    """A dense layer for each expert, without bias: (B, E, C, D) to (B, E, C, features).

    Attributes:
      features: outputs.
      kernel_init: draws the kernel (E, D, features).
      dtype: dtype of the computation.
    """

    features: int
    kernel_init: Initializer
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BxExCxD: jax.Array) -> jax.Array:
        """Multiplies each expert's tokens by its kernel."""
        _, e, _, d = x_BxExCxD.shape
        kernel = self.param("kernel", self.kernel_init, (e, d, self.features), jnp.float32)
        return jnp.einsum("becd,edf->becf", x_BxExCxD, kernel.astype(self.dtype))


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
    def __call__(self, x_BxTxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns y (B, T, D), and the load-balancing loss (B,)."""
        init = self.kernel_init(False)
        # In float32 whatever `dtype` says: in bfloat16 training is unstable (Switch, section 2.4).
        router = nn.Dense(self.experts.count, use_bias=False, kernel_init=init, name="router")
        weights, slots, balance_B = route(router(x_BxTxD.astype(jnp.float32)), self.experts)

        def dense(features: int, name: str, residual: bool = False) -> ExpertDense:
            init = self.kernel_init(residual)
            return ExpertDense(features, init, self.dtype, name=f"experts_{name}")

        # The MLP is the dense block's: it asks for layers, and gets those with a kernel an expert.
        y_BxExPxD = self.mlp(dispatch(x_BxTxD, slots, self.experts), dense)
        return combine(y_BxExPxD, weights, slots), balance_B


def route(logits_BxTxE: jax.Array, experts: Experts) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Says which expert and which of its places each token gets.

    Args:
      logits_BxTxE: float32 logits of the router.
      experts: gives top_k and capacity; P is its number of places.

    Returns:
      weights (B, T, K) of a token's choices, which sum to 1; slots (B, T, K), expert x P + place,
      or E x P where the token is dropped; the balance loss (B,), 1 where the load is even.
    """
    b, t, e = logits_BxTxE.shape
    k, places = experts.top_k, experts.places(t)
    probability_BxTxE = jax.nn.softmax(logits_BxTxE)
    weights_BxTxK, choice_BxTxK = _top_k(probability_BxTxE, k)
    weights_BxTxK /= weights_BxTxK.sum(-1, keepdims=True)
    chosen_BxTxKxE = jax.nn.one_hot(choice_BxTxK, e, dtype=jnp.int32)
    # Switch, equations 4 to 6, with all K choices counted: counts have no gradient, so it is the
    # mean probability that moves.
    share_BxE = chosen_BxTxKxE.mean((1, 2), dtype=jnp.float32)
    balance_B = e * (share_BxE * probability_BxTxE.mean(1)).sum(-1)
    # Queues of all first choices, then of all second ones, ...
    queue_BxQxE = chosen_BxTxKxE.swapaxes(1, 2).reshape(b, k * t, e)
    # How many before it in the queue chose the same expert.
    place_BxQ = ((jnp.cumsum(queue_BxQxE, axis=1) - 1) * queue_BxQxE).sum(-1)
    place_BxTxK = place_BxQ.reshape(b, k, t).swapaxes(1, 2)
    # Out of range where there is no place left: `dispatch` and `combine` pass over such slots.
    slot_BxTxK = jnp.where(place_BxTxK < places, choice_BxTxK * places + place_BxTxK, e * places)
    return weights_BxTxK, slot_BxTxK, balance_B


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
