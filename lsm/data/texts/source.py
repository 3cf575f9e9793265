"""A source of texts: the text columns of another source as columns of token ids."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from lsm.checks import require_choice, require_sizes
from lsm.data import cache
from lsm.data.dataset import Columns, Dataset, PathLike, Spec, digest
from lsm.data.source import CountedSource, SplitSource
from lsm.data.texts import entries
from lsm.data.texts.encoder import LENGTH, SEGMENTS, WORDS, Encoder, Ragged
from lsm.data.texts.packing import packed
from lsm.data.texts.rows import BYTES, TextRows
from lsm.data.texts.vocabulary import Vocabulary
from lsm.data.texts.words import by_token, labels_of, text_or_words
from lsm.errors import ConfigError, DataError, listed, nearest

_log = logging.getLogger("lsm.data")
_VERSION = 2  # counts changes of how texts are encoded, so that old entries are not used
_SOME = 1024  # examples that are read at a time: fewer take longer
_ENCODED = 64  # texts that are encoded at a time, which takes some hundred times their memory


@dataclasses.dataclass(frozen=True)
class Texts(CountedSource):
    """Another source, of which columns of texts become columns of token ids.

    Column NAME int32 (length,) holds ids, padded behind the end (by 0, or by what a tokenizer that
    was given has for it), and NAME_length int32 () how many are no padding. Of a pair of texts
    NAME_types int32 (length,) is 0 in the first and 1 in the second. Columns of numbers stay;
    other texts are left out. What a vocabulary is learnt from is the whole split "train".

    Texts are encoded when a split is first opened, and kept in the cache.

    Attributes:
      source: where the texts come from.
      vocabulary: `Words`, `Characters` or `Subwords`.
      columns: column of tokens NAME -> the column of `source` it is made of; or the two columns of
        a pair.
      length: tokens that are kept of a text, special ones included. Of longer texts 128 characters
        for each are looked at.
      truncate: which side of a longer text is cut off, "end" or "start".
      buckets: shorter lengths, ascending. A batch is cut to the first of them that holds its
        longest text, which saves work and compiles the step once for each.
      begin_end: columns of tokens in which [BOS] begins and [EOS] ends each text, or what the
        vocabulary has for them. BERT's [CLS] and [SEP] are there without being asked for, and so is
        the token that Llama's tokenizers begin a text with.
      words: whether NAME_words int32 (length,) numbers the words that tokens are of, in each text
        from 0; -1 for special tokens and padding.
      keep: columns of `source` of which the text itself is kept, as COLUMN_bytes uint8 (bytes of
        the longest text of the split,): UTF-8, 0 behind its end.
      labels: columns of labels by word -> the column of tokens that is made of the words. In
        `source` a text is a list of words there, and its labels whole numbers, one for each. Here
        they are int32 (length,): a word's label at its first token, -1 at all others.
      pack: whether texts stand next to each other in rows of `length`, each where there first is
        room, with NAME_segments int32 (length,): 1, 2, ... for the texts of a row, 0 for padding.
        Examples are rows then, and no other column stays. For language models.
    """

    source: SplitSource
    vocabulary: Vocabulary
    columns: Mapping[str, str | tuple[str, str]]
    length: int
    truncate: str = "end"
    buckets: tuple[int, ...] = ()
    begin_end: tuple[str, ...] = ()
    words: bool = False
    keep: tuple[str, ...] = ()
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pack: bool = False

    def __post_init__(self):
        require_sizes(self, "length", "buckets")
        require_choice(self, "truncate", "end", "start")
        if not self.columns:
            raise ConfigError('Texts.columns: is empty; give such as {"tokens": "text"}.')
        widths = (*self.buckets, self.length + (self.length not in self.buckets))
        if any(a >= b for a, b in itertools.pairwise(widths)):
            raise ConfigError(
                f"Texts.buckets: {self.buckets} given; allowed: ascending numbers up to "
                f"Texts.length, {self.length}."
            )
        if strange := [name for name in self.begin_end if name not in self.columns]:
            raise ConfigError(
                f"Texts.begin_end: {strange[0]!r} is no column of tokens; there are "
                f"{listed(self.columns)}.{nearest(strange[0], self.columns)}"
            )
        for tokens in self.labels.values():
            if not isinstance(self.columns.get(tokens), str):
                raise ConfigError(
                    f"Texts.labels: {tokens!r} is no column of tokens made of one of words; there "
                    f"are {listed(self.columns)}.{nearest(tokens, self.columns)}"
                )
        if wrong := [name for name, of in self.columns.items() if not _one_or_two(of)]:
            raise ConfigError(
                f"Texts.columns: {self.columns[wrong[0]]!r} given for {wrong[0]!r}; the name of a "
                "column is needed, or those of a pair."
            )
        several = len(self.columns) > 1 or len(self._named) > 1
        if self.pack and (several or self.buckets or self.keep or self.words or self.labels):
            raise ConfigError(
                "Texts.pack: takes one column of texts, without buckets, keep, words and labels."
            )

    def __str__(self) -> str:
        return f"texts of {self.source}"

    @property
    def _named(self) -> tuple[str, ...]:
        """The columns of the source that become tokens, each once."""
        given = ([of] if isinstance(of, str) else of for of in self.columns.values())
        return tuple(dict.fromkeys(name for names in given for name in names))

    @functools.cached_property
    def _opened(self) -> dict[Any, Any]:
        """What was opened: the splits of an experiment share it, and its vocabulary."""
        return {}

    def splits(self, data_dir: PathLike | None = None) -> tuple[str, ...]:
        """See `Source.splits`."""
        return tuple(self.source.splits(data_dir))

    def shards(self, data_dir: PathLike | None = None) -> dict[str, list[int]]:
        """See `SplitSource.shards`; encodes where texts are packed."""
        return super().shards(data_dir) if self.pack else self.source.shards(data_dir)

    def open_split(self, name: str, data_dir: PathLike | None = None) -> Dataset:
        """See `SplitSource.open_split`."""
        key = name, data_dir and str(data_dir)
        if key not in self._opened:
            self._opened[key] = self._encoded(self._texts_of(name, data_dir), data_dir)
        return self._opened[key]

    def encoder(self, data_dir: PathLike | None = None) -> Encoder:
        """Returns how texts are encoded; learns the vocabulary where that was not done before.

        Raises:
          DataError: the data or a tokenizer is not there, or it does not fit.
          ConfigError: `length` has no room for a text.
        """
        key = None, data_dir and str(data_dir)
        if key not in self._opened:
            self._opened[key] = self._encoder(self._tokenizer(data_dir))
        return self._opened[key]

    def _encoder(self, tokenizer: str) -> Encoder:
        columns = {n: (of,) if isinstance(of, str) else tuple(of) for n, of in self.columns.items()}
        return Encoder(
            tokenizer=tokenizer,
            columns=columns,
            length=self.length,
            truncate=self.truncate,
            buckets=tuple(dict.fromkeys((*self.buckets, self.length))),
            begin_end=tuple(self.begin_end),
            words=self.words or bool(self.labels),
            labels=dict(self.labels),
        )

    def _tokenizer(self, data_dir: PathLike | None) -> str:
        """What the tokenizer.json of the vocabulary holds."""
        found = self.vocabulary.found(data_dir)
        if found is not None:
            return found.to_str()
        if "train" not in (splits := self.splits(data_dir)):
            raise DataError(
                f"Texts.vocabulary: is learnt from split 'train', and {self.source} has "
                f"{listed(splits)}."
            )
        import tokenizers

        texts = self._texts_of("train", data_dir)
        key = digest(_VERSION, tokenizers.__version__, texts.digest, repr(self.vocabulary))
        path = cache.root() / "tokenizers" / f"{type(self.vocabulary).__name__}-{key}.json"
        with contextlib.suppress(Exception):  # not there, or damaged: the library raises bare ones
            return tokenizers.Tokenizer.from_str(path.read_text()).to_str()
        _log.info("%s: learning the vocabulary, once", self)
        learnt = self.vocabulary.learnt(texts.texts).to_str()
        entries.keep(path, learnt.encode())
        return learnt

    def _texts_of(self, name: str, data_dir: PathLike | None) -> "_Split":
        key = "texts", name, data_dir and str(data_dir)
        if key not in self._opened:
            dataset = self.source.open_split(name, data_dir).by_example()
            fields = {**dict.fromkeys(self.labels, "labels"), **dict.fromkeys(self.keep, "keep")}
            for column, field in (fields | dict.fromkeys(self._named, "columns")).items():
                if column not in dataset.spec:
                    raise DataError(
                        f"Texts.{field}: {self.source} has no column {column!r}; it has "
                        f"{listed(dataset.spec)}.{nearest(column, dataset.spec)}"
                    )
            named = f"{self.source} {name}", dataset, self._named, self.keep
            labels = {name: (to, self.columns[to]) for name, to in self.labels.items()}
            self._opened[key] = _Split(*named, labels)
        return self._opened[key]

    def _encoded(self, texts: "_Split", data_dir: PathLike | None) -> TextRows:
        encoder = self.encoder(data_dir)
        facts = [_VERSION, texts.digest, encoder.sha256, encoder.to_json(), self.pack]
        path = cache.root() / "texts" / f"{digest(facts)}.npz"
        arrays = entries.kept(path)
        if arrays is None:
            _log.info("%s: encoding %s examples, once", texts.name, f"{len(texts.dataset):,}")
            arrays = texts.encoded(encoder)
            if self.pack:
                arrays = _pack(arrays, next(iter(self.columns)), self.length)
            entries.keep_arrays(path, arrays)
        _say_empty(texts.name, encoder, arrays)
        known = {part: of for name in encoder.columns for part, of in encoder.parts(name).items()}
        known |= {name + SEGMENTS: (0, np.int32) for name in encoder.columns if self.pack}
        known |= {name + BYTES: (0, np.uint8) for name in self.keep}
        known |= dict.fromkeys(self.labels, (-1, np.int32))
        columns = {n: (_ragged(arrays, n), *of) for n, of in known.items()}
        others = {} if self.pack else texts.others({*known, *(n + LENGTH for n in self.columns)})
        return TextRows(texts.dataset, encoder, columns, others, texts.digest)

    def spec(self, split: str, data_dir: PathLike | None = None) -> Spec:
        """See `Source.spec`; the data need not be there, unless texts of it are kept."""
        if self.pack:  # no other column stays
            (name,) = self.columns
            segments = jax.ShapeDtypeStruct((self.length,), np.int32)
            return self.tokens_spec() | {name + SEGMENTS: segments}
        if self.keep:
            return self.open(split, data_dir).spec
        taken = (*self._named, *self.labels)
        return self.tokens_spec() | _numbers(self.source.spec(split, data_dir), taken)

    def tokens_spec(self) -> Spec:
        """Returns shape and dtype of one example of the columns made of texts; needs no data."""
        return self._encoder("").spec()


def _one_or_two(of: Any) -> bool:
    names = [of] if isinstance(of, str) else list(of)
    return len(names) in (1, 2) and all(isinstance(name, str) for name in names)


class _Split:
    """The texts of a split, read some at a time, as often as they are asked for."""

    def __init__(
        self,
        name: str,
        dataset: Dataset,
        named: tuple[str, ...],
        keep: tuple[str, ...],
        labels: Mapping[str, tuple[str, str]],
    ):
        self.name, self.dataset, self._named, self._keep = name, dataset, named, keep
        self._labels = labels

    def _chunks(self) -> Iterator[dict[str, list[Any]]]:
        """Yields columns of some examples: texts as str or lists of words, labels as lists."""
        for start in range(0, len(self.dataset), _SOME):
            rows = np.arange(start, min(start + _SOME, len(self.dataset))).tolist()
            batch = self.dataset.take(np.asarray(rows))
            texts = {
                name: [
                    text_or_words(x, lambda n=name, at=row: self._where(n, at))
                    for row, x in zip(rows, batch[name], strict=True)
                ]
                for name in dict.fromkeys((*self._named, *self._keep))
            }
            yield texts | {
                name: [
                    labels_of(words, x, lambda n=name, at=row: self._where(n, at))
                    for row, words, x in zip(rows, texts[of], batch[name], strict=True)
                ]
                for name, (_, of) in self._labels.items()
            }

    def _where(self, name: str, row: int) -> str:
        return f"column {name!r}: {self.dataset.where(row)}"

    def texts(self) -> Iterator[str]:
        """Yields all texts that become tokens."""
        for chunk in self._chunks():
            for name in self._named:
                yield from (x if isinstance(x, str) else " ".join(x) for x in chunk[name])

    @functools.cached_property
    def digest(self) -> str:
        """The checksum of the texts, which are read for it."""
        found = hashlib.sha256(repr((self._named, self._keep)).encode())
        for chunk in self._chunks():
            for values in chunk.values():
                for value in values:
                    content = (value if isinstance(value, str) else repr(value)).encode()
                    found.update(b"%d " % len(content))  # where one ends and the next begins
                    found.update(content)
        return found.hexdigest()[:16]

    def encoded(self, encoder: Encoder) -> dict[str, np.ndarray]:
        """Returns "COLUMN/values" and "COLUMN/offsets" of every column (N, T)."""
        rows: dict[str, list[np.ndarray]] = {}
        dtype = np.uint16 if len(encoder.names) <= 1 << 16 else np.int32
        for chunk in self._chunks():
            for name, of in encoder.columns.items():
                texts = chunk[of[0]] if len(of) == 1 else [*zip(*map(chunk.get, of), strict=True)]
                for at in range(0, len(texts), _ENCODED):
                    made = encoder.encode(name, texts[at : at + _ENCODED])
                    for label in (n for n, (to, _) in self._labels.items() if to == name):
                        given = chunk[label][at : at + _ENCODED]
                        made[label] = list(map(by_token, given, made[name + WORDS]))
                    for part, found in made.items():
                        small = dtype if part == name else np.int32
                        rows.setdefault(part, []).extend(x.astype(small) for x in found)
            for name in self._keep:
                if not all(isinstance(text, str) for text in chunk[name]):
                    raise DataError(
                        f"Texts.keep: {self.name} has lists of words in column {name!r}; a column "
                        "of texts is needed."
                    )
                kept = (np.frombuffer(text.encode(), np.uint8) for text in chunk[name])
                rows.setdefault(name + BYTES, []).extend(kept)
        ragged = {name: Ragged.of(of, of[0].dtype) for name, of in rows.items()}
        return {f"{n}/{of}": x for n, row in ragged.items() for of, x in row._asdict().items()}

    def others(self, taken: set[str]) -> Columns:
        """Returns the columns of numbers (N, ...) beside the texts."""
        numbers = _numbers(self.dataset.spec, (*self._named, *self._labels))
        if both := taken.intersection(numbers):
            raise ConfigError(f"Texts.columns: the source has a column {min(both)!r} of its own.")
        return {name: self.dataset.column(name) for name in numbers}


def _numbers(spec: Spec, named: tuple[str, ...]) -> Spec:
    """What stands beside the texts: the other columns of numbers."""
    return {n: x for n, x in spec.items() if x.dtype.kind in "biuf" and n not in named}


def _pack(arrays: dict[str, np.ndarray], name: str, length: int) -> dict[str, np.ndarray]:
    rows, segments = packed(_ragged(arrays, name), length)
    made = {name: rows, name + SEGMENTS: segments}
    return {f"{n}/{of}": x for n, row in made.items() for of, x in row._asdict().items()}


def _ragged(arrays: Mapping[str, np.ndarray], name: str) -> Ragged:
    return Ragged(arrays[f"{name}/values"], arrays[f"{name}/offsets"])


def _say_empty(name: str, encoder: Encoder, arrays: Mapping[str, np.ndarray]) -> None:
    """Warns of texts that hold no token but special ones, or none that is known."""
    unknown = encoder.names.index("[UNK]") if "[UNK]" in encoder.names else -1
    for column in encoder.columns:
        values, offsets = _ragged(arrays, column)
        real = ~np.isin(values, encoder.special)
        # Sums from the beginning: of an empty row the difference is 0.
        count, known = (
            np.diff(np.concatenate([[0], np.cumsum(of)])[offsets])
            for of in (real, real & (values != unknown))
        )
        for what, rows in (
            ("empty", count == 0),
            ("of unknown tokens alone", (known == 0) & (count > 0)),
        ):
            if found := int(rows.sum()):
                line = "%s: %s of %s texts in column %r are %s."
                _log.warning(line, name, f"{found:,}", f"{len(rows):,}", column, what)
