"""The loop over layers, and the same in stages on simulated devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.errors import MeshError
from lsm.mesh import Mesh, batch_sharding, jit, make_mesh, replicated
from lsm.models.pipeline import run_layers

L, D = 8, 4


def layer(rows, kernel_DxD, tick):
    x_BxD, depth_B = rows
    return (jnp.tanh(x_BxD @ kernel_DxD), depth_B + 1), None


def inputs(batch):
    random = np.random.default_rng(0)
    kernels_LxDxD = random.normal(size=(L, D, D)).astype(np.float32)
    return kernels_LxDxD, random.normal(size=(batch, D)).astype(np.float32)


def laid_out(function, mesh, *args):
    whole = replicated(mesh)
    shardings = jax.tree.map(lambda _: whole, args)
    return jit(function, in_shardings=shardings, out_shardings=whole, mesh=mesh)


def mesh_of(**axes):
    config = Mesh(**{"data": 1, **axes})
    count = config.data * config.pipeline * config.tensor
    return make_mesh(config, jax.devices()[:count])


@pytest.mark.parametrize("unroll", [1, 3, L])
def test_the_loop_is_numpys(unroll):
    kernels_LxDxD, x_BxD = inputs(3)
    (found, depth_B), nothing = run_layers(layer, kernels_LxDxD, (x_BxD, jnp.zeros(3)), unroll)
    for kernel_DxD in kernels_LxDxD:
        x_BxD = np.tanh(x_BxD @ kernel_DxD)
    np.testing.assert_allclose(found, x_BxD, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(depth_B, [L] * 3)
    assert nothing is None


@pytest.mark.parametrize(
    ("axes", "batch"),
    [({"pipeline": 2}, 6), ({"pipeline": 4, "data": 2}, 16), ({"pipeline": 8}, 1)],
    ids=str,
)
def test_stages_equal_the_loop_in_values_and_gradients(axes, batch):
    args = inputs(batch)

    def score(kernels_LxDxD, x_BxD):
        (y_BxD, depth_B), _ = run_layers(layer, kernels_LxDxD, (x_BxD, jnp.zeros(batch)))
        return (y_BxD**2).sum(), (y_BxD, depth_B)

    both = jax.value_and_grad(score, (0, 1), has_aux=True)
    found = laid_out(both, mesh_of(**axes), *args)(*args)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
        found,
        jax.jit(both)(*args),
    )


@pytest.mark.parametrize(
    ("axes", "batch"),
    [({}, 3), ({"pipeline": 2}, 6), ({"pipeline": 4, "data": 2}, 16), ({"pipeline": 8}, 1)],
    ids=str,
)
def test_results_are_in_the_order_of_layers_and_rows(axes, batch):
    """With what stands beside the rows and must stay at their side."""

    def layer(x_BxD, kernel_DxD, tick, beside_B):
        x_BxD = jnp.tanh(x_BxD @ kernel_DxD + beside_B[:, None])
        return x_BxD, {"x": x_BxD, "sum": x_BxD.sum(-1)}

    kernels_LxDxD, x_BxD = inputs(batch)
    beside_B = np.linspace(0, 1, batch, dtype=np.float32)

    def run(*args):
        return run_layers(layer, *args[:2], beside=args[2:])

    args = (kernels_LxDxD, x_BxD, beside_B)
    y_BxD, results = laid_out(run, mesh_of(**axes), *args)(*args)
    for number, kernel_DxD in enumerate(kernels_LxDxD):
        x_BxD = np.tanh(x_BxD @ kernel_DxD + beside_B[:, None])
        np.testing.assert_allclose(results["x"][number], x_BxD, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(results["sum"], results["x"].sum(-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(y_BxD, x_BxD, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("stages", "batch", "micro_batches"), [(2, 8, 8), (2, 12, 6), (2, 7, 7), (4, 34, 2), (2, 11, 1)]
)
def test_micro_batch_i_is_in_stage_s_at_tick_i_plus_s(stages, batch, micro_batches):
    """4 micro-batches a stage at most, of which there must be a whole number of rows."""

    def tell(ticks_B, number, tick):
        return ticks_B + (tick + 1) * number, None

    numbers_L = np.float32(10) ** -np.arange(L)  # a digit of the result for each layer
    numbers_L[1::2] = 0
    mesh = mesh_of(pipeline=stages)
    zeros_B = np.zeros(batch, np.float32)
    run = laid_out(lambda *args: run_layers(tell, *args)[0], mesh, numbers_L, zeros_B)
    ticks_B = run(numbers_L, zeros_B)
    row_B, stage_L = np.arange(batch), np.arange(L) * stages // L
    expected = ((row_B % micro_batches)[:, None] + stage_L + 1) @ numbers_L
    np.testing.assert_allclose(ticks_B, expected, rtol=1e-5)


def test_every_device_holds_the_layers_of_its_stage_and_passes_rows_on():
    mesh = mesh_of(pipeline=4, data=2)
    args = inputs(16)
    whole, staged = replicated(mesh), jax.NamedSharding(mesh, jax.P("pipeline"))

    def run(kernels_LxDxD, x_BxD):
        return run_layers(layer, kernels_LxDxD, (x_BxD, jnp.zeros(16)))[0][0]

    function = jit(run, in_shardings=(staged, batch_sharding(mesh)), out_shardings=whole, mesh=mesh)
    hlo = function.lower(*args).compile().as_text()
    assert "collective-permute" in hlo
    assert f"f32[{L},{D},{D}]" not in hlo  # all layers are nowhere


def test_stages_that_do_not_divide_the_layers_are_one_line():
    kernels_LxDxD, x_BxD = inputs(6)
    mesh = mesh_of(pipeline=3)
    run = laid_out(lambda k, x: run_layers(layer, k, (x, x[:, 0])), mesh, kernels_LxDxD, x_BxD)
    with pytest.raises(MeshError, match=r"^mesh.pipeline=3 does not divide the 8 layers\."):
        run(kernels_LxDxD, x_BxD)
