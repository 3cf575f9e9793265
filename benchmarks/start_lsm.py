"""The experiment `cifar` up to its first step, timed: a config, for `start`.

    python -m experiments.cifar --config=benchmarks/start_lsm.py:STARTED --workdir=DIR

It prints, as JSON, the seconds that importing, opening the data and compiling took, and those from
STARTED (`time.time()`) to the end of the first step. Then it ends.
"""

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import jax

from experiments.configs.cifar import cnn
from lsm import Experiment
from lsm.data import Dataset, Source
from lsm.writers import RunInfo


@dataclasses.dataclass(frozen=True)
class Timed(Source):
    """A source that keeps the time which opening another takes.

    Attributes:
      source: the other.
      seconds: for each time it was opened.
    """

    source: Source
    seconds: list[float]

    def open(self, split: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
        """See `Source.open`."""
        start = time.perf_counter()
        dataset = self.source.open(split, data_dir)
        self.seconds.append(time.perf_counter() - start)
        return dataset


@dataclasses.dataclass(frozen=True)
class First:
    """A writer that reports when the first step is done.

    Attributes:
      started: `time.time()` at the start of the process.
      imported: the same when lsm was imported.
      data: seconds of opening the data.
      compiled: seconds of lowering and compiling.
    """

    started: float
    imported: float
    data: list[float]
    compiled: list[float]

    def open(self, workdir: Path, run: RunInfo, resume_step: int) -> "First":
        """Returns itself."""
        return self

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Reports, and ends the process: what would follow is not what is timed."""
        parts = {
            "import": self.imported - self.started,
            "data": sum(self.data),
            "compile": sum(self.compiled),
            "total": time.time() - self.started,
        }
        print(json.dumps(parts), flush=True)
        os._exit(0)

    def close(self) -> None:
        """Does nothing."""


def get_config(arg: str) -> Experiment:
    """Returns the experiment that `cifar` has by default, with the clocks put in."""
    config = cnn.get_config()
    source = Timed(config.data.source, seconds=[])
    first = First(float(arg), time.time(), source.seconds, compiled=[])

    def listen(event: str, seconds: float, **_: object) -> None:
        if event.endswith(("jaxpr_to_mlir_module_duration", "backend_compile_duration")):
            first.compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, source=source),
        train=dataclasses.replace(config.train, log_every=1),
        writers=(first,),
    )
