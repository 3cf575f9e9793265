"""The tokenizer that the metadata of a GGUF file tells of, as one of the library `tokenizers`."""

import importlib.util
from collections.abc import Mapping
from typing import Any

from lsm.errors import ConfigError, listed, shortened

_PREFIX = "tokenizer.ggml."
_SPECIAL, _DEFINED = 3, 4
"""Kinds of tokens that are found in a text whole: control tokens, and those that a user defined."""

_KINDS = ("bos", "eos", "eot", "unknown", "padding")
"""Special tokens that a file may name."""

_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPLITS = {
    "gpt-2": None,
    "smollm": None,
    "llama-bpe": rf"{_ENDINGS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_ENDINGS}|{_LETTERS}|\p{{N}}|{_REST}",
}
"""How texts are cut into words, by the name that llama.cpp has for it; None is as GPT-2 does."""


def made(fields: Mapping[str, Any]) -> Any:
    """Returns a `tokenizers.Tokenizer`.

    Args:
      fields: the metadata, by key.

    Raises:
      ConfigError: it is of a kind that is not known here or damaged, or the library is not
        installed.
    """
    if importlib.util.find_spec("tokenizers") is None:
        raise ConfigError("the library tokenizers is not installed; pip install 'lsm[interop]'.")
    kind, split = fields.get(f"{_PREFIX}model"), fields.get(f"{_PREFIX}pre")
    if kind != "gpt2":
        raise ConfigError(f"{_PREFIX}model: {kind!r} given; allowed: 'gpt2', BPE of bytes.")
    if not isinstance(split, str) or split not in _SPLITS:
        raise ConfigError(f"{_PREFIX}pre: {split!r} given; allowed: {listed(_SPLITS)}.")
    for key in ("tokens", "merges"):
        if not fields.get(f"{_PREFIX}{key}"):
            raise ConfigError(f"{_PREFIX}{key}: is not there.")
    begin = special(fields).get("bos")
    add = fields.get(f"{_PREFIX}add_bos_token")
    if add is None:  # then llama.cpp goes by how words are cut, as in files of Llama 3
        add = split == "llama-bpe" and begin is not None
    if not add:
        begin = None
    elif begin is None:
        raise ConfigError(f"{_PREFIX}bos_token_id: is not there, and add_bos_token is.")
    try:
        return _bpe(fields, split, begin)
    except Exception as error:  # of damaged metadata; the library raises bare ones
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{_PREFIX}tokens: no tokenizer can be made: {reason}.") from error


def special(fields: Mapping[str, Any]) -> dict[str, int]:
    """Returns the ids of special tokens, those that there are, by kind.

    Raises:
      ConfigError: one is the id of no token, or the tokens are none.
    """
    tokens = fields.get(f"{_PREFIX}tokens", [])
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ConfigError(f"{_PREFIX}tokens: {shortened(repr(tokens))} given; allowed: names.")
    ids = {kind: fields.get(f"{_PREFIX}{kind}_token_id") for kind in _KINDS}
    found = {kind: number for kind, number in ids.items() if number is not None}
    for kind, number in found.items():
        if type(number) is not int or not 0 <= number < len(tokens):
            raise ConfigError(
                f"{_PREFIX}{kind}_token_id: {shortened(repr(number))} given; allowed: the number "
                f"of a token, of which the file has {len(tokens)}."
            )
    return found


def _bpe(fields: Mapping[str, Any], split: str, begin: int | None) -> Any:
    import tokenizers
    from tokenizers import decoders, models, normalizers

    tokens = fields[f"{_PREFIX}tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields[f"{_PREFIX}merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    # Llama 3's vocabulary has words that no merges lead to.
    model = models.BPE(vocabulary, merges, ignore_merges=split == "llama-bpe")
    tokenizer = tokenizers.Tokenizer(model)
    if split == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _words(split)
    tokenizer.decoder = decoders.ByteLevel()
    for number, kind in enumerate(fields.get(f"{_PREFIX}token_type", ())):
        if kind in (_SPECIAL, _DEFINED):
            special = kind == _SPECIAL
            added = tokenizers.AddedToken(tokens[number], special=special, normalized=False)
            (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([added])
    if begin is not None:
        tokenizer.post_processor = _beginning(tokens[begin], begin)
    return tokenizer


def _words(split: str) -> Any:
    import tokenizers
    from tokenizers import pre_tokenizers

    if split == "smollm":
        cut = [pre_tokenizers.Digits(individual_digits=True)]
    elif _SPLITS[split] is None:
        cut = []
    else:
        cut = [pre_tokenizers.Split(tokenizers.Regex(_SPLITS[split]), "isolated")]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=_SPLITS[split] is None)
    return pre_tokenizers.Sequence([*cut, byte_level])


def _beginning(begin: str, number: int) -> Any:
    from tokenizers import processors

    return processors.TemplateProcessing(
        single=[begin, "$A"],
        pair=[begin, "$A", f"{begin}:1", "$B:1"],
        special_tokens=[(begin, number)],
    )
