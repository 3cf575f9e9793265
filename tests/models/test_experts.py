"""Routing to experts against a reference in NumPy, and a mixture against a dense MLP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.errors import ConfigError
from lsm.mesh import Mesh, batch_sharding, jit, make_mesh, replicated
from lsm.models.attention import Mask
from lsm.models.experts import Experts, combine, dispatch, in_order, in_place, places, route
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
    for token in range(len(p_TxE)):  # nobody waits for a later token
        for choice in range(top_k):
            expert = order_TxE[token, choice]
            if taken[expert] < places:
                # Of a single choice it stays the probability (Switch, equation 2).
                whole = p_TxE[token, order_TxE[token]].sum() if top_k > 1 else 1
                weight = p_TxE[token, expert] / whole
                given[token, choice] = (expert, taken[expert], weight)
            taken[expert] += 1
    share_E = np.bincount(order_TxE.reshape(-1), minlength=E) / order_TxE.size
    return given, E * (share_E * p_TxE.mean(0)).sum()


@pytest.mark.parametrize("capacity", [0.5, 1.25, None])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_route_dispatch_and_combine_are_numpys(top_k, capacity):
    experts = Experts(count=E, top_k=top_k, capacity=capacity)
    p = experts.places(T)
    logits_BxTxE, x_BxTxD = logits_and_tokens()
    weights, choice, balance_B = route(jnp.array(logits_BxTxE), experts)
    slots = places(choice, experts)
    gathered_BxExPxD = np.asarray(dispatch(jnp.array(x_BxTxD), slots, experts))
    scale_E = np.arange(1, E + 1)
    y_BxExPxD = gathered_BxExPxD * scale_E[:, None, None]  # expert e multiplies by e + 1
    combined_BxTxD = combine(jnp.array(y_BxExPxD), weights, slots)

    held, expected, dropped = np.zeros((B, E, p, D)), np.zeros((B, T, D)), 0
    for row in range(B):
        given, balance = reference(logits_BxTxE[row], top_k, p)
        for (token, choice), (expert, place, weight) in given.items():
            assert slots[row, token, choice] == expert * p + place
            held[row, expert, place] = x_BxTxD[row, token]
            expected[row, token] += weight * scale_E[expert] * x_BxTxD[row, token]
        assert (np.asarray(slots[row]) == E * p).sum() == T * top_k - len(given)
        dropped += T * top_k - len(given)
        np.testing.assert_allclose(balance_B[row], balance, rtol=1e-5)
    np.testing.assert_array_equal(gathered_BxExPxD, held.astype(np.float32))
    np.testing.assert_allclose(combined_BxTxD, expected, rtol=1e-5, atol=1e-6)
    if top_k > 1:
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    assert (dropped == 0) == (capacity is None)


@pytest.mark.parametrize("top_k", [1, 2])
def test_what_a_token_becomes_reaches_the_router(top_k):
    """Not through the balance loss alone, which knows nothing of the task."""
    logits_BxTxE, _ = logits_and_tokens()

    def weighed(logits_BxTxE):
        weights, choice, _ = route(logits_BxTxE, Experts(count=E, top_k=top_k, balance=0.0))
        return (weights * choice**2).sum()

    assert np.abs(jax.grad(weighed)(jnp.array(logits_BxTxE))).max() > 0.1


def test_sorted_tokens_meet_the_experts_that_they_chose():
    logits_BxTxE, x_BxTxD = logits_and_tokens()
    weights, choice, _ = route(jnp.array(logits_BxTxE), Experts(count=E, top_k=2))
    x, sizes, back = in_order(jnp.array(x_BxTxD), choice, E)
    assert sizes.sum() == B * T * 2
    experts = jnp.repeat(jnp.arange(E), sizes[0], total_repeat_length=B * T * 2)
    y = in_place(x * (experts + 1)[None, :, None], weights, back)
    factor = (np.asarray(weights) * (np.asarray(choice) + 1)).sum(-1)
    np.testing.assert_allclose(y, factor[..., None] * x_BxTxD, rtol=1e-5, atol=1e-6)


def test_places_go_by_position_and_then_by_choice():
    # Tokens 0 and 1 choose expert 0 second, token 2 chooses it first: it is taken by then.
    logits_1x3x3 = jnp.array([[[1.0, 2.0, -9.0], [1.0, -9.0, 2.0], [2.0, 1.0, -9.0]]])
    experts = Experts(count=3, top_k=2, capacity=0.5)
    assert experts.places(3) == 1
    _, choice, _ = route(logits_1x3x3, experts)
    np.testing.assert_array_equal(places(choice, experts)[0], [[1, 0], [2, 3], [3, 3]])
    real = jnp.array([[False, True, True]])  # padding takes no place: 3 is dropped
    np.testing.assert_array_equal(places(choice, experts, real)[0], [[3, 3], [2, 0], [3, 1]])


def test_padding_makes_no_places():
    experts = Experts(count=E, top_k=1, capacity=1.0)
    choice = jnp.zeros((1, T, 1), jnp.int32)  # all want the first expert
    for n in range(T + 1):
        found = places(choice, experts, jnp.arange(T)[None] < n)
        assert (found < E * experts.places(T)).sum() == experts.places(n)


def test_padding_has_no_part_in_the_balance():
    logits_BxTxE, _ = logits_and_tokens()
    real = jnp.arange(T) < jnp.array([T, 5, 0])[:, None]
    found = route(jnp.array(logits_BxTxE), Experts(count=E), real)[2]
    whole, part = (
        route(jnp.array(logits_BxTxE[row : row + 1, :n]), Experts(count=E))[2][0]
        for row, n in ((0, T), (1, 5))
    )
    np.testing.assert_allclose(found, [whole, part, 0], rtol=1e-5)


def test_how_many_places_there_are():
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
        weights, choice, balance_B = route(logits, experts)
        slots = places(choice, experts)
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


@pytest.mark.slow
@pytest.mark.parametrize("capacity", [None, 0.5, 1.25])
def test_no_token_depends_on_later_ones_or_on_padding(capacity):
    """Else the loss in training is not that of a model which writes token by token."""
    model = gpt2(**SIZES, experts=Experts(count=E, capacity=capacity))
    tokens_BxT = np.random.default_rng(0).integers(0, 11, (4, T))
    params = model.init(jax.random.key(1), tokens_BxT)["params"]
    logits = model.apply({"params": params}, tokens_BxT)
    changed = tokens_BxT.copy()
    changed[:, 10:] = 3
    found = model.apply({"params": params}, changed)
    np.testing.assert_allclose(found[:, :10], logits[:, :10], rtol=1e-5, atol=1e-6)
    # Padding at the left, as in a batch of prompts, changes nothing either.
    padded = np.concatenate([np.full((4, 6), 5), tokens_BxT[:, :10]], axis=1)
    keys = jnp.broadcast_to(jnp.arange(T) >= 6, (4, T))
    both = [
        model.apply({"params": params}, x, mask=Mask(causal=True, keys_BxS=keys))[:, 6:]
        for x in (padded, np.where(keys, padded, 9))
    ]
    np.testing.assert_allclose(*both, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_all_forms_without_a_capacity_are_one_function():
    """Sorted on one device, sorted on each of eight, and with room for all."""
    model = gpt2(**SIZES, experts=Experts(count=E))
    tokens_BxT = np.random.default_rng(0).integers(0, 11, (8, T))
    params = model.init(jax.random.key(1), tokens_BxT)["params"]

    def loss(params, tokens):
        y, state = model.apply({"params": params}, tokens, mutable=["losses"])
        return (y**2).mean() + state["losses"]["balance"][0].mean()

    expected = jax.value_and_grad(loss)(params, tokens_BxT)
    primitives = str(jax.make_jaxpr(loss)(params, tokens_BxT))
    assert "ragged_dot" in primitives
    for axes in ({"data": 2, "fsdp": 4}, {"data": 2, "expert": 4}, {"data": 4, "tensor": 2}):
        mesh = make_mesh(Mesh(**axes))
        whole, rows = replicated(mesh), batch_sharding(mesh)
        found = jit(
            jax.value_and_grad(loss), in_shardings=(whole, rows), out_shardings=whole, mesh=mesh
        )(params, tokens_BxT)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-6), found, expected
        )


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


@pytest.mark.slow
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
