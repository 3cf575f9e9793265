"""Makes a plain model of one that was trained by adapters (`lsm.models.Lora`).

    python -m lsm.adapt merge --workdir=RUN --out=DIR

DIR becomes a workdir like a run's, which everything that reads one takes: `lsm.load`,
`python -m lsm --mode=...`, `Start(path=DIR)`, an export. The run in RUN stays as it is.
"""

import sys
from collections.abc import Sequence

from absl import flags

from lsm import command_line
from lsm.adapt.merge import merge
from lsm.errors import ConfigError, listed, nearest

_ACTIONS = ("merge",)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return command_line.run(_act, _flags(), argv, doc=__doc__, words=True)


def _flags() -> flags.FlagValues:
    given = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the run", given, required=True)
    flags.DEFINE_string("out", None, "new folder for the merged model", given, required=True)
    flags.DEFINE_string("step", "best", "its checkpoint: best, last or a step", given)
    return given


def _act(given: flags.FlagValues, words: list[str]) -> None:
    if tuple(words) != _ACTIONS:
        hint = nearest(words[0], _ACTIONS) if words else ""
        raise ConfigError(f"{listed(words) or 'no action'} given; 'merge' is needed.{hint}")
    step = command_line.checkpoint(given)
    found = merge(given.workdir, given.out, step=step)
    print(f"step {found} of {given.workdir} is merged in {given.out}")


if __name__ == "__main__":
    sys.exit(main())
