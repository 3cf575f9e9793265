"""TFDS's slicing syntax ("train[:90%]", "train[10%:20%]+test", "train[5000:]") on any splits.

The syntax is TFDS's own: https://www.tensorflow.org/datasets/splits
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lsm.errors import DataError, listed, nearest

_NAMES = re.compile(r"(?:^|\+)\s*([\w-]+)")


class Range(NamedTuple):
    """The examples from `start` up to `stop` of the split `name`."""

    name: str
    start: int
    stop: int


def resolve(split: str, shards: Mapping[str, Sequence[int]], source: str) -> list[Range]:
    """Returns the ranges that `split` names, in its order.

    Args:
      split: names and slices, joined by "+"; "all" is every split.
      shards: split name -> number of examples of each shard.
      source: what to call the source in an error.

    Raises:
      DataError: unknown split, slice that cannot be read or does not fit, or no example left.
    """
    # The usual case spares the import of TFDS, about a second.
    if split in shards:
        ranges = [Range(split, 0, sum(shards[split]))]
    else:
        ranges = _sliced(split, shards, source)
    if all(part.start >= part.stop for part in ranges):
        raise DataError(f"split {split!r} of {source} holds no example.")
    return [part for part in ranges if part.start < part.stop]


def names(split: str) -> list[str]:
    """Returns the names in a split specification; "all" is one."""
    return _NAMES.findall(split)


def _sliced(split: str, shards: Mapping[str, Sequence[int]], source: str) -> list[Range]:
    # Asked before TFDS is, whose message does not offer the nearest name.
    for name in names(split):
        if name not in shards and name != "all":
            raise DataError(
                f"split {split!r}: {source} has no split {name!r}; it has {listed(shards)}."
                f"{nearest(name, shards)}"
            )
    import tensorflow_datasets as tfds

    # Those that are named alone: to count the others may mean to read them.
    named = set(names(split))
    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=list(shards[name]), num_bytes=0)
        for name in shards
        if name in named or "all" in named
    }
    try:
        absolute = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    except (ValueError, NotImplementedError, AssertionError) as error:
        raise DataError(
            f"split {split!r} of {source} cannot be read: {_reason(error)} "
            f"Give for example 'train', 'train[:90%]', 'train[5000:]' or 'train+test'; "
            f"it has {_sizes(shards)}."
        ) from None
    return [
        Range(str(part.splitname), part.from_ or 0, _stop(part.to, shards[str(part.splitname)]))
        for part in absolute
    ]


def _stop(to: int | None, lengths: Sequence[int]) -> int:
    return sum(lengths) if to is None else to


def _sizes(shards: Mapping[str, Sequence[int]]) -> str:
    return listed(f"{name} ({sum(shards[name]):,})" for name in shards)


def _reason(error: Exception) -> str:
    """The last line of TFDS's message, which is the one that says what is wrong."""
    line = str(error).strip().splitlines()[-1]
    line = line.split(" See format at")[0].split(" Please open a github")[0].rstrip(".")
    return f"{line}."
