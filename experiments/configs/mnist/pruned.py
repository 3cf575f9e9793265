"""MNIST with LeNet-300-100 (LeCun et al. 1998), of whose weights 90 % are pruned in training.

Frankle & Carbin 2019 (arXiv:1803.03635) find sparser networks of this size to be as accurate.
`dense` is the same without pruning, to compare with.

    python -m experiments.mnist --config=experiments/configs/mnist/pruned.py --workdir=runs/pruned
    python -m experiments.mnist --config=experiments/configs/mnist/pruned.py:dense

Measured (mnist_pruned): test/accuracy 98.54 % ± 0.04 (98.49 to 98.57), 3 seeds, 15 s a run, 27 s
  of CPU time, on AMD EPYC, 2 cores, at 24066d8364.
Measured (mnist_dense): test/accuracy 98.60 % ± 0.03 (98.57 to 98.62), 3 seeds, 19 s a run, 26 s of
  CPU time, on AMD EPYC, 2 cores, at 24066d8364.
"""

from lsm import Data, Experiment, Train
from lsm.data import Tfds
from lsm.errors import ConfigError
from lsm.models import MLP
from lsm.optim import AdamW, Cosine, Magnitude, WarmUp
from lsm.tasks import Classification

FORMS = {"pruned": Magnitude(sparsity=0.9), "dense": None}


def get_config(arg="pruned"):
    if arg not in FORMS:
        raise ConfigError(f"--config: argument {arg!r} given; allowed: {', '.join(FORMS)}.")
    return Experiment(
        name=f"mnist_{arg}",
        task=Classification(model=MLP(widths=(300, 100)), mean=0.1307, std=0.3081),
        data=Data(source=Tfds("mnist"), train="train", test="test"),
        optimizer=AdamW(
            learning_rate=1.2e-3,
            schedule=WarmUp("2%", then=Cosine()),
            # Weights of pixels that are the same in all pictures would else keep their magnitudes.
            weight_decay=0.1,
            prune=FORMS[arg],
        ),
        train=Train(epochs=30, batch_size=128),
    )
