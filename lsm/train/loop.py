"""The loop: fetch, step, log, evaluate, save; until done, stopped early or interrupted."""

import dataclasses
from typing import Literal

import numpy as np

from lsm.config import Experiment
from lsm.data import EvalBatches, Prefetcher, TrainBatches
from lsm.durations import Horizon, to_steps
from lsm.errors import TrainingError, listed
from lsm.mesh import place
from lsm.run.checkpoint import Checkpoints
from lsm.train.evaluation import evaluate
from lsm.train.goodput import Clock
from lsm.train.interrupt import Interrupt
from lsm.train.profile import Profile
from lsm.train.program import Program, evaluated_params
from lsm.train.progress import Progress
from lsm.train.state import TrainState
from lsm.train.throughput import Throughput
from lsm.train.window import Window
from lsm.writers import Writers

Ending = Literal["completed", "early stopping", "interrupted"]


@dataclasses.dataclass
class Loop:
    """One run in motion.

    Attributes:
      experiment: what is run.
      horizon: its length.
      program: its compiled pieces.
      batches: training batches by step.
      monitored: (split, batches) evaluated while training, or None.
      checkpoints: where states are saved.
      writers: where metrics go.
      profile: steps to trace.
      progress: how far the run has come.
      clock: books where the time goes.
      throughput: what a step's work is, for the rows.
    """

    experiment: Experiment
    horizon: Horizon
    program: Program
    batches: TrainBatches
    monitored: tuple[str, EvalBatches] | None
    checkpoints: Checkpoints
    writers: Writers
    profile: Profile
    progress: Progress
    clock: Clock
    throughput: Throughput

    def __post_init__(self):
        self._log_every = to_steps(self.experiment.train.log_every, self.horizon)
        self._evaluate_every = to_steps(self.experiment.evaluation.every, self.horizon)
        self._save_every = to_steps(self.experiment.checkpoint.every, self.horizon)

    def run(self, state: TrainState) -> tuple[TrainState, Ending]:
        """Trains from `state` and returns the state at the end, which is also saved.

        Raises:
          TrainingError: the loss or a parameter is not finite.
          CheckpointError: a checkpoint cannot be written.
        """
        start, end = int(state.step), self.horizon.steps
        with (
            Interrupt() as interrupt,
            Prefetcher(
                self.batches.batch_at, start, end, self.experiment.data.workers
            ) as prefetcher,
            self.profile,
        ):
            window = Window(start, prefetcher, self.clock)
            for step in range(start + 1, end + 1):
                if self.progress.stopped:
                    return state, "early stopping"
                self.profile.at(step)
                batch = place(next(prefetcher), self.program.batch)
                state, metrics = self.program.step(state, batch)
                window.add(metrics)
                if step == start + 1:
                    window.book("compile")  # the first dispatch does
                    window.restart()
                leaving = interrupt.stops_after(step)
                if leaving or self._is_due(step):
                    self._pause(step, state, window, leaving)
                    window.restart()
                if leaving and step < end:
                    return state, "interrupted"
        return state, "early stopping" if self.progress.stopped else "completed"

    def _is_due(self, step: int) -> bool:
        return step == self.horizon.steps or any(
            every and step % every == 0
            for every in (self._log_every, self._evaluate_every, self._save_every)
        )

    def _pause(self, step: int, state: TrainState, window: Window, leaving: bool) -> None:
        """Logs, then evaluates and saves where that is due after `step`.

        Rows come before the checkpoint of their step: what a restart finds saved is also written.
        """
        self._log(step, state, window)
        self.clock.book("other")
        last = step == self.horizon.steps
        best = False
        if last or (self._evaluate_every and step % self._evaluate_every == 0):
            best = self._evaluate(step, state, last)
        self.clock.book("other")
        self.progress = dataclasses.replace(self.progress, goodput=self.clock.spent)
        save = self._save_every and step % self._save_every == 0
        if save or best or last or leaving or self.progress.stopped:
            self._save(step, state, best)
            self.clock.book("checkpoint")

    def _log(self, step: int, state: TrainState, window: Window) -> None:
        totals, speed, bad = window.read()
        if bad is not None:
            raise TrainingError(self._diagnosis(bad, state))
        figures = self.experiment.task.summary(totals)
        figures |= self._learning_rates(step, state)
        if speed:
            figures |= self._rates(speed["steps_per_sec"], totals["loss"].weight / len(window))
        self.writers.write(step, "train", figures | speed)
        window.clear(step)

    def _rates(self, steps_per_sec: float, weight: float) -> dict[str, float]:
        """Returns examples (and where the loss weighs others, say tokens) and FLOPs a second."""
        rates = {"examples_per_sec": steps_per_sec * self.horizon.batch_size}
        if (unit := self.experiment.task.unit) != "examples":
            rates[f"{unit}_per_sec"] = steps_per_sec * weight
        return rates | self.throughput.figures(steps_per_sec)

    def _evaluate(self, step: int, state: TrainState, last: bool) -> bool:
        """Evaluates the monitored split; returns whether the model is the best so far."""
        if self.monitored is None or (last and self.monitored[0] == "test"):
            return False  # the test split is evaluated after the last step anyway
        split, batches = self.monitored
        params, metrics = evaluated_params(state), self.experiment.evaluation.metrics
        figures = evaluate(self.program, params, state, batches, metrics, self.clock)
        self.writers.write(step, split, figures)
        if split == "test":
            return False
        config = self.experiment.evaluation
        self.progress = self.progress.after(step, figures[config.monitor], config)
        return self.progress.best_step == step

    def _save(self, step: int, state: TrainState, best: bool) -> None:
        if not self.program.finite(state.params):
            raise TrainingError(
                f"step {step}: a parameter is not finite, so it is not saved; {self._advice()}"
            )
        score = self.progress.best * self.experiment.evaluation.sign if best else None
        self.checkpoints.save(step, state, dataclasses.asdict(self.progress), score)

    def _diagnosis(self, step: int, state: TrainState) -> str:
        """Says which step failed and whether its batch was sound: batch_at can be asked again."""
        batch = self.batches.batch_at(step - 1)
        bad = [k for k, v in batch.items() if v.dtype.kind == "f" and not np.isfinite(v).all()]
        data = f"its batch is not finite in {listed(bad)}" if bad else "its batch is finite"
        rates = self._learning_rates(step, state).items()
        told = "".join(f"the {name.replace('_', ' ')} is {rate:.3g}; " for name, rate in rates)
        return f"step {step}: the loss is not finite; {data}; {told}{self._advice()}"

    def _advice(self) -> str:
        saved = self.checkpoints.latest()
        intact = f"step {saved} is saved" if saved is not None else "no step is saved"
        return (
            "lower the learning rate, clip gradients (optimizer.clip_norm), or set "
            f"train.skip_nonfinite=true ({intact})."
        )

    def _learning_rates(self, step: int, state: TrainState) -> dict[str, float]:
        optimizer = self.experiment.optimizer
        rates = optimizer.learning_rates(self.horizon, step - 1, state.opt_state)
        return {name: float(rate) for name, rate in rates.items()}
