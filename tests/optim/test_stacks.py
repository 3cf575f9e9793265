"""A stack of layers trains as its layers would alone: with every optimiser."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsm import Data, Experiment, Train, optim
from lsm.data import Arrays
from lsm.durations import Horizon
from lsm.models import GPT, Transformer
from lsm.models.experts import Experts
from lsm.optim import Adam, MatrixAxes, Muon, Partition, Shampoo
from lsm.tasks import LanguageModelling
from lsm.train import build

HORIZON = Horizon(steps=10, batch_size=1, examples=10)
ALL = [
    cls
    for cls in vars(optim).values()
    if inspect.isclass(cls) and issubclass(cls, optim.Algorithm) and cls is not optim.Algorithm
]
OPTIONS = {
    "Adafactor": {"min_factored_dim": 2, "momentum": 0.9},
    "Shampoo": {"update_every": 2, "max_dim": 5},
}
STACKS = ((r"blocks/experts_", 2), (r"blocks/", 1))
SHAPES = {  # more layers than the layers have inputs, and two stacks of other lengths
    "encoder/blocks/qkv/kernel": (7, 4, 6),
    "encoder/blocks/qkv/bias": (7, 6),
    "encoder/blocks/experts_up/kernel": (7, 3, 4, 5),
    "decoder/blocks/out/kernel": (3, 6, 4),
    "tokens/embedding": (9, 4),
    "norm/scale": (4,),
}


def arrays(seed):
    """Sizes differ from layer to layer: a norm over several is not that of one."""
    random = np.random.default_rng(seed)
    found = {name: random.normal(size=shape) for name, shape in SHAPES.items()}
    for name, x in found.items():
        if "blocks" in name:
            x *= 10.0 ** random.uniform(-2, 2, (*x.shape[: optim.stacks.depth(STACKS, name)], *[1] * (x.ndim - optim.stacks.depth(STACKS, name))))  # fmt: skip
    return {name: x.astype(np.float32) for name, x in found.items()}


def apart(stacked):
    """Each layer and each expert under a name of its own, with what the patterns look for."""
    found = {}
    for name, x in stacked.items():
        *parents, last = name.split("/")
        for index in np.ndindex(x.shape[: optim.stacks.depth(STACKS, name)]):
            found["/".join([*parents, "-".join(map(str, index)), last])] = x[index]
    return found


def trained(optimizer, trees, stacks=()):
    transform = optimizer.make(HORIZON, stacks=stacks)
    params, *gradients = (jax.tree.map(jnp.asarray, tree) for tree in trees)
    state = transform.init(params)
    for grads in gradients:
        updates, state = jax.jit(transform.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_a_stack_trains_as_its_layers_do(cls):
    optimizer = cls(
        learning_rate=0.1, weight_decay=0.1, clip_norm=1e4, **OPTIONS.get(cls.__name__, {})
    )
    trees = [arrays(seed) for seed in range(4)]
    together, _ = trained(optimizer, trees, STACKS)
    alone, _ = trained(optimizer, [apart(tree) for tree in trees])
    for name, x in apart(together).items():
        np.testing.assert_allclose(x, alone[name], rtol=2e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_without_stacks_nothing_is_new_in_the_state(cls):
    """Counters stay scalars, and moments keep the shapes of their parameters."""
    optimizer = cls(learning_rate=0.1, **OPTIONS.get(cls.__name__, {}))
    with_stacks = optimizer.make(HORIZON, stacks=STACKS).init(arrays(0))
    without = optimizer.make(HORIZON).init(arrays(0))
    assert jax.tree.structure(with_stacks) == jax.tree.structure(without) or cls is Shampoo
    for x in jax.tree.leaves(with_stacks):
        assert x.ndim or x.dtype == jnp.int32
    if cls not in (Shampoo, optim.Adafactor):
        assert jax.tree.map(jnp.shape, with_stacks) == jax.tree.map(jnp.shape, without)


def test_parts_and_axes_of_their_own_see_the_stacks():
    """`MatrixAxes` count all axes, and a part of a `Partition` knows of the stacks as well."""
    trees = [arrays(seed) for seed in range(2)]
    muon = Muon(learning_rate=0.1, axes=(MatrixAxes("qkv/kernel", (1,), (2,)),))
    expected, _ = trained(Muon(learning_rate=0.1), trees, STACKS)
    found, _ = trained(Partition(("blocks/", muon), (".*", Adam(learning_rate=0.1))), trees, STACKS)
    for name in ("encoder/blocks/qkv/kernel", "encoder/blocks/experts_up/kernel"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


def test_a_model_says_what_it_stacks():
    model = GPT(
        vocabulary=7,
        context=8,
        transformer=Transformer(layers=3, heads=2, width=8, hidden=12, experts=Experts(count=4)),
    )
    tokens = {"tokens": np.zeros((8, 9), np.int32)}
    experiment = Experiment(
        name="stacked",
        task=LanguageModelling(model=model),
        data=Data(source=Arrays(train=tokens), test=None),
        optimizer=Shampoo(learning_rate=0.1),
        train=Train(steps=1, batch_size=8),
    )
    state = build(experiment, HORIZON, tokens).abstract_state.opt_state
    inputs = state["core"][0].statistics[0]["blocks"]["experts_up"]["kernel"]
    assert inputs.shape == (3, 4, 8, 8)
