"""Decodes whole datasets: on all CPUs, in order, with a bar on a terminal."""

import collections
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lsm.cpu import cores
from lsm.data.dataset import Columns, Dataset

_BYTES = 2**22  # of decoded examples in a chunk: bounds the memory, and evens out the work
_MOST = 256  # examples in a chunk: what is small may take long to make
_PATIENCE = 2.0  # seconds after which a bar is drawn


def chunks(name: str, dataset: Dataset) -> Iterator[Columns]:
    """Yields all examples of a dataset of fixed shapes, in order, some at a time.

    Threads decode ahead: Pillow, zlib and NumPy let others run while they work. If it takes more
    than two seconds and stderr is a terminal, a bar shows how far it is.

    Args:
      name: of the dataset, for the bar.
      dataset: its `take` is called by several threads.
    """
    parts = _parts(dataset)
    return _with_bar(name, len(dataset), parts) if sys.stderr.isatty() else parts


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


def _with_bar(name: str, total: int, parts: Iterator[Columns]) -> Iterator[Columns]:
    from rich import console, progress

    # Drawn chunk by chunk: there is no drawing thread.
    bar = progress.Progress(
        progress.TextColumn("decoding {task.description}", markup=False),
        progress.BarColumn(bar_width=None),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        console=console.Console(file=sys.stderr),
        auto_refresh=False,
        expand=True,
        transient=True,
    )
    task = bar.add_task(name, total=total)
    start = time.monotonic()
    try:
        for columns in parts:
            yield columns
            bar.advance(task, len(next(iter(columns.values()))))
            if time.monotonic() - start > _PATIENCE:
                bar.start()
                bar.refresh()
    finally:
        bar.stop()
