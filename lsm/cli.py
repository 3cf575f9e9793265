"""The command line of every experiment: `python -m experiments.NAME --config=... --workdir=...`."""

import logging as stdlib_logging
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence

from absl import app, flags, logging

from lsm import processes
from lsm.config import Experiment
from lsm.config import flags as config_flags
from lsm.cpu import libtpu
from lsm.errors import ConfigError, LsmError, listed, nearest
from lsm.run.result import Result
from lsm.train import evaluate_run, fit, predict_run, state_table

_CONFIG = flags.DEFINE_string("config", None, "config file, FILE.py or FILE.py:arg")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; default runs/NAME")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "where datasets are; default TFDS's own place")
_MODE = flags.DEFINE_string(
    "mode",
    "train",
    "train; eval: evaluate the run in --workdir; predict: write its predictions of every example "
    "there; or table: print where arrays go",
)
_HELP = flags.DEFINE_bool("config_help", False, "print every field of the config, and exit")
_CHANGE = flags.DEFINE_bool("allow_config_change", False, "continue a run with another config")
_PROFILE = flags.DEFINE_string("profile", "", "FIRST:LAST steps to trace into WORKDIR/profile")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0 of several; or auto: what JAX detects"
)
_PROCESSES = flags.DEFINE_integer("processes", None, "number of processes, with --coordinator")
_PROCESS = flags.DEFINE_integer("process", None, "number of this process, 0 to processes - 1")
_START_TIMEOUT = flags.DEFINE_float(
    "start_timeout", 300.0, "seconds to wait for all processes to come", lower_bound=1
)
_PEER_TIMEOUT = flags.DEFINE_float(
    "peer_timeout", 60.0, "seconds of silence until a process is taken for lost", lower_bound=1
)
_MODES = ("train", "eval", "predict", "table")
_OWN = (
    "config",
    "workdir",
    "data_dir",
    "mode",
    "config_help",
    "allow_config_change",
    "profile",
    "coordinator",
    "processes",
    "process",
    "start_timeout",
    "peer_timeout",
)


def main(default: str | os.PathLike) -> None:
    """Runs the experiment of `--config` (or the file `default`) and exits.

    Exit status: 0 when done, or when interrupted and saved; 1 after one line on stderr for
    anything that the user can mend.
    """
    overrides: dict[str, str] = {}
    if sys.stdout is None:  # closed by the caller
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    libtpu.ignore_without_tpu()

    def parse(argv: Sequence[str]) -> list[str]:
        rest, found = split_overrides(argv)
        overrides.update(found)
        return _parse_flags(rest)

    app.run(lambda _: sys.exit(_one_line(lambda: _run(default, overrides))), flags_parser=parse)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--config.a.b=value` and `--config.a.b value` out of `argv`.

    Returns:
      What is left, and the overrides {"a.b": "value"}.
    """
    rest, found = [], {}
    words = iter(argv)
    for word in words:
        if not word.startswith("--config."):
            rest.append(word)
            continue
        path, equals, text = word.removeprefix("--config.").partition("=")
        if not equals:
            text = next(words, None)
            if text is None or text.startswith("--"):
                _fail(f"{word}: a value is needed, as in {word}=VALUE.")
        found[path] = text
    return rest, found


def _run(default: str | os.PathLike, overrides: Mapping[str, str]) -> None:
    if not _HELP.value:
        _join()
    experiment = config_flags.load(_CONFIG.value or str(default), overrides)
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{experiment.name}")
    if _HELP.value:
        print("\n".join(config_flags.describe(experiment)))
    elif _MODE.value == "eval":
        step, figures = evaluate_run(experiment, workdir, data_dir=_DATA_DIR.value)
        print(f"{experiment.name}: step {step}, {summary(figures)}")
    elif _MODE.value == "predict":
        step, files = predict_run(experiment, workdir, data_dir=_DATA_DIR.value)
        print(f"{experiment.name}: step {step}, {', '.join(map(str, files.values()))}")
    elif _MODE.value == "table":
        print(state_table(experiment, _DATA_DIR.value))
    elif _MODE.value == "train":
        result = fit(
            experiment,
            workdir,
            data_dir=_DATA_DIR.value,
            allow_config_change=_CHANGE.value,
            profile=_PROFILE.value,
        )
        print(_closing_line(experiment, result, workdir))
    else:
        raise ConfigError(
            f"--mode: {_MODE.value!r} given; allowed: {', '.join(_MODES)}."
            + nearest(_MODE.value, _MODES)
        )


def _join() -> None:
    """Joins the other processes, where there are any; then process 0 alone talks on stdout."""
    processes.initialize(
        _COORDINATOR.value,
        _PROCESSES.value,
        _PROCESS.value,
        start_timeout=_START_TIMEOUT.value,
        peer_timeout=_PEER_TIMEOUT.value,
    )
    if not processes.is_first():
        sys.stdout.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def summary(figures: Mapping[str, Mapping[str, float]]) -> str:
    """Returns "test loss 0.0712, test accuracy 0.9810, ..." for the last of the splits."""
    parts = [f"{split} {name} {v:.4f}" for split, row in figures.items() for name, v in row.items()]
    return ", ".join(parts) or "nothing to evaluate"


def _closing_line(experiment: Experiment, result: Result, workdir: pathlib.Path) -> str:
    name = f"{experiment.name}: {result.stopped} at step {result.step}"
    if result.stopped == "interrupted":
        return f"{name}, saved; the same command continues."
    return f"{name}, {summary(result.metrics)}, {result.wall_time:.1f} s, {workdir}"


def _parse_flags(argv: Sequence[str]) -> list[str]:
    logging.set_verbosity(logging.WARNING)
    told = stdlib_logging.getLogger("lsm")
    told.setLevel(stdlib_logging.INFO)
    told.addHandler(stdlib_logging.StreamHandler(sys.stdout))
    told.propagate = False
    try:
        rest = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        _fail(
            f"--{error.flagname}: there is no such flag; there are --config.FIELD and "
            f"{listed('--' + name for name in _OWN)}.{nearest(error.flagname, _OWN)}"
        )
    except flags.Error as error:
        _fail(" ".join(str(error).split()))
    if rest[1:]:
        _fail(f"{rest[1]!r}: only flags are taken, such as --config=FILE.")
    return rest


def _one_line(run) -> int:
    try:
        run()
        sys.stdout.flush()
        processes.finish()
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not _HELP.value:
            processes.fail("stdout was closed; the same command continues.")
            print("error: stdout was closed; the same command continues.", file=sys.stderr)
            return 1
    except KeyboardInterrupt:
        processes.fail("interrupted; the same command continues.", status=130)
        print("error: interrupted; the same command continues.", file=sys.stderr)
        return 130
    except LsmError as error:
        processes.fail(str(error))
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
