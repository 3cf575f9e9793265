"""The pure step: accumulation, weights, meshes, determinism, skipped updates."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsm.durations import Horizon
from lsm.mesh import Fsdp, Mesh, Rule, batch_sharding, jit, make_mesh, replicated, shard
from lsm.metrics import Weighted
from lsm.models import CNN, GPT, MLP, Transformer
from lsm.optim import SGD, Adam, Linear, Raw, ReduceOnPlateau
from lsm.tasks import CONSTANTS, Classification, LanguageModelling, Regression
from lsm.train import init_state, make_step, skip_nonfinite
from lsm.train.program import evaluated
from lsm.train.state import TrainState, finite

HORIZON = Horizon(steps=10, batch_size=16, examples=64)


def pictures(rows=16, seed=0, weight=None):
    random = np.random.default_rng(seed)
    batch = {
        "image": random.integers(0, 256, (rows, 8, 8, 1), dtype=np.uint8),
        "label": random.integers(0, 10, rows, dtype=np.int32),
    }
    return batch if weight is None else batch | {"weight": np.asarray(weight, np.float32)}


def text(rows=16, seed=0):
    tokens = np.random.default_rng(seed).integers(0, 11, (rows, 9), dtype=np.int32)
    return {"tokens": tokens}


MLP_TASK = Classification(model=MLP(widths=(32,)))
GPT_TASK = LanguageModelling(
    model=GPT(vocabulary=11, context=8, transformer=Transformer(layers=2, heads=2, width=16))
)
ADAM = Adam(learning_rate=1e-2)


@functools.cache
def start_of(task, optimizer):
    tx = optimizer.make(HORIZON)
    return jax.jit(lambda batch: init_state(task, tx, batch, seed=0))


def plainly(step):
    return step


@functools.cache
def step_of(task, optimizer, wrap, **options):
    return jax.jit(wrap(make_step(task, optimizer.make(HORIZON), **options)))


def steps(task, batches, optimizer=ADAM, wrap=plainly, **options):
    state, step = start_of(task, optimizer)(batches[0]), step_of(task, optimizer, wrap, **options)
    for batch in batches:
        state, metrics = step(state, batch)
    return state, metrics


def assert_close(a, b, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    ("task", "make", "accumulation", "unrolls"),
    # A GPT's gradients in a loop are below, over devices.
    [(MLP_TASK, pictures, 4, (False, True)), (GPT_TASK, text, 2, (True,))],
    ids=["mlp", "gpt"],
)
def test_accumulation_equals_the_whole_batch(task, make, accumulation, unrolls):
    batches = [make(seed=i) for i in range(3)]
    sgd = SGD(learning_rate=0.1)
    whole, whole_metrics = steps(task, batches, sgd)
    for unroll in unrolls:
        parts, parts_metrics = steps(task, batches, sgd, accumulation=accumulation, unroll=unroll)
        assert_close(whole.params, parts.params)
        assert_close(whole_metrics, parts_metrics)


def test_accumulation_is_exact_for_uneven_weights():
    # Micro-batch i holds rows i, i + 4, ...: their weights sum to 0, 3, 8 and 1.
    weight = np.zeros(16)
    weight[1::4], weight[2::4], weight[3] = 0.75, 2, 1
    batches = [pictures(seed=i, weight=weight) for i in range(3)]
    sgd = SGD(learning_rate=0.1)
    whole, metrics = steps(MLP_TASK, batches, sgd)
    parts, _ = steps(MLP_TASK, batches, sgd, accumulation=4)
    assert float(metrics["loss"].weight) == 12
    assert_close(whole.params, parts.params)


def test_an_example_of_weight_zero_does_not_count():
    weight = np.r_[np.ones(12), np.zeros(4)]
    padded = pictures(weight=weight)
    short = {name: column[:12] for name, column in padded.items()}
    sgd = SGD(learning_rate=0.1)
    assert_close(steps(MLP_TASK, [padded], sgd)[0].params, steps(MLP_TASK, [short], sgd)[0].params)


def test_gradient_is_the_two_layer_network_written_by_hand():
    """SYSTEMS A9: forward, backward and update of a ReLU network, in NumPy."""
    task = Regression(model=MLP(widths=(4,), outputs=1), form="half")
    random = np.random.default_rng(0)
    x, y = random.normal(size=(6, 3)).astype("f"), random.normal(size=6).astype("f")
    batch, sgd = {"x": x, "y": y}, SGD(learning_rate=0.1)
    new, _ = steps(task, [batch], sgd)
    params = jax.tree.map(np.asarray, start_of(task, sgd)(batch).params)
    b1, w1 = params["Dense_0"]["bias"], params["Dense_0"]["kernel"]
    b2, w2 = params["Dense_1"]["bias"], params["Dense_1"]["kernel"]
    z1 = x @ w1 + b1
    h = np.maximum(z1, 0)
    d_out = ((h @ w2 + b2)[:, 0] - y)[:, None] / 6
    d_z1 = (d_out @ w2.T) * (z1 > 0)
    expected = {
        "Dense_0": {"bias": b1 - 0.1 * d_z1.sum(0), "kernel": w1 - 0.1 * x.T @ d_z1},
        "Dense_1": {"bias": b2 - 0.1 * d_out.sum(0), "kernel": w2 - 0.1 * h.T @ d_out},
    }
    assert_close(new.params, expected)


def test_class_weights_and_smoothing_touch_training_only():
    task = Classification(model=MLP(), class_weights=(2.0,) + (1.0,) * 9, label_smoothing=0.1)
    batch = pictures()
    plain = dataclasses.replace(task, class_weights=(), label_smoothing=0.0)

    @jax.jit
    def run(batch):
        given = (*task.init(jax.random.key(0), batch), batch)
        return task.loss(*given, rngs={})[1], task.evaluate(*given), plain.evaluate(*given)

    trained, evaluated, expected = run(batch)
    zeros = (batch["label"] == 0).sum()
    assert float(trained.metrics["loss"].weight) == 16 + zeros
    assert float(trained.metrics["accuracy"].weight) == 16
    assert_equal(evaluated, expected)


def sharded_runs(task, make, mesh, accumulation):
    """Returns the final state and metrics of two runs of three steps on `mesh`."""
    tx = SGD(learning_rate=0.1).make(HORIZON)
    batches = [make(seed=i) for i in range(3)]

    def init():
        return init_state(task, tx, jax.tree.map(jnp.asarray, batches[0]), seed=0)

    rules = (Rule(".*", Fsdp(min_size=1)),)
    layout, rows = shard(jax.eval_shape(init), mesh, rules), batch_sharding(mesh)
    init = jit(init, in_shardings=(), out_shardings=layout)
    step = jit(
        make_step(task, tx, accumulation=accumulation),
        in_shardings=(layout, rows),
        out_shardings=(layout, replicated(mesh)),
        donate=[0],
    )

    def run():
        state = init()
        for batch in batches:
            state, metrics = step(state, jax.device_put(batch, rows))
        return state, metrics

    return run(), run()


@pytest.mark.parametrize(
    ("task", "make", "mesh", "accumulation"),
    [
        (MLP_TASK, pictures, Mesh(), 2),
        (MLP_TASK, pictures, Mesh(fsdp=8, data=1), 1),
        (GPT_TASK, text, Mesh(data=2, fsdp=4), 2),
    ],
    ids=["mlp-data", "mlp-fsdp", "gpt-both"],
)
def test_eight_devices_equal_one(task, make, mesh, accumulation):
    one, one_metrics = steps(task, [make(seed=i) for i in range(3)], SGD(learning_rate=0.1))
    (many, metrics), again = sharded_runs(task, make, make_mesh(mesh), accumulation)
    assert_close(one.params, many.params)
    assert_close(one_metrics, metrics)
    assert_equal((many, metrics), again)
    if mesh.fsdp > 1:
        kernels = [x for x in jax.tree.leaves(many.params) if x.size >= 256]
        assert all(k.addressable_shards[0].data.size == k.size // mesh.fsdp for k in kernels)


def test_dropout_draws_by_seed_and_step_alone():
    task = Classification(model=MLP(widths=(32,), dropout=0.5))
    batches = [pictures()] * 2
    first, again = (steps(task, batches)[0] for _ in range(2))
    assert_equal(first.params, again.params)
    other, _ = steps(task, batches, seed=1)
    with pytest.raises(AssertionError):
        assert_equal(first.params, other.params)


def test_batch_norm_keeps_running_means():
    task = Classification(model=CNN(widths=(8,), convs=1))
    state, _ = steps(task, [pictures(), pictures(seed=1)], SGD(learning_rate=0.1))
    means = state.model_state["batch_stats"]["BatchNorm_0"]["mean"]
    assert np.abs(means).max() > 0
    evaluate = jax.jit(task.evaluate)
    assert_equal(
        evaluate(state.params, state.model_state, pictures()),
        evaluate(state.params, state.model_state, pictures()),
    )


def test_the_average_is_of_the_model_state_too():
    """Batch norm's statistics under the parameters as they are do not fit their average."""
    task, decay = Classification(model=CNN(widths=(8,), convs=1)), 0.9
    batches = [pictures(seed=i) for i in range(3)]
    smooth = SGD(learning_rate=0.1, ema=decay)
    states = [steps(task, batches[:n], smooth)[0] for n in (1, 2, 3)]
    plain, _ = steps(task, batches, SGD(learning_rate=0.1))
    assert_equal((states[2].params, states[2].model_state), (plain.params, plain.model_state))
    weights = decay ** np.arange(3)[::-1] * (1 - decay) / (1 - decay**3)
    params, model_state = evaluated(states[2])
    for found, each in (
        (params, [s.params for s in states]),
        (model_state, [s.model_state for s in states]),
    ):
        assert_close(found, jax.tree.map(lambda *x: sum(w * a for w, a in zip(weights, x)), *each))  # noqa: B905


def test_skip_nonfinite_changes_nothing_but_the_step():
    good, bad = pictures(), pictures()
    bad["image"] = bad["image"].astype(np.float32)
    good["image"] = good["image"].astype(np.float32) / 255
    bad["image"][3] = np.nan
    before, metrics = steps(MLP_TASK, [good], wrap=skip_nonfinite)
    assert float(metrics["skipped"].mean) == 0
    after, metrics = steps(MLP_TASK, [good, bad], wrap=skip_nonfinite)
    assert float(metrics["skipped"].mean) == 1 and float(metrics["loss"].weight) == 0
    assert int(after.step) == 2
    assert_equal((before.params, before.opt_state), (after.params, after.opt_state))


def huge():
    """A batch whose loss is finite, as its gradient is, but not the gradient's square."""
    return pictures() | {"image": np.full((16, 8, 8, 1), 1e20, np.float32)}


def test_an_update_that_overflows_the_optimizers_state_is_skipped():
    """Adam would keep nu = inf, and with it the parameter as it is, for good."""
    task = Classification(model=MLP(widths=()))
    broken, metrics = steps(task, [huge()])
    assert np.isfinite(metrics["loss"].sum)
    bad = [path for path, is_finite in finite(broken).items() if not is_finite]
    assert bad == ["opt_state/core/nu/Dense_0/kernel"]
    kept, metrics = steps(task, [huge()], wrap=skip_nonfinite)
    assert float(metrics["skipped"].mean) == 1
    assert not any(x.any() for x in jax.tree.leaves(kept.opt_state["core"]))


def test_what_is_infinite_by_design_is_no_fault():
    plateau = Adam(learning_rate=1e-2, schedule=ReduceOnPlateau())
    state, metrics = steps(MLP_TASK, [pictures()], plateau, wrap=skip_nonfinite)
    assert np.isinf(state.opt_state["plateau"].best_value)
    assert float(metrics["skipped"].mean) == 0 and all(finite(state).values())
    masked = dataclasses.replace(state, model_state={CONSTANTS: {"mask": jnp.array([-jnp.inf])}})
    assert all(finite(masked).values())
    lost = state.opt_state["plateau"]._replace(best_value=jnp.float32(jnp.nan))
    lost = dataclasses.replace(state, opt_state={**state.opt_state, "plateau": lost})
    assert not all(finite(lost).values())


def test_the_schedule_goes_on_while_updates_are_skipped():
    """The learning rate that is logged, by the step, is the one that is applied."""
    falling = SGD(learning_rate=1.0, schedule=Linear())
    bad = pictures() | {"image": np.full((16, 8, 8, 1), np.nan, np.float32)}
    good = pictures() | {"image": np.ones((16, 8, 8, 1), np.float32)}
    batches = [bad, bad, good]
    before, _ = steps(MLP_TASK, batches[:2], falling, wrap=skip_nonfinite)
    after, _ = steps(MLP_TASK, batches, falling, wrap=skip_nonfinite)
    grads, _ = jax.jit(jax.grad(MLP_TASK.loss, has_aux=True))(before.params, {}, good, {})
    rate = falling.learning_rates(HORIZON, 2)["learning_rate"]
    assert rate == pytest.approx(0.8)
    assert_close(
        after.params, jax.tree.map(lambda p, g: p - rate * g / 16, before.params, grads), atol=1e-5
    )


def test_the_step_is_pure():
    state, step = start_of(MLP_TASK, ADAM)(pictures()), step_of(MLP_TASK, ADAM, plainly)
    traced_anew = jax.jit(make_step(MLP_TASK, ADAM.make(HORIZON)))
    first = step(state, pictures())
    assert_equal(first, traced_anew(state, pictures()))
    assert_equal(first, step(state, pictures()))


def test_an_injected_learning_rate_goes_on_too():
    optimizer = optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(1.0, 0.0, 10))

    def step(state, gradient):
        updates, opt_state = optimizer.update({"w": gradient}, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        loss = Weighted(gradient, jnp.float32(1))
        return TrainState(state.step + 1, params, {}, opt_state), {"loss": loss}

    params = {"w": jnp.float32(0)}
    state = TrainState(jnp.int32(0), params, {}, optimizer.init(params))
    for gradient in (1, np.nan, np.nan, 1):
        state, _ = skip_nonfinite(step)(state, jnp.float32(gradient))
    assert float(state.params["w"]) == pytest.approx(-1.0 - 0.7)
    logged = Raw(optimizer).learning_rates(HORIZON, 3, state.opt_state)
    assert logged == {"learning_rate": pytest.approx(0.7)}
