"""How long the train step of every shipped config takes to trace, to lower and to compile on a CPU.

    python -m benchmarks.compile run                      # minutes; makes benchmarks/compile.json
    python -m benchmarks.compile write docs/training.md
    python -m benchmarks.compile check

The step is what a start compiles anew where oneDNN computes its products; the other programs are
kept. It is compiled for one device, whatever the mesh; those of configs/gpt and configs/imagenet,
which are for many chips, are lowered only. No data is read: the shapes of MNIST and its relative,
CIFAR-10, hymenoptera and tiny Shakespeare stand below.

Seconds are those of the CPU, of all threads: other work on the machine hardly adds to them. Of
each the shortest of a few turns counts. Beside them stands what they are spent on, which is the
same on every machine: equations of the jaxpr, operations of StableHLO, instructions of the
compiled HLO.

`check` measures again, and prints a warning for each of these sizes that is half as large again as
in the record; likewise for seconds, which it first corrects for the speed of this machine by those
of a program that never changes. It fails nothing.

`write` fills every place that a document gives for the table:

    <!-- compile -->
    <!-- /compile -->
"""

import dataclasses
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.extend.core import jaxprs_in_params

from benchmarks import cases, sources
from benchmarks.documents import between, keep, kept, write_or_check
from lsm import Experiment, Mesh, command_line
from lsm.config import flags as config_flags
from lsm.data import CharText, Folder, Select, Texts, Tfds
from lsm.durations import Horizon
from lsm.run.result import hardware
from lsm.train import abstract_batch, build

RECORD = Path(__file__).with_suffix(".json")
STAGES = {"trace": "equations", "lower": "operations", "compile": "instructions"}
"""What is timed -> what it makes."""
GROWTH = 1.5
_TURNS = 2
_SMALL = 0.5  # seconds too few to warn of: their noise is as large
_PICTURES = {
    "mnist": (60_000, (28, 28, 1)),
    "fashion_mnist": (60_000, (28, 28, 1)),
    "cifar10": (50_000, (32, 32, 3)),
}
"""Training examples, and the shape of one."""
_TEXTS = {"imdb_reviews": 25_000, "glue/sst2": 67_349, "multi30k": 29_000}
"""Training examples."""
_RESULT = re.compile(r"^\s*(?:ROOT )?%\S+ = ", re.MULTILINE)


def configs() -> list[str]:
    """Returns every file in experiments/configs, with each argument that a record names."""
    run = {case.config for case in cases.CASES.values()}
    with_record = {config.partition(":")[0] for config in run}
    folder = sources.ROOT / cases.CONFIGS
    files = {path.relative_to(folder).as_posix() for path in cases.shipped()}
    return sorted(run | (files - with_record))


def shapes(experiment: Experiment) -> tuple[dict[str, jax.ShapeDtypeStruct], Horizon]:
    """Returns the shapes of a batch, and the length of the run; reads no data."""
    source, size = experiment.data.source, experiment.train.batch_size
    if isinstance(source, CharText):
        batch = {"tokens": jax.ShapeDtypeStruct((size, source.length + 1), np.int32)}
        return batch, experiment.train.horizon(size)
    if isinstance(source, Texts):
        label = {"label": jax.ShapeDtypeStruct((), np.int32)}
        batch = {
            name: jax.ShapeDtypeStruct((size, *one.shape), one.dtype)
            for name, one in (source.tokens_spec() | label).items()
        }
        return batch, experiment.horizon(_TEXTS[source.source.name])
    if isinstance(source, Select):
        source = source.source
    if isinstance(source, Folder) or (isinstance(source, Tfds) and source.name in _PICTURES):
        if isinstance(source, Folder):
            examples, shape = 244, (source.size, source.size, 3)
        else:
            examples, shape = _PICTURES[source.name]
        picture = jax.ShapeDtypeStruct((size, *shape), np.uint8)
        batch = {"image": picture, "label": jax.ShapeDtypeStruct((size,), np.int32)}
        return batch, experiment.horizon(examples)
    return abstract_batch(experiment)


def measure(config: str) -> dict[str, float]:
    """Returns sizes, and the CPU seconds of each stage, of the step of FILE.py or FILE.py:arg."""
    path = sources.ROOT / cases.CONFIGS / config
    experiment = dataclasses.replace(config_flags.load(str(path)), mesh=Mesh())
    batch, horizon = shapes(experiment)
    is_compiled = not config.startswith(("gpt/", "imagenet/"))

    def once() -> dict[str, float]:
        program = build(experiment, horizon, batch, jax.devices("cpu")[:1])
        arguments = program.abstract_state, program.abstract_batch
        return stages(program.step, arguments, is_compiled)

    return shortest([once() for _ in range(_TURNS)])


def yardstick() -> dict[str, float]:
    """Returns the same of a program that has nothing of lsm, and stays as it is."""

    def once() -> dict[str, float]:
        def loss(w_DxD, x_BxD):
            for _ in range(24):
                x_BxD = jax.nn.gelu(x_BxD @ w_DxD) - x_BxD.mean(-1, keepdims=True)
            return (x_BxD * x_BxD).sum()

        arguments = jnp.zeros((64, 64)), jnp.zeros((8, 64))
        return stages(jax.jit(jax.grad(loss)), arguments)

    return shortest([once() for _ in range(_TURNS + 1)])


def stages(function: Any, arguments: Sequence[Any], is_compiled: bool = True) -> dict[str, float]:
    """Returns CPU seconds and sizes of a jitted function that was not traced before."""
    start = time.process_time()
    traced = function.trace(*arguments)
    at_trace = time.process_time()
    lowered = traced.lower()
    at_lower = time.process_time()
    found = {
        "trace": at_trace - start,
        "equations": equations(traced.jaxpr),
        "lower": at_lower - at_trace,
        "operations": len(_RESULT.findall(lowered.as_text())),
    }
    if is_compiled:
        start = time.process_time()
        compiled = lowered.compile()
        found["compile"] = time.process_time() - start
        found["instructions"] = len(_RESULT.findall(compiled.as_text()))
    return found


def equations(jaxpr: Any) -> int:
    """Returns the number of equations, those of inner jaxprs with them."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(1 + sum(map(equations, jaxprs_in_params(eqn.params))) for eqn in jaxpr.eqns)


def shortest(turns: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the least of each figure, seconds rounded to milliseconds."""
    return {name: round(min(turn[name] for turn in turns), 3) for name in turns[0]}


def measured(names: Sequence[str]) -> dict[str, Any]:
    """Returns the record of some configs."""
    found = {"jax": jax.__version__, "cpu": hardware()["cpu"], "yardstick": yardstick()}
    return found | {"configs": {name: measure(name) for name in names}}


def warnings(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line for each figure of `new` that is half as large again as in `old`."""
    slower = _seconds(new["yardstick"]) / _seconds(old["yardstick"])
    for config, figures in new["configs"].items():
        before = old["configs"][config]
        for stage, size in STAGES.items():
            if stage not in figures or stage not in before:
                continue
            was, now = before[size], figures[size]
            if now > GROWTH * was:
                yield f"{config}: {stage}: {now:,} {size}; {was:,} were recorded."
            was, now = before[stage] * slower, figures[stage]
            if now > max(GROWTH * was, was + _SMALL):
                yield f"{config}: {stage}: {now:.1f} CPU seconds; {was:.1f} by the record."


def _seconds(figures: Mapping[str, float]) -> float:
    return sum(figures[stage] for stage in STAGES)


def table(record: Mapping[str, Any]) -> str:
    """Returns the record as a Markdown table."""
    columns = ("config", *STAGES.values(), *(f"{stage}, CPU s" for stage in STAGES))
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for config, figures in record["configs"].items():
        sizes = [f"{figures[s]:,}" if s in figures else "-" for s in STAGES.values()]
        seconds = [f"{figures[s]:.2f}" if s in figures else "-" for s in STAGES]
        lines.append("| " + " | ".join([f"`{config}`", *sizes, *seconds]) + " |")
    lines.append(f"\nOn {record['cpu']}, jax {record['jax']}.")
    return "\n".join(lines) + "\n"


def filled(document: Path) -> str:
    """Returns the text of `document` with the table as the record has it now."""
    return between(document, "compile", table(kept(RECORD)))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `run`, `write` or `check`; returns the exit status."""
    return command_line.run(_act, flags.FlagValues(), argv, doc=__doc__, words=True)


def _act(_: flags.FlagValues, words: list[str]) -> None:
    verb, *documents = words or [""]
    command_line.require_one_of(verb, ("run", "write", "check"))
    if verb == "write":
        write_or_check(verb, documents, filled)
        return
    if verb == "run":
        keep(RECORD, measured(configs()))
        return
    old, names = kept(RECORD), configs()
    if missing := [name for name in names if name not in old["configs"]]:
        print(f"warning: not in the record, nor measured: {', '.join(missing)}.")
    for told in warnings(old, measured([name for name in names if name in old["configs"]])):
        print(f"warning: {told}")


if __name__ == "__main__":
    sys.exit(main())
