"""Tables of plans for the docs, made by `launch.plan` and never typed.

    python -m benchmarks.plans run                  # every case below; minutes each
    python -m benchmarks.plans run llama_8b_fsdp    # one of them
    python -m benchmarks.plans write docs/scale.md

`run` keeps each plan as `benchmarks/plans/NAME.json`, to be committed. `write` fills every place
that a document gives for a table, one row for each name:

    <!-- plans:llama_8b_fsdp, llama_8b_tensor -->
    <!-- /plans -->

likewise `published` (against what others measured) and `took` (to plan), and every line
`Planned (llama_8b):` in the header of a config, with the line below it.
"""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.documents import write_or_check
from launch.plan import compiled
from launch.plan.compiled import Request
from launch.plan.report import Plan
from launch.plan.topology import load
from lsm import command_line
from lsm.config import flags as config_flags
from lsm.errors import DataError
from lsm.files import atomic_write

RECORDS = Path(__file__).with_suffix("")
_TABLE = re.compile(
    r"^<!-- (plans|published|took):(.*?) -->\n(.*?)^<!-- /\1 -->$", re.DOTALL | re.MULTILINE
)
_LINE = re.compile(r"^Planned \((\w+)\):.*\n(?:  .*\n)?", re.MULTILINE)
_TOOK = ("plan", "topology", "time", "core time", "peak memory")
_PUBLISHED = (
    "run",
    "tokens/s a chip, published",
    "planned",
    "middle off by",
    "MFU %, published",
    "planned",
    "middle off by",
)
_COLUMNS = ("plan", "chips", "memory a chip", "sent a chip", "step", "MFU", "speed", "USD")


@dataclasses.dataclass(frozen=True)
class Case:
    """One plan.

    Attributes:
      title: first column of its row.
      config: name of a file in `folder`.
      topology: what it is planned for.
      changes: overrides of the config.
      slices: slices of the topology.
      tokens: tokens/s a chip that somebody published for this run; None if nobody did.
      mfu: likewise.
      kernels: attention of a GPU's plan is the TPU's kernel, for runs that had a fused one.
      quick: compiled without optimisation.
      folder: of experiments/configs.
    """

    title: str
    config: str
    topology: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    slices: int = 1
    tokens: float | None = None
    mfu: float | None = None
    kernels: bool = False
    quick: bool = False
    folder: str = "gpt"

    def plan(self) -> Plan:
        """Returns the plan, as `python -m launch.plan` makes it."""
        topology = load(self.topology, self.slices)
        if self.kernels:
            topology = dataclasses.replace(topology, lowered_for="tpu")
        path = f"experiments/configs/{self.folder}/{self.config}.py"
        changes = {field: str(value) for field, value in self.changes.items()}
        request = Request(config_flags.load(path, changes), path, changes)
        return compiled.plan(request, topology, self.quick)


_LLAMA_2_7B = {
    "data.source.length": 4096,
    "task.model.context": 4096,
    "task.model.vocabulary": 32000,
    "task.model.transformer.kv_heads": 32,
    "task.model.transformer.hidden": 11008,
    "task.model.transformer.remat": "none",
}
CASES = {
    "imagenet_resnet50": Case("ResNet-50, data parallel", "resnet50", "v5e:4x4", folder="imagenet"),
    "imagenet_vit_s16": Case("ViT-S/16, data parallel", "vit_s16", "v5e:4x4", folder="imagenet"),
    # In steps: an epoch is known where the data is.
    "cifar_airbench": Case(
        "CIFAR-10 in 8 epochs, one chip",
        "airbench",
        "v5e:1x1",
        {"train.steps": 200, "task.model.model.dtype": "bfloat16"},
        folder="cifar",
    ),
    "cifar_airbench_wide": Case(
        "CIFAR-10 in 16 epochs, one chip",
        "airbench_wide",
        "v5e:1x1",
        {"train.steps": 400, "task.model.model.dtype": "bfloat16"},
        folder="cifar",
    ),
    "gpt2_124m": Case("GPT-2 124M, data parallel", "gpt2_124m", "v5e:4x4"),
    "llama_1b": Case("1B, FSDP", "llama_1b", "v5e:4x4"),
    "llama_8b": Case("8B, FSDP 256", "llama_8b", "v6e:16x16"),
    "llama_8b_tensor": Case(
        "8B, FSDP 64 x tensor 4",
        "llama_8b",
        "v6e:16x16",
        {"mesh.fsdp": 64, "mesh.tensor": 4},
    ),
    "llama_8b_slices": Case(
        "8B, FSDP 256 in each of 2 slices",
        "llama_8b",
        "v6e:16x16",
        {"mesh.data": 2, "mesh.fsdp": 256},
        slices=2,
    ),
    "llama_70b": Case("70B, FSDP 512", "llama_70b", "v5p:8x8x8", tokens=692, mfu=0.654),
    "llama_70b_tensor": Case(
        "70B, FSDP 64 x tensor 8",
        "llama_70b",
        "v5p:8x8x8",
        {"mesh.fsdp": 64, "mesh.tensor": 8},
    ),
    "llama_70b_data": Case(
        "70B, data 8 x FSDP 64",
        "llama_70b",
        "v5p:8x8x8",
        {"mesh.data": 8, "mesh.fsdp": 64},
    ),
    "mixtral_8x7b": Case("8x7B, FSDP 16 x expert 8", "mixtral_8x7b", "v5p:4x4x8"),
    # MaxText, docs/reference/models/tiering.md, as llama_70b above.
    "maxtext_8b": Case(
        "Llama 3.1 8B on 256 v6e",
        "llama_8b",
        "v6e:16x16",
        {"train.batch_size": 1024},
        tokens=7207,
        mfu=0.4546,
    ),
    # torchtitan, docs/performance.md.
    "torchtitan_8b": Case(
        "Llama 3 8B on 64 A100, selective recomputation",
        "llama_8b",
        "a100:64",
        {"train.batch_size": 64, "task.model.transformer.remat": "dots"},
        mfu=0.582,
        quick=True,
    ),
    "torchtitan_70b": Case(
        "Llama 3 70B on 64 A100, full recomputation",
        "llama_70b",
        "a100:64",
        {
            "train.batch_size": 64,
            "data.source.length": 8192,
            "task.model.context": 8192,
            "task.model.vocabulary": 128256,
        },
        mfu=0.517,
        quick=True,
    ),
    # fms-fsdp, README.md.
    "fms_7b_a100": Case(
        "Llama 2 7B on 128 A100, FSDP in a node",
        "llama_8b",
        "a100:128",
        {**_LLAMA_2_7B, "train.batch_size": 256, "mesh.data": 16, "mesh.fsdp": 8},
        tokens=3700,
        kernels=True,
        quick=True,
    ),
    "fms_7b_h100": Case(
        "Llama 2 7B on 96 H100, FSDP in a node",
        "llama_8b",
        "h100:96",
        {**_LLAMA_2_7B, "train.batch_size": 192, "mesh.data": 12, "mesh.fsdp": 8},
        tokens=7500,
        kernels=True,
        quick=True,
    ),
}


def run(name: str) -> None:
    """Plans a case in a process of its own, and keeps the plan with what that took.

    Raises:
      DataError: it failed.
    """
    code = f"from benchmarks.plans import CASES; print(CASES[{name!r}].plan().as_json())"
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise DataError(f"{name}: the plan ended with status {status}.")
    took = {
        "seconds": round(time.monotonic() - start),
        "core_seconds": round(usage.ru_utime + usage.ru_stime),
        "peak_bytes": usage.ru_maxrss * 1024,
    }
    content = json.dumps({**json.loads(text), "took": took}, indent=1)
    RECORDS.mkdir(exist_ok=True)
    atomic_write(RECORDS / f"{name}.json", f"{content}\n".encode())


def table(kind: str, names: Sequence[str]) -> str:
    """Returns rows of plans as Markdown: "plans", "published" or "took"."""
    columns, row = {
        "plans": (_COLUMNS, _row),
        "published": (_PUBLISHED, _against),
        "took": (_TOOK, _effort),
    }[kind]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(row(name)) + " |" for name in names]
    return "\n".join(lines) + "\n"


def _read(name: str) -> dict[str, Any]:
    return json.loads((RECORDS / f"{name}.json").read_text())


def _against(name: str) -> Iterator[str]:
    """A row of what was published beside what is planned, and how far the middle is off."""
    case, plan = CASES[name], _read(name)
    projection, chips = plan["projection"], plan["topology"]["chips"]
    yield case.title
    for published, (low, high), scale, form in (
        (case.tokens, projection["tokens_per_second"], 1 / chips, ",.0f"),
        (case.mfu, projection["mfu"], 100, ".1f"),
    ):
        if published is None:
            yield from ("-",) * 3
            continue
        middle, published = math.sqrt(low * high) * scale, published * (scale if scale > 1 else 1)
        yield format(published, form)
        yield f"{low * scale:{form}} to {high * scale:{form}}"
        yield f"{middle / published - 1:+.0%}"


def _effort(name: str) -> Iterator[str]:
    case, took = CASES[name], _read(name)["took"]
    yield case.title
    yield case.topology + (", quick" if case.quick else "")
    yield f"{took['seconds']} s"
    yield f"{took['core_seconds']} s"
    yield _bytes(took["peak_bytes"])


def line(name: str) -> str:
    """Returns the two lines of a plan for the header of a config."""
    _, chips, memory, _, step, mfu, rate, _ = _row(name)
    libtpu = _read(name)["topology"]["versions"]["libtpu"]
    what = f"Planned ({name}): on {chips} chips {memory} each, a step of {step},"
    return f"{what}\n  {mfu} MFU, {rate}, by libtpu {libtpu}; not run on them here.\n"


def _row(name: str) -> list[str]:
    plan = json.loads((RECORDS / f"{name}.json").read_text())
    title, chips = (
        CASES[name].title,
        f"{plan['topology']['chips']} {plan['topology']['chip']['name']}",
    )
    if plan["refusal"]:
        needed = plan["refusal"]["needed"]
        return [title, chips, f"does not fit: {_bytes(needed)}" if needed else "does not fit"] + [
            "-"
        ] * 5
    memory, projection = plan["memory"], plan["projection"]
    sent = sum(one["total"] for one in plan["collectives"])
    fast, slow = projection["step_seconds"]
    mfu = [f"{100 * value:.0f}" for value in projection["mfu"]]
    unit = "tokens" if projection["tokens_per_second"] else "examples"
    rate = [f"{value:,.0f}" for value in projection[f"{unit}_per_second"]]
    usd = [f"{value:,.0f}" for value in projection["usd"] or ()]
    return [
        title,
        chips,
        f"{_bytes(memory['total'])} of {_bytes(memory['available'])}",
        _bytes(sent),
        f"{fast:.3g} to {slow:.3g} s",
        f"{mfu[1]} to {mfu[0]} %",
        f"{rate[1]} to {rate[0]} {unit}/s",
        f"{usd[0]} to {usd[1]}" if usd else "-",
    ]


def _bytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def filled(document: Path) -> str:
    """Returns the text of `document` with every table and line as the plans have it now.

    Raises:
      DataError: a table names a plan that is not there.
    """

    def known(name: str) -> str:
        if not (RECORDS / f"{name}.json").is_file():
            raise DataError(f"{document}: plans:{name} is not there; run it first.")
        return name

    def fill(place: re.Match) -> str:
        kind, given = place[1], place[2]
        rows = table(kind, [*map(known, re.split(r"[,\s]+", given.strip()))])
        return f"<!-- {kind}:{given} -->\n{rows}<!-- /{kind} -->"

    text = _TABLE.sub(fill, document.read_text())
    return _LINE.sub(lambda found: line(known(found[1])), text)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `run` or `write`; returns the exit status."""
    return command_line.run(_act, flags.FlagValues(), argv, doc=__doc__, words=True)


def _act(_: flags.FlagValues, words: list[str]) -> None:
    verb, *names = words or [""]
    command_line.require_one_of(verb, ("run", "write"))
    if verb == "run":
        for name in names:
            command_line.require_one_of(name, CASES)
        for name in names or CASES:
            run(name)
    else:
        write_or_check(verb, names, filled)


if __name__ == "__main__":
    sys.exit(main())
