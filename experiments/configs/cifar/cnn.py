"""CIFAR-10 with the tutorial CNN of three convolutions, exactly as published (claimed: 91.80 %).

    python -m experiments.cifar --config=experiments/configs/cifar/cnn.py --workdir=runs/cifar

Measured (cifar_cnn): test/accuracy 71.02 % ± 0.82 (70.25 to 71.89), 3 seeds, 5 min 45 s a run on
  AMD EPYC, 2 cores, at 3218d74de9 (begins alike at c530eb7c91).
"""

from lsm import Data, Experiment, Train
from lsm.data import Tfds
from lsm.models import CNN
from lsm.models.initializers import XAVIER
from lsm.optim import Adam
from lsm.tasks import Classification


def get_config(arg=None):
    model = CNN(
        widths=(32, 64, 64),
        convs=1,
        padding="VALID",
        batch_norm=False,
        head="flatten",
        hidden=(64,),
        outputs=10,
        kernel_init=XAVIER,
    )
    return Experiment(
        name="cifar",
        task=Classification(model=model),
        data=Data(source=Tfds("cifar10"), train="train", test="test"),
        optimizer=Adam(learning_rate=1e-3, eps=1e-7),  # Keras's epsilon
        train=Train(epochs=10, batch_size=32),
    )
