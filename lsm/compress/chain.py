"""A chain of links: made one after the other, measured, held to what they may cost, resumed."""

import dataclasses
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable

from lsm.compress import report
from lsm.compress.measure import BATCHES, Subject, latencies
from lsm.compress.recipe import Recipe
from lsm.compress.rows import Row, missed
from lsm.config import schema
from lsm.config.origin import CONFIG, as_now, experiment_of, origin_of
from lsm.errors import ConfigError, TrainingError, listed, nearest
from lsm.export.write import export
from lsm.files import atomic_write, exclusive, expanded, parsed_json, readable_disk_errors
from lsm.run.result import Result, fingerprint, git_revision, hardware, versions
from lsm.train.predictions import evaluate_run
from lsm.train.trained import load

STATE = "compress.json"
"""The file of a chain: recipe, source, and a row for each link that is done."""

EXPORT = "export"
"""The folder, in that of a chain, that the last result is exported to."""


def compress(
    workdir: os.PathLike | str,
    recipe: Recipe,
    out: os.PathLike | str,
    *,
    data_dir: str | None = None,
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Runs a recipe on a trained model, or goes on where it was interrupted.

    Link n of the kind Distil makes a run in `out/n_distil`. After each, `out/compress.json`,
    `compress.md` and `frontier.png` have all rows. A link that costs more than it may ends the
    chain; what is made stays.

    Args:
      workdir: folder of the run.
      recipe: what is done.
      out: folder of the chain, new or of the same recipe and source.
      data_dir: where datasets are prepared; None is where the run has found them.
      say: called with a line for each row.

    Returns:
      The rows, the source's first.

    Raises:
      ConfigError: `out` holds another chain, or a link does not fit the model.
      TrainingError: a link misses one of its bounds.
      LsmError: whatever a link raises.
    """
    source, folder = (
        pathlib.Path(os.path.abspath(expanded(path, flag)))  # without "..", and links as they are
        for path, flag in ((workdir, "--workdir"), (out, "--out"))
    )
    run = load(source, experiment=experiment_of(source))
    if not getattr(run.experiment.data, recipe.split):
        raise ConfigError(
            f"Recipe.split: {recipe.split!r} given; the run's data.{recipe.split} is None."
        )
    parameters = {"workdir": str(source), "step": run.step, "params": fingerprint(run.params)}
    record = {"source": parameters, "recipe": schema.to_json(recipe)}
    with readable_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    taken = ConfigError(f"--out: another chain is in progress in {folder}.")
    with exclusive(folder / ".lock", taken):
        rows, exported = _saved(folder, record, recipe)
        data_dir = data_dir or origin_of(source).data_dir
        return _Chain(source, recipe, folder, data_dir, record, say, rows, exported).run()


@dataclasses.dataclass
class _Chain:
    """A chain at work; what is compared when it goes on is in `record`."""

    source: pathlib.Path
    recipe: Recipe
    folder: pathlib.Path
    data_dir: str | None
    record: dict
    say: Callable[[str], None]
    rows: list[Row]
    exported: str | None  # the name of a row
    subjects: dict[str, Subject] = dataclasses.field(default_factory=dict)

    def run(self) -> list[Row]:
        """See `compress`."""
        if not self.rows:
            self._add("0 source", self.source, None)
        steps = zip(_names(self.recipe), self.recipe.links, strict=True)
        for number, (name, link) in enumerate(steps, 1):
            if number >= len(self.rows):
                target, begun = _folder_of(self.folder, name), time.perf_counter()
                self._save()  # what is in that folder from here on is this link's
                made = (target / CONFIG).exists()  # before an interruption, and not measured
                link.run(pathlib.Path(self.rows[-1].workdir), target, self.source, self.data_dir)
                here = None if made else time.perf_counter() - begun
                self._add(name, target, _seconds(target, here))
            told = "; ".join(missed(self.recipe, link, self.rows[0], self.rows[number]))
            if told:
                raise TrainingError(f"link {name}: {told}. What is made stays in {self.folder}.")
        if self.recipe.export:
            self._export()
        return self.rows

    def _export(self) -> None:
        """Exports the last result, unless that is there; an earlier one is there until it is."""
        artefact, made, last = self.folder / EXPORT, self.folder / ".export", self.rows[-1]
        if artefact.exists() and self.exported == last.name:
            return
        shutil.rmtree(made, ignore_errors=True)
        export(last.workdir, made)
        shutil.rmtree(artefact, ignore_errors=True)
        made.rename(artefact)
        self.exported = last.name
        self._save()
        self.say(f"exported: {artefact}")

    def _add(self, name: str, workdir: pathlib.Path, seconds: float | None) -> None:
        """Measures a run, and the speed of all before it once more, and writes all rows."""
        value = self._value(workdir)
        subjects = [self._subject(row.workdir) for row in self.rows]
        subjects.append(self._subject(str(workdir)))
        found = latencies(subjects)
        ratios = {rows: found[-1][rows].median / found[0][rows].median for rows in BATCHES}
        row = Row(name, str(workdir), value, subjects[-1].size, found[-1], ratios, seconds)
        self.rows = [
            dataclasses.replace(row, latency=latency)
            for row, latency in zip([*self.rows, row], found, strict=True)
        ]
        self._write()
        self.say(report.line(self.recipe, self.rows[0], self.rows[-1]))

    def _subject(self, workdir: str) -> Subject:
        if workdir not in self.subjects:
            path = pathlib.Path(workdir)
            self.subjects[workdir] = Subject(path, self.recipe.split, self.data_dir)
        return self.subjects[workdir]

    def _value(self, workdir: pathlib.Path) -> float:
        _, figures = evaluate_run(experiment_of(workdir), workdir, data_dir=self.data_dir)
        known, metric = figures[self.recipe.split], self.recipe.metric
        if metric not in known:
            raise ConfigError(
                f"Recipe.metric: no metric {metric!r}; this task has {listed(known)}."
                f"{nearest(metric, known)}"
            )
        return known[metric]

    def _write(self) -> None:
        atomic_write(self.folder / "compress.md", report.markdown(self.recipe, self.rows).encode())
        atomic_write(self.folder / "frontier.png", report.picture(self.recipe, self.rows))
        self._save()  # last: with its row a link counts as done

    def _save(self) -> None:
        rows = [dataclasses.asdict(row) for row in self.rows]
        made_with = {"hardware": hardware(), "versions": versions(), "git_revision": git_revision()}
        state = {**self.record, "rows": rows, "exported": self.exported, **made_with}
        atomic_write(self.folder / STATE, json.dumps(state, indent=2).encode())


def _names(recipe: Recipe) -> list[str]:
    return [f"{n} {type(link).__name__.lower()}" for n, link in enumerate(recipe.links, 1)]


def _folder_of(folder: pathlib.Path, name: str) -> pathlib.Path:
    return folder / name.replace(" ", "_")


def _saved(folder: pathlib.Path, record: dict, recipe: Recipe) -> tuple[list[Row], str | None]:
    """Returns the rows that are done, and the name of that which is exported.

    Raises:
      ConfigError: they are of another chain, or the file is damaged.
    """
    path, asked = folder / STATE, record["recipe"]
    if not path.exists():
        # A link takes what it finds in its folder for its own.
        own = [*(_folder_of(folder, name) for name in _names(recipe)), folder / EXPORT]
        if others := [path.name for path in own if path.exists()]:
            raise ConfigError(
                f"--out: {folder} holds {listed(others)}, and no {STATE} that says of what; give a "
                "new folder."
            )
        return [], None
    try:
        saved = parsed_json(path.read_text())
        first, *rows = (Row.from_json(row) for row in saved["rows"])
        # The folder may have been moved.
        rows = [dataclasses.replace(r, workdir=str(_folder_of(folder, r.name))) for r in rows]
        # Links to come may be others now, if nothing is made of the next yet.
        begun = len(rows) + any(folder.glob(f"{len(rows) + 1}_*"))
        done = [
            {**r, "links": r["links"][:begun]} for r in (as_now(saved["recipe"], Recipe), asked)
        ]
        changes = {
            "source": schema.differences(saved["source"], record["source"]),
            "recipe": schema.differences(*done, schema.free_fields(recipe)),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}); give a new --out.") from error
    for what, found in changes.items():
        if found:
            raise ConfigError(
                f"--out: {folder} holds a chain of another {what}: {schema.told(found)}; give a "
                "new folder."
            )
    return [first, *rows], saved.get("exported")


def _seconds(workdir: pathlib.Path, here: float | None) -> float | None:
    """Of a training, those of all its pieces; else those of this call, where it made the run."""
    for folder in (workdir, workdir / "training"):
        if (folder / "result.json").exists():
            return max(here or 0.0, Result.load(folder).wall_time)
    return here
