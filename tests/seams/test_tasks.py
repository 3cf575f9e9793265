"""What users write against the seams, on one device and on eight, trained, resumed and loaded."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from user_tasks import (
    VAE,
    Adversarial,
    ClippedByExample,
    MeanTeacher,
    noise,
    pictures,
)

import lsm
from lsm import Data, Evaluation, Experiment, Mesh, Train
from lsm.data import Arrays, Poisson
from lsm.errors import ConfigError
from lsm.models import MLP, Lora
from lsm.optim import SGD, Adam, Partition, Raw
from lsm.rng import streams
from lsm.tasks import Classification
from lsm.train import TrainState, build, make_step
from lsm.writers import Jsonl

SMALL = MLP(widths=(8,), outputs=4)
POINTS = {"x": np.random.default_rng(0).random((64, 6)).astype(np.float32)}
GAN = {"x": np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)}
PLAYERS = Partition(
    ("^generator/", Adam(learning_rate=1e-2, b1=0.5, clip_norm=1.0)),
    ("^discriminator/", SGD(learning_rate=3e-2)),
)


def experiment(task, columns, optimizer=SGD(learning_rate=0.1), **more):
    train = Train(**{"steps": 6, "batch_size": 16, "log_every": 2} | more.pop("train", {}))
    return Experiment(
        name="seam",
        task=task,
        data=Data(source=Arrays(train=columns, test=columns), **more.pop("data", {})),
        optimizer=optimizer,
        train=train,
        evaluation=Evaluation(every=3, **more.pop("evaluation", {})),
        **{"writers": ()} | more,
    )


CASES = {
    "vae": experiment(VAE(), POINTS),
    "players": experiment(Adversarial(), GAN, PLAYERS),
    "mean teacher": experiment(MeanTeacher(model=SMALL), pictures()),
    "low rank": experiment(Classification(model=Lora(SMALL, ".*", rank=2, alpha=2.0)), pictures()),
    "clipped": experiment(
        Classification(model=SMALL), pictures(), train={"gradient": ClippedByExample(0.1, 16.0)}
    ),
}


def trained(case, devices, mesh=Mesh(), **train):
    case = dataclasses.replace(case, mesh=mesh, train=dataclasses.replace(case.train, **train))
    columns = case.data.source.train
    batches = [{k: x[i : i + 16] for k, x in columns.items()} for i in (0, 16, 32)]
    program = build(case, case.horizon(64), batches[0], jax.devices()[:devices])
    state = program.init()
    for batch in batches:
        state, metrics = program.step(state, jax.device_put(batch, program.batch))
    placed = jax.device_put(batches[0], program.batch)
    figures = program.evaluate(state.params, state.model_state, placed, np.int32(0), np.int32(3))[0]
    return jax.device_get((state.params, state.model_state, metrics, figures))


def assert_close(a, b, rtol=1e-4, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mesh", [Mesh(), Mesh(data=2, fsdp=4)], ids=["data", "both"])
def test_eight_devices_equal_one(name, mesh):
    assert_close(trained(CASES[name], 8, mesh), trained(CASES[name], 1))


@pytest.mark.parametrize("name", ["clipped", "mean teacher", "low rank"])
def test_four_micro_batches_equal_one(name):
    """Without random streams, which draw anew for each micro-batch."""
    assert_close(trained(CASES[name], 4, accumulation=4), trained(CASES[name], 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_fit_resumes_to_the_last_bit_and_loads(name, tmp_path):
    case = CASES[name]
    whole = lsm.fit(case, tmp_path / "whole")
    half = dataclasses.replace(case, train=dataclasses.replace(case.train, steps=3))
    lsm.fit(half, tmp_path / "parts")
    parts = lsm.fit(case, tmp_path / "parts", allow_config_change=True)
    assert parts.fingerprint == whole.fingerprint
    assert parts.metrics == whole.metrics
    run = lsm.load(tmp_path / "whole", experiment=case)
    assert run.step == 6
    columns = {k: x[:5] for k, x in case.data.source.train.items() if k != "label"}
    rows = {len(x) for x in run.predict(columns).values()}
    assert rows == {5}


@pytest.mark.slow
def test_vae_draws_by_seed_stream_and_step_also_in_evaluation():
    one, again = trained(CASES["vae"], 1), trained(CASES["vae"], 1)
    jax.tree.map(np.testing.assert_array_equal, one, again)
    other = trained(CASES["vae"], 1, seed=1)
    assert not np.allclose(one[3]["loss"].sum, other[3]["loss"].sum)


def test_the_step_warms_a_term_up():
    task, batch = VAE(), {"x": POINTS["x"][:8]}
    params, state = task.init(jax.random.key(0), batch)
    rngs = {"noise": jax.random.key(1)}
    found = [task.evaluate(params, state, batch, rngs, step) for step in (0, 2, 4, 8)]
    kl = float(found[0]["kl"].sum)
    losses = np.array([float(f["loss"].sum) for f in found])
    np.testing.assert_allclose(losses - losses[0], [0, kl / 2, kl, kl], rtol=1e-4, atol=1e-4)


def test_a_stream_that_nobody_named_is_one_line():
    task, batch = VAE(), {"x": POINTS["x"][:8]}
    params, state = task.init(jax.random.key(0), batch)
    with pytest.raises(
        ConfigError, match=r"Autoencoder draws from the random stream 'noise'; there is dropout"
    ):
        task.evaluate(params, state, batch, {"dropout": jax.random.key(0)})


@pytest.mark.slow
def test_two_players_equal_two_loops_of_optax():
    """Each player's own gradient, transform and state, side by side."""
    case = CASES["players"]
    task, batch = case.task, {"x": GAN["x"][:16]}
    horizon = case.horizon(64)
    transform = PLAYERS.make(horizon)
    params, _ = task.init(jax.random.key(0), batch)
    state = TrainState(jnp.int32(0), params, {}, transform.init(params))
    step = jax.jit(make_step(task, transform))
    alone = {part.pattern[1:-1]: part.optimizer.make(horizon) for part in PLAYERS.parts}
    states = {name: tx.init({name: params[name]}) for name, tx in alone.items()}
    for number in range(4):
        rngs = streams(task.streams, 0, number)

        def loss(own, name, params=params, rngs=rngs):
            outputs, _ = task.forward({**params, **own}, {}, batch, rngs, True, 0)
            return task.metrics(outputs, batch, True, 0)[name].mean

        new = dict(params)
        for name, tx in alone.items():
            own = {name: params[name]}
            updates, states[name] = tx.update(jax.grad(loss)(own, name), states[name], own)
            new |= optax.apply_updates(own, updates)
        params = new
        state, _ = step(state, batch)
    assert_close(state.params, params)


def test_learning_rates_are_logged_by_part(tmp_path):
    case = dataclasses.replace(CASES["players"], writers=(Jsonl(),))
    lsm.fit(case, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    row = next(row for row in rows if row["split"] == "train")
    assert row["learning_rate/generator"] == pytest.approx(1e-2)
    assert row["learning_rate/discriminator"] == pytest.approx(3e-2)


def test_the_teacher_is_the_moving_average_of_every_update():
    task, batch = CASES["mean teacher"].task, pictures(16)
    transform = SGD(learning_rate=0.1).make(CASES["vae"].horizon(64))
    params, model_state = task.init(jax.random.key(0), batch)
    state = TrainState(jnp.int32(0), params, model_state, transform.init(params))
    step, teacher = jax.jit(make_step(task, transform, accumulation=4)), params
    for _ in range(3):
        state, _ = step(state, batch)
        teacher = jax.tree.map(lambda t, p: 0.9 * t + 0.1 * p, teacher, state.params)
    assert_close(state.model_state["teacher"], teacher)


@pytest.mark.slow
def test_clipping_by_example_is_that_of_a_loop():
    """Sum of clipped gradients over a fixed divisor, then noise from an Optax transform."""
    norm, expected, std = 0.1, 12.0, 0.01
    task, batch = Classification(model=SMALL), pictures(16)
    batch["weight"] = np.r_[np.ones(13), np.zeros(3)].astype(np.float32)
    params, _ = task.init(jax.random.key(0), batch)
    private = optax.chain(noise(std, 7), optax.sgd(0.5))
    state = TrainState(jnp.int32(0), params, {}, private.init(params))
    step = make_step(task, private, gradient=ClippedByExample(norm, expected))
    new, metrics = jax.jit(step)(state, batch)
    total = jax.tree.map(np.zeros_like, params)
    for row in range(13):
        one = {k: x[row : row + 1] for k, x in batch.items()}
        grads = jax.grad(lambda p, one=one: task.loss(p, {}, one, {})[0])(params)
        size = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
        assert size > norm  # else nothing is clipped here
        total = jax.tree.map(lambda t, g, s=size: t + g * min(1, norm / s), total, grads)
    mean = jax.tree.map(lambda t: t / expected, total)
    noisy, _ = noise(std, 7).update(mean, jnp.int32(0))
    assert_close(new.params, jax.tree.map(lambda p, g: p - 0.5 * g, params, noisy))
    assert float(metrics["loss"].weight) == 13


@pytest.mark.slow
def test_poisson_batches_through_fit(tmp_path):
    case = experiment(
        Classification(model=SMALL),
        pictures(),
        Raw(lambda horizon: optax.chain(optax.add_noise(0.01, 0.0, key=0), optax.sgd(0.5))),
        data={"sampling": Poisson(8)},
        train={"gradient": ClippedByExample(0.1, 8.0), "batch_size": 40, "accumulation": 5},
    )
    whole = lsm.fit(case, tmp_path / "whole")
    half = dataclasses.replace(case, train=dataclasses.replace(case.train, steps=3))
    lsm.fit(half, tmp_path / "parts")
    parts = lsm.fit(case, tmp_path / "parts", allow_config_change=True)
    assert parts.fingerprint == whole.fingerprint
