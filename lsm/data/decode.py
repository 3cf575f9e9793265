"""Decodes whole datasets: on all CPUs, in order, with a bar on a terminal."""

import collections
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from lsm.command_line import waiting
from lsm.cpu import cores
from lsm.data.dataset import Columns, Dataset

_BYTES = 2**22  # of decoded examples in a chunk: bounds the memory, and evens out the work
_MOST = 1024  # examples in a chunk: what is small may take long to make


def chunks(name: str, dataset: Dataset) -> Iterator[Columns]:
    """Yields all examples of a dataset of fixed shapes, in order, some at a time.

    Threads decode ahead: Pillow, zlib and NumPy let others run while they work. If it takes more
    than two seconds and stderr is a terminal, a bar shows how far it is.

    Args:
      name: of the dataset, for the bar.
      dataset: its `take` is called by several threads.
    """
    parts = _parts(dataset)
    bar = waiting.bar(f"decoding {name}", len(dataset))
    return _moving(bar, parts) if bar else parts


def _parts(dataset: Dataset) -> Iterator[Columns]:
    each = sum(one.dtype.itemsize * int(np.prod(one.shape)) for one in dataset.spec.values())
    some = max(1, min(_BYTES // max(1, each), _MOST))
    with ThreadPoolExecutor(cores()) as pool:
        ahead = collections.deque()
        for start in range(0, len(dataset), some):
            rows = np.arange(start, min(start + some, len(dataset)))
            ahead.append(pool.submit(dataset.take, rows))
            if len(ahead) > cores():
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _moving(bar: Any, parts: Iterator[Columns]) -> Iterator[Columns]:
    """Moves the bar chunk by chunk: there is no drawing thread."""
    start = time.monotonic()
    try:
        for columns in parts:
            yield columns
            bar.advance(bar.task_ids[0], len(next(iter(columns.values()))))
            if time.monotonic() - start > waiting.PATIENCE:
                bar.start()
                bar.refresh()
    finally:
        bar.stop()
