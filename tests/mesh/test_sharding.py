"""Meshes, rules and the table that is checked before anything compiles."""

import importlib.util

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lsm.errors import ConfigError, MeshError
from lsm.mesh import (
    AXES,
    Fsdp,
    Layout,
    Mesh,
    Rule,
    batch_sharding,
    batch_ways,
    check_axes,
    jit,
    local_rows,
    make_mesh,
    place,
    replicated,
    shard,
    table,
)
from lsm.models import CNN, GPT, MLP
from lsm.models.experts import Experts
from lsm.models.families import gpt2


def shapes(**arrays):
    return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in arrays.items()}


def specs(tree, mesh, *rules):
    return jax.tree.map(lambda s: s.spec, shard(tree, make_mesh(mesh), rules))


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (Mesh(), {"data": 8}),
        (Mesh(fsdp=4), {"data": 2, "fsdp": 4}),
        (Mesh(data=1, tensor=-1), {"tensor": 8}),
        (
            Mesh(data=1, pipeline=2, expert=2, sequence=2),
            {"pipeline": 2, "expert": 2, "sequence": 2},
        ),
    ],
)
def test_a_mesh_has_all_axes_and_all_devices(config, sizes):
    mesh = make_mesh(config)
    assert mesh.axis_names == AXES
    assert dict(mesh.shape) == dict.fromkeys(AXES, 1) | sizes
    assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": 3}, r"mesh.data=3 does not fit 8 cpu device\(s\): the product must be 8"),
        ({"data": 16}, "allowed sizes of an axis: 1, 2, 4, 8"),
        ({"fsdp": 16}, r"mesh.data=-1 x mesh.fsdp=16 does not fit 8"),
        ({"data": 2, "tensor": 2, "fsdp": 4}, "mesh.data=2 x mesh.fsdp=4 x mesh.tensor=2 does not"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_line(fields, message):
    with pytest.raises(MeshError, match=message) as caught:
        make_mesh(Mesh(**fields))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fsdp": 0}, "mesh.fsdp: 0 given; it must be 1 or more, or -1"),
        ({"tensor": -2}, "mesh.tensor: -2 given"),
        ({"tensor": -1}, "mesh: only one axis can be -1; data, tensor are"),
    ],
)
def test_sizes_are_checked(fields, message):
    with pytest.raises(ConfigError, match=message):
        Mesh(**fields)


class Device:
    """A CPU device that says it is in a slice of a TPU."""

    platform, device_kind, process_index = "cpu", "cpu", 0

    def __init__(self, number):
        self.id, self.slice_index = number, number // 4


def test_slices_that_do_not_fit_are_one_line():
    devices = [Device(i) for i in range(8)]
    with pytest.raises(
        MeshError, match=r"mesh.data: 1 does not divide over the 2 slices.*mesh.across_slices"
    ):
        make_mesh(Mesh(data=1, fsdp=8), devices)
    with pytest.raises(MeshError, match="mesh.pipeline: 1 does not divide over the 2 slices"):
        make_mesh(Mesh(across_slices="pipeline"), devices)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu describes the slices of TPUs"
)
@pytest.mark.parametrize(
    ("config", "axis"),
    [
        (Mesh(data=2, fsdp=4), "data"),
        (Mesh(data=4, tensor=2), "data"),
        (Mesh(data=1, fsdp=8, across_slices="fsdp"), "fsdp"),
        (Mesh(data=1, pipeline=2, tensor=4, across_slices="pipeline"), "pipeline"),
    ],
)
def test_only_one_axis_leaves_a_slice(config, axis):
    from launch.plan import topology

    devices = topology.load("v5e:2x2", slices=2).devices
    mesh = make_mesh(config, devices)
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    by_axis = np.moveaxis(slices, AXES.index(axis), 0).reshape(mesh.shape[axis], -1)
    half = mesh.shape[axis] // 2
    assert {*by_axis[:half].flat} == {0}
    assert {*by_axis[half:].flat} == {1}


def test_the_first_rule_that_matches_wins_and_scalars_are_replicated():
    tree = {"a": shapes(kernel=(8, 4), bias=(4,)), "b": shapes(kernel=(8, 4), scale=())}
    found = specs(
        tree,
        Mesh(data=1, fsdp=4, tensor=2),
        Rule("^a/kernel$", (("fsdp", "tensor"), None)),
        Rule("kernel$", ("fsdp", "tensor")),
        Rule(".*", Fsdp(min_size=1)),
    )
    assert found == {
        "a": {"kernel": P(("fsdp", "tensor"), None), "bias": P("fsdp")},
        "b": {"kernel": P("fsdp", "tensor"), "scale": P()},
    }


def test_otherwise_is_taken_where_a_dimension_does_not_divide():
    tree = shapes(even=(8, 4), odd=(7, 4))
    mesh = Mesh(data=1, fsdp=4, tensor=2)
    rule = Rule(".*", ("tensor", "fsdp"), otherwise=(None, "fsdp"))
    assert specs(tree, mesh, rule) == {"even": P("tensor", "fsdp"), "odd": P(None, "fsdp")}
    rule = Rule(".*", ("tensor", "fsdp"), otherwise=Fsdp(min_size=1))
    assert specs(tree, mesh, rule)["odd"] == P(None, "fsdp")
    with pytest.raises(MeshError, match="fsdp=4 does not divide dimension 1 of 'odd'"):
        specs(shapes(odd=(7, 5)), mesh, Rule(".*", ("tensor", None), otherwise=(None, "fsdp")))
    state = {"opt_state": shapes(odd=(7, 1028))}  # of a parameter's rank, and not of its shape
    rule = Rule(".*", ("tensor", None), otherwise=("fsdp", None))
    assert specs(state, mesh, rule) == {"opt_state": {"odd": P(None, "fsdp")}}


def test_an_axis_of_fsdp_or_otherwise_is_used():
    mesh = make_mesh(Mesh(data=4, tensor=2))
    for rule in (Rule(".*", Fsdp(axis="tensor")), Rule("a", (None,), otherwise=("tensor",))):
        check_axes(mesh, [rule], Layout(), "Net")
    with pytest.raises(MeshError, match="mesh.tensor: 2 given, but Net makes nothing of this axis"):
        check_axes(mesh, [Rule(".*")], Layout(), "Net")


def test_optimiser_state_follows_its_parameter_or_is_laid_out_by_fsdp():
    moments = {"mu": shapes(kernel=(64, 128)), "v_row": shapes(kernel=(8192,))}
    found = specs(
        {"params": shapes(kernel=(64, 128)), "opt_state": moments},
        Mesh(data=1, fsdp=4, tensor=2),
        Rule("kernel$", ("tensor", "fsdp")),
    )
    assert found["opt_state"]["mu"] == found["params"] == {"kernel": P("tensor", "fsdp")}
    assert found["opt_state"]["v_row"] == {"kernel": P("fsdp")}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule("bias$", (None,)), r"no rule matches 'dense/kernel'; the patterns are 'bias\$'"),
        (Rule("kernel$", ("fdsp", None)), "axis 'fdsp' for 'dense/kernel'.*Did you mean 'fsdp'"),
        (Rule("kernel$", ("fsdp",)), r"has 1 entries, but 'dense/kernel' has shape \(6, 8\)"),
        (
            Rule("kernel$", ("fsdp", None)),
            r"fsdp=4 does not divide dimension 0 of 'dense/kernel' \(6, 8\), which is 6; "
            "2 ways would, or a size of 8, or a rule with None there",
        ),
        (Rule("kernel$", (None, ("fsdp", "data", "tensor"))), "fsdp=4 x data=2 x tensor=2"),
    ],
)
def test_rules_that_do_not_fit_are_one_line(rule, message):
    mesh = make_mesh(Mesh(data=2, fsdp=4))
    if "tensor=2" in message:
        mesh = jax.sharding.AbstractMesh((2, 4, 2), ("data", "fsdp", "tensor"))
    with pytest.raises(MeshError, match=message) as caught:
        shard({"dense": shapes(kernel=(6, 8))}, mesh, [rule])
    assert "\n" not in str(caught.value)


def test_an_axis_that_nobody_uses_is_one_line():
    mesh, rules = make_mesh(Mesh(data=4, tensor=2)), [Rule(".*", Fsdp())]
    with pytest.raises(
        MeshError, match="mesh.tensor: 2 given, but MLP makes nothing of this axis; it can use data"
    ):
        check_axes(mesh, rules, Layout(), "MLP")
    check_axes(mesh, rules, Layout(axes=("tensor",)), "MLP")
    check_axes(mesh, [Rule("kernel", (None, "tensor")), *rules], Layout(), "MLP")


SIZES = {"vocabulary": 64, "layers": 4, "heads": 4, "width": 32, "context": 16}


@pytest.mark.parametrize(
    ("model", "inputs", "mesh"),
    [
        (gpt2(**SIZES), (1, 16), Mesh(data=1, fsdp=2, tensor=2, pipeline=2)),
        (gpt2(**SIZES, experts=Experts(4)), (1, 16), Mesh(data=1, expert=2, fsdp=2, tensor=2)),
        (MLP(widths=(32, 64)), (1, 8, 8, 1), Mesh(data=1, fsdp=4, tensor=2)),
        (CNN(widths=(8, 16), hidden=(32,)), (1, 8, 8, 1), Mesh(data=1, fsdp=4, tensor=2)),
    ],
    ids=["gpt", "experts", "mlp", "cnn"],
)
def test_rules_of_every_model_split_its_large_parameters_by_every_axis(model, inputs, mesh):
    kind = np.int32 if isinstance(model, GPT) else np.float32
    params = jax.eval_shape(model.init, jax.random.key(0), np.zeros(inputs, kind))["params"]
    mesh = make_mesh(mesh)
    shardings = shard(params, mesh, model.layout.rules)
    largest = max(table(params, shardings), key=lambda row: np.prod(row[1]))
    wanted = [axis for axis, size in mesh.shape.items() if size > 1 and axis in largest[3]]
    assert "tensor" in wanted
    ways = np.prod([mesh.shape[axis] for axis in wanted])
    assert largest[4] == 4 * np.prod(largest[1]) / ways


def test_the_table_counts_bytes_on_each_device():
    mesh = make_mesh(Mesh(data=2, fsdp=4))
    tree = {"kernel": jax.ShapeDtypeStruct((64, 256), jax.numpy.bfloat16), **shapes(step=())}
    assert table(tree, shard(tree, mesh, [Rule("kernel", (None, "fsdp"))])) == [
        ("kernel", (64, 256), "bfloat16", "None, fsdp", 64 * 256 * 2 // 4),
        ("step", (), "float32", "replicated", 4),
    ]


def test_batches_are_split_over_data_fsdp_and_expert():
    mesh = make_mesh(Mesh(data=2, expert=2, tensor=2))
    sharding = batch_sharding(mesh)
    assert batch_ways(mesh) == 4
    placed = place({"x": np.arange(12).reshape(12, 1)}, sharding)["x"]
    assert {shard.data.shape for shard in placed.addressable_shards} == {(3, 1)}
    np.testing.assert_array_equal(local_rows(sharding, 12), np.arange(12))  # one process has all


def test_compiled_results_are_laid_out_as_asked_and_donated_buffers_are_gone():
    mesh = make_mesh(Mesh())
    rows = batch_sharding(mesh)
    double = jit(lambda x: 2 * x, in_shardings=rows, out_shardings=rows, donate=[0])
    x = jax.device_put(np.arange(8.0, dtype=np.float32), rows)
    y = double(x)
    assert y.sharding.is_equivalent_to(rows, 1)
    assert x.is_deleted()
    whole = jit(lambda x: x + 1, in_shardings=rows, out_shardings=replicated(mesh))(y)
    np.testing.assert_array_equal(whole, 2 * np.arange(8) + 1)
