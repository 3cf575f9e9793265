"""How long a training step takes on this CPU: lsm against a bare jitted step and against PyTorch.

    python -m benchmarks.step_time [--quick] [--only=GPT] [--peer_python=PATH]

For the MLP and the CNN of the tutorials and the GPT at nanoGPT's CPU setting, in float32 and in
bfloat16, it times

- bare: a hand-written `jax.jit` step of the same model, on batches that are already in place, with
  lsm's compiler options and ("defaults") without;
- step: lsm's compiled step on the same batches;
- loop: `lsm.fit` as users run it, with its batches, logging and writers;
- torch: PyTorch's eager step with the same model, batch, optimiser and threads (bfloat16 by
  autocast; pictures in both memory formats, of which the faster counts).

Data are random: constant labels would drive PyTorch's gradients into denormals. All take turns,
many times, and the shortest time of each counts, since other work on the machine only ever adds.
bare and step have lsm's memory settings, which are the process's.
PyTorch is optional, and may live in another interpreter (`--peer_python`).
"""

import contextlib
import dataclasses
import io
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from absl import flags

import lsm
from benchmarks.step_time_bare import Bare
from experiments.configs.cifar import cnn as cifar_cnn
from experiments.configs.mnist import mlp as mnist_mlp
from experiments.configs.shakespeare import gpt as shakespeare_gpt
from lsm import command_line
from lsm.cpu import compiler_options
from lsm.data import Arrays
from lsm.errors import ConfigError
from lsm.mesh import place
from lsm.train.trainer import Trainer
from lsm.writers import RunInfo

DTYPES = ("float32", "bfloat16")
_CONFIGS = {"mlp": mnist_mlp, "cnn": cifar_cnn, "gpt": shakespeare_gpt}
_FORMATS = ("contiguous_format", "channels_last")
_BATCHES = 8  # in turn, so that nothing is learnt by heart while it is timed


@dataclasses.dataclass(frozen=True)
class Case:
    """One model at one batch size.

    Attributes:
      name: shown in the tables.
      model: "mlp", "cnn" or "gpt".
      batch_size: examples in a step.
      examples: size of the training set that the loop draws from.
      log_every: steps between two log rows of the loop, and in one turn of each of the others.
    """

    name: str
    model: str
    batch_size: int
    examples: int
    log_every: int

    def columns(self, count: int) -> dict[str, np.ndarray]:
        """Returns `count` random examples, in the form that the experiment's data have."""
        rng = np.random.default_rng(0)
        if self.model == "gpt":
            return {"tokens": rng.integers(0, 65, (count, 65), np.int32)}
        shape = (28, 28, 1) if self.model == "mlp" else (32, 32, 3)
        return {
            "image": rng.integers(0, 256, (count, *shape), np.uint8),
            "label": rng.integers(0, 10, count, np.int32),
        }

    def batches(self) -> list[dict[str, np.ndarray]]:
        """Returns a few batches to go round in."""
        columns = self.columns(_BATCHES * self.batch_size)
        parts = {name: np.split(column, _BATCHES) for name, column in columns.items()}
        return [{name: part[i] for name, part in parts.items()} for i in range(_BATCHES)]


CASES = (
    Case("MLP (A2), batch 64", "mlp", 64, 60_000, 200),
    Case("CNN (A1), batch 32", "cnn", 32, 50_000, 16),
    Case("CNN (A1), batch 128", "cnn", 128, 50_000, 12),
    Case("GPT (nanoGPT's CPU setting)", "gpt", 12, 20_000, 12),
)


class Contender(Protocol):
    """What is timed. `parameters` shows that all train the same model."""

    parameters: int

    def run(self, steps: int) -> float:
        """Trains for `steps` steps; returns the seconds that one took."""


def experiment(case: Case, dtype: str, steps: int) -> lsm.Experiment:
    """Returns the experiment that lsm ships for this model, on random data in memory."""
    config = _CONFIGS[case.model].get_config()
    model = config.task.model
    if case.model == "gpt":
        blocks = dataclasses.replace(model.transformer, dtype=dtype)
        model = model.clone(transformer=blocks)
    else:
        model = model.clone(dtype=dtype)
    return dataclasses.replace(
        config,
        task=dataclasses.replace(config.task, model=model),
        data=lsm.Data(source=Arrays(case.columns(case.examples)), test=None),
        train=lsm.Train(steps=steps, batch_size=case.batch_size, log_every=case.log_every),
        evaluation=lsm.Evaluation(every=steps),
        checkpoint=lsm.Checkpoint(every=0),
    )


class Step:
    """lsm's compiled step, alone."""

    def __init__(self, case: Case, dtype: str):
        program = Trainer.of(experiment(case, dtype, steps=1000), None).program
        self._step, self._state = program.step, program.init()
        self._batches = [place(batch, program.batch) for batch in case.batches()]
        self.parameters = sum(x.size for x in jax.tree.leaves(self._state.params))

    def run(self, steps: int) -> float:
        """See `Contender.run`."""
        start = time.perf_counter()
        for i in range(steps):
            self._state, metrics = self._step(self._state, self._batches[i % _BATCHES])
        jax.block_until_ready((self._state, metrics))
        return (time.perf_counter() - start) / steps


@dataclasses.dataclass(frozen=True)
class Clock:
    """Times the loop from inside: the config of a writer, and the writer, of a run of `lsm.fit`.

    When a row of training metrics comes, the loop has waited for every step before it. The clock
    then stops, the others have their turn, and it goes on when they are done.

    Attributes:
      times: seconds a step of each stretch; the first row, which compiled, only starts the clock.
      others: has the others' turn.
      running: step at which the clock was started last, and when; empty before the first row.
    """

    times: list[float]
    others: Callable[[], None]
    running: list[tuple[int, float]] = dataclasses.field(default_factory=list)

    def open(self, workdir: Path, run: RunInfo, resume_step: int) -> "Clock":
        """Returns itself."""
        return self

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Takes the time where `split` is "train"."""
        if split == "train":
            now = time.perf_counter()
            self.times.extend((now - start) / (step - first) for first, start in self.running)
            self.others()
            self.running[:] = [(step, time.perf_counter())]

    def close(self) -> None:
        """Does nothing."""


class Torch:
    """PyTorch, in a process of its own."""

    def __init__(self, python: str, case: Case, dtype: str, memory_format: str):
        script = Path(__file__).with_name("step_time_torch.py")
        self._process = subprocess.Popen(
            [python, script, case.model, str(case.batch_size), dtype, memory_format],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.parameters = int(self._answer())

    def run(self, steps: int) -> float:
        """See `Contender.run`."""
        with contextlib.suppress(BrokenPipeError):  # ended: the missing answer tells
            print(steps, file=self._process.stdin, flush=True)
        return float(self._answer())

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise SystemExit(f"step_time: PyTorch's process ended with {code}; see above for why.")
        return line


def torch_version(python: str) -> str | None:
    """Returns the version of PyTorch in an interpreter, or None where it has none."""
    try:
        answer = subprocess.run(
            [python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True
        )
    except OSError as error:
        raise SystemExit(f"--peer_python: cannot run {python}: {error.strerror}.") from error
    return answer.stdout.strip() or None


def measure(case: Case, dtype: str, python: str | None, turns: int) -> dict[str, list[float]]:
    """Returns seconds a step of every contender, shortest first; all have taken turns."""
    options, batches = compiler_options(hot=True), case.batches()
    contenders: dict[str, Contender] = {
        "bare": Bare(case.model, batches, dtype, options),
        "defaults": Bare(case.model, batches, dtype, None),
        "step": Step(case, dtype),
    }
    with contextlib.ExitStack() as stack:
        for memory_format in _FORMATS[: 2 if case.model == "cnn" else 1] if python else ():
            torch = Torch(python, case, dtype, memory_format)
            contenders["torch " + memory_format] = torch
            stack.callback(torch.close)
        counts = {name: contender.parameters for name, contender in contenders.items()}
        if len(set(counts.values())) != 1:
            raise SystemExit(f"step_time: these are not the same model: parameters {counts}.")
        return take_turns(case, dtype, contenders, turns)


def take_turns(
    case: Case, dtype: str, contenders: Mapping[str, Contender], turns: int
) -> dict[str, list[float]]:
    """Runs the loop for `turns` rows of its log; after each, the others train for as many steps."""
    times: dict[str, list[float]] = {name: [] for name in (*contenders, "loop")}

    def others() -> None:
        for name, contender in contenders.items():
            times[name].append(contender.run(case.log_every))

    for contender in contenders.values():
        contender.run(3)  # compiles, and warms up
    config = experiment(case, dtype, steps=case.log_every * (turns + 1))
    clock = Clock(times["loop"], others)
    config = dataclasses.replace(config, writers=(*config.writers, clock))
    with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stdout(io.StringIO()):
        lsm.fit(config, workdir)
    return {name: sorted(values) for name, values in times.items()}


Times = Mapping[tuple[str, str], Mapping[str, Sequence[float]]]
"""(case, dtype) -> contender -> seconds a step, shortest first."""


def overhead_table(times: Times) -> list[list[str]]:
    """Returns rows: what lsm's step and loop take, as multiples of the bare step."""
    rows = [["model", "dtype", "bare, ms", "bare with XLA's defaults", "lsm's step", "lsm's loop"]]
    for (name, dtype), by in times.items():
        ratios = [_ratio(by[other], by["bare"], 3) for other in ("defaults", "step", "loop")]
        rows.append([name, dtype, _milliseconds(by["bare"]), *ratios])
    return rows


def peer_table(times: Times) -> list[list[str]]:
    """Returns rows: lsm's loop and PyTorch's step, and lsm as a multiple of PyTorch."""
    rows = [["model", "dtype", "lsm's loop, ms", "PyTorch, ms", "lsm / PyTorch"]]
    best: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
    for (name, dtype), by in times.items():
        peers = [values for contender, values in by.items() if contender.startswith("torch")]
        peer, loop = min(peers), by["loop"]
        rows.append(_peer_row(name, dtype, loop, peer))
        old = best.get(name, (loop, peer))
        best[name] = min(old[0], loop), min(old[1], peer)
    return rows + [_peer_row(name, "the faster", *both) for name, both in best.items()]


def _peer_row(name: str, dtype: str, loop: Sequence[float], peer: Sequence[float]) -> list[str]:
    return [name, dtype, _milliseconds(loop), _milliseconds(peer), _ratio(loop, peer, 2)]


def _milliseconds(times: Sequence[float]) -> str:
    return f"{times[0] * 1e3:.2f} ({statistics.median(times) * 1e3:.2f})"


def _ratio(times: Sequence[float], to: Sequence[float], digits: int) -> str:
    shortest, median = times[0] / to[0], statistics.median(times) / statistics.median(to)
    return f"{shortest:.{digits}f} ({median:.{digits}f})"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and prints its tables; returns the exit status."""
    return command_line.run(_act, _flags(), argv, doc=__doc__)


def _flags() -> flags.FlagValues:
    given = flags.FlagValues()
    flags.DEFINE_bool("quick", False, "a sixth of the turns", given)
    flags.DEFINE_string("only", "", "only models whose name contains this", given)
    flags.DEFINE_string("peer_python", sys.executable, "interpreter with PyTorch", given)
    return given


def _act(given: flags.FlagValues, _: list[str]) -> None:
    cases = [case for case in CASES if given.only.lower() in case.name.lower()]
    if not cases:
        names = ", ".join(case.name for case in CASES)
        raise ConfigError(f"--only: {given.only!r} is in no name; the models are: {names}.")
    torch = torch_version(given.peer_python)
    times = {}
    for case in cases:
        for dtype in DTYPES:
            python = given.peer_python if torch else None
            by = measure(case, dtype, python, turns=10 if given.quick else 60)
            shown = ", ".join(f"{name} {_milliseconds(values)}" for name, values in by.items())
            print(f"{case.name}, {dtype}: {shown}", file=sys.stderr, flush=True)
            times[case.name, dtype] = by
    print(
        f"{_cpus()} CPUs ({platform.machine()}), jax {jax.__version__}, PyTorch {torch or 'none'}"
    )
    print("Shortest (median) time of a step, and ratios of the shortest (of the median) times.\n")
    print(markdown(overhead_table(times)) + "\n")
    if torch:
        print(markdown(peer_table(times)))
    else:
        print(
            f"{given.peer_python} has no PyTorch, so there is no comparison with it: install "
            "torch there, or name an interpreter that has it with --peer_python=PATH."
        )
    if (load := os.getloadavg()[0]) > 2 * _cpus():
        print(f"\nThe machine was busy (load {load:.1f}): expect noise.")


def _cpus() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
