"""Linear regression by gradient descent, by hand in the source: a second each.

python -m experiments.linear --workdir=runs/linear
"""

import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np

from lsm import cli
from lsm.data import ArrayDataset, Source
from lsm.metrics import Weighted
from lsm.tasks import Regression


@dataclasses.dataclass(frozen=True, kw_only=True)
class Points(Source):
    """Points (x, y): `x` float32 (N, 1) and `y` float32 (N,), the same in every split.

    Attributes:
      x: of each point.
      y: of each point.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    def open(self, split, data_dir=None):
        """See `Source.open`."""
        return ArrayDataset({"x": np.float32(self.x)[:, None], "y": np.float32(self.y)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line(Regression):
    """Regression of one number on one, whose two parameters are metrics too."""

    def forward(self, params, *args):
        """Returns predictions with thetas, and the collections that the model changed."""
        outputs, changed = super().forward(params, *args)
        line = params["Dense_0"]
        thetas = {"theta_0": line["bias"][0], "theta_1": line["kernel"][0, 0]}
        return (outputs, thetas), changed

    def metrics(self, outputs, batch, train, step):
        """Returns those of `Regression`, "theta_0" and "theta_1"."""
        predictions, thetas = outputs
        shown = {name: Weighted(theta, jnp.float32(1)) for name, theta in thetas.items()}
        return super().metrics(predictions, batch, train, step) | shown

    def predictions(self, outputs, batch):
        """Returns "prediction"."""
        return super().predictions(outputs[0], batch)


if __name__ == "__main__":
    cli.main(default=pathlib.Path(__file__).parent / "configs/linear/descent.py")
