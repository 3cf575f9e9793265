"""Several optimisers by path: each is what it would be alone, and two players can oppose."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsm.config import schema
from lsm.config.flags import override
from lsm.durations import Horizon
from lsm.errors import ConfigError
from lsm.mesh import Fsdp, Mesh, Rule, make_mesh, shard
from lsm.metrics import weigh
from lsm.optim import (
    LAMB,
    SGD,
    Adafactor,
    Adam,
    AdamW,
    Cosine,
    Group,
    Linear,
    Lion,
    Momentum,
    Muon,
    Part,
    Partition,
    Raw,
    ReduceOnPlateau,
    RMSProp,
    Shampoo,
    WarmUp,
    averaged_params,
)
from lsm.params import names
from lsm.tasks import Task
from lsm.tasks.base import LossOutput
from lsm.train import init_state, make_step

HORIZON = Horizon(steps=10, batch_size=1, examples=10)
PLAYERS = ("generator", "discriminator")
GENERATOR = AdamW(
    learning_rate=1e-2,
    schedule=WarmUp(2, then=Cosine()),
    clip_norm=0.5,
    weight_decay=0.1,
    ema=0.9,
)
DISCRIMINATOR = Momentum(
    learning_rate=3e-2,
    schedule=ReduceOnPlateau(factor=0.5, patience=1, accumulation=1),
    clip_norm=2.0,
    weight_decay=0.2,
    decay="bias$",
)
BOTH = Partition(("^generator/", GENERATOR), ("^discriminator/", DISCRIMINATOR))


def tree(seed):
    rng = np.random.default_rng(seed)

    def layer(inputs, outputs):
        kernel, bias = rng.normal(size=(inputs, outputs)), rng.normal(size=outputs)
        return {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}

    return {"generator": {"Dense_0": layer(4, 3)}, "discriminator": {"Dense_0": layer(3, 2)}}


def run(optimizer, params, grads, dtype="float32"):
    """Returns the parameters, held in `dtype`, and the optimiser state after `grads`."""
    transform = optimizer.make(HORIZON, master=dtype != "float32")
    state = transform.init(params)
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    step = jax.jit(lambda g, s, p: transform.update(g, s, p, value=jnp.float32(1)))
    for g in grads:
        updates, state = step(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def of(state, index):
    return state.inner_states[str(index)].inner_state


def assert_bitwise(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), got, want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_part_is_what_its_optimizer_is_alone(dtype):
    grads = [tree(seed) for seed in range(1, 8)]
    params, state = run(BOTH, tree(0), grads, dtype)
    for index, (player, optimizer) in enumerate(
        zip(PLAYERS, (GENERATOR, DISCRIMINATOR), strict=True)
    ):
        single = {player: tree(0)[player]}
        alone, own = run(optimizer, single, [{player: g[player]} for g in grads], dtype)
        assert_bitwise(params[player], alone[player])
        assert_bitwise(jax.tree.leaves(of(state, index)), jax.tree.leaves(own))
        assert list(of(state, index)) == list(own)


@pytest.mark.parametrize(
    "cls", [SGD, RMSProp, Adam, AdamW, Lion, Adafactor, LAMB, Muon, Shampoo, Momentum]
)
def test_every_algorithm_can_be_a_part(cls):
    grads = [tree(seed) for seed in (1, 2, 3)]
    optimizer = cls(learning_rate=0.1, weight_decay=0.3, clip_norm=1.0)
    both = Partition(("^gen", optimizer), (".*", SGD(learning_rate=0.1)))
    params, _ = run(both, tree(0), grads)
    alone, _ = run(
        optimizer,
        {"generator": tree(0)["generator"]},
        [{"generator": g["generator"]} for g in grads],
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        params["generator"],
        alone["generator"],
    )


def test_the_first_part_that_matches_has_a_parameter():
    optimizer = Partition(
        ("generator/.*bias", SGD(learning_rate=1.0)),
        ("generator/", SGD(learning_rate=2.0)),
        (".*", SGD(learning_rate=3.0)),
    )
    ones = jax.tree.map(jnp.ones_like, tree(0))
    moved, _ = run(optimizer, jax.tree.map(jnp.zeros_like, tree(0)), [ones])
    rates = {"generator": {"bias": 1, "kernel": 2}, "discriminator": {"bias": 3, "kernel": 3}}
    for player, by_leaf in rates.items():
        for name, rate in by_leaf.items():
            assert (moved[player]["Dense_0"][name] == -rate).all()


def test_learning_rates_are_told_by_part():
    _, state = run(BOTH, tree(0), [tree(s) for s in range(6)])
    rates = BOTH.learning_rates(HORIZON, 6, state)
    assert list(rates) == ["learning_rate/generator", "learning_rate/discriminator"]
    factor = WarmUp(2, then=Cosine()).shape(HORIZON)(6)
    assert float(rates["learning_rate/generator"]) == pytest.approx(1e-2 * float(factor))
    # The loss is 1 throughout: the first value is the best, and each of the five others halves.
    assert float(rates["learning_rate/discriminator"]) == pytest.approx(3e-2 / 2**5)
    assert BOTH.learning_rates(HORIZON, 6)["learning_rate/discriminator"] == 3e-2


def test_names_of_learning_rates():
    sgd, raw = SGD(learning_rate=1.0), Raw(lambda horizon: optax.sgd(1.0))
    inner = Partition(("kernel$", sgd), (".*", sgd))
    outer = Partition(("^a/", sgd), ("a", sgd), ("^(b|c)/", inner), (r"d/\d+$", raw), (".*", sgd))
    assert list(outer.learning_rates(HORIZON, 0)) == [
        "learning_rate/a",
        "learning_rate/a_2",
        "learning_rate/b-c/kernel",
        "learning_rate/b-c/rest",
        "learning_rate/rest",
    ]


def test_averages_of_parts_are_found():
    params, state = run(BOTH, tree(0), [tree(1), tree(2)])
    average = averaged_params(state, params)
    assert_bitwise(average["discriminator"], params["discriminator"])
    assert_bitwise(average["generator"], of(state, 0)["ema"].average["generator"])
    assert (
        average["generator"]["Dense_0"]["kernel"] != params["generator"]["Dense_0"]["kernel"]
    ).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_frozen_part_keeps_no_state_and_no_master_and_its_bits(dtype):
    frozen = AdamW(learning_rate=0.1, ema=0.9, clip_norm=1.0, groups=(Group(".*", 0.0),))
    optimizer = Partition(("^generator/", frozen), ("^discriminator/", GENERATOR))
    start = tree(0)
    start["generator"]["Dense_0"]["kernel"] = (
        start["generator"]["Dense_0"]["kernel"].at[0].set(-0.0)
    )
    params, state = run(optimizer, start, [tree(1), tree(2)], dtype)
    for got, want in zip(*(jax.tree.leaves(t["generator"]) for t in (params, start)), strict=True):
        assert np.asarray(got).tobytes() == np.asarray(want.astype(dtype)).tobytes()
    held = [name for name in names(state) if "/generator/" in name]
    assert held == []
    assert sum(x.size for x in jax.tree.leaves(of(state, 0)) if x.ndim) == 0
    masters = [name for name in names(state) if "/master/" in name]
    assert len(masters) == (2 if dtype == "bfloat16" else 0)


def test_state_paths_end_with_parameter_paths_and_are_sharded_alike():
    transform = BOTH.make(HORIZON, master=True)
    state = jax.eval_shape(transform.init, tree(0))
    shapes = {n: x.shape for n, x in zip(names(tree(0)), jax.tree.leaves(tree(0)), strict=True)}
    for name, leaf in zip(names(state), jax.tree.leaves(state), strict=True):
        owner = next((path for path in shapes if name.endswith("/" + path)), None)
        assert (leaf.shape == shapes[owner]) if owner else leaf.ndim == 0, name
    known = set(names(state))
    assert "inner_states/0/inner_state/core/mu/generator/Dense_0/kernel" in known
    assert "inner_states/1/inner_state/master/discriminator/Dense_0/kernel" in known
    rules = (Rule("generator/.*kernel$", ("fsdp", None)), Rule(".*", Fsdp()))
    mesh = make_mesh(Mesh(data=1, fsdp=2), jax.devices()[:2])
    placed = shard({"opt_state": state}, mesh, rules)["opt_state"]
    for name, sharding in zip(names(state), jax.tree.leaves(placed), strict=True):
        if name.endswith("/generator/Dense_0/kernel"):
            assert sharding.spec == jax.sharding.PartitionSpec("fsdp", None), name


def test_the_state_keeps_its_structure_and_dtypes():
    transform = BOTH.make(HORIZON, master=True)
    before = jax.eval_shape(transform.init, tree(0))
    _, after = jax.eval_shape(
        lambda g, s, p: transform.update(g, s, p, value=jnp.float32(1)), tree(1), before, tree(0)
    )
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            (("^generator/", GENERATOR),),
            r"Partition\.parts: no pattern matches discriminator/Dense_0/bias, "
            r"discriminator/Dense_0/kernel; a last part with the pattern '\.\*' takes the rest\.",
        ),
        (
            (("^generatr/Dense_0/bias", GENERATOR), (".*", GENERATOR)),
            r"Part\.pattern: '\^generatr/Dense_0/bias' matches no parameter; .*"
            r"Did you mean 'generator/Dense_0/bias'\?",
        ),
        (
            ((".*", GENERATOR), ("^generator/", GENERATOR)),
            r"Partition\.parts: every parameter that '\^generator/' matches belongs to an earlier "
            r"part; the first match wins",
        ),
        (
            (("bias$", GENERATOR), (".*", GENERATOR)),
            r"Partition\.parts\.0: AdamW\.decay: .* matches no parameter; the parameters are "
            r"discriminator/Dense_0/bias, generator/Dense_0/bias\.",
        ),
    ],
)
def test_parts_that_do_not_fit_the_parameters_are_errors_at_init(parts, message):
    with pytest.raises(ConfigError, match=message) as error:
        jax.eval_shape(Partition(*parts).make(HORIZON).init, tree(0))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Partition(), r"Partition\.parts: none given"),
        (lambda: Partition("^a/", GENERATOR), r"Partition\.parts: '\^a/' given; allowed: a pair"),
        (lambda: Partition(("^a/", optax.sgd)), r"Part\.optimizer: .* allowed: an Optimizer"),
        (lambda: Partition(("(", GENERATOR)), r"Part\.pattern: '\(' is not a regular expression"),
    ],
)
def test_a_wrong_partition_is_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_parts_can_be_overridden_and_told():
    changed = override(
        BOTH,
        {
            "parts.0.optimizer.learning_rate": "0.5",
            "parts.0.optimizer.schedule.then.final": "0.25",
            "parts.1.pattern": "^disc",
        },
    )
    assert changed == Partition(
        (
            "^generator/",
            dataclasses.replace(
                GENERATOR, learning_rate=0.5, schedule=WarmUp(2, then=Cosine(final=0.25))
            ),
        ),
        Part("^disc", DISCRIMINATOR),
    )
    schema.check(changed)
    told = schema.flatten(schema.to_json(changed))
    assert told["class"] == "lsm.optim.partition.Partition"
    assert told["parts.0.optimizer.learning_rate"] == 0.5
    assert told["parts.1.pattern"] == "^disc"
    lines = schema.differences(schema.to_json(BOTH), schema.to_json(changed))
    assert "parts.1.pattern: '^discriminator/' -> '^disc'" in lines
    with pytest.raises(ConfigError, match=r"parts\.2: there is no item 2; there are 2"):
        override(BOTH, {"parts.2.pattern": "x"})


def test_two_players_of_a_bilinear_game_turn_about_its_centre():
    """min_x max_y xy: steps at once go round, radius times sqrt(1 + lr^2) a step.

    Mescheder, Geiger & Nowozin 2018, arXiv:1801.04406, section 2: simultaneous gradient descent
    does not converge there. One gradient tree holds both players' own gradients, y and -x.
    """
    lr, steps = 0.3, 20
    optimizer = Partition(("^x$", SGD(learning_rate=lr)), ("^y$", SGD(learning_rate=lr)))
    stop = jax.lax.stop_gradient

    def loss(params):
        return params["x"] * stop(params["y"]) - stop(params["x"]) * params["y"]

    params = {"x": jnp.float32(1), "y": jnp.float32(0)}
    transform = optimizer.make(HORIZON)
    state = transform.init(params)
    for _ in range(steps):
        updates, state = transform.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    turned = (1 + 1j * lr) ** steps  # x + iy -> (x - lr y) + i (y + lr x)
    assert complex(params["x"], params["y"]) == pytest.approx(turned, rel=1e-5)


class Players(nn.Module):
    """A line that makes samples of noise, and one that scores them."""

    def setup(self):
        self.generator, self.discriminator = nn.Dense(1), nn.Dense(1)

    def __call__(self, noise_Bx1, train=False):
        return self.discriminator(self.generator(noise_Bx1))

    def make(self, noise_Bx1):
        return self.generator(noise_Bx1)

    def score(self, x_Bx1):
        return self.discriminator(x_Bx1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Game(Task):
    """Both players' losses in one sum; neither's gradient reaches the other."""

    def inputs(self, batch):
        return batch["noise"]

    def metrics(self, outputs, batch, train, step):
        return {"loss": weigh(outputs)}

    def loss(self, params, model_state, batch, rngs, step):
        g, d = params["generator"], params["discriminator"]
        stop = jax.lax.stop_gradient
        generator, _ = players_loss(g, stop(d), batch)
        _, discriminator = players_loss(stop(g), d, batch)
        metrics = self.metrics((generator + discriminator)[:, 0], batch, True, step)
        return metrics["loss"].sum, LossOutput(metrics, model_state)


def players_loss(generator, discriminator, batch):
    """Returns the losses (B, 1) of the generator and of the discriminator (Goodfellow 2014)."""
    variables = {"params": {"generator": generator, "discriminator": discriminator}}
    model = Players()
    made = model.apply(variables, batch["noise"], method="make")
    fake = model.apply(variables, made, method="score")
    real = model.apply(variables, batch["x"], method="score")
    return nn.softplus(-fake), nn.softplus(-real) + nn.softplus(fake)


def test_two_players_through_the_step_are_two_optax_loops():
    rng = np.random.default_rng(0)
    batches = [
        {
            "noise": np.float32(rng.normal(size=(8, 1))),
            "x": np.float32(rng.normal(2, 0.5, size=(8, 1))),
        }
        for _ in range(12)
    ]
    optimizer = Partition(
        ("^generator/", Adam(learning_rate=1e-2, b1=0.5, schedule=Linear())),
        ("^discriminator/", SGD(learning_rate=0.1, clip_norm=0.2)),
    )
    horizon = Horizon(steps=12, batch_size=8, examples=96)
    task, transform = Game(model=Players()), optimizer.make(horizon)
    state = init_state(task, transform, batches[0], seed=0)
    g, d = state.params["generator"], state.params["discriminator"]
    step = jax.jit(make_step(task, transform))

    adam = optax.adam(optax.linear_schedule(1e-2, 0.0, 12), b1=0.5)
    sgd = optax.chain(optax.clip_by_global_norm(0.2), optax.sgd(0.1))
    adam_state, sgd_state = adam.init(g), sgd.init(d)
    for batch in batches:
        state, _ = step(state, batch)
        g_grads = jax.grad(lambda g, d, b: players_loss(g, d, b)[0].mean())(g, d, batch)
        d_grads = jax.grad(lambda d, g, b: players_loss(g, d, b)[1].mean())(d, g, batch)
        updates, adam_state = adam.update(g_grads, adam_state, g)
        g = optax.apply_updates(g, updates)
        updates, sgd_state = sgd.update(d_grads, sgd_state, d)
        d = optax.apply_updates(d, updates)
    for got, want in ((state.params["generator"], g), (state.params["discriminator"], d)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), got, want)
