"""CIFAR-10 by He et al.'s ResNet of 44 layers, 12 epochs, trained as resnet26.py trains its own.

    python -m experiments.cifar --config=experiments/configs/cifar/resnet44.py --workdir=runs/resnet

Measured (cifar_resnet44): not run yet.
"""

import dataclasses

from experiments.configs.cifar import resnet26
from lsm.models.resnet import resnet_cifar


def get_config(arg=None):
    config = resnet26.get_config()
    task = dataclasses.replace(config.task, model=resnet_cifar(44))
    return dataclasses.replace(config, name="cifar_resnet44", task=task)
