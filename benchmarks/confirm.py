"""Whether newer code computes what a record holds, told by the first rows of a run.

Nearly every change of lsm is one of code that all results depend on, and few change a result. So
the run of the first seed is begun again, and stopped after its first evaluation: where all figures
until then are the same to the last digit, speeds aside, the record stands for the new code too.
That is no proof for what comes later in a run, such as the end of a schedule; the tests are there
for that.
"""

import hashlib
import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from lsm.writers import read_metrics

WORTH = 60
"""Seconds; a run that takes no longer is simply made again."""
_SPEEDS = ("_per_sec", "input_wait", "mfu")


def opening(workdir: Path) -> str | None:
    """Returns a digest of the rows of a run up to its first evaluation; None before that."""
    rows = read_metrics(workdir)
    ends = [number for number, row in enumerate(rows, 1) if row["split"] != "train"]
    if not ends:
        return None
    figures = [
        {name: value for name, value in row.items() if not any(s in name for s in _SPEEDS)}
        for row in rows[: ends[0]]
    ]
    return hashlib.sha256(json.dumps(figures, sort_keys=True).encode()).hexdigest()


def begins_alike(command: Sequence[str], workdir: Path, wanted: str) -> bool:
    """Begins the run of `command` in `workdir`, and returns whether `wanted` is its opening.

    The run is interrupted there: the same command goes on with it.
    """
    with subprocess.Popen(command) as process:
        while (found := opening(workdir)) is None and process.poll() is None:
            time.sleep(0.2)
        process.terminate()
    return found == wanted
