"""SST-2 by the LSTM of lstm.py, begun with MiniLM's word vectors and taught by a fine-tuned MiniLM.

The teacher is the best of runs/sst2, unless --config.task.teacher.path says another; its
word pieces are read, and its vectors of them are where the embedding begins. lstm_taught.py:FOLDER
says where its files are; see minilm.py. Tang et al. 2019 (arXiv:1903.12136) teach an LSTM so.

    python -m experiments.sst2 --config=experiments/configs/sst2/minilm.py --workdir=runs/sst2
    python -m experiments.sst2 --config=experiments/configs/sst2/lstm_taught.py

Measured (sst2_lstm_taught): not run yet.
"""

import dataclasses

from experiments.configs.sst2 import lstm, minilm
from lsm import Experiment, Start
from lsm.tasks import Distillation, Teacher

VECTORS = "embeddings.word_embeddings.weight"
VOCABULARY, WIDTH = 30_522, 384


def get_config(folder="runs/minilm"):
    alone, teacher = lstm.get_config(), minilm.get_config(folder)
    model = alone.task.model.clone(vocabulary=VOCABULARY, width=WIDTH, outputs=2)
    return Experiment(
        name="sst2_lstm_taught",
        task=Distillation(
            student=dataclasses.replace(alone.task, model=model),
            teacher=Teacher(task=teacher.task, path="runs/sst2"),
            temperature=2.0,
            share=0.8,
        ),
        data=teacher.data,
        optimizer=alone.optimizer,
        train=alone.train,
        evaluation=alone.evaluation,
        start=Start(
            path=folder,
            take=f"^{VECTORS}$",
            rename=(("^params/tokens/embedding$", VECTORS),),
            fresh="^params/(?!tokens/)",
        ),
    )
