"""What dataclass values say of themselves: fields, types, documentation, JSON, differences.

Linen modules are dataclasses too, so one walk serves experiments, models and optimisers.
"""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import os
import pkgutil
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from lsm.config.transforms import Told, dotted, held, is_chain, is_node, is_plain
from lsm.config.typed import accepts, inside, kinds, spelled
from lsm.errors import ConfigError, LsmError, listed, nearest, shortened

_LINEN = ("parent", "name")
_MOVED = {"lsm.sharding.": "lsm.mesh.", "lsm.axes.": "lsm.mesh."}
"""Modules that configs of earlier runs name, and where their classes are now."""

CLASS = "class"
"""Key that holds the dotted name of a dataclass in JSON."""

_FUNCTION, _PARTIAL = "collections.abc.Callable", "functools.partial"
_ARRAY, _OBJECT, _TRANSFORM = "numpy.ndarray", "builtins.object", "optax.GradientTransformation"
"""What "class" says of values that are no dataclasses; see `to_json`."""


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


def children(value: Any, hint: Any = Any) -> Iterator[tuple[str, Any, Any]]:
    """Yields (name, child, type) of a dataclass's fields, or by index of items of type `hint`."""
    if is_node(value):
        types_ = hints(type(value))
        for name in fields(value):
            yield name, getattr(value, name), types_.get(name, Any)
    elif isinstance(value, tuple | list) and not is_chain(value):
        for index, item in enumerate(value):
            yield str(index), item, inside(hint, index)


def check(value: Any, path: str = "") -> None:
    """Raises ConfigError for the first field, at any depth, whose value is not of its type."""
    for name, child, hint in children(value):
        where = f"{path}.{name}" if path else name
        _require(child, hint, where)
        check(child, where)


def _require(value: Any, hint: Any, where: str) -> None:
    if not accepts(value, hint):
        for index, item in enumerate(value if isinstance(value, tuple | list) else ()):
            _require(item, inside(hint, index), f"{where}.{index}")  # the one that is wrong
        raise ConfigError(
            f"{where}: {shown(value)} given, which is {type(value).__name__}; "
            f"{spelled(hint)} is needed."
        )


def shown(value: Any) -> str:
    """Returns a value short enough for one line."""
    if callable(value) and not is_node(value):
        return dotted(value)
    if is_chain(value):
        return "an Optax transform"
    return shortened(repr(value)) if not is_node(value) else f"{type(value).__name__}(...)"


def documentation(cls: type) -> dict[str, str]:
    """Returns the text of each field in the "Attributes:" sections of a class and its bases."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):  # the class itself has the last word
        doc = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        _, _, section = doc.partition("Attributes:\n")
        for name, text in re.findall(r"^  (\w+): (.*(?:\n   +.*)*)", section, re.MULTILINE):
            texts[name] = " ".join(text.split())
    return texts


def to_json(value: Any, hint: Any = Any) -> Any:
    """Returns `value`, of type `hint`, as JSON.

    A dataclass is an object with its "class"; a function its dotted name, in an object where the
    type also accepts a text; a `functools.partial` an object with function and arguments; an array
    its shape, dtype and SHA-256; a tuple a list; a transform of Optax what its functions hold;
    anything else a text. `from_json` is the way back.
    """
    return _write(value, hint, "")


def _write(value: Any, hint: Any, home: str) -> Any:
    """See `to_json`; `home` is a name that leads to `value` where its own does not."""
    if isinstance(value, Told):
        return dict(value.json)
    if is_node(value):
        return {CLASS: dotted(type(value)), **dict(_fields_to_json(value))}
    if isinstance(value, functools.partial):
        function, arguments = to_json(value.func, Callable), to_json(value.args)
        keywords = to_json(value.keywords)
        return {CLASS: _PARTIAL, "function": function, "arguments": arguments, "keywords": keywords}
    if isinstance(value, np.ndarray | jax.Array):
        shape, dtype = list(value.shape), str(value.dtype)
        return {CLASS: _ARRAY, "shape": shape, "dtype": dtype, "sha256": _sha256(value)}
    if is_chain(value):
        return {CLASS: _TRANSFORM, **held(value, to_json)}
    if isinstance(value, tuple | list):
        return [to_json(item, inside(hint, index)) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {str(key): to_json(item, inside(hint)) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike | np.dtype):
        return str(value)
    if isinstance(value, set | frozenset):  # whose order differs from process to process
        return {CLASS: _OBJECT, "text": f"{type(value).__name__}({sorted(value, key=repr)})"}
    found = callable(value) and _found(dotted(value))
    if not callable(value) or (found is not None and found != value):
        # Without its address, which differs from run to run.
        return {CLASS: _OBJECT, "text": re.sub(r" at 0x[0-9a-f]+", "", repr(value))}
    name = dotted(value) if found is not None else home or dotted(value) + _given(value)
    return {CLASS: _FUNCTION, "name": name} if accepts("", hint) else name


def _fields_to_json(value: Any) -> Iterator[tuple[str, Any]]:
    for name, child, hint in children(value):
        # A default may be a local function, as Linen's initialisers are: its class leads to it.
        default = getattr(type(value), name, None) is child
        yield name, _write(child, hint, f"{dotted(type(value))}.{name}" if default else "")


def _found(name: str) -> Any:
    """Returns what a dotted name leads to, or None: a lambda, say."""
    try:
        return pkgutil.resolve_name(name)
    except (ValueError, ImportError, AttributeError):
        return None


def _given(function: Any) -> str:
    """Returns what a local function was made with, "(stddev=0.02)", of plain values; or "".

    JAX's initialisers are such functions.
    """
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    told = []
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=False):
        with contextlib.suppress(ValueError):  # a cell that is not filled yet
            if is_plain(cell.cell_contents):
                told.append(f"{name}={json.dumps(to_json(cell.cell_contents))}")
    return f"({', '.join(told)})" if told else ""


def _sha256(array: np.ndarray | jax.Array) -> str:
    array = np.ascontiguousarray(array)
    if array.dtype == object:  # texts, or pictures of different sizes
        return hashlib.sha256(json.dumps(to_json(list(array.flat))).encode()).hexdigest()
    return hashlib.sha256(array.reshape(-1).view(np.uint8)).hexdigest()  # a scalar has no view


def from_json(tree: Any, hint: Any = Any, advice: str = "") -> Any:
    """Returns the value of type `hint` that `to_json` wrote as `tree`.

    Classes and functions are imported by name, so the JSON is to be trusted as code is; what is
    called are the constructors of dataclasses, and `functools.partial`. Absent fields take their
    defaults, as do callbacks, which only a run needs.

    Args:
      tree: what `json.load` gives.
      hint: type of the value.
      advice: what to do about an error, put at the end of its line.

    Raises:
      ConfigError: a value that JSON does not give back (a lambda, an array, a class of a script),
        or an unknown or missing field; one line with its dotted path.
    """
    try:
        return _read(tree, hint, "")
    except ConfigError as error:
        raise ConfigError(f"{error} {advice}".strip()) from error


def _read(tree: Any, hint: Any, path: str) -> Any:
    if isinstance(tree, dict) and isinstance(tree.get(CLASS), str):
        value = _object(tree, path)
    elif isinstance(tree, dict):
        value = {
            _key(key, hint): _read(item, inside(hint), _below(path, key))
            for key, item in tree.items()
        }
    elif isinstance(tree, list):
        value = tuple(
            _read(item, inside(hint, index), _below(path, index)) for index, item in enumerate(tree)
        )
        value = value if accepts(value, hint) else list(value)  # JSON has no tuples
    elif isinstance(tree, str) and "." in tree and not accepts(tree, hint):
        value = _import(tree, path)
    else:
        value = tree
    _require(value, hint, path or "config")
    return value


def _below(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)


def _key(key: str, hint: Any) -> str | int:
    """Returns the key of a mapping: JSON has made whole numbers texts."""
    types_ = [args[0] for args in map(typing.get_args, kinds(hint)) if len(args) == 2]
    whole = int in types_ and str not in types_ and re.fullmatch(r"-?\d+", key)
    return int(key) if whole else key


def _object(tree: dict[str, Any], path: str) -> Any:
    """Returns what an object with a "class" stands for."""
    name, where = tree[CLASS], path or "config"
    if name == _ARRAY:
        raise ConfigError(
            f"{where}: an array {tuple(tree['shape'])} {tree['dtype']}, of which JSON holds no "
            "more than a checksum."
        )
    if name == _TRANSFORM:
        return Told(tree)
    if name == _OBJECT:
        raise ConfigError(f"{where}: {tree['text']}, which JSON does not give back.")
    if name == _FUNCTION:
        return _import(tree["name"], path)
    if name == _PARTIAL:
        function = _read(tree["function"], Callable, _below(path, "function"))
        arguments = _read(tree["arguments"], Any, _below(path, "arguments"))
        keywords = _read(tree["keywords"], Any, _below(path, "keywords"))
        return functools.partial(function, *arguments, **keywords)
    cls = _import(name, path)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ConfigError(f"{where}: {name} is no dataclass, and nothing else is made from JSON.")
    return _construct(cls, {key: item for key, item in tree.items() if key != CLASS}, path)


def _construct(cls: type, given: dict[str, Any], path: str) -> Any:
    """Returns a dataclass made of the JSON of its fields."""
    allowed, values = fields(cls), {}
    for name, item in given.items():
        if name not in allowed:
            raise ConfigError(
                f"{_below(path, name)}: {cls.__name__} has no such field here; it has "
                f"{listed(allowed, 20)}.{nearest(name, allowed)}"
            )
        if allowed[name].metadata.get("rebuilt", True):
            values[name] = _read(item, hints(cls).get(name, Any), _below(path, name))
    for name, field in allowed.items():
        missing = field.default is field.default_factory is dataclasses.MISSING
        if missing and name not in values:
            raise ConfigError(f"{_below(path, name)}: absent; {cls.__name__} needs it.")
    try:
        return cls(**values)
    except LsmError:
        raise
    except Exception as error:  # whatever a class of another version says
        where = path or "config"
        raise ConfigError(f"{where}: {cls.__name__} refuses it ({_line(error)}).") from error


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _import(name: str, path: str) -> Any:
    """Returns the function or class of a dotted name."""
    module = name.partition(".")[0]
    if module == "__main__" or module.startswith("lsm_config_") or "<" in name:
        reason = "it stands in a script, a config file or a function, where no import finds it"
    elif name == _PARTIAL:
        reason = "its function and arguments are not there"
    else:
        for old, new in _MOVED.items():
            name = new + name.removeprefix(old) if name.startswith(old) else name
        try:
            return pkgutil.resolve_name(name)
        except Exception as error:  # of the module's own code too
            reason = _line(error)
    raise ConfigError(f"{path or 'config'}: {name} cannot be imported ({reason}).")


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


def altering(tree: Any, free: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns the leaves of a JSON tree by dotted path, without those of the `free` paths."""
    leaves = flatten(tree).items()
    return {p: x for p, x in leaves if not any(f"{p}.".startswith(f"{f}.") for f in free)}


def differences(old: Any, new: Any, free: tuple[str, ...] = ()) -> list[str]:
    """Returns a line "path: old -> new" for every leaf that differs outside the `free` paths."""
    old, new = altering(old, free), altering(new, free)
    absent = object()  # None is a value
    lines = []
    for path in dict.fromkeys([*old, *new]):
        was, now = old.get(path, absent), new.get(path, absent)
        same = was == now or (was != was and now != now)  # NaN, which equals nothing
        if same or _same_function(str(was), str(now)):
            continue
        if path.rpartition(".")[2] == CLASS and _same_class(was, now):
            continue
        was, now = ("(absent)" if v is absent else repr(v) for v in (was, now))
        lines.append(f"{path}: {was} -> {now}")
    return lines


def told(changes: list[str]) -> str:
    """Returns differences as a part of one line: the first few, and how many more there are."""
    return listed((shortened(change, 120) for change in changes), 5, "; ")


def _same_function(was: str, now: str) -> bool:
    """Whether `was` is how earlier versions named a local function: without what it was given."""
    return bool(re.fullmatch(r"[\w.]+\.(<\w+>[\w.]*)+", was)) and now.startswith(f"{was}(")


def _same_class(was: Any, now: Any) -> bool:
    """Whether two dotted names may be of one class: a script's, run and imported."""
    names = [str(name).rpartition(".") for name in (was, now)]
    return names[0][2] == names[1][2] and "__main__" in (names[0][0], names[1][0])
