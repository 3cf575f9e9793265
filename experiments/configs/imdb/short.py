"""The last 64 words of IMDB reviews, by the LSTM of sst2/lstm.py with 30,000 words.

sst2/lstm_imdb.py begins with what it has learnt.

    python -m experiments.imdb --config=experiments/configs/imdb/short.py --workdir=runs/imdb_short

Measured (imdb_short): test/accuracy 83.64 %, 1 seed, 33 min 25 s a run, 18 min 36 s of CPU time,
  on AMD EPYC, 2 cores, at 91bbc3970c.
"""

import dataclasses

from experiments.configs.sst2 import lstm
from lsm import Data, Evaluation, Experiment, Train
from lsm.data import Texts, Tfds, Words
from lsm.optim import AdamW, Cosine, WarmUp


def get_config(arg=None):
    task = lstm.get_config().task
    return Experiment(
        name="imdb_short",
        task=dataclasses.replace(task, model=dataclasses.replace(task.model, vocabulary=30_000)),
        data=Data(
            source=Texts(
                source=Tfds("imdb_reviews"),
                vocabulary=Words(30_000),
                columns={"tokens": "text"},
                length=64,
                truncate="start",
            ),
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
        evaluation=Evaluation(every="4 epochs", batch_size=250),
    )
