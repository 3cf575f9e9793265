"""The workdir of a run: of one run at a time, one config and one data, seen by all processes."""

import contextlib
import json
import pathlib
import secrets
from collections.abc import Iterator
from typing import Any

from lsm import processes
from lsm.config import Experiment, schema
from lsm.errors import ConfigError, ProcessError, TrainingError
from lsm.files import atomic_write, exclusive, parsed_json
from lsm.train.trainer import Trainer

CONFIG, DATA, RESULT = "config.json", "data.json", "result.json"
"""What is run, what of, and what came of it."""


@contextlib.contextmanager
def claimed(
    workdir: pathlib.Path, trainer: Trainer, allow_config_change: bool
) -> Iterator[dict[str, Any]]:
    """Holds the workdir for this run, and yields the config in JSON, compared and written.

    The lock goes with the process, however that ends. Process 0 does it for all, and no other
    touches anything before. A result that is here goes where a change is allowed: it is of a run
    that now goes on.

    Raises:
      ConfigError: a run of another config or data is saved here, and no change is allowed.
      ProcessError: this process has another config or data than process 0.
      TrainingError: the folder cannot be written, is another run's, or is not shared.
    """
    try:
        (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"--workdir: cannot write to {workdir}: {error.strerror}.") from error
    with contextlib.ExitStack() as held:
        # Made once a start: every array that the experiment holds is hashed for it.
        config = schema.to_json(trainer.experiment)
        records = {CONFIG: config, DATA: schema.to_json(trainer.data)}
        _check_same_everywhere(records)
        if processes.is_first():
            taken = TrainingError(f"--workdir: another run is in progress in {workdir}.")
            held.enter_context(exclusive(workdir / ".lock", taken))
            changes = _changes(workdir, records, schema.free_fields(trainer.experiment))
            if changes and not allow_config_change:
                raise ConfigError(
                    f"--workdir: {workdir} holds a run of another config: {'; '.join(changes)}. "
                    "Use another --workdir, or --allow_config_change to continue with the new one."
                )
            if changes:
                (workdir / RESULT).unlink(missing_ok=True)
            for name, record in records.items():
                atomic_write(workdir / name, json.dumps(record, indent=2).encode())
        _check_shared(workdir)
        yield config


def _check_same_everywhere(records: dict[str, Any]) -> None:
    """Raises ProcessError where this process has another config or data than process 0."""
    first = processes.share("the comparison of configs", records)
    for name, what in ((CONFIG, "config"), (DATA, "data")):
        changes = schema.differences(first[name], records[name])
        if changes:
            raise ProcessError(f"not the {what} of process 0: {'; '.join(changes)}.")
    processes.wait_for_all("the comparison of configs")  # nothing is written before


def _changes(workdir: pathlib.Path, records: dict[str, Any], free: tuple[str, ...]) -> list[str]:
    """Returns how config and data differ from those of the run which is saved here, if one is.

    Without a checkpoint there is nothing to go on from, so that any config may begin.
    """
    if not any(step.name.isdigit() for step in (workdir / "checkpoints").iterdir()):
        return []
    config, data = (_saved(workdir / name) for name in (CONFIG, DATA))
    if config is None:
        return [f"its {CONFIG} is not there"]
    changes = schema.differences(_as_now(config), records[CONFIG], free)
    # Runs of earlier versions have not said what their data was.
    return changes + (
        [] if data is None else schema.differences({"data": data}, {"data": records[DATA]})
    )


def _saved(path: pathlib.Path) -> Any:
    """Returns the JSON that an earlier start wrote, or None."""
    try:
        return parsed_json(path.read_text()) if path.exists() else None
    except (OSError, ValueError) as error:  # a folder; not text; not JSON
        remedy = "remove it" + (", and give --allow_config_change," if path.name == CONFIG else "")
        raise ConfigError(f"{path} is damaged ({error}); {remedy} to continue.") from error


def _as_now(saved: Any) -> Any:
    """Returns a config that an earlier version wrote, with newer fields at their defaults."""
    try:
        return schema.to_json(schema.from_json(saved, Experiment))
    except ConfigError:  # not to be rebuilt: compared as it stands
        return saved


def _check_shared(workdir: pathlib.Path) -> None:
    """Raises TrainingError where this process does not see a file that process 0 makes."""
    if processes.others() is None:
        return
    mark = workdir / processes.share("the claim of the workdir", f".claim-{secrets.token_hex(8)}")
    if processes.is_first():
        for old in workdir.glob(".claim-*"):  # of a run that was killed right here
            old.unlink()
        atomic_write(mark, b"")
    processes.wait_for_all("the claim of the workdir")
    seen = mark.exists()
    processes.wait_for_all("the check that the workdir is shared")
    if processes.is_first():
        mark.unlink()
    if not seen:
        raise TrainingError(
            f"--workdir: {workdir} is not the folder that process 0 sees; processes need one on "
            "a disk that they share."
        )
