"""CIFAR-10 by a ResNet with a quarter of the filters within its blocks, taught by the whole one.

What leads from block to block stays as wide as it is, and so does its cost: three tenths of the
multiplications are left. The student begins with the weights of the filters that stay, and at the
temperature 4 nine tenths of its loss are the teacher's.

    python -m experiments.cifar --config=experiments/configs/cifar/resnet.py --workdir=runs/resnet
    python -m lsm.compress --workdir=runs/resnet --out=runs/resnet_small \\
        --recipe=experiments/configs/cifar/compress.py
"""

from lsm import Train
from lsm.compress import Distil, Quantise, Recipe, Shrink
from lsm.optim import Cosine, Momentum, WarmUp


def get_recipe(arg=None):
    """Returns the chain; it takes no argument."""
    return Recipe(
        split="test",
        links=(
            Shrink(filters=0.25),
            Distil(
                share=0.9,
                optimizer=Momentum(
                    learning_rate=0.1,
                    nesterov=True,
                    weight_decay=5e-4,
                    schedule=WarmUp("5%", then=Cosine()),
                ),
                train=Train(epochs=16, batch_size=128),
                loses_at_most=2.0,  # 0.5 are aimed at, and half of the time
                latency_at_most=0.85,
            ),
            Quantise(loses_at_most=2.1, size_at_most=0.25, latency_at_most=0.85),
        ),
        export=True,
    )
