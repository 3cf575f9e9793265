"""How far a run has come: what decides when it stops and which step was best."""

import dataclasses

from lsm.config import Evaluation


@dataclasses.dataclass(frozen=True)
class Progress:
    """Saved with every checkpoint, so that a resumed run stops where an uninterrupted one does.

    Attributes:
      best: best value of the monitored validation metric so far.
      best_step: the step that it was reached at.
      stale: evaluations since then.
      stopped: the run ended early.
      seconds: wall time spent so far, over all its pieces.
    """

    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    stopped: bool = False
    seconds: float = 0.0

    def after(self, step: int, value: float, config: Evaluation) -> "Progress":
        """Returns the progress after an evaluation that measured `value` at `step`."""
        stopping = config.early_stopping
        min_delta = stopping.min_delta if stopping else 0.0
        if self.best is None or (value - self.best) * config.sign > min_delta:
            return dataclasses.replace(self, best=value, best_step=step, stale=0)
        stale = self.stale + 1
        stopped = stopping is not None and stale >= stopping.patience
        return dataclasses.replace(self, stale=stale, stopped=stopped)
