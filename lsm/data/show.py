"""Shows what a source holds: splits, columns, classes, the first rows, pictures.

    python -m lsm.data.show iris.csv
    python -m lsm.data.show 'data/*.parquet' --split=test --rows=10
    python -m lsm.data.show mnist --data_dir=DIR --grid=mnist.png

SOURCE is a file, a folder or a pattern (see `lsm.data.Files`; of pictures in class folders,
`lsm.data.Folder`); what is no path is the name of a dataset of TFDS. `--grid` writes the first
pictures as a PNG.
"""

import glob
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags

from lsm import command_line
from lsm.data import doubts, images
from lsm.data.dataset import Columns, Dataset, PathLike
from lsm.data.files import Files, places
from lsm.data.folder import Folder
from lsm.data.sheet import sheet
from lsm.data.source import SplitSource
from lsm.data.tfds import Tfds
from lsm.errors import ConfigError, DataError, listed, shortened
from lsm.files import atomic_write, expanded, nothing_at

_WIDTH = 40  # characters of a value
_PICTURES = 64  # of a grid


def source(name: str) -> SplitSource:
    """Returns the source that is meant: what is there, or has an ending or a wildcard, is a path.

    Raises:
      ConfigError: it is empty, or no path can be made of it.
      DataError: there is nothing at what can only be a path.
    """
    path = expanded(name, "SOURCE")
    if name.startswith((".", "/", "~")) and not path.exists() and not path.suffix:
        raise DataError(nothing_at(path))
    if not path.exists() and not glob.has_magic(name) and (":" in name or not path.suffix):
        return Tfds(name)
    if not path.is_dir():
        return Files(name)
    deeper = [*path.glob("*/*"), *path.glob("*/*/*")]
    pictures = any(file.suffix.lower() in images.SUFFIXES for file in deeper)
    # Beside pictures a text tells of them; a table above them names them.
    found = {places.kind(file) for file in (*path.glob("*"), *([] if pictures else deeper))}
    return Files(name) if found - {None, *([".txt", ".json"] if pictures else [])} else Folder(name)


def shown(
    source: SplitSource, split: str | None = None, rows: int = 5, data_dir: PathLike | None = None
) -> Iterator[str]:
    """Yields lines about a source: its splits, and of one its columns, classes and first rows.

    Args:
      source: what is shown.
      split: whose columns and rows; None is the first, or "train" where there is one.
      rows: how many at most.
      data_dir: where datasets are.

    Raises:
      DataError: what is there cannot be read, or there is no such split.
    """
    shards = source.shards(data_dir)
    yield from (f"{name}: {sum(lengths):,} examples" for name, lengths in shards.items())
    split = split or _usual(source, data_dir)
    dataset = source.open(split, data_dir)
    first = dataset.by_example().take(np.arange(min(max(1, rows), len(dataset))))
    yield ""
    yield f"{split}:"
    for name, one in dataset.spec.items():
        kind = _kind(first[name][0]) if one.dtype == object else one.dtype
        word = doubts.word(dataset, name) if kind == "text" else None
        told = f", as {word} among numbers" if word else ""
        yield f"  {name}: {kind}{f' {one.shape}' if one.shape else ''}{told}"
    if dataset.classes:
        yield f"  {len(dataset.classes)} classes: {listed(dataset.classes)}"
    for row in range(min(rows, len(dataset))):
        values = (f"{name}={_value(column[row])}" for name, column in first.items())
        yield f"{row}: {', '.join(values)}"


def _usual(source: SplitSource, data_dir: PathLike | None) -> str:
    names = source.splits(data_dir)
    return "train" if "train" in names else names[0]


def grid(dataset: Dataset) -> bytes:
    """Returns the first pictures of a dataset, side by side, as PNG.

    Raises:
      DataError: no column holds pictures, uint8 (height, width) or with 1 or 3 channels.
    """
    first = dataset.by_example().take(np.arange(min(_PICTURES, len(dataset))))
    return sheet(_pictures(first))


def _pictures(columns: Columns) -> list[np.ndarray]:
    for column in columns.values():
        found = [np.asarray(x)[..., None] if np.ndim(x) == 2 else np.asarray(x) for x in column]
        if all(x.dtype == np.uint8 and x.ndim == 3 and x.shape[-1] in (1, 3) for x in found):
            return found
    raise DataError(
        f"--grid: no column of {listed(columns)} holds pictures, uint8 (height, width, 1 or 3)."
    )


def _kind(value: object) -> str:
    """What a column of dtype object holds, told by its first value."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}, of different shapes"
    return "text" if isinstance(value, str) else type(value).__name__


def _value(value: object) -> str:
    if isinstance(value, np.ndarray):
        if value.size > 8:
            return f"{value.dtype} {value.shape} in [{value.min():.4g}, {value.max():.4g}]"
        value = value.tolist()
    if isinstance(value, float | np.floating):
        return f"{value:.6g}"
    return shortened(repr(value) if isinstance(value, str | bytes) else str(value), _WIDTH)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return command_line.run(_act, _flags(), argv, doc=__doc__, words=True)


def _flags() -> flags.FlagValues:
    given = flags.FlagValues()
    flags.DEFINE_string("data_dir", None, "where datasets are; default TFDS's own place", given)
    flags.DEFINE_string("split", None, "whose rows; default train, or the first there is", given)
    flags.DEFINE_integer("rows", 5, "examples to show", 0, flag_values=given)
    flags.DEFINE_string("grid", None, "PNG file for the first pictures", given)
    return given


def _act(given: flags.FlagValues, words: list[str]) -> None:
    if len(words) != 1:
        told = f"{listed(words)} given" if words else "no source given"
        raise ConfigError(f"{told}; one is needed, such as iris.csv or, in quotes, 'data/*.csv'.")
    of, split = source(words[0]), given.split
    for line in shown(of, split, given.rows, given.data_dir):
        print(line)
    if given.grid is not None:
        file = expanded(given.grid, "--grid")
        atomic_write(file, grid(of.open(split or _usual(of, given.data_dir), given.data_dir)))
        print(f"pictures in {file}")


if __name__ == "__main__":
    sys.exit(main())
