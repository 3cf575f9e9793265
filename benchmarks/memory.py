"""What memory and compile time cost: a GPT of 124 M compiled for one TPU v5e chip, without a TPU.

    python -m benchmarks.memory                   # measures all, on 2 cores in about ten minutes
    python -m benchmarks.memory remat depth       # these tables alone
    python -m benchmarks.memory write             # fills docs/memory.md with what was measured

It needs the extra lsm[plan].

The actual train step is compiled by the TPU's compiler, which says how much memory it needs; FLOPs
are counted by `lsm.cost`; compile time is the CPU time of lowering and compiling. The figures are
kept in `benchmarks/results/memory.json`, from which the tables are made.
"""

import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from launch.plan import topology
from lsm import Data, Experiment, Mesh, Train, command_line
from lsm.cost import hardware_flops
from lsm.data import Arrays
from lsm.files import atomic_write
from lsm.models.families import gpt2
from lsm.optim import AdamW
from lsm.tasks import LanguageModelling
from lsm.train import build
from lsm.train.throughput import training_flops

RECORD = Path(__file__).with_suffix("").parent / "results/memory.json"
PAGE = Path(__file__).parents[1] / "docs/memory.md"
B, T = 8, 1024
CASES = {
    "remat": [{"remat": remat} for remat in ("none", "dots", "full", "offload")],
    "chunks": [{"chunks": chunks} for chunks in (1, 8)],
    "state": [{}, {"params": "bfloat16"}, {"offload": True}],
    "depth": [{"layers": 12}, {"layers": 48}],
}
"""Tables, and what each row changes of `measure`'s defaults."""
HEADINGS = {
    "remat": "| remat | activations, MiB | hardware / model FLOPs | compile, CPU s |",
    "chunks": "| chunks | activations, MiB | hardware / model FLOPs | compile, CPU s |",
    "state": (
        "| state | parameters, MiB | optimiser state, MiB | of it in the host, MiB "
        "| activations, MiB |"
    ),
    "depth": "| layers | lower, CPU s | compile, CPU s | activations, MiB |",
}
_TABLE = re.compile(r"(<!-- memory:(\w+) -->\n).*?(<!-- /memory -->)", re.DOTALL)


def measure(
    device: jax.Device,
    remat: str = "dots",
    chunks: int = 8,
    params: str = "float32",
    offload: bool = False,
    layers: int = 12,
) -> dict[str, float]:
    """Returns bytes, FLOPs and CPU seconds of the train step of one variant."""
    model = gpt2(vocabulary=50304, bias=False, dtype="bfloat16", remat=remat, layers=layers)
    tokens = {"tokens": np.zeros((B, T + 1), np.int32)}
    experiment = Experiment(
        name="memory",
        task=LanguageModelling(model=model, chunks=chunks),
        data=Data(source=Arrays(tokens)),
        optimizer=AdamW(learning_rate=6e-4, weight_decay=0.1, clip_norm=1.0),
        train=Train(steps=1, batch_size=B, params=params),
        mesh=Mesh(offload=offload),
    )
    program = build(experiment, experiment.train.horizon(B), tokens, [device])
    state = program.abstract_state
    batch = {"tokens": jax.ShapeDtypeStruct((B, T + 1), np.int32, sharding=program.batch)}
    start = time.process_time()
    lowered = program.step.lower(state, batch)
    middle = time.process_time()
    compiled = lowered.compile()
    end = time.process_time()
    needed = training_flops(experiment.task, state, batch).total
    executed = hardware_flops(program.step, state, batch).total
    held = dict.fromkeys(("parameters", "state", "in_host"), 0)
    for (path, *_, size), leaf in zip(program.table(), jax.tree.leaves(state), strict=True):
        held["parameters"] += size if path.startswith("params/") else 0
        held["state"] += size if path.startswith("opt_state/") else 0
        held["in_host"] += size if leaf.sharding.memory_kind == "pinned_host" else 0
    return {
        **held,
        "activations": compiled.memory_analysis().temp_size_in_bytes,
        "model_flops": needed,
        "hardware_flops": executed,
        "lower_seconds": middle - start,
        "compile_seconds": end - middle,
    }


def table(name: str, record: dict[str, Any]) -> str:
    """Returns one of the tables as Markdown."""
    lines = [HEADINGS[name], "|---" * (HEADINGS[name].count("|") - 1) + "|"]
    return "\n".join([*lines, *(_row(name, *case) for case in record["tables"][name])]) + "\n"


def _row(name: str, changed: dict[str, Any], found: dict[str, float]) -> str:
    def mib(key: str) -> str:
        return f"{found[key] / 2**20:,.0f}"

    what = ", ".join(f"{value}" for value in changed.values())
    if name == "state":
        named = {"params": "bfloat16 parameters, float32 master copy", "offload": "offload"}
        what = next((named[field] for field in changed), "float32")
        figures = [mib(key) for key in ("parameters", "state", "in_host", "activations")]
    elif name == "depth":
        seconds = [f"{found[key]:.1f}" for key in ("lower_seconds", "compile_seconds")]
        figures = [*seconds, mib("activations")]
    else:
        ratio = found["hardware_flops"] / found["model_flops"]
        figures = [mib("activations"), f"{ratio:.3f}", f"{found['compile_seconds']:.1f}"]
    return "| " + " | ".join([what, *figures]) + " |"


def filled(record: dict[str, Any]) -> str:
    """Returns the text of docs/memory.md with every table as the record has it."""
    text = PAGE.read_text()
    return _TABLE.sub(lambda place: place[1] + table(place[2], record) + place[3], text)


def measured(names: list[str], record: dict[str, Any]) -> dict[str, Any]:
    """Returns `record` with these tables measured anew."""
    device = topology.load("v5e:2x2").devices[0]
    seen: dict[str, dict[str, float]] = {}

    def once(changes: dict[str, Any]) -> dict[str, float]:
        key = json.dumps({"remat": "dots", "chunks": 8, "layers": 12} | changes, sort_keys=True)
        if key not in seen:
            seen[key] = measure(device, **changes)
            print(changes, json.dumps(seen[key]), flush=True)
        return seen[key]

    tables = {name: [(case, once(case)) for case in CASES[name]] for name in names}
    return {
        "jax": jax.__version__,
        "libtpu": topology.version(),
        "model": f"GPT-2 124M, {B} sequences of {T} tokens, one v5e chip",
        "tables": record.get("tables", {}) | tables,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and writes, or writes alone; returns the exit status."""
    return command_line.run(_act, flags.FlagValues(), argv, doc=__doc__, words=True)


def _act(_: flags.FlagValues, names: list[str]) -> None:
    for name in names:
        command_line.require_one_of(name, [*CASES, "all", "write"])
    names = [*CASES] if "all" in (names or ["all"]) else names
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if "write" not in names:
        record = measured(names, record)
        atomic_write(RECORD, (json.dumps(record, indent=2) + "\n").encode())
    atomic_write(PAGE, filled(record).encode())


if __name__ == "__main__":
    sys.exit(main())
