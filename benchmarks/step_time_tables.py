"""The tables of `step_time`, made of its records and never typed."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.documents import machine, short_revision

RECORDS = Path(__file__).with_name("step_time")
_TABLES = re.compile(
    r"^<!-- step_time:(cpu|gpu) -->\n(.*?)^<!-- /step_time -->$", re.DOTALL | re.MULTILINE
)
_OVERHEAD = {"defaults": "bare with XLA's defaults", "step": "lsm's step", "loop": "lsm's loop"}
_PEERS = {"torch eager": "PyTorch, ms", "torch compiled": "compiled, ms"}

Record = Mapping[str, Any]
"""What one run measured, in JSON: "platform", "hardware", "versions" and "git_revision" as in
`result.json`; "torch", its version or None; "others", the share of the CPUs that other work took,
or None; "peak", bfloat16 FLOP/s of the device or None; and "cases": by name "flops" of a step and
"seconds" by dtype and contender: the shortest, the median."""

Seconds = Sequence[float]
"""Of a step: the shortest, the median."""


def filled(page: Path) -> str:
    """Returns the text of `page` with all tables as the records have them now."""

    def fill(place: re.Match) -> str:
        path = RECORDS / f"{place[1]}.json"
        if path.exists():
            text = tables(json.loads(path.read_text()))
        else:
            text = (
                f"Not run yet: `python -m benchmarks.step_time --platform={place[1]}` on a quiet "
                "machine\nkeeps the record that these tables are made of.\n"
            )
        return f"<!-- step_time:{place[1]} -->\n{text}<!-- /step_time -->"

    return _TABLES.sub(fill, page.read_text())


def tables(record: Record) -> str:
    """Returns a record as Markdown: where it is from, lsm against bare steps, against PyTorch."""
    parts = [_origin(record), markdown(overhead(record))]
    if record["torch"]:
        parts.append(markdown(against_torch(record)))
    return "\n".join(parts)


def _origin(record: Record) -> str:
    hardware, others = record["hardware"], record["others"]
    versions = f"jax {record['versions']['jax']}, PyTorch {record['torch'] or 'none'}"
    at = short_revision(record["git_revision"])
    told = "not known here" if others is None else f"{others:.0%} of the CPUs".replace("%", " %")
    return (
        f"{machine(hardware)}; {versions}; at {at}; other work meanwhile: {told}.\n"
        "Shortest (median) time of a step, and ratios of the shortest (of the median) times.\n"
    )


def _rows(record: Record) -> Iterator[tuple[str, str, float, Mapping[str, Seconds]]]:
    for name, case in record["cases"].items():
        for dtype, seconds in case["seconds"].items():
            yield name, dtype, case["flops"], seconds


def overhead(record: Record) -> list[list[str]]:
    """Returns rows: what lsm's step and loop take, as multiples of the bare step."""
    measured = {contender for *_, seconds in _rows(record) for contender in seconds}
    columns = {key: title for key, title in _OVERHEAD.items() if key in measured}
    rows = [["model", "dtype", "bare, ms", *columns.values()]]
    for name, dtype, _, by in _rows(record):
        ratios = [_ratio(by[key], by["bare"], 3) for key in columns]
        rows.append([name, dtype, _milliseconds(by["bare"]), *ratios])
    return rows


def against_torch(record: Record) -> list[list[str]]:
    """Returns rows: lsm, PyTorch eager and compiled, and lsm as a multiple of the faster.

    lsm is its loop, or its step where the loop could not run; where the peak of the device is
    known, with the share of it that lsm reaches.
    """
    rows = [["model", "dtype", "lsm, ms", *_PEERS.values(), "lsm / the faster"]]
    rows[0] += ["lsm's MFU"] * bool(record["peak"])
    for name, dtype, flops, by in _rows(record):
        ours = by.get("loop", by["step"])
        peers = [fastest(by, mode) for mode in _PEERS]
        row = [name, dtype, _milliseconds(ours)]
        row += [_milliseconds(peer) if peer else "-" for peer in peers]
        row.append(_ratio(ours, min(filter(None, peers)), 2))
        if record["peak"]:
            row.append(f"{100 * flops / ours[0] / record['peak']:.0f} %")
        rows.append(row)
    return rows


def fastest(by: Mapping[str, Seconds], mode: str) -> Seconds | None:
    """Returns the times of PyTorch's faster memory format, or None where none was measured."""
    return min((by[key] for key in by if key.startswith(mode)), default=None)


def _milliseconds(times: Seconds) -> str:
    return "{:.2f} ({:.2f})".format(*(1e3 * time for time in times))


def _ratio(times: Seconds, to: Seconds, digits: int) -> str:
    shortest, median = (ours / theirs for ours, theirs in zip(times, to, strict=True))
    return f"{shortest:.{digits}f} ({median:.{digits}f})"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"
