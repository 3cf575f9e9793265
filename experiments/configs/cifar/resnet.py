"""CIFAR-10 by a small ResNet: three blocks of 32, 64 and 128 filters, 12 epochs.

    python -m experiments.cifar --config=experiments/configs/cifar/resnet.py --workdir=runs/resnet

Measured (cifar_resnet): test/accuracy 86.35 %, 1 seed, 1 h 13 min a run, 1 h 07 min of CPU time,
  on AMD EPYC, 1 core, at 33c9d9c066.
"""

from lsm import Data, Evaluation, Experiment, Train
from lsm.data import RandomCrop, RandomFlip, Tfds
from lsm.models import ResNet
from lsm.optim import Cosine, Momentum, WarmUp
from lsm.tasks import Classification


def get_config(arg=None):
    return Experiment(
        name="cifar_resnet",
        task=Classification(
            model=ResNet(depths=(1, 1, 1), width=32, stem="cifar", outputs=10),
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            label_smoothing=0.1,
        ),
        data=Data(
            source=Tfds("cifar10"),
            train="train",
            test="test",
            augment=(RandomFlip(), RandomCrop(padding=4)),
        ),
        optimizer=Momentum(
            learning_rate=0.1,
            nesterov=True,
            weight_decay=5e-4,
            schedule=WarmUp("5%", then=Cosine()),
        ),
        train=Train(epochs=12, batch_size=128),
        evaluation=Evaluation(every="4 epochs"),
    )
