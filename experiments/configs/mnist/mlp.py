"""MNIST with the MLP 784-128-10, SGD with momentum, ten epochs (claimed: 98-99 %).

python -m experiments.mnist --config=experiments/configs/mnist/mlp.py --workdir=runs/mnist
"""

from lsm import Data, Experiment, Train
from lsm.data import Tfds
from lsm.models import MLP
from lsm.models.initializers import TORCH
from lsm.optim import Momentum
from lsm.tasks import Classification


def get_config(arg=None):
    return Experiment(
        name="mnist_mlp",
        task=Classification(model=MLP(widths=(128,), outputs=10, kernel_init=TORCH)),
        data=Data(source=Tfds("mnist"), train="train", test="test"),
        optimizer=Momentum(learning_rate=1e-3, momentum=0.9),
        train=Train(epochs=10, batch_size=64),
    )
