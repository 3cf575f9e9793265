"""Recurrent layers: a state that is carried along a sequence."""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsm.checks import require_sizes
from lsm.cpu import by_rows
from lsm.mesh import BATCH_AXES
from lsm.models.initializers import XAVIER
from lsm.models.layers import Dtype
from lsm.models.lstm import lstm
from lsm.models.sequences import real_positions

Cell = Literal["lstm", "gru", "rnn"]

BIASES = {"lstm": (0.0, 1.0, 0.0, 0.0), "gru": (0.0, 0.0, 0.0), "rnn": (0.0,)}
"""Where the bias of each gate starts, in the order of PyTorch."""


class Recurrent(nn.Module):
    """One layer: RNN, GRU or LSTM, in one direction or in both.

    A row's state starts at 0, and padding is no part of it: the backward direction begins at the
    last real position. Kernels, biases and the order of the gates are PyTorch's, with one bias
    where its two are only added up.

    Attributes:
      units: size H of the state.
      cell: "lstm" (see `lsm.models.lstm`; the bias of forget gates starts at 1, Jozefowicz et al.
        2015), "gru" (Cho et al. 2014, arXiv:1406.1078, with the reset gate after the product, as
        cuDNN has it) or "rnn" (Elman 1990, with tanh).
      bidirectional: a second layer runs from the end to the start (Schuster & Paliwal 1997).
      dtype: dtype of products and results; what is elementwise is float32.
    """

    units: int
    cell: Cell = "lstm"
    bidirectional: bool = False
    dtype: Dtype = "float32"

    def __post_init__(self):
        require_sizes(self, "units")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x_BxTxD: jax.Array, lengths_B: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the state at each position, and each row's last state.

        Args:
          x_BxTxD: inputs, finite in the padding too, where they alter nothing.
          lengths_B: int, how many positions of each row are no padding, 0 to T; None is T of all.

        Returns:
          States (B, T, H), 0 at padding; and the state at each row's own end (B, H), 0 of an empty
          row. In both directions (B, T, 2H) and (B, 2H): the backward state is behind the forward
          one, and its last is that at position 0.
        """
        b, t, _ = x_BxTxD.shape
        lengths_B = jnp.full(b, t) if lengths_B is None else lengths_B
        x_TxBxD, real_TxB = x_BxTxD.swapaxes(0, 1), real_positions(lengths_B, t).T
        h_TxBxH = _Direction(self.units, self.cell, False, self.dtype, name="forward")(
            x_TxBxD, real_TxB
        )
        ends_1xBx1 = jnp.maximum(lengths_B - 1, 0)[None, :, None]
        last_BxH = jnp.take_along_axis(h_TxBxH, ends_1xBx1, axis=0)[0]
        if self.bidirectional:
            back_TxBxH = _Direction(self.units, self.cell, True, self.dtype, name="backward")(
                x_TxBxD, real_TxB
            )
            h_TxBxH = jnp.concatenate([h_TxBxH, back_TxBxH], axis=-1)
            last_BxH = jnp.concatenate([last_BxH, back_TxBxH[0]], axis=-1)
        return h_TxBxH.swapaxes(0, 1), last_BxH


class _Direction(nn.Module):
    """A layer in one direction, on sequences in columns, as loops over time want them."""

    units: int
    cell: Cell
    reverse: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x_TxBxD: jax.Array, real_TxB: jax.Array) -> jax.Array:
        """Maps (T, B, D) to states (T, B, H)."""
        d, h, orthogonal = x_TxBxD.shape[-1], self.units, nn.initializers.orthogonal()
        start_G = jnp.repeat(jnp.asarray(BIASES[self.cell]), h)
        g = len(start_G)
        kernel_DxG = self.param("kernel", XAVIER, (d, g), jnp.float32)
        recurrent_HxG = self.param("recurrent_kernel", orthogonal, (h, g))
        bias_G = self.param("bias", lambda key: start_G)
        # Of all steps at once: in the loop is only what needs the step before.
        kernel_DxG, recurrent_HxG, x_TxBxD = (
            array.astype(self.dtype) for array in (kernel_DxG, recurrent_HxG, x_TxBxD)
        )
        gates_TxBxG = by_rows(lambda x: x @ kernel_DxG, x_TxBxD, BATCH_AXES)
        if self.cell == "lstm":
            return lstm(gates_TxBxG, recurrent_HxG, bias_G, real_TxB, self.reverse)
        if self.cell == "rnn":
            step = _rnn(recurrent_HxG, bias_G)
        else:
            step = _gru(
                recurrent_HxG, bias_G, self.param("reset_bias", nn.initializers.zeros, (h,))
            )
        return _scan(step, gates_TxBxG, real_TxB, h, self.reverse)


Step = Callable[[jax.Array, jax.Array], jax.Array]
"""(what inputs add to the gates (B, G), float32 state (B, H)) -> float32 state (B, H)."""


def _rnn(recurrent_HxH: jax.Array, bias_H: jax.Array) -> Step:
    def step(gates_BxH, h_BxH):
        of_state_BxH = h_BxH.astype(recurrent_HxH.dtype) @ recurrent_HxH
        return jnp.tanh((gates_BxH + of_state_BxH).astype(jnp.float32) + bias_H)

    return step


def _gru(recurrent_Hx3H: jax.Array, bias_3H: jax.Array, reset_bias_H: jax.Array) -> Step:
    def step(gates_Bx3H, h_BxH):
        gates_Bx3H = gates_Bx3H.astype(jnp.float32) + bias_3H
        of_input = jnp.split(gates_Bx3H, 3, axis=1)
        of_state_Bx3H = h_BxH.astype(recurrent_Hx3H.dtype) @ recurrent_Hx3H
        of_state = jnp.split(of_state_Bx3H.astype(jnp.float32), 3, axis=1)
        reset, update = (jax.nn.sigmoid(of_input[i] + of_state[i]) for i in (0, 1))
        new_BxH = jnp.tanh(of_input[2] + reset * (of_state[2] + reset_bias_H))
        return (1 - update) * new_BxH + update * h_BxH

    return step


def _scan(
    step: Step, gates_TxBxG: jax.Array, real_TxB: jax.Array, h: int, reverse: bool
) -> jax.Array:
    """Returns the states (T, B, H): of each step, and 0 at padding."""

    def masked(h_BxH, now):
        gates_BxG, real_B = now
        h_BxH = jnp.where(real_B[:, None], step(gates_BxG, h_BxH), 0)
        return h_BxH, h_BxH.astype(gates_BxG.dtype)

    # In bfloat16 small steps of a state would be lost.
    start = jnp.zeros((gates_TxBxG.shape[1], h), jnp.float32)
    return jax.lax.scan(masked, start, (gates_TxBxG, real_TxB), reverse=reverse)[1]
