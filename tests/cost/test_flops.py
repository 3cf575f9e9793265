"""Counts of operations, against arithmetic by hand and against XLA's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from lsm.cost import hardware_flops, model_flops
from lsm.models import CNN, GPT, MLP, Transformer
from lsm.tasks import Classification, LanguageModelling

KEY = jax.eval_shape(lambda: jax.random.key(0))


def shape(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


def of_task(task, batch):
    params, state = jax.eval_shape(task.init, KEY, batch)
    return model_flops(task.loss, params, state, batch, {}), (task, params, state, batch)


def executed(task, params, state, batch):
    return hardware_flops(jax.grad(task.loss, has_aux=True), params, state, batch, {})


def test_mlp_by_hand():
    """5 -> 7 -> 3 on 11 rows; the first layer's input needs no gradient."""
    task = Classification(model=MLP(widths=(7,), outputs=3))
    batch = {"image": shape(11, 5), "label": shape(11, dtype=jnp.int32)}
    flops, run = of_task(task, batch)
    first, second = 2 * 11 * 5 * 7, 2 * 11 * 7 * 3
    assert flops.forward == first + second
    assert flops.backward == first + 2 * second
    assert executed(*run).total == flops.total


def test_cnn_by_hand():
    """The Keras tutorial's network on 2 pictures: 30, 13 and 4 pixels wide, pooled in between."""
    model = CNN(
        widths=(32, 64, 64),
        convs=1,
        padding="VALID",
        batch_norm=False,
        head="flatten",
        hidden=(64,),
    )
    batch = {"image": shape(2, 32, 32, 3), "label": shape(2, dtype=jnp.int32)}
    flops, run = of_task(Classification(model=model), batch)
    layers = [  # 2 x rows x pixels x taps x channels x filters
        2 * 2 * 30**2 * 9 * 3 * 32,
        2 * 2 * 13**2 * 9 * 32 * 64,
        2 * 2 * 4**2 * 9 * 64 * 64,
        2 * 2 * (4 * 4 * 64) * 64,
        2 * 2 * 64 * 10,
    ]
    assert flops.forward == sum(layers)
    assert flops.total == 3 * sum(layers) - layers[0]
    assert executed(*run).total == flops.total


def test_padding_is_not_counted():
    """A row of 8 with 3 taps and padding: 2 taps at each end, 3 elsewhere."""
    layer = nn.Conv(1, (3,), padding="SAME", use_bias=False)
    x = shape(1, 8, 1)
    params = jax.eval_shape(layer.init, KEY, x)
    assert hardware_flops(layer.apply, params, x).total == 2 * (3 * 8 - 2)


def gpt(**fields):
    blocks = Transformer(layers=3, heads=2, width=16, **fields)
    model = GPT(vocabulary=50, context=8, transformer=blocks)
    batch = {"tokens": shape(4, 9, dtype=jnp.int32)}
    return of_task(LanguageModelling(model=model), batch)


def test_gpt_is_6_n_d_and_attention():
    """N: 12 D^2 a layer, and the tied embedding as the output layer; D: 4 x 8 tokens."""
    flops, run = gpt()
    n, tokens = 3 * 12 * 16**2 + 50 * 16, 4 * 8
    scores_and_values = 3 * (2 * 2) * (4 * 8 * 8 * 16)  # layers x products x B T T D
    assert flops.total == 6 * n * tokens + 3 * scores_and_values
    assert flops.uncounted == frozenset()
    assert executed(*run).total == flops.total


def test_rematerialisation_costs_the_hardware_only():
    plain, run = gpt()
    full, run_full = gpt(remat="full")
    assert full.total == plain.total
    blocks = plain.forward - 2 * 4 * 8 * 16 * 50  # all but the output layer runs once more ...
    unneeded = 3 * 2 * 4 * 8 * 64 * 16  # ... but for each block's last product
    assert executed(*run_full).total - executed(*run).total == blocks - unneeded


def test_scan_equals_unrolled():
    def loss(params, x, unroll):
        def layer(x, kernel):
            return jnp.tanh(x @ kernel), None

        x, _ = jax.lax.scan(layer, x, params, unroll=unroll)
        return x.sum()

    params, x = shape(6, 5, 5), shape(4, 5)
    one = 2 * 4 * 5 * 5
    for unroll in (1, 3):
        flops = model_flops(lambda params, x, unroll=unroll: loss(params, x, unroll), params, x)
        # Unlike written out, the first turn is like the others: its input's gradient is computed.
        assert (flops.forward, flops.total) == (6 * one, 18 * one)


def test_only_products_that_depend_on_parameters_go_backward():
    x, w = shape(4, 5), shape(5, 5)
    one = 2 * 4 * 5 * 5
    assert model_flops(lambda w, x: (x @ w).sum(), w, x).total == 2 * one
    assert model_flops(lambda w, x, v: ((x @ v) @ w).sum(), w, x, w).total == 3 * one
    stopped = model_flops(lambda w, x: (jax.lax.stop_gradient(x @ w) @ w).sum(), w, x)
    assert stopped.total == one + 2 * one
    integers = model_flops(lambda w, x: ((x @ w > 0).astype(jnp.float32) @ w).sum(), w, x)
    assert integers.total == one + 2 * one


def test_what_nothing_needs_is_left_out():
    def loss(w, x):
        return (x @ w).sum(), {"a metric": (x @ w @ w).sum()}

    w, x = shape(5, 5), shape(4, 5)
    assert model_flops(loss, w, x).forward == 2 * 4 * 5 * 5


def test_branches_count_the_longest_and_loops_are_told():
    x = shape(4, 4)
    one = 2 * 4**3
    both = hardware_flops(lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x), x)
    assert both.total == 2 * one
    platforms = hardware_flops(
        lambda x: jax.lax.platform_dependent(x, cpu=lambda x: x @ x, default=lambda x: x), x
    )
    assert platforms.total == one
    loop = hardware_flops(
        lambda x: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, x), x
    )
    assert (loop.total, loop.uncounted) == (one, {"while"})
    counting = hardware_flops(lambda x: jax.lax.while_loop(lambda x: x[0, 0] > 0, jnp.sin, x), x)
    assert counting.uncounted == frozenset()


def test_kernels_count_by_their_estimate():
    def kernel(x_ref, out_ref):
        out_ref[...] = x_ref[...] @ x_ref[...]

    def call(estimate):
        return lambda x: pl.pallas_call(kernel, out_shape=shape(8, 8), cost_estimate=estimate)(x)

    estimate = pl.CostEstimate(flops=1024, bytes_accessed=1, transcendentals=0)
    assert hardware_flops(call(estimate), shape(8, 8)).total == 1024
    assert model_flops(lambda x: call(estimate)(x).sum(), shape(8, 8)).total == 3 * 1024
    assert hardware_flops(call(None), shape(8, 8)).uncounted == {"pallas_call"}
    assert hardware_flops(jnp.linalg.eigh, shape(8, 8)).uncounted == {"eigh"}


def test_custom_gradients_count_as_the_function_they_belong_to():
    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(
        lambda x, w: (x @ w, (x, w)),
        lambda kept, g: (g @ kept[1].T, kept[0].T @ (g + 0 * kept[0] @ kept[1])),
    )
    loss = lambda w, x: jnp.sum(product(jax.nn.relu(x @ w), w))  # noqa: E731
    w, x = shape(4, 4), shape(4, 4)
    assert model_flops(loss, w, x).total == 5 * 2 * 4**3
    assert hardware_flops(jax.grad(loss), w, x).total > 5 * 2 * 4**3 - 1


def test_ragged_products():
    """9 rows, each times one of 3 matrices (4, 5), and the gradients of both."""
    loss = lambda w, x, sizes: jax.lax.ragged_dot(x, w, sizes).sum()  # noqa: E731
    args = shape(3, 4, 5), shape(9, 4), shape(3, dtype=jnp.int32)
    one = 2 * 9 * 4 * 5
    assert model_flops(loss, *args).total == 2 * one
    assert hardware_flops(jax.grad(loss, (0, 1)), *args).total == 2 * one


def test_shard_map_counts_every_device():
    mesh = jax.sharding.AbstractMesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    split = jax.shard_map(
        lambda x, w: x @ w, mesh=mesh, in_specs=(P("a"), P(None, "b")), out_specs=P("a", "b")
    )
    assert hardware_flops(split, shape(8, 4), shape(4, 6)).total == 2 * 8 * 4 * 6


@pytest.mark.parametrize("strides, padding", [(1, "SAME"), (2, "SAME"), (3, "VALID")])
def test_convolutions_equal_xla(strides, padding):
    layer = nn.Conv(6, (3, 3), strides=strides, padding=padding, use_bias=False)
    x = shape(2, 16, 16, 5)
    params = jax.eval_shape(layer.init, KEY, x)
    both = jax.grad(lambda params, x: layer.apply(params, x).sum(), (0, 1))
    flops = hardware_flops(both, params, x).total
    analysis = jax.jit(both).lower(params, x).compile().cost_analysis()
    assert flops == pytest.approx(analysis["flops"], rel=0.02)
