"""The command `python -m launch.plan --config=FILE --topology=v5e:4x4`; see docs/plan.md."""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence

from launch import command
from lsm.command_line import status, waiting
from lsm.config import flags
from lsm.cpu.libtpu import ask_for_plans
from lsm.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is planned, and what for.

    Attributes:
      config: config file, FILE.py or FILE.py:arg.
      topology: what to plan for: a TPU slice, v5e:4x4, v5p:8x8x8, v6e:16x16, or GPUs, h100:8.
      slices: how many of it, joined by the data-centre network.
      price: USD for one chip and hour; by default the list price.
      fit: search mesh, rematerialisation and accumulation for the fastest plan that fits.
      json: file to write the whole plan to.
      html: file to write a page with charts to.
      data_dir: where datasets are; by default TFDS's own place.
    """

    config: str
    topology: str
    slices: int = 1
    price: float | None = None
    fit: bool = False
    json: str | None = None
    html: str | None = None
    data_dir: str | None = None

    def __post_init__(self):
        command.at_least("slices", self.slices, 1)
        command.at_least("price", self.price, 0)
        if self.json and self.json == self.html:
            raise ConfigError(f"--html: {self.html!r} given; --json writes there.")


def main(argv: Sequence[str] | None = None) -> int:
    """Plans, prints, and returns the exit status.

    It is 0 where the plan fits, 2 where it does not, and 1 after one line on stderr for anything
    that the user can mend.
    """
    return status(lambda: _plan(sys.argv[1:] if argv is None else argv))


def _plan(argv: Sequence[str]) -> int:
    rest, overrides = flags.split_overrides(argv)
    given = command.parse(Flags, rest, __doc__, flags.ADVICE)
    from launch.plan import compiled, html, search, text, topology

    ask_for_plans()
    experiment = flags.load(given.config, overrides)
    machine = topology.load(given.topology, given.slices)
    request = compiled.Request(experiment, given.config, overrides, given.data_dir, given.price)
    with waiting.stages("launch.plan") as say:
        found = search.search(request, machine, say) if given.fit else None
        plan = found.best.plan if found else compiled.plan(request, machine)
    if found:
        print(f"{text.text_of_section(found.table())}\n")
    print(text.text_of(plan), end="", flush=True)  # first: a file may fail
    try:
        for path, made in ((given.json, plan.as_json), (given.html, lambda: html.html_of(plan))):
            if path:
                pathlib.Path(path).write_text(made())
    except OSError as error:
        raise ConfigError(f"{path}: it cannot be written: {error.strerror}.") from error
    return 0 if plan.fits else 2


if __name__ == "__main__":
    sys.exit(main())
