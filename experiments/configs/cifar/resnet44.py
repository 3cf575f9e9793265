"""CIFAR-10 by He et al.'s ResNet of 44 layers, 12 epochs.

Batches are small, so that what a block gives stays in a CPU's caches.

    python -m experiments.cifar --config=experiments/configs/cifar/resnet44.py --workdir=runs/resnet

Measured (cifar_resnet44): not run yet.
"""

from lsm import Data, Evaluation, Experiment, Train
from lsm.data import RandomCrop, RandomFlip, Tfds
from lsm.models.resnet import resnet_cifar
from lsm.optim import Cosine, Momentum, WarmUp
from lsm.tasks import Classification


def get_config(arg=None):
    return Experiment(
        name="cifar_resnet44",
        task=Classification(
            model=resnet_cifar(44),
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
            learning_rate=0.05,
            nesterov=True,
            weight_decay=5e-4,
            schedule=WarmUp("5%", then=Cosine()),
        ),
        train=Train(epochs=12, batch_size=32),
        evaluation=Evaluation(every="4 epochs"),
    )
