"""Parameters in stacks: every layer, and every expert of it, is a tensor of its own."""

from typing import Any

import jax
import optax

from lsm.params import flat, matches, path_name

Stacks = tuple[tuple[str, int], ...]
"""(pattern, n): the first n axes of the parameters whose path matches are stacks; the first wins.
See `lsm.mesh.Layout`."""


def depth(stacks: Stacks, name: str) -> int:
    """Returns how many leading axes of the parameter `name` are stacks."""
    return next((n for pattern, n in stacks if matches(pattern, name)), 0)


def unstacked(
    inner: optax.GradientTransformation, stacks: Stacks
) -> optax.GradientTransformationExtraArgs:
    """Returns `inner` as it would be if nothing was stacked, by `jax.vmap` over the stacks.

    Norms, factors and matrices are then those of one layer. The state of a parameter has the axes
    of its stacks in front; counters stay one. `inner` must not look at several parameters at once.
    """
    inner = optax.with_extra_args_support(inner)
    if not stacks:
        return inner

    def init(params):
        levels, one = _levels(params, stacks)
        names = list(flat(params))
        state = jax.eval_shape(inner.init, one)
        function = inner.init
        for level in reversed(levels):
            axes = [_axes(tree, names, level) for tree in (params, state)]
            function = jax.vmap(function, in_axes=axes[:1], out_axes=axes[1])
        return function(params)

    def update(updates, state, params=None, **extra):
        levels, _ = _levels(updates, stacks)
        names = list(flat(updates))

        def function(updates, state, params):
            return inner.update(updates, state, params, **extra)

        for level in reversed(levels):
            axes = [_axes(tree, names, level) for tree in (updates, state, params)]
            function = jax.vmap(function, in_axes=tuple(axes), out_axes=tuple(axes[:2]))
        return function(updates, state, params)

    return optax.GradientTransformationExtraArgs(init, update)


def _levels(params: optax.Params, stacks: Stacks) -> tuple[list[set[str]], optax.Params]:
    """Returns the names of the parameters in each `vmap`, outermost first; and the inner shapes."""
    shapes = {name: x.shape for name, x in flat(params).items()}
    depths = {name: depth(stacks, name) for name in shapes}
    levels = []
    for axis in range(max(depths.values(), default=0)):
        of_size: dict[int, set[str]] = {}  # what is mapped together must be of one length
        for name, n in depths.items():
            if n > axis:
                of_size.setdefault(shapes[name][axis], set()).add(name)
        levels += of_size.values()
    one = jax.tree_util.tree_map_with_path(
        lambda path, x: jax.ShapeDtypeStruct(x.shape[depths[path_name(path)] :], x.dtype), params
    )
    return levels, one


def _axes(tree: Any, names: list[str], level: set[str]) -> Any:
    """Returns `in_axes` for parameters or their state: 0 where a leaf belongs to one of `level`."""

    def axis(path, _) -> int | None:
        path = path_name(path)
        owners = [name for name in names if f"/{path}".endswith(f"/{name}")]
        return 0 if max(owners, key=len, default=None) in level else None

    return jax.tree_util.tree_map_with_path(axis, tree)
