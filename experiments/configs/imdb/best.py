"""IMDB reviews, aimed at 88.5 %: a convolution that halves the text, LSTMs in both directions.

The maximum of their states over time is read, so that a word counts wherever it stands; half of the
features and a fifth of the words are dropped, and the parameters' average is evaluated.

    python -m experiments.imdb --workdir=runs/imdb

Measured (imdb_best): test/accuracy 88.90 % ± 0.22 (88.70 to 89.14), 3 seeds, 6 min 27 s a run, 7
  min 35 s of CPU time, on AMD EPYC, 2 cores, at 302720d916.
"""

from lsm import Data, Evaluation, Experiment, Train
from lsm.data import ByLength, Texts, Tfds, Words
from lsm.models import TextClassifier
from lsm.optim import AdamW, Cosine, WarmUp
from lsm.tasks import TextClassification


def get_config(arg=None):
    return Experiment(
        name="imdb_best",
        task=TextClassification(
            model=TextClassifier(
                vocabulary=20_000,
                outputs=1,
                width=128,
                convolutions=(128,),
                units=(64,),
                bidirectional=True,
                pooling="max",
                dropout=0.5,
                word_dropout=0.2,
            )
        ),
        data=Data(
            source=Texts(
                source=Tfds("imdb_reviews"),
                vocabulary=Words(20_000),
                columns={"tokens": "text"},
                length=400,
                truncate="start",
                buckets=(128, 192, 256, 320),
            ),
            sampling=ByLength(),
            train="train",
            test="test",
        ),
        optimizer=AdamW(
            learning_rate=2e-3,
            weight_decay=0.05,
            clip_norm=1.0,
            schedule=WarmUp("5%", then=Cosine()),
            ema=0.995,
        ),
        train=Train(epochs=4, batch_size=64),
        evaluation=Evaluation(batch_size=250),
    )
