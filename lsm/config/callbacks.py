"""Functions of the user's own that a run calls at its seams."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any


class StopTraining(Exception):
    """Raised by a callback, ends the run as early stopping does: saved, evaluated, done."""


@dataclasses.dataclass(frozen=True)
class Moment:
    """What a callback is told. It can read all of it and change nothing.

    Attributes:
      step: updates made so far.
      split: "train", or the split that was evaluated; "" after a checkpoint.
      figures: what was measured; {} after a checkpoint. On several processes they are the same on
        all, but for speeds.
      workdir: folder of the run; the checkpoint of a step is `workdir/checkpoints/STEP`.
      state: returns the `lsm.train.TrainState` as it is, on the devices, in dicts of its own; only
        during the call. The next step takes the memory of its arrays, which then raise
        RuntimeError, as this does: what is to be kept needs a copy, such as `jax.device_get` of it.
    """

    step: int
    split: str
    figures: Mapping[str, float]
    workdir: pathlib.Path
    state: Callable[[], Any] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Callback:
    """Functions of a `Moment` that the loop calls; on several processes all of them call it.

    `StopTraining` stops the run where it is raised (after a checkpoint: a step later), of
    several processes where process 0 raises it. Any other exception ends it as a bug does. After a
    kill, steps are made again from the last checkpoint, and the functions called again.

    Attributes:
      after_row: after a row of training metrics was written.
      after_evaluation: after an evaluation while training was written; those at the end of a run
        are in its result.
      after_checkpoint: after a checkpoint is whole on the disk, for which the loop then waits.
    """

    after_row: Callable[[Moment], None] | None = None
    after_evaluation: Callable[[Moment], None] | None = None
    after_checkpoint: Callable[[Moment], None] | None = None
