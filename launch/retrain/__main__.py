"""Trains a served model on as data comes in, and serves what passes its gates.

    python -m launch.retrain --config=experiments/configs/digits/retrain.py --watch=incoming \\
        --workdir=runs/retrain --models=exports/digits --server=http://127.0.0.1:8000 \\
        --key_file=admin.key --model=digits

--config has a function `get_retraining(arg=None)` that returns a `launch.retrain.Retraining`. Every
step is in WORKDIR/journal.jsonl; killed at any, the same command goes on. See docs/retraining.md.
"""

import dataclasses
import logging
import pathlib
import sys
import time
from collections.abc import Sequence

from launch.command import LaunchError, at_least, flags_of
from launch.retrain.config import Retraining
from launch.retrain.journal import Journal
from lsm import command_line
from lsm.config import flags as config_flags
from lsm.files import exclusive, expanded, nothing_at, readable_disk_errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrain:
    """Where things are.

    Attributes:
      config: FILE.py or FILE.py:arg with `get_retraining`.
      watch: folder in which new data files appear.
      workdir: folder of the journal, the runs, and copies of the data.
      models: folder in which versions are published, that of a server's NAME=DIR.
      server: address of the server that serves it, http://HOST:PORT; without one, files alone.
      key_file: file with a key of the scopes admin, metrics and infer.
      model: its name at the server; by default the experiment's.
      data_dir: where datasets are; default TFDS's own place.
      once: does what there is to do and ends, for cron.
      every: seconds between two looks for new files.
      show: prints the journal for people and ends.
    """

    config: str
    watch: str
    workdir: str
    models: str
    server: str | None = None
    key_file: str | None = None
    model: str | None = None
    data_dir: str | None = None
    once: bool = False
    every: float = 30.0
    show: bool = False

    def __post_init__(self):
        at_least("every", self.every, 1)
        if self.server is None and (self.key_file or self.model):
            raise LaunchError("--key_file, --model: only with --server.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    return command_line.status(lambda: _act(words), "; the same command continues")


def _act(argv: Sequence[str]) -> None:
    rest, overrides = config_flags.split_overrides(argv)
    given = flags_of(Retrain)
    command_line.parse(given, rest, doc=__doc__, advice=config_flags.ADVICE)
    flags = Retrain(**{name: given[name].value for name in given})
    workdir = expanded(flags.workdir, "--workdir").absolute()
    if flags.show:
        from launch.retrain.cycle import as_text

        journal = workdir / "journal.jsonl"
        if not journal.exists():
            raise LaunchError(f"--workdir: {nothing_at(journal)}")
        command_line.show(as_text(Journal(journal).records))
        return
    retraining = config_flags.read(flags.config, Retraining, overrides, "get_retraining")
    with readable_disk_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    taken = LaunchError(f"--workdir: another retraining is in progress in {workdir}.")
    with exclusive(workdir / ".lock", taken):
        _say_what_lsm_tells()
        cycles = _cycles(flags, retraining, workdir)
        while cycles.run() or not flags.once:
            time.sleep(0 if flags.once else flags.every)


def _cycles(flags: Retrain, retraining: Retraining, workdir: pathlib.Path):
    from launch.retrain.cycle import Cycles
    from launch.retrain.incoming import Incoming
    from lsm.train.trainer import prepare_jax

    prepare_jax()

    def say(line: str) -> None:
        print(line, flush=True)

    data_dir = flags.data_dir and str(expanded(flags.data_dir, "--data_dir").absolute())
    journal = Journal(workdir / "journal.jsonl")
    watch = expanded(flags.watch, "--watch").absolute()
    incoming = Incoming(retraining, watch, workdir / "data", journal, data_dir, say)
    models = expanded(flags.models, "--models").absolute()
    server = _server(flags, retraining)
    return Cycles(retraining, workdir, models, server, journal, incoming, data_dir, say)


def _server(flags: Retrain, retraining: Retraining):
    if flags.server is None:
        return None
    from launch.retrain.server import Server, checked_url

    key = None
    if flags.key_file is not None:
        path = expanded(flags.key_file, "--key_file")
        try:
            key = path.read_text().strip()
        except (OSError, ValueError) as error:
            raise LaunchError(f"--key_file: {path}: cannot be read: {error}.") from error
    return Server(checked_url(flags.server), key, flags.model or retraining.experiment.name)


def _say_what_lsm_tells() -> None:
    told = logging.getLogger("lsm")
    told.setLevel(logging.WARNING)
    told.addHandler(logging.StreamHandler(sys.stderr))
    told.propagate = False


if __name__ == "__main__":
    sys.exit(main())
