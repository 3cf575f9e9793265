"""The k smallest of many arrays, against NumPy's sort."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.optim.smallest import order, smallest

RANDOM = np.random.default_rng(0)


def places(*shapes):
    """What breaks ties: numbers in a row over all arrays, times 2^32 over the golden ratio."""
    size = sum(map(np.prod, shapes))
    return (np.arange(size, dtype=np.uint64) * 2654435769 % 2**32).astype(np.uint32)


def expected(arrays, count):
    whole = np.concatenate([x.ravel() for x in arrays])
    first = np.lexsort((places(*(x.shape for x in arrays)), whole))[:count]
    chosen = np.zeros(whole.size, bool)
    chosen[first] = True
    ends = np.cumsum([x.size for x in arrays])[:-1]
    return [c.reshape(x.shape) for c, x in zip(np.split(chosen, ends), arrays, strict=True)]


@jax.jit
def chosen(arrays, count):
    return smallest([order(x) for x in arrays], count)


@pytest.mark.parametrize("count", [0, 1, 17, 29, 30])
@pytest.mark.parametrize("kind", ["normal", "few values", "all equal"])
def test_exactly_so_many_and_those_of_a_sort(kind, count):
    arrays = [RANDOM.normal(size=shape).astype(np.float32) for shape in ((2, 3, 3), (12,))]
    if kind == "few values":
        arrays = [np.round(x) for x in arrays]  # -0.0 and 0.0 among them
    if kind == "all equal":
        arrays = [np.full_like(x, -0.5) for x in arrays]
    found = chosen(arrays, count)
    assert sum(int(x.sum()) for x in found) == count
    for got, want in zip(found, expected(arrays, count), strict=True):
        np.testing.assert_array_equal(got, want)


def test_infinities_and_subnormal_numbers_have_their_place():
    values = np.float32([np.inf, -np.inf, 1e-40, -1e-40, 0.0, -0.0, 3.4e38, -3.4e38])
    keys = np.asarray(order(jnp.asarray(values)))
    assert keys[4] == keys[5]
    by_key = values[np.argsort(keys, kind="stable")]
    assert list(by_key[[0, 1, -2, -1]]) == [
        -np.inf,
        np.float32(-3.4e38),
        np.float32(3.4e38),
        np.inf,
    ]


def test_the_layers_of_a_stack_are_chosen_one_by_one():
    x = np.round(RANDOM.normal(size=(2, 3, 4, 5)) * 2).astype(np.float32)
    found = jax.jit(functools.partial(smallest, stacks=2))([order(jnp.asarray(x))], 7)[0]
    for layer in np.ndindex(2, 3):
        np.testing.assert_array_equal(found[layer], expected([x[layer]], 7)[0])


def test_equal_numbers_go_from_everywhere():
    """A kernel whose weights are all the same loses no whole row or column."""
    (found,) = chosen([np.ones((32, 32), np.float32)], 512)
    assert found.sum(0).min() >= 8 and found.sum(0).max() <= 24
    assert found.sum(1).min() >= 8 and found.sum(1).max() <= 24


def test_eight_devices_choose_what_one_does():
    arrays = [np.round(RANDOM.normal(size=s) * 9).astype(np.float32) for s in ((16, 8), (24, 3))]
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    split = [
        jax.device_put(x, jax.NamedSharding(mesh, spec))
        for x, spec in zip(arrays, (jax.P("fsdp", "data"), jax.P(("data", "fsdp"))), strict=True)
    ]
    lowered = chosen.lower(split, 100).compile()
    assert "all-gather" not in lowered.as_text()
    assert "sort" not in lowered.as_text()
    for got, want in zip(lowered(split, 100), expected(arrays, 100), strict=True):
        np.testing.assert_array_equal(got, want)
