"""Files of weights: every dtype there and back, in several files, read by the library too."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lsm.data.inputs import Inputs
from lsm.errors import ConfigError
from lsm.export import load, weights
from lsm.export.spec import Array
from lsm.export.write import write
from lsm.tasks import Classification
from tests.export.exports import columns, trained

DTYPES = [
    "bool",
    "int8",
    "uint8",
    "int32",
    "float16",
    "bfloat16",
    "float32",
    "float8_e4m3fn",
    "int4",
    "uint4",
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_come_back_as_they_went(dtype, tmp_path):
    low = 0 if dtype[0] in "bu" else -8
    values = np.arange(15).reshape(3, 5) % 16 + low
    made = {"a": values.astype(jnp.dtype(dtype)), "b": np.float32(3) * np.ones((), np.float32)}
    save_file({n: weights.stored(x) for n, x in made.items()}, tmp_path / "w.safetensors")
    found = weights.read(tmp_path / "w.safetensors", {n: Array.of(x) for n, x in made.items()})
    for name, x in made.items():
        assert found[name].dtype == x.dtype
        np.testing.assert_array_equal(found[name].astype(np.float32), x.astype(np.float32))


def test_two_of_four_bits_are_a_byte():
    pair = np.array([1, -2, 3], ml_dtypes.int4)  # 0001, 1110, 0011
    np.testing.assert_array_equal(weights.stored(pair), np.array([0b11100001, 0b0011], np.uint8))


def test_more_than_a_file_holds_goes_into_several(tmp_path, monkeypatch):
    monkeypatch.setattr("lsm.export.write._SHARD", 100)
    run = trained("mlp")
    write(run, tmp_path / "out")
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors" and len(files) > 1
    assert sum(len(load_file(tmp_path / "out" / name)) for name in files) == 4
    given = {"image": columns("mlp", 2)["image"]}
    found = load(tmp_path / "out")(given)
    np.testing.assert_array_equal(found["label"], run.predict(given)["label"])


class Calls(nn.Module):
    outputs: int = 3

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.outputs)(x.reshape(x.shape[0], -1))
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


class Fixed(nn.Module):
    """Branches on how long its input is."""

    outputs: int = 3

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.outputs)(x * 2 if x.shape[0] > 4 else x)


@pytest.mark.parametrize(
    ("model", "told"), [(Calls(), "Calls: JAX cannot"), (Fixed(), "Fixed: JAX cannot")]
)
def test_what_cannot_be_exported_is_refused_by_name(model, told, tmp_path):
    run = made_of(model)
    with pytest.raises(ConfigError, match=f"export: {told} export it") as raised:
        write(run, tmp_path / "out")
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def made_of(model):
    run = trained("regression")
    task = Classification(model=model, input="x", label="y")
    params, state = task.init(jax.random.key(0), {"x": np.zeros((1, 5), np.float32)})
    experiment = dataclasses.replace(run.experiment, task=task)
    inputs = Inputs({"x": jax.ShapeDtypeStruct((5,), np.float32)})
    changes = {"experiment": experiment, "params": params, "model_state": state, "inputs": inputs}
    return dataclasses.replace(run, **changes)
