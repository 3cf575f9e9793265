"""What a writer is, and what it is told of the run."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What a writer may tell about the run as a whole.

    Attributes:
      name: the run's name, shown to people; not unique.
      config: the resolved experiment as JSON values.
      total_steps: the step at which the run is complete.
      batch_size: examples in one step, over all devices and accumulated micro-batches.
    """

    name: str
    config: Mapping[str, Any]
    total_steps: int
    batch_size: int


class Writer(Protocol):
    """Takes rows of figures, one at a time, in the order of their steps."""

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Records `metrics` of `split` after `step` steps.

        A split is "train", "validation", "test", or at the very end "goodput": where the run's
        time went (see `lsm.train.throughput`).
        """

    def close(self) -> None:
        """Writes what is still held back and lets go of files, connections and the screen."""


class WriterConfig(Protocol):
    """What a config holds: how to open one writer."""

    def open(self, workdir: Path, run: RunInfo, resume_step: int) -> Writer:
        """Opens the writer for a run that goes on from `resume_step` (0: from the start)."""


def one_line(error: BaseException) -> str:
    """Returns "ValueError: what it says", on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
