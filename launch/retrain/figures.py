"""A version measured, from its artefact: what is served, not what it was made of."""

import pathlib
import statistics
import time
from collections.abc import Sequence

import numpy as np

from launch.retrain.config import Retraining
from lsm import evaluate, export
from lsm.config import Experiment
from lsm.data import EvalBatches
from lsm.errors import ConfigError
from lsm.evaluate import CalibrationError, Metric

_ROWS = 64  # of a batch
_CALLS = 50  # that are timed


class FixedSet:
    """The examples on which all versions are measured.

    Attributes:
      batches: of the split, columns by name.
    """

    def __init__(self, retraining: Retraining, experiment: Experiment, data_dir: str | None):
        """Opens the split of the old data."""
        data = experiment.data
        dataset = data.source.open(getattr(data, retraining.split), data_dir)
        self.batches = EvalBatches(dataset, min(_ROWS, len(dataset)), change=data.evaluate)
        self.metrics: tuple[Metric, ...] = retraining.metrics
        self._classes: Sequence[str] = dataset.classes or ()

    def figures(self, folder: pathlib.Path) -> dict[str, float]:
        """Returns the figures of the artefact in `folder`; see `config.Figures`.

        Accuracy and calibration are those of a model that predicts "label"; latency is the median
        of one example's, in milliseconds, here.

        Raises:
          LsmError: it is damaged, or what it predicts has no label.
        """
        model = export.load(folder)
        metrics = (CalibrationError(), *(m.told(self._classes) for m in self.metrics))
        held, said, right = evaluate.init(metrics), [], []
        for number in range(len(self.batches)):
            batch = self.batches.batch_at(number)
            found = model(self.columns(model, batch))
            if "label" not in found or "label" not in batch:
                raise ConfigError(
                    "Retraining: the model or the fixed set has no 'label'; only classification "
                    "can be measured."
                )
            held = evaluate.update(metrics, held, found, batch)
            kept = batch["weight"] > 0
            said.append(np.asarray(found["label"])[kept])
            right.append(np.asarray(batch["label"])[kept])
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        return {
            **_accuracies(np.concatenate(said), np.concatenate(right), self._classes),
            **evaluate.compute(metrics, held),
            "latency_ms": self._latency(model),
            "megabytes": size,
        }

    def columns(self, model: export.Model, batch: dict) -> dict[str, np.ndarray]:
        """Returns the columns of a batch that a model takes."""
        return {name: batch[name] for name in model.signature.functions["predict"].inputs}

    def _latency(self, model: export.Model) -> float:
        batch = self.columns(model, self.batches.batch_at(0))
        one = {name: np.asarray(x)[:1] for name, x in batch.items()}
        model(one)
        times = []
        for _ in range(_CALLS):
            start = time.perf_counter()
            model(one)
            times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)


def _accuracies(said_N: np.ndarray, label_N: np.ndarray, classes: Sequence[str]) -> dict:
    hits_N = said_N == label_N
    names = classes or [str(k) for k in range(int(label_N.max()) + 1)]
    by_class = {
        f"accuracy/{name}": float(hits_N[label_N == k].mean())
        for k, name in enumerate(names)
        if (label_N == k).any()
    }
    return {"accuracy": float(hits_N.mean()), **by_class}
