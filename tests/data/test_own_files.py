"""Own files: what NumPy wrote is what is read, by any format, in any order; rubbish is one line."""

import gzip
import importlib.util
import io
import json
import pathlib
import struct

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lsm.data import CharText, Files, TrainBatches, cache
from lsm.data.files import crc32c, stores
from lsm.data.inputs import Inputs
from lsm.errors import ConfigError, DataError

h5py = pytest.importorskip("h5py")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

N = 11
ARRAYS = {
    "x": np.linspace(-1, 1, 2 * N).reshape(N, 2),
    "n": np.arange(N) * 3,
    "text": np.array([f"row {i}, é" for i in range(N)], object),
}


@pytest.fixture(autouse=True)
def _desk(tmp_path, monkeypatch):
    monkeypatch.setenv("LSM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def put(name: str, content: bytes | str) -> str:
    path = pathlib.Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def table():
    columns = {name: column.tolist() for name, column in ARRAYS.items()}
    return pa.table(columns)


def record(**features) -> bytes:
    """A tf.train.Example with its frame; the checksums are tensorboardX's."""
    from tensorboardX.record_writer import masked_crc32c
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    for name, values in features.items():
        feature = example.features.feature[name]
        kinds = {bytes: feature.bytes_list, int: feature.int64_list, float: feature.float_list}
        kinds[type(values[0])].value.extend(values)
    content = example.SerializeToString()
    length = struct.pack("<Q", len(content))
    sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
    return length + sums[0] + content + sums[1]


def write_jsonl(path):
    rows = zip(*[column.tolist() for column in ARRAYS.values()], strict=True)
    put(path, "\n".join(json.dumps(dict(zip(ARRAYS, row, strict=True))) for row in rows))


def write_hdf5(path):
    with h5py.File(path, "w") as file:
        for name, column in ARRAYS.items():
            file[name] = column


def write_arrow(path):
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table().schema) as stream:
        stream.write_table(table(), max_chunksize=4)


def write_npz(path):
    np.savez(path, **{n: c.astype(str) if c.dtype == object else c for n, c in ARRAYS.items()})


def write_tfrecord(path):
    rows = zip(*[column.tolist() for column in ARRAYS.values()], strict=True)
    put(path, b"".join(record(x=x, n=[n], text=[text.encode()]) for x, n, text in rows))


WRITERS = {
    "a.jsonl": write_jsonl,
    "a.parquet": lambda path: pq.write_table(table(), path, row_group_size=4),
    "a.arrow": write_arrow,
    "a.npz": write_npz,
    "a.h5": write_hdf5,
    "a.tfrecord": write_tfrecord,
}


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("columns", [("x", "n"), None])
@pytest.mark.parametrize("name", WRITERS)
def test_what_was_written_is_read(name, columns, fits, monkeypatch):
    if not fits:
        monkeypatch.setattr(cache, "MAX_BYTES", 0)
    WRITERS[name](name)
    dataset = Files(name, columns).open("train")
    assert len(dataset) == N
    assert dataset.spec["x"] == jax.ShapeDtypeStruct((2,), np.float32)
    assert dataset.spec["n"] == jax.ShapeDtypeStruct((), np.int32)
    order = np.array([10, 0, 3, 3, 7, 4])
    batch = dataset.take(order)
    for key, column in batch.items():
        expected = ARRAYS[key][order]
        if column.dtype == object and isinstance(column[0], bytes):
            column = np.array([text.decode() for text in column], object)
        np.testing.assert_array_equal(column, expected.astype(column.dtype))
    assert set(batch) == set(columns or ARRAYS)
    np.testing.assert_array_equal(dataset.column("n"), ARRAYS["n"])
    # Where all are numbers of one shape, the devices can hold them.
    in_memory = name == "a.jsonl" or (fits and columns)
    assert bool([*dataset.held()]) == bool(in_memory)


CSV = "w,h,species,day\n1,2.5,cat,2024-01-02\n3,nan,dog,2024-01-03\n4,1,cat,2024-01-04\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("iris.csv", CSV),
        ("iris.tsv", CSV.replace(",", "\t")),
        ("iris.csv.gz", gzip.compress(CSV.encode(), mtime=0)),
    ],
)
def test_a_table_becomes_inputs_and_labels(name, content):
    source = Files(put(name, content), {"x": ("w", "h"), "label": "species"}, labels=("label",))
    dataset = source.open("train")
    assert dataset.classes == ("cat", "dog")
    batch = dataset.take(np.arange(3))
    np.testing.assert_array_equal(batch["x"], np.float32([[1, 2.5], [3, np.nan], [4, 1]]))
    assert batch["x"].dtype == np.float32
    assert batch["label"].tolist() == [0, 1, 0] and batch["label"].dtype == np.int32
    assert (
        dataset.resident() is not None and TrainBatches(dataset, 2).batch_at(0)["x"].shape[1] == 2
    )
    days = Files(name, ("day",)).open("train").take(np.array([1]))["day"]
    assert days.tolist() == ["2024-01-03"]


def test_labels_are_numbered_over_all_splits():
    put("d/train.csv", "y\nb\nc\n")
    put("d/test.csv", "y\na\n")
    source = Files("d", labels=("y",))
    assert source.open("train").classes == source.open("test").classes == ("a", "b", "c")
    assert source.open("train+test").take(np.arange(3))["y"].tolist() == [1, 2, 0]
    numbers = Files(put("n.csv", "y\n10\n9\n10\n"), labels=("y",)).open("train")
    assert numbers.classes == ("9", "10")


def test_a_class_beside_numbers_is_one_hot():
    """Numbered over all splits: what another split holds tells, also of what is in the cache."""
    rows = {"colour": ["red", "blue", "red"], "size": [1, 2, 3], "kind": ["b", "a", "b"]}
    pathlib.Path("d").mkdir()
    pq.write_table(pa.table(rows), "d/train.parquet")
    source = Files("d", {"x": ("size", "colour"), "y": "kind"}, labels=("kind", "colour"))
    with pytest.raises(DataError, match="'kind' is no column that is delivered, by itself or besi"):
        source.open("train")
    source = Files("d", {"x": ("size", "colour"), "y": "kind"}, labels=("y", "colour"))
    found = []
    for other in (["red", "pink"], ["red", "white"], ["red", "aqua"]):
        pq.write_table(pa.table({"colour": other, "size": [4, 5]}), "d/test.parquet")
        known = sorted({*rows["colour"], *other})
        one_hot = [[colour == name for name in known] for colour in rows["colour"]]
        dataset = source.open("train")
        x = dataset.take(np.arange(3))["x"]
        np.testing.assert_array_equal(x, np.column_stack([rows["size"], one_hot]))
        assert x.dtype == np.float32 and dataset.spec["x"].shape == (1 + 3,)
        assert dataset.names == {"colour": tuple(known), "y": ("a", "b")}
        assert dataset.classes == ("a", "b") and dataset.rows(0, 1).joined == {
            "x": ("size", "colour")
        }
        found.append(dataset.identity["files"])
    assert len({*found}) == 3


def test_a_split_without_labels_hinders_no_other():
    put("d/train.csv", "x,y\n1,b\n2,a\n")
    put("d/test.csv", "x\n3\n")
    source = Files("d", {"x": ("x",), "y": "y"}, labels=("y",))
    assert source.open("train").take(np.arange(2))["y"].tolist() == [1, 0]
    with pytest.raises(DataError, match="test.csv has no column 'y'; it has x"):
        source.open("test")


@pytest.mark.parametrize(
    ("files", "path", "splits"),
    [
        (["a.csv"], "a.csv", {"train": 1}),
        (["test.csv"], "test.csv", {"train": 1}),
        (["d/a.csv", "d/b.csv"], "d", {"train": 2}),
        (["d/train.csv", "d/my-test.csv"], "d/*.csv", {"train": 1, "test": 1}),
        (["d/train-00000-of-00002.csv", "d/train-00001-of-00002.csv", "d/README.md"], "d", {"train": 2}),
        (["d/data/train-0.csv", "d/data/validation-0.csv"], "d", {"train": 1, "validation": 1}),
        (["d/train/x.csv", "d/test/y.csv", "d/.git/z.csv"], "d", {"train": 1, "test": 1}),
        (["d/fold1/x.csv", "d/fold2/y.csv", "d/fold2/z.csv"], "d/*/*.csv", {"fold1": 1, "fold2": 2}),
    ],
)  # fmt: skip
def test_names_say_the_splits(files, path, splits):
    for file in files:
        put(file, "a\n1\n")
    source = Files(path)
    assert {name: sum(of) for name, of in source.shards().items()} == splits
    assert set(source.splits()) == set(splits)


def test_a_relative_path_may_be_in_the_data_directory(tmp_path):
    put("data/own/a.csv", "a\n1\n")
    assert len(Files("own/a.csv").open("train", "data")) == 1
    put("here/b.csv", "a\n1\n")
    assert len(Files("here/*.csv").open("train", "data")) == 1
    assert len(Files(str(tmp_path / "here")).open("train", "data")) == 1


def png(value: int, size=(5, 4)) -> bytes:
    content = io.BytesIO()
    Image.new("L", size, value).save(content, "png")
    return content.getvalue()


def class_names(*names: str) -> dict[bytes, bytes]:
    """What the schema of a table says of its columns "image" and "label", as `datasets` has it."""
    label = {"_type": "ClassLabel", "names": names}
    features = {"image": {"_type": "Image"}, "label": label}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def write_datasets_folder(root: str) -> None:
    """As `datasets.DatasetDict.save_to_disk` lays it out."""
    pictures = [{"bytes": png(i), "path": None} for i in range(5)]
    made = pa.table({"image": pictures, "label": [0, 1, 0, 1, 1]})
    made = made.replace_schema_metadata(class_names("no", "yes"))
    for split in ("train", "test"):
        file = put(f"{root}/{split}/data-00000-of-00001.arrow", b"")
        put(f"{root}/{split}/cache-1.arrow", b"old")
        put(f"{root}/{split}/dataset_info.json", "{}")
        names = [{"filename": pathlib.Path(file).name}]
        put(f"{root}/{split}/state.json", json.dumps({"_data_files": names}))
        with pa.OSFile(file, "wb") as sink, pa.ipc.new_stream(sink, made.schema) as stream:
            stream.write_table(made, max_chunksize=2)
    put(f"{root}/dataset_dict.json", '{"splits": ["train", "test"]}')


def test_a_folder_of_hugging_face(monkeypatch):
    write_datasets_folder("hf")
    source = Files("hf")
    assert set(source.splits()) == {"train", "test"}
    dataset = source.open("test")
    assert dataset.classes == ("no", "yes")
    assert dataset.spec["image"] == jax.ShapeDtypeStruct((4, 5, 1), np.uint8)
    batch = dataset.take(np.array([4, 1]))
    assert batch["image"][:, 0, 0, 0].tolist() == [4, 1] and batch["label"].tolist() == [1, 1]
    # As it lies on the Hub, with the same features in the schema.
    pathlib.Path("hub/data").mkdir(parents=True)
    with pa.memory_map("hf/train/data-00000-of-00001.arrow") as file:
        pq.write_table(
            pa.ipc.open_stream(file).read_all(), "hub/data/train-00000-of-00001-ab.parquet"
        )
    put("hub/README.md", "about")
    train = Files("hub").open("train")
    assert train.classes == ("no", "yes") and train.take(np.array([3]))["label"] == [1]
    paths = pa.table({"image": [{"bytes": None, "path": "a.png"}]})
    pq.write_table(paths, "paths.parquet")
    with pytest.raises(DataError, match="column 'image': a value within a value is missing"):
        Files("paths.parquet").open("train")
    small = Files("hf", size=2).open("train").take(np.arange(5))["image"]
    assert small.shape == (5, 2, 2, 1)


def test_pictures_of_other_sizes():
    mixed = pa.table({"p": [png(1), png(2), png(3, (6, 6))]})
    pq.write_table(mixed, "p.parquet")
    assert Files("p.parquet").open("train").spec["p"].dtype == object
    assert Files("p.parquet", size=3).open("train").spec["p"].shape == (3, 3, 1)
    # One that the first rows do not tell of.
    pq.write_table(pa.table({"p": [png(1)] * 300 + [png(3, (6, 6))]}), "q.parquet")
    with pytest.raises(DataError, match=r"q.parquet row 301: column 'p' is \(6, 6, 1\).*set size"):
        Files("q.parquet").open("train").take(np.array([0, 300]))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("size", [None, 8])
def test_pictures_stand_as_their_exif_says_in_training_and_when_asked(kind, size):
    exif, content = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # a viewer turns it by 270 degrees
    lying = np.kron(np.arange(6).reshape(2, 3) * 40, np.ones((8, 8))).astype(np.uint8)
    Image.fromarray(lying).convert("RGB").save(content, kind, exif=exif, quality=95)
    put("photo", content.getvalue())
    pq.write_table(pa.table({"image": [content.getvalue()] * 2}), "photos.parquet")
    dataset = Files("photos.parquet", size=size).open("train")
    assert dataset.spec["image"].shape == ((size, size, 3) if size else (24, 16, 3))
    picture = dataset.take(np.array([0]))["image"][0]
    asked, _ = Inputs.of(dataset).read("image", "photo")
    np.testing.assert_array_equal(picture, asked[0])
    if not size:
        np.testing.assert_allclose(picture[..., 0].astype(int), np.rot90(lying, -1), atol=8)


def test_lists_that_differ_are_objects():
    pq.write_table(pa.table({"v": [[1], [1, 2], []]}), "v.parquet")
    dataset = Files("v.parquet").open("train")
    assert dataset.spec["v"].dtype == object
    assert [v.tolist() for v in dataset.take(np.array([2, 1]))["v"]] == [[], [1, 2]]
    assert [v.tolist() for v in dataset.take(np.array([1]))["v"]] == [[1, 2]]
    pq.write_table(pa.table({"v": [["a", "b"], ["c", "d"]]}), "t.parquet")
    texts = Files("t.parquet").open("train")
    assert texts.spec["v"] == jax.ShapeDtypeStruct((), object)
    assert [v.tolist() for v in texts.take(np.array([1, 0]))["v"]] == [["c", "d"], ["a", "b"]]
    put("v.tfrecord", record(v=[b"a", b"b"], n=[1]) + record(v=[b"c", b"d"], n=[2, 3]))
    both = Files("v.tfrecord").open("train").take(np.array([1, 0]))
    assert [v.tolist() for v in both["v"]] == [[b"c", b"d"], [b"a", b"b"]]
    assert [v.tolist() for v in both["n"]] == [[2, 3], [1]]


@pytest.mark.parametrize("packed", [True, False])
def test_lines(packed):
    text = "one\r\nzwölf\n\nlast".encode()
    name = put("t.txt.gz", gzip.compress(text)) if packed else put("t.txt", text)
    dataset = Files(name).open("train")
    assert dataset.take(np.array([3, 1, 0, 2]))["text"].tolist() == [
        "last",
        "zwölf\n",
        "one\r\n",
        "\n",
    ]
    assert dataset.column("text").tolist() == text.decode().splitlines(keepends=True)
    assert len(CharText(Files(name), 3).open("train")) == len(text.decode()) - 3


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_checksums_are_those_of_tensorboardx(pieces):
    from tensorboardX.record_writer import masked_crc32c

    found = crc32c.masked([np.frombuffer(piece, np.uint8) for piece in pieces])
    assert found.tolist() == [masked_crc32c(piece) for piece in pieces]


def test_the_checksum_of_the_standard():
    # RFC 3720, appendix B.4; and "123456789", as catalogues of checksums have it.
    counting = np.arange(32, dtype=np.uint8)
    pieces = [np.zeros(32, np.uint8), counting, np.frombuffer(b"123456789", np.uint8)]
    assert crc32c.crc32c(pieces).tolist() == [0x8A9136AA, 0x46DD794E, 0xE3069283]


def write_damaged(name, change):
    content = bytearray(b"".join(record(x=[float(i)] * 8) for i in range(3)))
    return put(name, bytes(change(content)))


def flipped(content, at):
    content[at] ^= 1
    return content


def write_cut_parquet():
    pq.write_table(table(), "a.parquet")
    return put("cut.parquet", pathlib.Path("a.parquet").read_bytes()[:-20])


def write_uneven():
    np.savez("u.npz", x=np.zeros((3, 2)), y=np.zeros(2))
    return "u.npz"


RUBBISH = {
    "empty": (lambda: put("e.csv", ""), "e.csv is empty"),
    "header only": (lambda: put("h.csv", "a,b\n"), "'train' of files h.csv holds no example"),
    "ragged rows": (lambda: put("r.csv", "a,b\n1,2\n3\n"), r"r.csv .*row 2: Expected 2 columns, got 1"),
    "semicolons": (lambda: put("s.csv", "a;b\n1,5;2\n"), r"s.csv: its header is one column, 'a;b'; it looks separated by ';', and .csv is by ',': write it with ','"),
    "tabs": (lambda: put("t.csv.gz", gzip.compress(b"a\tb\n1\t2\n")), r"separated by '\\t', and .csv is by ',': name it .tsv"),
    "one name twice": (lambda: put("d.csv", "a,a\n1,2\n"), "d.csv: column 'a' is there twice"),
    "not UTF-8": (lambda: put("u.csv", b"a\nx\ncaf\xe9\n"), "u.csv row 2: column 'a' is not UTF-8"),
    "not UTF-8 line": (lambda: put("u.txt", b"a\ncaf\xe9\n"), "u.txt row 2 is not UTF-8 .*byte 5"),
    "missing number": (lambda: put("m.csv", "a,b\n1,2\n,3\n"), "m.csv row 2: column 'a' has no value"),
    "missing key": (lambda: put("m.jsonl", '{"a": 1}\n{"b": 2}'), "m.jsonl row 2: column 'a' has no"),
    "other type": (lambda: put("t.jsonl", '{"a": 1}\n{"a": "x"}'), "t.jsonl .* changed from number to string in row 2"),
    "no JSON": (lambda: put("n.jsonl", '{"a": 1}\n{"a"'), "n.jsonl cannot be read: JSON parse error"),
    "object": (lambda: put("o.jsonl", '{"a": {"b": 1}}'), "o.jsonl column 'a' holds struct.*leave it out"),
    "float beyond 32 bits": (lambda: put("f.csv", "a\n1.5\n1e300\n"), "f.csv: column 'a' holds numbers beyond 32"),
    "beyond 32 bits": (lambda: put("l.csv", f"a\n{2**40}\n"), "l.csv: column 'a' holds integers beyond 32"),
    "cut parquet": (write_cut_parquet, "cut.parquet cannot be read: Parquet magic bytes"),
    "no parquet": (lambda: put("n.parquet", "x"), "n.parquet cannot be read"),
    "no arrow": (lambda: put("n.arrow", "x" * 99), "n.arrow cannot be read"),
    "no HDF5": (lambda: put("n.h5", "x"), "n.h5 cannot be read"),
    "no zip": (lambda: put("n.npz", "x"), "n.npz cannot be read: File is not a zip file"),
    "lengths": (write_uneven, "u.npz: 'y' has 2 rows and others 3"),
    "cut record": (lambda: write_damaged("c.tfrecord", lambda c: c[:-3]), "c.tfrecord row 3 is cut off"),
    "flipped bit": (lambda: write_damaged("f.tfrecord", lambda c: flipped(c, 30)), "f.tfrecord row 1 is damaged"),
    "wrong length": (lambda: write_damaged("w.tfrecord", lambda c: flipped(c, 0)), "w.tfrecord row 1 is damaged: the checksum of its length"),
    "no feature": (lambda: put("x.tfrecord", record(x=[1.0]) + record(y=[1])), "x.tfrecord row 2: feature 'x' has no value"),
    "unknown ending": (lambda: put("a.xyz", "a"), "a.xyz has none of the endings .csv"),
    "absent": (lambda: put("here.csv", "a\n1") and "her.csv", "her.csv: no such file or folder. Did you mean 'here.csv'"),
    "no split": (lambda: put("s/train.csv", "a\n1") and put("s/more.csv", "a\n1") and "s", "more.csv names no split, as train.csv does"),
    "two kinds": (lambda: put("k/a.csv", "a\n1") and put("k/b.csv", "a\n1") and put("k/r.txt", "a") and "k", "k: r.txt is of another kind than the .csv files"),
    "no files": (lambda: put("none/a.md", "a") and "none", "none holds no file that ends in .csv"),
    "other column": (lambda: put("o/a.csv", "a\n1") and put("o/b.csv", "b\n1") and "o", "b.csv has no column 'a'; it has b"),
    "other kind": (lambda: put("p/a.csv", "a\n1") and put("p/b.csv", "a\n1\nx") and "p", r"b.csv: column 'a' is text: row 2 holds 'x', and \(\) int32"),
}  # fmt: skip


@pytest.mark.parametrize("case", RUBBISH)
def test_rubbish_is_told_of_in_one_line(case):
    make, said = RUBBISH[case]
    with pytest.raises(DataError, match=said) as error:
        dataset = Files(make()).open("train")
        dataset.take(np.arange(len(dataset)))
    assert "\n" not in str(error.value)


def test_a_column_that_is_text_half_way_is_text():
    values = ["1"] * 300_000 + ["x"]  # beyond Arrow's own first block of a MiB, by which it guesses
    dataset = Files(put("t.csv", "a\n" + "\n".join(values) + "\n" * 2)).open("train")
    assert dataset.take(np.array([0, 300_000]))["a"].tolist() == ["1", "x"]


def test_whole_numbers_in_one_file_and_fractions_in_the_next():
    put("d/a.csv", "a\n1\n")
    put("d/b.csv", "a\n0.5\n")
    dataset = Files("d").open("train")
    assert dataset.spec["a"].dtype == np.float32
    assert dataset.take(np.arange(2))["a"].tolist() == [1, 0.5]


def test_arrays_of_other_lengths_that_nobody_asks_for_hinder_none():
    x, y = np.arange(6.0).reshape(3, 2), np.arange(3)
    np.savez("mnist.npz", x_train=np.ones((5, 2)), y_train=np.ones(5), x_test=x, y_test=y)
    dataset = Files("mnist.npz", {"x": "x_test", "label": "y_test"}).open("train")
    assert len(dataset) == 3 and dataset.take(np.array([2]))["x"].tolist() == [[4, 5]]
    with h5py.File("a.h5", "w") as file:
        file["x"], file["classes"] = x, np.arange(7)
    assert len(Files("a.h5", columns=("x",)).open("train")) == 3
    with pytest.raises(DataError, match="'x' has 3 rows and others 7"):
        Files("a.h5").open("train")


def test_files_that_number_their_classes_otherwise_are_refused():
    for split, names in (("train", ["cat", "dog"]), ("test", ["dog", "cat"])):
        made = pa.table({"label": [0, 1]}).replace_schema_metadata(class_names(*names))
        pathlib.Path("d").mkdir(exist_ok=True)
        pq.write_table(made, f"d/{split}.parquet")
    line = "its classes of column 'label' are .*, and those of .*one order are needed"
    for split in ("train", "test"):
        with pytest.raises(DataError, match=line):
            Files("d").open(split)


def test_labels_are_texts_or_bytes():
    for split, kind in (("train", "U1"), ("test", "S1")):
        pathlib.Path("d").mkdir(exist_ok=True)
        np.savez(f"d/{split}.npz", label=np.array(["a", "b"], kind))
    with pytest.raises(DataError, match="'label' holds both texts and bytes"):
        Files("d", labels=("label",)).open("train")


def test_what_would_wrap_around_is_refused():
    pathlib.Path("d").mkdir()
    pq.write_table(pa.table({"a": pa.array([1], pa.int8())}), "d/a.parquet")
    pq.write_table(pa.table({"a": pa.array([300])}), "d/b.parquet")
    with pytest.raises(DataError, match="b.parquet: column 'a' is int32, and int8 in the file bef"):
        Files("d").open("train").take(np.arange(2))


@pytest.mark.parametrize("name", ["a.parquet", "a.npz", "a.tfrecord"])
def test_a_file_that_changes_between_open_and_read(name, monkeypatch):
    monkeypatch.setattr(cache, "MAX_BYTES", 0)
    WRITERS[name](name)
    dataset = Files(name).open("train")
    before = dataset.identity
    path = pathlib.Path(name)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(DataError, match=f"{name} has changed since it was opened"):
        dataset.take(np.array([0]))
    path.unlink()
    with pytest.raises(DataError, match=f"{name} cannot be read: No such file"):
        dataset.take(np.array([0]))
    WRITERS[name](name)
    assert Files(name).open("train").identity == before


def test_dates_of_arrays_are_texts_and_structures_are_refused():
    np.savez("d.npz", day=np.array(["2024-01-02", "2024-01-03"], "datetime64[D]"))
    assert Files("d.npz").open("train").take(np.array([1]))["day"].tolist() == ["2024-01-03"]
    np.savez("s.npz", s=np.zeros(2, [("a", "i4"), ("b", "f4")]))
    with pytest.raises(DataError, match="s.npz column 's' holds .*leave it out"):
        Files("s.npz").open("train")
    np.savez("o.npz", o=np.array([{}], object))
    with pytest.raises(DataError, match="o.npz: o.npy holds Python objects"):
        Files("o.npz").open("train")


def test_what_tells_files_from_others():
    found = []
    for text in ("a,b\n1,2\n", "a,b\n1,22\n"):
        found.append(Files(put("a.csv", text)).open("train").identity)
        found.append(Files("a.csv", ("a",)).open("train").identity)
    assert len({one["files"] for one in found}) == 4


def test_arrays_of_npz_are_mapped_or_unpacked_when_they_are_read(monkeypatch):
    write_npz("a.npz")
    monkeypatch.setattr(cache, "MAX_BYTES", 0)
    with monkeypatch.context() as patched:
        patched.setattr(np, "load", None)  # which would read an array whole
        assert Files("a.npz", ("n",)).open("train").take(np.array([3]))["n"].tolist() == [9]
    np.savez_compressed("c.npz", n=ARRAYS["n"], x=ARRAYS["x"])
    dataset = Files("c.npz", ("n",)).open("train")
    (packed,) = stores.open_npz(pathlib.Path("c.npz"), set())
    assert dataset.take(np.array([3]))["n"].tolist() == [9] and len(packed) == N
    assert not any("_whole" in vars(array) for array in packed._arrays.values())


@pytest.mark.parametrize(("name", "extra"), [("a.csv", "tables"), ("a.h5", "hdf5")])
def test_a_library_that_is_not_there_is_named(name, extra, monkeypatch):
    put(name, "x")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=rf"is not installed; pip install 'lsm\[{extra}\]'"):
        Files(name).open("train")


def test_settings_that_are_wrong():
    put("a.csv", "width,kind\n1,x\n2.5,y\n")
    with pytest.raises(
        DataError, match="a.csv has no column 'widht'; it has width, kind. Did you m"
    ):
        Files("a.csv", ("widht",)).open("train")
    with pytest.raises(DataError, match="Files.labels: 'kin' is no column that is delivered"):
        Files("a.csv", labels=("kin",)).open("train")
    with pytest.raises(
        DataError, match=r"labels: column 'width' holds \(\) float64; texts or whole"
    ):
        Files("a.csv", labels=("width",)).open("train")
    with pytest.raises(DataError, match="'kind' is text: row 1 holds 'x'; only single numbers can"):
        Files("a.csv", {"x": ("width", "kind")}).open("train")
    with pytest.raises(ConfigError, match="Files.columns: 'a' is one string; give a tuple"):
        Files("a.csv", "a")
    with pytest.raises(ConfigError, match="Files.path: is empty"):
        Files("")


def test_quotes_between_tabs_are_signs_as_any_other():
    rows = [('"The film is great', 1), ("A dull film", 0), ('fine"', 1), ("it 's 5 \" long", 0)]
    put("films.tsv", "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    batch = Files("films.tsv").open("train").take(np.arange(4))
    assert list(zip(batch["text"], batch["label"], strict=True)) == rows


def test_dates_in_lists_are_the_texts_that_they_are():
    days = [["2020-01-01", "2021-05-06"], ["2022-12-31"]]
    put("days.jsonl", "".join(json.dumps({"day": x[0], "days": x}) + "\n" for x in days))
    batch = Files("days.jsonl").open("train").take(np.arange(2))
    assert [list(x) for x in batch["days"]] == days and batch["day"].tolist() == [
        d for d, *_ in days
    ]
