import collections
import dataclasses
import json

import numpy as np
import pytest

from lsm.config import schema
from lsm.data import Arrays, ByLength, EvalBatches, Split, Subwords, Texts, TrainBatches, Words
from lsm.data.inputs import Inputs
from lsm.data.texts.vocabulary import Characters
from lsm.errors import ConfigError, DataError

pytest.importorskip("tokenizers", reason="needs pip install 'lsm[text]'")

TEXTS = ["the cat sat", "the dog", "", "我喜欢 the 猫 😀", "a " * 40, "cat cat zebra"]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "dog", "##s", "!"]


def column(values):
    made = np.empty(len(values), object)
    made[:] = values
    return made


def source(texts=TEXTS, **more):
    labels = np.arange(len(texts), dtype=np.int64)
    return Arrays({"text": column(texts), "label": labels, "other": column(texts)}, **more)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LSM_CACHE", str(tmp_path / "cache"))


def words(**more):
    return Texts(**{"vocabulary": Words(6), "columns": {"tokens": "text"}, "length": 8} | more)


def test_tokens_lengths_and_padding_against_a_reference():
    dataset = words(source=source()).open("train")
    counted = collections.Counter(" ".join(TEXTS).replace("我喜欢", "我 喜 欢").split())
    ranked = sorted(counted, key=lambda word: (-counted[word], word))[:4]
    ids = {word: i for i, word in enumerate(ranked, 2)}
    assert list(ids)[:3] == ["a", "cat", "the"]
    batch = dataset.take(np.arange(6))
    for row, text in enumerate(TEXTS):
        expected = [ids.get(w, 1) for w in text.replace("我喜欢", "我 喜 欢").split()][:8]
        assert batch["tokens"][row].tolist() == expected + [0] * (8 - len(expected))
        assert batch["tokens_length"][row] == len(expected)
    assert batch["label"].tolist() == list(range(6))
    assert batch.keys() == {"tokens", "tokens_length", "label"}
    assert {n: (x.shape[1:], x.dtype) for n, x in batch.items()} == {
        n: (x.shape, x.dtype) for n, x in dataset.spec.items()
    }
    assert dataset.vocabulary_size == 6


def test_the_start_can_be_cut_off():
    made = words(source=source(["the cat sat the dog"]), length=2, vocabulary=Words(9))
    names = made.open("train").encoder.names
    first = made.open("train").take(np.arange(1))["tokens"][0]
    last = dataclasses.replace(made, truncate="start").open("train").take(np.arange(1))["tokens"][0]
    assert [names[i] for i in first] == ["the", "cat"]
    assert [names[i] for i in last] == ["the", "dog"]


def test_the_vocabulary_is_that_of_the_whole_of_train():
    of = source(["a a a b", "c c"], test={"text": column(["z a"]), "label": [0], "other": [""]})
    train, half = (words(source=of).open(split) for split in ("train", "train[:50%]"))
    assert train.encoder.tokenizer == half.encoder.tokenizer
    assert len(half) == 1
    test = words(source=of).open("test").take(np.arange(1))
    assert test["tokens"][0, :3].tolist() == [1, 2, 0]


def test_bert_s_pairs_and_types(tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/vocab.txt").write_text("\n".join(BERT))
    made = words(
        source=source(["The cats!", "dog"]),
        vocabulary=Subwords(path="bert"),
        columns={"tokens": ("text", "other"), "one": "text"},
        length=9,
        words=True,
    ).open("train", tmp_path)
    batch = made.take(np.arange(2))
    # The longer of the two loses a token, until both fit.
    assert batch["tokens"].tolist() == [[2, 5, 6, 9, 3, 5, 6, 9, 3], [2, 8, 3, 8, 3, 0, 0, 0, 0]]
    assert batch["tokens_types"].tolist() == [[0] * 5 + [1] * 4, [0, 0, 0, 1, 1, 0, 0, 0, 0]]
    assert batch["one"][0].tolist() == [2, 5, 6, 9, 10, 3, 0, 0, 0]
    assert batch["one_words"][0].tolist() == [-1, 0, 1, 1, 2, -1, -1, -1, -1]
    assert made.encoder.names.text([2, 5, 6, 9, 3, 0]) == "the cats"


def test_bert_s_tokens_are_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="it is the reference")
    tokens = [*BERT, "他", "na", "##ive", ",", "s", "'", "un", "##k", "##e"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    peer = transformers.BertTokenizerFast.from_pretrained(str(tmp_path))
    pairs = [("Naïve cats, 他他!", "the\tDog's 😀 unke"), ("", "the"), ("the " * 9, "dog sat cat")]
    made = Texts(
        Arrays({"a": column([a for a, _ in pairs]), "b": column([b for _, b in pairs])}),
        Subwords(path=str(tmp_path)),
        {"tokens": ("a", "b")},
        length=12,
    )
    batch = made.open("train").take(np.arange(3))
    expected = peer(*map(list, zip(*pairs, strict=True)), max_length=12, truncation=True)
    for row in range(3):
        ids, types = expected["input_ids"][row], expected["token_type_ids"][row]
        length = batch["tokens_length"][row]
        assert batch["tokens"][row, :length].tolist() == ids
        assert batch["tokens_types"][row, :length].tolist() == types


def test_the_spec_is_that_of_what_is_opened_and_needs_no_vocabulary():
    for more in ({}, {"words": True, "columns": {"a": ("text", "other"), "b": "other"}}):
        made = words(source=source(), vocabulary=Subwords(kind="bpe", size=300), **more)
        assert made.spec("train") == made.open("train").spec


def test_a_model_is_asked_for_texts_and_pairs():
    made = words(source=source(), columns={"tokens": ("text", "other"), "one": "text"}, length=9)
    inputs = Inputs.of(made.open("train"))
    back = Inputs.from_json(json.loads(json.dumps(inputs.to_json())), inputs.encoder.tokenizer)
    dataset = made.open("train").take(np.array([0, 1]))
    pairs = [(text, text) for text in TEXTS[:2]]
    columns, lengths = back.asked("tokens", pairs)
    for name in ("tokens", "tokens_types", "tokens_length"):
        np.testing.assert_array_equal(columns[name], dataset[name])
    np.testing.assert_array_equal(lengths, dataset["tokens_length"])
    one, _ = back.asked("tokens", pairs[1])
    np.testing.assert_array_equal(one["tokens"], dataset["tokens"][1:])
    ids = dataset["one"]
    np.testing.assert_array_equal(back.asked("one", ids)[0]["one"], ids)
    for given in (["a"], [("a", 1)], []):
        with pytest.raises(DataError, match="predict"):
            back.asked("tokens", given)


def test_a_mask_in_a_text_is_one_where_masks_are_filled(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(BERT))
    source_ = Texts(source(), Subwords(path=str(tmp_path)), {"tokens": "text"}, 12)
    plain = Inputs.of(source_.open("train"))
    filling = Inputs.from_json(
        dataclasses.replace(plain, special=True).to_json(), plain.encoder.tokenizer
    )
    for inputs, ids in ((plain, [2, 5, 1, 1, 1, 3]), (filling, [2, 5, 4, 3])):
        found = inputs.asked("tokens", ["the [MASK]"])[0]["tokens"][0]
        assert found[: len(ids)].tolist() == ids


def test_the_text_of_joined_splits_is_as_wide_as_the_longest():
    parts = {name: {"text": column(of)} for name, of in (("train", ["ab", ""]), ("test", ["猫é"]))}
    made = Texts(Arrays(**parts), Characters(), {"tokens": "text"}, 8, keep=("text",))
    joined = made.open("train+test")
    kept = joined.take(np.array([2, 0]))["text_bytes"]
    assert joined.spec["text_bytes"].shape == (5,) and kept.dtype == np.uint8
    assert [bytes(row).rstrip(b"\0").decode() for row in kept] == ["猫é", "ab"]


def test_begin_and_end_and_the_text_itself():
    of = source(["ab", "猫é"])
    columns = {"source": "text", "target": "text"}
    made = Texts(of, Characters(), columns, 8, begin_end=("target",), keep=("text",))
    batch = made.open("train").take(np.arange(2))
    assert batch["target"][0].tolist() == [2, *batch["source"][0, :2].tolist(), 3, 0, 0, 0, 0]
    kept = [bytes(row).rstrip(b"\0").decode() for row in batch["text_bytes"]]
    assert kept == ["ab", "猫é"]
    assert batch["text_bytes"].shape == (2, 5)


def test_a_batch_is_cut_to_its_bucket_on_every_process():
    dataset = words(source=source(), buckets=(2, 4)).open("train")
    whole = TrainBatches(dataset, 2, seed=0)
    for step in range(6):
        examples = whole.examples_at(step)["examples"]
        longest = dataset.lengths(examples).max()
        width = next(w for w in (2, 4, 8) if w >= longest)
        batch = whole.batch_at(step)
        assert batch["tokens"].shape == (2, width)
        assert (batch["tokens_length"] <= width).all()
        parts = [dataclasses.replace(whole, rows=np.array([r])).batch_at(step) for r in (0, 1)]
        for name, x in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), x)
    evaluated = EvalBatches(dataset, 4, rows=np.array([3]))
    assert evaluated.batch_at(0)["tokens"].shape == (1, 8)
    assert evaluated.batch_at(1)["tokens"].shape == (1, 8)


def test_by_length_has_every_example_once_an_epoch_and_less_padding():
    lengths = np.random.default_rng(0).integers(0, 30, 103)
    of = source(["x " * int(n) for n in lengths])
    dataset = words(source=of, length=30, buckets=(10, 20)).open("train")
    made = TrainBatches(dataset, 4, seed=3, sampling=ByLength(pool=6))
    line = np.concatenate([made.examples_at(step)["examples"] for step in range(103)])
    for epoch in range(4):
        assert sorted(line[103 * epoch : 103 * (epoch + 1)]) == list(range(103))
    again = TrainBatches(dataset, 4, seed=3, sampling=ByLength(pool=6))
    for step in (77, 3, 50):
        np.testing.assert_array_equal(again.batch_at(step)["label"], made.batch_at(step)["label"])
    other = TrainBatches(dataset, 4, seed=4, sampling=ByLength(pool=6))
    assert any((other.batch_at(s)["label"] != made.batch_at(s)["label"]).any() for s in range(3))

    def padding(sampling):
        batches = TrainBatches(dataset, 4, seed=3, sampling=sampling)
        widths = [dataset.lengths(batches.examples_at(s)["examples"]).max() for s in range(100)]
        return 4 * sum(widths)

    assert padding(ByLength(pool=6)) < 0.75 * padding(TrainBatches(dataset, 4).sampling)


def test_slices_splits_and_joined_splits_are_the_rows_of_the_whole():
    dataset = words(source=source()).open("train")
    part = words(source=source()).open("train[2:5]")
    joined = words(source=source()).open("train[3:]+train[:3]")
    for made, rows in ((part, [2, 3, 4]), (joined, [3, 4, 5, 0, 1, 2])):
        for name, x in made.take(np.arange(len(rows))).items():
            np.testing.assert_array_equal(x, dataset.take(np.array(rows))[name])
        np.testing.assert_array_equal(
            made.lengths(np.arange(len(rows))), dataset.lengths(np.array(rows))
        )
    halves = words(source=Split(source(), {"train": 0.5, "test": 0.5})).open("test")
    assert len(halves) == 3
    outside = Split(words(source=source()), {"train": 0.5, "test": 0.5}).open("train")
    labels = outside.take(np.arange(3))["label"]
    np.testing.assert_array_equal(outside.lengths(np.arange(3)), dataset.lengths(labels))
    np.testing.assert_array_equal(
        outside.take(np.arange(3))["tokens"], dataset.take(labels)["tokens"]
    )
    assert outside.encoder is not None


def test_the_cache_gives_the_same_and_notices_other_texts(caplog, tmp_path):
    first = words(source=source()).open("train")
    with caplog.at_level("INFO", "lsm.data"):
        again = words(source=source()).open("train")
        assert "once" not in caplog.text
        other = words(source=source([*TEXTS[1:], "the the the"])).open("train")
        assert "once" in caplog.text
    everyone = np.arange(6)
    for name, x in first.take(everyone).items():
        np.testing.assert_array_equal(again.take(everyone)[name], x)
    assert first.identity == again.identity
    assert first.identity["texts"] != other.identity["texts"]
    for path in (tmp_path / "cache").rglob("*.*"):
        whole = path.read_bytes()
        # As if packed in another way, in the header of the first array.
        path.write_bytes(whole[:6] + b"\1\0\77\0" + whole[10:] if path.suffix == ".npz" else b"dam")
    mended = words(source=source()).open("train").take(everyone)
    np.testing.assert_array_equal(mended["tokens"], first.take(everyone)["tokens"])


def test_another_vocabulary_is_another_identity():
    few, more = (words(source=source(), vocabulary=Words(n)).open("train") for n in (5, 6))
    assert few.identity["tokenizer"] != more.identity["tokenizer"]


def test_texts_that_say_nothing_are_counted(caplog):
    words(source=source(["the", "", "the 猫", "zebra"]), vocabulary=Words(3)).open("train")
    assert "1 of 4 texts in column 'tokens' are empty" in caplog.text
    assert "1 of 4 texts in column 'tokens' are of unknown tokens alone" in caplog.text


def test_devices_hold_texts_of_one_length():
    dataset = words(source=source()).open("train")
    columns, read = dataset.resident()
    found = read(columns, np.array([4, 1]))
    for name, x in dataset.take(np.array([4, 1])).items():
        np.testing.assert_array_equal(found[name], x)
    assert words(source=source(), buckets=(2,)).open("train").resident() is None


def test_a_config_of_texts_is_checked_and_saved_as_json():
    made = words(source=source(), columns={"tokens": ("text", "other")}, buckets=(2, 4))
    schema.check(made)
    schema.to_json(made)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"length": 0}, "Texts.length"),
        ({"buckets": (4, 2)}, "Texts.buckets"),
        ({"buckets": (4, 9)}, "Texts.buckets"),
        ({"truncate": "middle"}, "Texts.truncate"),
        ({"columns": {}}, "Texts.columns"),
        ({"begin_end": ("token",)}, "'tokens'"),
        ({"pack": True, "buckets": (4,)}, "Texts.pack"),
        ({"pack": True, "columns": {"a": "text", "b": "text"}}, "Texts.pack"),
        ({"columns": {"tokens": ()}}, r"\(\) given for 'tokens'; the name of a column"),
    ],
)
def test_bad_fields_are_told(change, told):
    with pytest.raises(ConfigError, match=told):
        words(source=source(), **change)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"columns": {"tokens": "txt"}}, "no column 'txt'.*text"),
        ({"columns": {"tokens": "label"}}, "example 0 holds int"),
        ({"source": source([b"ab", b"\xff"])}, "example 1 is not UTF-8"),
        ({"begin_end": ("tokens",)}, "no tokens that begin and end"),
        ({"vocabulary": Subwords(path="nowhere")}, "Subwords.path"),
        ({"vocabulary": Subwords(kind="wordpiece", size=100), "length": 2}, "2 special tokens"),
        ({"vocabulary": Subwords(kind="wordpiece", size=16)}, "Subwords.size"),
        ({"keep": ("nothing",)}, "Texts.keep"),
        (
            {"source": source([["a", "b"], ["c"]]), "keep": ("text",)},
            "lists of words in column 'te",
        ),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(change, told):
    with pytest.raises((DataError, ConfigError), match=told):
        words(**{"source": source()} | change).open("train")


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_a_file_that_is_no_tokenizer_is_told(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match="cannot be read"):
        words(source=source(), vocabulary=Subwords(path=str(tmp_path))).open("train")


def test_a_vocabulary_has_a_token_a_line(tmp_path):
    content = "\n".join([*BERT, "\u2028", "last"]) + "\n"
    (tmp_path / "vocab.txt").write_bytes(content.replace("\n", "\r\n").encode())
    made = Subwords(path=str(tmp_path)).found(None)
    assert made.token_to_id("last") == len(BERT) + 1 and made.get_vocab_size() == len(BERT) + 2


def test_a_vocabulary_without_bert_s_tokens_is_told(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nb")
    with pytest.raises(DataError, match=r"no token \[UNK\]"):
        words(source=source(), vocabulary=Subwords(path=str(tmp_path))).open("train")


def test_a_very_long_text_takes_bounded_memory():
    text = "word " * 400_000
    batch = words(source=source([text, "a"])).open("train").take(np.arange(2))
    assert batch["tokens_length"].tolist() == [8, 1]


TAGGED = [
    (["Ada", "zebracat", "sat", "!"], [1, 2, 0, 3]),
    (["我喜欢", "😀", "cats"], [4, 0, 5]),
    ([], []),
    (["the"] * 12, list(range(12))),
]


@pytest.mark.parametrize("truncate", ["end", "start"])
def test_labels_of_words_stand_at_their_first_tokens(truncate):
    import tokenizers

    rows, tags = (column(list(of)) for of in zip(*TAGGED, strict=True))
    made = Texts(
        Arrays({"words": rows, "tags": tags}),
        Subwords(kind="wordpiece", size=60),
        {"tokens": "words"},
        length=9,
        buckets=(6,),
        truncate=truncate,
        labels={"tags": "tokens"},
    )
    dataset = made.open("train")
    batch = dataset.take(np.arange(len(TAGGED)))
    # As those who use the library do it, token by token.
    peer = tokenizers.Tokenizer.from_str(dataset.encoder.tokenizer)
    peer.enable_truncation(9, direction={"end": "right", "start": "left"}[truncate])
    for row, (words_, labels) in enumerate(TAGGED):
        found = peer.encode(words_, is_pretokenized=True)
        before, expected = None, []
        for word in found.word_ids:
            expected.append(-1 if word is None or word == before else labels[word])
            before = word
        fill = 9 - len(expected)
        assert batch["tokens"][row].tolist() == found.ids + [0] * fill
        assert batch["tags"][row].tolist() == expected + [-1] * fill
    assert made.spec("train").keys() == dataset.spec.keys() == batch.keys()
    assert dataset.encoder.cut(batch, 6)["tags"].shape == (4, 6)
    assert max(batch["tags"][0]) == 3 and max(batch["tags"][1]) == 5
    again = Inputs.from_json(Inputs.of(dataset).to_json(), dataset.encoder.tokenizer)
    assert again.encoder.labels == {"tags": "tokens"}


@pytest.mark.parametrize(
    ("rows", "tags", "reason"),
    [
        ([["a", "b"]], [[1]], r"column 'tags'.* has 1 labels for 2 words"),
        ([["a"]], [["B-PER"]], "holds no whole numbers, one for each word"),
        ([["a"]], [[0.5]], "holds no whole numbers"),
        (["a b"], [[1, 2]], "labels a text; labels are of words"),
        ([["a", 3]], [[1, 2]], "column 'words'.* holds int; text is needed"),
    ],
)
def test_labels_that_do_not_fit_their_words_are_named(rows, tags, reason):
    arrays = Arrays({"words": column(rows), "tags": column(tags)})
    made = words(source=arrays, columns={"tokens": "words"}, labels={"tags": "tokens"})
    with pytest.raises(DataError, match=reason):
        made.open("train")


def test_labels_of_no_column_of_tokens_are_named():
    with pytest.raises(ConfigError, match=r"Texts\.labels: 'token' is no column .* 'tokens'\?"):
        words(source=source(), labels={"label": "token"})
