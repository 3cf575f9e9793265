"""Files in the workdir: rows of JSON, and TensorBoard's event files."""

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lsm.errors import TrainingError
from lsm.files import AppendOnly, atomic_write, parsed_json, plain_json
from lsm.writers.base import RunInfo, Writer


@dataclasses.dataclass(frozen=True)
class Jsonl:
    """Rows of JSON in `workdir/metrics.jsonl`: `step`, `split`, then the figures by name.

    A figure that is not finite is `null`, because JSON has no NaN and readers of tables take null
    for one.
    """

    def open(self, workdir: Path, run: RunInfo, resume_step: int) -> Writer:
        """Drops rows after `resume_step` (all, where it is 0) and opens the file to append."""
        return _JsonlFile(workdir / "metrics.jsonl", resume_step)


class _JsonlFile:
    def __init__(self, path: Path, resume_step: int):
        self._path = path
        self._keep(lambda row: resume_step > 0 and row["step"] <= resume_step)
        self._file = AppendOnly(path)
        self._newest, self._splits = resume_step, self._told(resume_step)

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Appends one line; of a step and split that were told before, it replaces the old one."""
        if step > self._newest:
            self._newest, self._splits = step, set()
        # A step before the newest is the best one's, evaluated at the end.
        told = self._splits if step == self._newest else self._told(step)
        if split in told:
            # A move puts another file under the name: the open one would write to the old.
            self._file.close()
            self._keep(lambda row: (row["step"], row["split"]) != (step, split))
            self._file = AppendOnly(self._path)
        row = {"step": int(step), "split": split, **plain_json(metrics)}
        self._file.append(json.dumps(row).encode() + b"\n")
        told.add(split)

    def _told(self, step: int) -> set[str]:
        """The splits that have a row of a step."""
        return {row["split"] for row in read_metrics(self._path.parent) if row["step"] == step}

    def _keep(self, wanted: Callable[[dict], bool]) -> None:
        """Rewrites the file, in one move, with the wanted rows; a torn last line goes too."""
        if self._path.exists():
            rows = read_metrics(self._path.parent)
            kept = [json.dumps(row) + "\n" for row in rows if wanted(row)]
            atomic_write(self._path, "".join(kept).encode())

    def close(self) -> None:
        """Closes the file; every row is in it already."""
        self._file.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the rows of `workdir/metrics.jsonl`; none where it is not there.

    The torn last line of a killed process is left out.

    Raises:
      TrainingError: the file cannot be read, or a line other than the last is not a row.
    """
    path = Path(workdir) / "metrics.jsonl"
    try:
        # What follows the last line end is empty, or a torn line.
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read: {error.strerror}.") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = parsed_json(line)
            row["step"], row["split"]  # raises where one is absent
        except (ValueError, TypeError, KeyError) as error:
            raise TrainingError(
                f"{path}, line {number}: not a row with step and split; mend or delete the line."
            ) from error
        rows.append(row)
    return rows


@dataclasses.dataclass(frozen=True)
class TensorBoard:
    """Event files in `workdir/tensorboard/`, tags like "train/loss"; TensorFlow is not needed."""

    def open(self, workdir: Path, run: RunInfo, resume_step: int) -> Writer:
        """Starts a new event file that hides what earlier ones hold after `resume_step`."""
        return _EventFile(workdir / "tensorboard", resume_step)


class _EventFile:
    """Writes records itself: tensorboardX's writer thread hangs for good once the disk is full."""

    def __init__(self, folder: Path, resume_step: int):
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import masked_crc32c

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._checksum = masked_crc32c
        # Readers go through the files of a folder in the order of these names.
        name = f"events.out.tfevents.{time.time():.6f}.{platform.node()}.{os.getpid()}"
        self._file = AppendOnly(folder / name)
        # A START event makes TensorBoard drop what earlier files hold from its step on.
        first_hidden = resume_step + 1 if resume_step else 0
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        # Readers ask for the version first.
        self._append(self._event(file_version="brain.Event:2"))
        self._append(self._event(step=first_hidden, session_log=start))

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Appends the row as one event of scalars."""
        value = self._summary.Value
        values = [
            value(tag=f"{split}/{name}", simple_value=float(figure))
            for name, figure in metrics.items()
        ]
        self._append(self._event(step=int(step), summary=self._summary(value=values)))

    def _append(self, event) -> None:
        """Frames an event as a TFRecord: length, its checksum, bytes, their checksum."""
        event.wall_time = time.time()
        body = event.SerializeToString()
        length = len(body).to_bytes(8, "little")
        sums = [self._checksum(part).to_bytes(4, "little") for part in (length, body)]
        self._file.append(length + sums[0] + body + sums[1])

    def close(self) -> None:
        """Closes the file; every row is in it already."""
        self._file.close()
