"""Convolutions of large batches, whose kernel's gradient is made of products."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

_LARGE = 2**23
"""Numbers of input and output together from which on it pays: 32 MiB, as large as a cache."""
_CHUNK = 2**19
"""Of them, how many at a time."""
_PLACES = 9
"""Of a kernel, at most: each takes a product."""


def conv(
    x_BxHxWxC: jax.Array,
    kernel_KxLxCxF: jax.Array,
    strides: Sequence[int],
    padding: Any,
    **options: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` for `nn.Conv`: the same values, another way to the gradient.

    On a CPU the gradient of a kernel is one product for each of its places, over a few pictures at
    a time. XLA makes a convolution of it whose "kernel" is as large as a picture: once input and
    output are beyond the caches, that takes two to four times as long. So it is done for large
    plain convolutions of float32, by kernels of 2 to 9 places, on one device.
    """
    direct = functools.partial(
        jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **options
    )
    y = jax.eval_shape(direct, x_BxHxWxC, kernel_KxLxCxF)
    plain = (
        1 < math.prod(kernel_KxLxCxF.shape[:2]) <= _PLACES
        and {*(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ())} <= {1}
        and options.get("feature_group_count", 1) == 1
        and x_BxHxWxC.dtype == kernel_KxLxCxF.dtype == jnp.float32
    )
    # A mesh is left to XLA: chunks of pictures would cross its devices.
    one_device = jax.sharding.get_abstract_mesh().size <= 1
    size = x_BxHxWxC.size + y.size
    # A symbolic size is that of an exported prediction, which has no gradient.
    if not plain or not one_device or not isinstance(size, int) or size < _LARGE:
        return direct(x_BxHxWxC, kernel_KxLxCxF)
    return _with_products(direct, tuple(strides), padding)(x_BxHxWxC, kernel_KxLxCxF)


def _with_products(direct: Callable, strides: tuple[int, ...], padding: Any) -> Callable:
    """Returns `direct`, with a gradient of its own."""
    wrapped = jax.custom_vjp(direct)

    def backward(saved, g_BxHxWxF):
        x_BxHxWxC, kernel_KxLxCxF = saved
        places, sides = kernel_KxLxCxF.shape[:2], x_BxHxWxC.shape[1:3]

        def by_xla(x_BxHxWxC: jax.Array, g_BxHxWxF: jax.Array) -> jax.Array:
            return jax.vjp(lambda k: direct(x_BxHxWxC, k), kernel_KxLxCxF)[1](g_BxHxWxF)[0]

        def by_products(x_BxHxWxC: jax.Array, g_BxHxWxF: jax.Array) -> jax.Array:
            pads = padding
            if isinstance(padding, str):
                pads = jax.lax.padtype_to_pads(sides, places, strides, padding)
            gradient = functools.partial(_gradient, places, strides, pads)
            return _in_chunks(gradient, x_BxHxWxC, g_BxHxWxF)

        dx_BxHxWxC = jax.vjp(lambda x: direct(x, kernel_KxLxCxF), x_BxHxWxC)[1](g_BxHxWxF)[0]
        choose = functools.partial(jax.lax.platform_dependent, cpu=by_products, default=by_xla)
        return dx_BxHxWxC, choose(x_BxHxWxC, g_BxHxWxF)

    wrapped.defvjp(lambda x, kernel: (direct(x, kernel), (x, kernel)), backward)
    return wrapped


def _gradient(places, strides, pads, x_BxHxWxC: jax.Array, g_BxHxWxF: jax.Array) -> jax.Array:
    """Returns the kernel's gradient (K, L, C, F), a product for each of its places."""
    x_BxHxWxC = jnp.pad(x_BxHxWxC, ((0, 0), *pads, (0, 0)))
    g_NxF = g_BxHxWxF.reshape(-1, g_BxHxWxF.shape[-1])
    sides = g_BxHxWxF.shape[1:3]
    ends = [stride * (side - 1) + 1 for stride, side in zip(strides, sides, strict=True)]
    products = []
    for i, j in itertools.product(*map(range, places)):
        x = x_BxHxWxC[:, i : i + ends[0] : strides[0], j : j + ends[1] : strides[1]]
        x_NxC = x.reshape(-1, x.shape[-1])
        products.append(x_NxC.T @ g_NxF)
    return jnp.stack(products).reshape(*places, *products[0].shape)


def _in_chunks(function: Callable, *arrays: jax.Array) -> jax.Array:
    """Returns the sum of `function` over chunks of the arrays' first dimension."""
    total = len(arrays[0])
    size = max(1, min(total, _CHUNK * total // sum(x.size for x in arrays)))

    def of(start: int | jax.Array, size: int) -> jax.Array:
        return function(*(jax.lax.dynamic_slice_in_dim(x, start, size) for x in arrays))

    first, rest = of(0, size), total % size
    if rest:
        first += of(total - rest, rest)
    return jax.lax.fori_loop(1, total // size, lambda i, sum_: sum_ + of(i * size, size), first)
