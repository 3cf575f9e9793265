"""Tiny Shakespeare by characters, at nanoGPT's CPU setting (published validation loss: 1.88).

python -m experiments.shakespeare --workdir=runs/shakespeare
"""

from lsm import Data, Evaluation, Experiment, Train
from lsm.data import CharText, Tfds
from lsm.models import GPT
from lsm.optim import AdamW, Cosine, WarmUp
from lsm.tasks import LanguageModelling


def get_config(arg=None):
    return Experiment(
        name="shakespeare",
        task=LanguageModelling(
            model=GPT(vocabulary=65, layers=4, heads=4, width=128, context=64, unroll=4)
        ),
        data=Data(
            source=CharText(source=Tfds("tiny_shakespeare"), length=64),
            train="train",
            validation="validation",
            test="test",
        ),
        optimizer=AdamW(
            learning_rate=1e-3,
            b2=0.99,
            weight_decay=0.1,
            decay=r"(kernel|embedding|positions)$",
            clip_norm=1.0,
            schedule=WarmUp("5%", then=Cosine(final=0.1)),
        ),
        train=Train(steps=2000, batch_size=12),
        evaluation=Evaluation(every=250, batch_size=96),
    )
