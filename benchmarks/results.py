"""Result tables for the README and the docs, made from runs and never typed.

    python -m benchmarks.results run --data_dir=DATA               # all that is not run, or older
    python -m benchmarks.results run cifar_cnn --data_dir=DATA     # one of them
    python -m benchmarks.results write README.md docs/*.md experiments/configs/*/*.py
    python -m benchmarks.results check README.md docs/*.md experiments/configs/*/*.py

`run` trains each of `benchmarks.cases`, seed by seed, in `runs/results`, and keeps what the
`result.json` of its runs say in `benchmarks/results/NAME.json`, to be committed. Interrupted, the
same command continues. A record holds a digest of the code that its runs depend on
(`benchmarks.sources`); where that has changed since, the record is older than its code, and `run`
makes it again, or confirms it where it takes more than a minute (`benchmarks.confirm`).

`write` fills every place that a document gives for a table, one row for each name:

    <!-- results:cifar_cnn, mnist_mlp -->
    <!-- /results -->

and every line `Measured (cifar_cnn):` in the header of a config, with the indented ones below it.

`check` names the records that are older than their code, and exits with status 1 where a document
does not hold what `write` would put there. The spread of several seeds is the standard deviation
of a sample (n - 1), then the lowest and highest.
"""

import functools
import json
import math
import re
import resource
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.cases import CASES, Case
from benchmarks.confirm import WORTH, begins_alike, opening
from benchmarks.documents import keep, machine, short_revision, write_or_check
from lsm import command_line
from lsm.errors import ConfigError, DataError, listed, nearest
from lsm.files import plain_json
from lsm.run.result import Result, git_revision

CPU_SECONDS = "cpu_seconds"
"""In a workdir, what the run took of all cores together; beside other work, wall time is longer."""
RECORDS = Path(__file__).with_suffix("")
_TABLE = re.compile(r"^<!-- results:(.*?) -->\n(.*?)^<!-- /results -->$", re.DOTALL | re.MULTILINE)
_LINE = re.compile(r"^Measured \((\w+)\):.*\n(?:  \S.*\n)*", re.MULTILINE)
_SHARES = ("accuracy", "precision", "recall", "f1")
_COLUMNS = ("system", "claimed", "measured: its exact form", "best")


def run(name: str, data_dir: str | None) -> None:
    """Makes the record of a case: confirms the one that there is, or trains what is not trained.

    Raises:
      DataError: a run failed or was interrupted, or the code changed meanwhile.
    """
    case, digest, old = CASES[name], CASES[name].digest, _load(name)
    # The digest is in the name, so that no run continues one of older code.
    workdirs = [Path(f"runs/results/{name}-{digest[:12]}-{seed}") for seed in range(case.seeds)]
    commands = [case.run(seed, workdir, data_dir) for seed, workdir in enumerate(workdirs)]
    if old and _stands(old, case) and begins_alike(commands[0], workdirs[0], old["opening"]):
        made = old | {"digest": digest, "confirmed": git_revision()}
    else:
        for command, workdir in zip(commands, workdirs, strict=True):
            _train(name, command, workdir)
        made = record(case, digest, workdirs)
    if digest != case.digest:
        raise DataError(f"{name}: the code changed while it ran; run it again.")
    RECORDS.mkdir(exist_ok=True)
    keep(RECORDS / f"{name}.json", made)


def _stands(old: Mapping[str, Any], case: Case) -> bool:
    """Returns whether a record is one of this case, and dear enough to be confirmed only."""
    seconds = statistics.fmean(run["wall_time"] for run in old["runs"])
    asked = (old["command"], old["metric"], len(old["runs"]))
    same = asked == (case.command, case.metric, case.seeds)
    return same and seconds > WORTH and "opening" in old


def _train(name: str, command: Sequence[str], workdir: Path) -> None:
    if (workdir / "result.json").exists():
        return
    # The sum over a run's pieces; unknown, and no file, once this process was killed in one.
    cpu, taken = workdir / CPU_SECONDS, None if workdir.exists() else 0.0
    if cpu.exists():
        taken = float(cpu.read_text())
        cpu.unlink()
    before = _cpu_seconds()
    done = subprocess.run(command)
    if taken is not None and workdir.exists():
        cpu.write_text(f"{taken + _cpu_seconds() - before:.1f}")
    if done.returncode or not (workdir / "result.json").exists():
        raise DataError(f"{name}: {workdir} did not end well; see above.")


def _cpu_seconds() -> float:
    """What the processes that were waited for have taken, of all cores together."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def record(case: Case, digest: str, runs: Sequence[Path]) -> dict:
    """Returns what the results of `runs`, one for each seed, say about the metric of a case.

    Raises:
      DataError: a run lacks the metric.
    """
    kept = []
    for run in runs:
        result, cpu = Result.load(run), run / CPU_SECONDS
        kept.append(
            {
                "seed": result.seed,
                "value": _figure(run, result, case.metric),
                "step": result.step,
                "wall_time": round(result.wall_time, 1),
                "cpu_time": float(cpu.read_text()) if cpu.exists() else None,
                "fingerprint": result.fingerprint,
                "git_revision": result.git_revision,
                "hardware": result.hardware,
                "versions": result.versions,
            }
        )
    about = {"command": case.command, "metric": case.metric, "digest": digest}
    about["opening"] = opening(runs[0])
    return plain_json({**about, "runs": kept})


def _figure(run: Path, result: Result, metric: str) -> float:
    figures = {f"{s}/{name}": v for s, row in result.metrics.items() for name, v in row.items()}
    if metric not in figures:
        hint = nearest(metric, figures)
        raise DataError(f"{run} has no {metric!r}; it has {listed(figures)}.{hint}")
    return figures[metric]


def older(names: Sequence[str]) -> list[str]:
    """Returns the names of cases without a record of the code as it is now."""
    return [name for name in names if (_load(name) or {}).get("digest") != CASES[name].digest]


def _load(name: str) -> dict | None:
    path = RECORDS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def table(names: Sequence[str]) -> str:
    """Returns the cases as a Markdown table, one row each."""
    rows = [_COLUMNS, ["---"] * len(_COLUMNS), *map(_row, names)]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _row(name: str) -> list[str]:
    case = CASES[name]
    cells = [f"{case.title}<br>`{case.command}`", case.claimed, _cell(name), "-"]
    if case.best:
        best = CASES[case.best]
        cells[-1] = f"{_cell(case.best)}<br>{best.title}: `{best.command}`"
    return [cell.replace("|", "\\|").replace("\n", " ") for cell in cells]


def _cell(name: str) -> str:
    kept = _load(name)
    return "<br>".join(_measured(kept)) if kept else "not run yet"


def _measured(kept: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the figure with its seeds, and time per run, hardware and revision, as texts."""
    runs = kept["runs"]
    machines = dict.fromkeys(machine(run["hardware"]) for run in runs)
    revisions = dict.fromkeys(short_revision(run["git_revision"]) for run in runs)
    time = duration(statistics.fmean(run["wall_time"] for run in runs))
    times = [run.get("cpu_time") for run in runs]
    cpu = "" if None in times else f", {duration(statistics.fmean(times))} of CPU time,"
    figure = f"{kept['metric']} {spread([run['value'] for run in runs], kept['metric'])}"
    seeds = f"{len(runs)} seed" + "s" * (len(runs) > 1)
    where = f"{time} a run{cpu} on {'; '.join(machines)}, at {', '.join(revisions)}"
    if confirmed := kept.get("confirmed"):
        where += f" (begins alike at {short_revision(confirmed)})"
    return f"{figure}, {seeds}", where


def line(name: str) -> str:
    """Returns the lines of a record for the header of a config; one where there is none."""
    kept = _load(name)
    if not kept:
        return f"Measured ({name}): not run yet.\n"
    text = f"Measured ({name}): {', '.join(_measured(kept))}."
    return textwrap.fill(text, 99, subsequent_indent="  ", break_on_hyphens=False) + "\n"


def spread(values: Sequence[float | None], metric: str) -> str:
    """Returns "70.12 % ± 0.31 (69.80 to 70.41)", or one number where there is one seed.

    Accuracy and its kin in per cent, two decimals; any other figure with four digits of its mean.
    """
    if None in values:
        return "not finite"
    is_share = metric.rpartition("/")[2].endswith(_SHARES)
    scaled = [100 * value if is_share else value for value in values]
    mean = statistics.fmean(scaled)
    digits = math.floor(math.log10(abs(mean))) if mean else 0
    form = f".{max(3 - digits, 0)}f" if -4 < digits < 6 else ".3e"
    form = ".2f" if is_share or not mean else form
    text = f"{mean:{form}}" + (" %" if is_share else "")
    if len(scaled) == 1:
        return text
    others = (statistics.stdev(scaled), min(scaled), max(scaled))
    return "{} ± {} ({} to {})".format(text, *(f"{other:{form}}" for other in others))


def duration(seconds: float) -> str:
    """Returns seconds as "42 s", "12 min 05 s" or "1 h 02 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_of_hour = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_of_hour:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def filled(document: Path) -> str:
    """Returns the text of `document` with every table and line as the records have it now.

    Raises:
      DataError: a table names a case that is not there, or is not closed.
    """
    text = document.read_text()
    known = functools.partial(_known, document)

    def fill(place: re.Match) -> str:
        names = [*map(known, re.split(r"[,\s]+", place[1].strip()))]
        return f"<!-- results:{place[1]} -->\n{table(names)}<!-- /results -->"

    opened = len(re.findall(r"^<!-- results:", text, re.MULTILINE))
    new, closed = _TABLE.subn(fill, text)
    if opened != closed:
        raise DataError(f"{document}: a results: table is not closed by <!-- /results -->.")
    return _LINE.sub(lambda found: line(known(found[1])), new)


def _known(document: Path, name: str) -> str:
    if name not in CASES:
        hint = nearest(name, CASES)
        raise DataError(f"{document}: there is no case {name!r}; there is {listed(CASES)}.{hint}")
    return name


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `run`, `write` or `check`; returns the exit status."""
    given = flags.FlagValues()
    flags.DEFINE_string("data_dir", None, "where the datasets of `run` are", given)
    return command_line.run(_act, given, argv, doc=__doc__, words=True)


def _act(given: flags.FlagValues, words: list[str]) -> None:
    verb, *names = words or [""]
    command_line.require_one_of(verb, ("run", "write", "check"))
    if verb == "run":
        for name in names:
            command_line.require_one_of(name, CASES)
        _run_all(older(names or CASES), given.data_dir)
        return
    if not names:
        raise ConfigError(f"{verb}: documents are needed after it.")
    if verb == "check" and (behind := older(CASES)):
        print(f"older than their code, or not run yet: {', '.join(behind)}; `run` runs them.")
    write_or_check(verb, names, filled)


def _run_all(names: Sequence[str], data_dir: str | None) -> None:
    failed = []
    for name in names:
        print(f"{name}: {CASES[name].command}", flush=True)
        try:
            run(name, data_dir)
        except DataError as error:  # the others need not wait for it
            failed.append(str(error))
    if failed:
        raise DataError(" ".join(failed))


if __name__ == "__main__":
    sys.exit(main())
