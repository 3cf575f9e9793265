"""Builds datasets in TFDS's layout from raw archives, offline and without TensorFlow.

    python -m lsm.data.prepare mnist    --raw=DIR  --data_dir=DIR   also fashion_mnist, kmnist,
                                                                    emnist/letters, ... (IDX files)
    python -m lsm.data.prepare cifar10  --raw=DIR  --data_dir=DIR   also cifar100 (binary or Python)
    python -m lsm.data.prepare my_set   --raw=TREE --data_dir=DIR   pictures in SPLIT/CLASS/ folders

The result is what `tfds build NAME --file_format=array_record` makes: `tfds.data_source(NAME,
data_dir=DIR)` reads it. It appears whole or not at all, and an existing one is never overwritten.
"""

import logging
import pathlib
import sys
import time
from collections.abc import Sequence

from absl import flags

from lsm import command_line
from lsm.data import build
from lsm.errors import ConfigError, DataError, listed
from lsm.files import expanded

_log = logging.getLogger("lsm.data")


def prepare(name: str, raw_dir: pathlib.Path, data_dir: pathlib.Path) -> pathlib.Path:
    """Builds dataset `name` from the archives, or the tree of pictures, in `raw_dir`.

    Args:
      name: a key of `lsm.data.build.PUBLISHED`, or a new name for a class-per-folder tree.
      raw_dir: where the raw files are.
      data_dir: where datasets are kept; the result is `data_dir/NAME/[CONFIG/]VERSION`.

    Returns:
      The directory of the dataset.

    Raises:
      DataError: raw files missing or damaged, dataset already there, directory not writable.
    """
    import tensorflow_datasets as tfds

    if not raw_dir.exists():
        raise DataError(f"--raw={raw_dir} is not there; give the folder of the raw files.")
    tfds.disable_progress_bar()
    published = build.PUBLISHED.get(name)
    if published is None:
        return build.write(lambda place: build.from_tree(name, raw_dir, place), data_dir)
    archive = published.read(raw_dir)
    for split, expected in published.examples.items():
        found = len(archive.splits[split].images)
        if found != expected:
            _log.warning(
                "%s: split %s has %s examples; the published one has %s.",
                *(name, split, f"{found:,}", f"{expected:,}"),
            )
    return build.write(lambda place: build.from_archive(name, archive, place), data_dir)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return command_line.run(_act, _flags(), argv, doc=__doc__, words=True)


def _flags() -> flags.FlagValues:
    given = flags.FlagValues()
    raw = "folder of the raw archives, or of the tree of pictures"
    flags.DEFINE_string("raw", None, raw, given, required=True)
    data_dir = "where datasets are kept; made if it is not there"
    flags.DEFINE_string("data_dir", None, data_dir, given, required=True)
    return given


def _act(given: flags.FlagValues, names: list[str]) -> None:
    if len(names) != 1:
        told = f"{listed(names)} given" if names else "no dataset given"
        raise ConfigError(f"{told}; the name of one is needed, such as mnist.")
    start = time.perf_counter()
    places = (expanded(given[name].value, f"--{name}") for name in ("raw", "data_dir"))
    target = prepare(names[0], *places)
    print(f"{names[0]}: {_counts(target)} in {target} ({time.perf_counter() - start:.0f} s)")


def _counts(target: pathlib.Path) -> str:
    import tensorflow_datasets as tfds

    splits = tfds.builder_from_directory(str(target)).info.splits
    return ", ".join(f"{name} {split.num_examples:,}" for name, split in splits.items())


if __name__ == "__main__":
    sys.exit(main())
