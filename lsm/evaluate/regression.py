"""Metrics of regression, equal to scikit-learn's."""

import dataclasses
import math

import numpy as np

from lsm.errors import DataError
from lsm.evaluate.base import Arrays, Metric, take


@dataclasses.dataclass(frozen=True)
class R2(Metric):
    """Coefficient of determination, "r2", and "mean_squared_error" (without a half).

    r2 is 1 - sum (t - y)^2 / sum (t - mean t)^2 for targets t and predictions y: 1 is perfect, 0 as
    good as the mean. Of several outputs both are means over the outputs. NaN where targets do not
    vary. It keeps four numbers an output, in float64.

    Attributes:
      prediction: predictions, (N,) or (N, K).
      target: column with the targets, of the same shape ((N,) for (N, 1) too).
    """

    prediction: str = "prediction"
    target: str = "y"

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Metric.columns`."""
        return (self.target,)

    def init(self) -> tuple:
        """Returns no weight, squared errors (K,), means (K,) and squared deviations (K,)."""
        return (0.0,) * 4

    def update(self, accumulator: tuple, predictions: Arrays, batch: Arrays) -> tuple:
        """See `Metric.update`."""
        y = take(predictions, self.prediction, "R2.prediction")
        t = take(batch, self.target, "R2.target")
        if y.size != t.size:
            raise DataError(f"R2.target: {t.shape} given for predictions {y.shape}.")
        weights_Nx1 = batch.get("weight", np.ones(len(t))).astype(np.float64).reshape(-1, 1)
        if not (added := weights_Nx1.sum()):
            return accumulator
        y_NxK, t_NxK = (np.asarray(x, np.float64).reshape(len(t), -1) for x in (y, t))
        weight, error_K, mean_K, spread_K = accumulator
        # Chan et al. 1983: squares of deviations, not of targets, which may be far from 0.
        there_K = (weights_Nx1 * t_NxK).sum(0) / added
        inside_K = (weights_Nx1 * (t_NxK - there_K) ** 2).sum(0)
        share, apart_K = added / (weight + added), there_K - mean_K
        return (
            weight + added,
            error_K + (weights_Nx1 * (t_NxK - y_NxK) ** 2).sum(0),
            mean_K + share * apart_K,
            spread_K + inside_K + weight * share * apart_K**2,
        )

    def compute(self, accumulator: tuple) -> dict[str, float]:
        """Returns "r2" and "mean_squared_error"."""
        weight, error_K, _, spread_K = accumulator
        if not weight:
            return {"r2": math.nan, "mean_squared_error": math.nan}
        r2_K = 1 - error_K / np.where(spread_K == 0, math.nan, spread_K)
        return {"r2": float(np.mean(r2_K)), "mean_squared_error": float(np.mean(error_K) / weight)}
