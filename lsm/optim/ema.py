"""Exponential moving average of the parameters, as an Optax transform."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class ParamsEmaState(NamedTuple):
    """State of `params_ema`."""

    count: jax.Array  # shape=(), dtype=int32: updates seen.
    average: optax.Params  # shapes and dtypes of the parameters.


def params_ema(decay: float) -> optax.GradientTransformation:
    """Keeps the exponential moving average of the parameters; updates pass unchanged.

    Must stand last in a chain: the average takes in `params + updates`. After t updates it is

        (1 - decay) / (1 - decay^t) * sum_i decay^(t - i) * params_i,    i = 1 .. t,

    the bias correction of Adam (Kingma & Ba 2015, section 3): the random initial parameters
    have no share in it, so it is of use from the first step on. Averaging as in Polyak & Juditsky
    1992.

    Args:
      decay: in (0, 1); the average looks back over about 1 / (1 - decay) steps.

    Returns:
      A transform whose state is a `ParamsEmaState`; before the first update its average is the
      initial parameters.
    """

    def init(params: optax.Params) -> ParamsEmaState:
        return ParamsEmaState(jnp.zeros([], jnp.int32), jax.tree.map(jnp.array, params))

    def update(updates, state, params=None):
        count = optax.safe_increment(state.count)
        # 1 - decay^t by expm1: the plain difference loses all digits for decay near 1.
        share = (1 - decay) / -jnp.expm1(count * math.log(decay))
        average = jax.tree.map(
            lambda a, p: a + (share * (p - a)).astype(a.dtype),
            state.average,
            optax.apply_updates(params, updates),
        )
        return updates, ParamsEmaState(count, average)

    return optax.GradientTransformation(init, update)


def averaged_params(opt_state: Any, params: optax.Params) -> optax.Params:
    """Returns the averaged parameters in `opt_state` where there are any, else `params`.

    Args:
      opt_state: state of any Optax transform; several averages of disjoint parts are put together.
      params: the parameters; frozen leaves, which have no average, are taken from here.
    """
    for state in jax.tree.leaves(opt_state, is_leaf=_is(ParamsEmaState)):
        if isinstance(state, ParamsEmaState):
            params = jax.tree.map(
                lambda a, p: p if isinstance(a, optax.MaskedNode) else a,
                state.average,
                params,
                is_leaf=_is(optax.MaskedNode),
            )
    return params


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda node: isinstance(node, kind)
