"""The steps of an LSTM over a sequence, with a gradient of their own."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lsm.cpu import as_rows
from lsm.mesh import BATCH_AXES


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def lstm(
    gates_TxBx4H: jax.Array,
    recurrent_Hx4H: jax.Array,
    bias_4H: jax.Array,
    real_TxB: jax.Array,
    reverse: bool,
) -> jax.Array:
    """Returns the states after each step (T, B, H), in the dtype of `gates_TxBx4H`.

    Hochreiter & Schmidhuber 1997 (doi:10.1162/neco.1997.9.8.1735), with forget gates (Gers et al.
    2000). The gradient of the parameters is one product over all steps, where that of a scan adds
    up one of each.

    Args:
      gates_TxBx4H: what the inputs add to the input, forget, candidate and output gates.
      recurrent_Hx4H: kernel of the states, of the dtype of `gates_TxBx4H`.
      bias_4H: float32; the cell and all that is elementwise are float32 too.
      real_TxB: bool, False at padding, where the state becomes 0.
      reverse: from the last step to the first.
    """
    return _forward(gates_TxBx4H, recurrent_Hx4H, bias_4H, real_TxB, reverse)[0]


def _half_4H(h: int) -> jax.Array:
    """The factors (4H,) within tanh: sigmoid(x) = tanh(x / 2) / 2 + 1 / 2, so that one does."""
    return jnp.repeat(jnp.asarray([0.5, 0.5, 1.0, 0.5]), h)


def _cell(tanh_Bx4H: jax.Array, c_BxH: jax.Array) -> tuple[jax.Array, jax.Array]:
    i, f, g, o = jnp.split(tanh_Bx4H, 4, axis=1)
    c_BxH = ((f + 1) * c_BxH + (i + 1) * g) / 2
    return (o + 1) / 2 * jnp.tanh(c_BxH), c_BxH


def _forward(
    gates_TxBx4H: jax.Array,
    recurrent_Hx4H: jax.Array,
    bias_4H: jax.Array,
    real_TxB: jax.Array,
    reverse: bool,
) -> tuple[jax.Array, Any]:
    (_, b, _), h = gates_TxBx4H.shape, len(recurrent_Hx4H)
    half_4H = _half_4H(h)

    def step(carry, now):
        (h_BxH, c_BxH), (gates_Bx4H, real_B) = carry, now
        gates_Bx4H = (gates_Bx4H + h_BxH @ recurrent_Hx4H).astype(jnp.float32) + bias_4H
        # -1 shuts a gate: state and cell become 0 at padding, and so does every gradient there.
        tanh_Bx4H = jnp.where(real_B[:, None], jnp.tanh(gates_Bx4H * half_4H), -1)
        new_BxH, new_c_BxH = _cell(tanh_Bx4H, c_BxH)
        new_BxH = new_BxH.astype(h_BxH.dtype)
        return (new_BxH, new_c_BxH), (new_BxH, (h_BxH, c_BxH, tanh_Bx4H))

    start = jnp.zeros((b, h), gates_TxBx4H.dtype), jnp.zeros((b, h), jnp.float32)
    known = gates_TxBx4H, real_TxB
    _, (h_TxBxH, before) = jax.lax.scan(step, start, known, reverse=reverse)
    return h_TxBxH, (recurrent_Hx4H, *before)


def _backward(
    reverse: bool, saved: Any, g_TxBxH: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    recurrent_Hx4H, h_TxBxH, c_TxBxH, tanh_TxBx4H = saved
    h, dtype = len(recurrent_Hx4H), h_TxBxH.dtype
    half_4H = _half_4H(h)

    def step(carry, now):
        (dh_BxH, dc_BxH), (g_BxH, c_BxH, tanh_Bx4H) = carry, now
        dh_BxH = (dh_BxH + g_BxH).astype(jnp.float32)
        dtanh_Bx4H, dc_BxH = jax.vjp(_cell, tanh_Bx4H, c_BxH)[1]((dh_BxH, dc_BxH))
        dgates_Bx4H = (dtanh_Bx4H * (1 - tanh_Bx4H**2) * half_4H).astype(dtype)
        return (dgates_Bx4H @ recurrent_Hx4H.T, dc_BxH), dgates_Bx4H

    end = jnp.zeros_like(h_TxBxH[0]), jnp.zeros_like(c_TxBxH[0])
    known = g_TxBxH, c_TxBxH, tanh_TxBx4H
    _, dgates_TxBx4H = jax.lax.scan(step, end, known, reverse=not reverse)
    # Columns may be split over devices; what is not split is one product of rows.
    dgates, states = as_rows(dgates_TxBx4H, BATCH_AXES), as_rows(h_TxBxH, BATCH_AXES)
    over = tuple(range(dgates.ndim - 1))
    drecurrent_Hx4H = jnp.tensordot(states, dgates, (over, over))
    # A sum as a product, which XLA's CPU back end computes ten times as fast.
    dbias_4H = jnp.tensordot(jnp.ones(dgates.shape[:-1], dtype), dgates, (over, over))
    return dgates_TxBx4H, drecurrent_Hx4H, dbias_4H.astype(jnp.float32), None


lstm.defvjp(_forward, _backward)
