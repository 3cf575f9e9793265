"""A source of sentences: the texts of another source, each divided."""

import dataclasses
import itertools
import re
from collections.abc import Iterator

import numpy as np

from lsm.data.dataset import Columns, Dataset, PathLike
from lsm.data.divide import Chosen
from lsm.data.source import CountedSource, SplitSource
from lsm.data.texts.words import Where
from lsm.data.values import as_text
from lsm.errors import DataError, listed, nearest

_ENDS = re.compile(
    r"""(?<=[.!?…])\s+ | (?<=[.!?…]["'”’)\]])\s+  # a full stop and the like, and a quote behind it
    | (?<=[。！？])                                # which no space follows
    | (?:\s*(?:<br\s*/?>|[\r\n]+)\s*)+             # lines
    """,
    re.VERBOSE,
)
_WORD = re.compile(r"\w")


@dataclasses.dataclass(frozen=True)
class Sentences(CountedSource):
    """Another source, of which each sentence of a text is an example.

    It has the other columns of its text, such as a label. For students that learn from texts
    without labels of their own, as of `lsm.compress.Distil`: one long text is many short ones.
    Sentences end where ".", "!" or "?" and a space do, and with a line: the "Dr." of a name ends
    one too. What has neither letter nor digit is left out.

    Attributes:
      source: where the texts come from.
      column: column of the texts.
    """

    source: SplitSource
    column: str = "text"

    def __str__(self) -> str:
        return f"sentences of {self.source}"

    def splits(self, data_dir: PathLike | None = None) -> tuple[str, ...]:
        """See `Source.splits`."""
        return tuple(self.source.splits(data_dir))

    def open_split(self, name: str, data_dir: PathLike | None = None) -> Dataset:
        """See `SplitSource.open_split`; reads the texts, and keeps their sentences in memory."""
        dataset = self.source.open_split(name, data_dir).by_example()
        if self.column not in dataset.spec:
            raise DataError(
                f"Sentences.column: {self.source} has no column {self.column!r}; it has "
                f"{listed(dataset.spec)}.{nearest(self.column, dataset.spec)}"
            )
        made = _Sentences(dataset, self.column)
        if not len(made):
            raise DataError(f"{self}: column {self.column!r} of split {name!r} holds no words.")
        return made


def sentences(text: str) -> list[str]:
    """Returns the sentences of a text, without space around them."""
    return [part.strip() for part in _ENDS.split(text) if _WORD.search(part)]


class _Sentences(Chosen):
    """Each sentence, beside the other columns of its text."""

    def __init__(self, dataset: Dataset, column: str):
        texts = dataset.column(column).tolist()
        parts = [sentences(as_text(x, _where(dataset, column, n))) for n, x in enumerate(texts)]
        super().__init__(dataset, np.repeat(np.arange(len(parts)), [len(part) for part in parts]))
        self._column = column
        self._texts = np.array([*itertools.chain.from_iterable(parts), None], object)[:-1]

    def take(self, indices: np.ndarray) -> Columns:
        rows, back = np.unique(self._numbers[indices], return_inverse=True)  # a text is read once
        columns = {name: x[back] for name, x in self._dataset.take(rows).items()}
        return columns | {self._column: self._texts[indices]}

    def column(self, name: str) -> np.ndarray:
        return self._texts if name == self._column else super().column(name)

    def held(self) -> Iterator[Columns]:
        for part in super().held():
            yield {name: x for name, x in part.items() if name != self._column}

    def resident(self) -> None:
        return None  # texts are on no device

    def by_example(self) -> Dataset:
        return self


def _where(dataset: Dataset, column: str, number: int) -> Where:
    return lambda: f"column {column!r}: {dataset.where(number)}"
