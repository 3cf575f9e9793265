"""New files: those that are whole are copied, looked at as the training will, and taken or not."""

import dataclasses
import glob
import hashlib
import os
import pathlib
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence

from launch.command import LaunchError
from launch.retrain.config import Retraining
from launch.retrain.journal import Journal
from lsm.data.files import places
from lsm.errors import DataError, LsmError, listed
from lsm.files import expanded, nothing_at, readable_disk_errors
from lsm.train.trainer import Trainer

DAMAGED = "damaged"
"""Folder in the watched one, for what is set aside."""

_TAKEN, _ASIDE = "take", "set aside"


@dataclasses.dataclass(frozen=True)
class Incoming:
    """The watched folder, and the copies that are trained on.

    Attributes:
      retraining: what is trained.
      watch: where new files appear.
      store: folder of the copies, by content; nobody else writes there.
      journal: which were taken and which set aside.
      data_dir: where datasets are.
      say: called with a line for each file.
    """

    retraining: Retraining
    watch: pathlib.Path
    store: pathlib.Path
    journal: Journal
    data_dir: str | None
    say: Callable[[str], None]

    @property
    def taken(self) -> list[pathlib.Path]:
        """The copies of all files that were taken, the oldest first."""
        return [self.store / record["copy"] for record in self.journal.found(_TAKEN)]

    def collect(self, cycle: int) -> list[str]:
        """Takes the sound ones among new files, sets others aside; returns the names it took.

        Raises:
          LaunchError: the folder is not there.
        """
        if not self.watch.is_dir():
            raise LaunchError(f"--watch: {nothing_at(self.watch)}")
        self._finish_aside()
        known = {tuple(record["stamp"]) for record in self.journal.found(_TAKEN)}
        whole = [path for path in self.watch.iterdir() if self._is_whole(path)]
        whole.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))  # the newest last
        found = [path for path in whole if (path.name, *_stamp(path)) not in known]
        if found:  # what is wrong with the old data or the config is no fault of a new file
            experiment = dataclasses.replace(self.retraining.experiment, start=None)
            Trainer.of(experiment, self.data_dir)
        return [name for path in found for name in self._looked_at(path, cycle)]

    def _is_whole(self, path: pathlib.Path) -> bool:
        if path.name.startswith(".") or not path.is_file() or places.kind(path) is None:
            return False
        if self.retraining.marker is not None:
            return path.with_name(path.name + self.retraining.marker).exists()
        return time.time() - path.stat().st_mtime >= self.retraining.settle

    def _looked_at(self, path: pathlib.Path, cycle: int) -> list[str]:
        stamp = _stamp(path)
        copy, digest = self._copied(path)
        if _stamp(path) != stamp:
            return []  # it is still being written: next time
        said = {"file": path.name, "sha256": digest, "stamp": [path.name, *stamp]}
        same = [r for r in self.journal.found(_TAKEN) if r["sha256"] == digest]
        try:
            if same:
                raise DataError(f"its content is that of {same[0]['file']}.")
            self._check(copy)
        except LsmError as error:
            if not same:
                copy.unlink(missing_ok=True)
            reason = str(error).replace(str(copy), path.name)
            self.journal.append(cycle, _ASIDE, "begun", **said, reason=reason)
            self._aside(path)
            self.journal.append(cycle, _ASIDE, "done", **said, reason=reason)
            self.say(f"{path.name}: set aside: {reason}")
            return []
        self.journal.append(cycle, _TAKEN, "done", **said, copy=copy.name)
        return [path.name]

    def _copied(self, path: pathlib.Path) -> tuple[pathlib.Path, str]:
        """Copies a file into the store; what is looked at later cannot change any more."""
        digest, part = hashlib.sha256(), self.store / f".{path.name}.part"
        with readable_disk_errors(self.store):
            self.store.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as source, part.open("wb") as target:
                while piece := source.read(1 << 20):
                    digest.update(piece)
                    target.write(piece)
                target.flush()
                os.fsync(target.fileno())
            copy = self.store / f"{digest.hexdigest()[:24]}{_endings(path)}"
            part.replace(copy)
        return copy, digest.hexdigest()

    def _check(self, copy: pathlib.Path) -> None:
        """Reads all of a file, and asks whether the task can learn from it beside the old data.

        Raises:
          LsmError: it cannot be read, has other columns or classes, or examples that are none.
        """
        retraining = self.retraining
        source = retraining.files
        if copy.suffix == ".npz":
            _check_sums(copy)
        fixed = getattr(retraining.experiment.data, retraining.split)
        before = source.open(fixed, self.data_dir)
        alone = dataclasses.replace(source, path=str(copy)).open("train", self.data_dir)
        for name, one in before.spec.items():
            if name not in alone.spec:
                raise DataError(f"column {name!r} is not there; {one.shape} is needed.")
            # Where classes are put side by side, it is as wide as the file has of them.
            if name not in before.joined and alone.spec[name].shape != one.shape:
                found = alone.spec[name].shape
                raise DataError(f"column {name!r} is {found}; {one.shape} is needed.")
        for name, known in before.names.items():
            if new := [one for one in alone.names.get(name, ()) if one not in known]:
                raise DataError(f"it has classes that the old data has not: {listed(new)}.")
        folder = self.store / ".looked_at"
        linked(folder, self.old(), [copy])
        experiment = dataclasses.replace(retraining.on(folder), start=None)
        trainer = Trainer.of(experiment, self.data_dir)
        trainer.check_examples("train")

    def old(self) -> dict[str, list[pathlib.Path]]:
        """The old data's files by split."""
        path = expanded(self.retraining.files.path, "Files.path")
        here = self.data_dir is None or path.exists() or any(glob.iglob(str(path)))
        return places.find(path if here else pathlib.Path(self.data_dir) / path)

    def _aside(self, path: pathlib.Path) -> None:
        with readable_disk_errors(self.watch):
            (self.watch / DAMAGED).mkdir(exist_ok=True)
            path.replace(self.watch / DAMAGED / path.name)

    def _finish_aside(self) -> None:
        """Moves what was being set aside at a kill; a file that somebody has put back is new."""
        begun, done = (self.journal.found(_ASIDE, state) for state in ("begun", "done"))
        for record in begun[len(done) :]:
            path = self.watch / record["file"]
            if path.is_file() and [path.name, *_stamp(path)] == record["stamp"]:
                self._aside(path)
            said = {key: record[key] for key in ("file", "sha256", "stamp", "reason")}
            self.journal.append(record["cycle"], _ASIDE, "done", **said)


def _check_sums(path: pathlib.Path) -> None:
    """Compares the checksums in an .npz, which nobody does who maps it into memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    if damaged:
        raise DataError(f"{path}: the checksum of {damaged} is another.")


def linked(
    folder: pathlib.Path, old: dict[str, list[pathlib.Path]], new: Sequence[pathlib.Path]
) -> None:
    """Makes a folder of links: the old files by split, and new ones in "train"."""
    with readable_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for link in folder.iterdir():
            link.unlink()
        for split, files in (old | {"train": [*old.get("train", ()), *new]}).items():
            for number, file in enumerate(files):
                link = folder / f"{split}-{number:05d}{_endings(file)}"
                link.symlink_to(file.resolve())


def _endings(path: pathlib.Path) -> str:
    last = path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]
    return "".join(last)


def _stamp(path: pathlib.Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
