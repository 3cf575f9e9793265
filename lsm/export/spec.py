"""What an exported function takes and gives, as JSON: names, shapes with symbols, dtypes."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsm.errors import DataError, listed, nearest

Dim = int | str
"""A size, or what stands for one: a symbol, in results an expression of symbols."""

LARGEST = 1 << 40
_EXPRESSION = re.compile(r"[a-z][a-z0-9_ ()*+,-]{0,200}")
_WORD = re.compile(r"[a-z][a-z0-9_]*")
_OPERATIONS = ("floordiv", "mod", "max", "min")
_SYMBOL = re.compile(r"[a-z][a-z0-9_]{0,60}")


@dataclasses.dataclass(frozen=True)
class Array:
    """Shape and dtype of one array.

    Attributes:
      shape: sizes and symbols.
      dtype: its name, such as "float32" or "int4".
    """

    shape: tuple[Dim, ...]
    dtype: str

    def __post_init__(self):
        sizes = [dim for dim in self.shape if not isinstance(dim, str)]
        whole = all(type(dim) is int and 0 <= dim <= LARGEST for dim in sizes)
        if not whole or not all(_EXPRESSION.fullmatch(d) for d in self.shape if isinstance(d, str)):
            raise ValueError(f"shape {self.shape} is none")
        jnp.dtype(self.dtype)  # raises TypeError

    @classmethod
    def of(cls, x: Any) -> "Array":
        """Returns that of what has a shape and a dtype."""
        dims = (int(dim) if isinstance(dim, int) else str(dim) for dim in x.shape)
        return cls(tuple(dims), jnp.dtype(x.dtype).name)

    @property
    def nbytes(self) -> int:
        """Bytes of an array without symbols, as it is in memory."""
        return int(np.prod(self.shape, dtype=object)) * jnp.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Symbol:
    """A size that is not known before a call.

    Attributes:
      least: the smallest.
      most: the largest; None is any.
    """

    least: int = 1
    most: int | None = None

    def __post_init__(self):
        most = LARGEST if self.most is None else self.most
        if not all(type(x) is int for x in (self.least, most)) or not 0 <= self.least <= most:
            raise ValueError(f"{self} is no range")


@dataclasses.dataclass(frozen=True)
class Function:
    """An exported function.

    Attributes:
      file: where its StableHLO is.
      convention: JAX's number of how arguments are passed to it.
      symbols: ranges of the symbols in shapes, by name; the first is the batch.
      weights: names of the weights it takes.
      inputs: the arrays it takes, by name.
      outputs: the arrays it gives, by name.
    """

    file: str
    convention: int
    symbols: Mapping[str, Symbol]
    weights: tuple[str, ...]
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "Function":
        """Returns what `dataclasses.asdict` wrote; raises ValueError, TypeError or KeyError."""
        arrays = {
            field: {
                str(name): Array(tuple(one["shape"]), str(one["dtype"]))
                for name, one in tree[field].items()
            }
            for field in ("inputs", "outputs")
        }
        symbols = {str(name): Symbol(**one) for name, one in tree["symbols"].items()}
        if not symbols or not all(_SYMBOL.fullmatch(name) for name in symbols):
            raise ValueError(f"symbols {listed(symbols)} are none")
        taken = {dim for one in arrays["inputs"].values() for dim in one.shape}
        if {dim for dim in taken if isinstance(dim, str)} != symbols.keys():
            raise ValueError(f"symbols {listed(symbols)} are not those of its inputs")
        given = " ".join(str(dim) for one in arrays["outputs"].values() for dim in one.shape)
        if unknown := {*_WORD.findall(given)} - {*symbols, *_OPERATIONS}:
            raise ValueError(f"its outputs have the symbol {min(unknown)!r}")
        weights = tuple(map(str, tree["weights"]))
        return cls(str(tree["file"]), int(tree["convention"]), symbols, weights, **arrays)

    def sizes(self, given: Mapping[str, Any]) -> dict[str, int]:
        """Returns the sizes that symbols have in arrays, which have the names of `inputs`.

        Raises:
          DataError: one has another shape.
        """
        found: dict[str, int] = {}
        for column, wanted in self.inputs.items():
            shape = given[column].shape
            pairs = zip(wanted.shape, shape, strict=False)
            fits = len(shape) == len(wanted.shape) and all(
                found.setdefault(dim, size) == size if isinstance(dim, str) else dim == size
                for dim, size in pairs
            )
            if not fits:
                raise DataError(
                    f"inputs: {column!r} of shape {shape} given; {shown(wanted.shape)} is needed"
                    f"{_told(found)}."
                )
        for symbol, size in found.items():
            self.check(symbol, size)
        return found

    def check(self, symbol: str, size: int) -> None:
        """Raises DataError where a size is not in the range of its symbol."""
        allowed = self.symbols[symbol]
        if not isinstance(size, int | np.integer):
            raise DataError(f"{symbol}: {size!r} given; a whole number is needed.")
        if size < allowed.least or (allowed.most is not None and size > allowed.most):
            most = "" if allowed.most is None else f" to {allowed.most}"
            more = " or more" if allowed.most is None else ""
            raise DataError(f"{symbol}: {size} given; allowed: {allowed.least}{most}{more}.")


def check_names(given: Mapping[str, Any], wanted: Iterable[str], what: str) -> None:
    """Raises DataError where names are not those that are wanted."""
    wanted = list(wanted)
    if not isinstance(given, Mapping):
        raise DataError(
            f"{what}: {type(given).__name__} given; a dict is needed, of {listed(wanted)}."
        )
    for name in given:
        if name not in wanted:
            hint = nearest(str(name), wanted)
            raise DataError(f"{what}: {name!r} given; needed: {listed(wanted)}.{hint}")
    if missing := [name for name in wanted if name not in given]:
        raise DataError(f"{what}: {missing[0]!r} is missing; needed: {listed(wanted)}.")


def shown(shape: Iterable[Dim]) -> str:
    """Returns a shape as "(batch, 28, 28)"."""
    dims = ", ".join(map(str, shape))
    return f"({dims},)" if dims and "," not in dims else f"({dims})"


def _told(sizes: Mapping[str, int]) -> str:
    known = listed(f"{name} = {size}" for name, size in sizes.items())
    return f", where {known}" if known else ""


def specs(
    function: Function, weights: Mapping[str, Array]
) -> tuple[dict[str, jax.ShapeDtypeStruct], ...]:
    """Returns what `jax.export` takes: shapes and dtypes of weights, inputs and outputs by name.

    Symbols of all three are of one scope, with their ranges as constraints.
    """
    scope = scope_of(function.symbols)

    def struct(array: Array) -> jax.ShapeDtypeStruct:
        dims = ",".join(map(str, array.shape)) + ("," if array.shape else "")
        shape = jax.export.symbolic_shape(dims, scope=scope)
        return jax.ShapeDtypeStruct(shape, jnp.dtype(array.dtype))

    given = {name: weights[name] for name in function.weights}
    return tuple(
        {name: struct(array) for name, array in arrays.items()}
        for arrays in (given, function.inputs, function.outputs)
    )


def scope_of(symbols: Mapping[str, Symbol]) -> jax.export.SymbolicScope:
    """Returns JAX's symbols, which know their ranges."""
    batch, *others = symbols
    known = [f"{name} >= {one.least}" for name, one in symbols.items()]
    known += [f"{name} <= {one.most}" for name, one in symbols.items() if one.most is not None]
    # JAX does not see that products of what is not negative are none.
    known += [f"{batch}*{name} >= {symbols[name].least}*{batch}" for name in others]
    return jax.export.SymbolicScope(known)
