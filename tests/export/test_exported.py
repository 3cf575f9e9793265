"""Exported models: equal to what they are made of, whole or refused in one line."""

import hashlib
import json
import os
import re
import shutil
import threading
import types

import jax
import numpy as np
import pytest

from lsm.data.inputs import Inputs
from lsm.errors import ConfigError, DataError, ExportError, LsmError
from lsm.export import load, preprocess
from lsm.export.artefact import SIGNATURE, Signature
from lsm.export.model import _as
from lsm.export.write import write
from tests.export.exports import TASKS, columns, trained

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The smallest model, and the folder of its export."""
    run, folder = trained("mlp", classes=("a", "b", "c")), tmp_path_factory.mktemp("small") / "out"
    write(run, folder)
    return run, folder


@pytest.mark.parametrize(
    "name",
    [n if n in ("mlp", "regression") else pytest.param(n, marks=slow) for n in TASKS],
)
def test_predictions_are_to_the_bit_those_of_the_run(name, tmp_path):
    run = trained(name)
    signature = write(run, tmp_path / "out")
    model, function = load(tmp_path / "out"), signature.functions["predict"]
    lengths = (5, 9) if "length" in function.symbols else (None,)
    for rows, length in [(3, lengths[0]), (1, lengths[-1])]:
        given = columns(name, rows, length)
        expected = run.predict(given)
        found = model({column: given[column] for column in function.inputs})
        assert found.keys() == {*function.outputs} <= expected.keys()
        for output, x in found.items():
            np.testing.assert_array_equal(x, expected[output])
            assert x.dtype == function.outputs[output].dtype
    assert "label" not in function.inputs and "target" not in function.inputs
    assert function.symbols.keys() == {"batch", *["length"] * (lengths[0] is not None)}
    assert model.platforms == ("cpu", "cuda", "tpu")


def test_a_batch_of_any_size_is_taken_and_compiled_once(small):
    model = load(small[1])
    model.compile(batch=2)
    image = columns("mlp", 3)["image"]
    asked = [{"image": image[:rows]} for rows in (2, 3, 3, 3)]
    threads = [threading.Thread(target=model, args=[given]) for given in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(model._programs) == [("predict", 2), ("predict", 3)]
    assert model.labels == ("a", "b", "c") and model.statistics is None
    with pytest.raises(
        DataError, match="compile: 'bach' given; needed: batch. Did you mean 'batch'"
    ):
        model.compile(bach=2)


def test_wider_numbers_are_taken_where_they_fit(small):
    model, image = load(small[1]), columns("mlp", 2)["image"]
    expected = model({"image": image})["probability"]
    np.testing.assert_array_equal(model({"image": image.tolist()})["probability"], expected)


def test_a_number_that_would_become_infinite_does_not_fit():
    fits = [0.1, -3e38, np.inf, np.nan]
    np.testing.assert_array_equal(_as("float32", fits, "x"), np.float32(fits))
    for other in (1e300, -1e300):
        with pytest.raises(DataError, match="inputs: 'x' of float64 given; float32 is needed"):
            _as("float32", [other], "x")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "inputs: 'image' is missing; needed: image."),
        ({"imag": 0}, "inputs: 'imag' given; needed: image. Did you mean 'image'?"),
        (
            {"image": np.zeros((2, 8, 8), np.uint8)},
            "'image' of shape (2, 8, 8) given; (batch, 8, 8, 3) is",
        ),
        ({"image": np.zeros((2, 8, 8, 3))}, "'image' of float64 given; uint8 is needed."),
        ({"image": np.full((2, 8, 8, 3), 256)}, "'image' of int64 given; uint8 is needed."),
        ({"image": np.zeros((0, 8, 8, 3), np.uint8)}, "batch: 0 given; allowed: 1 or more."),
        ({"image": [[1], [1, 2]]}, "inputs: 'image': "),
        ({"image": ["a"]}, "'image' of <U1 given; uint8 is needed."),
        (np.zeros((2, 8, 8, 3)), "inputs: ndarray given; a dict is needed, of image."),
        (None, "inputs: NoneType given; a dict is needed, of image."),
    ],
)
def test_what_it_cannot_be_called_with_is_told_in_one_line(small, given, told):
    with pytest.raises(DataError, match=re.escape(told)) as raised:
        load(small[1])(given)
    assert "\n" not in str(raised.value)


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def signed(folder, **changes):
    """The signature with other fields, and a digest that is right."""
    signature = Signature.from_json((folder / SIGNATURE).read_bytes())
    vars(signature).update(changes)
    (folder / SIGNATURE).write_bytes(signature.to_json())


def shape_of(folder, name, shape):
    tree = json.loads((folder / SIGNATURE).read_text())
    weights = {n: dict(one) for n, one in tree["weights"].items()}
    weights[min(weights)]["shape"] = shape
    signed(folder, weights=weights)


def with_weights(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    files = Signature.from_json((folder / SIGNATURE).read_bytes()).files
    signed(folder, files=files | {"model.safetensors": hashlib.sha256(content).hexdigest()})


def header(folder, change):
    """The file of weights with another header, whose digest is right."""
    data = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    tree = json.loads(data[8 : 8 + size])
    change(tree)
    text = json.dumps(tree).encode()
    with_weights(folder, len(text).to_bytes(8, "little") + text + data[8 + size :])


def first(tree):
    return tree[min(name for name in tree if name != "__metadata__")]


DAMAGES = {
    "weights": (lambda f: flipped(f / "model.safetensors"), "model.safetensors: is damaged"),
    "module": (lambda f: flipped(f / "predict.stablehlo"), "predict.stablehlo: is damaged"),
    "cut": (lambda f: (f / "predict.stablehlo").write_bytes(b""), "predict.stablehlo: is damaged"),
    "gone": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: is missing"),
    "signature": (lambda f: flipped(f / SIGNATURE), "signature.json: cannot be used: "),
    "no signature": (lambda f: (f / SIGNATURE).unlink(), "is no exported model, without signature"),
    "other JSON": (lambda f: (f / SIGNATURE).write_text("[]"), "signature.json: cannot be used: "),
    "deep": (lambda f: (f / SIGNATURE).write_text("[" * 10**5), "signature.json: cannot be used: "),
    "format": (
        lambda f: (f / SIGNATURE).write_text(json.dumps({"format": 9})),
        "it is of format 9, and this lsm reads 1",
    ),
    "path": (lambda f: signed(f, files={"../x": "0"}), "it names the file '../x'"),
    "absolute": (lambda f: signed(f, files={"/etc/passwd": "0"}), "it names the file '/etc/passwd'"),
    "unnamed": (lambda f: signed(f, files={}), "it has no digest of 'predict.stablehlo'"),
    "no platform": (lambda f: signed(f, platforms=([],)), "signature.json: cannot be used: "),
    "platform": (lambda f: signed(f, platforms=("tpu",)), "is exported for tpu, and JAX runs on cpu"),
    "shape": (lambda f: shape_of(f, "", [3, 4]), "and known as Array(shape=(3, 4)"),
    "huge shape": (lambda f: shape_of(f, "", [1 << 50]), "shape (1125899906842624,) is none"),
    "text for a shape": (lambda f: shape_of(f, "", ["__import__('os')"]), "cannot be used: shape"),
    "huge header": (lambda f: with_weights(f, b"\xff" * 64), "a header of 18446744073709551615 bytes"),
    "bytes behind": (
        lambda f: with_weights(f, (f / "model.safetensors").read_bytes() + b"0"),
        "1 bytes behind its arrays",
    ),
    "overlap": (
        lambda f: header(f, lambda tree: first(tree).update(data_offsets=[0, 4])),
        "is no whole file of the weights: ",
    ),
    "dtype": (lambda f: header(f, lambda tree: first(tree).update(dtype="F99")), "no whole file"),
    "names": (lambda f: header(f, lambda tree: tree.update(x=first(tree))), "arrays, of which"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_or_foreign_is_refused_in_one_line(small, name, tmp_path):
    damage, told = DAMAGES[name]
    folder = shutil.copytree(small[1], tmp_path / "copy")
    damage(folder)
    with pytest.raises(ExportError, match=re.escape(told)) as raised:
        load(folder)
    assert "\n" not in str(raised.value)


def test_a_module_of_another_version_is_refused_in_one_line(small, tmp_path):
    folder = shutil.copytree(small[1], tmp_path / "copy")
    functions = json.loads((folder / SIGNATURE).read_text())["functions"]
    functions["predict"]["convention"] = 99
    signed(folder, functions=functions)
    with pytest.raises(ExportError, match="predict.stablehlo: calling convention 99; JAX"):
        load(folder)({"image": columns("mlp", 1)["image"]})


def test_a_file_that_changes_after_the_folder_is_opened_is_refused(small, tmp_path):
    folder = shutil.copytree(small[1], tmp_path / "copy")
    model = load(folder)
    flipped(folder / "predict.stablehlo")
    with pytest.raises(ExportError, match="predict.stablehlo: has changed since it was opened"):
        model({"image": columns("mlp", 1)["image"]})
    (folder / "predict.stablehlo").unlink()
    with pytest.raises(ExportError, match="predict.stablehlo: cannot be read: No such file"):
        model({"image": columns("mlp", 1)["image"]})


def test_weights_are_those_of_the_file_when_it_was_loaded(small, tmp_path):
    folder = shutil.copytree(small[1], tmp_path / "copy")
    model, asked = load(folder), {"image": columns("mlp", 3)["image"]}
    expected = model(asked)
    path = folder / "model.safetensors"
    path.write_bytes(b"\0" * path.stat().st_size)
    path.write_bytes(b"")
    for name, values in model(asked).items():
        np.testing.assert_array_equal(values, expected[name])


def test_arrays_and_sizes_of_another_kind_are_told_in_one_line(small):
    model = load(small[1])
    with pytest.raises(DataError, match="'image' of no array given; uint8 is needed"):
        model.call("predict", {"image": [1]})
    with pytest.raises(DataError, match="batch: '8' given; a whole number is needed"):
        model.compile(batch="8")


def test_folders_that_are_none_are_told_of(tmp_path):
    with pytest.raises(ExportError, match="no such file or folder"):
        load(tmp_path / "none")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ExportError, match="it is a run: `python -m lsm.export` makes one of it"):
        load(tmp_path)


def test_nothing_is_left_of_an_export_that_fails(small, tmp_path, monkeypatch):
    run, folder = small
    with pytest.raises(ConfigError, match="is there already; give a new folder"):
        write(run, folder)
    with pytest.raises(
        ConfigError, match="'cud' given; allowed: cpu, cuda, tpu. Did you mean 'cuda'"
    ):
        write(run, tmp_path / "out", platforms=("cud",))
    with pytest.raises(ConfigError, match="--platforms: none given; allowed: cpu, cuda, tpu"):
        write(run, tmp_path / "out", platforms=())
    with pytest.raises(ConfigError, match="--context: given, but the model writes no texts"):
        write(run, tmp_path / "out", context=8)
    monkeypatch.setattr("lsm.export.write.card", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(run, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_export_has_left_goes_a_day_later(small, tmp_path):
    old, young, mine = (
        tmp_path / name for name in (".out.exporting-a", ".out.exporting-b", ".out.mine")
    )
    for path in (old, young, mine):
        path.mkdir()
    for path in (old, mine):
        os.utime(path, (0, 0))
    write(small[0], tmp_path / "out")
    assert not old.exists() and young.exists() and mine.exists()


def test_weights_are_apart_and_the_program_is_small(small):
    run, folder = small
    from safetensors.numpy import load_file

    arrays = load_file(folder / "model.safetensors")
    assert sum(x.size for x in arrays.values()) == sum(x.size for x in jax.tree.leaves(run.params))
    assert (folder / "predict.stablehlo").stat().st_size < 20_000


def test_the_card_says_what_it_is(small):
    text = (small[1] / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: jax\npipeline_tag: image-classification\n")
    assert 'outputs = model({"image": image})' in text and "uint8 (batch, 8, 8, 3)" in text


def test_arrays_and_characters_are_made_columns_by_numpy(small, tmp_path):
    model, image = load(small[1]), columns("mlp", 2)["image"]
    np.testing.assert_array_equal(model.preprocess(image)["image"], image)
    with pytest.raises(DataError, match=r"'image' of shape \(8, 8, 3\) given; \(B, 8, 8, 3\) is"):
        model.preprocess(image[0])
    with pytest.raises(LsmError):
        model.preprocess("nowhere.png")


@pytest.mark.parametrize("names", [("3", "4", "5"), ("3",)], ids=["wider", "as wide"])
def test_rows_of_what_is_joined_are_read_as_the_run_does(names):
    """Names of classes may be whole numbers; as wide as the column, a row is of its parts."""
    spec = {"x": jax.ShapeDtypeStruct((len(names) + 1,), np.float32)}
    inputs = Inputs(spec, names={"rooms": names}, joined={"x": ("rooms", "age")})
    known = {"inputs": json.loads(json.dumps(inputs.to_json())), "columns": ["x"], "crops": []}
    signature = types.SimpleNamespace(files={})
    artefact = types.SimpleNamespace(json=lambda _: known, signature=signature)
    one_hot = [float(name == "3") for name in names]
    for given in ([[3, 1.5]], [["3", 1.5]], np.array([[3, 1.5]])):
        found = preprocess.columns(artefact, given)["x"].tolist()
        assert found == inputs.read("x", given)[0].tolist() == [[*one_hot, 1.5]]
    if len(names) > 1:
        made = np.float32([[*one_hot, 1.5]])
        assert preprocess.columns(artefact, made)["x"] is made
