"""The workdir of a run: held by one run at a time, with one config, seen by all its processes."""

import contextlib
import fcntl
import json
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import Any

from lsm import processes
from lsm.config import Experiment, schema
from lsm.errors import ConfigError, ProcessError, TrainingError
from lsm.files import atomic_write, parsed_json


@contextlib.contextmanager
def claimed(
    workdir: pathlib.Path, experiment: Experiment, allow_config_change: bool
) -> Iterator[dict[str, Any]]:
    """Holds the workdir for this run, and yields the config in JSON, compared and written.

    The lock goes with the process, however that ends. Process 0 does it for all, and no other
    touches anything before.

    Raises:
      ConfigError: a run of another config is saved here, and no change is allowed.
      ProcessError: this process runs another config than process 0.
      TrainingError: the folder cannot be written, is another run's, or is not shared.
    """
    handle = _opened(workdir)
    try:
        # Made once a start: every array that the experiment holds is hashed for it.
        config = schema.to_json(experiment)
        _check_same_everywhere(config)
        if processes.is_first():
            _lock(handle, workdir)
            changes = _changes(workdir, config, schema.free_fields(experiment))
            if changes and not allow_config_change:
                raise ConfigError(
                    f"--workdir: {workdir} holds a run of another config: {'; '.join(changes)}. "
                    "Use another --workdir, or --allow_config_change to continue with the new one."
                )
            atomic_write(workdir / "config.json", json.dumps(config, indent=2).encode())
        _check_shared(workdir)
        yield config
    finally:
        os.close(handle)


def _opened(workdir: pathlib.Path) -> int:
    """Makes the folder where needed, and opens it, to be locked."""
    try:
        (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
        return os.open(workdir, os.O_RDONLY)
    except OSError as error:
        raise TrainingError(f"--workdir: cannot write to {workdir}: {error.strerror}.") from error


def _check_same_everywhere(config: dict[str, Any]) -> None:
    """Raises ProcessError where this process runs another config than process 0."""
    first = processes.share("the comparison of configs", config)
    changes = schema.differences(first, config)
    if changes:
        raise ProcessError(f"not the config of process 0: {'; '.join(changes)}.")
    processes.wait_for_all("the comparison of configs")  # nothing is written before


def _lock(handle: int, workdir: pathlib.Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise TrainingError(f"--workdir: another run is in progress in {workdir}.") from error


def _changes(workdir: pathlib.Path, config: dict[str, Any], free: tuple[str, ...]) -> list[str]:
    """Returns how the config differs from that of the run which is saved here, if one is.

    Without a checkpoint there is nothing to go on from, so that any config may begin.
    """
    path = workdir / "config.json"
    saved = any(step.name.isdigit() for step in (workdir / "checkpoints").iterdir())
    if not (saved and path.exists()):
        return []
    try:
        old = parsed_json(path.read_text())
    except (OSError, ValueError) as error:  # a folder; not text; not JSON
        raise ConfigError(f"{path} is damaged ({error}); remove it to continue.") from error
    return schema.differences(_as_now(old), config, free)


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
