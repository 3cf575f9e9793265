"""Learns a tokenizer from texts, and writes it as the library `tokenizers` does.

    python -m lsm.data.tokenize train 'corpus/*.txt' --kind=bpe --size=8000 --out=DIR
    python -m lsm.data.tokenize train tfds:NAME --kind=unigram --out=DIR [--data_dir=DIR]

Inputs are those of `python -m lsm.data.tokenize`. DIR/tokenizer.json is the same for the same texts
on any machine. They are read once, or twice for "wordpiece"; memory grows with their different
words alone. Its special tokens are [PAD] [UNK] [BOS] [EOS], of "wordpiece" BERT's; with it,
`lsm.data.tokenize` wants --eos='[EOS]', or '[SEP]'.
"""

import functools
import os
import sys
import time
from collections.abc import Iterator, Sequence

from absl import flags, logging

from lsm import command_line
from lsm.data import documents
from lsm.data.dataset import PathLike
from lsm.data.documents import Input, Position
from lsm.data.texts.vocabulary import Subwords
from lsm.errors import ConfigError, DataError
from lsm.files import atomic_write, expanded, readable_disk_errors

_KINDS = ("bpe", "wordpiece", "unigram")


def train(inputs: Sequence[Input], vocabulary: Subwords, out: PathLike) -> int:
    """Writes `out`/tokenizer.json, learnt from all texts of the inputs; returns its number of ids.

    Raises:
      DataError: an input cannot be read or there is no text, or `out` has another tokenizer.
      TrainingError: the disk cannot be written.
    """
    path = expanded(out, "--out") / "tokenizer.json"
    vocabulary.found(None)  # whether the libraries are there
    learnt = vocabulary.learnt(lambda: _texts(inputs))
    content = learnt.to_str(pretty=True).encode()
    if path.exists() and path.read_bytes() != content:
        raise DataError(f"--out: {path} is another tokenizer; give another folder, or remove it.")
    with readable_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, content)
    return learnt.get_vocab_size()


def _texts(inputs: Sequence[Input]) -> Iterator[str]:
    """All texts, in pieces, with a line on stderr now and then, and at the end a check."""
    live, characters, shown = sys.stderr.isatty(), 0, time.monotonic()
    for piece in documents.read(inputs, Position(), cut=True):
        characters += len(piece.text)
        if time.monotonic() - shown > (1 if live else 30):
            shown = time.monotonic()
            line = f"read {characters / 1e6:,.0f} million characters"
            print(line, end="\r" if live else "\n", file=sys.stderr, flush=True)
        if piece.text:
            yield piece.text
    if not characters:
        raise DataError("the inputs hold no text.")


def main(argv: Sequence[str]) -> int:
    """Runs the command line without its first word; returns the exit status."""
    return command_line.run(_act, _flags(), argv, doc=__doc__, words=True)


def _flags() -> flags.FlagValues:
    given = flags.FlagValues()
    string = functools.partial(flags.DEFINE_string, flag_values=given)
    flags.DEFINE_enum("kind", "bpe", _KINDS, "what is learnt", flag_values=given)
    flags.DEFINE_integer("size", 8000, "number of ids", 1, flag_values=given)
    flags.DEFINE_bool("lower", False, "whether capital letters become small ones", given)
    string("out", None, "folder for tokenizer.json; made if it is not there", required=True)
    string("slice", "train", "what to read of TFDS, as train[:99%]")
    string("column", "text", "field of JSON, or feature of TFDS, with the text")
    string("data_dir", None, "where TFDS datasets are; default TFDS's own place")
    return given


def _act(given: flags.FlagValues, inputs: list[str]) -> None:
    if not inputs:
        raise ConfigError("no input given; files, patterns of them or tfds:NAME are needed.")
    logging.set_verbosity(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    start = time.perf_counter()
    sources = documents.find(inputs, given.slice, given.column, given.data_dir)
    vocabulary = Subwords(kind=given.kind, size=given.size, lower=given.lower)
    ids = train(sources, vocabulary, given.out)
    path = expanded(given.out, "--out") / "tokenizer.json"
    print(f"{path}: {given.kind} of {ids:,} ids ({time.perf_counter() - start:.0f} s)")
