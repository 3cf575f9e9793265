"""Direct preference optimisation, against its formula in NumPy and TRL's in PyTorch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.errors import ConfigError, DataError
from lsm.models import GPT, Lora, Transformer
from lsm.tasks import CONSTANTS, DirectPreference

SMALL = Transformer(layers=1, heads=2, width=8, theta=1e4, norm="rms", mlp="swiglu")
GPT_ = GPT(vocabulary=20, transformer=SMALL, context=12)
LORA = Lora(GPT_, targets="blocks/", rank=2, alpha=4.0)


def batch(rows=3, length=9, seed=0):
    random, made = np.random.default_rng(seed), {}
    for name in ("chosen", "rejected"):
        made[name] = random.integers(0, 20, (rows, length)).astype(np.int32)
        made[f"{name}_length"] = np.full(rows, length, np.int32)
        begin = random.integers(1, 5, rows)[:, None]
        made[f"{name}_weight"] = (np.arange(length - 1) >= begin).astype(np.float32)
    made["rejected_length"][0] = 7
    made["rejected_weight"][0, 6:] = 0
    return made


@pytest.fixture(scope="module", params=["lora", "whole"])
def trained(request):
    """A task, and variables that are no more those of the reference."""
    model = LORA if request.param == "lora" else GPT_
    task = DirectPreference(model=model, beta=0.5)
    params, model_state = jax.jit(task.init)(jax.random.key(0), batch())
    moved = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), params)
    return task, params, moved, model_state


LOGITS = jax.jit(GPT_.apply)


def log_probabilities(variables, given, name):
    """(B,) of the answers, written out."""
    logits = np.asarray(LOGITS(variables, given[name][:, :-1]), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = np.take_along_axis(log_p, given[name][:, 1:, None], -1)[..., 0]
    return (found * given[f"{name}_weight"]).sum(1)


def expected(task, params, model_state):
    """(B,) log ratios of the better answers, and of the others."""
    given = batch()
    constants = model_state[CONSTANTS]
    if task.model is LORA:
        now, then = ({"params": LORA.merged(p, constants)} for p in (params, {}))
    else:
        now, then = {"params": params}, {"params": constants["reference"]}
    return [
        log_probabilities(now, given, name) - log_probabilities(then, given, name)
        for name in ("chosen", "rejected")
    ]


def figures(task, params, model_state, train=False):
    plain = dataclasses.replace(task, label_smoothing=0.0)
    outputs = FORWARD(plain, params, model_state)
    return {name: float(x.mean) for name, x in task.metrics(outputs, batch(), train, 0).items()}


FORWARD = jax.jit(
    lambda task, *state: task.forward(*state, batch(), {}, False, 0)[0], static_argnums=0
)


def test_figures_equal_the_paper_s_formula(trained):
    task, _, params, model_state = trained
    chosen, rejected = (task.beta * x for x in expected(task, params, model_state))
    margin, found = chosen - rejected, figures(task, params, model_state)
    assert found["loss"] == pytest.approx(np.log1p(np.exp(-margin)).mean(), rel=1e-4)
    assert found["margin"] == pytest.approx(margin.mean(), rel=1e-4)
    assert found["accuracy"] == pytest.approx((margin > 0).mean())
    assert found["chosen_reward"] == pytest.approx(chosen.mean(), rel=1e-4)
    assert found["rejected_reward"] == pytest.approx(rejected.mean(), rel=1e-4)
    assert abs(margin).min() > 1e-3


def test_at_first_nothing_is_preferred(trained):
    task, params, _, model_state = trained
    found = figures(task, params, model_state)
    assert found["loss"] == pytest.approx(np.log(2), rel=1e-6)
    assert found["margin"] == found["accuracy"] == 0


def test_smoothed_loss_is_that_of_trl(trained):
    torch = pytest.importorskip("torch", reason="TRL's formula is PyTorch's")
    task, _, params, model_state = trained
    task = dataclasses.replace(task, label_smoothing=0.2)
    chosen, rejected = (torch.tensor(x) for x in expected(task, params, model_state))
    logits, log_sigmoid = chosen - rejected, torch.nn.functional.logsigmoid
    losses = (  # DPOTrainer.dpo_loss, loss_type "sigmoid"
        -log_sigmoid(task.beta * logits) * (1 - task.label_smoothing)
        - log_sigmoid(-task.beta * logits) * task.label_smoothing
    )
    found = figures(task, params, model_state, train=True)
    assert found["loss"] == pytest.approx(losses.mean().item(), rel=1e-4)


@pytest.mark.slow
def test_the_reference_has_no_gradient_and_parts_make_the_same(trained):
    task, _, params, model_state = trained

    def loss(task, params, model_state):
        return task.loss(params, model_state, batch(), {})[0]

    whole = jax.grad(loss, argnums=1)(task, params, model_state)
    parts = jax.grad(loss, argnums=1)(dataclasses.replace(task, chunks=2), params, model_state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), whole, parts)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(whole)) > 1e-3
    assert ("reference" in model_state[CONSTANTS]) is (task.model is GPT_)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"chosen_weight": None}, "task.chosen: the data has no column 'chosen_weight'"),
        ({"rejected": None}, "task.rejected: the data has no column 'rejected'"),
        ({"chosen_weight": np.ones((3, 9))}, "'chosen_weight' is .3, 9.; for tokens .3, 9. it"),
        ({"rejected": np.full((3, 9), 20)}, "a label of 20 where the model has 20 outputs"),
    ],
    ids=["weight", "column", "shape", "token"],
)
def test_what_is_no_pair_is_one_line(change, line):
    given = {name: x for name, x in (batch() | change).items() if x is not None}
    with pytest.raises(DataError, match=line):
        DirectPreference(model=GPT_).check(given)


def test_fields_are_checked():
    with pytest.raises(ConfigError, match="beta: 0 given"):
        DirectPreference(model=GPT_, beta=0)
    with pytest.raises(ConfigError, match="task.model.trained: 'norm' given; the reference would"):
        DirectPreference(model=dataclasses.replace(LORA, trained="norm"))
