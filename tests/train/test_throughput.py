"""Model FLOPs and active parameters of mixtures of experts, by the published convention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.models import GPT, MLP, Transformer
from lsm.models.experts import Experts, dropless, mixtures
from lsm.models.families import mixtral
from lsm.params import flat
from lsm.tasks import Classification, LanguageModelling
from lsm.train import TrainState
from lsm.train.throughput import active_params, training_flops

B, T = 2, 128


def shapes(task, batch):
    params, model_state = jax.eval_shape(lambda: task.init(jax.random.key(0), batch))
    return TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, model_state, ())


@pytest.mark.parametrize("capacity", [None, 0.5, 1.25])
def test_mixtral_counts_what_a_token_meets(capacity):
    """Of 46.7 billion parameters 12.9 (arXiv:2401.04088); empty places count as little."""
    task = LanguageModelling(model=mixtral(experts=Experts(count=8, top_k=2, capacity=capacity)))
    batch = {"tokens": np.zeros((B, T + 1), np.int32)}
    state = shapes(task, batch)
    assert sum(x.size for x in jax.tree.leaves(state.params)) == pytest.approx(46.70e9, rel=1e-3)
    active = active_params(task, state.params)
    assert active == pytest.approx(12.88e9, rel=1e-3)
    multiplied = active - flat(state.params)["tokens/embedding"].size  # which is looked up
    attention = 12 * 32 * 4096 * T  # scores and their sums: 3 x 2 x 2 x T x width a layer
    found = training_flops(task, state, batch).total / (B * T)
    assert found == pytest.approx(6 * multiplied + attention, rel=1e-3)


def test_a_batch_of_one_needs_half_of_two():
    """Though its row is not sorted by experts, whose places are then empty in part."""
    model = GPT(vocabulary=64, context=16, transformer=Transformer(layers=1, experts=Experts()))
    task = LanguageModelling(model=model)
    one, two = ({"tokens": np.zeros((rows, 17), np.int32)} for rows in (1, 2))
    state = shapes(task, two)
    assert 2 * training_flops(task, state, one).total == training_flops(task, state, two).total


def test_without_experts_all_parameters_are_active():
    task = Classification(model=MLP(widths=(8,)))
    state = shapes(task, {"image": np.zeros((2, 4), np.float32), "label": np.zeros(2, np.int32)})
    assert active_params(task, state.params) == 8 * 4 + 8 + 10 * 8 + 10
    assert mixtures(task) == [] and dropless(task) is task
