"""Tokens that begin and end a text: what a tokenizer puts there itself, and what it could."""

from typing import Any

from lsm.data.texts import learn
from lsm.errors import ConfigError, listed

_PAIRS = (
    (learn.BOS, learn.EOS),
    ("<s>", "</s>"),
    ("<|endoftext|>", "<|endoftext|>"),
    ("<|begin_of_text|>", "<|end_of_text|>"),  # Llama 3's
    ("<bos>", "<eos>"),  # Gemma's
)


def around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Returns the ids that a `tokenizers.Tokenizer` puts before a text, and behind it."""
    import tokenizers

    # Around a word that is no special token, whatever the tokenizer's own words are.
    one = tokenizers.Tokenizer(tokenizers.models.WordLevel({"-": 0}, unk_token="-"))
    one.post_processor = tokenizer.post_processor
    made = one.encode("-")
    at = made.special_tokens_mask.index(0)
    return made.ids[:at], made.ids[at + 1 :]


def ends_of(tokenizer: Any) -> tuple[str, str] | None:
    """Returns the names of the tokens that begin and end a text, where its vocabulary has both.

    What the tokenizer puts around a text itself is of them.
    """
    before, behind = around(tokenizer)
    for begin, end in _PAIRS:
        ids = [tokenizer.token_to_id(begin)], [tokenizer.token_to_id(end)]
        if [None] not in ids and before in ([], ids[0]) and behind in ([], ids[1]):
            return begin, end
    return None


def put_ends(tokenizer: Any, behind: bool = True) -> None:
    """Has a tokenizer begin and end each text, or each of two; BERT's, which do, stay as they are.

    Args:
      tokenizer: a `tokenizers.Tokenizer`.
      behind: whether it also ends them.

    Raises:
      ConfigError: the vocabulary has no such tokens.
    """
    from tokenizers import processors

    there = around(tokenizer)
    if all(there):
        return
    if (found := ends_of(tokenizer)) is None:
        own = listed(map(tokenizer.id_to_token, there[0] + there[1]))
        raise ConfigError(
            "Texts.begin_end: the vocabulary has no tokens that begin and end a text"
            f"{own and f', with {own}, which the tokenizer puts there itself'}; they are "
            f"{listed(f'{begin} and {end}' for begin, end in _PAIRS)}."
        )
    begin, end = found
    ends = ([end], [f"{end}:1"]) if behind else ([], [])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[begin, "$A", *ends[0]],
        pair=[begin, "$A", *ends[0], "$B:1", *ends[1]],
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in dict.fromkeys(found)],
    )
