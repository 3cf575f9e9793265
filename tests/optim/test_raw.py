"""A chain written in Optax as the optimiser of an experiment."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lsm
from lsm import Data, Evaluation, Experiment, Train
from lsm.config import schema
from lsm.config.flags import describe, override
from lsm.data import Arrays, Digits
from lsm.durations import Horizon
from lsm.errors import ConfigError
from lsm.models import MLP
from lsm.optim import SGD, Adam, Optimizer, Partition, Raw, averaged_params, params_ema
from lsm.tasks import Classification
from lsm.train import build
from lsm.train.program import evaluated
from lsm.writers import Jsonl

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


class Normed(nn.Module):
    """Two dense layers with batch norm between."""

    outputs: int = 3

    @nn.compact
    def __call__(self, x_BxD, train=False):
        x_BxD = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(5)(x_BxD))
        return nn.Dense(self.outputs)(nn.relu(x_BxD))


def pictures(rows=40):
    random = np.random.default_rng(0)
    label = random.integers(0, 3, rows).astype(np.int32)
    return {"image": np.float32(random.normal(size=(rows, 4)) + 3 * label[:, None]), "label": label}


def experiment(optimizer, **train):
    return Experiment(
        name="raw",
        task=Classification(model=Normed()),
        data=Data(source=Arrays(train=pictures(), test=pictures(27))),
        optimizer=optimizer,
        train=Train(**{"steps": 3, "batch_size": 16, "log_every": 1} | train),
        evaluation=Evaluation(every=3),
        writers=(Jsonl(),),
    )


@pytest.mark.slow
def test_a_raw_chain_averages_batch_norm_as_an_algorithm_does():
    """To the bit: the averages of parameters and statistics, accumulated, and what they say."""
    ends = []
    for optimizer in (
        optax.chain(optax.sgd(0.1), params_ema(0.5)),
        SGD(learning_rate=0.1, ema=0.5),
    ):
        config = experiment(optimizer, accumulation=2)
        batch = pictures(16)
        program = build(config, config.horizon(40), batch, jax.devices()[:1])
        state = program.init()
        for _ in range(3):
            state, _ = program.step(state, jax.device_put(batch, program.batch))
        averages = evaluated(state)
        placed = jax.device_put(batch, program.batch)
        figures = program.evaluate(*averages, placed, np.int32(0), np.int32(3))
        ends.append(jax.device_get((state.params, state.model_state, averages, figures)))
    jax.tree.map(np.testing.assert_array_equal, *ends)
    params, model_state, averages, _ = ends[0]
    for now, average in zip((params, model_state), averages, strict=True):
        assert not np.array_equal(jax.tree.leaves(now)[0], jax.tree.leaves(average)[0])


@pytest.mark.slow
def test_a_transform_is_an_optimizer_through_fit(tmp_path):
    """Resumed to the last bit; the learning rate, which the state has, is that of each step."""
    rate = optax.linear_schedule(0.1, 0.0, 4)
    chain = optax.chain(optax.inject_hyperparams(optax.adam)(rate), params_ema(0.5))
    config = experiment(chain)
    assert config.optimizer == Raw(chain)
    schema.check(config)
    whole = lsm.fit(config, tmp_path / "whole")
    lsm.fit(experiment(chain, steps=2), tmp_path / "parts")
    parts = lsm.fit(config, tmp_path / "parts", allow_config_change=True)
    assert (parts.fingerprint, parts.metrics) == (whole.fingerprint, whole.metrics)
    rows = map(json.loads, (tmp_path / "parts/metrics.jsonl").read_text().splitlines())
    rates = [row["learning_rate"] for row in rows if row["split"] == "train"]
    np.testing.assert_allclose(rates, [0.1, 0.075, 0.05], rtol=1e-6)
    loaded = lsm.load(tmp_path / "whole", experiment=config)
    assert loaded.predict({"image": pictures()["image"]})["label"].shape == (40,)


def test_learning_rates_of_several_are_numbered_and_of_none_not_there():
    injected = optax.inject_hyperparams(optax.sgd)
    for chain, rates in (
        (
            optax.chain(injected(0.5), injected(0.25)),
            {"learning_rate/0": 0.5, "learning_rate/1": 0.25},
        ),
        (optax.inject_hyperparams(optax.scale)(-0.5), {}),
        (optax.sgd(0.5), {}),
    ):
        state = Raw(chain).make(HORIZON).init({"w": jnp.ones(3)})
        assert Raw(chain).learning_rates(HORIZON, 0, state) == rates
        assert Raw(chain).learning_rates(HORIZON, 0) == {}


def test_a_part_takes_a_transform():
    partition = Partition(("^a/", optax.sgd(0.1)), (".*", Adam(learning_rate=0.5)))
    assert isinstance(partition.parts[0].optimizer, Raw)


MASK = jnp.ones(3)


@pytest.mark.parametrize(
    "make",
    [
        optax.adamw,
        lambda rate: optax.adam(optax.cosine_decay_schedule(rate, 9)),
        lambda rate: optax.inject_hyperparams(optax.adam)(optax.cosine_decay_schedule(rate, 9)),
        lambda rate: optax.inject_hyperparams(optax.adam)(rate),
        lambda rate: optax.MultiSteps(optax.sgd(rate), 2).gradient_transformation(),
        lambda rate: optax.multi_transform({"a": optax.sgd(rate)}, lambda p: "a"),
        lambda rate: optax.masked(optax.sgd(0.1), {"w": MASK * rate}),
    ],
)
def test_config_json_tells_chains_apart_by_what_they_were_made_with(make):
    one, same, other = (json.loads(json.dumps(schema.to_json(Raw(make(r))))) for r in (1, 1, 2))
    assert schema.differences(one, same) == []
    (line, *_) = schema.differences(one, other)
    assert line.startswith("chain.")
    told = schema.from_json(one, Optimizer)
    assert schema.to_json(told) == one
    with pytest.raises(ConfigError, match="chain: a transform of Optax, which JSON does not give"):
        told.make(HORIZON)


def test_a_run_loads_without_its_transform(tmp_path):
    data, task = Data(source=Digits()), Classification(model=MLP(widths=(4,)))
    config = dataclasses.replace(experiment(optax.sgd(0.1), steps=1), data=data, task=task)
    lsm.fit(config, tmp_path)
    found = lsm.load(tmp_path).predict({"image": np.zeros((2, 8, 8, 1), np.uint8)})
    assert found["label"].shape == (2,)


def test_another_chain_in_the_workdir_is_refused(tmp_path):
    lsm.fit(experiment(optax.sgd(0.1)), tmp_path)
    with pytest.raises(
        ConfigError, match=r"optimizer\.chain\.[\w.]+\.step_size: -0\.1 -> -0\.2[.;]"
    ):
        lsm.fit(experiment(optax.sgd(0.2)), tmp_path)


def test_help_shows_a_chain_on_one_line():
    shown = [line for line in describe(experiment(optax.sgd(0.1))) if "optimizer.chain" in line]
    assert len(shown) == 1 and shown[0].endswith(" = an Optax transform")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Raw(1e-3),
            r"Raw\.chain: float given; allowed: a transform of Optax, such as optax\.adam\(1e-3\), or",
        ),
        (
            lambda: Raw(lambda horizon: 3).make(HORIZON),
            r"Raw\.chain: it returned int; a transform of Optax is needed",
        ),
    ],
)
def test_what_is_no_chain_is_one_line(make, message):
    with pytest.raises(ConfigError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
