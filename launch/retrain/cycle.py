"""From new files to a version that serves, or not: steps that are each done once.

A step writes to the journal that it begins and that it is done. What a kill has interrupted is
begun again: each step finds what it has left, or does over what nobody has seen.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import jax

from launch.command import LaunchError
from launch.retrain import trial
from launch.retrain.config import Retraining
from launch.retrain.figures import FixedSet
from launch.retrain.incoming import Incoming, linked
from launch.retrain.journal import Journal
from launch.retrain.server import Server
from launch.serve.models import CURRENT, first
from lsm.config import Experiment, Start
from lsm.export.artefact import SIGNATURE, Artefact, digest
from lsm.export.statistics import of_run
from lsm.export.write import write
from lsm.files import readable_disk_errors
from lsm.train.fit import fit
from lsm.train.trained import load

STEPS = ("start", "train", "export", "gates", "publish", "offer", "canary", "promote", "end")
"""The steps of a version that is served; one that fails its trial has "withdraw" for "promote"."""

REJECTED = "rejected"
"""Folder beside the versions, of those that were published and then withdrawn."""


@dataclasses.dataclass(frozen=True)
class Cycles:
    """What all cycles share.

    Attributes:
      retraining: what is trained, and what it must keep.
      workdir: of the journal, the copies of data, and a folder for each cycle.
      models: where versions are published, as 1, 2, ..., with the link "current".
      server: which tries a version; None for files alone.
      journal: what was done.
      incoming: new files.
      data_dir: where datasets are.
      say: called with a line for each thing that a person wants to know.
    """

    retraining: Retraining
    workdir: pathlib.Path
    models: pathlib.Path
    server: Server | None
    journal: Journal
    incoming: Incoming
    data_dir: str | None
    say: Callable[[str], None]

    def run(self) -> bool:
        """Ends the cycle that was begun, or does one where there is new data; whether it did.

        The first version needs no new data.

        Raises:
          LsmError: a step cannot be done; the next call tries it again.
        """
        start = self._start()
        if start is None:
            return False
        Cycle(self, start["cycle"], start).run()
        return True

    def _start(self) -> dict[str, Any] | None:
        """Returns the first line of the cycle that is to be done."""
        starts, ends = self.journal.found("start"), self.journal.found("end")
        if len(starts) > len(ends):
            return starts[-1]
        number, serving = len(starts) + 1, self.serving
        self.incoming.collect(number)
        used = {name for start in starts for name in start["new"]}
        taken = [path.name for path in self.incoming.taken]
        new = [name for name in taken if name not in used]
        if not new and (starts or serving is not None):  # a first version that failed waits, too
            return None
        recent = self.retraining.recent
        data = taken if recent is None else taken[-recent:]
        runs = {r["version"]: r["cycle"] for r in self.journal.found("promote")}
        version = self._next()
        if serving and serving not in runs and self.retraining.experiment.start is None:
            line = f"version {serving} was not made in this --workdir: {version} begins anew."
            self.say(line)
        said = {
            "version": version,
            "serving": serving,
            "from_cycle": runs.get(serving),
            "new": new,
            "data": data,
        }
        return self.journal.append(number, "start", "done", **said)

    @property
    def serving(self) -> str | None:
        """The version that serves; None before the first. Raises LaunchError for a link to none."""
        if (self.models / SIGNATURE).exists():
            raise LaunchError(
                f"--models: {self.models} is a model itself; a folder of versions 1, 2, ... is "
                "needed: move it to a folder 1 in a new one."
            )
        there = self.models.is_dir() and any(p.name.isdigit() for p in self.models.iterdir())
        return first(self.models)[0] if there else None

    def _next(self) -> str:
        folders = [self.models, self.models / REJECTED]
        names = [path.name for folder in folders if folder.is_dir() for path in folder.iterdir()]
        names += [start["version"] for start in self.journal.found("start")]
        return str(max((int(name) for name in names if name.isdigit()), default=0) + 1)


class Cycle:
    """One cycle: from its first line in the journal to its last."""

    def __init__(self, cycles: Cycles, number: int, start: dict[str, Any]):
        self._of, self._number = cycles, number
        self._version, self._serving = start["version"], start["serving"]
        self._start = start
        self._folder = cycles.workdir / "cycles" / str(number)
        self._artefact = self._folder / "artefact"

    def run(self) -> None:
        """Does what is left of the cycle."""
        self._once("train", self._train)
        made = self._once("export", self._export)
        gates = self._once("gates", lambda: self._gates(made["signature"]))
        if not gates["passed"]:
            return self._end("rejected by the gates", gates["missed"])
        self._once("publish", lambda: self._publish(made["signature"]))
        if self._of.server is not None and self._serving is not None:
            offered = self._once("offer", self._offer)
            verdict = self._once("canary", lambda: self._canary(offered))
            if not verdict["passed"]:
                self._once("withdraw", self._withdraw)
                return self._end("withdrawn after its trial", verdict["missed"])
        self._once("promote", self._promote)
        return self._end("serves", [])

    def _once(self, step: str, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Does a step unless it is done; returns its line in the journal."""
        journal = self._of.journal
        if done := journal.found(step, "done", self._number):
            return done[-1]
        if not journal.found(step, "begun", self._number):
            journal.append(self._number, step, "begun")
        said = {"version": self._version} | act()
        return journal.append(self._number, step, "done", **said)

    def _end(self, verdict: str, missed: list[str]) -> None:
        told = f": {'; '.join(missed)}" if missed else ""
        self._of.say(f"version {self._version} {verdict}{told}")
        self._of.journal.append(self._number, "end", "done", version=self._version, verdict=verdict)

    @property
    def _run(self) -> pathlib.Path:
        return self._folder / "run"

    def _experiment(self) -> Experiment:
        """The experiment on old and new data, from the weights that serve."""
        experiment = self._of.retraining.on(self._folder / "data")
        before = self._start["from_cycle"]
        if before is None:
            return experiment
        run = self._of.workdir / "cycles" / str(before) / "run"
        return dataclasses.replace(experiment, start=Start(path=str(run.absolute())))

    def _train(self) -> dict[str, Any]:
        files = [self._of.incoming.store / name for name in self._start["data"]]
        linked(self._folder / "data", self._of.incoming.old(), files)
        result = fit(self._experiment(), self._run, data_dir=self._of.data_dir)
        if result.stopped == "interrupted":
            raise KeyboardInterrupt
        return {
            "run": str(self._run),
            "updates": result.step,
            "parameters": result.fingerprint,
            "data": {file.name: digest(file) for file in files},
        }

    def _export(self) -> dict[str, Any]:
        if not self._artefact.exists():  # it is there as a whole, or not
            experiment = self._experiment()
            run = load(self._run, experiment=experiment, devices=jax.devices()[:1])
            statistics = of_run(self._run, data_dir=self._of.data_dir)
            write(run, self._artefact, statistics=statistics)
        return {"signature": digest(Artefact.open(self._artefact).folder / SIGNATURE)}

    def _gates(self, signature: str) -> dict[str, Any]:
        self._require(self._artefact, signature)
        retraining = self._of.retraining
        fixed = FixedSet(retraining, retraining.experiment, self._of.data_dir)
        new, serving = fixed.figures(self._artefact), None
        if self._serving is not None:
            serving = fixed.figures(self._of.models / self._serving)
        missed = [line for gate in retraining.gates for line in gate.missed(new, serving)]
        said = {"decided_by": "gates", "passed": not missed, "missed": missed}
        return said | {"figures": new, "serving": self._serving, "serving_figures": serving}

    def _publish(self, signature: str) -> dict[str, Any]:
        """Copies what has passed, in one move."""
        target = self._of.models / self._version
        if self._serving is not None and not (self._of.models / CURRENT).is_symlink():
            self._point(self._serving)  # else a server would begin with the newest
        if not target.exists():
            self._require(self._artefact, signature)
            with readable_disk_errors(target):
                self._of.models.mkdir(parents=True, exist_ok=True)
                for left in self._of.models.glob(f".{self._version}.*"):
                    shutil.rmtree(left)
                part = tempfile.mkdtemp(prefix=f".{self._version}.", dir=self._of.models)
                shutil.copytree(self._artefact, part, dirs_exist_ok=True)  # with its mode
                for file in filter(pathlib.Path.is_file, pathlib.Path(part).rglob("*")):
                    with file.open("rb") as whole:
                        os.fsync(whole.fileno())  # content before name: the power may be cut
                os.rename(part, target)
        self._require(target, signature)
        return {"folder": str(target)}

    def _require(self, folder: pathlib.Path, signature: str) -> None:
        """Raises LsmError where an artefact is not the one that the journal knows."""
        if digest(Artefact.open(folder).folder / SIGNATURE) != signature:
            raise LaunchError(f"{folder}: is another model than the journal says; remove it.")

    def _offer(self) -> dict[str, Any]:
        retraining = self._of.retraining
        fixed = FixedSet(retraining, retraining.experiment, self._of.data_dir)
        model = self._artefact
        return trial.offer(
            self._of.server, retraining.canary, self._serving, self._version, fixed, model
        )

    def _canary(self, offered: dict[str, Any]) -> dict[str, Any]:
        canary = self._of.retraining.canary
        return trial.watched(self._of.server, canary, self._serving, self._version, offered)

    def _promote(self) -> dict[str, Any]:
        """Gives the version all requests, at the server and for the next one that starts."""
        server = self._of.server
        if server is not None and self._serving is not None:
            server.load(self._version)
            server.share({self._version: 1})
        self._point(self._version)
        if server is not None and self._serving in server.versions():
            server.unload(self._serving)
        by = "gates" if server is None or self._serving is None else "canary"
        return {"decided_by": by}

    def _point(self, version: str) -> None:
        link, part = self._of.models / CURRENT, self._of.models / f".{CURRENT}.part"
        with readable_disk_errors(link):
            part.unlink(missing_ok=True)
            part.symlink_to(version)
            part.replace(link)

    def _withdraw(self) -> dict[str, Any]:
        """Gives all requests back, and takes the version from where servers look."""
        server = self._of.server
        server.load(self._serving)
        server.share({self._serving: 1})
        if self._version in server.versions():
            server.unload(self._version)
        source, target = (f / self._version for f in (self._of.models, self._of.models / REJECTED))
        if source.exists():
            with readable_disk_errors(target):
                target.parent.mkdir(exist_ok=True)
                source.rename(target)
        return {"decided_by": "canary", "folder": str(target)}


def as_text(records: list[dict[str, Any]]) -> list[str]:
    """Returns the journal for people, a line each."""
    always = ("time", "by", "cycle", "step", "state", "hash")
    return [
        f"{r['time'][:19]}  {r['by']}  cycle {r['cycle']}  {r['step']} {r['state']}  "
        + json.dumps({key: value for key, value in r.items() if key not in always})
        for r in records
    ]
