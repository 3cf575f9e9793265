"""Digits, trained on as new pictures come in: see docs/retraining.md.

    python -m launch.retrain --config=experiments/configs/digits/retrain.py --watch=incoming \\
        --workdir=runs/retrain --models=exports/digits --once

The argument is the folder with the old data, "data/digits" by default.
"""

from launch.retrain import Bound, Canary, NoWorse, Retraining
from lsm import Data, Experiment, Train
from lsm.data import Files
from lsm.models import CNN
from lsm.optim import AdamW, Cosine, WarmUp
from lsm.tasks import Classification


def get_retraining(arg=None):
    """Returns what is retrained; `arg` is the folder with the old data."""
    return Retraining(
        experiment=Experiment(
            name="digits",
            task=Classification(model=CNN(widths=(16, 32))),
            data=Data(source=Files(arg or "data/digits", labels=("label",)), test="test"),
            optimizer=AdamW(learning_rate=2e-3, schedule=WarmUp("5%", then=Cosine())),
            train=Train(epochs=60, batch_size=64, log_every=20),
        ),
        gates=(
            Bound("accuracy", least=0.9),
            Bound("accuracy/*", least=0.8),
            Bound("calibration_error", most=0.1),
            Bound("latency_ms", most=50),
            Bound("megabytes", most=5),
            NoWorse("accuracy", by=0.01),
        ),
        canary=Canary(share=0.1, requests=200, seconds=3600),
        settle=60,
    )
