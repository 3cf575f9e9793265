"""Services that keep runs: Weights & Biases and MLflow, each an extra of the package."""

import contextlib
import dataclasses
import functools
import importlib
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from lsm.errors import ConfigError, LsmError, TrainingError
from lsm.files import atomic_write
from lsm.writers.base import RunInfo, Writer, one_line


@dataclasses.dataclass(frozen=True)
class Wandb:
    """Weights & Biases; needs `pip install 'lsm[wandb]'` and, unless offline, `wandb login`.

    The run's id is kept in `workdir/wandb_run_id`, so that a restart goes on in the same run.
    Rows told a second time after a restart are equal and lie on top of each other in the plots.

    Attributes:
      project: the project's name.
      entity: the user or team; None is the default of the account.
      offline: keep the run in the workdir, for `wandb sync` later.
    """

    project: str
    entity: str | None = None
    offline: bool = False

    def __post_init__(self):
        _not_empty("Wandb.project", self.project)

    def open(self, workdir: Path, run: RunInfo, resume_step: int) -> Writer:
        """Starts or resumes the run. Raises ConfigError (no wandb) or TrainingError (it fails)."""
        wandb = _extra("wandb")
        # Chosen here and kept before the run starts: a kill in between loses nothing.
        run_id = _kept_id(workdir / "wandb_run_id", lambda: uuid.uuid4().hex[:12])
        with _readable_start("Wandb", "offline=True needs no network"):
            remote = wandb.init(
                project=self.project,
                entity=self.entity,
                name=run.name,
                id=run_id,
                resume=None if self.offline else "allow",
                dir=str(workdir),
                config=dict(run.config),
                mode="offline" if self.offline else None,
            )
            # W&B's own step may not go back, as a restarted run does: ours is an ordinary figure.
            remote.define_metric("step", hidden=True)
            remote.define_metric("*", step_metric="step")
        return _Remote("Wandb", _WandbRun(remote))


class _WandbRun:
    def __init__(self, remote):
        self._remote = remote

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        self._remote.log({"step": step, **{f"{split}/{k}": v for k, v in metrics.items()}})

    def close(self) -> None:
        self._remote.finish()


@dataclasses.dataclass(frozen=True)
class Mlflow:
    """MLflow; needs `pip install 'lsm[mlflow]'`.

    The run's id is kept in `workdir/mlflow_run_id`, so that a restart goes on in the same run. A
    row is sent before training goes on: a request over the network, unless the URI is a folder.

    Attributes:
      experiment: the experiment's name; made where it is not there.
      tracking_uri: a server, "http://..."; None is MLflow's own default (MLFLOW_TRACKING_URI). A
        folder, "file:...", works where MLFLOW_ALLOW_FILE_STORE=true is set.
    """

    experiment: str
    tracking_uri: str | None = None

    def __post_init__(self):
        _not_empty("Mlflow.experiment", self.experiment)

    def open(self, workdir: Path, run: RunInfo, resume_step: int) -> Writer:
        """Starts or resumes the run. Raises ConfigError (no mlflow) or TrainingError (it fails)."""
        mlflow = _extra("mlflow")
        with _readable_start("Mlflow", "see tracking_uri"):
            client = mlflow.MlflowClient(self.tracking_uri)
            new_run = functools.partial(_new_mlflow_run, client, self.experiment, run)
            run_id = _kept_id(workdir / "mlflow_run_id", new_run)
            # A run that goes on was marked as ended when it was interrupted.
            client.update_run(run_id, status="RUNNING")
        return _Remote("Mlflow", _MlflowRun(client, mlflow.entities.Metric, run_id))


def _new_mlflow_run(client, experiment: str, run: RunInfo) -> str:
    found = client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found else client.create_experiment(experiment)
    run_id = client.create_run(experiment_id, run_name=run.name).info.run_id
    client.log_dict(run_id, dict(run.config), "config.json")
    return run_id


class _MlflowRun:
    def __init__(self, client, metric: Callable, run_id: str):
        self._client, self._metric, self._run_id = client, metric, run_id

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        rows = [self._metric(f"{split}/{k}", float(v), now, step) for k, v in metrics.items()]
        self._client.log_batch(self._run_id, metrics=rows)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


class _Remote:
    """A writer that a run can do without: its first error is told on stderr, then it is left."""

    def __init__(self, name: str, writer: Writer):
        self._name, self._writer, self._lost = name, writer, 0

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        if self._lost:
            self._lost += 1
            return
        try:
            self._writer.write(step, split, metrics)
        except Exception as error:
            self._lost = 1
            self._tell(f"stopped at step {step}: {one_line(error)}; training goes on without it.")

    def close(self) -> None:
        try:
            self._writer.close()
        except Exception as error:
            self._tell(f"did not close: {one_line(error)}; its last rows may be missing.")
        if self._lost:
            self._tell(f"is missing the last {self._lost} rows of this run.")

    def _tell(self, what: str) -> None:
        print(f"error: {self._name} {what}", file=sys.stderr, flush=True)


def _extra(module: str):
    """Returns the library that the extra of the same name installs."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # It is there, and something that it imports is not.
        if error.name != module:
            raise
        raise ConfigError(
            f"{module.capitalize()} writer: the package {module!r} is not installed; "
            f"`pip install 'lsm[{module}]'`, or take the writer out of the config."
        ) from error


@contextlib.contextmanager
def _readable_start(name: str, hint: str) -> Iterator[None]:
    try:
        yield
    except LsmError:
        raise
    except Exception as error:
        raise TrainingError(f"{name} did not start: {one_line(error)} ({hint}).") from error


def _kept_id(path: Path, new: Callable[[], str]) -> str:
    """Returns the id in the file `path`, or a new one, which is put there."""
    if not path.exists():
        atomic_write(path, new().encode())
    return path.read_text().strip()


def _not_empty(field: str, value: str) -> None:
    if not value.strip():
        raise ConfigError(f"{field}: {value!r} given; allowed is a name that is not empty.")
