"""Texts and conversations to ids, as what writes texts needs them."""

import pytest

from lsm.data.inputs import Inputs
from lsm.data.texts.codec import codec_of
from lsm.data.texts.encoder import Encoder, around_as_trained
from lsm.errors import DataError

tokenizers = pytest.importorskip("tokenizers", reason="needs pip install 'lsm[text]'")
pytest.importorskip("jinja2", reason="needs pip install 'lsm[text]'")

WORDS = ["[UNK]", "hi", "you", "there"]
SPECIAL = ["<|user|>", "<|end|>", "[BOS]", "[EOS]"]  # ids 4 to 7
TEMPLATE = (
    "{% for m in messages %}{{ {'user': '<|user|>', 'assistant': 'there'}[m.role] }} "
    "{{ m.content }} {{ eos_token }} {% endfor %}{% if add_generation_prompt %}there {% endif %}"
)
CHAT = {"chat_template": TEMPLATE, "eos_token": "<|end|>"}


def codec(post_processor=None, **changes):
    model = tokenizers.models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="[UNK]")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(SPECIAL)
    made.post_processor = post_processor
    fields = {"length": 8, "truncate": "end", "buckets": (8,), "begin_end": (), "words": False}
    columns = {"tokens": ("text",)}
    encoder = Encoder(made.to_str(), columns, **fields | changes)
    again = Encoder.from_json(encoder.to_json(), encoder.tokenizer)
    assert again.to_json() == encoder.to_json()
    return codec_of(Inputs({}, encoder=again))


def test_a_text_that_goes_on_has_no_end_and_is_not_cut():
    made = codec(begin_end=("tokens",))
    assert made.encode("hi you " * 6).tolist() == [6, *[1, 2] * 6]
    assert codec().encode("hi").tolist() == [1]
    assert made.ends == {7}


def test_special_tokens_end_a_text_by_their_names():
    """They have no text that a string to stop at could be found in."""
    made = codec(begin_end=("tokens",))
    assert made.ends_at(["<|end|>", "hi", "no"]) == made.ends | {5}
    assert made.ends_at([]) == made.ends


def test_what_is_put_around_a_text_is_written_into_the_tokenizer():
    """For others, which know nothing of `begin_end`; a text that goes on has no end."""
    for encoder, goes_on, expected in (
        (codec(begin_end=("tokens",)).encoder, True, [6, 1]),
        (codec(begin_end=("tokens",)).encoder, False, [6, 1, 7]),
        (codec().encoder, True, [1]),
    ):
        made = tokenizers.Tokenizer.from_str(around_as_trained(encoder, goes_on))
        assert made.encode("hi").ids == expected
    pair = tokenizers.Tokenizer.from_str(
        around_as_trained(codec(begin_end=("tokens",)).encoder, False)
    )
    assert pair.encode("hi", "you").ids == [6, 1, 7, 2, 7]


def test_a_text_that_goes_on_begins_as_the_tokenizer_has_it():
    bos = tokenizers.processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 6)])
    both = tokenizers.processors.BertProcessing(("[EOS]", 7), ("[BOS]", 6))
    for made in (codec(bos), codec(both), codec(bos, begin_end=("tokens",))):
        row = made.encoder.read("tokens", ["hi you"])["tokens"][0].tolist()
        assert made.encode("hi you").tolist() == row[:3] == [6, 1, 2]
        assert made.encode("").tolist() == [6] and made.ends == {7}


def test_what_begins_a_conversation_is_the_template_s():
    bos = tokenizers.processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 6)])
    begins = CHAT | {"chat_template": "[BOS] " + TEMPLATE}
    messages = [{"role": "user", "content": "hi"}]
    assert codec(bos, chat=begins).chat(messages).tolist() == [6, 4, 1, 5, 3]
    assert codec(bos, chat=CHAT).chat(messages).tolist() == [4, 1, 5, 3]


def test_special_tokens_are_words_in_a_text_and_tokens_in_a_conversation():
    made = codec(chat=CHAT)
    assert made.encode("<|end|>").tolist() == [0]
    messages = [{"role": "user", "content": "hi you"}]
    assert made.chat(messages).tolist() == [4, 1, 2, 5, 3]


def test_texts_end_where_tokenizer_template_or_model_say():
    assert codec(chat=CHAT).ends == {5, 7}
    assert codec(chat=CHAT, eos=(1, 2)).ends == {1, 2, 5, 7}


def test_a_turn_may_end_with_another_token_than_a_text():
    """As Llama 3's do, and ChatML's beside an eos_token of the base model."""
    assert codec(chat=CHAT | {"eos_token": "[EOS]"}).ends == {7}
    template = TEMPLATE.replace("{{ eos_token }}", "<|end|>")
    assert codec(chat={"chat_template": template, "eos_token": "[EOS]"}).ends == {5, 7}
    refuses = "{{ raise_exception('no') }}"
    assert codec(chat={"chat_template": refuses, "eos_token": "[EOS]"}).ends == {7}


def test_a_conversation_without_a_template_is_one_line():
    messages = [{"role": "user", "content": "hi"}]
    for made in (codec(), codec_of(Inputs({}, characters="hi "))):
        with pytest.raises(DataError, match="messages given, but the run has kept no chat templ"):
            made.chat(messages)
    with pytest.raises(DataError, match="'role' and 'content' are needed"):
        codec(chat=CHAT).chat([{"content": "hi"}])
    with pytest.raises(DataError, match="kept no tokenizer"):
        codec_of(Inputs({}))
