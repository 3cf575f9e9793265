"""Texts of tokenizers of bytes: what begins and ends them, types of pairs, lists of words."""

import numpy as np
import pytest

from lsm.data import Arrays, Subwords, Texts, Words
from lsm.errors import ConfigError

pytest.importorskip("tokenizers", reason="needs pip install 'lsm[text]'")


def column(values):
    made = np.empty(len(values), object)
    made[:] = values
    return made


ONE = Arrays({"text": column(["a"])})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LSM_CACHE", str(tmp_path / "cache"))


def bytewise(path, special, post_processor=None):
    """Writes a tokenizer of bytes with special tokens, from id 0, and what puts them there."""
    import tokenizers

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *letters])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(special)
    made.post_processor = post_processor
    path.mkdir()
    made.save(str(path / "tokenizer.json"))
    return Subwords(path=str(path))


@pytest.mark.parametrize(
    ("special", "own"),
    [
        (["<s>", "</s>"], "<s> $A"),
        (["<|begin_of_text|>", "<|end_of_text|>", "<s>"], "<|begin_of_text|> $A"),
        (["<bos>", "<eos>", "<s>", "</s>"], "<bos> $A"),
        (["[BOS]", "[EOS]"], "$A [EOS]"),
    ],
)
def test_a_text_ends_too_where_the_tokenizer_begins_it_alone(special, own, tmp_path):
    from tokenizers import processors

    named = [(name, number) for number, name in enumerate(special) if name in own.split()]
    alone = processors.TemplateProcessing(single=own, special_tokens=named)
    subwords = bytewise(tmp_path / "a", special, alone)
    made = Texts(ONE, subwords, {"tokens": "text"}, length=8, begin_end=("tokens",)).open("train")
    batch = made.take(np.arange(1))
    ids = batch["tokens"][0, : batch["tokens_length"][0]].tolist()
    assert [made.encoder.names[i] for i in ids] == [special[0], "a", special[1]]
    assert made.encoder.ends == (0, 1) and made.encoder.begins == (0,)


def test_a_text_that_cannot_end_is_told(tmp_path):
    from tokenizers import processors

    alone = processors.TemplateProcessing(single="<go> $A", special_tokens=[("<go>", 0)])
    subwords = bytewise(tmp_path / "a", ["<go>", "<s>", "</s>"], alone)
    with pytest.raises(ConfigError, match=r"no tokens that begin and end a text, with <go>, which"):
        Texts(ONE, subwords, {"tokens": "text"}, length=8, begin_end=("tokens",)).open("train")


def test_pairs_have_types_whatever_the_tokenizer_says(tmp_path):
    from tokenizers import processors

    roberta = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    subwords = bytewise(tmp_path / "a", ["<s>", "</s>"], roberta)
    of = Arrays({"a": column(["ab", ""]), "b": column(["cd", ""])})
    for numbered in (False, True):
        made = Texts(of, subwords, {"tokens": ("a", "b")}, length=9, words=numbered)
        batch = made.open("train").take(np.arange(2))
        # <s> a b </s> </s> c d </s>
        assert batch["tokens_types"].tolist() == [[0, 0, 0, 0, 0, 1, 1, 0, 0], [0] * 9]


def test_words_of_bytes_keep_their_space(tmp_path):
    subwords = bytewise(tmp_path / "a", ["<s>"])
    rows, tags = column([["in", "a", "it"]]), column([[1, 2, 3]])
    made = Texts(
        Arrays({"words": rows, "tags": tags}),
        subwords,
        {"tokens": "words"},
        length=9,
        labels={"tags": "tokens"},
    ).open("train")
    batch = made.take(np.arange(1))
    asked = made.encoder.read("tokens", ["in a it"])
    np.testing.assert_array_equal(batch["tokens"], asked["tokens"])
    assert batch["tags"][0].tolist() == [1, -1, 2, -1, 3, -1, -1, -1, -1]
    assert batch["tokens_words"][0].tolist() == [0, 0, 1, 1, 2, 2, 2, -1, -1]


def test_labels_of_many_words_stay_with_them_where_the_start_is_cut_off():
    rows, tags = column([["a", "b"] * 300]), column([list(range(600))])
    made = Texts(
        Arrays({"words": rows, "tags": tags}),
        Words(6),
        {"tokens": "words"},
        length=4,  # of which 128 times as many words were looked at
        truncate="start",
        labels={"tags": "tokens"},
    )
    batch = made.open("train").take(np.arange(1))
    assert batch["tags"][0].tolist() == batch["tokens_words"][0].tolist() == [596, 597, 598, 599]


def test_what_is_around_a_text_is_what_its_column_has(tmp_path):
    from tokenizers import processors

    own = processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0))
    berts = bytewise(tmp_path / "bert", ["[CLS]", "[SEP]"], own)
    bare = bytewise(tmp_path / "bare", ["<s>", "</s>"])
    for vocabulary, begin_end, expected in (
        (berts, (), ([0], [1])),
        (bare, (), ([], [])),
        (bare, ("tokens",), ([0], [1])),
    ):
        texts = Texts(ONE, vocabulary, {"tokens": "text"}, 8, begin_end=begin_end)
        encoder = texts.open("train").encoder
        assert encoder.around("tokens") == expected
        assert encoder.begins == tuple(expected[0])
