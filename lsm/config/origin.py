"""Where a run's experiment came from, kept with the run: so that it can be found again."""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

from lsm.config import flags, schema
from lsm.config.experiment import Experiment
from lsm.data.batches import IfThere
from lsm.errors import ConfigError
from lsm.files import parsed_json

CONFIG, ORIGIN = "config.json", "origin.json"
"""Files of a workdir: what is run, and where that came from."""

_log = logging.getLogger("lsm")


@dataclasses.dataclass(frozen=True)
class Origin:
    """The command line that an experiment was made of, and where its data is.

    Attributes:
      config: path of the config file; None for an experiment made in Python.
      arg: what `get_config` was given, or None.
      overrides: values of fields by their dotted paths, as texts.
      digest: SHA-256 of the file.
      data_dir: where datasets are prepared; None is TFDS's own place.
      directory: where the command was given, from which relative paths in the config lead on.
    """

    config: str | None = None
    arg: str | None = None
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)
    digest: str | None = None
    data_dir: str | None = None
    directory: str | None = None

    @classmethod
    def of(cls, spec: str, overrides: Mapping[str, str]) -> "Origin":
        """Returns the origin of `flags.load(spec, overrides)`."""
        path, arg = flags.split(spec)
        overrides, directory = dict(overrides), os.getcwd()
        return cls(str(path.absolute()), arg, overrides, _digest(path), directory=directory)

    @property
    def spec(self) -> str | None:
        """What `--config` was given, FILE.py or FILE.py:arg; None without a file."""
        return self.config if self.arg is None else f"{self.config}:{self.arg}"

    @property
    def words(self) -> str:
        """The words of the command line that made the experiment, as a shell reads them."""
        changes = [f"--config.{path}={text}" for path, text in self.overrides.items()]
        return shlex.join([f"--config={self.spec}", *changes])

    def to_json(self) -> bytes:
        """Returns the content of origin.json."""
        return json.dumps(dataclasses.asdict(self), indent=2).encode()


def origin_of(workdir: pathlib.Path) -> Origin:
    """Returns the origin that a run has kept; an empty one where it has kept none.

    Raises:
      ConfigError: the file is damaged.
    """
    path = workdir / ORIGIN
    try:
        return Origin(**parsed_json(path.read_text())) if path.exists() else Origin()
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}); remove it, and give --config.") from error


def experiment_of(workdir: pathlib.Path) -> Experiment:
    """Returns the experiment that a run was started with.

    It is what the config file gives, where that is still what `config.json` says; else it is
    rebuilt from `config.json`, and why is said in a line.

    Raises:
      ConfigError: there is no run, or its experiment holds what JSON cannot (a function without a
        name, an array) and its file gives another one now.
    """
    saved, origin = saved_config(workdir), origin_of(workdir)
    found, reason = _from_file(origin, saved)
    if found is None:
        advice = f"{reason} Give --config, or load({str(workdir)!r}, experiment=...).".strip()
        found = schema.from_json(saved, Experiment, advice)
        reason = reason and f"{reason} The experiment is made of {workdir / CONFIG}."
    if reason:
        _log.warning("%s", reason)
    return found


def saved_config(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns a run's `config.json`; raises ConfigError where it is not there or damaged."""
    path = workdir / CONFIG
    try:
        return parsed_json(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"--workdir: no run in {workdir}; train there first.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}).") from error


def as_now(saved: Any, kind: type = Experiment) -> Any:
    """Returns a config that an earlier version wrote, with newer fields at their defaults."""
    try:
        return schema.to_json(schema.from_json(saved, kind))
    except ConfigError:  # not to be rebuilt: compared as it stands
        return saved


def _from_file(origin: Origin, saved: Any) -> tuple[Experiment | None, str]:
    """Returns what the config file gives now, None unless that was run; and what has changed."""
    if origin.config is None:
        return None, ""
    path = pathlib.Path(origin.config)
    if not path.is_file():
        return None, f"{path} is not there any more."
    same = _digest(path) == origin.digest
    changed = "gives another config now" if same else "has changed since the run began"
    try:
        found = flags.load(origin.spec, origin.overrides)
    except ConfigError as error:
        return None, f"{path} {changed}: {str(error).rstrip('.')}."
    if saved.get("data", {}).get("test") is None and isinstance(found.data.test, IfThere):
        found = dataclasses.replace(found, data=dataclasses.replace(found.data, test=None))
    now, free = schema.to_json(found), schema.free_fields(found)
    changes = schema.differences(as_now(saved), now, free)
    if changes:
        return None, f"{path} {changed}: {schema.told(changes)}."
    return found, "" if same else f"{path} {changed}; the config that it gives is the same."


def _digest(path: os.PathLike) -> str:
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
