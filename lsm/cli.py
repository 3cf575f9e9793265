"""The command line of every experiment: `python -m lsm --config=... --workdir=...`.

Its flags are absl's global ones: an experiment may define more, and absl's own are there too.
"""

import contextlib
import dataclasses
import itertools
import logging as stdlib_logging
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

from absl import app, flags, logging

from lsm import command_line, processes
from lsm.config import Experiment
from lsm.config import flags as config_flags
from lsm.config.origin import CONFIG, Origin, experiment_of, origin_of
from lsm.cpu import libtpu
from lsm.errors import ConfigError, listed
from lsm.files import atomic_write, expanded
from lsm.generate import Sampling
from lsm.run.result import Result
from lsm.train import evaluate_run, fit, load, predict_files, predict_run, preview, state_table
from lsm.train import summary as layers

_CONFIG = flags.DEFINE_string("config", None, "config file, FILE.py or FILE.py:arg")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; default runs/NAME")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "where datasets are; default TFDS's own place")
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ("train", "eval", "predict", "sample", "table", "preview"),
    "train; eval: evaluate the run in --workdir; predict: write its predictions of every example "
    "there, or of --input; sample: print what it writes after --prompt; table: print what the "
    "model is made of, and where arrays go; or "
    "preview: write WORKDIR/preview.png, pictures of the first batch as the network gets it",
)
_INPUT = flags.DEFINE_multi_string(
    "input", None, "with --mode=predict: pictures, texts or tables; a file, a folder or a pattern"
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "of --input, FILE.csv or FILE.jsonl; default WORKDIR/predictions/input.jsonl"
)
_PROMPT = flags.DEFINE_multi_string("prompt", None, "with --mode=sample: what texts begin with")
_CHAT = flags.DEFINE_bool("chat", False, "with --mode=sample: each --prompt is what a user says")
_SAMPLE = {
    "max_tokens": flags.DEFINE_integer("max_tokens", None, "of a text (256)", lower_bound=1),
    "samples": flags.DEFINE_integer("samples", None, "texts for each prompt (1)", lower_bound=1),
    "temperature": flags.DEFINE_float("temperature", None, "0 takes the likeliest token (1)"),
    "top_k": flags.DEFINE_integer("top_k", None, "tokens that are drawn from (all)"),
    "top_p": flags.DEFINE_float("top_p", None, "probability that is drawn from (1)"),
    "min_p": flags.DEFINE_float("min_p", None, "least share of the likeliest's probability (0)"),
    "repetition_penalty": flags.DEFINE_float("repetition_penalty", None, "above 1 against it (1)"),
    "stop": flags.DEFINE_multi_string("stop", None, "string that ends a text"),
    "seed": flags.DEFINE_integer("sample_seed", None, "of what is drawn (0)"),
}
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
flags.DEFINE_bool("debug", False, command_line.DEBUG)
_AGAIN = "; the same command continues"


def main(default: str | os.PathLike | None = None) -> None:
    """Runs the experiment of `--config` (or the file `default`) and exits.

    Without either it is that of the run in `--workdir`, in every mode.

    Exit status: 0 when done, or when interrupted and saved; 1 after one line on stderr for
    anything that the user can mend, or a few about a bug.
    """
    libtpu.ignore_without_tpu()
    overrides: dict[str, str] = {}

    def parse(argv: Sequence[str]) -> None:
        _say_warnings_and_what_lsm_tells()
        rest, found = config_flags.split_overrides(argv[1:])
        overrides.update(found)
        doc = sys.modules["__main__"].__doc__ or ""
        command_line.parse(flags.FLAGS, rest, doc=doc, advice=config_flags.ADVICE)

    def act(_: None) -> None:
        with _others_told():
            _run(default, overrides)

    sys.exit(command_line.status(lambda: app.run(act, flags_parser=parse), _AGAIN, flags.FLAGS))


def _run(default: str | os.PathLike | None, overrides: Mapping[str, str]) -> None:
    for flag in (_INPUT, _OUTPUT):
        if flag.value and not (_MODE.value == "predict" and _INPUT.value):
            raise ConfigError(f"--{flag.name}: it is for --mode=predict with --input.")
    for flag in (_PROMPT, _CHAT, *_SAMPLE.values()):
        if flag.value is not None and flag.value is not False and _MODE.value != "sample":
            raise ConfigError(f"--{flag.name}: it is for --mode=sample.")
    # Before `_found`, which may go elsewhere.
    given = [expanded(name, "--input").absolute() for name in _INPUT.value or ()]
    output = _OUTPUT.value and expanded(_OUTPUT.value, "--output").absolute()
    if not _HELP.value:
        _join()
    experiment, workdir, origin = _found(default and str(default), overrides)
    data_dir = origin.data_dir
    if _HELP.value:
        command_line.show(config_flags.describe(experiment))
    elif _MODE.value == "eval":
        step, figures = evaluate_run(experiment, workdir, data_dir=data_dir)
        print(f"{experiment.name}: step {step}, {summary(figures)}")
    elif _MODE.value == "predict" and _INPUT.value:
        output = output or workdir / "predictions" / "input.jsonl"
        count = predict_files(workdir, list(map(str, given)), output)
        print(f"{experiment.name}: {count} predictions, {output}")
    elif _MODE.value == "predict":
        step, files = predict_run(experiment, workdir, data_dir=data_dir)
        print(f"{experiment.name}: step {step}, {', '.join(map(str, files.values()))}")
    elif _MODE.value == "sample":
        _sample(experiment, workdir)
    elif _MODE.value == "table":
        print(layers(experiment, data_dir), end="\n\n")
        print(state_table(experiment, data_dir))
    elif _MODE.value == "preview":
        picture, file = preview(experiment, data_dir), workdir / "preview.png"
        if processes.is_first():
            workdir.mkdir(parents=True, exist_ok=True)
            atomic_write(file, picture)
        print(f"{experiment.name}: {file}")
    else:
        result = fit(
            experiment,
            workdir,
            data_dir=data_dir,
            allow_config_change=_CHANGE.value,
            profile=_PROFILE.value,
            origin=origin,
        )
        print(_closing_line(experiment, result, workdir))


def _sample(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Prints texts: one alone as it is written, several one after the other."""
    given = {name: flag.value for name, flag in _SAMPLE.items() if flag.value is not None}
    ways = {field.name for field in dataclasses.fields(Sampling)}
    sampling = Sampling(**{name: given.pop(name) for name in ways & given.keys()})
    prompts = _PROMPT.value or _no_prompt()
    shown = [""] * len(prompts) if _CHAT.value else prompts  # an answer stands for itself
    if _CHAT.value:
        prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
    trained = load(workdir, experiment=experiment)
    if len(prompts) == 1 and given.get("samples", 1) == 1:
        given.pop("samples", None)
        texts = trained.stream(prompts[0], sampling=sampling, **given)
        for text in itertools.chain([shown[0] + next(texts, "")], texts):
            print(text, end="", flush=True)
        print()
        return
    texts = trained.generate(prompts, sampling=sampling, **given)
    for number, text in enumerate(texts):
        print(f"[{number + 1}] {shown[number * len(prompts) // len(texts)]}{text.text}")


def _no_prompt() -> NoReturn:
    raise ConfigError("--prompt is needed with --mode=sample: what the text begins with.")


def _found(
    default: str | None, overrides: Mapping[str, str]
) -> tuple[Experiment, pathlib.Path, Origin]:
    """Returns the experiment, its workdir, and where both experiment and data come from.

    What is asked of a run that is there is asked of its own experiment, unless --config is given.
    """
    data_dir = _DATA_DIR.value and str(expanded(_DATA_DIR.value, "--data_dir").absolute())
    workdir = _WORKDIR.value and expanded(_WORKDIR.value, "--workdir")
    asked = _MODE.value in ("table", "preview") and workdir
    later = _MODE.value in ("eval", "predict", "sample") or asked
    if (later or default is None) and not _CONFIG.value:
        there = workdir or (default and pathlib.Path("runs", config_flags.load(default).name))
        if there and (there / CONFIG).exists():
            return _of_run(there.absolute(), overrides, data_dir)
    spec = _CONFIG.value or default or _no_config(workdir)
    experiment = config_flags.load(spec, overrides)
    workdir = workdir or expanded(f"runs/{experiment.name}", "--workdir")
    return experiment, workdir, dataclasses.replace(Origin.of(spec, overrides), data_dir=data_dir)


def _of_run(
    workdir: pathlib.Path, overrides: Mapping[str, str], data_dir: str | None
) -> tuple[Experiment, pathlib.Path, Origin]:
    """Returns what `_found` does, of the run in `workdir`; goes to where that was begun."""
    origin = origin_of(workdir)
    if origin.directory and os.path.isdir(origin.directory):
        os.chdir(origin.directory)  # from where relative paths in its config lead on
    experiment = config_flags.override(experiment_of(workdir), overrides)
    changed = {**origin.overrides, **overrides}
    data_dir = data_dir or origin.data_dir
    return experiment, workdir, dataclasses.replace(origin, overrides=changed, data_dir=data_dir)


def _no_config(workdir: pathlib.Path | None) -> NoReturn:
    """Raises ConfigError: there is neither a config nor a run that has one."""
    files = sorted(pathlib.Path().glob("*.py"))
    here = [str(path) for path in files if "def get_config(" in path.read_text(errors="replace")]
    shipped = pathlib.Path(__file__).parents[1] / "experiments/configs/digits/cnn.py"
    no_run = f", as {workdir} holds no run" if workdir else ""
    raise ConfigError(
        f"--config is needed{no_run}: a config file, FILE.py or FILE.py:arg, such as "
        f"{listed(here, 4) or os.path.relpath(shipped)}."
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
    """Returns "test loss 0.0712, test accuracy 0.9810, ..." of every split, without each class."""
    parts = [
        f"{split} {name} {value:.4f}"
        for split, row in figures.items()
        for name, value in row.items()
        if "/" not in name
    ]
    return ", ".join(parts) or "nothing to evaluate"


def _closing_line(experiment: Experiment, result: Result, workdir: pathlib.Path) -> str:
    name = f"{experiment.name}: {result.stopped} at step {result.step}"
    if result.stopped == "interrupted":
        return f"{name}, saved{_AGAIN}."
    if result.skipped:
        name += f", {result.skipped} updates skipped as not finite"
    return f"{name}, {summary(result.metrics)}, {result.wall_time:.1f} s, {workdir}"


def _say_warnings_and_what_lsm_tells() -> None:
    logging.set_verbosity(logging.WARNING)
    told = stdlib_logging.getLogger("lsm")
    told.setLevel(stdlib_logging.INFO)
    told.addHandler(stdlib_logging.StreamHandler(sys.stdout))
    told.propagate = False


@contextlib.contextmanager
def _others_told() -> Iterator[None]:
    """Takes leave of the other processes, or tells them why this one ends."""
    try:
        yield
        sys.stdout.flush()
        processes.finish()
    except BaseException as error:
        if told := command_line.line(error, _AGAIN):
            processes.fail(*told)
        raise
