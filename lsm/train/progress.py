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
      judged: by which metric of which split, whether a lower one is better, and a digest of what
        else its values hang on.
      best: best value of it so far.
      best_step: the step that it was reached at.
      stale: evaluations since then.
      evaluated: the step of the last evaluation; None is not known, of an earlier version. A run
        that is interrupted in one makes it when it goes on.
      stopped: the run ended early.
      within: steps and patience that it was to stop within; without patience, None.
      goodput: what the time went into so far, over all pieces of the run.
      replayed: steps that kills undid and that were made again.
      skipped: updates that were not finite, and left out; see `train.skip_nonfinite`.
    """

    judged: str | None = None
    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    evaluated: int | None = None
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

    def asked(self, within: tuple[int, int | None], judged: str) -> "Progress":
        """Returns the progress of a run that is asked for so many steps, with so much patience.

        One that has ended early goes on where it was asked for less then. Where it was judged by
        something else, what is best is chosen anew.
        """
        now = dataclasses.replace(self, within=within, judged=judged)
        if self.judged_otherwise(judged):
            return dataclasses.replace(now.unchosen(), stopped=False)
        steps, patience = self.within or within
        more = patience is not None and (within[1] is None or within[1] > patience)
        if self.stopped and (more or within[0] > steps):
            return dataclasses.replace(now, stopped=False, stale=0)
        return now

    def judged_otherwise(self, judged: str) -> bool:
        """Whether values so far cannot be compared with those of `judged`."""
        # Runs of earlier versions have said how it begins.
        return self.judged is not None and not judged.startswith(self.judged)

    def unchosen(self) -> "Progress":
        """Returns the progress of a run none of whose steps was best so far."""
        return dataclasses.replace(self, best=None, best_step=None, stale=0)

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
