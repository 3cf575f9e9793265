"""Kernels as whole numbers: the form, against arithmetic in NumPy and against qwix."""

import jax.numpy as jnp
import numpy as np
import pytest

from lsm.cpu.whole_numbers import row_by_kernel, table_by_rows
from lsm.models.quantised import (
    dequantise,
    dequantise_table,
    groups,
    halves,
    quantise,
    quantise_table,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("bits", "most", "rows"), [("int8", 127, 128), ("int4", 7, 64)])
def test_a_weight_is_off_by_half_a_step_at_most(bits, most, rows):
    kernel = np.random.default_rng(0).normal(size=(3, 128, 6)).astype(np.float32)
    kernel[1] *= 100
    kernel[2, :, 0] = 0
    whole, scale = quantise(jnp.asarray(kernel), bits)
    grouped = np.abs(kernel).reshape(3, 128 // rows, rows, 6).max(2)
    assert whole.nbytes == kernel.size // (1 if bits == "int8" else 2)
    np.testing.assert_allclose(scale, grouped / most, rtol=1e-6)
    step = np.repeat(np.asarray(scale), rows, axis=1)
    error = np.abs(np.asarray(dequantise(whole, scale)) - kernel)
    assert (error <= step * 0.5001).all()
    assert not error[2, :, 0].any()  # zeros stay


def test_the_numbers_of_a_byte_are_of_both_halves_of_the_columns():
    whole, scale = quantise(jnp.asarray([[-7.0, 1, 3, 7]] * 16), "int4")
    assert whole.dtype == "uint8" and whole.shape == (16, 2)
    # 0xRL: of -7 and 3, both the largest of their columns, and of 1 and 7 likewise.
    np.testing.assert_array_equal(whole[0], [0x79, 0x77])
    left, right = halves(whole)
    np.testing.assert_array_equal(jnp.concatenate([left, right], 1)[0], [-7, 7, 7, 7])
    np.testing.assert_allclose(dequantise(whole, scale)[0], [-7, 1, 3, 7], rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "columns", "count"),
    [
        (128, 4, 2),
        (288, 4, 6),
        (96, 4, 2),
        (16, 4, 1),
        (74, 4, 2),
        (134, 4, None),
        (9, 4, None),
        (128, 5, None),
    ],
)
def test_int4_needs_rows_that_divide_and_pairs_of_columns(rows, columns, count):
    assert groups(rows, columns, "int4") == count
    whole, scale = quantise(jnp.ones((rows, columns)), "int4")
    assert (whole.dtype == "int8") == (count is None) and len(scale) == (count or 1)


def test_a_convolution_s_kernel_has_a_scale_for_each_filter():
    kernel = RNG.normal(size=(3, 3, 4, 5)).astype(np.float32)
    whole, scale = quantise(jnp.asarray(kernel), "int8", axes=3)
    np.testing.assert_allclose(scale[0], np.abs(kernel).max((0, 1, 2)) / 127, rtol=1e-6)
    assert whole.shape == kernel.shape
    assert np.abs(dequantise(whole, scale) - kernel).max() <= scale.max() / 2 * 1.0001


def test_a_table_has_a_scale_for_each_row():
    table = RNG.normal(size=(7, 16)).astype(np.float32)
    whole, scale = quantise_table(jnp.asarray(table))
    np.testing.assert_allclose(scale[:, 0], np.abs(table).max(1) / 127, rtol=1e-6)
    assert np.abs(dequantise_table(whole, scale) - table).max() <= scale.max() / 2 * 1.0001


def test_the_form_is_qwix_s():
    qwix = pytest.importorskip("qwix", reason="qwix is the reference")
    kernel = RNG.normal(size=(128, 6)).astype(np.float32)
    for bits in ("int8", "int4"):
        whole, scale = quantise(jnp.asarray(kernel), bits)
        theirs = qwix.QArray(jnp.concatenate(halves(whole), 1), scale)
        np.testing.assert_allclose(dequantise(whole, scale), qwix.dequantize(theirs), rtol=1e-6)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("rows", [48, 9])
def test_a_row_times_a_kernel_is_one_pass_over_its_numbers(rows, count):
    x, whole = RNG.normal(size=rows), RNG.integers(-127, 128, (rows, 5))
    scale = RNG.random((count, 5))
    expected = x @ (whole * np.repeat(scale, rows // count, axis=0))
    found = row_by_kernel(
        *(jnp.asarray(a, d) for a, d in ((x, "f4"), (whole, "i1"), (scale, "f4")))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("count", "width"), [(1, 48), (1, 9), (3, 48)])
def test_rows_times_a_table_are_its_products(count, width):
    x, whole = RNG.normal(size=(count, width)), RNG.integers(-127, 128, (1500, width))
    found = table_by_rows(jnp.asarray(whole, "i1"), jnp.asarray(x, "f4"))
    np.testing.assert_allclose(found, x @ whole.T, rtol=1e-4, atol=1e-2)
