"""Splits of one's own: by fractions, stratified or grouped, or by a column; functions of a seed."""

import abc
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsm.data.dataset import Columns, Dataset, Derived, PathLike, Read
from lsm.data.source import SplitSource, select_counted
from lsm.data.splits import names
from lsm.errors import ConfigError, DataError, listed

_CHOSEN = "numbers of the chosen"  # beside the columns of a data set that devices hold


class _Divided(SplitSource):
    """Splits made of the examples that split `of` of `source` has; its other splits stay."""

    source: SplitSource
    of: str

    @abc.abstractmethod
    def parts(self, dataset: Dataset) -> dict[str, np.ndarray]:
        """Returns split name -> numbers of its examples in `dataset`, ascending."""

    def open(self, split: str, data_dir: PathLike | None = None) -> Dataset:
        """See `Source.open`; what is divided is opened once."""
        made = self._made(data_dir)

        def opened(name: str) -> Dataset:
            return made[name] if name in made else self.source.open(name, data_dir)

        every = (*made, *self._others(made, data_dir))
        return select_counted(split, every, opened, str(self))

    def shards(self, data_dir: PathLike | None = None) -> dict[str, list[int]]:
        """See `SplitSource.shards`."""
        made, whole = self._made(data_dir), self.source.shards(data_dir)
        counts = {name: [len(dataset)] for name, dataset in made.items()}
        return counts | {name: whole[name] for name in self._others(made, data_dir)}

    def open_split(self, name: str, data_dir: PathLike | None = None) -> Dataset:
        """See `SplitSource.open_split`."""
        return self.open(name, data_dir)

    def _made(self, data_dir: PathLike | None) -> dict[str, "Chosen"]:
        """The new splits."""
        dataset = self.source.open(self.of, data_dir)
        try:
            parts = self.parts(dataset)
        except DataError as error:
            raise DataError(f"{self}: {error}") from error
        if empty := [name for name, numbers in parts.items() if not len(numbers)]:
            raise DataError(f"{self}: split {empty[0]!r} gets none of {len(dataset):,} examples.")
        return {name: Chosen(dataset, numbers) for name, numbers in parts.items()}

    def _others(self, made: Iterable[str], data_dir: PathLike | None) -> list[str]:
        """The splits of the source that no new one has an example of, or the name of."""
        whole = self.source.splits(data_dir)
        taken = {*made, *(whole if "all" in names(self.of) else names(self.of))}
        return [name for name in whole if name not in taken]


@dataclasses.dataclass(frozen=True)
class Split(_Divided):
    """Another source, of which one split is divided at random, as a function of the seed alone.

    Every example is in one new split, in the order of the source. Sizes are within 1 of the
    fractions; with `stratify`, in every class; with `group`, all examples of a group are in one
    split, and sizes are within the largest group of the fractions.

    Attributes:
      source: what is divided.
      fractions: share of each new split, above 0; together 1.
      of: split of the source that is divided, in TFDS's slicing syntax ("train", "all"). Others
        stay as they are.
      seed: of the draw, at least 0.
      stratify: column with the classes that each split has its fraction of; most of them have more
        than one example.
      group: column that tells what may not be divided, such as a patient.
    """

    source: SplitSource
    fractions: Mapping[str, float]
    of: str = "train"
    seed: int = 0
    stratify: str | None = None
    group: str | None = None

    def __post_init__(self):
        shares = list(self.fractions.values())
        if min(shares, default=0) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise ConfigError(
                f"Split.fractions: {dict(self.fractions)} given; allowed: numbers above 0 that add "
                "up to 1."
            )
        if strange := [name for name in self.fractions if names(name) != [name]]:
            raise ConfigError(f"Split.fractions: {strange[0]!r} is no name of a split.")
        if self.stratify is not None and self.group is not None:
            raise ConfigError("Split: stratify and group given; allowed: one of them.")
        if self.seed < 0:
            raise ConfigError(f"Split.seed: {self.seed} is negative; a seed is 0 or more.")

    def __str__(self) -> str:
        return f"{self.source}, split"

    def splits(self, data_dir: PathLike | None = None) -> tuple[str, ...]:
        """See `Source.splits`; what is divided is not opened."""
        return (*self.fractions, *self._others(self.fractions, data_dir))

    def parts(self, dataset: Dataset) -> dict[str, np.ndarray]:
        """See `_Divided.parts`."""
        shares = np.array(list(self.fractions.values()))
        shares /= shares.sum()
        # Raw numbers: NumPy keeps these, and not what a Generator's permutation makes of them.
        draws = np.random.Philox(key=self.seed).random_raw(len(dataset))
        if self.group is not None:
            split = _grouped(_kinds(dataset.column(self.group)), shares, draws)
        elif self.stratify is not None:
            kinds = _kinds(dataset.column(self.stratify))
            sizes = np.bincount(kinds)
            if (alone := int((sizes == 1).sum())) > len(sizes) / 2:
                raise DataError(
                    f"stratify: {alone:,} of the {len(sizes):,} values of column "
                    f"{self.stratify!r} have one example; a column of classes is needed."
                )
            split = _stratified(kinds, shares, draws)
        else:
            split = _stratified(np.zeros(len(dataset), np.int64), shares, draws)
        return {name: np.flatnonzero(split == i) for i, name in enumerate(self.fractions)}


@dataclasses.dataclass(frozen=True)
class SplitBy(_Divided):
    """Another source, of which one split is divided by a column, whose values name the parts.

    Of a column "fold" with 0 to 4, "0+1+2+3" is then a split to train on.

    Attributes:
      source: what is divided.
      column: texts or whole numbers; may be one that the source does not deliver, of `Files`.
      of: split of the source that is divided, in TFDS's slicing syntax. Others stay as they are.
    """

    source: SplitSource
    column: str
    of: str = "train"

    def __str__(self) -> str:
        return f"{self.source}, split by {self.column}"

    def parts(self, dataset: Dataset) -> dict[str, np.ndarray]:
        """See `_Divided.parts`."""
        values = dataset.column(self.column)
        texts = [v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()]
        found, kinds = np.unique(np.array(texts), return_inverse=True)
        if strange := [name for name in found.tolist() if names(name) != [name]]:
            raise DataError(
                f"column {self.column!r} holds {listed(map(repr, strange), 3)}; names of splits "
                "are letters, digits, '_' and '-'."
            )
        return {name: np.flatnonzero(kinds == i) for i, name in enumerate(found.tolist())}


def _kinds(values: np.ndarray) -> np.ndarray:
    """Values (N,) as numbers of what they are, in sorted order."""
    if values.ndim > 1:
        raise DataError(f"examples of {values.shape[1:]} are no values to divide by.")
    if values.dtype == object:
        values = np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values])
    return np.unique(values, return_inverse=True)[1]


def _stratified(kinds: np.ndarray, shares: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The split (N,) of each example: of every class within 1 of its share, as of the whole."""
    split, owed = np.empty(len(kinds), np.int64), np.zeros(len(shares))
    # By class, and within it at random.
    order = np.lexsort((draws, kinds))
    sizes = np.bincount(kinds)
    for rows in np.split(order, np.cumsum(sizes)[:-1]):
        wanted = shares * len(rows)
        counts = np.floor(wanted + 1e-9).astype(np.int64)
        owed += wanted - counts
        # The rest goes where most is owed, of this class and those before it; one each at most.
        open_ = np.where(wanted - counts > 1e-9, owed, -np.inf)
        more = np.argsort(-open_, kind="stable")[: len(rows) - counts.sum()]
        counts[more] += 1
        owed[more] -= 1
        split[rows] = np.repeat(np.arange(len(shares)), counts)
    return split


def _grouped(groups: np.ndarray, shares: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The split (N,) of each example, the same for all of a group."""
    sizes, order = np.bincount(groups), np.argsort(draws[: groups.max() + 1], kind="stable")
    # Groups in a row, in random order, are cut at the fractions: each falls where its middle is.
    middles = np.cumsum(sizes[order]) - sizes[order] / 2
    split = np.empty(len(sizes), np.int64)
    split[order] = np.searchsorted(np.cumsum(shares)[:-1] * len(groups), middles, side="right")
    return split[groups]


class Chosen(Derived):
    """Some examples of another dataset."""

    def __init__(self, dataset: Dataset, numbers: np.ndarray):
        """Takes the numbers (n,) of the examples, ascending."""
        super().__init__(dataset)
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def take(self, indices: np.ndarray) -> Columns:
        """See `Dataset.take`."""
        return self._dataset.take(self._numbers[indices])

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """See `Dataset.lengths`."""
        return self._dataset.lengths(self._numbers[indices])

    @property
    def identity(self) -> dict[str, Any]:
        """See `Dataset.identity`."""
        chosen = hashlib.sha256(self._numbers.astype("<i8").tobytes()).hexdigest()[:16]
        return super().identity | {"chosen": chosen}

    def column(self, name: str) -> np.ndarray:
        """See `Dataset.column`."""
        return self._dataset.column(name)[self._numbers]

    def where(self, number: int) -> str:
        """See `Dataset.where`."""
        return self._dataset.where(int(self._numbers[number]))

    def held(self) -> Iterator[Columns]:
        """See `Dataset.held`."""
        start = 0
        for part in self._dataset.held():
            stop = start + len(next(iter(part.values())))
            first, last = np.searchsorted(self._numbers, (start, stop))
            yield {name: x[self._numbers[first:last] - start] for name, x in part.items()}
            start = stop

    def resident(self) -> tuple[Columns, Read] | None:
        """See `Dataset.resident`; of the other dataset, all of it."""
        whole = self._dataset.resident()
        if whole is None:
            return None
        columns, read = whole
        own = _CHOSEN
        while own in columns:  # of those that are chosen there
            own += " of the chosen"

        def chosen(held: Mapping[str, jax.Array], indices: Any) -> dict[str, jax.Array]:
            numbers = jnp.take(held[own], indices, mode="clip")
            return read({name: x for name, x in held.items() if name != own}, numbers)

        return {**columns, own: self._numbers.astype(np.int32)}, chosen

    def by_example(self) -> Dataset:
        """See `Dataset.by_example`."""
        return Chosen(self._dataset.by_example(), self._numbers)
