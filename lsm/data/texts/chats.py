"""Conversations as examples, by the model's own chat template: to learn answers, or preferences."""

import abc
import dataclasses
import functools
import glob
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lsm.checks import require_sizes
from lsm.data import cache
from lsm.data.dataset import Dataset, PathLike, digest
from lsm.data.source import CountedSource
from lsm.data.texts import entries
from lsm.data.texts.encoder import SEGMENTS, Encoder, Ragged
from lsm.data.texts.lines import JsonLines, files_of
from lsm.data.texts.packing import packed
from lsm.data.texts.rows import TextRows
from lsm.data.texts.template import ASSISTANT, ChatTemplate, Message, check_messages
from lsm.data.texts.tokenizer import read
from lsm.errors import ConfigError, DataError
from lsm.files import expanded

_log = logging.getLogger("lsm.data")
_VERSION = 2  # counts changes of how conversations are encoded, so that old entries are not used
_SOME = 64  # conversations that are encoded at a time

WEIGHT = "weight"
"""The column that weighs targets: 1 for those of answers, else 0."""


class Conversation(NamedTuple):
    """What an example is made of.

    Attributes:
      messages: of the conversation.
      tools: JSON schemas of functions, or None.
      known: how many answers at its beginning are not learnt.
    """

    messages: Sequence[Message]
    tools: Any = None
    known: int = 0


class ChatTokenizer:
    """A tokenizer and the chat template beside it: of conversations it makes tokens."""

    def __init__(self, folder: pathlib.Path, field: str = "Chats.tokenizer"):
        """Reads both from a folder, which `field` names in errors."""
        self.template = ChatTemplate.of(folder, field)
        tokenizer = read(folder, field)
        self.json = tokenizer.to_str()
        # The template writes special tokens by their names.
        tokenizer.encode_special_tokens = False
        self._tokenizer = tokenizer

    def encoded(
        self, conversations: Sequence[Conversation]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields of each the ids (n,) int64, and whether each is of an answer."""
        made = [self.template.answers(one.messages, one.tools) for one in conversations]
        # JSON may hold half a pair of surrogates, which is no text.
        texts = [text.encode(errors="replace").decode() for text, _ in made]
        found = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        for one, (_, spans), given in zip(found, made, conversations, strict=True):
            offsets_Nx2 = np.array(one.offsets, np.int64).reshape(-1, 2)
            yield np.array(one.ids, np.int64), _within(offsets_Nx2, spans[given.known :])


def _within(offsets_Nx2: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Returns whether tokens (N,) overlap a span of characters; spans are in order and apart."""
    starts, stops = np.array([(0, 0), *spans], np.int64).T  # the first holds nothing
    span_N = np.searchsorted(starts, offsets_Nx2[:, 1], side="left") - 1
    return (offsets_Nx2[:, 0] < stops[span_N.clip(0)]) & (span_N >= 0)


@dataclasses.dataclass(frozen=True)
class _Conversations(CountedSource):
    """JSON lines with conversations in them; what an example is made of, subclasses say."""

    path: str
    tokenizer: str
    length: int

    def __post_init__(self):
        require_sizes(self, "length")
        for field in ("path", "tokenizer"):
            if not getattr(self, field):
                raise ConfigError(f"{type(self).__name__}.{field}: is empty.")

    def __str__(self) -> str:
        return f"conversations {self.path}"

    @property
    @abc.abstractmethod
    def _texts(self) -> tuple[str, ...]:
        """The columns of tokens."""

    @abc.abstractmethod
    def _encoded(self, lines: JsonLines, codec: ChatTokenizer) -> dict[str, Ragged]:
        """Returns the columns of all examples."""

    def _weight(self, name: str) -> str:
        """The column that weighs the tokens of another, but for the first."""
        return f"{name}_{WEIGHT}"

    def splits(self, data_dir: PathLike | None = None) -> tuple[str, ...]:
        """See `Source.splits`; no file is opened."""
        return tuple(files_of(_found(self.path, f"{type(self).__name__}.path", data_dir)))

    def open_split(self, name: str, data_dir: PathLike | None = None) -> Dataset:
        """See `SplitSource.open_split`."""
        key = name, data_dir and str(data_dir)
        if key not in self._opened:
            path = _found(self.path, f"{type(self).__name__}.path", data_dir)
            lines = JsonLines(files_of(path)[name])
            self._opened[key] = self._rows(name, lines, self._codec(data_dir))
        return self._opened[key]

    @functools.cached_property
    def _opened(self) -> dict[Any, Any]:
        """What was opened: the splits of an experiment share the tokenizer."""
        return {}

    def _codec(self, data_dir: PathLike | None) -> ChatTokenizer:
        key = None, data_dir and str(data_dir)
        if key not in self._opened:
            field = f"{type(self).__name__}.tokenizer"
            self._opened[key] = ChatTokenizer(_found(self.tokenizer, field, data_dir), field)
        return self._opened[key]

    def _rows(self, split: str, lines: JsonLines, codec: ChatTokenizer) -> "ChatRows":
        encoder = Encoder(
            tokenizer=codec.json,
            columns={name: (name,) for name in self._texts},
            length=self.length,
            truncate="end",
            buckets=(self.length,),
            begin_end=(),
            words=False,
            chat=codec.template.to_json(),
        )
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        facts = [_VERSION, lines.sha256, encoder.sha256, repr(codec.template), settings]
        path = cache.root() / "texts" / f"{type(self).__name__}-{digest(*facts)}.npz"
        arrays = entries.kept(path)
        if arrays is None:
            _log.info("%s: encoding %s conversations, once", self, f"{len(lines):,}")
            columns = self._encoded(lines, codec)
            arrays = {f"{n}/{k}": x for n, of in columns.items() for k, x in of._asdict().items()}
            entries.keep_arrays(path, arrays)
        names = dict.fromkeys(name.partition("/")[0] for name in arrays)
        columns = {n: Ragged(arrays[f"{n}/values"], arrays[f"{n}/offsets"]) for n in names}
        if not len(columns[self._texts[0]].offsets) - 1:
            raise DataError(f"{self}: split {split!r} has no answer within {self.length} tokens.")
        kinds = dict.fromkeys(self._texts, (encoder.pad, np.int32))
        kinds |= {self._weight(name): (0, np.float32) for name in self._texts}
        known = {name: (of, *kinds.get(name, (0, np.int32))) for name, of in columns.items()}
        return ChatRows(lines, encoder, known, {}, digest(lines.sha256, repr(codec.template)))


class ChatRows(TextRows):
    """Rows of tokens; the columns of weights begin with the second token."""

    def _width(self, name: str) -> int:
        return super()._width(name) - name.endswith(WEIGHT)


@dataclasses.dataclass(frozen=True)
class Chats(_Conversations):
    """Conversations whose answers are learnt: a line of JSON has "messages", a list of
    {"role": ..., "content": ...}, and may have "tools".

    Texts are made by the model's own chat template. Column "tokens" int32 (length,) holds ids,
    padded behind the end, "tokens_length" int32 () how many are no padding, and "weight" float32
    (length - 1,) is 1 for each token behind the first that the assistant writes, with the one that
    ends its turn, and else 0. Longer conversations are cut off at the end; those without an answer
    are left out, and counted in a warning. For `lsm.tasks.LanguageModelling`.

    Names of special tokens in a message are such tokens, as `transformers` has it. A template that
    writes today's date is told 26 July 2024, whatever the day.

    Attributes:
      path: JSON lines: a file, a folder or a pattern, as of `lsm.data.Files`.
      tokenizer: folder with tokenizer.json, and chat_template.jinja or tokenizer_config.json.
      length: tokens of a row.
      pack: whether conversations stand next to each other in rows, as of `lsm.data.Texts`, with
        "tokens_segments".
    """

    pack: bool = False
    _texts = ("tokens",)

    def _weight(self, name: str) -> str:
        return WEIGHT

    def _encoded(self, lines: JsonLines, codec: ChatTokenizer) -> dict[str, Ragged]:
        rows = []
        for at in range(0, len(lines), _SOME):
            some = range(at, min(at + _SOME, len(lines)))
            given = [
                Conversation(_messages(lines, i, "messages"), lines.get(i, "tools")) for i in some
            ]
            rows += _cut(lines, some, codec, given, self.length)
        rows = [(ids, answers) for ids, answers in rows if answers[1:].any()]
        _tell(self, len(lines) - len(rows), len(lines))
        # One number for both, so that they are packed alike.
        both = Ragged.of([ids << 1 | answers for ids, answers in rows], np.int64)
        columns = {}
        if self.pack:
            both, columns["tokens" + SEGMENTS] = packed(both, self.length)
        return {"tokens": _ids(both), WEIGHT: _weights(both), **columns}


@dataclasses.dataclass(frozen=True)
class Preferences(_Conversations):
    """Pairs of answers, one preferred: a line of JSON has "prompt", "chosen" and "rejected".

    Each is a text, which the user says or the assistant answers, or a list of messages. Columns
    "chosen" and "rejected" int32 (length,) hold the prompt with either answer by the model's own
    chat template, padded behind the end, with "chosen_length" int32 () and "chosen_weight" float32
    (length - 1,), which is 1 for each token of the answer, and likewise of "rejected". Longer ones
    are cut off at the end; pairs that lose an answer are left out, and counted in a warning. For
    `lsm.tasks.DirectPreference`.

    Attributes:
      path: JSON lines: a file, a folder or a pattern, as of `lsm.data.Files`.
      tokenizer: folder with tokenizer.json, and chat_template.jinja or tokenizer_config.json.
      length: tokens of a row.
    """

    _texts = ("chosen", "rejected")

    def _encoded(self, lines: JsonLines, codec: ChatTokenizer) -> dict[str, Ragged]:
        rows: dict[str, list] = {name: [] for name in self._texts}
        for at in range(0, len(lines), _SOME):
            some = range(at, min(at + _SOME, len(lines)))
            for name, of in rows.items():
                given = [_answered(lines, i, name) for i in some]
                of += _cut(lines, some, codec, given, self.length)
        pairs = zip(*rows.values(), strict=True)
        whole = [i for i, pair in enumerate(pairs) if all(a[1:].any() for _, a in pair)]
        _tell(self, len(lines) - len(whole), len(lines))
        found = {}
        for name, of in rows.items():
            both = Ragged.of([of[i][0] << 1 | of[i][1] for i in whole], np.int64)
            found |= {name: _ids(both), self._weight(name): _weights(both)}
        return found


def _found(given: str, field: str, data_dir: PathLike | None) -> pathlib.Path:
    """A path in the working directory, else in the data directory."""
    path = expanded(given, field)
    here = data_dir is None or path.exists() or any(glob.iglob(str(path)))
    return path if here else pathlib.Path(data_dir) / path


def _messages(lines: JsonLines, number: int, name: str, role: str | None = None) -> list[Message]:
    """The messages in a field; a text is one of `role`, where that is given."""
    given = lines.field(number, name)
    if role is not None and isinstance(given, str):
        return [{"role": role, "content": given}]
    try:
        check_messages(given)
    except DataError as error:
        raise DataError(f"{lines.where(number)}: field {name!r}: {error}") from error
    return given


def _answered(lines: JsonLines, number: int, name: str) -> Conversation:
    prompt = _messages(lines, number, "prompt", "user")
    known = sum(message["role"] == ASSISTANT for message in prompt)
    answer = _messages(lines, number, name, ASSISTANT)
    return Conversation([*prompt, *answer], lines.get(number, "tools"), known)


def _cut(
    lines: JsonLines,
    numbers: range,
    codec: ChatTokenizer,
    given: Sequence[Conversation],
    length: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the ids of conversations, and which are of answers, as far as there is room."""
    try:
        rows = list(codec.encoded(given))
    except DataError:  # of which is not known: they are tried one by one
        for number, one in zip(numbers, given, strict=True):
            try:
                list(codec.encoded([one]))
            except DataError as error:
                raise DataError(f"{lines.where(number)}: {error}") from error
        raise
    return [(ids[:length], answers[:length]) for ids, answers in rows]


def _ids(both: Ragged) -> Ragged:
    return Ragged((both.values >> 1).astype(np.int32), both.offsets)


def _weights(both: Ragged) -> Ragged:
    """Whether each token behind the first of its row is an answer's; no row is empty."""
    later = np.ones(len(both.values), bool)
    later[both.offsets[:-1]] = False
    offsets = both.offsets - np.arange(len(both.offsets))
    return Ragged((both.values & 1).astype(np.uint8)[later], offsets)


def _tell(source: Any, lost: int, of: int) -> None:
    if lost:
        line = "%s: %s of %s have no answer within %d tokens, and are left out."
        _log.warning(line, source, f"{lost:,}", f"{of:,}", source.length)
