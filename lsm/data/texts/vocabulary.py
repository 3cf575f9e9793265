"""Vocabularies of texts: of words, characters and subwords, learnt from a split or read."""

import abc
import dataclasses
import importlib.util
import pathlib
from typing import Any

from lsm.checks import require_choice, require_sizes
from lsm.data.dataset import PathLike
from lsm.data.texts import learn
from lsm.data.texts.tokenizer import read
from lsm.errors import ConfigError, DataError
from lsm.files import expanded


class Vocabulary(abc.ABC):
    """What texts are cut into, and how that is numbered. Subclasses are frozen dataclasses.

    Every one is a tokenizer of the Hugging Face `tokenizers` library. Those that are learnt have id
    0 for padding, [PAD], and 1 for what they do not know, [UNK].
    """

    @abc.abstractmethod
    def learnt(self, texts: learn.AllTexts) -> Any:
        """Returns the `tokenizers.Tokenizer` that is learnt from texts; the same from the same."""

    def found(self, data_dir: PathLike | None) -> Any | None:
        """Returns the `tokenizers.Tokenizer` that is there already; None where it is to be learnt.

        Raises:
          DataError: a file is missing or is no tokenizer, or a library is not installed.
        """
        del data_dir
        _check_installed("tokenizers")
        return None


@dataclasses.dataclass(frozen=True)
class Words(Vocabulary):
    """The most frequent words of the split "train": a word is letters and digits, or other signs.

    Ids are 0 for padding, 1 for other words, then words by frequency, equal ones in sorted order. A
    Chinese character is a word. Texts are normalised by NFKC.

    Attributes:
      size: number of ids, at least 3.
      lower: whether capital letters become small ones.
    """

    size: int
    lower: bool = True

    def __post_init__(self):
        _check_size(self, 3)

    def learnt(self, texts: learn.AllTexts) -> Any:
        """See `Vocabulary.learnt`."""
        return learn.words(texts, self.size, self.lower)


@dataclasses.dataclass(frozen=True)
class Characters(Vocabulary):
    """The characters of the split "train", in sorted order; ids 0 to 3 are [PAD] [UNK] [BOS] [EOS].

    A character is a code point; texts stay as they are.
    """

    def learnt(self, texts: learn.AllTexts) -> Any:
        """See `Vocabulary.learnt`."""
        return learn.characters(texts)


@dataclasses.dataclass(frozen=True)
class Subwords(Vocabulary):
    """Parts of words: a tokenizer that is there, or one learnt from the split "train".

    The special tokens of those that are learnt are [PAD] [UNK] [BOS] [EOS], ids 0 to 3, and of
    "wordpiece" BERT's, [PAD] [UNK] [CLS] [SEP] [MASK], ids 0 to 4.

    Attributes:
      path: a tokenizer.json, or the folder of one, of BERT's vocab.txt, or of GPT-2's vocab.json
        and merges.txt. A relative path that is not in the working directory is looked for in the
        data directory.
      kind: what is learnt: "bpe" of bytes, "wordpiece" or "unigram" (which needs the library
        sentencepiece); where there is no path.
      size: number of ids of one that is learnt; texts with few words may give fewer.
      lower: whether capital letters become small ones in one that is learnt.
    """

    path: str | None = None
    kind: str | None = None
    size: int = 8000
    lower: bool = False

    def __post_init__(self):
        if (self.path is None) == (self.kind is None):
            raise ConfigError(
                f"Subwords: path {self.path!r} and kind {self.kind!r} given; one of them is needed."
            )
        if self.kind is not None:
            require_choice(self, "kind", "bpe", "wordpiece", "unigram")
            # The 256 bytes are there before anything is learnt.
            _check_size(self, 260 if self.kind == "bpe" else 16)

    def learnt(self, texts: learn.AllTexts) -> Any:
        """See `Vocabulary.learnt`."""
        made = getattr(learn, self.kind)(texts, self.size, self.lower)
        if (ids := made.get_vocab_size()) > self.size:
            raise DataError(
                f"Subwords.size: {self.size:,} given; the characters of these texts alone take "
                f"{ids:,}, and allowed is that or more."
            )
        return made

    def found(self, data_dir: PathLike | None) -> Any | None:
        """See `Vocabulary.found`."""
        if self.path is None:
            if self.kind == "unigram":
                _check_installed("sentencepiece")
            return super().found(data_dir)
        path = expanded(self.path, "Subwords.path")
        if data_dir is not None and not path.exists():
            path = pathlib.Path(data_dir) / path
        return read(path, "Subwords.path")


def _check_size(vocabulary: Any, least: int) -> None:
    require_sizes(vocabulary, "size")
    if vocabulary.size < least:
        raise ConfigError(
            f"{type(vocabulary).__name__}.size: {vocabulary.size} given; allowed: {least} or more."
        )


def _check_installed(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        raise DataError(f"the library {library} is not installed; pip install 'lsm[text]'.")
