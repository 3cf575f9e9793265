"""Tables of chains for the docs, made of what `lsm.compress` has measured and never typed.

    python -m lsm.compress --workdir=RUN --recipe=experiments/configs/NAME/compress.py --out=DIR
    python -m benchmarks.chains keep NAME DIR
    python -m benchmarks.chains write docs/compress.md
    python -m benchmarks.chains check docs/compress.md

`keep` takes the rows of a chain that is done to `benchmarks/chains/NAME.json`, to be committed.
`write` fills every place that a document gives for a table:

    <!-- chain:NAME -->
    <!-- /chain -->
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from benchmarks.documents import machine, short_revision, write_or_check
from benchmarks.step_time_tables import markdown
from lsm import command_line
from lsm.compress import Recipe, report
from lsm.compress.chain import STATE
from lsm.compress.rows import Row, missed
from lsm.config import flags as config_flags
from lsm.config import schema
from lsm.config.origin import as_now
from lsm.errors import ConfigError, DataError
from lsm.files import atomic_write, parsed_json

RECORDS = Path(__file__).with_suffix("")
_TABLE = re.compile(r"^<!-- chain:(\w+) -->\n(.*?)^<!-- /chain -->$", re.DOTALL | re.MULTILINE)


def recipe_of(name: str) -> Recipe:
    """Returns the recipe of experiments/configs/NAME/compress.py."""
    file = Path(__file__).parents[1] / "experiments/configs" / name / "compress.py"
    return config_flags.read(str(file), Recipe, {}, "get_recipe", "recipe")


def keep(name: str, folder: Path) -> None:
    """Makes the record of a chain.

    Raises:
      DataError: it is not done, was made by another recipe than that of NAME, or misses a bound.
    """
    recipe = recipe_of(name)
    try:
        saved = parsed_json((folder / STATE).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / STATE} cannot be read: {error}.") from error
    free = schema.free_fields(recipe)  # bounds, which are looked at below
    if found := schema.differences(as_now(saved["recipe"], Recipe), schema.to_json(recipe), free):
        raise DataError(f"{folder}: made by another recipe: {schema.told(found)}.")
    if len(saved["rows"]) != len(recipe.links) + 1:
        done = len(saved["rows"]) - 1
        raise DataError(f"{folder}: {done} of {len(recipe.links)} links are done.")
    first, *rest = map(Row.from_json, saved["rows"])
    for link, row in zip(recipe.links, rest, strict=True):
        for line in missed(recipe, link, first, row):
            raise DataError(f"{folder}: {row.name}: {line}.")
    # Where the runs were is of no use elsewhere.
    rows = [row | {"workdir": Path(row["workdir"]).name} for row in saved["rows"]]
    made = {key: saved[key] for key in ("hardware", "versions", "git_revision")} | {"rows": rows}
    RECORDS.mkdir(exist_ok=True)
    atomic_write(RECORDS / f"{name}.json", (json.dumps(made, indent=1) + "\n").encode())


def table(name: str) -> str:
    """Returns the record of a chain as Markdown, or that it was not run yet."""
    path = RECORDS / f"{name}.json"
    if not path.exists():
        return f"`experiments/configs/{name}/compress.py`: not run yet.\n"
    record = json.loads(path.read_text())
    rows = [Row.from_json(row) for row in record["rows"]]
    told = f"{machine(record['hardware'])}; at {short_revision(record['git_revision'])}."
    return f"`experiments/configs/{name}/compress.py`, on {told}\n\n" + markdown(
        report.cells(recipe_of(name), rows)
    )


def filled(document: Path) -> str:
    """Returns the text of `document` with every table as the records have it now."""

    def fill(place: re.Match) -> str:
        return f"<!-- chain:{place[1]} -->\n{table(place[1])}<!-- /chain -->"

    return _TABLE.sub(fill, document.read_text())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `keep`, `write` or `check`; returns the exit status."""
    return command_line.run(_act, flags.FlagValues(), argv, doc=__doc__, words=True)


def _act(_: flags.FlagValues, words: list[str]) -> None:
    verb, *rest = words or [""]
    command_line.require_one_of(verb, ("keep", "write", "check"))
    if verb != "keep":
        write_or_check(verb, rest, filled)
    elif len(rest) == 2:
        keep(rest[0], Path(rest[1]))
    else:
        raise ConfigError("keep: the name of a recipe and the folder of its chain are needed.")


if __name__ == "__main__":
    sys.exit(main())
