"""What stands beside the kernel of a dense layer, and how the layer takes it in.

It goes where the kernel goes, through loops over stacked layers too, as it lies in the same tree of
parameters; what is called is not changed but intercepted, so that no model knows of it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsm.cpu import by_rows
from lsm.models.quantised import dequantise
from lsm.params import flat, nested

NAME = "lora"
"""Beside "kernel", among the parameters of a layer."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapter:
    """What is added to a dense layer: scale x (x A) B.

    Attributes:
      a: (..., D, rank).
      b: (..., rank, F).
      keys: (...) of dropout on x; None without.
      scale: factor.
      rate: of dropout.
    """

    a: jax.Array
    b: jax.Array
    keys: jax.Array | None
    scale: float = dataclasses.field(metadata={"static": True})
    rate: float = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array, dtype: Any) -> jax.Array:
        """Maps what the layer reads (..., D) to (..., F)."""
        x, a_DxR, b_RxF = (y.astype(dtype) for y in (x, self.a, self.b))
        if self.keys is not None:
            kept = jax.random.bernoulli(self.keys, 1 - self.rate, x.shape)
            x = jnp.where(kept, x / (1 - self.rate), 0)
        return self.scale * by_rows(lambda x: (x @ a_DxR) @ b_RxF, x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Mark:
    """No array: it says whose kernel it stands beside."""

    path: str = dataclasses.field(metadata={"static": True})


def applied(next_fun: Callable, args: Any, options: Any, context: Any) -> Any:
    """For `nn.intercept_methods`: a dense layer with its adapter, and a kernel made float."""
    module = context.module
    if not _is_dense(context):
        return next_fun(*args, **options)
    if module.has_variable("params", "kernel_scale"):
        y = _of_whole_numbers(module, *args, **options)
    else:
        y = next_fun(*args, **options)
    if not module.has_variable("params", NAME):
        return y
    return y + module.get_variable("params", NAME)(*args, dtype=y.dtype, **options)


def dense_kernels(call: Callable, params: Any, *args: Any) -> set[str]:
    """Returns the paths of the kernels that dense layers read when `call(variables, *args)` runs.

    Nothing is computed.
    """
    found: set[str] = set()

    def noted(next_fun: Callable, args: Any, options: Any, context: Any) -> Any:
        if _is_dense(context) and context.module.has_variable("params", NAME):
            found.add(context.module.get_variable("params", NAME).path)
        return next_fun(*args, **options)

    leaves = flat(params)
    marks = {
        path.removesuffix("kernel") + NAME: _Mark(path)
        for path in leaves
        if path.split("/")[-1] == "kernel"
    }
    with nn.intercept_methods(noted):
        jax.eval_shape(lambda params: call({"params": params}, *args), nested(leaves | marks))
    return found


def _is_dense(context: Any) -> bool:
    return isinstance(context.module, nn.Dense) and context.method_name == "__call__"


def _of_whole_numbers(module: nn.Dense, x: jax.Array) -> jax.Array:
    """The layer, of a kernel that is dequantised here: inside of a loop, a layer's at a time."""

    # Again in the backward pass: else floats of all layers would be kept for it.
    @jax.checkpoint
    def dense(held: Any, x: jax.Array) -> jax.Array:
        whole, scale = held.pop("kernel"), held.pop("kernel_scale")
        layer = module.clone(parent=None, name=None)
        return layer.apply({"params": {"kernel": dequantise(whole, scale), **held}}, x)

    names = ("kernel", "kernel_scale", *(["bias"] if module.use_bias else []))
    return dense({name: module.get_variable("params", name) for name in names}, x)
