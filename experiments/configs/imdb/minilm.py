"""IMDB reviews by MiniLM-L6, fine-tuned as a whole on the last 64 tokens of each, one epoch.

sst2/minilm_imdb.py begins with what it has learnt. minilm.py:FOLDER says where MiniLM's files are;
sst2/minilm.py says how to get them.

    python -m experiments.imdb --config=experiments/configs/imdb/minilm.py \\
        --workdir=runs/imdb_minilm

Measured (imdb_minilm): test/accuracy 86.76 %, 1 seed, 30 min 36 s a run, 46 min 13 s of CPU time,
  on AMD EPYC, 2 cores, at dcb01b30cf.
"""

from lsm import Data, Evaluation, Experiment, Start, Train
from lsm.data import Subwords, Texts, Tfds
from lsm.interop import HuggingFaceBERT
from lsm.models import Classifier
from lsm.models.families import minilm
from lsm.optim import AdamW, Linear, WarmUp
from lsm.tasks import TextClassification


def get_config(folder="runs/minilm"):
    return Experiment(
        name="imdb_minilm",
        task=TextClassification(model=Classifier(minilm(), pooling="mean"), label_smoothing=0.1),
        data=Data(
            source=Texts(
                source=Tfds("imdb_reviews"),
                vocabulary=Subwords(path=folder),
                columns={"tokens": "text"},
                length=64,
                truncate="start",
            ),
            train="train",
            test="test",
        ),
        optimizer=AdamW(
            learning_rate=1.5e-4,
            weight_decay=0.01,
            clip_norm=1.0,
            schedule=WarmUp("6%", then=Linear()),
            ema=0.99,
        ),
        train=Train(epochs=1, batch_size=32),
        evaluation=Evaluation(batch_size=128),
        start=Start(path=folder, names=HuggingFaceBERT(heads=12, prefix=""), fresh="^params/head/"),
    )
