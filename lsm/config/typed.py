"""Types of fields: whether a value is of one, how it is spelled, what is inside of it."""

import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any


def accepts(value: Any, hint: Any) -> bool:
    """Whether `value` is of type `hint`; an int passes for a float, a bool for neither."""
    import typeguard  # here, so that models and steps can be had without it

    if isinstance(value, bool) and not _admits_bool(hint):  # to Python, an int
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


def kinds(hint: Any) -> tuple[Any, ...]:
    """Returns the alternatives of a union, or the one type that `hint` is."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def inside(hint: Any, index: int = 0) -> Any:
    """Returns the type of item `index` of a sequence, or of a mapping's values; else Any."""
    found = []
    for kind in kinds(hint):
        origin, args = typing.get_origin(kind), typing.get_args(kind)
        if not args or not isinstance(origin, type) or not issubclass(origin, Iterable):
            continue
        if origin is tuple and args[-1] is not ...:
            found += args[index : index + 1]
        else:
            found.append(args[1] if issubclass(origin, Mapping) else args[0])
    return typing.Union[tuple(found)] if found else Any  # noqa: UP007


def _admits_bool(hint: Any) -> bool:
    if hint in (bool, Any, object):
        return True
    if typing.get_origin(hint) is typing.Literal:
        return any(isinstance(arg, bool) for arg in typing.get_args(hint))
    return any(_admits_bool(arg) for arg in typing.get_args(hint) if arg is not ...)
