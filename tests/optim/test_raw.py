"""A chain written in Optax as the optimiser of an experiment."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsm.config import schema
from lsm.config.flags import override
from lsm.durations import Horizon
from lsm.errors import ConfigError
from lsm.optim import Adam, Optimizer, Partition, Raw, averaged_params, params_ema

HORIZON = Horizon(steps=10, batch_size=1, examples=10)


def chain(horizon):
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.linear_schedule(0.1, 0.0, horizon.steps)),
        params_ema(0.5),
    )


def other(horizon):
    return optax.sgd(1.0 / horizon.steps)


def run(transform, params, count=4):
    state = transform.init(params)
    step = jax.jit(lambda g, s, p: transform.update(g, s, p, value=jnp.float32(1)))
    for seed in range(count):
        g = {"w": jnp.float32(np.random.default_rng(seed).normal(size=3))}
        updates, state = step(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_a_raw_chain_is_itself():
    params = {"w": jnp.ones(3)}
    raw, plain = Raw(chain).make(HORIZON), optax.with_extra_args_support(chain(HORIZON))
    (got, state), (want, alone) = run(raw, params), run(plain, params)
    np.testing.assert_array_equal(got["w"], want["w"])
    jax.tree.map(np.testing.assert_array_equal, state["chain"], alone)
    assert list(state) == ["chain"]
    np.testing.assert_array_equal(
        averaged_params(state, got)["w"], averaged_params(alone, want)["w"]
    )
    assert isinstance(Raw(chain), Optimizer)
    assert Raw(chain).learning_rates(HORIZON, 3, state) == {}


def test_the_loss_reaches_a_chain_that_asks_for_it():
    transform = Raw(lambda _: optax.chain(optax.sgd(0.5), optax.polyak_sgd())).make(HORIZON)
    params, _ = run(transform, {"w": jnp.ones(3)}, 1)
    assert not np.array_equal(params["w"], np.ones(3))
    with pytest.raises(TypeError, match="value"):
        transform.update({"w": jnp.ones(3)}, transform.init(params), params)


def test_a_raw_chain_runs_on_a_master_copy():
    params = {"w": jnp.full(3, 1 + 2**-12)}  # which bfloat16 would round to 1
    transform = Raw(chain).make(HORIZON, master=True)
    state = transform.init(params)
    g = {"w": jnp.full(3, 1e-3)}
    _, state = transform.update(g, state, {"w": jnp.ones(3, jnp.bfloat16)}, value=1.0)
    plain = chain(HORIZON)
    updates, _ = plain.update(g, plain.init(params), params)
    np.testing.assert_array_equal(state["master"]["w"], params["w"] + updates["w"])


def test_a_raw_chain_can_be_a_part():
    params = {"a": {"w": jnp.ones(3)}, "b": {"w": jnp.ones(3)}}
    optimizer = Partition(("^a/", Raw(other)), ("^b/", Adam(learning_rate=0.5)))
    transform = optimizer.make(HORIZON, master=True)
    updates, state = transform.update(params, transform.init(params), params, value=1.0)
    np.testing.assert_allclose(updates["a"]["w"], -0.1, rtol=1e-6)
    np.testing.assert_allclose(updates["b"]["w"], -0.5, rtol=1e-5)
    assert optimizer.learning_rates(HORIZON, 0, state) == {"learning_rate/b": 0.5}


def test_a_raw_chain_is_told_by_its_name_and_can_be_overridden():
    raw = Raw(chain)
    schema.check(raw)
    schema.check(Raw(lambda horizon: optax.sgd(1.0)))
    assert schema.to_json(raw)["chain"] == f"{__name__}.chain"
    assert override(raw, {"chain": f"{__name__}.other"}) == Raw(other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Raw(optax.adam(1e-3)),
            r"Raw\.chain: GradientTransformationExtraArgs given; allowed: a function of the horizon",
        ),
        (
            lambda: Raw(lambda horizon: 3).make(HORIZON),
            r"Raw\.chain: it returned int; an optax\.GradientTransformation is needed",
        ),
    ],
)
def test_what_is_no_chain_is_one_line(make, message):
    with pytest.raises(ConfigError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
