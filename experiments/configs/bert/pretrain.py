"""A small BERT, pre-trained on the reviews of IMDB by hidden words; :base is BERT base.

BERT base is a setting for a slice of TPUs, planned and not run here: with sequences of 512 and
batches of 256, as in the paper (arXiv:1810.04805), which has a second task besides.

    python -m experiments.bert --config=experiments/configs/bert/pretrain.py --data_dir=DATA

Measured (bert_pretrain): validation/loss 6.081, 1 seed, 49 min 18 s a run, 44 min 22 s of CPU
  time, on AMD EPYC, 1 core, at 95d567af72.
"""

from lsm import Data, Evaluation, Experiment, Train
from lsm.data import Subwords, Texts, Tfds
from lsm.models import MaskedLM
from lsm.models.families import bert_base
from lsm.optim import AdamW, Linear, WarmUp
from lsm.tasks import MaskedLanguageModelling

SMALL = {"layers": 4, "heads": 4, "width": 256, "vocabulary": 8000, "context": 128}
BASE = {"context": 512, "dtype": "bfloat16", "remat": "dots"}


def get_config(size="small"):
    base = size == "base"
    encoder = bert_base(**(BASE if base else SMALL))
    return Experiment(
        name=f"bert_{size}",
        # [PAD], [CLS] and [SEP] are 0, 2 and 3 in a vocabulary that is learnt, and [MASK] is 4.
        task=MaskedLanguageModelling(model=MaskedLM(encoder), mask=4, special=(0, 2, 3)),
        data=Data(
            source=Texts(
                source=Tfds("imdb_reviews"),
                vocabulary=Subwords(kind="wordpiece", size=encoder.vocabulary, lower=True),
                columns={"tokens": "text"},
                length=encoder.context,
                words=True,
            ),
            validation="test[:10%]",
            test=None,
        ),
        optimizer=AdamW(
            learning_rate=1e-4 if base else 5e-4,
            weight_decay=0.01,
            clip_norm=1.0,
            schedule=WarmUp("1%" if base else "10%", then=Linear()),
        ),
        train=Train(steps=1_000_000 if base else 600, batch_size=256 if base else 64),
        evaluation=Evaluation(every="20%"),
    )
