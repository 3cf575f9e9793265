import collections
import hashlib
import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from lsm.data.texts import learn
from lsm.data.texts.tokenizer import plain

pytest.importorskip("tokenizers", reason="needs pip install 'lsm[text]'")

TEXTS = [
    "The cat sat on the mat, and the dog sat on the log.",
    "Der Hund läuft über die Straße; die Katze schläft.",
    "我喜欢猫 and 猫喜欢我。",
    "emoji 😀😀 👩‍👩‍👧 mixed кириллица ελληνικά",
    "",
    *(f"number {i} of many, running runner runs" for i in range(40)),
]
KINDS = ["bpe", "wordpiece", "unigram"]

LEARN = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from lsm.data.texts import learn
from test_learn import TEXTS
for kind in sys.argv[2:]:
    made = getattr(learn, kind)(lambda: iter(TEXTS), 400, False)
    print(hashlib.sha256(made.to_str().encode()).hexdigest())
"""


def learnt(kind, size=400, lower=False):
    if kind == "unigram":
        pytest.importorskip("sentencepiece", reason="needs pip install 'lsm[text]'")
    return plain(getattr(learn, kind)(lambda: iter(TEXTS), size, lower))


def test_words_are_the_most_frequent_by_count_and_then_sorted():
    made = learn.words(lambda: iter(["b b a a c", "d, b"]), 5, True)
    counted = collections.Counter(["b", "b", "a", "a", "c", "d", ",", "b"])
    ranked = sorted(counted, key=lambda word: (-counted[word], word))
    assert ranked[:2] == ["b", "a"]
    assert made.get_vocab() == {"[PAD]": 0, "[UNK]": 1, "b": 2, "a": 3, ",": 4}
    assert made.encode("B c 😀 a").ids == [2, 1, 1, 3]
    assert made.decode([2, 0, 1, 3]) == "b [UNK] a"


def test_a_chinese_character_is_a_word():
    made = learn.words(lambda: iter(["我喜欢猫"]), 10, False)
    assert made.encode("猫喜").tokens == ["猫", "喜"]


def test_characters_are_code_points():
    made = learn.characters(lambda: iter(["b\na 😀", "猫"]))
    known = sorted({"b", "\n", "a", " ", "😀", "猫"})
    assert [made.id_to_token(i) for i in range(4, 10)] == known
    assert made.get_vocab_size() == 10
    assert made.decode(made.encode("a😀\nb").ids) == "a😀\nb"
    assert made.encode("z").ids == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_come_first(kind):
    expected = ["[PAD]", "[UNK]", "[BOS]", "[EOS]"]
    if kind == "wordpiece":
        expected = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = learnt(kind)
    assert [made.id_to_token(i) for i in range(len(expected))] == expected
    assert made.get_vocab_size() <= 400


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_texts_come_back(kind):
    made = learnt(kind)
    for text in TEXTS[:4]:
        assert made.decode(made.encode(text).ids) == text


def test_an_end_of_a_line_is_a_space_to_unigram():
    made = learnt("unigram")
    assert made.decode(made.encode("the cat\tsat\n").ids) == "the cat sat "


def test_wordpiece_knows_what_it_has_learnt():
    made = learnt("wordpiece", lower=True)
    assert made.decode(made.encode("THE CAT 猫").ids) == "the cat 猫"
    assert made.encode("the").tokens == ["[CLS]", "the", "[SEP]"]


@pytest.mark.parametrize("kind", [*KINDS, "words"])
def test_names_of_special_tokens_in_a_text_are_text(kind):
    made = learnt(kind)
    special = {token for token, number in made.get_vocab().items() if number in (0, 2, 3)}
    special &= {"[PAD]", "[BOS]", "[EOS]", "[MASK]"}
    assert not special.intersection(made.encode("[PAD] [EOS][BOS] [MASK]").tokens)


def test_every_process_learns_the_same():
    kinds = KINDS if importlib.util.find_spec("sentencepiece") else KINDS[:2]
    own = [getattr(learn, kind)(lambda: iter(TEXTS), 400, False).to_str() for kind in kinds]
    root = pathlib.Path(__file__).parents[3]
    # Another order of sets than here.
    seed = "1" if os.environ.get("PYTHONHASHSEED") == "2" else "2"
    env = os.environ | {"PYTHONPATH": str(root), "PYTHONHASHSEED": seed}
    command = [sys.executable, "-c", LEARN, str(pathlib.Path(__file__).parent), *kinds]
    told = subprocess.check_output(command, env=env, encoding="utf-8")
    assert told.splitlines() == [hashlib.sha256(text.encode()).hexdigest() for text in own]


def test_unigram_is_that_of_sentencepiece():
    spm = pytest.importorskip("sentencepiece", reason="needs pip install 'lsm[text]'")
    import io

    made, out = learnt("unigram"), io.BytesIO()
    words = collections.Counter(word for text in TEXTS for word in text.split())
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter([f"{w}\t{n}" for w, n in sorted(words.items())]),
        input_format="tsv",
        model_writer=out,
        vocab_size=399,
        model_type="unigram",
        num_threads=1,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    peer = spm.SentencePieceProcessor(model_proto=out.getvalue())
    for text in TEXTS:
        if text and "👩" not in text:
            assert made.encode(text).tokens == peer.encode(text, out_type=str)
