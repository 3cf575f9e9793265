"""Marks beside the arrays of layers, among a model's parameters: which layer reads which array.

A mark goes where the array goes, through loops over stacked layers too, and holds none itself.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from lsm.models.whole_layers import kernel_axes, reads

NAME = "mark"
_ARRAYS = ("kernel", "embedding")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mark:
    """Says whose array it stands beside.

    Attributes:
      path: of the array, without the number of a block.
    """

    path: str = dataclasses.field(metadata={"static": True})


def marked(params: Any, chosen: Callable[[str], bool], path: str = "") -> Any:
    """Returns parameters with a mark beside each kernel and embedding whose path is `chosen`.

    Args:
      params: nested dicts; blocks may be a tuple of each block's.
      chosen: of a path.
      path: of `params`, with a slash at its end.
    """
    if isinstance(params, tuple):
        return tuple(marked(block, chosen, path) for block in params)
    if not isinstance(params, Mapping):
        return params
    tree = {name: marked(x, chosen, f"{path}{name}/") for name, x in params.items()}
    found = [path + name for name in _ARRAYS if name in tree and chosen(path + name)]
    return tree | {NAME: Mark(found[0])} if found else tree


def layers(call: Callable, params: Any, *args: Any) -> dict[str, int]:
    """Returns the arrays that layers read when `call(variables, *args)` runs, by path.

    Of each the dimensions that the layer sums over (`kernel_axes`): 0 is an embedding's table, 1 a
    dense layer's kernel, more a convolution's. Nothing is computed.
    """
    found: dict[str, int] = {}

    def noted(next_fun: Callable, args: Any, options: Any, context: Any) -> Any:
        if reads(context) and context.module.has_variable("params", NAME):
            mark = context.module.get_variable("params", NAME)
            found[mark.path] = kernel_axes(context.module)
        return next_fun(*args, **options)

    with nn.intercept_methods(noted):
        jax.eval_shape(call, marked(params, lambda path: True), *args)
    return found
