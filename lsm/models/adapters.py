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
from lsm.models.marks import layers
from lsm.models.whole_layers import computed

_held = computed()

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


def applied(next_fun: Callable, args: Any, options: Any, context: Any) -> Any:
    """For `nn.intercept_methods`: a dense layer with its adapter, and with its kernel as held."""
    module = context.module
    y = _held(next_fun, args, options, context)
    if not (_is_dense(context) and module.has_variable("params", NAME)):
        return y
    return y + module.get_variable("params", NAME)(*args, dtype=y.dtype, **options)


def dense_kernels(call: Callable, params: Any, *args: Any) -> set[str]:
    """Returns the paths of the kernels that dense layers read when `call(variables, *args)` runs.

    Nothing is computed.
    """

    def run(params: Any, *args: Any) -> Any:
        return call({"params": params}, *args)

    return {path for path, axes in layers(run, params, *args).items() if axes == 1}


def _is_dense(context: Any) -> bool:
    return isinstance(context.module, nn.Dense) and context.method_name == "__call__"
