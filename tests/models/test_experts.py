"""Routing to experts against a reference in NumPy, and a mixture against a dense MLP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.errors import ConfigError
from lsm.models.experts import Experts, combine, dispatch, route
from lsm.models.families import gpt2

B, T, E, D = 3, 16, 4, 5


def logits_and_tokens(seed=0):
    random = np.random.default_rng(seed)
    logits_BxTxE = random.normal(size=(B, T, E)).astype(np.float32)
    logits_BxTxE[0, :, 1] += 4  # a crowd for one expert, so that tokens are dropped
    return logits_BxTxE, random.normal(size=(B, T, D)).astype(np.float32)


def reference(logits_TxE, top_k, places):
    """The places of one sequence: {(token, choice): (expert, place, weight)}, and the balance."""
    p_TxE = np.exp(logits_TxE) / np.exp(logits_TxE).sum(-1, keepdims=True)
    order_TxE = np.argsort(-p_TxE, axis=-1, kind="stable")[:, :top_k]
    taken, given = np.zeros(E, int), {}
    for choice in range(top_k):  # all first choices come before any second one
        for token in range(len(p_TxE)):
            expert = order_TxE[token, choice]
            if taken[expert] < places:
                weight = p_TxE[token, expert] / p_TxE[token, order_TxE[token]].sum()
                given[token, choice] = (expert, taken[expert], weight)
            taken[expert] += 1
    share_E = np.bincount(order_TxE.reshape(-1), minlength=E) / order_TxE.size
    return given, E * (share_E * p_TxE.mean(0)).sum()


@pytest.mark.parametrize("capacity", [0.5, 1.25, None])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_route_dispatch_and_combine_are_numpys(top_k, capacity):
    experts = Experts(count=E, top_k=top_k, capacity=capacity)
    places = experts.places(T)
    logits_BxTxE, x_BxTxD = logits_and_tokens()
    weights, slots, balance_B = route(jnp.array(logits_BxTxE), experts)
    gathered_BxExPxD = np.asarray(dispatch(jnp.array(x_BxTxD), slots, experts))
    scale_E = np.arange(1, E + 1)
    y_BxExPxD = gathered_BxExPxD * scale_E[:, None, None]  # expert e multiplies by e + 1
    combined_BxTxD = combine(jnp.array(y_BxExPxD), weights, slots)

    held, expected, dropped = np.zeros((B, E, places, D)), np.zeros((B, T, D)), 0
    for row in range(B):
        given, balance = reference(logits_BxTxE[row], top_k, places)
        for (token, choice), (expert, place, weight) in given.items():
            assert slots[row, token, choice] == expert * places + place
            held[row, expert, place] = x_BxTxD[row, token]
            expected[row, token] += weight * scale_E[expert] * x_BxTxD[row, token]
        assert (np.asarray(slots[row]) == E * places).sum() == T * top_k - len(given)
        dropped += T * top_k - len(given)
        np.testing.assert_allclose(balance_B[row], balance, rtol=1e-5)
    np.testing.assert_array_equal(gathered_BxExPxD, held.astype(np.float32))
    np.testing.assert_allclose(combined_BxTxD, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    assert (dropped == 0) == (capacity is None)


def test_first_choices_come_before_second_ones():
    # Tokens 0 and 1 choose expert 0 second, token 2 chooses it first: that one gets the only place.
    logits_1x3x3 = jnp.array([[[1.0, 2.0, -9.0], [1.0, -9.0, 2.0], [2.0, 1.0, -9.0]]])
    experts = Experts(count=3, top_k=2, capacity=0.5)
    assert experts.places(3) == 1
    _, slots, _ = route(logits_1x3x3, experts)
    np.testing.assert_array_equal(slots[0], [[1, 3], [2, 3], [0, 3]])  # 3 is dropped


def test_places():
    assert Experts(count=8, top_k=2, capacity=1.25).places(64) == 20  # 64 x 2 x 1.25 / 8
    assert Experts(count=8, top_k=2, capacity=1.0).places(65) == 17  # rounded up
    assert Experts(count=2, top_k=2, capacity=4.0).places(64) == 64  # no more than there are
    assert Experts(count=8, top_k=2, capacity=None).places(64) == 64


def test_balance_is_one_where_even_and_the_number_of_experts_at_worst():
    experts = Experts(count=E, top_k=1)
    even = 20.0 * jnp.eye(E)[jnp.arange(T) % E][None]
    assert route(even, experts)[2][0] == pytest.approx(1, rel=1e-4)
    all_to_one = 20.0 * jnp.eye(E)[jnp.zeros(T, int)][None]
    assert route(all_to_one, experts)[2][0] == pytest.approx(E, rel=1e-4)


def test_routing_of_a_row_does_not_depend_on_the_others():
    logits_BxTxE, _ = logits_and_tokens()
    together = route(jnp.array(logits_BxTxE), Experts(count=E))
    for row in range(B):
        alone = route(jnp.array(logits_BxTxE[row : row + 1]), Experts(count=E))
        jax.tree.map(
            lambda x, y, row=row: np.testing.assert_allclose(x[row], y[0], rtol=1e-6),
            together,
            alone,
        )


def test_gradients_are_those_of_finite_differences():
    """Of a token's output along its logits and its input; the choice itself is constant."""
    logits_BxTxE, x_BxTxD = logits_and_tokens()
    experts = Experts(count=E, top_k=2, capacity=1.0)

    def loss(logits, x):
        weights, slots, balance_B = route(logits, experts)
        y = jnp.tanh(dispatch(x, slots, experts) * jnp.arange(1.0, E + 1)[:, None, None])
        return (combine(y, weights, slots) ** 2).sum() + balance_B.sum()

    args = jnp.array(logits_BxTxE), jnp.array(x_BxTxD)
    grads = jax.grad(loss, (0, 1))(*args)
    random = np.random.default_rng(1)
    directions = [random.normal(size=x.shape).astype(np.float32) for x in args]
    slope = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
    step = 1e-3
    ends = [
        loss(*(x + s * d for x, d in zip(args, directions, strict=True))) for s in (step, -step)
    ]
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in grads)
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(slope), rel=2e-2)


SIZES = {"vocabulary": 11, "layers": 2, "heads": 2, "width": 8, "context": T, "hidden": 12}


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_a_mixture_of_one_expert_is_the_dense_mlp(mlp):
    dense = gpt2(**SIZES, bias=False, mlp=mlp)
    one = Experts(count=1, top_k=1, capacity=None)
    mixture = gpt2(**SIZES, bias=False, mlp=mlp, experts=one)
    tokens_BxT = np.random.default_rng(0).integers(0, 11, (2, T))
    params = dense.init(jax.random.key(0), tokens_BxT)["params"]
    blocks = dict(params["blocks"])
    for name in ("up", "down", "gate"):
        if name in blocks:
            blocks[f"experts_{name}"] = {"kernel": blocks.pop(name)["kernel"][:, None]}
    blocks["router"] = {"kernel": jnp.ones((2, 8, 1))}
    found = mixture.apply({"params": params | {"blocks": blocks}}, tokens_BxT)
    expected = dense.apply({"params": params}, tokens_BxT)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_balance_loss_is_sown_with_its_weight_and_reaches_the_router():
    model = gpt2(**SIZES, experts=Experts(count=E, top_k=2, balance=0.5))
    tokens_BxT = np.random.default_rng(0).integers(0, 11, (2, T))
    params = model.init(jax.random.key(0), tokens_BxT)["params"]

    def sown(params):
        _, state = model.apply({"params": params}, tokens_BxT, mutable=["losses"])
        return state["losses"]["balance"][0]

    # 0.5 x a number near 1, the mean of the layers: the router's first probabilities are even.
    np.testing.assert_allclose(sown(params), 0.5, rtol=0.05)
    grads = jax.grad(lambda params: sown(params).sum())(params)["blocks"]["router"]["kernel"]
    assert np.isfinite(grads).all() and np.abs(grads).max() > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 4, "top_k": 5}, r"top_k: 5 given.*\[1, 4\]"),
        ({"top_k": 0}, "top_k: 0 given"),
        ({"capacity": 0.0}, "capacity: 0.0 given"),
        ({"balance": -1.0}, "balance: -1.0 given"),
    ],
)
def test_errors(fields, message):
    with pytest.raises(ConfigError, match=message):
        Experts(**fields)
