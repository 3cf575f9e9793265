"""bfloat16 parameters with a float32 master copy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lsm
from lsm import Checkpoint, Data, Evaluation, Experiment, Train
from lsm.data import Arrays
from lsm.durations import Horizon
from lsm.errors import ConfigError
from lsm.models import MLP
from lsm.optim import SGD, AdamW, Group, ReduceOnPlateau, keep_master
from lsm.params import names
from lsm.tasks import Classification
from lsm.train import build, init_state, make_step

B = 16
TASK = Classification(model=MLP(widths=(32,)))


def pictures(seed=0, rows=B):
    random = np.random.default_rng(seed)
    label_B = random.integers(0, 4, rows, dtype=np.int32)
    image = random.integers(0, 100, (rows, 4, 4, 1)) + 30 * label_B[:, None, None, None]
    return {"image": image.astype(np.uint8), "label": label_B}


def steps(optimizer, dtype, count=5):
    """Returns the states after each of `count` steps."""
    horizon = Horizon(steps=count, batch_size=B, examples=B)
    tx = optimizer.make(horizon, master=dtype != "float32")
    states = [init_state(TASK, tx, pictures(), seed=0, dtype=dtype)]
    step = jax.jit(make_step(TASK, tx))
    for seed in range(count):
        states.append(step(states[-1], pictures(seed))[0])
    return states


def assert_rounded(state):
    """The parameters are the master copy, rounded; frozen ones have none."""
    masters = dict(jax.tree_util.tree_leaves_with_path(state.opt_state["master"]))
    assert masters
    for path, x in jax.tree_util.tree_leaves_with_path(state.params):
        assert x.dtype == jnp.bfloat16
        if path in masters:
            assert masters[path].dtype == jnp.float32
            np.testing.assert_array_equal(x, masters[path].astype(jnp.bfloat16))


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(learning_rate=0.1),
        SGD(learning_rate=100.0),  # far jumps: the difference of two values is not exact
        AdamW(learning_rate=1e-2, weight_decay=0.1, clip_norm=1.0, ema=0.5),
        AdamW(learning_rate=1e-2, groups=(Group("Dense_0", 0.0), Group("Dense_1", 0.5))),
    ],
    ids=["sgd", "far", "adamw", "groups"],
)
def test_parameters_are_the_rounded_master_copy(optimizer):
    states = steps(optimizer, "bfloat16")
    for state in states:
        assert_rounded(state)
    assert not np.array_equal(
        states[0].opt_state["master"]["Dense_1"]["kernel"],
        states[-1].opt_state["master"]["Dense_1"]["kernel"],
    )


def test_updates_that_bfloat16_would_lose_add_up():
    params = {"w": jnp.ones(3)}
    rounded, tiny = {"w": params["w"].astype(jnp.bfloat16)}, {"w": jnp.ones(3, jnp.bfloat16)}
    plain, master = optax.sgd(1e-4), keep_master(optax.named_chain(("core", optax.sgd(1e-4))))
    state, lost, kept = master.init(params), rounded, rounded
    for _ in range(100):
        lost = optax.apply_updates(lost, plain.update(tiny, plain.init(lost))[0])
        updates, state = master.update(tiny, state, kept)
        kept = optax.apply_updates(kept, updates)
    np.testing.assert_array_equal(lost["w"], rounded["w"])  # 1 - 1e-4 rounds to 1
    np.testing.assert_allclose(state["master"]["w"], 0.99, rtol=1e-5)
    np.testing.assert_array_equal(kept["w"], jnp.full(3, 0.99, jnp.bfloat16))


def test_training_is_near_that_in_float32():
    """Gradients see parameters rounded to 8 bits, so 2^-8 of what each parameter moves."""
    optimizer = SGD(learning_rate=0.1)
    found = steps(optimizer, "bfloat16", 20)[-1].opt_state["master"]
    states = steps(optimizer, "float32", 20)
    for start, x, expected in zip(
        *(jax.tree.leaves(tree) for tree in (states[0].params, found, states[-1].params)),
        strict=True,
    ):
        moved = np.abs(expected - start).max()
        assert moved > 0
        assert np.abs(x - expected).max() < 0.05 * moved


def test_the_moving_average_is_of_the_master_copy():
    states = steps(AdamW(learning_rate=1e-2, ema=0.5), "bfloat16", 3)
    masters = [np.asarray(s.opt_state["master"]["Dense_0"]["kernel"]) for s in states[1:]]
    expected = (0.25 * masters[0] + 0.5 * masters[1] + masters[2]) / 1.75
    average = states[-1].opt_state["ema"].average["Dense_0"]["kernel"]
    assert average.dtype == jnp.float32
    np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-7)


def test_reduce_on_plateau_is_told_of_the_loss_and_found():
    schedule = ReduceOnPlateau(factor=0.5, patience=1)
    optimizer = SGD(learning_rate=0.1, schedule=schedule)
    horizon = Horizon(steps=20, batch_size=B, examples=B)
    tx = optimizer.make(horizon, master=True)
    params = {"w": jnp.ones(2)}
    state = tx.init(params)
    for _ in range(12):
        _, state = tx.update(params, state, params, value=jnp.float32(1))
    assert 0 < optimizer.learning_rates(horizon, 12, state)["learning_rate"] < 0.1


def test_frozen_parameters_stay_and_have_neither_state_nor_master_copy():
    frozen = (Group("Dense_0", 0.0), Group("Dense_1/kernel", 0.5))
    first, *_, last = steps(AdamW(learning_rate=1e-2, ema=0.5, groups=frozen), "bfloat16")
    for name in ("kernel", "bias"):
        before, after = (s.params["Dense_0"][name] for s in (first, last))
        assert np.asarray(before).tobytes() == np.asarray(after).tobytes()
        assert not np.array_equal(first.params["Dense_1"][name], last.params["Dense_1"][name])
    kept = dict(zip(names(last.opt_state), jax.tree.leaves(last.opt_state), strict=True))
    assert [name for name in kept if "Dense_0" in name] == []
    trained = sum(x.size for x in jax.tree.leaves(last.params["Dense_1"]))
    assert sum(x.size for x in kept.values() if x.ndim) == 4 * trained  # master, mu, nu, average


def test_a_model_that_is_wholly_frozen_keeps_counters_only():
    optimizer = AdamW(learning_rate=1e-2, clip_norm=1.0, ema=0.5, groups=(Group(".*", 0.0),))
    first, *_, last = steps(optimizer, "bfloat16", 2)
    jax.tree.map(np.testing.assert_array_equal, first.params, last.params)
    assert all(x.ndim == 0 for x in jax.tree.leaves(last.opt_state))


def test_freezing_does_not_change_the_steps_of_the_others():
    """The same bits as with the master copy kept around the freeze."""
    optimizer = AdamW(learning_rate=1e-2, ema=0.5, groups=(Group("Dense_0", 0.0),))
    tx = keep_master(optimizer.make(Horizon(steps=5, batch_size=B, examples=B)))
    around = init_state(TASK, tx, pictures(), seed=0, dtype="bfloat16")
    for seed in range(5):
        around, _ = jax.jit(make_step(TASK, tx))(around, pictures(seed))
    inside = steps(optimizer, "bfloat16")[-1]
    jax.tree.map(np.testing.assert_array_equal, inside.params, around.params)
    jax.tree.map(
        np.testing.assert_array_equal,
        inside.opt_state["master"]["Dense_1"],
        around.opt_state["master"]["Dense_1"],
    )


def experiment(**train):
    columns = {split: pictures(seed, 96) for seed, split in enumerate(("train", "test"))}
    return Experiment(
        name="master",
        task=TASK,
        data=Data(source=Arrays(**columns), test="test"),
        optimizer=AdamW(learning_rate=1e-2, ema=0.9),
        train=Train(**{"steps": 8, "batch_size": B, "params": "bfloat16"} | train),
        evaluation=Evaluation(every=4),
        checkpoint=Checkpoint(every=4, keep=9),
        writers=(),
    )


@pytest.mark.slow
def test_a_run_that_is_resumed_ends_with_the_same_bits(tmp_path):
    whole = lsm.fit(experiment(), tmp_path / "whole")
    lsm.fit(experiment(steps=4), tmp_path / "parts")
    parts = lsm.fit(experiment(), tmp_path / "parts", allow_config_change=True)
    assert parts.fingerprint == whole.fingerprint
    assert parts.metrics == whole.metrics
    assert whole.metrics["test"]["accuracy"] > 0.3


def test_parameters_take_half_the_bytes():
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        program = build(experiment(params=dtype), Horizon(8, B, 96), pictures(), jax.devices()[:1])
        rows = program.table()
        sizes[dtype] = sum(row[-1] for row in rows if row[0].startswith("params/"))
        assert any(row[0].startswith("opt_state/master/") for row in rows) == (dtype != "float32")
    assert sizes["float32"] == 2 * sizes["bfloat16"]


def test_an_unknown_dtype_is_one_line():
    from lsm.config import schema

    with pytest.raises(ConfigError, match="train.params"):
        schema.check(dataclasses.replace(experiment(), train=Train(steps=1, params="float16")))
