"""Digits by a network of a quarter of the filters, taught by the one that was trained.

    python -m experiments.digits --workdir=runs/digits
    python -m lsm.compress --workdir=runs/digits --out=runs/digits_small \\
        --recipe=experiments/configs/digits/compress.py
"""

from lsm import Train
from lsm.compress import Distil, Quantise, Recipe
from lsm.models import CNN
from lsm.optim import AdamW, Cosine, WarmUp


def get_recipe(arg=None):
    """Returns the chain; it takes no argument."""
    return Recipe(
        split="test",
        links=(
            Distil(
                model=CNN(widths=(16, 32)),
                optimizer=AdamW(learning_rate=3e-3, schedule=WarmUp("5%", then=Cosine())),
                train=Train(epochs=20, batch_size=64, log_every=20),
                loses_at_most=1.5,
                size_at_most=0.3,
            ),
            Quantise(loses_at_most=2.0, size_at_most=0.25),
        ),
        export=True,
    )
