"""Functions to StableHLO and back, by `jax.export`, without its own file format.

What `jax.export.serialize` writes needs the package flatbuffers to be read. Here the module's bytes
are kept as they are, and everything else of `jax.export.Exported` comes of the signature: a
function of nothing with the same arguments and results is exported, and the module put in its
place.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lsm.errors import ExportError
from lsm.export.spec import Array, Function, Symbol, specs

Named = Mapping[str, jax.Array]
Exportable = Callable[[Named, Named], dict[str, jax.Array]]
"""(weights, inputs) -> outputs, all by name."""


def lowered(
    function: Exportable,
    file: str,
    symbols: Mapping[str, Symbol],
    weights: Mapping[str, Array],
    inputs: Mapping[str, Array],
    platforms: Sequence[str],
) -> tuple[Function, bytes]:
    """Returns a function as the signature says it, with what it reads alone, and its StableHLO.

    Raises:
      Exception: any that the trace raises, and those of `jax.export`.
    """
    read, seen = _read(function, symbols, weights, inputs)
    asked = {dim for name in seen for dim in inputs[name].shape}
    known = {name: one for name, one in inputs.items() if asked.issuperset(_symbols(one))}
    made = Function(file, 0, symbols, tuple(weights), known, {})
    all_weights, all_inputs, _ = specs(made, weights)

    def of_those(weights: Named, inputs: Named) -> dict[str, jax.Array]:
        return function(_filled(weights, all_weights), _filled(inputs, all_inputs))

    given = {n: all_weights[n] for n in read}, {n: all_inputs[n] for n in seen}
    exported = jax.export.export(jax.jit(of_those), platforms=tuple(platforms))(*given)
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    made = dataclasses.replace(
        made,
        convention=exported.calling_convention_version,
        symbols={name: one for name, one in symbols.items() if name in asked},
        weights=read,
        inputs={name: inputs[name] for name in seen},
        outputs={name: Array.of(x) for name, x in outputs.items()},
    )
    return made, exported.mlir_module_serialized


def _symbols(array: Array) -> set[str]:
    return {dim for dim in array.shape if isinstance(dim, str)}


def _filled(given: Named, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Returns arrays with zeros for those that are not given, as no result depends on them."""
    return {
        name: given[name] if name in given else jnp.zeros(x.shape, x.dtype)
        for name, x in wanted.items()
    }


def _read(
    function: Exportable,
    symbols: Mapping[str, Symbol],
    weights: Mapping[str, Array],
    inputs: Mapping[str, Array],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of the weights and inputs that results depend on.

    JAX leaves out what is not read where sizes are known, and so it is asked with some.
    """
    some = {name: min(one.most or 2, max(one.least, 2)) for name, one in symbols.items()}

    def sized(array: Array) -> jax.ShapeDtypeStruct:
        shape = tuple(some.get(dim, dim) for dim in array.shape)
        return jax.ShapeDtypeStruct(shape, jnp.dtype(array.dtype))

    given = [{name: sized(one) for name, one in of.items()} for of in (weights, inputs)]
    exported = jax.export.export(jax.jit(function), platforms=("cpu",))(*given)
    # A dict is flattened in the order of its keys.
    names = [(number, name) for number, of in enumerate(given) for name in sorted(of)]
    kept = [names[at] for at in exported.module_kept_var_idx]
    read, seen = (tuple(name for of, name in kept if of == number) for number in (0, 1))
    return read, seen


def callable_of(
    function: Function,
    module: bytes,
    weights: Mapping[str, Array],
    platforms: Sequence[str],
) -> Exportable:
    """Returns what runs a module of StableHLO, to be compiled by `jax.jit`.

    Raises:
      ExportError: this version of JAX calls modules in another way.
    """
    low = jax.export.minimum_supported_calling_convention_version
    high = jax.export.maximum_supported_calling_convention_version
    if not low <= function.convention <= high:
        raise ExportError(
            f"{function.file}: calling convention {function.convention}; JAX {jax.__version__} "
            f"knows {low} to {high}: export again with a JAX nearer to this one."
        )
    given_weights, inputs, outputs = specs(function, weights)

    def empty(weights: Named, inputs: Named) -> dict[str, Any]:
        return {name: jnp.zeros(x.shape, x.dtype) for name, x in outputs.items()}

    like = jax.export.export(jax.jit(empty), platforms=tuple(platforms))(given_weights, inputs)
    exported = dataclasses.replace(
        like,
        mlir_module_serialized=module,
        calling_convention_version=function.convention,
        module_kept_var_idx=tuple(range(len(like.in_avals))),
    )
    return exported.call
