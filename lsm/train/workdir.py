"""The workdir of a run: of one run at a time, one config and one data, seen by all processes."""

import contextlib
import dataclasses
import json
import logging
import pathlib
import secrets
import shlex
from collections.abc import Iterator
from typing import Any

from lsm import processes
from lsm.config import schema
from lsm.config.origin import CONFIG, ORIGIN, Origin, as_now, origin_of
from lsm.data.inputs import Inputs
from lsm.errors import ConfigError, ProcessError, TrainingError
from lsm.files import atomic_write, exclusive, parsed_json
from lsm.run.result import Result
from lsm.train.trainer import Trainer

_log = logging.getLogger("lsm")

DATA, INPUTS, RESULT = "data.json", "inputs.json", "result.json"
"""What the run is of, what its model reads, and what came of it."""

TOKENIZER, CHAT = "tokenizer.json", "tokenizer_config.json"
"""What its model reads texts by: a file of the library `tokenizers`; and how conversations."""


OF_A_RUN = ("metrics.jsonl", "wandb_run_id", "mlflow_run_id")
"""What writers go on with where a run is started again."""


@contextlib.contextmanager
def claimed(
    workdir: pathlib.Path, trainer: Trainer, origin: Origin, allow_config_change: bool
) -> Iterator[tuple[dict[str, Any], bool]]:
    """Holds the workdir for this run, whose config and data are compared with its own.

    Yields what was compared, as JSON by the names of files, and whether it is another than before:
    then a result that is here is of a run that now goes on. It is made once a start: every array in
    a config is hashed for it, and to tell of data may mean to read it.

    The lock goes with the process, however that ends. Process 0 does it for all, and no other
    touches anything before.

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
        records = {CONFIG: schema.to_json(trainer.experiment), DATA: schema.to_json(trainer.data)}
        _check_same_everywhere(records)
        changes = []
        if processes.is_first():
            taken = TrainingError(f"--workdir: another run is in progress in {workdir}.")
            held.enter_context(exclusive(workdir / ".lock", taken))
            changes = _changes(workdir, records, schema.free_fields(trainer.experiment))
            if changes and not allow_config_change:
                raise ConfigError(
                    f"--workdir: {workdir} holds a run of another config: {schema.told(changes)}. "
                    f"{_other_file(workdir, origin)}Use another --workdir, or "
                    "--allow_config_change to continue with the new one."
                )
        _check_shared(workdir)
        yield records, processes.share("whether the config has changed", bool(changes))


def write_records(
    workdir: pathlib.Path, records: dict[str, Any], inputs: Inputs, origin: Origin
) -> None:
    """Writes what `claimed` compared, what the model reads, and where all came from; process 0.

    A result that is here is damaged, or of what was before, and goes.
    """
    if not processes.is_first():
        return
    (workdir / RESULT).unlink(missing_ok=True)
    if not _saved_steps(workdir) and _saved(workdir / CONFIG) not in (None, records[CONFIG]):
        for name in OF_A_RUN:  # of another, of which nothing else is left
            (workdir / name).unlink(missing_ok=True)
    for name, record in (records | {INPUTS: inputs.to_json()}).items():
        atomic_write(workdir / name, json.dumps(record, indent=2).encode())
    if inputs.encoder is not None:
        atomic_write(workdir / TOKENIZER, inputs.encoder.tokenizer.encode())
        if inputs.encoder.chat is not None:
            atomic_write(workdir / CHAT, json.dumps(inputs.encoder.chat, indent=2).encode())
    if origin.config is None:  # from Python now; a file that it began with is still its own
        with contextlib.suppress(ConfigError):
            own = origin_of(workdir)
            directory = own.directory or origin.directory
            origin = dataclasses.replace(own, data_dir=origin.data_dir, directory=directory)
    atomic_write(workdir / ORIGIN, origin.to_json())


def finished(workdir: pathlib.Path) -> Result | None:
    """Returns the result of the run in a claimed workdir, where it is done; the same everywhere."""
    result = None
    with contextlib.suppress(TrainingError):  # none, or damaged: it is made again
        result = Result.load(workdir)
    # A last checkpoint that somebody removed is to be made again.
    if result and max(_saved_steps(workdir), default=-1) < result.step:
        result = None
    done = processes.share("a result that is there", result is not None)
    return (result or Result.load(workdir)) if done else None


def say_other_data(workdir: pathlib.Path, trainer: Trainer) -> None:
    """Warns where the data is not what the run has saved of its own."""
    saved = _saved(workdir / DATA)
    now = schema.to_json(trainer.data)
    if saved is None or not (changes := schema.differences({"data": saved}, {"data": now})):
        return
    if processes.is_first():
        _log.warning("this is not the data of the run: %s.", schema.told(changes))


def inputs_of(workdir: pathlib.Path) -> Inputs | None:
    """Returns what the model of a run reads; None where an earlier version has not kept it."""
    path = workdir / INPUTS
    try:
        if not path.exists():
            return None
        tree = parsed_json(path.read_text())
        # Named by the error where it is not there.
        path = workdir / TOKENIZER if "texts" in tree else path
        return Inputs.from_json(tree, path.read_text() if "texts" in tree else None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}); remove it to go without.") from error


def _saved_steps(workdir: pathlib.Path) -> list[int]:
    return [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]


def _check_same_everywhere(records: dict[str, Any]) -> None:
    """Raises ProcessError where this process has another config or data than process 0."""
    first = processes.share("the comparison of configs", records)
    for name, what in ((CONFIG, "config"), (DATA, "data")):
        changes = schema.differences(first[name], records[name])
        if changes:
            raise ProcessError(f"not the {what} of process 0: {schema.told(changes)}.")
    processes.wait_for_all("the comparison of configs")  # nothing is written before


def _changes(workdir: pathlib.Path, records: dict[str, Any], free: tuple[str, ...]) -> list[str]:
    """Returns how config and data differ from those of the run which is saved here, if one is.

    Without a checkpoint there is nothing to go on from, so that any config may begin.
    """
    if not _saved_steps(workdir):
        return []
    config, data = (_saved(workdir / name) for name in (CONFIG, DATA))
    if config is None:
        return [f"its {CONFIG} is not there"]
    changes = schema.differences(as_now(config), records[CONFIG], free)
    # Runs of earlier versions have not said what their data was.
    return changes + (
        [] if data is None else schema.differences({"data": data}, {"data": records[DATA]})
    )


def _other_file(workdir: pathlib.Path, origin: Origin) -> str:
    """Says which config file the run here began with, where that is another than is given now."""
    with contextlib.suppress(ConfigError):  # damaged, which is not what is told of
        began = origin_of(workdir)
        if began.spec not in (None, origin.spec):
            alone = shlex.join(["python", "-m", "lsm", f"--workdir={workdir}"])
            return f"It began with {began.words}; `{alone}` goes on with that. "
    return ""


def _saved(path: pathlib.Path) -> Any:
    """Returns the JSON that an earlier start wrote, or None."""
    try:
        return parsed_json(path.read_text()) if path.exists() else None
    except (OSError, ValueError) as error:  # a folder; not text; not JSON
        remedy = "remove it" + (", and give --allow_config_change," if path.name == CONFIG else "")
        raise ConfigError(f"{path} is damaged ({error}); {remedy} to continue.") from error


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
