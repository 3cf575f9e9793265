"""Linear regression by gradient descent: two examples that the source works by hand, from 0.

`slope` is y = theta_1 x for x = 1 2 3, y = 2 3 4, learning rate 0.1. The source claims a loss of
14/3 and theta_1 = -0.933, -7.683, -8.664 in three steps; true are 29/3 and 1.333333, 1.422222,
1.428148. `slope_best` takes the one step that reaches the optimum, 20/14: by 1 / (2 mean x^2).

`line` is y = theta_0 + theta_1 x for x = 1 .. 5, y = 2x, learning rate 0.1. The source claims a
loss of 2, a first step to (0.2, 0.2) and the optimum (2, 2); true are 44, (1.2, 4.4) and (0, 2).
It diverges: 0.1 is above 2 / 23.67, the largest eigenvalue of the Hessian. (At step 135
the loss leaves float32, and the run stops and says so.) `line_best` takes 0.05.

    python -m experiments.linear --config=experiments/configs/linear/descent.py:slope
    python -m experiments.linear --config=experiments/configs/linear/descent.py:line
    python -m experiments.linear --config=experiments/configs/linear/descent.py:line_best

Measured (linear_slope): not run yet.
Measured (linear_slope_best): not run yet.
Measured (linear_line): not run yet.
Measured (linear_line_best): not run yet.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lsm import Checkpoint, Data, Evaluation, Experiment, Mesh, Train
from lsm.data import Arrays
from lsm.errors import ConfigError
from lsm.evaluate import R2
from lsm.metrics import Weighted
from lsm.models import MLP
from lsm.optim import SGD, Group
from lsm.tasks import Regression

SLOPE = {"x": np.array([[1.0], [2.0], [3.0]]), "y": np.array([2.0, 3.0, 4.0])}
LINE = {"x": np.arange(1.0, 6.0)[:, None], "y": 2 * np.arange(1.0, 6.0)}
FORMS = {
    "slope": (SLOPE, 0.1, 3),
    "slope_best": (SLOPE, 3 / 28, 1),
    "line": (LINE, 0.1, 100),
    "line_best": (LINE, 0.05, 1500),
}
"""Data, learning rate, steps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line(Regression):
    """Regression of one number on one, whose two parameters are metrics too."""

    def forward(self, params, *args):
        """Returns predictions and thetas; and no collections."""
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


def get_config(arg="slope"):
    if arg not in FORMS:
        raise ConfigError(f"--config: argument {arg!r} given; allowed: {', '.join(FORMS)}.")
    columns, learning_rate, steps = FORMS[arg]
    through_origin = (Group("bias$", 0.0),) if columns is SLOPE else ()
    return Experiment(
        name=f"linear_{arg}",
        task=Line(model=MLP(widths=(), outputs=1, kernel_init=jax.nn.initializers.zeros)),
        data=Data(source=Arrays(train=columns, test=columns), train="train", test="test"),
        optimizer=SGD(learning_rate=learning_rate, groups=through_origin),
        train=Train(steps=steps, batch_size=len(columns["y"]), log_every="1%"),
        evaluation=Evaluation(every="1%", metrics=(R2(),)),
        checkpoint=Checkpoint(every=0),
        mesh=Mesh(data=1, tensor=-1),  # three examples do not divide over devices
    )
