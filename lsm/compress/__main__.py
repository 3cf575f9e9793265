"""Makes a trained model smaller, link by link, and measures each.

    python -m lsm.compress --workdir=RUN --recipe=FILE.py[:arg] --out=DIR

FILE.py has a function `get_recipe(arg=None)` that returns a `lsm.compress.Recipe`; a field of it is
changed by --recipe.FIELD=VALUE, as in --recipe.links.0.train.epochs=2. Each link leaves a run in
DIR, with a row in DIR/compress.md: accuracy, size, latency. A link that costs more than it may ends
the chain with status 1. Interrupted, the same command continues.
"""

import logging
import os
import sys
from collections.abc import Sequence

from absl import flags

from lsm import command_line
from lsm.compress import report
from lsm.compress.chain import compress
from lsm.compress.recipe import Recipe
from lsm.config import flags as config_flags
from lsm.config.origin import origin_of, saved_config
from lsm.files import expanded

_ADVICE = "--recipe.FIELD=VALUE changes a field of the recipe"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    given = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the run that is made smaller", given, required=True)
    flags.DEFINE_string("recipe", None, "FILE.py or FILE.py:arg", given, required=True)
    flags.DEFINE_string("out", None, "folder of the chain and its runs", given, required=True)
    flags.DEFINE_string(
        "data_dir", None, "where datasets are; by default where the run has found them", given
    )
    flags.DEFINE_bool("debug", False, command_line.DEBUG, given)

    def act() -> None:
        rest, overrides = config_flags.split_overrides(
            sys.argv[1:] if argv is None else argv, "recipe"
        )
        command_line.parse(given, rest, doc=__doc__, advice=_ADVICE)
        _run(given, overrides)

    return command_line.status(act, "; the same command continues", given)


def _run(given: flags.FlagValues, overrides: dict[str, str]) -> None:
    recipe = config_flags.read(given.recipe, Recipe, overrides, "get_recipe", "recipe")
    workdir, out = (expanded(given[f].value, f"--{f}").absolute() for f in ("workdir", "out"))
    data_dir = given.data_dir and str(expanded(given.data_dir, "--data_dir").absolute())
    saved_config(workdir)  # said first where there is no run
    directory = origin_of(workdir).directory
    if directory and os.path.isdir(directory) and not os.path.samefile(directory, "."):
        os.chdir(directory)  # from where relative paths in its config lead on
        print(f"paths in the run's config and in the recipe lead on from {directory}", flush=True)
    _say_what_lsm_tells()
    rows = compress(
        workdir, recipe, out, data_dir=data_dir, say=lambda line: print(line, flush=True)
    )
    print(f"\n{report.text(recipe, rows)}\n\n{out / 'compress.md'}, {out / 'frontier.png'}")


def _say_what_lsm_tells() -> None:
    told = logging.getLogger("lsm")
    told.setLevel(logging.INFO)
    told.addHandler(logging.StreamHandler(sys.stdout))
    told.propagate = False


if __name__ == "__main__":
    sys.exit(main())
