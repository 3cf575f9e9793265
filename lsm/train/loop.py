"""The loop: fetch, step, log, evaluate, save; until done, stopped early or interrupted."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Literal

import jax

from lsm import processes
from lsm.config import Moment, StopTraining
from lsm.data import Prefetcher
from lsm.data.values import not_finite
from lsm.durations import to_steps
from lsm.errors import DataError, TrainingError, listed
from lsm.optim import sparsity
from lsm.run.checkpoint import Checkpoints
from lsm.train.evaluation import evaluate
from lsm.train.execution import Execution, execution
from lsm.train.goodput import Clock
from lsm.train.interrupt import Interrupt
from lsm.train.profile import Profile
from lsm.train.progress import Progress
from lsm.train.state import TrainState
from lsm.train.throughput import Throughput
from lsm.train.trainer import Trainer
from lsm.train.window import Window
from lsm.writers import Writers

_log = logging.getLogger("lsm.train")

Ending = Literal["completed", "early stopping", "interrupted"]


@dataclasses.dataclass
class Loop:
    """One run in motion.

    Attributes:
      trainer: what is run.
      throughput: what a step's work is.
      checkpoints: where states are saved.
      writers: where metrics go.
      profile: steps to trace.
      progress: how far the run has come.
      clock: books where the time goes.
      execution: how steps are dispatched.
    """

    trainer: Trainer
    throughput: Throughput
    checkpoints: Checkpoints
    writers: Writers
    profile: Profile
    progress: Progress
    clock: Clock
    execution: Execution = dataclasses.field(init=False)

    def __post_init__(self):
        self._experiment, self._horizon = self.trainer.experiment, self.trainer.horizon
        self._log_every = to_steps(self._experiment.train.log_every, self._horizon)
        self._evaluate_every = to_steps(self._experiment.evaluation.every, self._horizon)
        self._save_every = to_steps(self._experiment.checkpoint.every, self._horizon)
        every = (self._log_every, self._evaluate_every, self._save_every, self._horizon.steps)
        self._every = [steps for steps in every if steps]
        prunings = self._experiment.optimizer.prunings
        ends = [pruning.times(self._horizon).end or 0 for pruning in prunings]
        self._sparse_from = max(ends, default=0)
        self.execution = execution(self.trainer, self.throughput)
        self._asked = False  # by a callback: to stop
        self._interrupt = Interrupt()

    def run(self, state: TrainState) -> tuple[TrainState, Ending]:
        """Trains from `state` and returns the state at the end, which is also saved.

        Raises:
          DataError: a batch is not what the task needs.
          TrainingError: the loss or an array of the state is not finite.
          CheckpointError: a checkpoint cannot be written.
        """
        start, end = int(state.step), self._horizon.steps
        with self._interrupt, self._prefetched(start) as prepared, self.profile:
            self.profile.expect(start + 1, end)
            window = Window(start, self.clock)
            if self._left_evaluation(start) and not self._evaluate(start, state):
                return state, "interrupted"  # once more
            for steps in self._executions(start):
                if self.progress.stopped:  # by the last evaluation, here or before a restart
                    return state, "early stopping"
                first, step = steps.start == start + 1, steps[-1]
                with self.clock("compile" if first else "steps"):
                    self.profile.at(steps.start)
                    state, metrics = self.execution.run(state, next(prepared), len(steps))
                    window.add(metrics, len(steps))
                    leaving = self._interrupt.stops_after(step)
                    if first:  # its time is not the others'
                        jax.block_until_ready(metrics)
                if first:
                    window.time_from_here()
                if leaving or self._asked or self._is_due(step):
                    whole = self._pause(step, state, window, leaving)
                    if not whole or (leaving and step < end):
                        return state, "interrupted"
        return state, "early stopping" if self.progress.stopped else "completed"

    def _executions(self, start: int) -> Iterator[range]:
        """Yields the steps of each dispatch, counted from 1; none reaches over a pause."""
        first, most = start + 1, 1  # one alone in the first, which compiles: the rest is timed
        while first <= self._horizon.steps:
            pauses = (-(-first // every) * every for every in self._every)
            last = min(first + most - 1, *pauses, self.profile.edge(first))
            yield range(first, last + 1)
            first, most = last + 1, self.execution.most

    def _prefetched(self, start: int) -> Prefetcher:
        """Returns what each dispatch needs; what the loop waits for it is "input"."""
        return Prefetcher(
            self.execution.prepare,
            self._executions(start),
            self._experiment.data.workers,
            waiting=lambda: self.clock("input"),
        )

    def _is_due(self, step: int) -> bool:
        return any(step % every == 0 for every in self._every)

    def _pause(self, step: int, state: TrainState, window: Window, leaving: bool) -> bool:
        """Logs, then evaluates and saves where that is due after `step`; whether all was done.

        Rows come before the checkpoint of their step: what a restart finds saved is also written.
        """
        self._log(step, state, window)
        whole = not self._evaluates(step) or self._evaluate(step, state)
        if self._asked:
            self.progress = dataclasses.replace(self.progress, stopped=True)
        due = step == self._horizon.steps or (self._save_every and step % self._save_every == 0)
        best = self.progress.best_step == step
        if due or best or leaving or not whole or self.progress.stopped:
            self._save(step, state)
            self._call("after_checkpoint", step, state, "", {})
        return whole

    def _evaluates(self, step: int) -> bool:
        every = self._evaluate_every
        return step == self._horizon.steps or bool(every and step % every == 0)

    def _left_evaluation(self, step: int) -> bool:
        """Whether the run was interrupted in the evaluation after the step that it goes on from."""
        known = self.progress.evaluated
        return step > 0 and known not in (None, step) and self._evaluates(step)

    def _log(self, step: int, state: TrainState, window: Window) -> None:
        totals, speed, bad = window.read()
        if bad is not None:
            raise TrainingError(self._diagnosis(bad, state))
        if self._experiment.train.skip_nonfinite:
            skipped = self.progress.skipped + int(totals["skipped"].sum)
            self.progress = dataclasses.replace(self.progress, skipped=skipped)
        figures = self._experiment.task.summary(totals)
        figures |= self._learning_rates(step, state) | sparsity(state.opt_state)
        if speed:
            figures |= self._rates(speed["steps_per_sec"], totals["loss"].weight / len(window))
        self.writers.write(step, "train", figures | speed)
        self._call("after_row", step, state, "train", figures | speed)
        window.clear(step)

    def _call(
        self, seam: str, step: int, state: TrainState, split: str, figures: Mapping[str, float]
    ) -> None:
        """Calls the callbacks' functions of a seam, and notes whether one asks to stop."""
        functions = [getattr(callback, seam) for callback in self._experiment.callbacks]
        functions = [function for function in functions if function]
        if not functions:
            return
        asked, held = False, [state]

        def lent() -> TrainState:
            if not held:
                raise RuntimeError(
                    "Moment.state: called after the callback's end; keep a copy of what it gives, "
                    "such as jax.device_get of it."
                )
            return jax.tree.map(lambda x: x, held[0])  # what is put into its dicts stays there

        workdir = self.checkpoints.directory.parent
        moment = Moment(step, split, MappingProxyType(dict(figures)), workdir, lent)
        for function in functions:
            try:
                function(moment)
            except StopTraining as reason:
                asked = True
                _log.info("step %d: a callback stops the run: %s", step, reason)
        held.clear()
        self._asked |= processes.share("the callbacks", asked)

    def _rates(self, steps_per_sec: float, weight: float) -> dict[str, float]:
        """Returns examples (and where the loss weighs others, say tokens) and FLOPs a second."""
        rates = {"examples_per_sec": steps_per_sec * self._horizon.batch_size}
        if (unit := self._experiment.task.unit) != "examples":
            rates[f"{unit}_per_sec"] = steps_per_sec * weight
        return rates | self.throughput.figures(steps_per_sec)

    def _evaluate(self, step: int, state: TrainState) -> bool:
        """Evaluates the monitored split; returns whether to the end, which an interrupt leaves."""
        split, last = self.trainer.monitored, step == self._horizon.steps
        if split is not None and not (last and split == "test"):  # which is evaluated at the end
            leaves = self._interrupt.leaves_now
            figures = evaluate(self.trainer, state, split, self.clock, leaves=leaves)
            if figures is None:
                return False
            self.writers.write(step, split, figures)
            self._call("after_evaluation", step, state, split, figures)
            # A model that is not pruned yet is none of those to choose from.
            if split != "test" and step >= self._sparse_from:
                config = self._experiment.evaluation
                self.progress = self.progress.after(step, figures[config.monitor], config)
        self.progress = dataclasses.replace(self.progress, evaluated=step)
        return True

    def _save(self, step: int, state: TrainState) -> None:
        self.progress = dataclasses.replace(self.progress, goodput=self.clock.spent)
        with self.clock("checkpoint"):
            finite = jax.device_get(self.trainer.program.finite(state))
            if bad := [path for path, is_finite in finite.items() if not is_finite]:
                raise TrainingError(
                    f"step {step}: {bad[0]} is not finite, so nothing is saved; {self._advice()}"
                )
            self.checkpoints.save(step, state, dataclasses.asdict(self.progress))
            if any(callback.after_checkpoint for callback in self._experiment.callbacks):
                self.checkpoints.wait()

    def _diagnosis(self, step: int, state: TrainState) -> str:
        """Says which step failed and whether its batch was sound: batch_at can be asked again.

        Raises:
          DataError: the batch is not what the task needs.
        """
        batch = self.trainer.train.batch_at(step - 1)
        try:
            self._experiment.task.check(batch)  # labels that no check at the start could see
        except DataError as error:
            raise DataError(f"step {step}: {error}") from error
        if bad := not_finite(batch):
            data, remedy = f"its batch is not finite in {listed(bad)}", "mend the data"
            return f"step {step}: the loss is not finite; {data}; {self._advice(remedy)}"
        rates = self._learning_rates(step, state).items()
        told = "".join(f"the {name.replace('_', ' ')} is {rate:.3g}; " for name, rate in rates)
        # What has no weight in a loss that is finite still is in its gradient, if it is NaN.
        before = not_finite(self.trainer.train.batch_at(step - 2)) if step > 1 else {}
        data, advice = "its batch is finite", self._advice()
        if before:
            data = f"{data}, and that of step {step - 1} is not in {listed(before)}"
            advice = self._advice("mend the data")
        return f"step {step}: the loss is not finite; {data}; {told}{advice}"

    def _advice(
        self, remedy: str = "lower the learning rate, clip gradients (optimizer.clip_norm)"
    ) -> str:
        saved = self.checkpoints.latest()
        intact = f"step {saved} is saved" if saved is not None else "no step is saved"
        return f"{remedy}, or set train.skip_nonfinite=true ({intact})."

    def _learning_rates(self, step: int, state: TrainState) -> dict[str, float]:
        optimizer = self._experiment.optimizer
        rates = optimizer.learning_rates(self._horizon, step - 1, state.opt_state)
        return {name: float(rate) for name, rate in rates.items()}
