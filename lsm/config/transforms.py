"""What a transform of Optax was made with, as far as its functions tell."""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from lsm.errors import ConfigError


def is_node(value: Any) -> bool:
    """Whether `value` has fields of its own: a dataclass instance, Linen modules included."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def is_chain(value: Any) -> bool:
    """Whether `value` is a transform of Optax: a tuple to Python, of two functions."""
    return isinstance(value, optax.GradientTransformation)


def is_plain(value: Any) -> bool:
    """Whether `value` is a number, a text, an array, a dtype, None, or a sequence of these."""
    if isinstance(value, tuple | list):
        return all(map(is_plain, value))
    return value is None or isinstance(
        value, bool | int | float | str | np.dtype | np.generic | np.ndarray | jax.Array
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Told:
    """A transform of which there is the JSON alone: enough to load what it has trained.

    Attributes:
      json: what `lsm.config.schema.to_json` wrote.
    """

    json: Mapping[str, Any]

    def __call__(self, horizon: Any) -> optax.GradientTransformation:
        """Raises ConfigError: it cannot be made."""
        raise ConfigError(
            "optimizer.chain: a transform of Optax, which JSON does not give back; give the "
            "experiment itself."
        )


def dotted(value: Any) -> str:
    """Returns the dotted name of a function or class; of JAX's, the public one."""
    name = getattr(value, "__qualname__", getattr(value, "__name__", type(value).__qualname__))
    for public in (jax.nn, jax.nn.initializers, jax.numpy, jax.lax):  # else jax._src...
        if getattr(public, name, None) is value:
            return f"{public.__name__}.{name}"
    return f"{getattr(value, '__module__', type(value).__module__)}.{name}"


def held(value: Any, write: Callable[[Any], Any], above: tuple[int, ...] = ()) -> Any:
    """Returns, as JSON, what a transform of Optax was made with: what its functions hold.

    Args:
      value: a transform, or something that one holds.
      write: makes JSON of any other value.
      above: what holds it, by `id`, for functions that hold themselves.
    """
    below = functools.partial(held, write=write, above=(*above, id(value)))
    if id(value) in above:
        return dotted(value)
    if is_chain(value):
        return {"init": below(value.init), "update": below(value.update)}
    if inspect.ismethod(value):
        return below(value.__self__)
    if inspect.isfunction(value):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        found = {"name": dotted(value)}
        for name, cell in cells:
            with contextlib.suppress(ValueError):  # a cell that is not filled yet
                found[name] = below(cell.cell_contents)
        return found
    if isinstance(value, tuple | list):
        return [below(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): below(item) for key, item in value.items()}
    known = isinstance(value, type | functools.partial) or is_plain(value) or is_node(value)
    if not known and hasattr(value, "__dict__"):
        return {"name": dotted(type(value)), **below(vars(value))}
    return write(value)
