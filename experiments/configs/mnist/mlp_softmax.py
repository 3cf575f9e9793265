"""MNIST with a softmax in the model and cross-entropy on top: a published mistake, and its repair.

The faulty form has 64 outputs for 10 classes and takes the softmax twice; the repaired one gives
ten logits.

    python -m experiments.mnist --config=experiments/configs/mnist/mlp_softmax.py:faulty
    python -m experiments.mnist --config=experiments/configs/mnist/mlp_softmax.py:repaired

Measured (mnist_faulty): test/accuracy 96.96 % ± 0.17 (96.77 to 97.10), 3 seeds, 13 s a run on AMD
  EPYC, 2 cores, at 9dc63af3f6.
Measured (mnist_repaired): test/accuracy 97.68 % ± 0.15 (97.53 to 97.83), 3 seeds, 11 s a run on
  AMD EPYC, 2 cores, at 9dc63af3f6.
"""

import flax.linen as nn

from lsm import Data, Experiment, Train
from lsm.data import Tfds
from lsm.errors import ConfigError
from lsm.models import MLP
from lsm.models.initializers import TORCH
from lsm.optim import Adam
from lsm.tasks import Classification

MODELS = {
    "faulty": MLP(widths=(128,), outputs=64, output_activation=nn.softmax, kernel_init=TORCH),
    "repaired": MLP(widths=(128, 64), outputs=10, kernel_init=TORCH),
}


def get_config(arg="repaired"):
    if arg not in MODELS:
        raise ConfigError(f"--config: argument {arg!r} given; allowed: {', '.join(MODELS)}.")
    return Experiment(
        name=f"mnist_{arg}",
        task=Classification(model=MODELS[arg]),
        data=Data(source=Tfds("mnist"), train="train", test="test"),
        optimizer=Adam(learning_rate=1e-3),
        train=Train(epochs=10, batch_size=64),
    )
