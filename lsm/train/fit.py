"""From an experiment to a trained model: `fit`."""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import Any

from lsm import processes
from lsm.config import Experiment, schema
from lsm.cpu import keep_memory
from lsm.errors import ConfigError, ProcessError, TrainingError
from lsm.files import atomic_write
from lsm.run.checkpoint import Checkpoints
from lsm.run.curves import plot_curves
from lsm.run.result import Result, fingerprint, git_revision, hardware, versions
from lsm.train.evaluation import evaluate_all
from lsm.train.goodput import Clock, Goodput, undone
from lsm.train.loop import Ending, Loop
from lsm.train.profile import Profile
from lsm.train.progress import Progress
from lsm.train.start import begin
from lsm.train.state import TrainState
from lsm.train.throughput import Throughput
from lsm.train.trainer import Trainer, keep_compiled
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

    On several processes (`lsm.processes.initialize`) every one of them calls this, with the same
    experiment; `workdir` must be on a disk that they share.

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
    clock = Clock()
    schema.check(experiment)
    workdir = pathlib.Path(workdir)
    tracer = Profile(profile, workdir / "profile")
    keep_compiled()
    keep_memory()
    trainer = Trainer.of(experiment, data_dir)
    throughput = Throughput.of(trainer)
    keep, checksums = experiment.checkpoint.keep, trainer.program.checksums
    with (
        _claimed(workdir, experiment, allow_config_change),
        contextlib.closing(
            Checkpoints(workdir / "checkpoints", keep, checksums=checksums)
        ) as checkpoints,
    ):
        clock.book("startup")
        state, progress = _start(trainer, checkpoints, clock)
        progress = _with_undone(progress, workdir, int(state.step), clock)
        info = RunInfo(
            name=experiment.name,
            config=schema.to_json(experiment),
            total_steps=trainer.horizon.steps,
            batch_size=experiment.train.batch_size,
        )
        configs = experiment.writers if processes.is_first() else ()
        writers = Writers.open(configs, workdir, info, int(state.step))
        with contextlib.closing(writers):
            loop = Loop(
                experiment=experiment,
                horizon=trainer.horizon,
                program=trainer.program,
                batches=trainer.train,
                monitored=trainer.monitored(),
                checkpoints=checkpoints,
                writers=writers,
                profile=tracer,
                progress=progress,
                clock=clock,
                throughput=throughput,
            )
            state, ending = loop.run(state)
            last = int(state.step)
            checkpoints.wait()
            clock.book("checkpoint")
            metrics = {}
            if ending != "interrupted":
                state = _chosen(trainer, checkpoints, state, loop.progress)
                clock.book("restore")
                metrics = _final(trainer, writers, workdir, state, clock)
            goodput = throughput.summary(clock.spent, loop.progress.replayed, last)
            if ending != "interrupted":
                writers.write(last, "goodput", goodput)
    result = _result(experiment, state, metrics, ending, loop.progress, goodput)
    if ending != "interrupted" and processes.is_first():
        result.save(workdir)
        if read_metrics(workdir):
            plot_curves(workdir)
    return result


@contextlib.contextmanager
def _claimed(
    workdir: pathlib.Path, experiment: Experiment, allow_config_change: bool
) -> Iterator[None]:
    """Holds the workdir for this run: locked, with its config compared and written.

    The lock goes with the process, however that ends. Process 0 does it for all, and no other
    touches anything before.
    """
    checkpoints = workdir / "checkpoints"
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        handle = os.open(workdir, os.O_RDONLY)
    except OSError as error:
        raise TrainingError(f"--workdir: cannot write to {workdir}: {error.strerror}.") from error
    try:
        _check_same_config(experiment)
        if processes.is_first():
            _lock(handle, workdir)
            _check_config(workdir, experiment, allow_config_change)
        _check_shared(workdir)
        yield
    finally:
        os.close(handle)


def _check_same_config(experiment: Experiment) -> None:
    """Raises ProcessError where this process runs another config than process 0."""
    new = schema.to_json(experiment)
    first = processes.share("the comparison of configs", new)
    changes = schema.differences(first, new, ())
    if changes:
        raise ProcessError(f"not the config of process 0: {'; '.join(changes)}.")
    processes.wait_for_all("the comparison of configs")  # nothing is written before


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
    changes = schema.differences(_as_now(old), new, schema.free_fields(experiment))
    if changes and not allow_change:
        raise ConfigError(
            f"--workdir: {workdir} holds a run of another config: {'; '.join(changes)}. Use "
            "another --workdir, or --allow_config_change to continue with the new one."
        )
    atomic_write(path, json.dumps(new, indent=2).encode())


def _as_now(saved: Any) -> Any:
    """Returns a config that an earlier version wrote, with newer fields at their defaults."""
    try:
        return schema.to_json(schema.from_json(saved, Experiment))
    except ConfigError:  # not to be rebuilt: compared as it stands
        return saved


def _start(trainer: Trainer, checkpoints: Checkpoints, clock: Clock) -> tuple[TrainState, Progress]:
    program, step = trainer.program, processes.share("the start", checkpoints.latest())
    if step is None:
        state = begin(program, trainer.experiment.start)
        clock.book("compile")
        return state, Progress()
    state = checkpoints.restore(program.abstract_state, step)
    clock.book("restore")
    progress = Progress.of(checkpoints.progress(step))
    clock.add(progress.goodput)
    return state, progress


def _with_undone(progress: Progress, workdir: pathlib.Path, step: int, clock: Clock) -> Progress:
    """Counts what a killed run did after `step`: its rows, soon written again, tell of it."""
    steps, seconds = undone(read_metrics(workdir), step)
    clock.add(Goodput(lost=seconds))
    return dataclasses.replace(progress, replayed=progress.replayed + steps)


def _chosen(
    trainer: Trainer, checkpoints: Checkpoints, state: TrainState, progress: Progress
) -> TrainState:
    """Returns the best state where early stopping restores it, else the last."""
    stopping = trainer.experiment.evaluation.early_stopping
    if stopping and stopping.restore_best and progress.best_step not in (None, int(state.step)):
        return checkpoints.restore(trainer.program.abstract_state, progress.best_step)
    return state


def _final(
    trainer: Trainer, writers: Writers, workdir: pathlib.Path, state: TrainState, clock: Clock
) -> dict[str, dict[str, float]]:
    """Evaluates every split with the final state; the test row is written once."""
    figures = evaluate_all(trainer, state, clock)
    clock.book("other")
    if not processes.is_first():
        return figures
    step = int(state.step)
    written = any(row["step"] == step and row["split"] == "test" for row in read_metrics(workdir))
    if "test" in figures and not written:
        writers.write(step, "test", figures["test"])
    return figures


def _result(
    experiment: Experiment,
    state: TrainState,
    metrics: dict[str, dict[str, float]],
    ending: Ending,
    progress: Progress,
    goodput: dict[str, float],
) -> Result:
    return Result(
        metrics=metrics,
        step=int(state.step),
        wall_time=goodput["wall_time"],
        fingerprint=fingerprint(state.params),
        seed=experiment.train.seed,
        stopped=ending,
        git_revision=git_revision(),
        versions=versions(),
        hardware=hardware(),
        best_step=progress.best_step,
        goodput=goodput,
    )
