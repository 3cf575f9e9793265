"""CIFAR-10 with ResNet-18, of whose weights 80 % are pruned in training: a recipe for a GPU.

`dense` is the same without pruning, to compare with: 70 to 85 % are said to cost at most 0.1
points. Masks grow between a fifth and 70 % of the run; what is left of it is for the rest.

    python -m experiments.cifar --config=experiments/configs/cifar/resnet18_pruned.py
    python -m experiments.cifar --config=experiments/configs/cifar/resnet18_pruned.py:dense

Measured (cifar_resnet18_pruned): not run yet.
Measured (cifar_resnet18_dense): not run yet.
"""

from lsm import Data, Evaluation, Experiment, Train
from lsm.data import RandomCrop, RandomFlip, Tfds
from lsm.errors import ConfigError
from lsm.models.resnet import resnet18
from lsm.optim import Cosine, Magnitude, Momentum, WarmUp
from lsm.tasks import Classification

FORMS = {"pruned": Magnitude(sparsity=0.8), "dense": None}


def get_config(arg="pruned"):
    if arg not in FORMS:
        raise ConfigError(f"--config: argument {arg!r} given; allowed: {', '.join(FORMS)}.")
    return Experiment(
        name=f"cifar_resnet18_{arg}",
        task=Classification(
            model=resnet18(outputs=10, stem="cifar", dtype="bfloat16"),
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
        ),
        data=Data(
            source=Tfds("cifar10"),
            train="train",
            test="test",
            augment=(RandomFlip(), RandomCrop(padding=4)),
        ),
        optimizer=Momentum(
            learning_rate=0.2,
            nesterov=True,
            weight_decay=5e-4,
            schedule=WarmUp("5%", then=Cosine()),
            prune=FORMS[arg],
        ),
        train=Train(epochs=40, batch_size=256),
        evaluation=Evaluation(every="10 epochs"),
    )
