"""How far a run has come: what decides when it stops and which step was best."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from lsm.config import Evaluation
from lsm.train.goodput import Goodput


@dataclasses.dataclass(frozen=True)
class Progress:
    """Saved with every checkpoint, so that a resumed run stops where an uninterrupted one does.

    Attributes:
      best: best value of the monitored validation metric so far.
      best_step: the step that it was reached at.
      stale: evaluations since then.
      stopped: the run ended early.
      within: steps and patience that it was to stop within.
      goodput: what the time went into so far, over all pieces of the run.
      replayed: steps that kills undid and that were made again.
      skipped: updates that were not finite, and left out; see `train.skip_nonfinite`.
    """

    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    stopped: bool = False
    within: tuple[int, int | None] | None = None
    goodput: Goodput = Goodput()
    replayed: int = 0
    skipped: int = 0

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> "Progress":
        """Returns what `dataclasses.asdict` made of a progress; what else is there is left out."""
        known = {f.name: saved[f.name] for f in dataclasses.fields(cls) if f.name in saved}
        return cls(**known | {"goodput": Goodput(**known.get("goodput", {}))})

    def asked(self, within: tuple[int, int | None]) -> "Progress":
        """Returns the progress of a run that is asked for so many steps, with so much patience.

        One that has ended early goes on where it was asked for others then.
        """
        before = self.within and tuple(self.within)  # JSON has no tuples
        if self.stopped and before not in (None, within):
            return dataclasses.replace(self, within=within, stopped=False, stale=0)
        return dataclasses.replace(self, within=within)

    def after(self, step: int, value: float, config: Evaluation) -> "Progress":
        """Returns the progress after an evaluation that measured `value` at `step`."""
        stopping = config.early_stopping
        min_delta = stopping.min_delta if stopping else 0.0
        best = math.nan if self.best is None else self.best  # NaN is worse than anything
        better = math.isnan(best) or (value - best) * config.sign > min_delta
        if better and not math.isnan(value):
            return dataclasses.replace(self, best=value, best_step=step, stale=0)
        stale = self.stale + 1
        stopped = stopping is not None and stale >= stopping.patience
        return dataclasses.replace(self, stale=stale, stopped=stopped)
