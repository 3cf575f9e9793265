"""Names of axes, `Fsdp`, and constraints inside of models."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from lsm.errors import MeshError
from lsm.mesh import (
    AXES,
    BATCH_AXES,
    Fsdp,
    Mesh,
    batch_sharding,
    constrain,
    jit,
    make_mesh,
    unplaced,
    ways,
)

MESH = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.fixture
def mesh():
    return make_mesh(Mesh(**MESH))


def traced(function, mesh, *args):
    """Returns what `function` returns while it is traced for `mesh`."""
    seen = []

    def watch(*args):
        seen.append(function(*args))
        return args

    rows = batch_sharding(mesh)
    shardings = tuple(rows for _ in args)
    jit(watch, in_shardings=shardings, out_shardings=shardings, mesh=mesh).lower(*args)
    return seen[0]


def test_the_axes_of_a_batch_are_axes():
    assert set(BATCH_AXES) < set(AXES)
    assert AXES[-1] == "tensor"  # talks most: the nearest devices


def test_ways_multiply_on_the_mesh_and_are_one_without(mesh):
    assert ways("data", "tensor") == 1
    x = jnp.zeros((8, 2))
    assert traced(lambda _: (ways("data"), ways("data", "fsdp"), ways("pipeline")), mesh, x) == (
        2,
        4,
        1,
    )


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((512, 64), P("fsdp", None)),
        ((64, 512), P(None, "fsdp")),  # the largest dimension
        ((64, 64), P("fsdp", None)),  # the first of equals
        ((511, 64), P(None, "fsdp")),  # the largest that divides
        ((65, 65), P()),  # none does
        ((64, 63), P()),  # below 4096 elements
    ],
)
def test_fsdp_shards_the_largest_dimension_that_divides(mesh, shape, spec):
    assert Fsdp()(shape, mesh) == spec


def test_fsdp_of_another_axis_and_size(mesh):
    assert Fsdp(axis="tensor", min_size=4)((2, 2), mesh) == P("tensor", None)
    assert Fsdp(axis="pipeline")((512, 512), mesh) == P()  # of one way


def test_constraints_lay_out_and_do_nothing_without_a_mesh(mesh):
    def spread(x_BxD):
        return constrain(x_BxD, BATCH_AXES, "tensor")

    x_BxD = jnp.arange(16.0).reshape(8, 2)
    assert spread(x_BxD) is x_BxD
    rows = batch_sharding(mesh)
    lowered = jit(spread, in_shardings=rows, out_shardings=rows, mesh=mesh).lower(x_BxD)
    assert lowered.as_text().count("sharding_constraint") == 1
    assert (lowered.compile()(x_BxD) == x_BxD).all()


def test_unplaced_hides_the_mesh(mesh):
    def spread(x_BxD):
        with unplaced():
            return ways("data"), constrain(x_BxD, "pipeline", "expert") is x_BxD

    assert traced(spread, mesh, jnp.zeros((8, 2))) == (1, True)
    assert jax.sharding.get_abstract_mesh().empty


def test_an_activation_that_does_not_divide_is_one_line(mesh):
    message = (
        r"mesh: data=2 x fsdp=2 x expert=1 does not divide dimension 1 of an activation "
        r"\(8, 6\), which is 6"
    )
    with pytest.raises(MeshError, match=message):
        traced(lambda x: constrain(x, None, BATCH_AXES), mesh, jnp.zeros((8, 6)))
