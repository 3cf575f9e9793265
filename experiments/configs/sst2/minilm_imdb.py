"""SST-2 by MiniLM-L6 that has learnt from IMDB's reviews what a good film is.

As minilm.py, but that it begins with a run of imdb/minilm.py, head and all, and that the best of
its twelve evaluations counts, as in what is published of its class: GLUE keeps the labels of the
test split to itself, so that all figures of SST-2 are of these 872 sentences.

    python -m experiments.imdb --config=experiments/configs/imdb/minilm.py \\
        --workdir=runs/imdb_minilm
    python -m experiments.sst2 --config=experiments/configs/sst2/minilm_imdb.py

Measured (sst2_minilm_imdb): validation/accuracy 90.71 %, 1 seed, 51 min 06 s a run, 1 h 24 min of
  CPU time, on AMD EPYC, 2 cores, at dcb01b30cf.
"""

import dataclasses

from experiments.configs.sst2 import minilm
from lsm import EarlyStopping, Start


def get_config(folder="runs/minilm"):
    direct = minilm.get_config(folder)
    # Of more patience than there are evaluations: the run ends when its schedule does.
    best = EarlyStopping(patience=100, restore_best=True)
    return dataclasses.replace(
        direct,
        name="sst2_minilm_imdb",
        evaluation=dataclasses.replace(direct.evaluation, early_stopping=best),
        start=Start(path="runs/imdb_minilm"),
    )
