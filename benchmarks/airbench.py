"""Seconds a step of the fast CIFAR run: lsm's config against the original's step in PyTorch.

    python -m benchmarks.airbench [--turns=3] [--batch_size=2000] [--peer_python=PATH]
    python -m benchmarks.airbench write docs/vision.md
    python -m benchmarks.airbench check docs/vision.md

Both train the same network with the same optimisers on pictures that are in place, in float32, on
all cores of a CPU, one step a turn; the shortest time of each counts. PyTorch runs eager and
compiled, in both memory formats, of which the fastest counts; it is optional, and may live in
another interpreter (`--peer_python`). The record is `benchmarks/airbench.json`.
"""

import dataclasses
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks import step_time
from benchmarks.compare import print_doubts, torch_version
from benchmarks.documents import between, keep, kept, origin, wrote_or_checked
from benchmarks.step_time import Torch, TorchEndedError
from benchmarks.step_time_cases import BATCHES
from benchmarks.step_time_tables import markdown
from experiments.configs.cifar import airbench
from lsm import command_line
from lsm.cpu import keep_memory
from lsm.errors import DataError
from lsm.mesh import place
from lsm.run.result import git_revision, hardware, versions
from lsm.train.program import build

RECORD = Path(__file__).with_suffix(".json")
FORMS = [(mode, form) for mode in ("eager", "compiled") for form in ("contiguous", "channels_last")]


class Step(step_time.Step):
    """lsm's step of the config, on one batch again and again."""

    def __init__(self, batch_size: int):
        config = airbench.get_config()
        train = dataclasses.replace(config.train, batch_size=batch_size)
        config = dataclasses.replace(config, train=train)
        rng = np.random.default_rng(0)
        batch = {
            "image": rng.integers(0, 256, (batch_size, 32, 32, 3), np.uint8),
            "label": rng.integers(0, 10, batch_size, np.int32),
        }
        program = build(config, train.horizon(25 * batch_size), batch)
        self._step, self._state = program.step, program.init()
        self._batches = [place(batch, program.batch)] * BATCHES
        self.parameters = sum(x.size for x in jax.tree.leaves(self._state.params))


def measure(python: str | None, batch_size: int, turns: int) -> dict[str, list[float]]:
    """Returns seconds a step by contender; raises DataError where they train different models."""
    contenders = {"lsm": Step(batch_size)}
    for mode, form in FORMS if python else ():
        memory = "contiguous_format" if form == "contiguous" else form
        peer = Torch(python, "airbench_torch.py", str(batch_size), mode, memory)
        contenders[f"PyTorch, {mode}, {form}"] = peer
    counts = {contender.parameters for contender in contenders.values()}
    if len(counts) > 1:
        raise DataError(f"airbench: these are not the same model: {sorted(counts)} parameters.")
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(turns + 1):
        for name, contender in list(contenders.items()):
            try:
                seconds = contender.run(1)
            except TorchEndedError as error:  # PyTorch compiles with a C++ compiler, if there is
                print(f"{name} is left out: {error}", file=sys.stderr)
                del contenders[name], times[name]
                continue
            if turn:  # the first compiles
                times[name].append(seconds)
    for contender in contenders.values():
        if isinstance(contender, Torch):
            contender.close()
    return times


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and keeps the record, or does `write` or `check`; returns the exit status."""
    return command_line.run(_act, _flags(), argv, doc=__doc__, words=True)


def _flags() -> flags.FlagValues:
    given = flags.FlagValues()
    flags.DEFINE_integer("turns", 3, "steps of each that are timed", 1, flag_values=given)
    flags.DEFINE_integer("batch_size", airbench.BATCH, "pictures a step", 1, flag_values=given)
    flags.DEFINE_string("peer_python", sys.executable, "interpreter with PyTorch", given)
    return given


def table(record: Mapping[str, Any]) -> str:
    """Returns a record as Markdown."""
    times = record["seconds"]
    rows = [["seconds a step", "shortest", "median", "lsm / it"]]
    for name, seconds in times.items():
        ratio = min(times["lsm"]) / min(seconds)
        told = f"{min(seconds):.2f}", f"{statistics.median(seconds):.2f}", f"{ratio:.2f}"
        rows.append([name, *told])
    return f"Batches of {record['batch_size']}; {origin(record)}.\n\n{markdown(rows)}"


def filled(document: Path) -> str:
    """Returns the text of `document` with the table as the record has it now."""
    return between(document, "airbench", table(kept(RECORD)))


def _act(given: flags.FlagValues, words: list[str]) -> None:
    if wrote_or_checked(words, filled):
        return
    keep_memory()
    version = torch_version(given.peer_python)
    made = {
        "hardware": hardware(),
        "git_revision": git_revision(),
        "versions": {"jax": versions()["jax"], "PyTorch": version or "none"},
        "batch_size": given.batch_size,
        "seconds": measure(given.peer_python if version else None, given.batch_size, given.turns),
    }
    print(table(made))
    print_doubts(given.peer_python, version, "torch")
    keep(RECORD, made)


if __name__ == "__main__":
    sys.exit(main())
