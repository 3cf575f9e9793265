"""How fast a training state is saved and restored: lsm against PyTorch, on the same disk.

    python -m benchmarks.checkpoint [--only=0.2] [--folder=DIR] [--peer_python=PATH]

The states are those of a GPT with AdamW, 0.2 and 1 GB of float32. All have the same shapes and the
same random bits. Timed are

- lsm: what the loop does, `Program.finite` and `Checkpoints.save`, then `restore` with its
  checksums; the arrays are on the CPU's device;
- torch.save and torch.load: one file, synced after it is written;
- dcp.save, dcp.async_save: `torch.distributed.checkpoint` in one process, which syncs its files as
  lsm does; a thread for each CPU.

"loop waits" is how long training stands still, beside a plain copy of the state in memory; "save"
lasts until all is on the disk, synced. A save goes into an empty folder. Before the first restore
the files are dropped from the page cache of this system (not from one below it, as of a virtual
machine); "again" is once more, from the cache. All take turns, and the shortest time of each
counts, since other work on the machine only ever adds; the first turn warms up. Nothing is kept.
PyTorch is optional, and may live in another interpreter (`--peer_python`).
"""

import contextlib
import functools
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from absl import flags

from benchmarks.compare import torch_version
from benchmarks.step_time_tables import markdown
from lsm import Data, Experiment, Train, command_line
from lsm.cpu import keep_memory
from lsm.data import Arrays
from lsm.errors import ConfigError
from lsm.models import GPT, Transformer
from lsm.optim import AdamW
from lsm.run.checkpoint import Checkpoints
from lsm.tasks import LanguageModelling
from lsm.train import Program, TrainState, build

CASES = {
    "0.2 GB": GPT(16_384, context=512, transformer=Transformer(layers=6, heads=6, width=384)),
    "1 GB": GPT(32_768, context=1024, transformer=Transformer(layers=8, heads=12, width=768)),
}
PEERS = ("torch.save", "dcp.save", "dcp.async_save")
_MEASURES = ("loop waits", "save", "restore", "again")


class Contender(Protocol):
    """What is timed."""

    def save(self, folder: Path) -> tuple[float, float]:
        """Returns the seconds that the loop waits, and those until all is on the disk."""

    def restore(self, folder: Path) -> float:
        """Returns the seconds until the state is back in memory."""


class Lsm:
    """What lsm's loop and a run that goes on do."""

    def __init__(self, program: Program, state: TrainState):
        self._program, self._state = program, state

    def save(self, folder: Path) -> tuple[float, float]:
        """See `Contender.save`."""
        with contextlib.closing(self._open(folder)) as checkpoints:
            start = time.perf_counter()
            jax.device_get(self._program.finite(self._state))
            checkpoints.save(1, self._state, {})
            waited = time.perf_counter() - start
            checkpoints.wait()
            return waited, time.perf_counter() - start

    def restore(self, folder: Path) -> float:
        """See `Contender.restore`."""
        with contextlib.closing(self._open(folder)) as checkpoints:
            start = time.perf_counter()
            jax.block_until_ready(checkpoints.restore(self._program.abstract_state, 1))
            return time.perf_counter() - start

    def _open(self, folder: Path) -> Checkpoints:
        return Checkpoints(folder, checksums=self._program.checksums)


class Torch:
    """One of `PEERS`, in the process of them all."""

    def __init__(self, process: subprocess.Popen, name: str):
        self._process, self._name = process, name

    def save(self, folder: Path) -> tuple[float, float]:
        """See `Contender.save`."""
        waited, all_of_it = self._asked("save", folder)
        return waited, all_of_it

    def restore(self, folder: Path) -> float:
        """See `Contender.restore`."""
        return self._asked("restore", folder)[0]

    def _asked(self, verb: str, folder: Path) -> list[float]:
        with contextlib.suppress(BrokenPipeError):  # ended: the missing answer tells
            print(verb, self._name, folder, file=self._process.stdin, flush=True)
        return [float(word) for word in _answer(self._process).split()]


def _answer(process: subprocess.Popen) -> str:
    line = process.stdout.readline()
    if not line:
        code = process.wait()
        raise SystemExit(f"checkpoint: PyTorch's process ended with {code}; see above for why.")
    return line


@contextlib.contextmanager
def peers(python: str, state: TrainState) -> Iterator[dict[str, Torch]]:
    """Starts PyTorch with a state of the same shapes and bits; yields its contenders."""
    shapes = json.dumps([leaf.shape for leaf in floats(state)])
    script = Path(__file__).with_name("checkpoint_torch.py")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([python, script, shapes], **pipes) as process:
        if int(_answer(process)) != size(state):
            raise SystemExit("checkpoint: these are not the same states.")
        yield {name: Torch(process, name) for name in PEERS}


def program(model: GPT) -> Program:
    """Returns the program of a GPT that is trained by AdamW, on the first device."""
    tokens = {"tokens": np.zeros((1, model.context + 1), np.int32)}
    experiment = Experiment(
        name="checkpoint",
        task=LanguageModelling(model=model),
        data=Data(source=Arrays(tokens)),
        optimizer=AdamW(learning_rate=1e-3),
        train=Train(steps=1, batch_size=1),
    )
    return build(experiment, experiment.train.horizon(1), tokens, jax.devices()[:1])


def random_state(program: Program) -> TrainState:
    """Returns a training state of random bits, as PyTorch's process makes them."""
    numbers = itertools.count()

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.dtype != np.float32:
            return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)
        rng = np.random.default_rng(next(numbers))
        return jax.device_put(rng.standard_normal(leaf.shape, np.float32), leaf.sharding)

    return jax.tree.map(draw, program.abstract_state)


def floats(state: TrainState) -> list[jax.Array]:
    """Returns the float32 arrays: all but a few counters."""
    return [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == np.float32]


def size(state: TrainState) -> int:
    """Returns the bytes of the float32 arrays."""
    return sum(leaf.nbytes for leaf in floats(state))


Times = Mapping[str, Mapping[str, list[float]]]
"""contender -> measure -> seconds, shortest first; of "copy" the loop's wait alone."""


def measure(contenders: Mapping[str, Contender], state: Any, folder: Path, turns: int) -> Times:
    """Returns what each took, in turns; the one before the first counts for nothing."""
    times = {name: {what: [] for what in _MEASURES} for name in (*contenders, "copy")}
    for turn in range(turns + 1):
        if turn == 1:
            for seconds in (x for measures in times.values() for x in measures.values()):
                seconds.clear()
        times["copy"]["loop waits"].append(copy(state))
        for name, contender in contenders.items():
            with tempfile.TemporaryDirectory(dir=folder) as where:
                for what, seconds in zip(_MEASURES, once(contender, Path(where)), strict=True):
                    times[name][what].append(seconds)
    return {
        name: {what: sorted(seconds) for what, seconds in measures.items()}
        for name, measures in times.items()
    }


def copy(state: TrainState) -> float:
    """Returns the seconds of a plain copy in the host's memory."""
    start = time.perf_counter()
    copies = [np.array(leaf, copy=True) for leaf in jax.tree.leaves(state)]
    seconds = time.perf_counter() - start
    del copies  # counted out: its memory is given back
    return seconds


def once(contender: Contender, folder: Path) -> tuple[float, float, float, float]:
    """Saves and restores in an empty folder; returns the seconds of each of `_MEASURES`."""
    waited, saved = contender.save(folder)
    drop_from_cache(folder)
    return waited, saved, contender.restore(folder), contender.restore(folder)


def drop_from_cache(folder: Path) -> None:
    """Has the system forget the content of the files below `folder`, as Linux can."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is not yet written would stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def speeds_table(times: Mapping[str, Times], sizes: Mapping[str, int]) -> list[list[str]]:
    """Returns rows: seconds that the loop waits, and GB/s of the rest."""
    rows = [["state", "", "loop waits, s", "save, GB/s", "restore, GB/s", "again, GB/s"]]
    for case, by in times.items():
        for name, measures in by.items():
            cells = [f"{measures['loop waits'][0]:.3f}"]
            for what in _MEASURES[1:]:
                seconds = measures[what]
                cells.append(f"{sizes[case] / 1e9 / seconds[0]:.2f}" if seconds else "-")
            rows.append([case, name, *cells])
    return rows


def ratios_table(times: Mapping[str, Times]) -> list[list[str]]:
    """Returns rows: lsm's time as a multiple of another's."""
    rows = [["state", "lsm /", *_MEASURES]]
    for case, by in times.items():
        for name, measures in by.items():
            if name != "lsm":
                rows.append([case, name, *(_ratio(by["lsm"][w], measures[w]) for w in _MEASURES)])
    return rows


def _ratio(times: Sequence[float], to: Sequence[float]) -> str:
    if not to:
        return "-"
    return f"{times[0] / to[0]:.2f} ({statistics.median(times) / statistics.median(to):.2f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and prints its tables; returns the exit status."""
    return command_line.run(_act, _flags(), argv, doc=__doc__)


def _flags() -> flags.FlagValues:
    given = flags.FlagValues()
    string = functools.partial(flags.DEFINE_string, flag_values=given)
    string("only", "", "only states whose name contains this")
    string("folder", tempfile.gettempdir(), "on the disk that is written to")
    string("peer_python", sys.executable, "interpreter with PyTorch")
    flags.DEFINE_integer("turns", 5, "of each contender", lower_bound=1, flag_values=given)
    return given


def _act(given: flags.FlagValues, _: list[str]) -> None:
    cases = {name: model for name, model in CASES.items() if given.only in name}
    if not cases:
        raise ConfigError(f"--only: {given.only!r} is in no name; they are: {', '.join(CASES)}.")
    folder, torch = Path(given.folder), torch_version(given.peer_python)
    if not folder.is_dir():
        raise ConfigError(f"--folder: {given.folder!r} is no folder.")
    keep_memory()  # as `lsm.fit` does
    times, sizes = {}, {}
    for name, model in cases.items():
        made = program(model)
        state = random_state(made)
        with peers(given.peer_python, state) if torch else contextlib.nullcontext({}) as others:
            contenders = {"lsm": Lsm(made, state), **others}
            times[name], sizes[name] = measure(contenders, state, folder, given.turns), size(state)
        del state
    _print(times, sizes, torch, given.peer_python)


def _print(
    times: Mapping[str, Times], sizes: Mapping[str, int], torch: str | None, python: str
) -> None:
    cpus = f"{os.cpu_count()} CPUs ({platform.machine()}), load {os.getloadavg()[0]:.1f}"
    print(f"{cpus}, jax {jax.__version__}, PyTorch {torch or 'none'}")
    print("Shortest time of each, and ratios of the shortest (of the median) times.\n")
    print(markdown(speeds_table(times, sizes)) + "\n")
    print(markdown(ratios_table(times)))
    if not torch:
        print(f"\n{python} has no PyTorch: name one that has it with --peer_python=PATH.")


if __name__ == "__main__":
    sys.exit(main())
