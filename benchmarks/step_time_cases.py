"""What `step_time` trains: models, batch sizes, random data.

The MLP, the CNN and the small GPT are those of the tutorials' configs; the LSTM is Keras's text
classifier (two layers of 128 on an embedding of 32), on texts of 500. The ResNet (the widths and
pooling of airbench94, github.com/KellerJordan/cifar10-airbench, with a skip around every second
convolution) is written here.
"""

import dataclasses

import flax.linen as nn
import jax
import numpy as np

import lsm
from experiments.configs.cifar import cnn as cifar_cnn
from experiments.configs.mnist import mlp as mnist_mlp
from experiments.configs.shakespeare import gpt as shakespeare_gpt
from lsm.cpu import max_pool_2x2
from lsm.data import Arrays
from lsm.models import TextClassifier
from lsm.models.batch_norm import BatchNorm
from lsm.models.layers import Dtype
from lsm.optim import Adam, Momentum, Optimizer
from lsm.tasks import Classification, Task, TextClassification

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
                "tokens_length": np.full(count, 500, np.int32),
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
        model = TextClassifier(vocabulary=10_000, outputs=1)
        return TextClassification(model=model), Adam(learning_rate=1e-3, eps=1e-7)
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
