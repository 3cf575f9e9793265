"""Recurrent layers: against PyTorch's packed sequences, NumPy and a plain scan; padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.errors import ConfigError
from lsm.mesh import Mesh, batch_sharding, jit, make_mesh, replicated
from lsm.models import Recurrent
from lsm.models.lstm import lstm

LENGTHS = np.array([5, 7, 1, 4])
CELLS = ("lstm", "gru", "rnn")


def drawn(layer, t=7, d=3):
    """Returns inputs, and parameters of which none is 0."""
    random = np.random.default_rng(0)
    x_BxTxD = random.normal(size=(len(LENGTHS), t, d)).astype(np.float32)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x_BxTxD, LENGTHS)
    return x_BxTxD, jax.tree.map(
        lambda leaf: random.normal(size=leaf.shape).astype(np.float32) / 2, shapes
    )


@functools.cache
def applied(layer):
    return jax.jit(layer.apply)


@functools.cache
def gradient(layer):
    """Maps variables and inputs to the gradients of a loss, and to states and last states."""

    def loss(variables, x_BxTxD):
        states_BxTxH, last_BxH = layer.apply(variables, x_BxTxD, LENGTHS)
        return (states_BxTxH**2).sum() + (last_BxH**3).sum(), (states_BxTxH, last_BxH)

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_numpy(cell, params, x_TxD):
    """The states (T, H) of one row in float64, step by step, as in the papers."""
    kernel, recurrent, bias = (
        np.float64(params[name]) for name in ("kernel", "recurrent_kernel", "bias")
    )
    h, c, states = np.zeros(len(recurrent)), np.zeros(len(recurrent)), []
    for x in np.float64(x_TxD):
        if cell == "lstm":
            i, f, g, o = np.split(x @ kernel + h @ recurrent + bias, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        elif cell == "gru":
            of_input, of_state = np.split(x @ kernel + bias, 3), np.split(h @ recurrent, 3)
            r, z = (sigmoid(a + b) for a, b in zip(of_input[:2], of_state[:2], strict=True))
            n = np.tanh(of_input[2] + r * (of_state[2] + params["reset_bias"]))
            h = (1 - z) * n + z * h
        else:
            h = np.tanh(x @ kernel + h @ recurrent + bias)
        states.append(h)
    return np.array(states)


@pytest.mark.parametrize("cell", CELLS)
def test_states_are_those_of_numpy_row_by_row_in_both_directions(cell):
    layer = Recurrent(4, cell, bidirectional=True)
    x_BxTxD, variables = drawn(layer)
    states_BxTx2H, last_Bx2H = applied(layer)(variables, x_BxTxD, LENGTHS)
    for row, (x_TxD, length) in enumerate(zip(x_BxTxD, LENGTHS, strict=True)):
        forward = by_numpy(cell, variables["params"]["forward"], x_TxD[:length])
        backward = by_numpy(cell, variables["params"]["backward"], x_TxD[:length][::-1])[::-1]
        wanted = np.concatenate([forward, backward], 1)
        np.testing.assert_allclose(states_BxTx2H[row, :length], wanted, atol=1e-5)
        assert not states_BxTx2H[row, length:].any()
        np.testing.assert_allclose(
            last_Bx2H[row], np.concatenate([forward[-1], backward[0]]), atol=1e-5
        )


@pytest.mark.parametrize("cell", CELLS)
def test_states_and_gradients_are_those_of_pytorch_s_packed_sequences(cell):
    torch = pytest.importorskip("torch", reason="PyTorch is not there to compare with.")
    layer = Recurrent(4, cell, bidirectional=True)
    x_BxTxD, variables = drawn(layer)
    peer = getattr(torch.nn, cell.upper())(3, 4, batch_first=True, bidirectional=True)
    for direction, suffix in (("forward", ""), ("backward", "_reverse")):
        own = variables["params"][direction]
        bias_hh = np.zeros_like(own["bias"])
        if cell == "gru":
            bias_hh[8:] = own["reset_bias"]
        kernels = {"weight_ih": own["kernel"].T, "weight_hh": own["recurrent_kernel"].T}
        for name, value in (kernels | {"bias_ih": own["bias"], "bias_hh": bias_hh}).items():
            getattr(peer, f"{name}_l0{suffix}").data = torch.tensor(value.copy())
    x = torch.tensor(x_BxTxD, requires_grad=True)
    pack, unpack = (
        getattr(torch.nn.utils.rnn, n) for n in ("pack_padded_sequence", "pad_packed_sequence")
    )
    packed, last = peer(pack(x, LENGTHS, batch_first=True, enforce_sorted=False))
    states, _ = unpack(packed, batch_first=True)
    last = (last[0] if cell == "lstm" else last).permute(1, 0, 2).flatten(1)
    ((states**2).sum() + (last**3).sum()).backward()
    (dparams, dx_BxTxD), (own_states, own_last) = gradient(layer)(variables, x_BxTxD)
    np.testing.assert_allclose(own_states, states.detach(), atol=1e-5)
    np.testing.assert_allclose(own_last, last.detach(), atol=1e-5)
    np.testing.assert_allclose(dx_BxTxD, x.grad, atol=1e-4)
    for direction, suffix in (("forward", ""), ("backward", "_reverse")):
        own = dparams["params"][direction]
        for name, of in (
            ("kernel", "weight_ih"),
            ("recurrent_kernel", "weight_hh"),
            ("bias", "bias_ih"),
        ):
            wanted = np.asarray(getattr(peer, f"{of}_l0{suffix}").grad).T
            np.testing.assert_allclose(own[name], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_lstm_s_gradient_is_that_of_a_plain_scan(reverse):
    t, b, h = 6, 3, 4
    random = np.random.default_rng(0)
    shapes = (t, b, 4 * h), (h, 4 * h), (4 * h,), (t, b, h)
    *args, weight_TxBxH = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes)
    real_TxB = jnp.arange(t)[:, None] < jnp.asarray([2, 6, 0])

    def plain(gates_TxBx4H, recurrent_Hx4H, bias_4H):
        def step(carry, now):
            (h_BxH, c_BxH), (gates_Bx4H, real_B) = carry, now
            i, f, g, o = jnp.split(gates_Bx4H + h_BxH @ recurrent_Hx4H + bias_4H, 4, axis=1)
            c_BxH = jax.nn.sigmoid(f) * c_BxH + jax.nn.sigmoid(i) * jnp.tanh(g)
            new_BxH = jax.nn.sigmoid(o) * jnp.tanh(c_BxH)
            carry = tuple(jnp.where(real_B[:, None], x, 0) for x in (new_BxH, c_BxH))
            return carry, carry[0]

        start = (jnp.zeros((b, h)),) * 2
        return jax.lax.scan(step, start, (gates_TxBx4H, real_TxB), reverse=reverse)[1]

    def own(*args):
        return lstm(*args, real_TxB, reverse)

    @jax.jit
    def both(*args):
        (found, own_vjp), (wanted, plain_vjp) = jax.vjp(own, *args), jax.vjp(plain, *args)
        return found, wanted, own_vjp(weight_TxBxH), plain_vjp(weight_TxBxH)

    found, wanted, *gradients = both(*args)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    for found, wanted in zip(*gradients, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_padding_alters_neither_states_nor_gradients(cell):
    layer = Recurrent(4, cell, bidirectional=True)
    x_BxTxD, variables = drawn(layer)
    behind_BxTx1 = (np.arange(7) >= LENGTHS[:, None])[..., None]
    (wanted, _), (_, last_BxH) = gradient(layer)(variables, x_BxTxD)
    other = np.where(behind_BxTx1, np.float32(50), x_BxTxD)
    longer = np.concatenate([other, np.full_like(other, -50)], 1)
    # A new length compiles anew; the LSTM's gradient is the one written by hand.
    for changed in (other, longer) if cell == "lstm" else (other,):
        (dparams, dx_BxTxD), (_, found) = gradient(layer)(variables, changed)
        np.testing.assert_allclose(found, last_BxH, atol=1e-6)
        assert not dx_BxTxD[:, :7][np.broadcast_to(behind_BxTx1, other.shape)].any()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), dparams, wanted)


def test_an_empty_row_has_a_state_of_0_and_no_length_means_all():
    for cell in CELLS:
        layer = Recurrent(4, cell, bidirectional=True)
        x_BxTxD, variables = drawn(layer)
        states, last = applied(layer)(variables, x_BxTxD, np.array([0, 7, 7, 7]))
        assert not states[0].any() and not last[0].any() and last[1:].all()
    whole, _ = applied(layer)(variables, x_BxTxD)
    np.testing.assert_array_equal(whole[1:], states[1:])


@pytest.mark.parametrize("cell", CELLS)
def test_bfloat16_is_near_float32(cell):
    layer = Recurrent(4, cell, bidirectional=True)
    x_BxTxD, variables = drawn(layer)
    forward = {"params": {"forward": variables["params"]["forward"]}}
    for exact, rough in zip(
        applied(layer)(variables, x_BxTxD, LENGTHS),
        applied(Recurrent(4, cell, dtype="bfloat16"))(forward, x_BxTxD, LENGTHS),
        strict=True,
    ):
        assert rough.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(rough), exact[..., :4], atol=0.05)


def test_rows_over_devices_give_the_same_and_no_step_waits_for_others():
    layer = Recurrent(4, bidirectional=True)
    x_BxTxD, variables = drawn(layer)
    given = variables, np.tile(x_BxTxD, (2, 1, 1)), np.tile(LENGTHS, 2)
    mesh = make_mesh(Mesh(data=8))
    whole, rows = replicated(mesh), batch_sharding(mesh)
    run = jit(layer.apply, in_shardings=(whole, rows, rows), out_shardings=rows, mesh=mesh)
    compiled = run.lower(*given).compile()
    expected = applied(layer)(variables, x_BxTxD, LENGTHS)
    for found, wanted in zip(compiled(*given), expected, strict=True):
        np.testing.assert_allclose(found[:4], wanted, atol=1e-6)
        np.testing.assert_allclose(found[4:], wanted, atol=1e-6)
    program = compiled.as_text()
    assert "all-gather" not in program and "all-reduce" not in program


def test_forget_gates_begin_open():
    @jax.jit
    def bias():
        variables = Recurrent(2).init(jax.random.key(0), np.ones((1, 2, 3)))
        return variables["params"]["forward"]["bias"]

    np.testing.assert_array_equal(bias(), [0, 0, 1, 1, 0, 0, 0, 0])


def test_errors_are_lines():
    with pytest.raises(ConfigError, match=r"^Recurrent.units: 0 given; allowed: 1 or more.$"):
        Recurrent(0)
