"""CIFAR-10 at half the multiplications: a narrower network, taught by that of cifar/modern.py.

The student's widths of (24, 44, 88, 176), for (32, 64, 128, 256), leave 0.50 of the multiplications
of a picture and 0.48 of the parameters. It is not taught by the labels alone what the teacher has
found out: at the temperature 4 nine tenths of its loss are the teacher's.

    python -m experiments.cifar --config=experiments/configs/cifar/modern.py --workdir=runs/modern
    python -m lsm.compress --workdir=runs/modern --out=runs/modern_small \\
        --recipe=experiments/configs/cifar/compress.py
"""

from lsm import Train
from lsm.compress import Distil, Quantise, Recipe
from lsm.models import CNN
from lsm.optim import Cosine, Momentum, WarmUp


def get_recipe(arg=None):
    return Recipe(
        split="test",
        links=(
            Distil(
                model=CNN(widths=(24, 44, 88, 176), convs=1),
                share=0.9,
                optimizer=Momentum(
                    learning_rate=0.1,
                    nesterov=True,
                    weight_decay=5e-4,
                    schedule=WarmUp("5%", then=Cosine()),
                ),
                train=Train(epochs=20, batch_size=128),
                loses_at_most=2.0,  # 0.5 are aimed at
                size_at_most=0.5,
            ),
            Quantise(loses_at_most=2.1, size_at_most=0.25),
        ),
        export=True,
    )
