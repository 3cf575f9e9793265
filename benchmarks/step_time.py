"""How long a training step takes: lsm against a bare jitted step and against PyTorch.

    python -m benchmarks.step_time [--quick] [--only=GPT] [--peer_python=PATH] [--platform=gpu]
    python -m benchmarks.step_time write docs/cpu_speed.md
    python -m benchmarks.step_time check docs/cpu_speed.md

For the models of `step_time_cases` it times

- bare: a plain `jax.jit` step of the same model, on batches that are already in place, on a CPU
  with lsm's compiler options and ("defaults") without;
- step: lsm's compiled step on the same batches;
- loop: `lsm.fit` as users run it, with its batches, logging and writers;
- torch: PyTorch's step with the same model, batch, optimiser (the fused one) and threads, eager and
  by `torch.compile` (bfloat16 by autocast; pictures in both memory formats, of which the faster
  counts).

On a CPU in float32, and in bfloat16 where it has instructions for it; on a GPU in bfloat16, with
batches that fill it and model FLOPs utilisation. It needs no network, and of packages jax, Flax
and Optax alone: what cannot be measured without others is left out, and said so. PyTorch may live
in another interpreter (`--peer_python`); to compile for a CPU it needs a C++ compiler.

Data are random: constant labels would drive PyTorch's gradients into denormals. All take turns,
many times, and the shortest time of each counts, since other work on the machine only ever adds.
bare and step have lsm's memory settings, which are the process's.

A whole run (all models, PyTorch, no `--quick`) on a quiet machine, where other work takes less
than a twentieth of the CPUs, is kept as `benchmarks/step_time/PLATFORM.json`, to be committed.
`write` fills every place that a document gives for its tables; `check` exits with status 1 where a
document does not hold what `write` would put there:

    <!-- step_time:cpu -->
    <!-- /step_time -->
"""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
from absl import flags

import lsm
from benchmarks.compare import torch_version
from benchmarks.documents import keep, wrote_or_checked
from benchmarks.step_time_bare import Bare
from benchmarks.step_time_cases import BATCHES, CASES, Case, experiment
from benchmarks.step_time_tables import RECORDS, filled, tables
from lsm import command_line
from lsm.cost import chip_of
from lsm.cpu import compiler_options, emulates_bfloat16, keep_memory
from lsm.errors import ConfigError, DataError, LsmError, listed
from lsm.mesh import place
from lsm.run.result import git_revision, hardware, versions
from lsm.train.program import build
from lsm.train.throughput import training_flops
from lsm.writers import RunInfo

_FORMATS = ("contiguous_format", "channels_last")
_LOOP_NEEDS = ("typeguard", "tensorboardX", "matplotlib")
_QUIET = 0.05


class Contender(Protocol):
    """What is timed. `parameters` shows that all train the same model."""

    parameters: int

    def run(self, steps: int) -> float:
        """Trains for `steps` steps; returns the seconds that one took."""


class Step:
    """lsm's compiled step, alone. `flops` are the model FLOPs of one."""

    def __init__(self, case: Case, dtype: str):
        config, batches = experiment(case, dtype, steps=1000), case.batches()
        # Not by `Trainer`, which checks the config with packages that may not be here.
        program = build(config, config.train.horizon(case.examples), batches[0])
        abstract = program.abstract_state, program.abstract_batch
        self.flops = training_flops(config.task, *abstract).total
        self._step, self._state = program.step, program.init()
        self._batches = [place(batch, program.batch) for batch in batches]
        self.parameters = sum(x.size for x in jax.tree.leaves(self._state.params))

    def run(self, steps: int) -> float:
        """See `Contender.run`."""
        start = time.perf_counter()
        for i in range(steps):
            self._state, metrics = self._step(self._state, self._batches[i % BATCHES])
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


class TorchEndedError(LsmError):
    """PyTorch's process ended; its own words are on stderr."""


class Torch:
    """PyTorch, in a process of its own."""

    def __init__(self, python: str, script: str, *words: str):
        """Starts `script`, which stands beside this file."""
        self._process = subprocess.Popen(
            [python, Path(__file__).with_name(script), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @functools.cached_property
    def parameters(self) -> int:
        """Number of its model's, with which the process says that it has started."""
        return int(self._answer())

    def run(self, steps: int) -> float:
        """See `Contender.run`."""
        assert self.parameters  # its first word, before the answers
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
            raise TorchEndedError(f"PyTorch's process ended with {code}; see above for why.")
        return line


def measure(
    case: Case, dtype: str, python: str | None, loop: bool
) -> tuple[dict[str, list[float]], float]:
    """Returns seconds a step of every contender, shortest first, and the FLOPs of a step.

    Args:
      case: what is trained.
      dtype: of the computation.
      python: an interpreter with PyTorch; None leaves that out.
      loop: whether `lsm.fit` can run here.
    """
    on_cpu, step = jax.default_backend() == "cpu", Step(case, dtype)
    contenders: dict[str, Contender] = {"step": step}
    contenders["bare"] = Bare(case, dtype, compiler_options("many") if on_cpu else None)
    if on_cpu:
        contenders["defaults"] = Bare(case, dtype, None)
    with contextlib.ExitStack() as stack:
        for contender in contenders.values():
            contender.run(3)  # compiles, and warms up
        if python:
            contenders |= _peers(case, dtype, python, "cpu" if on_cpu else "cuda", stack)
        counts = {name: contender.parameters for name, contender in contenders.items()}
        if len(set(counts.values())) != 1:
            raise DataError(f"step_time: these are not the same model: parameters {counts}.")
        return take_turns(case, dtype, contenders, loop), step.flops


def _peers(
    case: Case, dtype: str, python: str, device: str, stack: contextlib.ExitStack
) -> dict[str, Torch]:
    """Starts PyTorch's processes; a model that it cannot compile is left out, and said so."""
    formats = _FORMATS if case.model in ("cnn", "resnet") else _FORMATS[:1]
    kinds, started = [(mode, layout) for mode in ("eager", "compiled") for layout in formats], []
    for kind in kinds:  # all of them at once, since each takes seconds to import PyTorch
        words = case.model, str(case.batch_size), dtype, device, *kind
        started.append(Torch(python, "step_time_torch.py", *words))
        stack.callback(started[-1].close)
    peers = {}
    for (mode, layout), torch in zip(kinds, started, strict=True):
        try:
            torch.run(3)
        except TorchEndedError as error:
            if mode == "eager":
                raise
            _say(f"{case.name}: compiled PyTorch is left out: {error}")
            break
        peers[f"torch {mode} {layout}"] = torch
    return peers


def take_turns(
    case: Case, dtype: str, contenders: Mapping[str, Contender], loop: bool
) -> dict[str, list[float]]:
    """Runs the loop for `turns` rows of its log; after each, the others train for as many steps."""
    times: dict[str, list[float]] = {name: [] for name in contenders}

    def others() -> None:
        for name, contender in contenders.items():
            times[name].append(contender.run(case.log_every))

    if loop:
        times["loop"] = []
        config = experiment(case, dtype, steps=case.log_every * (case.turns + 1))
        clock = Clock(times["loop"], others)
        config = dataclasses.replace(config, writers=(*config.writers, clock))
        with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stdout(io.StringIO()):
            lsm.fit(config, workdir)
    else:
        for _ in range(case.turns):
            others()
    return {name: sorted(values) for name, values in times.items()}


def record(platform: str, cases: Sequence[Case], python: str | None) -> dict[str, Any]:
    """Measures, and returns the record; see `step_time_tables.Record`. Tells of each case."""
    loop = not (missing := [name for name in _LOOP_NEEDS if not importlib.util.find_spec(name)])
    if missing:
        _say(f"lsm's loop is left out: {listed(missing)} would be needed.")
    dtypes = ["bfloat16"] if platform == "gpu" else ["float32"]
    if platform == "cpu" and emulates_bfloat16():
        _say("bfloat16 is left out: this CPU has no instructions for it.")
    elif platform == "cpu":
        dtypes.append("bfloat16")
    start, measured = _cpu_seconds(), {}
    for case in cases:
        seconds = {}
        for dtype in dtypes:
            times, flops = measure(case, dtype, python, loop)
            seconds[dtype] = {k: [v[0], statistics.median(v)] for k, v in times.items()}
            shown = ", ".join(f"{k} {1e3 * v[0]:.2f}" for k, v in seconds[dtype].items())
            _say(f"{case.name}, {dtype}, ms: {shown}")
        measured[case.name] = {"flops": flops, "seconds": seconds}
    chip = chip_of(jax.devices()[0].device_kind)
    return {
        "platform": platform,
        "hardware": hardware(),
        "versions": versions(),
        "git_revision": git_revision(),
        "torch": python and torch_version(python),
        "others": _others(start, _cpu_seconds()),
        "peak": chip and chip.flops,
        "cases": measured,
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _cpu_seconds() -> tuple[float, float, float] | None:
    """Returns seconds of now, of the CPUs at work, and of those for us and our ended children."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:  # not Linux
        return None
    user, nice, system, _, _, *interrupts = map(int, fields)
    working = (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
    return time.monotonic(), working, sum(os.times()[:4])


def _others(start: Sequence[float] | None, end: Sequence[float] | None) -> float | None:
    """Returns the share of the machine's CPUs that went into others' work, 0 to 1."""
    if start is None or end is None:
        return None
    wall, working, ours = (after - before for before, after in zip(start, end, strict=True))
    return round(max(working - ours, 0.0) / wall / os.cpu_count(), 3)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints tables, or does `write` or `check`; returns the exit status."""
    return command_line.run(_act, _flags(), argv, doc=__doc__, words=True)


def _flags() -> flags.FlagValues:
    given = flags.FlagValues()
    flags.DEFINE_enum("platform", "cpu", [*CASES], "where to measure", given)
    flags.DEFINE_bool("quick", False, "a sixth of the turns", given)
    flags.DEFINE_string("only", "", "only models whose name contains this", given)
    flags.DEFINE_string("peer_python", sys.executable, "interpreter with PyTorch", given)
    return given


def _act(given: flags.FlagValues, words: list[str]) -> None:
    if not wrote_or_checked(words, filled):
        _run(given)


def _run(given: flags.FlagValues) -> None:
    cases = [case for case in CASES[given.platform] if given.only.lower() in case.name.lower()]
    if not cases:
        names = ", ".join(case.name for case in CASES[given.platform])
        raise ConfigError(f"--only: {given.only!r} is in no name; the models are: {names}.")
    if given.quick:
        cases = [dataclasses.replace(case, turns=max(case.turns // 6, 2)) for case in cases]
    _start(given.platform)
    python = given.peer_python if torch_version(given.peer_python) else None
    if not python:
        _say(
            f"PyTorch is left out: {given.peer_python} has none. Install torch there, or name an "
            "interpreter that has it with --peer_python=PATH."
        )
    measured = record(given.platform, cases, python)
    print("\n" + tables(measured))
    whole = python and not given.quick and len(cases) == len(CASES[given.platform])
    if whole and measured["others"] is not None and measured["others"] < _QUIET:
        RECORDS.mkdir(exist_ok=True)
        keep(RECORDS / f"{given.platform}.json", measured)
    else:
        print("Not kept: only a whole run on a quiet machine is.")


def _start(platform: str) -> None:
    """Makes the device JAX's; on a GPU, one card, whose memory is left to whoever asks for it."""
    keep_memory()
    if platform == "gpu":
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    jax.config.update("jax_platforms", "cuda" if platform == "gpu" else "cpu")
    try:
        jax.devices()
    except RuntimeError as error:
        told = " ".join(str(error).split())
        raise ConfigError(f"--platform={platform}: JAX finds none: {told}") from error


if __name__ == "__main__":
    sys.exit(main())
