"""The screen: a progress bar on a terminal, plain lines anywhere else."""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from lsm.writers.base import RunInfo, Writer

_SECONDS_BETWEEN_DRAWS = 0.5
_LINES_AT_ANY_PACE = 100  # where epochs are tiny, thousands would follow


@dataclasses.dataclass(frozen=True)
class Console:
    """A progress bar on a terminal, and one line a row where stdout goes anywhere else.

    After 100 lines, the newest figures of each split are told twice a second.
    """

    def open(self, workdir: Path, run: RunInfo, resume_step: int) -> Writer:
        """Returns a bar or plain lines, by what stdout is now."""
        import rich.console

        screen = rich.console.Console(file=sys.stdout)
        if sys.stdout.isatty() and screen.is_interactive:
            return _Bar(run, resume_step, screen)
        return _Lines(run)


class _Pace:
    """How fast a run goes, evaluations and checkpoints included, from the times of its rows."""

    def __init__(self, run: RunInfo):
        self._run = run
        self._first: tuple[int, float] | None = None

    def speed_and_left(self, step: int, metrics: Mapping[str, float]) -> tuple[str, str, str]:
        """Returns ("tokens", "12,345", "0:42"): what goes through in a second, and time left."""
        # From the first row on: before it, most of the time is compilation.
        now = time.monotonic()
        first_step, start = self._first = self._first or (step, now)
        steps_per_sec = metrics.get("steps_per_sec", 0.0)
        if step > first_step and now > start:
            steps_per_sec = (step - first_step) / (now - start)
        speeds = {k.removesuffix("_per_sec"): metrics[k] for k in metrics if k.endswith("_per_sec")}
        other = [unit for unit in speeds if unit not in ("steps", "examples")]
        unit = other[0] if other else "examples"
        speed = speeds.get(unit, steps_per_sec * self._run.batch_size)
        left = (self._run.total_steps - step) / steps_per_sec if steps_per_sec > 0 else None
        return unit, f"{speed:,.0f}", "?" if left is None else clock(left)


class _Paced:
    """Shows lines; once there have been many, only the newest of each split, twice a second."""

    def __init__(self, show: Callable[[str], None]):
        self._show = show
        self._count, self._next = 0, 0.0
        self._held: dict[str, str] = {}

    def add(self, split: str, line: str) -> None:
        """Shows what is held back and the line, where that is due."""
        self._held.pop(split, None)  # to the end, so that all stay in order
        self._held[split] = line
        self._count += 1
        if self._count <= _LINES_AT_ANY_PACE or time.monotonic() >= self._next:
            self.flush()

    def flush(self) -> None:
        """Shows what is held back."""
        while self._held:
            self._show(self._held.pop(next(iter(self._held))))
        self._next = time.monotonic() + _SECONDS_BETWEEN_DRAWS


class _Lines:
    """Every row as one line of text, flushed: for files, pipes and log collectors."""

    def __init__(self, run: RunInfo):
        self._total = run.total_steps
        self._pace = _Pace(run)
        self._lines = _Paced(functools.partial(print, flush=True))

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Prints the row; of a training row only loss, accuracy and speed."""
        if split == "goodput":
            import rich.console

            self._lines.flush()
            rich.console.Console(file=sys.stdout).print(_account(metrics))
            return
        line = f"step {step}/{self._total}  {split}  {_figures(split, metrics)}"
        if split == "train":
            unit, speed, left = self._pace.speed_and_left(step, metrics)
            line += f"  {unit}/s {speed}{_mfu(metrics)}  left {left}"
        self._lines.add(split, line)

    def close(self) -> None:
        """Prints the last rows."""
        self._lines.flush()


class _Bar:
    """A bar that is redrawn by `write`, at most twice a second: there is no drawing thread."""

    def __init__(self, run: RunInfo, resume_step: int, screen):
        from rich import progress

        columns = (
            progress.TextColumn("{task.description}", style="bold", markup=False),
            progress.BarColumn(bar_width=None),
            progress.TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            progress.TextColumn("{task.fields[figures]}", markup=False),
            progress.TextColumn("{task.fields[pace]}", style="dim", markup=False),
        )
        self._total = run.total_steps
        self._pace = _Pace(run)
        self._row: tuple[int, Mapping[str, float]] | None = None
        self._next_draw = 0.0
        self._bar = progress.Progress(*columns, console=screen, auto_refresh=False, expand=True)
        name = run.name if screen.width >= 100 else ""  # on a narrow screen the figures matter more
        self._task = self._bar.add_task(
            name, total=run.total_steps, completed=resume_step, figures="starting", pace=""
        )
        show = functools.partial(screen.print, markup=False, highlight=False, soft_wrap=True)
        self._lines = _Paced(show)
        self._bar.start()

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Prints an evaluation above the bar; moves the bar for a training row, when due."""
        if split == "goodput":
            self._lines.flush()
            self._bar.console.print(_account(metrics))
            return
        if split != "train":
            line = f"step {step}/{self._total}  {split}  {_figures(split, metrics)}"
            self._lines.add(split, line)
            return
        self._row = (step, metrics)
        if time.monotonic() >= self._next_draw:
            self._draw()
            self._next_draw = time.monotonic() + _SECONDS_BETWEEN_DRAWS

    def _draw(self) -> None:
        step, metrics = self._row
        unit, speed, left = self._pace.speed_and_left(step, metrics)
        self._bar.update(
            self._task,
            completed=step,
            figures=_figures("train", metrics),
            pace=f"{speed} {unit}/s{_mfu(metrics)}  {left} left",
        )
        self._bar.refresh()

    def close(self) -> None:
        """Draws the last rows and gives the terminal back."""
        self._lines.flush()
        # The last rows may have come within the half second.
        if self._row:
            self._draw()
        self._bar.stop()


def _figures(split: str, metrics: Mapping[str, float]) -> str:
    """Returns "loss 0.4321  accuracy 0.8700": two figures of training, of an evaluation those of
    all examples: what is said of each class, "f1/cat", is in the files."""
    shown = ("loss", "accuracy") if split == "train" else (k for k in metrics if "/" not in k)
    return "  ".join(f"{name} {_short(metrics[name])}" for name in shown if name in metrics)


def _mfu(metrics: Mapping[str, float]) -> str:
    return f"  mfu {100 * metrics['mfu']:.1f} %" if "mfu" in metrics else ""


def _account(metrics: Mapping[str, float]):
    """Returns where the time of a run went as a table, the longest first, below its speed."""
    from rich import box, console, table

    wall = metrics["wall_time"]
    times = {k.removesuffix("_seconds"): v for k, v in metrics.items() if k.endswith("_seconds")}
    notes = [f"goodput {100 * metrics['goodput']:.1f} % of {wall:.1f} s"]
    if "steps_per_sec" in metrics:
        notes.append(f"{metrics['steps_per_sec']:.4g} steps/s{_mfu(metrics)}")
    if metrics["replayed_steps"]:
        notes.append(f"{metrics['replayed_steps']:.0f} steps made again")
    account = table.Table(box=box.SIMPLE_HEAD)
    for heading in ("time in", "seconds", "share"):
        account.add_column(heading, justify="left" if heading == "time in" else "right")
    for kind, seconds in sorted(times.items(), key=lambda item: -item[1]):
        # Less would be shown as 0.0 %.
        if seconds > 0.0005 * wall:
            account.add_row(kind, f"{seconds:.1f}", f"{100 * seconds / wall:.1f} %")
    return console.Group(", ".join(notes), account)


def _short(value: float) -> str:
    fixed = value == 0 or 1e-3 <= abs(value) < 1e4
    return f"{value:.4f}" if fixed else f"{value:.3e}"


def clock(seconds: float) -> str:
    """Returns seconds as "0:42", "12:05" or "1:02:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
