"""Every optimiser at work: a convex problem, under jit and scan, with the loss passed to it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsm.durations import Horizon
from lsm.optim import (
    LAMB,
    SGD,
    Adafactor,
    Adagrad,
    Adam,
    AdamW,
    Lion,
    Momentum,
    Muon,
    ReduceOnPlateau,
    RMSProp,
    Shampoo,
)

HORIZON = Horizon(steps=300, batch_size=10, examples=100)

RATES = {
    SGD: 0.1,
    Momentum: 0.02,
    Adagrad: 0.5,
    RMSProp: 0.02,
    Adam: 0.05,
    AdamW: 0.05,
    Lion: 0.02,
    Adafactor: 0.05,
    LAMB: 0.05,
    Muon: 0.1,
    Shampoo: 0.05,
}


def least_squares():
    rng = np.random.default_rng(2)
    x_NxD = jnp.float32(rng.normal(size=(64, 5)))
    y_NxK = x_NxD @ jnp.float32(rng.normal(size=(5, 3))) + 0.5
    params = {"Dense_0": {"kernel": jnp.full((5, 3), 0.1), "bias": jnp.full(3, 0.1)}}

    def loss(params):
        dense = params["Dense_0"]
        return jnp.mean((x_NxD @ dense["kernel"] + dense["bias"] - y_NxK) ** 2)

    return params, loss


@pytest.mark.parametrize("cls", RATES)
def test_trains_a_convex_problem_under_jit(cls):
    params, loss = least_squares()
    schedule = ReduceOnPlateau(patience=3, factor=0.5, accumulation=10)
    optimizer = cls(
        learning_rate=RATES[cls], weight_decay=0.0, schedule=schedule, clip_norm=5.0, ema=0.9
    )
    transform = optimizer.make(HORIZON)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = transform.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, transform.init(params)), length=300)

    (params, _), losses = train(params)
    assert loss(params) < 0.02 * losses[0]
