"""From an experiment to a trained model: `fit`, and `evaluate_run` for what was trained."""

import contextlib
import fcntl
import json
import os
import pathlib
import warnings
from collections.abc import Iterator

import jax

from lsm import schema
from lsm.checkpoint import Checkpoints
from lsm.config import Experiment
from lsm.errors import CheckpointError, ConfigError, TrainingError
from lsm.files import atomic_write
from lsm.heap import keep_memory
from lsm.report import Result, fingerprint, git_revision, hardware, plot_curves, versions
from lsm.train.evaluation import evaluate
from lsm.train.loop import Ending, Loop
from lsm.train.profile import Profile
from lsm.train.program import Program, evaluated_params
from lsm.train.progress import Progress
from lsm.train.setup import Setup
from lsm.train.state import TrainState
from lsm.writers import RunInfo, Writers, read_metrics


def fit(
    experiment: Experiment,
    workdir: os.PathLike | str,
    *,
    data_dir: os.PathLike | str | None = None,
    allow_config_change: bool = False,
    profile: str = "",
) -> Result:
    """Trains an experiment in `workdir`, or continues the run that is there.

    Writes `config.json`, `checkpoints/`, what the writers write (`metrics.jsonl`, ...), and at the
    end `result.json` and `curves.png`. Killed at any moment and called again with the same
    experiment, it ends with the same parameters, to the last bit.

    Args:
      experiment: what to run.
      workdir: folder of this run, made where needed.
      data_dir: where datasets are prepared; None is TFDS's own place.
      allow_config_change: continue although the experiment differs from `config.json`.
      profile: "FIRST:LAST" steps to trace into `workdir/profile`.

    Returns:
      What `result.json` holds. Its `stopped` is "interrupted" where SIGTERM or Ctrl-C ended this
      piece of the run: then the state is saved, and no result is written.

    Raises:
      LsmError: anything that the caller can mend, in one line.
    """
    schema.check(experiment)
    workdir = pathlib.Path(workdir)
    tracer = Profile(profile, workdir / "profile")
    _keep_compiled()
    keep_memory()
    setup = Setup.of(experiment, data_dir)
    keep, checksums = experiment.checkpoint.keep, setup.program.checksums
    with (
        _claimed(workdir, experiment, allow_config_change),
        contextlib.closing(
            Checkpoints(workdir / "checkpoints", keep, checksums=checksums)
        ) as checkpoints,
    ):
        state, progress = _start(setup.program, checkpoints)
        info = RunInfo(
            name=experiment.name,
            config=schema.to_json(experiment),
            total_steps=setup.horizon.steps,
            batch_size=experiment.train.batch_size,
        )
        configs = experiment.writers if jax.process_index() == 0 else ()
        writers = Writers.open(configs, workdir, info, int(state.step))
        with contextlib.closing(writers):
            loop = Loop(
                experiment=experiment,
                horizon=setup.horizon,
                program=setup.program,
                batches=setup.train,
                monitored=setup.monitored(),
                checkpoints=checkpoints,
                writers=writers,
                profile=tracer,
                progress=progress,
            )
            state, ending = loop.run(state)
            checkpoints.wait()
            metrics = {}
            if ending != "interrupted":
                state = _chosen(setup, checkpoints, state, loop.progress)
                metrics = _final(setup, writers, workdir, state)
    result = _result(experiment, state, metrics, ending, loop.progress)
    if ending != "interrupted":
        result.save(workdir)
        if read_metrics(workdir):
            plot_curves(workdir)
    return result


def evaluate_run(
    experiment: Experiment, workdir: os.PathLike | str, *, data_dir: os.PathLike | str | None = None
) -> tuple[int, dict[str, dict[str, float]]]:
    """Evaluates the best checkpoint of a run, or its last where none was chosen as best.

    Returns:
      The checkpoint's step, and its figures by split ("validation", "test"). Writes nothing.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged or of another model.
    """
    schema.check(experiment)
    directory = pathlib.Path(workdir) / "checkpoints"
    if not directory.is_dir():
        raise CheckpointError(f"--workdir: no checkpoints in {workdir}; train there first.")
    _keep_compiled()
    setup = Setup.of(experiment, data_dir)
    while True:
        with contextlib.closing(
            Checkpoints(directory, checksums=setup.program.checksums, read_only=True)
        ) as checkpoints:
            step = checkpoints.latest()
            if step is None:
                raise CheckpointError(f"--workdir: no checkpoints in {workdir}; train there first.")
            try:
                best = Progress(**checkpoints.progress(step)).best_step
                step = best if best in checkpoints.steps() else step
                state = checkpoints.restore(setup.program.abstract_state, step)
            except CheckpointError:
                if (directory / str(step)).is_dir():
                    raise
                continue  # a run in progress has just replaced it with a newer one
        return step, _evaluate_all(setup, state)


def _keep_compiled() -> None:
    """Turns the persistent compilation cache on, where the user has not placed it elsewhere.

    XLA cannot write hot CPU programs to it (see `lsm.sharding.compiler_options`); JAX would warn
    of each, at every start.
    """
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry")
    if not jax.config.jax_compilation_cache_dir:
        path = os.path.expanduser(os.environ.get("LSM_CACHE", "~/.cache/lsm"))
        jax.config.update("jax_compilation_cache_dir", os.path.join(path, "compiled"))


@contextlib.contextmanager
def _claimed(
    workdir: pathlib.Path, experiment: Experiment, allow_config_change: bool
) -> Iterator[None]:
    """Holds the workdir for this run: locked, with its config compared and written.

    The lock goes with the process, however that ends.
    """
    checkpoints = workdir / "checkpoints"
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        handle = os.open(workdir, os.O_RDONLY)
    except OSError as error:
        raise TrainingError(f"--workdir: cannot write to {workdir}: {error.strerror}.") from error
    try:
        if jax.process_index() == 0:
            _lock(handle, workdir)
            _check_config(workdir, experiment, allow_config_change)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, workdir: pathlib.Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise TrainingError(f"--workdir: another run is in progress in {workdir}.") from error


def _check_config(workdir: pathlib.Path, experiment: Experiment, allow_change: bool) -> None:
    """Compares the config with that of the run that was saved here, and writes the new one."""
    new, path = schema.to_json(experiment), workdir / "config.json"
    saved = any(step.name.isdigit() for step in (workdir / "checkpoints").iterdir())
    try:
        old = json.loads(path.read_text()) if path.exists() and saved else new
    except ValueError as error:  # not JSON, or not text
        raise ConfigError(f"{path} is damaged ({error}); remove it to continue.") from error
    changes = schema.differences(old, new, schema.free_fields(experiment))
    if changes and not allow_change:
        raise ConfigError(
            f"--workdir: {workdir} holds a run of another config: {'; '.join(changes)}. Use "
            "another --workdir, or --allow_config_change to continue with the new one."
        )
    atomic_write(path, json.dumps(new, indent=2).encode())


def _start(program: Program, checkpoints: Checkpoints) -> tuple[TrainState, Progress]:
    step = checkpoints.latest()
    if step is None:
        return program.init(), Progress()
    state = checkpoints.restore(program.abstract_state, step)
    return state, Progress(**checkpoints.progress(step))


def _chosen(
    setup: Setup, checkpoints: Checkpoints, state: TrainState, progress: Progress
) -> TrainState:
    """Returns the best state where early stopping restores it, else the last."""
    stopping = setup.experiment.evaluation.early_stopping
    if stopping and stopping.restore_best and progress.best_step not in (None, int(state.step)):
        return checkpoints.restore(setup.program.abstract_state, progress.best_step)
    return state


def _final(
    setup: Setup, writers: Writers, workdir: pathlib.Path, state: TrainState
) -> dict[str, dict[str, float]]:
    """Evaluates every split with the final state; the test row is written once."""
    figures = _evaluate_all(setup, state)
    step = int(state.step)
    written = any(row["step"] == step and row["split"] == "test" for row in read_metrics(workdir))
    if "test" in figures and not written:
        writers.write(step, "test", figures["test"])
    return figures


def _evaluate_all(setup: Setup, state: TrainState) -> dict[str, dict[str, float]]:
    params = evaluated_params(state)
    return {
        split: evaluate(setup.program, params, state, batches)
        for split, batches in setup.evaluation.items()
    }


def _result(
    experiment: Experiment,
    state: TrainState,
    metrics: dict[str, dict[str, float]],
    ending: Ending,
    progress: Progress,
) -> Result:
    return Result(
        metrics=metrics,
        step=int(state.step),
        wall_time=progress.seconds,
        fingerprint=fingerprint(state.params),
        seed=experiment.train.seed,
        stopped=ending,
        git_revision=git_revision(),
        versions=versions(),
        hardware=hardware(),
        best_step=progress.best_step,
    )
