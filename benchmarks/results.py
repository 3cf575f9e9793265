"""Result tables for the README and the docs, made from runs and never typed.

    python -m benchmarks.results add runs/cifar-0 runs/cifar-1 runs/cifar-2 --name=cifar_a1 \\
        --title="CIFAR-10 CNN, 10 epochs" --claimed="91.80 %" --metric=test/accuracy \\
        --command="python -m experiments.cifar --config=experiments/configs/cifar/cnn.py"
    python -m benchmarks.results write README.md docs/*.md
    python -m benchmarks.results check README.md docs/*.md

`add` keeps what the runs' `result.json` say in `benchmarks/results/NAME.json`, to be committed.
`write` fills every place that a document gives for a table, one row for each name:

    <!-- results:cifar_a1, mnist_a2 -->
    <!-- /results -->

and every line `Measured (cifar_a1):` in the header of a config, with the line below it.

`check` exits with status 1 where a document does not hold what `write` would put there. The spread
of several seeds is the standard deviation of a sample (n - 1), then the lowest and highest.
"""

import json
import math
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from lsm import command_line
from lsm.errors import ConfigError, DataError, listed, nearest
from lsm.files import atomic_write, plain_json
from lsm.run.result import Result

RECORDS = Path(__file__).with_suffix("")
_TABLE = re.compile(r"^<!-- results:(.*?) -->\n(.*?)^<!-- /results -->$", re.DOTALL | re.MULTILINE)
_LINE = re.compile(r"^Measured \((\w+)\):.*\n(?:  .*\n)?", re.MULTILINE)
_SHARES = ("accuracy", "precision", "recall", "f1")
_COLUMNS = ("system", "claimed", "measured", "seeds", "time per run", "hardware", "revision")


def record(title: str, claimed: str, metric: str, command: str, runs: Sequence[Path]) -> dict:
    """Returns what the results of `runs`, one for each seed, say about `metric`.

    Raises:
      DataError: a run is not complete, lacks the metric, or repeats a seed.
    """
    results = [(run, Result.load(run)) for run in runs]
    kept = []
    for run, result in sorted(results, key=lambda pair: pair[1].seed):
        if result.stopped == "interrupted":
            raise DataError(f"{run}: the run was interrupted at step {result.step}; finish it.")
        if any(result.seed == other["seed"] for other in kept):
            raise DataError(f"{run}: seed {result.seed} is there already; give each seed once.")
        kept.append(
            {
                "seed": result.seed,
                "value": _figure(run, result, metric),
                "step": result.step,
                "wall_time": round(result.wall_time, 1),
                "fingerprint": result.fingerprint,
                "git_revision": result.git_revision,
                "hardware": result.hardware,
                "versions": result.versions,
            }
        )
    about = {"title": title, "claimed": claimed, "metric": metric, "command": command}
    return plain_json({**about, "runs": kept})


def _figure(run: Path, result: Result, metric: str) -> float:
    figures = {f"{s}/{name}": v for s, row in result.metrics.items() for name, v in row.items()}
    if metric not in figures:
        hint = nearest(metric, figures)
        raise DataError(f"--metric: {run} has no {metric!r}; it has {listed(figures)}.{hint}")
    return figures[metric]


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Returns the records as a Markdown table, one row each."""
    rows = [_COLUMNS, ["---"] * len(_COLUMNS), *map(_row, records)]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _row(kept: Mapping[str, Any]) -> list[str]:
    command = f"<br>`{kept['command']}`" if kept["command"] else ""
    cells = [kept["title"] + command, kept["claimed"], *_measured(kept)]
    return [cell.replace("|", "\\|").replace("\n", " ") for cell in cells]


def _measured(kept: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """Returns what was measured, seeds, time per run, hardware and revision, as texts."""
    runs = kept["runs"]
    machines = dict.fromkeys(_machine(run["hardware"]) for run in runs)
    revisions = dict.fromkeys(_short_revision(run["git_revision"]) for run in runs)
    return (
        f"{kept['metric']} {spread([run['value'] for run in runs], kept['metric'])}",
        str(len(runs)),
        duration(statistics.fmean(run["wall_time"] for run in runs)),
        "; ".join(machines),
        ", ".join(revisions),
    )


def line(name: str, kept: Mapping[str, Any]) -> str:
    """Returns the two lines of a record for the header of a config."""
    measured, seeds, time, machine, revision = _measured(kept)
    seeds += " seed" if seeds == "1" else " seeds"
    return f"Measured ({name}): {measured}, {seeds},\n  {time} a run on {machine}, at {revision}.\n"


def spread(values: Sequence[float | None], metric: str) -> str:
    """Returns "70.12 % ± 0.31 (69.80 to 70.41)", or one number where there is one seed.

    Accuracy and its kin in per cent, two decimals; any other figure with four digits of its mean.
    """
    if None in values:
        return "not finite"
    is_share = metric.rpartition("/")[2].endswith(_SHARES)
    scaled = [100 * value if is_share else value for value in values]
    mean = statistics.fmean(scaled)
    decimals = 2 if is_share or not mean else min(max(3 - math.floor(math.log10(abs(mean))), 0), 6)
    text = f"{mean:.{decimals}f}" + (" %" if is_share else "")
    if len(scaled) == 1:
        return text
    others = (statistics.stdev(scaled), min(scaled), max(scaled))
    return "{} ± {} ({} to {})".format(text, *(f"{other:.{decimals}f}" for other in others))


def duration(seconds: float) -> str:
    """Returns seconds as "42 s", "12 min 05 s" or "1 h 02 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_of_hour = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_of_hour:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _machine(hardware: Mapping[str, Any]) -> str:
    if hardware["platform"] == "cpu":
        return f"{hardware['cpu']}, {hardware['cores']} cores"
    return f"{hardware['device_count']} x {hardware['device_kind']}"


def _short_revision(revision: str | None) -> str:
    commit, plus, dirty = (revision or "unknown").partition("+")
    return commit[:10] + plus + dirty


def filled(document: Path) -> str:
    """Returns the text of `document` with every table and line as the records have it now.

    Raises:
      DataError: a table names a record that is not there, or is not closed.
    """
    text = document.read_text()

    def fill(place: re.Match) -> str:
        names = re.split(r"[,\s]+", place[1].strip())
        body = table([_load(name, document) for name in names])
        return f"<!-- results:{place[1]} -->\n{body}<!-- /results -->"

    opened = len(re.findall(r"^<!-- results:", text, re.MULTILINE))
    new, closed = _TABLE.subn(fill, text)
    if opened != closed:
        raise DataError(f"{document}: a results: table is not closed by <!-- /results -->.")
    return _LINE.sub(lambda found: line(found[1], _load(found[1], document)), new)


def _load(name: str, document: Path) -> dict:
    path = RECORDS / f"{name}.json"
    if not path.is_file():
        known = sorted(file.stem for file in RECORDS.glob("*.json"))
        there, hint = listed(known) or "none", nearest(name, known)
        raise DataError(f"{document}: results:{name} has no record; there is {there}.{hint}")
    return json.loads(path.read_text())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `add`, `write` or `check`; returns the exit status."""
    return command_line.run(_act, _flags(), argv, doc=__doc__, words=True)


def _flags() -> flags.FlagValues:
    given = flags.FlagValues()
    flags.DEFINE_string("name", None, "of the record that `add` keeps", given)
    flags.DEFINE_string("title", None, "of its row", given)
    flags.DEFINE_string("metric", None, "figure that counts, such as test/accuracy", given)
    flags.DEFINE_string("claimed", "none", "the figure to compare with, as text", given)
    flags.DEFINE_string("command", "", "the command that makes one run", given)
    return given


def _act(given: flags.FlagValues, words: list[str]) -> None:
    verb, *names = words or [""]
    command_line.require_one_of(verb, ("add", "write", "check"))
    paths = [Path(name) for name in names]
    if not paths:
        what = "workdirs of runs" if verb == "add" else "documents"
        raise ConfigError(f"{verb}: {what} are needed after it.")
    try:
        if verb == "add":
            _add(given, paths)
        else:
            _write_or_check(verb, paths)
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}.") from error


def _add(given: flags.FlagValues, runs: list[Path]) -> None:
    for name in ("name", "title", "metric"):
        if given[name].value is None:
            raise ConfigError(f"--{name} is needed: {given[name].help}.")
    kept = record(given.title, given.claimed, given.metric, given.command, runs)
    RECORDS.mkdir(exist_ok=True)
    text = json.dumps(kept, indent=1) + "\n"
    atomic_write(RECORDS / f"{given.name}.json", text.encode())


def _write_or_check(verb: str, documents: list[Path]) -> None:
    stale = [path for path in documents if path.read_text() != filled(path)]
    if verb == "write":
        for path in stale:
            atomic_write(path, filled(path).encode())
    elif stale:
        raise DataError(f"stale tables in {listed(map(str, stale))}; run `write` on them.")


if __name__ == "__main__":
    sys.exit(main())
