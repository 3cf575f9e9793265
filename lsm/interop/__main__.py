"""Published models in and out: Hugging Face's folders, and GGUF files.

    python -m lsm.interop import FOLDER_OR_GGUF --workdir=DIR
    python -m lsm.interop export --workdir=DIR --out=FOLDER

An import makes a workdir that is read as that of a run is: `lsm.load(DIR)`, `Start(path=DIR)`, and
`python -m lsm --workdir=DIR --mode=...`. An export writes config.json, safetensors and the files of
the tokenizer, as `transformers` loads them. See docs/interop.md.
"""

import sys
from collections.abc import Sequence

from absl import flags

from lsm import command_line
from lsm.errors import ConfigError, nearest

_ACTS = ("import", "export")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    given = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "folder of the import or the run", flag_values=given)
    flags.DEFINE_string("out", None, "of an export: folder, new or empty", flag_values=given)
    return command_line.run(_act, given, argv, doc=__doc__, words=True)


def _act(given: flags.FlagValues, words: list[str]) -> None:
    act, rest = (words[0], words[1:]) if words else ("", [])
    if act not in _ACTS:
        needed = " or ".join(_ACTS)
        raise ConfigError(f"{act!r} given; {needed} is needed first.{nearest(act, _ACTS)}")
    if given.workdir is None:
        raise ConfigError("--workdir: is needed, the folder of the import or the run.")
    if act == "import":
        _check(len(rest) == 1, "import: one folder or GGUF file is needed; ", rest)
        _check(given.out is None, "--out: is of an export", [])
        _import(rest[0], given.workdir)
    else:
        _check(not rest, "export: takes flags alone; ", rest)
        _check(given.out is not None, "--out: is needed, a folder that is new or empty", [])
        _export(given.workdir, given.out)


def _check(right: bool, needed: str, words: list[str]) -> None:
    if not right:
        shown = f"{' '.join(words) or 'none'} given" if needed.endswith("; ") else ""
        raise ConfigError(f"{needed}{shown}.")


def _import(path: str, workdir: str) -> None:
    from lsm.train.imported import import_model

    experiment = import_model(path, workdir)
    model = type(experiment.task.model).__name__
    print(f"{experiment.name}: {model}, {workdir}")


def _export(workdir: str, out: str) -> None:
    from lsm.train.imported import export_run

    architecture, step = export_run(workdir, out)
    print(f"{architecture}: step {step}, {out}")


if __name__ == "__main__":
    sys.exit(main())
