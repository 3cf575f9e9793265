"""From an experiment to a trained model: `fit`."""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import re
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from typing import Any

import jax

from lsm import processes
from lsm.config import Experiment, schema
from lsm.config.origin import CONFIG, Origin
from lsm.cpu import emulates_bfloat16, keep_memory
from lsm.data.inputs import Inputs
from lsm.errors import ConfigError
from lsm.files import expanded, plain_json
from lsm.params import nested
from lsm.run.checkpoint import Checkpoints
from lsm.run.curves import plot_curves
from lsm.run.result import Result, fingerprint, git_revision, hardware, versions
from lsm.tasks.base import CONSTANTS, TEACHER
from lsm.train.evaluation import evaluate_all
from lsm.train.execution import compile_ahead
from lsm.train.goodput import Clock, Goodput, undone
from lsm.train.loop import Ending, Loop
from lsm.train.profile import Profile
from lsm.train.progress import Progress
from lsm.train.start import begin, check_masks, teacher
from lsm.train.state import TrainState
from lsm.train.throughput import Throughput
from lsm.train.trainer import Trainer, prepare_jax
from lsm.train.waiting import CompileTimes, telling
from lsm.train.workdir import DATA, claimed, finished, write_records
from lsm.writers import RunInfo, Writers, read_metrics

_log = logging.getLogger("lsm.train")


def fit(
    experiment: Experiment,
    workdir: os.PathLike | str,
    *,
    data_dir: os.PathLike | str | None = None,
    allow_config_change: bool = False,
    profile: str = "",
    origin: Origin | None = None,
) -> Result:
    """Trains an experiment in `workdir`, or continues the run that is there.

    On several processes (`lsm.processes.initialize`) every one of them calls this, with the same
    experiment; `workdir` must be on a disk that they share.

    Writes `config.json`, `origin.json`, `data.json`, `inputs.json`, `checkpoints/`, what the
    writers write (`metrics.jsonl`, ...), and at the end `result.json`, `curves.png` and the
    pictures of its metrics. Killed at any moment and called again with the same experiment, it ends
    with the same parameters, to the last bit. A run that is done is left as it is.

    Args:
      experiment: what to run.
      workdir: folder of this run, made where needed.
      data_dir: where datasets are prepared; None is TFDS's own place.
      allow_config_change: continue although the experiment differs from `config.json`, or the data
        from `data.json`.
      profile: "FIRST:LAST" steps to trace into `workdir/profile`.
      origin: the command line that the experiment was made of, to find it again; see
        `lsm.config.origin`.

    Returns:
      What `result.json` holds. Its `stopped` is "interrupted" where SIGTERM or Ctrl-C ended this
      piece of the run: then the state is saved, and no result is written.

    Raises:
      LsmError: anything that the caller can mend, in one line.
    """
    clock = Clock()
    workdir = expanded(workdir, "--workdir")
    tracer = Profile(profile, workdir / "profile")
    if data_dir is not None:
        data_dir = expanded(data_dir, "--data_dir").absolute()
    origin = dataclasses.replace(origin or Origin(), data_dir=data_dir and str(data_dir))
    check_masks(experiment)
    prepare_jax()
    keep_memory()
    with ExitStack() as opened:
        with clock("startup"):
            trainer = Trainer.of(experiment, data_dir)
            claim = claimed(workdir, trainer, origin, allow_config_change)
            records, changed = opened.enter_context(claim)
            if not changed and (result := finished(workdir)):
                _log.info("%s: done already; another --workdir begins a new run.", workdir)
                return result
            throughput, config = Throughput.of(trainer), records[CONFIG]
            _check_and_compile(trainer, throughput, CompileTimes(config), clock)
            inputs = Inputs.of(trainer.train.dataset, experiment.data.evaluate)
            checkpoints = opened.enter_context(closing(_checkpoints(trainer, workdir)))
            state, progress = _first_state(trainer, checkpoints, _judged(trainer, records), clock)
            # Not before: a checkpoint of another model leaves all as it is.
            write_records(workdir, records, inputs, origin)
            progress = _counted(progress, workdir, int(state.step), clock)
            _say_emulated(trainer, config)
            writers = _writers(trainer, config, workdir, int(state.step))
            opened.enter_context(closing(writers))
            loop = Loop(trainer, throughput, checkpoints, writers, tracer, progress, clock)
        state, ending = loop.run(state)
        result = _finished(loop, state, ending, workdir)
    if ending != "interrupted" and processes.is_first():
        if read_metrics(workdir):  # closed by now, so that all rows are there
            plot_curves(workdir)
        result.save(workdir)  # last: with it the run counts as done
    return result


def _check_and_compile(
    trainer: Trainer, throughput: Throughput, times: CompileTimes, clock: Clock
) -> None:
    """Checks all examples, which may have to be decoded, while another thread compiles."""

    def compiled() -> None:
        start = time.perf_counter()
        # What fails here fails again where it is called, and is told there.
        compile_ahead(trainer, throughput)
        times.keep(time.perf_counter() - start)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(compiled)
        for split in ("train", *trainer.evaluation):
            trainer.check_examples(split)
        if processes.is_first():
            trainer.say_doubts()
        with clock("compile"), telling("compiling", str(times)):
            wait([done])


def _say_emulated(trainer: Trainer, config: dict[str, Any]) -> None:
    """Warns of bfloat16 on a CPU that must compute it in float32."""
    platform = trainer.program.mesh.devices.flat[0].platform
    asked = "bfloat16" in schema.flatten(config).values()
    if platform == "cpu" and asked and processes.is_first() and emulates_bfloat16():
        _log.warning(
            "bfloat16: this CPU has no instructions for it and emulates it; float32 is faster here."
        )


def _checkpoints(trainer: Trainer, workdir: pathlib.Path) -> Checkpoints:
    keep, checksums = trainer.experiment.checkpoint.keep, trainer.program.checksums
    return Checkpoints(workdir / "checkpoints", keep, checksums=checksums)


def _judged(trainer: Trainer, records: dict[str, Any]) -> str:
    """Says what the best step is the best by: a metric, and a digest of what gives its values."""
    experiment, config = trainer.experiment, records[CONFIG]
    evaluation, data = experiment.evaluation, experiment.data
    order = "higher" if evaluation.sign > 0 else "lower"
    split = data.validation or data.test
    given = {
        "task": config["task"],
        "data": {name: config["data"][name] for name in ("source", "evaluate")},
        "evaluation": {"metrics": config["evaluation"]["metrics"]},
        "split": records[DATA].get("validation" if data.validation else "test"),
    }
    # Of a source that names its splits, as `Arrays` does, the other ones do not matter.
    others = {"train", "validation", "test"}.difference(re.findall(r"\w+", split or ""))
    leaves = schema.altering(given, schema.free_fields(experiment)).items()
    judging = {path: x for path, x in leaves if others.isdisjoint(path.split("."))}
    digest = hashlib.sha256(json.dumps(judging, sort_keys=True).encode()).hexdigest()
    return f"{evaluation.monitor} of {split}, {order}; {digest[:16]}"


def _first_state(
    trainer: Trainer, checkpoints: Checkpoints, judged: str, clock: Clock
) -> tuple[TrainState, Progress]:
    """Returns what the loop begins with: the newest checkpoint, or a new state."""
    # Process 0 says which: another may not see a checkpoint yet that has just been written.
    step = processes.share("the start", checkpoints.latest())
    if step is None:
        with clock("compile"):
            experiment, dataset = trainer.experiment, trainer.train.dataset
            state = begin(trainer.program, experiment.start, experiment.task, dataset)
            state = jax.block_until_ready(state)
        progress = Progress(evaluated=0)
    else:
        with clock("restore"):
            program = trainer.program
            # Of a teacher, which was not saved, it is known that it is the same.
            read = teacher(program, trainer.experiment.task)
            beside = nested(read)[CONSTANTS][TEACHER] if read else None
            state = checkpoints.restore(program.abstract_state, step, beside)
            progress = _known(Progress.of(checkpoints.progress(step)), checkpoints)
            judged = _judged_now(progress, judged, step, trainer)
        clock.add(progress.goodput)
        if processes.is_first():
            _log.info("goes on from step %d of %d", step, trainer.horizon.steps)
    stopping = trainer.experiment.evaluation.early_stopping
    progress = progress.asked((trainer.horizon.steps, stopping and stopping.patience), judged)
    return state, progress


def _judged_now(progress: Progress, judged: str, step: int, trainer: Trainer) -> str:
    """Returns by what the steps to come are judged; says where the best one is chosen anew."""
    if progress.best_step is None or not progress.judged_otherwise(judged):
        return judged
    if step < (steps := trainer.horizon.steps):
        if processes.is_first():
            _log.info("step %d was the best by something else: chosen anew.", progress.best_step)
        return judged
    if trainer.experiment.data.validation is None:
        return progress.judged  # nothing is chosen: what was stays
    raise ConfigError(
        f"step {progress.best_step} is the best of this run by another metric, task or data, and "
        f"none of its {steps} steps is left to choose from; ask for more (train.steps, "
        "train.epochs), or undo the change."
    )


def _counted(progress: Progress, workdir: pathlib.Path, step: int, clock: Clock) -> Progress:
    """Counts what a killed run did after its checkpoint, of which its rows tell."""
    steps, seconds = undone(read_metrics(workdir), step)
    clock.add(Goodput(lost=seconds))
    return dataclasses.replace(progress, replayed=progress.replayed + steps)


def _known(progress: Progress, checkpoints: Checkpoints) -> Progress:
    """Returns the progress, without its best step where somebody has removed that checkpoint."""
    best = progress.best_step
    if processes.share("the best step", best is None or best in checkpoints.steps()):
        return progress
    if processes.is_first():
        _log.warning("checkpoint %d, the best so far, is not there: chosen anew.", best)
    return progress.unchosen()


def _writers(trainer: Trainer, config: dict[str, Any], workdir: pathlib.Path, step: int) -> Writers:
    info = RunInfo(
        name=trainer.experiment.name,
        config=config,
        total_steps=trainer.horizon.steps,
        batch_size=trainer.experiment.train.batch_size,
    )
    configs = trainer.experiment.writers if processes.is_first() else ()
    return Writers.open(configs, workdir, info, step)


def _finished(loop: Loop, state: TrainState, ending: Ending, workdir: pathlib.Path) -> Result:
    """Evaluates the final state and writes the last rows, unless the run is to go on."""
    last, metrics = int(state.step), {}
    with loop.clock("checkpoint"):
        loop.checkpoints.wait()
    if ending != "interrupted":
        state = _chosen(loop, state)
        metrics = evaluate_all(loop.trainer, state, loop.clock, workdir)
    progress = loop.progress
    goodput = loop.throughput.summary(loop.clock.spent, progress.replayed, last)
    if ending != "interrupted":
        _write_test(loop.writers, workdir, int(state.step), metrics)
        loop.writers.write(last, "goodput", goodput)
    return Result(
        metrics=metrics,
        step=int(state.step),
        wall_time=goodput["wall_time"],
        fingerprint=fingerprint(state.params),
        seed=loop.trainer.experiment.train.seed,
        stopped=ending,
        git_revision=git_revision(),
        versions=versions(),
        hardware=hardware(),
        best_step=progress.best_step,
        skipped=progress.skipped,
        goodput=goodput,
    )


def _chosen(loop: Loop, state: TrainState) -> TrainState:
    """Returns the best state where early stopping restores it, else the last."""
    stopping, best = loop.trainer.experiment.evaluation.early_stopping, loop.progress.best_step
    if not (stopping and stopping.restore_best) or best in (None, int(state.step)):
        return state
    with loop.clock("restore"):
        beside = state.model_state.get(CONSTANTS, {}).get(TEACHER)
        return loop.checkpoints.restore(loop.trainer.program.abstract_state, best, beside)


def _write_test(
    writers: Writers, workdir: pathlib.Path, step: int, metrics: dict[str, dict[str, float]]
) -> None:
    """Writes the test row, unless it is there: of a run that was done before, or stopped by it."""
    if "test" not in metrics or not processes.is_first():
        return
    figures = plain_json(metrics["test"])
    rows = (r for r in read_metrics(workdir) if (r["step"], r["split"]) == (step, "test"))
    if not any(figures.items() <= row.items() for row in rows):
        writers.write(step, "test", metrics["test"])
