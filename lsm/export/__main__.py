"""Exports the model of a run as a folder that needs jax alone.

    python -m lsm.export --workdir=RUN --out=DIR

The folder has the functions as StableHLO for each platform, weights, preprocessing, labels, and a
model card; `lsm.export.load(DIR)` runs it. See docs/export.md.
"""

import sys
from collections.abc import Sequence

from absl import flags

from lsm import command_line
from lsm.export.artefact import PLATFORMS
from lsm.export.write import CONTEXT, export


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return command_line.run(_act, _flags(), argv, doc=__doc__)


def _flags() -> flags.FlagValues:
    given = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the run", given, required=True)
    flags.DEFINE_string("out", None, "new folder for the export", given, required=True)
    flags.DEFINE_string("step", "best", "its checkpoint: best, last or a step", given)
    flags.DEFINE_list("platforms", ",".join(PLATFORMS), "what it is to run on", given)
    flags.DEFINE_integer(
        "context", None, f"of a decoder: tokens of prompt and text (its own, to {CONTEXT})", 2,
        flag_values=given,
    )  # fmt: skip
    flags.DEFINE_bool("statistics", False, "keep statistics of an evaluation split", given)
    flags.DEFINE_string("data_dir", None, "where that is; default as of the run", given)
    return given


def _act(given: flags.FlagValues, words: list[str]) -> None:
    del words
    step = command_line.checkpoint(given)
    statistics = None
    if given.statistics:
        from lsm.export.statistics import of_run

        statistics = of_run(given.workdir, step=step, data_dir=given.data_dir)
    made = export(
        given.workdir,
        given.out,
        step=step,
        platforms=given.platforms,
        context=given.context,
        statistics=statistics,
    )
    functions = ", ".join(made.functions)
    print(f"step {made.step} of {given.workdir}: {functions} in {given.out}")


if __name__ == "__main__":
    sys.exit(main())
