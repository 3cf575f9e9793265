"""Subword tokenizers from files, run by the Hugging Face `tokenizers` library."""

import hashlib
import importlib.util
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from lsm.data.dataset import PathLike
from lsm.data.texts import learn
from lsm.errors import DataError, listed, nearest
from lsm.files import expanded

END_OF_TEXT = "<|endoftext|>"
"""GPT-2's token between documents."""

_BPE, _WORDPIECE = ("vocab.json", "merges.txt"), "vocab.txt"
# A text, and where it may be cut: white space after a letter begins a new word.
_SEAMS = ("A first line, 12 words\n\tand a second", "\nline. She's here", "  in the end")


class Tokenizer:
    """Text to token ids and back.

    Text is encoded as it stands: nothing is added, nothing is cut off, and the name of a special
    token within a text is ordinary text, so that a document cannot end itself.

    Attributes:
      name: of the folder, or of the file.
      sha256: of the files' content, hexadecimal.
      vocabulary: one more than the largest id.
      joins: whether the ids of a text are those of its parts, where it is cut before white space
        after a letter. Not so for tokenizers that mark the beginning of a text (SentencePiece's).
    """

    def __init__(self, path: PathLike):
        """Reads a tokenizer; see `read`.

        Args:
          path: a tokenizer.json, or the folder that holds it, GPT-2's pair or BERT's vocab.txt.

        Raises:
          DataError: no such file, one that cannot be read, or the library is not installed.
        """
        files = _files(expanded(path, "--tokenizer"), "tokenizer")
        self._tokenizer = _load(files)
        # Of "llama3.json" the file's name; "tokenizer.json" says nothing, its folder does.
        whole = files[0].stem not in ("tokenizer", "vocab")
        self.name = files[0].stem if whole else files[0].resolve().parent.name
        self.sha256 = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        self._ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocabulary = max(self._ids.values(), default=-1) + 1
        # Tried, not read from the file: its kinds of models and pre-tokenizers are open-ended.
        parts = np.concatenate(self.encode(_SEAMS))
        self.joins = np.array_equal(parts, self.encode(["".join(_SEAMS)])[0])

    @property
    def dtype(self) -> np.dtype:
        """The smallest of uint16 and uint32 that holds every id."""
        return np.dtype("<u2" if self.vocabulary <= 1 << 16 else "<u4")

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids (tokens,) uint16 or uint32 of each text; lets other threads run.

        Raises:
          DataError: the tokenizer has no id for something in a text.
        """
        try:
            # Fast: without the offsets of tokens in the text, which nobody needs here.
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises bare Exceptions
            raise DataError(f"tokenizer {self.name} cannot encode a text: {error}") from error
        return [np.array(encoding.ids, self.dtype) for encoding in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of ids (tokens,), special tokens by their names."""
        return self._tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=False)

    def eos(self, name: str = END_OF_TEXT) -> int:
        """Returns the id of the token `name`, which ends a document.

        Raises:
          DataError: there is no such token; names the special ones that there are.
        """
        if name in self._ids:
            return self._ids[name]
        added = self._tokenizer.get_added_tokens_decoder().values()
        special = [token.content for token in added if token.special]
        bracketed = [token for token in self._ids if re.fullmatch(r"[<\[].+[>\]]", token)]
        # vocab.json does not mark special tokens: then what stands in brackets is a guess.
        there = special or sorted(bracketed)
        raise DataError(
            f"tokenizer {self.name} has no token {name!r} to end a document with; its special "
            f"tokens are {listed(there) or 'none'}.{nearest(name, there)} Choose by --eos, or give "
            "--noappend_eos."
        )


def read(path: PathLike, field: str) -> Any:
    """Returns the `tokenizers.Tokenizer` of a file or folder, which neither cuts nor pads.

    Args:
      path: a tokenizer.json of any model, or the folder that holds one, GPT-2's vocab.json and
        merges.txt, or BERT's vocab.txt.
      field: what names it in an error.

    Raises:
      DataError: no such file, one that cannot be read, or the library is not installed.
    """
    return _load(_files(expanded(path, field), field))


def plain(tokenizer: Any) -> Any:
    """Returns a `tokenizers.Tokenizer` as texts are encoded here, itself changed.

    A file may cut, pad, and take names of special tokens for the tokens: here texts are data.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _files(path: pathlib.Path, field: str) -> list[pathlib.Path]:
    """The files that make the tokenizer at `path`."""
    if path.is_file() and path.name not in _BPE:
        return [path]
    folder = path.parent if path.is_file() else path
    pair = [folder / name for name in _BPE]
    for name in ("tokenizer.json", _WORDPIECE):
        if path.is_dir() and (folder / name).is_file():
            return [folder / name]
    if all(file.is_file() for file in pair):
        return pair
    found = [file.name for file in folder.glob("*")] if folder.is_dir() else []
    state = f"holds {listed(sorted(found)) or 'nothing'}" if folder.is_dir() else "is not there"
    raise DataError(
        f"{field} {path}: {folder} {state}; give a tokenizer.json, or a folder with "
        "tokenizer.json, with vocab.json and merges.txt, or with vocab.txt."
    )


def _load(files: list[pathlib.Path]) -> Any:
    if importlib.util.find_spec("tokenizers") is None:
        raise DataError("the library tokenizers is not installed; pip install 'lsm[text]'.")
    import tokenizers

    try:
        if files[0].name == _WORDPIECE:
            made = _bert(files[0])
        elif len(files) == 1:
            made = tokenizers.Tokenizer.from_file(str(files[0]))
        else:
            made = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(*map(str, files)))
            # The pair holds the merges alone; the rest is GPT-2's.
            byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
            made.pre_tokenizer, made.decoder = byte_level, tokenizers.decoders.ByteLevel()
            made.add_special_tokens([END_OF_TEXT] if made.token_to_id(END_OF_TEXT) else [])
    except Exception as error:  # the library raises bare Exceptions
        reason = " ".join(str(error).split())
        raise DataError(f"tokenizer {files[0]} cannot be read: {reason}") from error
    return plain(made)


def _bert(file: pathlib.Path) -> Any:
    from tokenizers import normalizers

    # Not `splitlines`: U+2028 and the like may be tokens.
    tokens = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    words = [token for token in tokens if not re.fullmatch(r"\[.+\]", token)]
    # A vocabulary of small letters alone is of texts in small letters, without accents.
    lower = all(token == token.lower() for token in words)
    normalizer = normalizers.BertNormalizer(lowercase=lower)
    return learn.bert({token: number for number, token in enumerate(tokens)}, normalizer)
