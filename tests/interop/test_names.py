"""Arrays that are called and laid out in another way in a file."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import save_file

from lsm.errors import CheckpointError
from lsm.interop import Names, Source, Torch, by_key_head, open_tensors, transposed
from lsm.run.weights import FileWeights, NamedWeights

RANDOM = np.random.default_rng(0)
HEADS, KEY_HEADS, HEAD = 4, 2, 3  # 2 queries a key head


@dataclasses.dataclass(frozen=True)
class Decoder(Torch):
    """Three projections here are one, and blocks are stacked."""

    key_heads: int = KEY_HEADS
    rename: tuple[tuple[str, str], ...] = (("^blocks/", "model.layers.{}."),)
    ignored: ClassVar[str | None] = "inv_freq$"

    def sources(self, here):
        tensors = tuple(f"model.layers.{{}}.{name}_proj.weight" for name in "qkv")
        qkv = Source(tensors, self._joined, here["params/blocks/qkv/kernel"].shape[0])
        return super().sources(here) | {"params/blocks/qkv/kernel": qkv}

    def _joined(self, q, k, v):
        return by_key_head(*map(transposed, (q, k, v)), self.key_heads)


def shapes(**leaves):
    return {
        name.replace("__", "/"): jax.ShapeDtypeStruct(shape, np.float32)
        for name, shape in leaves.items()
    }


def drawn(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def opened(path, tensors, names, here):
    save_file(tensors, path / "model.safetensors")
    return NamedWeights(FileWeights(open_tensors(path), path), names, here)


@pytest.fixture
def decoder(tmp_path):
    tensors = {"model.layers.0.inv_freq": drawn(2)}
    for layer in range(3):
        tensors |= {
            f"model.layers.{layer}.q_proj.weight": drawn(HEADS * HEAD, 8),
            f"model.layers.{layer}.k_proj.weight": drawn(KEY_HEADS * HEAD, 8),
            f"model.layers.{layer}.v_proj.weight": drawn(KEY_HEADS * HEAD, 8),
            f"model.layers.{layer}.norm.weight": drawn(8),
        }
    here = shapes(params__blocks__qkv__kernel=(3, 8, 24), params__blocks__norm__scale=(3, 8))
    return tensors, opened(tmp_path, tensors, Decoder(), here)


@pytest.mark.parametrize("spec", [(), ("data", None, None), (None, "data", None)], ids=str)
def test_layers_are_stacked_and_projections_joined_on_any_mesh(decoder, spec):
    tensors, weights = decoder
    assert weights.spec.keys() == {"params/blocks/qkv/kernel", "params/blocks/norm/scale"}
    devices = jax.devices()[: 3 if spec[:1] == ("data",) else 8]
    mesh = jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)
    kernel = weights.read({"params/blocks/qkv/kernel": NamedSharding(mesh, PartitionSpec(*spec))})
    kernel = np.asarray(kernel["params/blocks/qkv/kernel"]).reshape(3, 8, KEY_HEADS, 4, HEAD)
    for layer in range(3):
        for column, (name, head) in enumerate([("q", 2), ("q", 3), ("k", 1), ("v", 1)]):
            rows = tensors[f"model.layers.{layer}.{name}_proj.weight"].reshape(-1, HEAD, 8)[head]
            np.testing.assert_array_equal(kernel[layer, :, 1, column], rows.T)


def test_only_what_a_device_holds_is_made(decoder):
    _, weights = decoder
    asked = []

    class Spy:
        def view(self, name):
            asked.append(name)
            return view(name)

        def forget(self):
            pass

    view, weights._tensors = weights._tensors.view, Spy()
    mesh = jax.make_mesh((1,), ("data",), (AxisType.Auto,), devices=jax.devices()[:1])
    weights.read({"params/blocks/norm/scale": NamedSharding(mesh, PartitionSpec())})
    assert asked == [f"model.layers.{layer}.norm.weight" for layer in range(3)]


def test_pytorch_s_layers(tmp_path):
    tensors = {
        "body.conv.weight": drawn(5, 2, 3, 4),  # (out, in, height, width)
        "body.gamma": drawn(5, 1, 1),
        "body.norm.running_var": drawn(5),
        "body.norm.num_batches_tracked": np.array(7),
        "fc.weight": drawn(6, 5),
        "spare": drawn(1),
    }
    here = shapes(
        params__a__conv__kernel=(3, 4, 2, 5),
        params__a__gamma=(5,),
        batch_stats__a__norm__var=(5,),
        params__fc__kernel=(5, 6),
        params__fc__bias=(6,),
    )
    weights = opened(tmp_path, tensors, Torch(rename=(("^a/", "body/"),)), here)
    # Without the bias that is not there, and with what has no place.
    spared = {"spare": jax.ShapeDtypeStruct((1,), np.float32)}
    assert weights.spec == {k: v for k, v in here.items() if "bias" not in k} | spared
    assert weights.called["params/fc/bias"] == "fc.bias"
    mesh = jax.make_mesh((1,), ("data",), (AxisType.Auto,), devices=jax.devices()[:1])
    read = weights.read(dict.fromkeys(weights.spec, NamedSharding(mesh, PartitionSpec())))
    kernel = np.einsum("oihw->hwio", tensors["body.conv.weight"])
    np.testing.assert_array_equal(read["params/a/conv/kernel"], kernel)
    np.testing.assert_array_equal(read["params/a/gamma"], tensors["body.gamma"][:, 0, 0])
    np.testing.assert_array_equal(read["params/fc/kernel"], tensors["fc.weight"].T)
    np.testing.assert_array_equal(read["spare"], tensors["spare"])


def test_tensors_that_nothing_can_be_made_of_are_named(tmp_path):
    here = shapes(params__fc__kernel=(5, 6))
    line = r"no 'params/fc/kernel' can be made of fc.weight \(5,\)"
    with pytest.raises(CheckpointError, match=line) as raised:
        opened(tmp_path, {"fc.weight": drawn(5)}, Torch(), here)
    assert "\n" not in str(raised.value)
    stacked = shapes(params__h__kernel=(2, 5, 6))
    tensors = {"h.0.weight": drawn(6, 5), "h.1.weight": drawn(6, 4)}
    with pytest.raises(CheckpointError, match=r"not every layer is like h.\{\}.weight \(6, 5\)"):
        opened(tmp_path, tensors, Torch(rename=(("^h/", "h/{}/"),)), stacked)


def test_names_are_made_by_a_user_too(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Mine(Names):
        def sources(self, here):
            return {path: Source(("x", "y"), np.add) for path in here}

    x, y = drawn(4), drawn(4)
    weights = opened(tmp_path, {"x": x, "y": y}, Mine(), shapes(params__b=(4,)))
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
    read = weights.read({"params/b": NamedSharding(mesh, PartitionSpec("data"))})
    np.testing.assert_array_equal(read["params/b"], x + y)
