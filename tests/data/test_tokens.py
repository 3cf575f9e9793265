import dataclasses
import hashlib
import pathlib
import shutil

import jax
import numpy as np
import pytest

from lsm import Experiment, Train
from lsm.data import Arrays, CharText, Data, EvalBatches, Source, Tokens, TrainBatches
from lsm.data.tokens import Index, Shard, read_index
from lsm.errors import ConfigError, DataError
from lsm.models import GPT, Transformer
from lsm.optim import SGD
from lsm.tasks import LanguageModelling
from lsm.train.trainer import Trainer

VOCABULARY = 60_000
SIZES = {"train": (40, 1, 3, 57), "validation": (9, 23), "tiny": (4,)}
STREAMS = {
    name: np.random.default_rng(len(name)).integers(0, VOCABULARY, sum(sizes))
    for name, sizes in SIZES.items()
}  # train 101, validation 32, tiny 4


def index_of(folder: pathlib.Path, stream, sizes, dtype="uint16", **fields) -> Index:
    """Writes the shards of a split, and returns their index."""
    folder.mkdir(parents=True)
    shards = []
    for part in np.split(stream, np.cumsum(sizes)[:-1]):
        content = part.astype(np.dtype(dtype).newbyteorder("<")).tobytes()
        name = f"{len(shards):05d}.bin"
        (folder / name).write_bytes(content)
        shards.append(Shard(name, len(part), 1, hashlib.sha256(content).hexdigest()))
    known = {"tokenizer": "made up", "tokenizer_sha256": "00", "vocabulary": VOCABULARY}
    known |= {"eos": 0, "inputs": (("a.txt", 1),), "column": "text", "shard_tokens": 1}
    known |= {"dtype": dtype, "shards": tuple(shards), "position": None}
    return Index(**known | fields)


def write(folder: pathlib.Path, stream, sizes, dtype="uint16", **fields) -> None:
    index = index_of(folder, stream, sizes, dtype, **fields)
    (folder / "index.json").write_bytes(index.to_json())


@pytest.fixture(params=["uint16", "uint32"])
def folder(request, tmp_path) -> pathlib.Path:
    for name, stream in STREAMS.items():
        write(tmp_path / "packed" / name, stream, SIZES[name], request.param)
    return tmp_path / "packed"


def windows(stream, length):
    """Window i is stream[i * length : (i + 1) * length + 1], as many as are whole."""
    count = (len(stream) - 1) // length
    return np.stack([stream[i * length : (i + 1) * length + 1] for i in range(count)])


@pytest.mark.parametrize("length", [1, 7, 10, 50, 100])
def test_windows_are_side_by_side_and_share_one_token(length, folder):
    dataset = Tokens(str(folder), length).open("train")
    expected = windows(STREAMS["train"], length)
    assert len(dataset) == len(expected) == 100 // length
    order = np.random.default_rng(0).permutation(np.arange(len(dataset)).repeat(2))
    batch = dataset.take(order)
    np.testing.assert_array_equal(batch["tokens"], expected[order])
    assert batch["tokens"].dtype == np.int32
    assert dataset.spec == {"tokens": jax.ShapeDtypeStruct((length + 1,), np.int32)}


def test_slices_count_windows(folder):
    source = Tokens(str(folder), 7)  # train 14 windows, validation 4
    train, validation = windows(STREAMS["train"], 7), windows(STREAMS["validation"], 7)
    for split, expected in (
        ("train[:50%]", train[:7]),
        ("train[3:5]", train[3:5]),
        ("train[-1:]", train[-1:]),
        ("train[12:]+validation[:2]", np.concatenate([train[12:], validation[:2]])),
    ):
        dataset = source.open(split)
        taken = dataset.take(np.arange(len(dataset)))["tokens"]
        np.testing.assert_array_equal(taken, expected)


def predicted(dataset) -> list[int]:
    """The targets of weight 1, in order; the others are 0."""
    dataset = dataset.evaluation()
    batch = dataset.take(np.arange(len(dataset)))
    for name, one in dataset.spec.items():
        assert batch[name].shape == (len(dataset), *one.shape) and batch[name].dtype == one.dtype
    assert set(np.unique(batch["weight"])) <= {0.0, 1.0}
    targets = batch["tokens"][:, 1:]
    assert not targets[batch["weight"] == 0].any()
    return targets[batch["weight"] == 1].tolist()


@pytest.mark.parametrize("length", [1, 7, 10, 31])
def test_evaluation_predicts_every_token_once(length, folder):
    source = Tokens(str(folder), length)
    train, validation = STREAMS["train"][1:].tolist(), STREAMS["validation"][1:].tolist()
    assert predicted(source.open("train")) == train
    assert predicted(source.open("train+validation")) == train + validation
    parts = [source.open("train[:1]"), source.open("train[1:]")]
    assert predicted(parts[0]) + predicted(parts[1]) == train


def test_evaluation_batches_weigh_every_token_once(folder):
    batches = EvalBatches(Tokens(str(folder), 7).open("train"), 4)
    weights = [batches.batch_at(number)["weight"] for number in range(len(batches))]
    assert sum(weight.sum() for weight in weights) == len(STREAMS["train"]) - 1


def test_training_batches_hold_every_window_once(folder):
    batches = TrainBatches(Tokens(str(folder), 10).open("train"), 5, seed=3)
    rows = np.concatenate([batches.batch_at(step)["tokens"] for step in range(2)])
    expected = windows(STREAMS["train"], 10)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, expected.tolist()))


def test_more_shards_than_are_mapped_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("lsm.data.tokens._MAPS", 2)
    write(tmp_path / "train", STREAMS["train"], [1] * 101)
    dataset = Tokens(str(tmp_path), 10).open("train")
    expected = windows(STREAMS["train"], 10)
    np.testing.assert_array_equal(dataset.take(np.arange(10))["tokens"], expected)


def test_a_relative_path_is_under_data_dir_where_it_is_not_as_given(folder, monkeypatch, tmp_path):
    source = Tokens("packed", 10)
    assert len(source.open("train", folder.parent)) == 10
    monkeypatch.chdir(folder.parent)
    assert len(source.open("train")) == len(source.open("train", tmp_path / "other")) == 10


def test_the_spec_needs_no_data(folder):
    spec = {"tokens": jax.ShapeDtypeStruct((6,), np.int32)}
    assert Tokens("nowhere", 5).spec("train[:3%]") == spec
    source = Tokens(str(folder), 5)
    assert Source.spec(source, "train") == spec == source.open("train").spec


def test_the_index_reads_back(folder):
    index = read_index(folder / "train")
    assert index.to_json() == (folder / "train/index.json").read_bytes()
    assert (index.tokens, index.documents) == (101, 4)


def damaged(folder, split="train"):
    with pytest.raises(DataError) as error:
        dataset = Tokens(str(folder), 10).open(split)
        dataset.take(np.arange(len(dataset)))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_damaged_shards_are_told_in_a_line(folder):
    shard = folder / "train/00003.bin"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    assert f"{shard} is damaged: it has {len(content) - 1} bytes, and" in damaged(folder)
    shard.unlink()
    assert f"{shard} is not there" in damaged(folder)
    shard.write_bytes(b"\xff" * len(content))
    assert "is damaged: it holds id" in damaged(folder)


def test_damaged_indices_are_told_in_a_line(folder):
    index = folder / "train/index.json"
    good = index.read_text()
    for text, said in (
        (good[:-5], "index.json is damaged: "),
        ("[]", "index.json is damaged: "),
        (good.replace('"eos"', '"eod"'), "index.json is damaged: "),
        (good.replace('"dtype": "uint', '"dtype": "float'), "index.json is damaged: dtype 'float"),
        (good.replace("lsm tokens 1", "lsm tokens 9"), "is of format 'lsm tokens 9', and this lsm"),
    ):
        index.write_text(text)
        assert said in damaged(folder)


def test_what_is_not_there_is_told_in_a_line(folder, tmp_path):
    assert "has no split 'trian'; it has tiny, train, val" in damaged(folder, "trian")
    assert "split 'tiny' of tokens" in (said := damaged(folder, "tiny"))
    assert "has 4 tokens; Tokens.length 10 needs at least 11." in said
    assert "is not there; make it by python -m lsm.data.tokenize" in damaged(tmp_path / "none")
    assert "holds no SPLIT/index.json" in damaged(tmp_path)


def test_an_unfinished_split_is_not_read(folder):
    index = dataclasses.replace(read_index(folder / "train"), position=(0, 5, 0))
    (folder / "train/index.json").write_bytes(index.to_json())
    assert "split 'train' of tokens" in damaged(folder) and "is not finished" in damaged(folder)
    assert len(Tokens(str(folder), 10).open("validation")) == 3


def test_splits_of_two_tokenizers_are_refused(folder):
    write(folder / "other", STREAMS["tiny"], SIZES["tiny"], tokenizer_sha256="01", tokenizer="gpt2")
    said = damaged(folder)
    assert "different tokenizers" in said and "other by gpt2" in said


@pytest.mark.parametrize("split", ["train", "train[2:]", "train[:3]+validation"])
def test_a_model_must_know_every_id_though_a_batch_shows_few(split, folder):
    experiment = Experiment(
        name="short",
        task=LanguageModelling(model=GPT(VOCABULARY - 1, Transformer(layers=1, width=8), 10)),
        data=Data(source=Tokens(str(folder), 10), train=split, test=None),
        optimizer=SGD(learning_rate=0.1),
        train=Train(steps=1, batch_size=2),
    )
    said = (
        r"^task.model.vocabulary: 59,999 given; allowed: 60,000 or more, .* that tokens .* has\.$"
    )
    with pytest.raises(DataError, match=said):
        Trainer.of(experiment, None)


def test_characters_are_counted_too():
    texts = Arrays({"text": np.array(["abcab" * 9], object)})
    assert CharText(texts, 3).open("train[:50%]").vocabulary_size == 3


def test_fields_are_checked():
    with pytest.raises(ConfigError, match=r"Tokens.length: 0 given; allowed: 1 or more"):
        Tokens("packed", 0)
    with pytest.raises(ConfigError, match=r"Tokens.path: is empty"):
        Tokens("")


def test_a_longer_folder_of_the_same_name_is_another_one(tmp_path):
    """What a run compares when it goes on; names of files and inputs are not of the data."""
    split = tmp_path / "train"
    write(split, STREAMS["train"], SIZES["train"])
    made = Tokens(str(tmp_path), 7).open("train").identity
    assert made["examples"] == 14 and made["tokens"] == 101
    for stream, sizes, fields, same in (
        (STREAMS["train"], SIZES["train"], {"inputs": (("b.txt", 2),)}, True),
        (np.tile(STREAMS["train"], 2), (202,), {}, False),
        (STREAMS["train"][::-1], SIZES["train"], {}, False),
        (STREAMS["train"], SIZES["train"], {"tokenizer_sha256": "01"}, False),
    ):
        shutil.rmtree(split)
        write(split, stream, sizes, **fields)
        assert (Tokens(str(tmp_path), 7).open("train").identity == made) == same
    assert EvalBatches(Tokens(str(tmp_path), 7).open("train"), 2).dataset.identity == {
        **made, "examples": 15, "shards": Tokens(str(tmp_path), 7).open("train[:9]").identity["shards"]
    }  # fmt: skip


def test_documents_of_a_window_are_told_apart(tmp_path):
    stream = np.array([5, 6, 0, 7, 0, 0, 8, 9, 1, 2, 3, 0, 4])
    write(tmp_path / "packed/train", stream, (13,))
    dataset = Tokens(str(tmp_path / "packed"), 5, segments=True).open("train")
    batch = dataset.take(np.arange(2))
    assert batch["tokens"].tolist() == [[5, 6, 0, 7, 0, 0], [0, 8, 9, 1, 2, 3]]
    assert batch["tokens_segments"].tolist() == [[1, 1, 1, 2, 2, 3], [1, 2, 2, 2, 2, 2]]
    task = LanguageModelling(model=GPT(vocabulary=16, transformer=Transformer(width=64)))
    # What a text before it would have to predict is no target: the 7, the second end, and the 8.
    weights = task.weights(batch, True)
    assert weights.tolist() == [[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]]
    assert {n: x.shape for n, x in dataset.spec.items()} == {
        "tokens": (6,),
        "tokens_segments": (6,),
    }
    evaluated = dataset.rows(1, 2).evaluation()
    assert evaluated.take(np.arange(1))["tokens_segments"].tolist() == [[1, 2, 2, 2, 2, 2]]
    write(tmp_path / "endless/train", stream, (13,), eos=None)
    with pytest.raises(DataError, match="no token between documents"):
        Tokens(str(tmp_path / "endless"), 5, segments=True).open("train")
