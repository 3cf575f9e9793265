"""The experiment `cifar` up to its first step, timed: a config, for `start`.

    python -m experiments.cifar --config=benchmarks/start_lsm.py:STARTED --workdir=DIR

It prints, as JSON, the seconds that importing, opening and decoding the data, and compiling took,
and those from STARTED (`time.time()`) to the end of the first step. Data is decoded and programs
are compiled at the same time. Then it ends.
"""

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from experiments.configs.cifar import cnn
from lsm import Experiment
from lsm.data import Tfds, cache
from lsm.writers import RunInfo


@dataclasses.dataclass(frozen=True)
class First:
    """A writer that reports when the first step is done.

    Attributes:
      started: `time.time()` at the start of the process.
      imported: the same when lsm was imported.
      data: seconds of opening the data, and of decoding it.
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


def _timed(function: Callable, seconds: list[float]) -> Callable:
    """Returns the function, adding the time of each call to `seconds`."""

    @functools.wraps(function)
    def timed(*args: object) -> object:
        start = time.perf_counter()
        result = function(*args)
        seconds.append(time.perf_counter() - start)
        return result

    return timed


def get_config(arg: str) -> Experiment:
    """Returns the experiment that `cifar` has by default, with the clocks put in."""
    config = cnn.get_config()
    first = First(float(arg), time.time(), data=[], compiled=[])
    for owner, name in ((Tfds, "open"), (cache, "columns")):
        setattr(owner, name, _timed(getattr(owner, name), first.data))

    def listen(event: str, seconds: float, **_: object) -> None:
        if event.endswith(("jaxpr_to_mlir_module_duration", "backend_compile_duration")):
            first.compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, log_every=1),
        writers=(first,),
    )
