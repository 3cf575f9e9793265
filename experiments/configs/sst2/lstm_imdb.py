"""SST-2 by the LSTM of lstm.py, begun with what it has learnt from IMDB's reviews.

As lstm.py, but for the words, which are those of the reviews, and the first parameters: of a run of
imdb/short.py, head and all. The best of 24 evaluations counts, as in minilm_imdb.py.

    python -m experiments.imdb --config=experiments/configs/imdb/short.py --workdir=runs/imdb_short
    python -m experiments.sst2 --config=experiments/configs/sst2/lstm_imdb.py

Measured (sst2_lstm_imdb): validation/accuracy 85.63 % ± 0.35 (85.32 to 86.01), 3 seeds, 23 min 41
  s a run, 22 min 28 s of CPU time, on AMD EPYC, 1 core, at a13e14dcc4.
"""

import dataclasses

from experiments.configs.imdb import short
from experiments.configs.sst2 import lstm
from lsm import EarlyStopping, Start
from lsm.data import Subwords


def get_config(folder="runs/imdb_short"):
    alone = lstm.get_config()
    source = dataclasses.replace(alone.data.source, vocabulary=Subwords(path=folder))
    # Of more patience than there are evaluations: the run ends when its schedule does.
    best = EarlyStopping(patience=100, restore_best=True)
    return dataclasses.replace(
        alone,
        name="sst2_lstm_imdb",
        task=short.get_config().task,
        data=dataclasses.replace(alone.data, source=source),
        evaluation=dataclasses.replace(alone.evaluation, every="0.25 epoch", early_stopping=best),
        start=Start(path=folder),
    )
