"""What `step_time` trains: models, batch sizes, random data.

The MLP, the CNN and the small GPT are those of the tutorials' configs. The LSTM (Keras's text
classifier: two layers of 128 on an embedding of 32, texts of 500) and the ResNet (the widths and
pooling of airbench94, github.com/KellerJordan/cifar10-airbench, with a skip around every second
convolution) are written here.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import lsm
from experiments.configs.cifar import cnn as cifar_cnn
from experiments.configs.mnist import mlp as mnist_mlp
from experiments.configs.shakespeare import gpt as shakespeare_gpt
from lsm.cpu import max_pool_2x2
from lsm.data import Arrays
from lsm.models.batch_norm import BatchNorm
from lsm.models.initializers import XAVIER
from lsm.models.layers import Dtype
from lsm.optim import Adam, Momentum, Optimizer
from lsm.tasks import Classification, Task
from lsm.tasks.base import Batch

BATCHES = 8
"""To go round in, so that nothing is learnt by heart while it is timed."""

_CONTEXTS = {"gpt": 64, "gpt_384": 256}


@dataclasses.dataclass(frozen=True)
class Case:
    """One model at one batch size.

    Attributes:
      name: shown in the tables.
      model: "mlp", "cnn", "lstm", "resnet", "gpt" or "gpt_384".
      batch_size: examples in a step.
      examples: size of the training set that the loop draws from.
      log_every: steps between two log rows of the loop, and in one turn of each of the others.
      turns: how often each has its turn.
    """

    name: str
    model: str
    batch_size: int
    examples: int
    log_every: int
    turns: int = 60

    def columns(self, count: int) -> dict[str, np.ndarray]:
        """Returns `count` random examples, in the form that the experiment's data have."""
        rng = np.random.default_rng(0)
        if self.model in _CONTEXTS:
            return {"tokens": rng.integers(0, 65, (count, _CONTEXTS[self.model] + 1), np.int32)}
        if self.model == "lstm":
            return {
                "tokens": rng.integers(0, 10_000, (count, 500), np.int32),
                "label": rng.integers(0, 2, count, np.int32),
            }
        shape = (28, 28, 1) if self.model == "mlp" else (32, 32, 3)
        return {
            "image": rng.integers(0, 256, (count, *shape), np.uint8),
            "label": rng.integers(0, 10, count, np.int32),
        }

    def batches(self) -> list[dict[str, np.ndarray]]:
        """Returns a few batches to go round in."""
        columns = self.columns(BATCHES * self.batch_size)
        parts = {name: np.split(column, BATCHES) for name, column in columns.items()}
        return [{name: part[i] for name, part in parts.items()} for i in range(BATCHES)]


CASES = {
    "cpu": (
        Case("MLP (A2), batch 64", "mlp", 64, 60_000, 200),
        Case("CNN (A1), batch 32", "cnn", 32, 50_000, 16),
        Case("CNN (A1), batch 128", "cnn", 128, 50_000, 12),
        Case("GPT (nanoGPT's CPU setting)", "gpt", 12, 20_000, 12),
        Case("LSTM (A5), batch 64", "lstm", 64, 20_000, 1, turns=30),
        Case("ResNet (airbench's shape), batch 256", "resnet", 256, 50_000, 1, turns=18),
        Case("GPT (6 layers of 384), 16 x 256", "gpt_384", 16, 5_000, 1, turns=18),
    ),
    # Batches that fill a card of 40 GB and more; the steps of a turn take a second at the most.
    "gpu": (
        Case("MLP (A2), batch 16384", "mlp", 16_384, 60_000, 50, turns=12),
        Case("CNN (A1), batch 8192", "cnn", 8192, 50_000, 20, turns=12),
        Case("GPT (nanoGPT's CPU setting), batch 1024", "gpt", 1024, 20_000, 20, turns=12),
        Case("LSTM (A5), batch 1024", "lstm", 1024, 20_000, 5, turns=12),
        Case("ResNet (airbench's shape), batch 2048", "resnet", 2048, 50_000, 10, turns=12),
        Case("GPT (6 layers of 384), 128 x 256", "gpt_384", 128, 5_000, 10, turns=12),
    ),
}
"""By platform."""


def experiment(case: Case, dtype: str, steps: int) -> lsm.Experiment:
    """Returns the experiment that a case times, on random data in memory."""
    task, optimizer = _learnt(case.model)
    model = task.model
    if case.model in _CONTEXTS:
        blocks = dataclasses.replace(model.transformer, dtype=dtype)
        model = model.clone(transformer=blocks)
    else:
        model = model.clone(dtype=dtype)
    return lsm.Experiment(
        name=case.model,
        task=dataclasses.replace(task, model=model),
        data=lsm.Data(source=Arrays(case.columns(case.examples)), test=None),
        optimizer=optimizer,
        train=lsm.Train(steps=steps, batch_size=case.batch_size, log_every=case.log_every),
        evaluation=lsm.Evaluation(every=steps),
        checkpoint=lsm.Checkpoint(every=0),
    )


def _learnt(model: str) -> tuple[Task, Optimizer]:
    """Returns the task and the optimiser of a model."""
    if model == "lstm":
        return Texts(model=TextClassifier()), Adam(learning_rate=1e-3, eps=1e-7)
    if model == "resnet":
        return Classification(model=ResNet()), Momentum(learning_rate=1e-3, nesterov=True)
    configs = {"mlp": mnist_mlp, "cnn": cifar_cnn, "gpt": shakespeare_gpt}
    config = configs[model.removesuffix("_384")].get_config()
    if model != "gpt_384":
        return config.task, config.optimizer
    gpt = config.task.model
    blocks = dataclasses.replace(gpt.transformer, layers=6, heads=6, width=384, unroll=6)
    gpt = gpt.clone(transformer=blocks, context=_CONTEXTS[model])
    return dataclasses.replace(config.task, model=gpt), config.optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts(Classification):
    """Classification of texts: tokens go into the model as they are."""

    def inputs(self, batch: Batch) -> jax.Array:
        """Returns int32 tokens (B, T)."""
        return jnp.asarray(batch["tokens"])

    def check(self, batch: Batch) -> None:
        """Checks nothing: the data are made here."""


class TextClassifier(nn.Module):
    """Embedding, two layers of LSTM, and one unit on the last state.

    Attributes:
      vocabulary: number of tokens.
      width: size of the embedding.
      units: of each layer.
      outputs: number of classes.
      dtype: dtype of the computation; the cells are float32.
    """

    vocabulary: int = 10_000
    width: int = 32
    units: int = 128
    outputs: int = 2
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, tokens_BxT: jax.Array, train: bool = False) -> jax.Array:
        """Maps int tokens (B, T) to logits (B, 2): 0, and the logit of the second class."""
        x_TxBxD = nn.Embed(self.vocabulary, self.width, dtype=self.dtype)(tokens_BxT.T)
        for _ in range(2):
            x_TxBxD = LSTM(self.units, self.dtype)(x_TxBxD)
        z_Bx1 = nn.Dense(1, dtype=self.dtype)(x_TxBxD[-1])
        # Their softmax is the sigmoid of the one unit.
        return jnp.concatenate([jnp.zeros_like(z_Bx1), z_Bx1], axis=1)


class LSTM(nn.Module):
    """One layer (Hochreiter & Schmidhuber 1997; with forget gates, Gers et al. 2000).

    Attributes:
      units: size H of the state.
      dtype: dtype of products and results.
    """

    units: int
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x_TxBxD: jax.Array) -> jax.Array:
        """Maps (T, B, D) to the states after each step (T, B, H)."""
        (t, b, d), h = x_TxBxD.shape, self.units
        kernel_Dx4H = self.param("kernel", XAVIER, (d, 4 * h), jnp.float32)
        recurrent_Hx4H = self.param("recurrent", nn.initializers.orthogonal(), (h, 4 * h))
        bias_4H = self.param("bias", nn.initializers.zeros, (4 * h,))
        x_NxD = x_TxBxD.reshape(t * b, d).astype(self.dtype)
        recurrent_Hx4H = recurrent_Hx4H.astype(self.dtype)
        # Of all steps at once: in the loop is only what needs the step before.
        gates_TxBx4H = (x_NxD @ kernel_Dx4H.astype(self.dtype)).reshape(t, b, 4 * h)
        return recur(gates_TxBx4H, recurrent_Hx4H, bias_4H)


@jax.custom_vjp
def recur(gates_TxBx4H: jax.Array, recurrent_Hx4H: jax.Array, bias_4H: jax.Array) -> jax.Array:
    """Returns the states after each step (T, B, H), from what the inputs add to the gates.

    With a gradient of its own, for that of the parameters: one product over all steps, where the
    gradient of a scan adds up one of each.
    """
    return _recur_forward(gates_TxBx4H, recurrent_Hx4H, bias_4H)[0]


def _half_4H(h: int) -> jax.Array:
    """The factors (4H,) within tanh: sigmoid(x) = tanh(x / 2) / 2 + 1 / 2, so that one does."""
    return jnp.repeat(jnp.asarray([0.5, 0.5, 1.0, 0.5]), h)


def _cell(tanh_Bx4H: jax.Array, c_BxH: jax.Array) -> tuple[jax.Array, jax.Array]:
    i, f, g, o = jnp.split(tanh_Bx4H, 4, axis=1)
    c_BxH = ((f + 1) * c_BxH + (i + 1) * g) / 2
    return (o + 1) / 2 * jnp.tanh(c_BxH), c_BxH


def _recur_forward(
    gates_TxBx4H: jax.Array, recurrent_Hx4H: jax.Array, bias_4H: jax.Array
) -> tuple[jax.Array, Any]:
    (_, b, _), h = gates_TxBx4H.shape, len(recurrent_Hx4H)
    half_4H = _half_4H(h)

    def step(carry, gates_Bx4H):
        h_BxH, c_BxH = carry
        gates_Bx4H = (gates_Bx4H + h_BxH @ recurrent_Hx4H).astype(jnp.float32) + bias_4H
        tanh_Bx4H = jnp.tanh(gates_Bx4H * half_4H)
        new_BxH, new_c_BxH = _cell(tanh_Bx4H, c_BxH)
        new_BxH = new_BxH.astype(h_BxH.dtype)
        return (new_BxH, new_c_BxH), (new_BxH, (h_BxH, c_BxH, tanh_Bx4H))

    start = jnp.zeros((b, h), gates_TxBx4H.dtype), jnp.zeros((b, h), jnp.float32)
    _, (h_TxBxH, before) = jax.lax.scan(step, start, gates_TxBx4H)
    return h_TxBxH, (recurrent_Hx4H, *before)


def _recur_backward(saved: Any, g_TxBxH: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
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
    _, dgates_TxBx4H = jax.lax.scan(step, end, known, reverse=True)
    dgates_Nx4H = dgates_TxBx4H.reshape(-1, 4 * h)
    # A sum as a product, which XLA's CPU back end computes ten times as fast.
    dbias_4H = jnp.ones(len(dgates_Nx4H), dtype) @ dgates_Nx4H
    drecurrent_Hx4H = h_TxBxH.reshape(-1, h).T @ dgates_Nx4H
    return dgates_TxBx4H, drecurrent_Hx4H, dbias_4H.astype(jnp.float32)


recur.defvjp(_recur_forward, _recur_backward)


class ResNet(nn.Module):
    """2x2 convolution; stages of [conv, pool, norm, GELU] and x + [conv, norm, GELU]; head.

    Attributes:
      widths: filters of each stage.
      outputs: number of classes.
      dtype: dtype of the computation.
    """

    widths: tuple[int, ...] = (64, 256, 256)
    outputs: int = 10
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, train: bool = False) -> jax.Array:
        """Maps (B, H, W, C) to logits (B, outputs)."""

        def activated(x):
            return nn.gelu(BatchNorm(dtype=self.dtype)(x, train), approximate=False)

        x = nn.gelu(nn.Conv(24, (2, 2), padding="VALID", dtype=self.dtype)(x_BxHxWxC), False)
        for width in self.widths:
            first, second = (
                nn.Conv(width, (3, 3), use_bias=False, dtype=self.dtype) for _ in range(2)
            )
            x = activated(max_pool_2x2(first(x)))
            x = x + activated(second(x))
        return nn.Dense(self.outputs, use_bias=False, dtype=self.dtype)(x.max((1, 2)))
