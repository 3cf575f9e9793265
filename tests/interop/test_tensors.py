"""Safetensors files, whole, in parts and damaged."""

import json
import resource
import struct

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import save_file

from lsm.errors import CheckpointError
from lsm.interop import open_tensors

COLUMNS = {
    "dense/kernel": np.arange(64, dtype=np.float32).reshape(8, 8),
    "bias": np.arange(5, dtype=np.int8),
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 3), np.float16),
    "mask": np.array([True, False, True]),
    "wave": np.array([1 + 2j], np.complex64),
}


def write(path, tensors):
    """Writes {name: (dtype in the file, shape, bytes)} as the format's description says."""
    header, data = {}, b""
    for name, (kind, shape, content) in tensors.items():
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": offsets}
        data += content
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def refused(path, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        open_tensors(path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def file(tmp_path):
    save_file(COLUMNS, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "sharded"
    folder.mkdir()
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(COLUMNS)}
    for shard in set(files.values()):
        save_file({n: COLUMNS[n] for n, f in files.items() if f == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


def check(tensors):
    assert tensors.specs.keys() == COLUMNS.keys()
    for name, column in COLUMNS.items():
        assert tensors.specs[name] == jax.ShapeDtypeStruct(column.shape, column.dtype)
        read = tensors.read(name)
        np.testing.assert_array_equal(read, column, strict=True)
        assert isinstance(read, np.ndarray) and read.flags.writeable and read.flags.owndata


def test_a_file_a_folder_an_index(file, shards):
    check(open_tensors(file))
    check(open_tensors(str(file.parent)))
    check(open_tensors(shards))
    check(open_tensors(shards / "model.safetensors.index.json"))


@pytest.mark.parametrize("index", [
    (), (slice(None), slice(None)), (slice(2, 4, None), slice(0, 8)), (slice(0, 6), slice(5, 8)),
    (slice(6, 6), slice(None)), (slice(1, 6, 2), slice(None, None, 3)),
], ids=str)  # fmt: skip
def test_parts(file, index):
    part = open_tensors(file).read("dense/kernel", index)
    np.testing.assert_array_equal(part, COLUMNS["dense/kernel"][index], strict=True)


@pytest.mark.parametrize(("kind", "dtype", "content", "values"), [
    ("BF16", ml_dtypes.bfloat16, b"\x80\x3f\x00\xc0\x49\x40", [1, -2, 3.140625]),
    ("F8_E4M3", ml_dtypes.float8_e4m3fn, b"\x38\xc0\x7e", [1, -2, 448]),
    ("F8_E5M2", ml_dtypes.float8_e5m2, b"\x3c\xc0\x7b", [1, -2, 57344]),
    ("F8_E8M0", ml_dtypes.float8_e8m0fnu, b"\x7f\x80\x7e", [1, 2, 0.5]),
])  # fmt: skip
def test_small_floats_from_their_bits(tmp_path, kind, dtype, content, values):
    write(tmp_path / "x.safetensors", {"odd": ("U8", (1,), b"\0"), "x": (kind, (1, 3), content)})
    tensors = open_tensors(tmp_path / "x.safetensors")
    assert tensors.specs["x"].dtype == dtype
    np.testing.assert_array_equal(tensors.read("x").astype(float), [values])
    part = tensors.read("x", (slice(0, 1), slice(1, 3)))
    np.testing.assert_array_equal(part.astype(float), [values[1:]])


def test_tensors_in_another_order_than_their_names(tmp_path):
    content = {"b": ("U8", (2,), b"\1\2"), "a": ("BF16", (1,), b"\x80\x3f"), "c": ("I8", (), b"\5")}
    write(tmp_path / "x.safetensors", content)
    tensors = open_tensors(tmp_path / "x.safetensors")
    assert tensors.read("b").tolist() == [1, 2] and tensors.read("c") == 5
    assert tensors.read("a").astype(float).tolist() == [1.0]


@pytest.mark.parametrize("spec", [("x", None), (None, "x"), ("x", "y"), (("x", "y"),), ()], ids=str)
def test_every_device_reads_its_part(file, spec):
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2,
                         devices=jax.devices()[:4])  # fmt: skip
    column, tensors = COLUMNS["dense/kernel"], open_tensors(file)
    array = jax.make_array_from_callback(
        column.shape, NamedSharding(mesh, PartitionSpec(*spec)),
        lambda index: tensors.read("dense/kernel", index),
    )  # fmt: skip
    np.testing.assert_array_equal(array, column)
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(shard.data, column[shard.index])


def test_only_the_part_is_read(tmp_path):
    """A sparse file of 4 GiB, of which 4 KiB are read."""
    rows, text = 1 << 20, b'{"x":{"dtype":"F32","shape":[1048576,1024],"data_offsets":[0,%d]}}'
    text %= rows * 4096
    with open(tmp_path / "x.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + rows * 4096)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    part = open_tensors(tmp_path / "x.safetensors").read("x", (slice(rows - 1, rows), slice(None)))
    assert part.shape == (1, 1024) and part.nbytes == 4096
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_damaged_files_are_refused_in_one_line(file):
    whole = file.read_bytes()
    for content in (whole[:-1], whole + b"\0", whole[:40], whole[:5], b"", b"\xff" * 100):
        file.write_bytes(content)
        refused(file, r"model\.safetensors is no whole safetensors file: \S")
    refused(file.parent / "absent.safetensors", "there is no file .*absent.safetensors")
    write(file, {"x": ("F4", (2,), b"\0")})
    refused(file, r"'x' is F4; allowed: BOOL, .*BF16, F8_E4M3|no whole safetensors file")


def test_a_folder_without_a_model(tmp_path, file):
    refused(tmp_path / "none", "there is no file .*none")
    file.rename(tmp_path / "adapter.safetensors")
    refused(tmp_path, r"has neither model\.safetensors nor .*; it has adapter\.safetensors, which")


def test_a_damaged_index_is_refused_in_one_line(shards):
    index = shards / "model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": files | {"head": "model-0.safetensors"}}))
    refused(shards, "says that 'head' is in 'model-0.safetensors', and it is not")
    index.write_text(json.dumps({"weight_map": files | {"head": "model-2.safetensors"}}))
    refused(shards, "names 'model-2.safetensors', and there is no such file")
    for content in ("{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', "{}"):
        index.write_text(content)
        refused(shards, r"index\.json is damaged \(\w+: .* should be JSON with a 'weight_map'")


def test_an_unknown_tensor_is_named(file):
    with pytest.raises(CheckpointError, match=r"no tensor 'dense/kernl'; it has .*mean 'dense/ker"):
        open_tensors(file).read("dense/kernl")
