"""From a config file and `--config.a.b=value` to a checked `Experiment`."""

import ast
import dataclasses
import importlib
import importlib.util
import pathlib
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lsm.config import Experiment, schema
from lsm.errors import ConfigError, LsmError, listed, nearest, shortened
from lsm.files import expanded

ADVICE = "--config.FIELD=VALUE changes a field of the config"
"""What a command that takes a config says beside its flags."""


def load(spec: str, overrides: Mapping[str, str] | None = None) -> Experiment:
    """Returns the experiment of `FILE[:arg]` with `overrides` {"a.b": "text"} applied.

    Raises:
      ConfigError: the file, an override or a field is wrong; one line that says which.
    """
    return read(spec, Experiment, overrides)


def read(
    spec: str,
    kind: type,
    overrides: Mapping[str, str] | None = None,
    function: str = "get_config",
    flag: str = "config",
) -> Any:
    """Returns what a function of `FILE[:arg]` gives, of a certain kind; see `load`.

    Args:
      spec: the file, and the argument of the function.
      kind: of what it has to return.
      overrides: see `load`.
      function: its name.
      flag: what errors say instead of "--config".
    """
    path, arg = split(spec, flag)
    value = _call(path, arg, function, kind)
    with _readable(path):
        schema.check(value)
    return override(value, overrides or {}, flag)


def split_overrides(argv: Sequence[str], flag: str = "config") -> tuple[list[str], dict[str, str]]:
    """Takes `--config.a.b=value` and `--config.a.b value` out of a command line.

    Args:
      argv: its words.
      flag: what stands there instead of "config".

    Returns:
      What is left, and the overrides {"a.b": "value"}; of two values of a field, the last.

    Raises:
      ConfigError: a value is missing.
    """
    rest, found = [], {}
    words = iter(argv)
    for word in words:
        if word == "--":
            return [*rest, word, *words], found
        if not re.match(rf"--?{flag}\.", word):
            rest.append(word)
            continue
        path, equals, text = word.lstrip("-").removeprefix(f"{flag}.").partition("=")
        if not equals:
            text = next(words, "--")
            if text.startswith("--"):
                raise ConfigError(f"{word}: a value is needed, as in {word}=VALUE.")
        found[path] = text
    return rest, found


def override(value: Any, overrides: Mapping[str, str], flag: str = "config") -> Any:
    """Returns a copy of a dataclass with fields, given by dotted path and text, replaced.

    All fields of one dataclass are replaced at once, so that checks between fields see the
    final values only.
    """
    tree: dict[str, Any] = {}
    for path, text in overrides.items():
        *parents, last = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--{flag}.{path}: a field above it is set on the line too.")
        if last in node:
            raise ConfigError(f"--{flag}.{path}: a field below it is set on the line too.")
        node[last] = text
    return _rebuild(value, Any, tree, flag)


def describe(experiment: Experiment) -> Iterator[str]:
    """Yields two lines for every field: `--config.path: type = value`, and what it is."""
    yield from _describe(experiment, Any, "config")


def _describe(value: Any, kind: Any, path: str) -> Iterator[str]:
    texts = schema.documentation(type(value))
    for name, child, hint in schema.children(value, kind):
        default = ""
        field = schema.fields(value).get(name) if schema.is_node(value) else None
        if field is not None and field.default is not dataclasses.MISSING:
            default = f"  (default {schema.shown(field.default)})"
        kind = type(child).__name__ if schema.is_node(child) else schema.spelled(hint)
        shown = "" if schema.is_node(child) else f" = {schema.shown(child)}{default}"
        yield f"--{path}.{name}: {kind}{shown}"
        if name in texts:
            yield f"    {texts[name]}"
        if schema.is_node(child) or isinstance(child, tuple):
            yield from _describe(child, hint, f"{path}.{name}")


def split(spec: str, flag: str = "config") -> tuple[pathlib.Path, str | None]:
    """Returns the file and the argument of `FILE[:arg]`; raises ConfigError without the file."""
    name, colon, arg = spec.partition(".py:")
    path = expanded(name + ".py" if colon else spec, f"--{flag}")
    if not path.is_file():
        near = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ConfigError(f"--{flag}: there is no file {str(path)!r}.{nearest(str(path), near)}")
    return path, arg if colon else None


def _call(path: pathlib.Path, arg: str | None, function: str, kind: type) -> Any:
    name = f"lsm_config_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.absolute())
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look up annotations that are strings
    with _readable(path):
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        get: Callable | None = getattr(module, function, None)
        if get is None:
            raise ConfigError(f"{path}: no function {function}(arg=None) in it.")
        value = get(arg) if arg is not None else get()
    if not isinstance(value, kind):
        needed = f"{kind.__module__.rpartition('.')[0]}.{kind.__name__}"
        raise ConfigError(
            f"{path}: {function} returned {type(value).__name__}; {needed} is what it has to be."
        )
    return value


class _readable:
    """Turns what a slip in a config file raises into one ConfigError with the file and line."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, ConfigError):
            text = str(error).removeprefix(f"{self.path}: ")
            raise ConfigError(f"{self._where(trace)}: {text}") from error
        if isinstance(error, SyntaxError):
            raise ConfigError(f"{self.path}:{error.lineno}: {error.msg}") from error
        if isinstance(error, Exception) and not isinstance(error, LsmError):
            frames = [frame for frame, _ in traceback.walk_tb(trace)]
            scope = {k: v for f in frames for k, v in (f.f_globals | f.f_locals).items()}
            text = _advice(error, scope) or f"{type(error).__name__}: {error}"
            raise ConfigError(f"{self._where(trace)}: {' '.join(text.split())}") from error

    def _where(self, trace) -> str:
        file = str(self.path.absolute())
        own = [n for f, n in traceback.walk_tb(trace) if f.f_code.co_filename == file]
        return f"{self.path}:{own[-1]}" if own else str(self.path)


def _advice(error: Exception, scope: Mapping[str, Any]) -> str | None:
    """Returns a better message for an unknown field or name, or None."""
    if isinstance(error, NameError) and error.name:
        return f"{error}.{nearest(error.name, scope)}"
    if isinstance(error, dataclasses.FrozenInstanceError):
        return f"{error}: configs are frozen; give the field to the constructor."
    found = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if not found:
        return None
    class_name, field = found.groups()
    modules = [m for m in scope.values() if isinstance(m, types.ModuleType)]
    named = [scope.get(class_name), *(getattr(m, class_name, None) for m in modules)]
    cls = next((c for c in named if dataclasses.is_dataclass(c)), None)
    if cls is None:
        return None
    allowed = schema.fields(cls)
    hint = nearest(field, allowed)
    return f"{class_name} has no field {field!r}; it has {listed(allowed, 20)}.{hint}"


def _rebuild(value: Any, kind: Any, tree: Mapping[str, Any], path: str) -> Any:
    current = {name: (child, hint) for name, child, hint in schema.children(value, kind)}
    changed = {}
    for name, text in tree.items():
        where = f"--{path}.{name}"
        if name not in current:
            raise ConfigError(_no_field(value, name, where, current))
        child, hint = current[name]
        if isinstance(text, dict) and child is None:
            child = _begun(hint, text, f"{path}.{name}")
        if isinstance(text, dict):
            changed[name] = _rebuild(child, hint, text, f"{path}.{name}")
        else:  # of an item whose type nothing says, that which it has
            changed[name] = parse_value(text, type(child) if hint is Any else hint, where)
    if not changed:
        return value
    if isinstance(value, tuple | list):
        return type(value)(changed.get(str(i), item) for i, item in enumerate(value))
    replaced = {
        other: None
        for name in changed
        for other in schema.fields(value)[name].metadata.get("replaces", ())
        if other not in changed
    }
    return dataclasses.replace(value, **replaced, **changed)


def _begun(hint: Any, tree: Mapping[str, Any], path: str) -> Any:
    """Returns the dataclass of an optional type, of which a field is set, or None.

    Fields without a default are taken from the line already, the others are left to it.
    """
    for cls in typing.get_args(hint):
        if dataclasses.is_dataclass(cls):
            needed = [n for n, f in schema.fields(cls).items() if f.default is dataclasses.MISSING]
            missing = [name for name in needed if not isinstance(tree.get(name), str)]
            if missing:
                raise ConfigError(f"--{path}.{missing[0]}: {cls.__name__} needs it; give it too.")
            hints = schema.hints(cls)
            return cls(**{n: parse_value(tree[n], hints[n], f"--{path}.{n}") for n in needed})
    return None


def _no_field(value: Any, name: str, where: str, allowed: Mapping[str, Any]) -> str:
    if not allowed:
        return f"{where}: {schema.shown(value)} has no fields to set."
    kind = type(value).__name__
    if isinstance(value, tuple | list):
        return f"{where}: there is no item {name}; there are {len(value)}, counted from 0."
    hint = nearest(name, allowed)
    return f"{where}: {kind} has no field {name!r}; it has {listed(allowed, 20)}.{hint}"


def parse_value(text: str, hint: Any, where: str) -> Any:
    """Returns the first reading of `text` that is of type `hint`.

    The dotted name of a function is read in a module that is loaded already, such as `jax.nn` or
    one that the config imports. None is imported for it: that would run whatever it holds.

    Raises:
      ConfigError: there is none; the line begins with `where`.
    """
    for candidate in _readings(text):
        if schema.accepts(candidate, hint):
            return candidate
    allowed = schema.spelled(hint)
    near = nearest(text, re.findall(r"'(\w+)'", allowed) + _siblings(text))
    raise ConfigError(f"{where}: {shortened(repr(text))} given; {allowed} is needed.{near}")


def _siblings(text: str) -> list[str]:
    """Returns the dotted names beside `text`, where that names something in a loaded module."""
    module = text.rpartition(".")[0]
    names = dir(sys.modules[module]) if module in sys.modules else ()
    return [f"{module}.{name}" for name in names]


def _readings(text: str) -> Iterator[Any]:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        yield words[text.lower()]
    try:
        literal = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # "{[]}", "((((...
        literal = text
    if isinstance(literal, list):
        literal = tuple(literal)
    yield literal
    texts = tuple(part.strip() for part in text.split(","))
    if literal == text:
        yield texts
    if isinstance(literal, float) and literal.is_integer():
        yield int(literal)
    if not isinstance(literal, tuple):
        yield (literal,)
    yield text
    yield texts
    module, dot, name = text.rpartition(".")
    if dot and module in sys.modules and hasattr(sys.modules[module], name):
        yield getattr(sys.modules[module], name)
