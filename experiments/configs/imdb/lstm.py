"""IMDB reviews by two LSTMs, as in Keras's tutorials (peers reach 87-88 %).

10,000 words, the last 500 of a review, embedding 32, two LSTMs of 128, one sigmoid, Adam, ten
epochs of batches of 64; the last fifth of the training reviews is for validation. Keras puts the
padding before a review and runs through it; here the LSTMs begin at the first word. Both read the
state after the last one, and keep what was learnt in the last epoch. Nothing bounds the gradients:
the run below had 86.0 % of the validation reviews right an epoch before its end, 87.8 % after two
epochs, and lost much of it within twenty steps of the last.

    python -m experiments.imdb --config=experiments/configs/imdb/lstm.py --workdir=runs/imdb_lstm

Measured (imdb_lstm): test/accuracy 79.56 %, 1 seed, 47 min 47 s a run, 35 min 01 s of CPU time, on
  AMD EPYC, 2 cores, at cc6b72346b.
"""

from lsm import Data, Experiment, Train
from lsm.data import Texts, Tfds, Words
from lsm.models import TextClassifier
from lsm.optim import Adam
from lsm.tasks import TextClassification


def get_config(arg=None):
    return Experiment(
        name="imdb_lstm",
        task=TextClassification(
            model=TextClassifier(vocabulary=10_000, outputs=1, width=32, units=(128, 128))
        ),
        data=Data(
            source=Texts(
                source=Tfds("imdb_reviews"),
                vocabulary=Words(10_000),
                columns={"tokens": "text"},
                length=500,
                truncate="start",
            ),
            train="train[:80%]",
            validation="train[80%:]",
            test="test",
        ),
        optimizer=Adam(learning_rate=1e-3, eps=1e-7),
        train=Train(epochs=10, batch_size=64),
    )
