"""Where the figures of a run go: the screen, a file of rows, TensorBoard, Weights & Biases, MLflow.

A config holds frozen dataclasses (`Console()`, `Jsonl()`, `TensorBoard()`, `Wandb(project=...)`,
`Mlflow(experiment=...)`); `Writers.open(configs, ...)` makes one `Writer` of them, on process 0:

    writers = Writers.open((Console(), Jsonl()), workdir, run, resume_step=0)
    try:
        writers.write(300, "train", {"loss": 0.43, "examples_per_sec": 12345.0})
    finally:
        writers.close()

A run that is killed and restarted from the checkpoint of step R has written the rows up to R, and
some after it that it will now write again. The local writers therefore drop everything after R when
they open, so that each row is there once. Rows of step R must be written before its checkpoint.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from lsm.writers.base import RunInfo, Writer, WriterConfig, one_line
from lsm.writers.console import Console
from lsm.writers.local import Jsonl, TensorBoard, read_metrics
from lsm.writers.remote import Mlflow, Wandb

__all__ = [
    "Console",
    "Jsonl",
    "Mlflow",
    "RunInfo",
    "TensorBoard",
    "Wandb",
    "Writer",
    "WriterConfig",
    "Writers",
    "read_metrics",
]


class Writers:
    """Several writers as one.

    A row goes to all of them in turn. An error of a local one (a full disk) stops the run; an error
    of a service is told on stderr, and that writer gets no more rows.
    """

    def __init__(self, writers: Sequence[Writer]):
        self._writers = tuple(writers)

    @classmethod
    def open(
        cls, configs: Sequence[WriterConfig], workdir: Path, run: RunInfo, resume_step: int
    ) -> "Writers":
        """Opens every config in turn; where one fails, those already open are closed again."""
        opened = []
        try:
            for config in configs:
                opened.append(config.open(Path(workdir), run, resume_step))
        except BaseException:
            # The error that stopped the opening is the one to tell.
            with contextlib.suppress(Exception):
                cls(opened).close()
            raise
        return cls(opened)

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Records one row everywhere. Raises TrainingError where a local file cannot take it."""
        for writer in self._writers:
            writer.write(step, split, metrics)

    def close(self) -> None:
        """Closes all, also where one fails; then raises the first failure, the rest as notes."""
        failures = []
        for writer in self._writers:
            try:
                writer.close()
            except Exception as error:
                failures.append(error)
        for other in failures[1:]:
            failures[0].add_note(f"also, on closing: {one_line(other)}")
        if failures:
            raise failures[0]
