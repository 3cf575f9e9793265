"""Dense layers, convolutions and embeddings that are computed from whole numbers.

Beside a layer's "kernel" or "embedding", among its parameters, lies its scale, and where inputs are
rounded by a number that was measured, that too. They go where the kernel goes, through loops over
stacked layers too; what is called is not changed but intercepted, so that no model knows of it.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsm.cpu import by_rows
from lsm.cpu.whole_numbers import after, one_device, row_by_kernel, table_by_rows
from lsm.models.quantised import dequantise, dequantise_table, float_shape, halves
from lsm.models.rounding import fake, integer_conv, integer_dot, to_int8, with_gradient_of

Activations = Literal["dynamic", "calibrated"]
"""What is rounded to int8 on its way into a layer, by which largest number: that of each row or
picture, or one that was measured before (`INPUT`)."""

SCALE = "_scale"
"""What is added to the name of an array for that of its scales."""

INPUT = "input_largest"
"""Beside a kernel: float32 (1,), the largest input that is not cut off."""


def reads(context: Any) -> str | None:
    """Returns which array a call reads that can be held as whole numbers; for interceptors.

    None where the layer is of another kind, or reads it some other way.
    """
    module, method = context.module, context.method_name
    if isinstance(module, nn.Dense | nn.Conv):
        whole = getattr(module, "mask", None) is None  # of a convolution; it changes the kernel
        return "kernel" if method == "__call__" and whole else None
    table = isinstance(module, nn.Embed) and method in ("__call__", "attend", "table", "logits")
    return "embedding" if table else None


def kernel_axes(module: nn.Module) -> int:
    """Returns over how many dimensions a layer's kernel sums; of an embedding 0."""
    if isinstance(module, nn.Conv):
        size = module.kernel_size
        return 2 if isinstance(size, int) else len(size) + 1
    return 1 if isinstance(module, nn.Dense) else 0


def input_axes(module: nn.Module, x: jax.Array) -> tuple[int, ...]:
    """Returns the dimensions of an input whose numbers share a scale: a row's, or a picture's."""
    return tuple(range(1, x.ndim)) if isinstance(module, nn.Conv) else (-1,)


def computed(activations: Activations | None = None) -> Callable[..., Any]:
    """Returns an interceptor, for `nn.intercept_methods`, of layers that are held so."""

    def applied(next_fun: Callable, args: Any, options: Any, context: Any) -> Any:
        module, name = context.module, reads(context)
        if name is None or not module.has_variable("params", name + SCALE):
            return next_fun(*args, **options)
        args = (*args, *options.values())  # one at the most, by its place or its name
        if name == "embedding":
            return _embedding(module, context.method_name, args)
        return _layer(module, activations, *args)

    return applied


def _layer(module: nn.Dense | nn.Conv, activations: Activations | None, x: jax.Array) -> jax.Array:
    names = ("kernel", "kernel_scale", INPUT, *(["bias"] if module.use_bias else []))
    held = {n: module.get_variable("params", n) for n in names if module.has_variable("params", n)}

    # Again in the backward pass: else floats of all layers would be kept for it.
    @jax.checkpoint
    def layer(held: Any, x: jax.Array) -> jax.Array:
        whole, scale, largest = (held.pop(n, None) for n in ("kernel", "kernel_scale", INPUT))
        read = whole, scale, largest
        if isinstance(module, nn.Conv):
            hook = {"conv_general_dilated": _conv(module, activations, read)}
        else:
            hook = {"dot_general": _dot(activations, read)}
        # Linen looks at the kernel's shape; nothing reads it.
        params = {"kernel": jnp.zeros(float_shape(whole), module.param_dtype), **held}
        return module.clone(parent=None, name=None, **hook).apply({"params": params}, x)

    return layer(held, x)


def _dot(activations: Activations | None, read: tuple[Any, ...]) -> Callable[..., jax.Array]:
    """Returns what `nn.Dense` calls in place of `jax.lax.dot_general`."""

    def floats(cpu: bool, x: jax.Array, whole: Any, scale: Any, largest: Any) -> jax.Array:
        x = fake(x, (-1,), largest) if activations else x
        if cpu and x.size == x.shape[-1] and one_device():
            row_D = x.ravel().astype(jnp.float32)
            scales = jnp.split(scale, len(parts := halves(whole)), -1)
            y_F = jnp.concatenate(
                [row_by_kernel(row_D, *part) for part in zip(parts, scales, strict=True)]
            )
            return y_F.reshape(*x.shape[:-1], -1).astype(x.dtype)
        whole, scale = after(x, whole, scale) if cpu else (whole, scale)
        return x @ dequantise(whole, scale).astype(x.dtype)

    def integers(x: jax.Array, whole: Any, scale: Any, largest: Any) -> jax.Array:
        return integer_dot(*to_int8(x, (-1,), largest), _numbers(whole), scale).astype(x.dtype)

    on_cpu, elsewhere = (functools.partial(floats, cpu) for cpu in (True, False))
    elsewhere = with_gradient_of(elsewhere, integers) if activations else elsewhere

    def dot(x: jax.Array, *_: Any, **__: Any) -> jax.Array:
        def rows(x: jax.Array) -> jax.Array:
            return jax.lax.platform_dependent(x, *read, cpu=on_cpu, default=elsewhere)

        return by_rows(rows, x)

    return dot


def _conv(
    module: nn.Conv, activations: Activations | None, read: tuple[Any, ...]
) -> Callable[..., jax.Array]:
    """Returns what `nn.Conv` calls in place of `jax.lax.conv_general_dilated`."""
    direct = module.conv_general_dilated or jax.lax.conv_general_dilated

    def conv(x: jax.Array, _: Any, *args: Any, **options: Any) -> jax.Array:
        axes = input_axes(module, x)

        def floats(x: jax.Array, whole: Any, scale: Any, largest: Any) -> jax.Array:
            x = fake(x, axes, largest) if activations else x
            kernel = dequantise(*after(x, whole, scale)).astype(x.dtype)
            return direct(x, kernel, *args, **options)

        def integers(x: jax.Array, whole: Any, scale: Any, largest: Any) -> jax.Array:
            rounded = to_int8(x, axes, largest)
            y = integer_conv(*rounded, _numbers(whole), scale, *args, **options)
            return y.astype(x.dtype)

        if not activations or len(read[1]) > 1:  # of groups no sum in whole numbers can be made
            return floats(x, *read)
        # XLA has none for GPUs, but of cuDNN's own layout.
        on_tpu = with_gradient_of(floats, integers)
        return jax.lax.platform_dependent(x, *read, tpu=on_tpu, default=floats)

    return conv


def _embedding(module: nn.Embed, method: str, args: tuple[Any, ...]) -> jax.Array:
    """A call of an embedding, whose table is whole numbers with a scale a row."""

    def of_floats(whole: jax.Array, scale: jax.Array, *args: jax.Array) -> jax.Array:
        params = {"embedding": dequantise_table(whole, scale)}
        return module.clone(parent=None, name=None).apply({"params": params}, *args, method=method)

    def products(whole: jax.Array, scale: jax.Array, x: jax.Array) -> jax.Array:
        def rows(x_NxD: jax.Array) -> jax.Array:
            return table_by_rows(whole, x_NxD.astype(jnp.float32)) * scale[:, 0]

        return by_rows(rows, x).astype(jax.eval_shape(of_floats, whole, scale, x).dtype)

    read = [module.get_variable("params", name) for name in ("embedding", "embedding_scale")]
    if method in ("attend", "logits") and one_device():
        return jax.lax.platform_dependent(*read, *args, cpu=products, default=of_floats)
    return jax.checkpoint(of_floats)(*read, *args)


def _numbers(whole: jax.Array) -> jax.Array:
    return jnp.concatenate(halves(whole), -1)
