"""Linear regression by gradient descent: two examples that the source works by hand, from 0.

`slope` is y = theta_1 x for x = 1 2 3, y = 2 3 4, learning rate 0.1. The source claims a loss of
14/3 and theta_1 = -0.933, -7.683, -8.664 in three steps; true are 29/3 and 1.333333, 1.422222,
1.428148. `slope_best` takes the one step that reaches the optimum, 20/14: by 1 / (2 mean x^2).

`line` is y = theta_0 + theta_1 x for x = 1 .. 5, y = 2x, learning rate 0.1. The source claims a
loss of 2, a first step to (0.2, 0.2) and the optimum (2, 2); true are 44, (1.2, 4.4) and (0, 2).
It diverges: 0.1 is above 2 over the largest eigenvalue of the Hessian, 2 / 23.67 = 0.0845. (At
step 135 the loss would leave float32; a run that is longer stops there and says so.) `line_best`
takes 0.05.

    python -m experiments.linear --config=experiments/configs/linear/descent.py:slope
    python -m experiments.linear --config=experiments/configs/linear/descent.py:line
    python -m experiments.linear --config=experiments/configs/linear/descent.py:line_best

Measured (linear_slope): test/theta_1 1.428, 1 seed, 0 s a run, 3 s of CPU time, on AMD EPYC, 2
  cores, at fa504febbf.
Measured (linear_slope_best): test/theta_1 1.429, 1 seed, 0 s a run, 3 s of CPU time, on AMD EPYC,
  2 cores, at fa504febbf.
Measured (linear_line): test/loss 5.562e+28, 1 seed, 1 s a run, 3 s of CPU time, on AMD EPYC, 2
  cores, at fa504febbf.
Measured (linear_line_best): test/loss 1.137e-14, 1 seed, 1 s a run, 3 s of CPU time, on AMD EPYC,
  2 cores, at fa504febbf.
"""

import jax

from experiments.linear import Line, Points
from lsm import Checkpoint, Data, Evaluation, Experiment, Mesh, Train
from lsm.errors import ConfigError
from lsm.evaluate import R2
from lsm.models import MLP
from lsm.optim import SGD, Group

SLOPE = Points(x=(1.0, 2.0, 3.0), y=(2.0, 3.0, 4.0))
LINE = Points(x=(1.0, 2.0, 3.0, 4.0, 5.0), y=(2.0, 4.0, 6.0, 8.0, 10.0))
FORMS = {
    "slope": (SLOPE, 0.1, 3),
    "slope_best": (SLOPE, 3 / 28, 1),
    "line": (LINE, 0.1, 100),
    "line_best": (LINE, 0.05, 900),
}
"""Points, learning rate, steps."""


def get_config(arg="slope"):
    if arg not in FORMS:
        raise ConfigError(f"--config: argument {arg!r} given; allowed: {', '.join(FORMS)}.")
    points, learning_rate, steps = FORMS[arg]
    through_origin = (Group("bias$", 0.0),) if points is SLOPE else ()
    return Experiment(
        name=f"linear_{arg}",
        task=Line(model=MLP(widths=(), outputs=1, kernel_init=jax.nn.initializers.zeros)),
        data=Data(source=points, train="train", test="test"),
        optimizer=SGD(learning_rate=learning_rate, groups=through_origin),
        train=Train(steps=steps, batch_size=len(points.x), log_every="1%"),
        evaluation=Evaluation(every="1%", metrics=(R2(),)),
        checkpoint=Checkpoint(every=0),
        mesh=Mesh(data=1, tensor=-1),  # three examples do not divide over devices
    )
