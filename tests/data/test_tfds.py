import logging
import pathlib
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from lsm.data import Tfds, cache, download, images
from lsm.data.dataset import Dataset
from lsm.data.features import Parser
from lsm.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LSM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setattr(download, "_answers", lambda url: False)


def reference(name: str, split: str, data_dir, indices: list[int]) -> list[dict]:
    return tfds.data_source(name, split=split, data_dir=str(data_dir)).__getitems__(indices)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_pictures_are_those_of_tfds(tfds_dir, name, cached, monkeypatch):
    if not cached:
        monkeypatch.setattr(cache, "MAX_BYTES", 0)
    dataset = Tfds(name).open("test", tfds_dir)
    assert isinstance(dataset, cache.Cached) == cached
    indices = [0, 9_999, 17, 17, 4_096]
    batch = dataset.take(np.array(indices))
    examples = reference(name, "test", tfds_dir, indices)
    np.testing.assert_array_equal(batch["image"], [e["image"] for e in examples])
    np.testing.assert_array_equal(batch["label"], [e["label"] for e in examples])
    assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32
    assert set(batch) == {"image", "label"} and len(dataset.classes) == 10
    if name == "cifar10":
        assert dataset.classes[3] == "cat"


def test_slices_are_those_of_tfds(tfds_dir, monkeypatch):
    monkeypatch.setattr(cache, "MAX_BYTES", 0)  # only what is asked for is decoded
    split = "train[10%:20%]+test[-3:]"
    dataset = Tfds("mnist").open(split, tfds_dir)
    assert len(dataset) == 6003
    indices = [0, 5_999, 6_000, 6_002]
    examples = reference("mnist", split, tfds_dir, indices)
    np.testing.assert_array_equal(
        dataset.take(np.array(indices))["image"], [e["image"] for e in examples]
    )


def test_text_comes_as_bytes(tfds_dir):
    dataset = Tfds("imdb_reviews").open("test[:100]", tfds_dir)
    assert dataset.spec["text"] == jax.ShapeDtypeStruct((), np.dtype(object))
    batch = dataset.take(np.array([3, 0]))
    examples = reference("imdb_reviews", "test", tfds_dir, [3, 0])
    assert batch["text"].tolist() == [e["text"] for e in examples]
    assert batch["label"].tolist() == [e["label"] for e in examples]
    assert dataset.classes == ("neg", "pos")


def test_configs_and_columns(tfds_dir):
    dataset = Tfds("glue/sst2", columns=("idx", "sentence")).open("validation", tfds_dir)
    batch = dataset.take(np.arange(872))
    assert set(batch) == {"idx", "sentence"} and batch["idx"].dtype == np.int32
    assert sorted(batch["idx"].tolist()) == list(range(872))


def test_pictures_that_differ_in_size(tfds_dir):
    ragged = Tfds("penn_fudan", columns=("image",)).open("train", tfds_dir)
    assert ragged.spec["image"].dtype == object
    column = ragged.take(np.arange(4))["image"]
    for picture, example in zip(
        column, reference("penn_fudan", "train", tfds_dir, [0, 1, 2, 3]), strict=True
    ):
        np.testing.assert_array_equal(picture, example["image"])
    resized = Tfds("penn_fudan", columns=("image",), size=(24, 32)).open("train", tfds_dir)
    assert resized.take(np.arange(4))["image"].shape == (4, 24, 32, 3)


ALL_FEATURES = {
    "cifar10": ("id", "image", "label"),
    "fashion_mnist": ("image", "label"),
    "glue/sst2": ("idx", "label", "sentence"),
    "imdb_reviews": ("label", "text"),
    "mnist": ("image", "label"),
    "multi30k": ("de", "en"),
    "penn_fudan": ("bboxes", "image", "mask"),
    "tiny_shakespeare": ("text",),
}


@pytest.mark.parametrize("name", ALL_FEATURES)
def test_every_feature_is_that_of_tfds(tfds_dir, name, monkeypatch):
    monkeypatch.setattr(cache, "MAX_BYTES", 0)
    for split in tfds.builder(name, data_dir=str(tfds_dir)).info.splits:
        source = Tfds(name, columns=ALL_FEATURES[name])
        dataset = source.open(split, tfds_dir)
        assert source.spec(split, tfds_dir) == dataset.spec
        indices = list(range(0, len(dataset), max(1, len(dataset) // 100)))
        columns = dataset.take(np.array(indices))
        for i, example in enumerate(reference(name, split, tfds_dir, indices)):
            assert set(example) == set(columns)
            for feature, value in example.items():
                np.testing.assert_array_equal(columns[feature][i], value)


def test_features_that_only_tfds_can_decode_are_left_to_it():
    kinds = {
        "scalar": (tfds.features.Scalar(np.uint8), 200),
        "flag": (tfds.features.Tensor(shape=(), dtype=np.bool_), True),
        "label": (tfds.features.ClassLabel(num_classes=3), 2),
        "matrix": (
            tfds.features.Tensor(shape=(2, 3), dtype=np.float32),
            np.arange(6, dtype=np.float32).reshape(2, 3),
        ),
        "none": (tfds.features.Tensor(shape=(0,), dtype=np.int32), np.zeros(0, np.int32)),
        "text": (tfds.features.Text(), b"\xff a text"),
        "words": (tfds.features.Sequence(tfds.features.Text()), [b"one", b"two"]),
        "zlib": (
            tfds.features.Tensor(shape=(2,), dtype=np.int32, encoding="zlib"),
            np.array([7, -7], np.int32),
        ),
        "big": (tfds.features.Tensor(shape=(1,), dtype=np.uint64), np.array([5], np.uint64)),
        "ragged": (
            tfds.features.Tensor(shape=(None,), dtype=np.int32),
            np.arange(4, dtype=np.int32),
        ),
        "nested": (tfds.features.FeaturesDict({"a": np.int32, "b": np.int32}), {"a": 1, "b": 2}),
        "box": (
            tfds.features.BBoxFeature(),
            tfds.features.BBox(ymin=0.0, xmin=0.25, ymax=0.5, xmax=1.0),
        ),
    }
    features = tfds.features.FeaturesDict({name: feature for name, (feature, _) in kinds.items()})
    record = features.serialize_example({name: value for name, (_, value) in kinds.items()})
    parser = Parser(features, None)
    left = {name for name, column in parser.columns.items() if column.stored is None}
    assert left == {"words", "zlib", "big", "ragged", "nested", "box"}
    columns, expected = parser([record, record]), features.deserialize_example_np(record)
    for name in kinds:
        for value in columns[name]:
            np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize(
    ("stored", "expected", "said"),
    [
        ({"x": np.int32}, {"x": np.float32}, "feature 'x' holds 0 values, not 1"),
        ({"y": np.int32}, {"x": np.int32}, "feature 'x' holds 0 values, not 1"),
        (
            {"x": tfds.features.Tensor(shape=(2,), dtype=np.int32)},
            {"x": tfds.features.Tensor(shape=(3,), dtype=np.int32)},
            "feature 'x' holds 2 values, not 3",
        ),
    ],
)
def test_records_of_other_features(stored, expected, said):
    stored = tfds.features.FeaturesDict(stored)
    value = 1 if all(feature.shape == () for feature in stored.values()) else [1, 2]
    record = stored.serialize_example(dict.fromkeys(stored, value))
    with pytest.raises(ValueError, match=said):
        Parser(tfds.features.FeaturesDict(expected), None)([record])


def test_an_error_of_tfds_without_words_is_told_by_its_name(monkeypatch, tmp_path):
    def builder(name, **place):
        raise AssertionError

    monkeypatch.setattr("tensorflow_datasets.builder", builder)
    with pytest.raises(DataError, match="'mnist' cannot be opened: AssertionError"):
        Tfds("mnist").open("train", tmp_path)


@pytest.mark.parametrize(
    ("source", "split", "said"),
    [
        (Tfds("mnsit"), "train", "'mnsit' is neither in TFDS's catalogue .* Did you mean 'mnist'?"),
        (Tfds("glue/sts2"), "train", "Did you mean 'glue/sst2'?"),
        (Tfds("multi31k"), "train", "Did you mean 'multi30k'?"),
        (Tfds("mnist:9.0.0"), "train", "'mnist:9.0.0' cannot be opened: .*only: 3.0.1"),
        (Tfds("mnist"), "validation", "mnist has no split 'validation'; it has train, test"),
        (Tfds("mnist"), "tset", "Did you mean 'test'?"),
        (Tfds("mnist"), "test[:11000]", "incompatible with 10000 examples"),
        (Tfds("mnist", columns=("images",)), "test", "no feature 'images'; .*mean 'image'?"),
    ],
)
def test_errors_are_one_line(tfds_dir, source, split, said):
    with pytest.raises(DataError, match=said) as error:
        source.open(split, tfds_dir)
    assert "\n" not in str(error.value)


def test_a_dataset_that_is_not_prepared(tmp_path):
    place = tmp_path / "nowhere"
    with pytest.raises(DataError) as error:
        Tfds("mnist").open("train", place)
    said = str(error.value)
    assert f"'mnist' is not prepared in {place}" in said and "no answer from https://" in said
    assert f"python -m lsm.data.prepare mnist --raw=DIR --data_dir={place}" in said
    with pytest.raises(DataError, match="tfds build tiny_shakespeare --file_format=array_record"):
        Tfds("tiny_shakespeare").open("train", place)
    assert not place.exists()


def test_a_dataset_is_told_by_its_version_and_shards(tfds_dir, tmp_path, monkeypatch):
    place = shutil.copytree(tfds_dir / "mnist", tmp_path / "data/mnist")
    told = [Tfds("mnist").open("test", root).identity for root in (tfds_dir, tmp_path / "data")]
    monkeypatch.setattr(cache, "MAX_BYTES", 0)
    told.append(Tfds("mnist").open("test", tfds_dir).identity)
    assert told[0] == told[1] == told[2]
    assert (
        told[0]["examples"] == 10_000 and told[0]["name"] == f"mnist/{next(place.iterdir()).name}"
    )
    shard = next(place.rglob("*test*array_record*"))
    shard.chmod(0o644)
    shard.write_bytes(shard.read_bytes() + b"more")
    assert (
        Tfds("mnist").open("test", tmp_path / "data").rows(0, 9).identity["shards"]
        != told[0]["shards"]
    )


def test_damaged_records(tfds_dir, tmp_path):
    shutil.copytree(tfds_dir / "tiny_shakespeare", tmp_path / "tiny_shakespeare")
    (file,) = tmp_path.glob("*/*/*test.array_record*")
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:70_000])
    with pytest.raises(DataError, match=r"tiny_shakespeare.* is damaged or incomplete") as error:
        dataset = Tfds("tiny_shakespeare").open("test", tmp_path)
        dataset.take(np.arange(1))
    assert "\n" not in str(error.value)
    file.unlink()
    with pytest.raises(DataError, match="damaged or incomplete"):
        dataset = Tfds("tiny_shakespeare").open("test", tmp_path)
        dataset.take(np.arange(1))


def test_records_without_random_access(tfds_dir, tmp_path):
    shutil.copytree(tfds_dir / "tiny_shakespeare", tmp_path / "tiny_shakespeare")
    (info,) = tmp_path.glob("*/*/dataset_info.json")
    info.chmod(0o644)
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(DataError, match="stored as tfrecord, which has no random access"):
        Tfds("tiny_shakespeare").open("train", tmp_path)


def test_settings():
    with pytest.raises(ConfigError, match="'image' is one string; give a tuple"):
        Tfds("mnist", columns="image")
    with pytest.raises(ConfigError, match=r"Tfds.size: \(1, 2, 3\) is not a size"):
        Tfds("mnist", size=(1, 2, 3))
    with pytest.raises(ConfigError, match=r"Tfds.name: is empty"):
        Tfds("")


@pytest.mark.slow
def test_tensorflow_is_never_imported_and_opencv_not_missed(tfds_dir, tmp_path):
    program = f"""
import importlib.abc, sys
class Trap(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        caller = sys._getframe(1)
        while "importlib" in caller.f_code.co_filename:
            caller = caller.f_back
        # etils asks importlib.util.find_spec whether TensorFlow is there; that imports nothing.
        if name.split(".")[0] == "tensorflow" and caller.f_code.co_name != "_is_tf_installed":
            raise AssertionError("TensorFlow imported by " + str(caller))
sys.meta_path.insert(0, Trap())
import numpy as np
from lsm.data import CharText, Tfds
Tfds("mnist").open("test[:10%]", {str(tfds_dir)!r}).take(np.arange(5))
CharText().open("validation", {str(tfds_dir)!r})
assert not [name for name in sys.modules if name.split(".")[0] in ("tensorflow", "cv2")]
print("read")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "read\n" and done.returncode == 0, done.stderr
    assert "OpenCV" not in done.stderr


class Decoder(Dataset):
    """Four examples of x (2,) uint8; counts how often they are decoded."""

    spec: dict = {"x": jax.ShapeDtypeStruct((2,), np.uint8)}  # noqa: RUF012

    def __init__(self):
        self.calls = 0

    def __len__(self):
        return 4

    def take(self, indices):
        self.calls += 0 in indices
        return {"x": np.array(FOUR, np.uint8)[indices]}

    def columns(self, key: str = "k") -> list:
        return cache.columns("a/b 1.0", key, self)["x"].tolist()


FOUR = [[1, 2], [3, 4], [5, 6], [7, 8]]


def test_cache_decodes_once():
    decoder = Decoder()
    assert decoder.columns() == FOUR and decoder.columns() == FOUR
    assert decoder.calls == 1
    assert decoder.columns("other key") == FOUR and decoder.calls == 2
    assert not list(cache.root().rglob(".writing-*"))


def test_all_examples_are_decoded_when_the_first_is_asked_for():
    class Slow(Decoder):
        def take(self, indices):
            time.sleep(0.1)
            return super().take(indices)

    decoder = Slow()
    dataset = cache.cached("x", "k", decoder)
    part, plain = dataset.rows(1, 3), decoder.rows(1, 3)
    assert len(part) == 2 and part.spec == decoder.spec and part.identity == plain.identity
    assert part.by_example().take(np.array([1]))["x"].tolist() == [FOUR[2]]
    assert dataset.rows(0, 4) is dataset and decoder.calls == 0
    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(part.take, [np.array([1])] * 4))
    assert [batch["x"].tolist() for batch in taken] == [[FOUR[2]]] * 4
    assert [held["x"].tolist() for held in dataset.held()] == [FOUR]
    assert part.resident()[0]["x"].tolist() == FOUR[1:3] and decoder.calls == 1


def test_cache_mends_a_damaged_entry():
    decoder = Decoder()
    decoder.columns()
    (file,) = cache.root().rglob("x.npy")
    file.write_bytes(file.read_bytes()[:-3])
    assert decoder.columns() == FOUR and decoder.calls == 2
    assert decoder.columns() == FOUR and decoder.calls == 2


@pytest.mark.parametrize("name", ["x.npy", "checksums.json"])
def test_cache_finds_every_changed_byte(name, caplog):
    decoder = Decoder()
    decoder.columns()
    (file,) = cache.root().rglob(name)
    good = file.read_bytes()
    for calls, place in enumerate(range(0, len(good), 7), 2):
        changed = good[place] ^ 1
        file.write_bytes(good[:place] + bytes([changed]) + good[place + 1 :])
        assert decoder.columns() == FOUR and decoder.calls == calls
        assert file.read_bytes() == good
    assert "a-b-1.0-k is damaged; it is made again" in caplog.text


def test_cache_that_cannot_be_written_falls_back_to_memory(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LSM_CACHE", str(tmp_path / "file" / "cache"))
    decoder = Decoder()
    with caplog.at_level(logging.WARNING):
        assert decoder.columns() == FOUR and decoder.columns("other") == FOUR
    assert len(caplog.records) == 1 and "cannot be written" in caplog.text


def test_cache_on_a_full_disk_falls_back_and_leaves_nothing(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    assert Decoder().columns() == FOUR
    assert list((cache.root() / "decoded").iterdir()) == []


def test_cache_takes_what_another_process_wrote_meanwhile(monkeypatch):
    inner = Decoder()

    class Outer(Decoder):
        def take(self, indices):
            if not inner.calls:
                inner.columns()
            return super().take(indices)

    assert Outer().columns() == FOUR and inner.calls == 1
    assert len(list((cache.root() / "decoded").iterdir())) == 1


def test_fingerprint_changes_with_files_and_facts(tmp_path):
    file = pathlib.Path(tmp_path / "records")
    file.write_text("1234")
    first = cache.fingerprint([file], "fact")
    assert first == cache.fingerprint([file], "fact")
    assert first != cache.fingerprint([file], "another")
    file.write_text("12345")
    assert first != cache.fingerprint([file], "fact")


def test_labels_are_read_without_the_pictures(tfds_dir, monkeypatch):
    monkeypatch.setattr(cache, "fits", lambda *_: False)
    records = Tfds("cifar10").open_split("test", tfds_dir)
    expected = records.take(np.arange(100))["label"]
    monkeypatch.setattr(images, "decode", None)
    np.testing.assert_array_equal(records.column("label")[:100], expected)
    with pytest.raises(DataError, match="no column 'lable'.*mean 'label'"):
        records.column("lable")
