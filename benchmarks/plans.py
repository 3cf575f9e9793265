"""Tables of plans for the docs, made by `launch.plan` and never typed.

    python -m benchmarks.plans run                  # every case below; minutes each
    python -m benchmarks.plans run llama_8b_fsdp    # one of them
    python -m benchmarks.plans write docs/scale.md

`run` keeps each plan as `benchmarks/plans/NAME.json`, to be committed. `write` fills every place
that a document gives for a table, one row for each name:

    <!-- plans:llama_8b_fsdp, llama_8b_tensor -->
    <!-- /plans -->

and every line `Planned (llama_8b):` in the header of a config, with the line below it.
"""

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from lsm import command_line
from lsm.errors import DataError
from lsm.files import atomic_write

RECORDS = Path(__file__).with_suffix("")
_TABLE = re.compile(r"^<!-- plans:(.*?) -->\n(.*?)^<!-- /plans -->$", re.DOTALL | re.MULTILINE)
_LINE = re.compile(r"^Planned \((\w+)\):.*\n(?:  .*\n)?", re.MULTILINE)
_COLUMNS = ("plan", "chips", "memory a chip", "sent a chip", "step", "MFU", "tokens/s", "USD")


@dataclasses.dataclass(frozen=True)
class Case:
    """One plan.

    Attributes:
      title: first column of its row.
      config: name of a file in experiments/configs/gpt.
      topology: what it is planned for.
      changes: overrides of the config.
      slices: slices of the topology.
    """

    title: str
    config: str
    topology: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    slices: int = 1

    def command(self) -> list[str]:
        """Returns the arguments of `python -m launch.plan`."""
        slices = [f"--slices={self.slices}"] if self.slices > 1 else []
        return [
            f"--config=experiments/configs/gpt/{self.config}.py",
            f"--topology={self.topology}",
            *slices,
            *(f"--config.{path}={value}" for path, value in self.changes.items()),
        ]


CASES = {
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
    "llama_70b": Case("70B, FSDP 512", "llama_70b", "v5p:8x8x8"),
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
}


def run(name: str) -> None:
    """Plans a case and keeps the plan; raises DataError where that fails."""
    command = CASES[name].command()
    target = RECORDS / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, "-m", "launch.plan", *command, f"--json={target}"])
    if done.returncode not in (0, 2):  # 2: it does not fit, which is a plan too
        raise DataError(f"{name}: launch.plan ended with status {done.returncode}.")


def table(names: Sequence[str]) -> str:
    """Returns the rows of plans as Markdown."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
    lines += ["| " + " | ".join(_row(name)) + " |" for name in names]
    return "\n".join(lines) + "\n"


def line(name: str) -> str:
    """Returns the two lines of a plan for the header of a config."""
    _, chips, memory, _, step, mfu, tokens, _ = _row(name)
    libtpu = json.loads((RECORDS / f"{name}.json").read_text())["topology"]["versions"]["libtpu"]
    what = f"Planned ({name}): on {chips} chips {memory} each, a step of {step},"
    return f"{what}\n  {mfu} MFU, {tokens} tokens/s, by libtpu {libtpu}; not trained here.\n"


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
    tokens = [f"{value:,.0f}" for value in projection["tokens_per_second"]]
    usd = [f"{value:,.0f}" for value in projection["usd"] or ()]
    return [
        title,
        chips,
        f"{_bytes(memory['total'])} of {_bytes(memory['available'])}",
        _bytes(sent),
        f"{fast:.3g} to {slow:.3g} s",
        f"{mfu[1]} to {mfu[0]} %",
        f"{tokens[1]} to {tokens[0]}",
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
        names = re.split(r"[,\s]+", place[1].strip())
        return f"<!-- plans:{place[1]} -->\n{table([*map(known, names)])}<!-- /plans -->"

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
        for document in map(Path, names):
            atomic_write(document, filled(document).encode())


if __name__ == "__main__":
    sys.exit(main())
