"""What dataclass values say of themselves: fields, types, documentation, JSON, differences.

Linen modules are dataclasses too, so one walk serves experiments, models and optimisers.
"""

import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

import jax
import typeguard

from lsm.errors import ConfigError

_LINEN = ("parent", "name")
CLASS = "class"
"""Key that holds the dotted name of a dataclass in JSON."""


def is_node(value: Any) -> bool:
    """Whether `value` has fields of its own: a dataclass instance, Linen modules included."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def fields(value: Any) -> dict[str, dataclasses.Field]:
    """Returns the fields of a dataclass (or of its instance) that a config can set, in order."""
    cls = value if isinstance(value, type) else type(value)
    linen = any(base.__module__.startswith("flax.") for base in cls.__mro__)
    return {
        f.name: f for f in dataclasses.fields(cls) if f.init and not (linen and f.name in _LINEN)
    }


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """Returns the resolved type of every field of a dataclass."""
    return typing.get_type_hints(cls)


def children(value: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yields (name, child, type) of a dataclass's fields, or of a tuple's items by index."""
    if is_node(value):
        types_ = hints(type(value))
        for name in fields(value):
            yield name, getattr(value, name), types_.get(name, Any)
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield str(index), item, Any


def accepts(value: Any, hint: Any) -> bool:
    """Whether `value` is of type `hint`; an int passes for a float, a bool for neither."""
    if isinstance(value, bool) and not _admits_bool(hint):
        return False
    try:
        typeguard.check_type(
            value,
            hint,
            forward_ref_policy=typeguard.ForwardRefPolicy.IGNORE,
            collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS,
        )
    except typeguard.TypeCheckError:
        return False
    return True


def check(value: Any, path: str = "") -> None:
    """Raises ConfigError for the first field, at any depth, whose value is not of its type."""
    for name, child, hint in children(value):
        where = f"{path}.{name}" if path else name
        if not accepts(child, hint):
            raise ConfigError(
                f"{where}: {shown(child)} given, which is {type(child).__name__}; "
                f"{spelled(hint)} is needed."
            )
        check(child, where)


def spelled(hint: Any) -> str:
    """Returns a type as a person writes it: "int | None", "tuple[int, ...]", "'SAME' | 'VALID'"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "None"
    if origin is typing.Literal:
        return " | ".join(map(repr, args))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(spelled(arg) for arg in args)
    if origin is tuple:
        return f"tuple[{', '.join('...' if a is ... else spelled(a) for a in args)}]"
    if origin is not None:
        return getattr(origin, "__name__", str(origin))
    return getattr(hint, "__name__", str(hint))


def shown(value: Any) -> str:
    """Returns a value short enough for one line."""
    if callable(value) and not is_node(value):
        return dotted(value)
    text = repr(value) if not is_node(value) else f"{type(value).__name__}(...)"
    return text if len(text) <= 80 else text[:77] + "..."


def dotted(value: Any) -> str:
    """Returns the dotted name of a function or class; of JAX's, the public one."""
    name = getattr(value, "__qualname__", getattr(value, "__name__", type(value).__qualname__))
    for public in (jax.nn, jax.numpy, jax.lax):
        if getattr(public, name, None) is value:
            return f"{public.__name__}.{name}"
    return f"{getattr(value, '__module__', type(value).__module__)}.{name}"


def documentation(cls: type) -> dict[str, str]:
    """Returns the text of each field in the "Attributes:" sections of a class and its bases."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        doc = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        _, _, section = doc.partition("Attributes:\n")
        for name, text in re.findall(r"^  (\w+): (.*(?:\n   +.*)*)", section, re.MULTILINE):
            texts[name] = " ".join(text.split())
    return texts


def to_json(value: Any) -> Any:
    """Returns `value` as JSON: a dataclass is an object with its "class", a function its name."""
    if is_node(value):
        inner = {name: to_json(child) for name, child, _ in children(value)}
        return {CLASS: dotted(type(value)), **inner}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return dotted(value) if callable(value) else str(value)


def flatten(tree: Any, path: str = "") -> dict[str, Any]:
    """Returns the leaves of a JSON tree by dotted path; an empty object or list is a leaf."""
    if isinstance(tree, list):
        tree = {str(index): item for index, item in enumerate(tree)}
    leaves: dict[str, Any] = {}
    for name, child in tree.items() if isinstance(tree, dict) else ():
        leaves |= flatten(child, f"{path}.{name}" if path else str(name))
    return leaves or {path: tree}


def free_fields(value: Any, path: str = "") -> tuple[str, ...]:
    """Returns the paths of fields marked as not altering a run."""
    free = []
    for name, child, _ in children(value):
        where = f"{path}.{name}" if path else name
        field = fields(value).get(name) if is_node(value) else None
        if field is not None and not field.metadata.get("alters_run", True):
            free.append(where)
        else:
            free += free_fields(child, where)
    return tuple(free)


def differences(old: Any, new: Any, free: tuple[str, ...] = ()) -> list[str]:
    """Returns a line "path: old -> new" for every leaf that differs outside the `free` paths."""
    old, new = flatten(old), flatten(new)
    absent = object()
    lines = []
    for path in dict.fromkeys([*old, *new]):
        was, now = old.get(path, absent), new.get(path, absent)
        if was == now or any(path == f or path.startswith(f + ".") for f in free):
            continue
        was, now = ("(absent)" if v is absent else repr(v) for v in (was, now))
        lines.append(f"{path}: {was} -> {now}")
    return lines


def _admits_bool(hint: Any) -> bool:
    if hint in (bool, Any, object):
        return True
    if typing.get_origin(hint) is typing.Literal:
        return any(isinstance(arg, bool) for arg in typing.get_args(hint))
    return any(_admits_bool(arg) for arg in typing.get_args(hint) if arg is not ...)
