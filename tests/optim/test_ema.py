"""Averages of the model state: which average an array goes with, and what has none."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lsm.durations import Horizon
from lsm.optim import SGD, Group, Partition, averaged_model_state, with_model_state

HORIZON = Horizon(steps=10, batch_size=1, examples=10)
PARAMS = {
    name: {"Dense_0": {"kernel": jnp.ones((2, 2))}, "BatchNorm_0": {"scale": jnp.ones(2)}}
    for name in ("generator", "critic")
}
MODEL_STATE = {
    "batch_stats": {
        name: {"BatchNorm_0": {"mean": jnp.zeros(2)}, "count": jnp.int32(0)} for name in PARAMS
    }
}


def after(optimizer, value):
    """Averages after an update by 0 with a model state that is `value` everywhere."""
    transform = optimizer.make(HORIZON)
    state = with_model_state(transform.init(PARAMS), MODEL_STATE, PARAMS)
    new = jax.tree.map(lambda x: jnp.full_like(x, value), MODEL_STATE)
    for model_state in (MODEL_STATE, new):
        updates = jax.tree.map(jnp.zeros_like, PARAMS)
        _, state = transform.update(updates, state, PARAMS, model_state=model_state)
    return averaged_model_state(state, new)["batch_stats"]


def test_counters_are_not_averaged():
    found = after(SGD(learning_rate=0.1, ema=0.5), 3)
    for player in found.values():
        np.testing.assert_allclose(player["BatchNorm_0"]["mean"], 2)  # (0.5 x 0 + 1 x 3) / 1.5
        assert player["count"] == 3


def test_an_array_goes_with_the_parameters_of_its_module():
    parts = Partition(
        ("^generator/", SGD(learning_rate=0.1, ema=0.5)), (".*", SGD(learning_rate=0.1))
    )
    found = after(parts, 3)
    np.testing.assert_allclose(found["generator"]["BatchNorm_0"]["mean"], 2)
    np.testing.assert_allclose(found["critic"]["BatchNorm_0"]["mean"], 3)


def test_frozen_modules_have_no_average():
    found = after(SGD(learning_rate=0.1, ema=0.5, groups=(Group("^critic/", 0),)), 3)
    np.testing.assert_allclose(found["generator"]["BatchNorm_0"]["mean"], 2)
    np.testing.assert_allclose(found["critic"]["BatchNorm_0"]["mean"], 3)


def test_without_a_model_state_the_state_is_as_it_was():
    transform = SGD(learning_rate=0.1, ema=0.5).make(HORIZON)
    state = transform.init(PARAMS)
    assert jax.tree.structure(with_model_state(state, {}, PARAMS)) == jax.tree.structure(state)
    updates = jax.tree.map(jnp.zeros_like, PARAMS)
    _, state = transform.update(updates, state, PARAMS)  # and needs none
    assert optax.tree.get(state, "count") == 1
