"""The code that a training result depends on, as one digest: it tells results that are older."""

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ASIDE = ("cli", "command_line", "cost", "errors", "processes", "run", "writers")
"""Rooms of lsm that start a run or tell of it, and cannot change what it computes."""


def digest(config: Path, *texts: str, root: Path = ROOT) -> str:
    """Returns the sha256, in hex, of `texts` and of all code that training `config` imports.

    Comments, docstrings and empty lines do not count.
    """
    found = hashlib.sha256("\n".join(texts).encode())
    for path in closure(config, root):
        found.update(
            f"\n{path.relative_to(root).as_posix()}\n{_read(path.read_text())[0]}".encode()
        )
    return found.hexdigest()


def closure(config: Path, root: Path = ROOT) -> list[Path]:
    """Returns the config, `lsm.train.fit`, and our files that these import, one by another.

    A name that a room only passes on counts as the file that it comes from, not as the room: the
    result of an MLP does not depend on the CNN beside it.
    """
    modules = {}
    for path in [*(root / "lsm").rglob("*.py"), *(root / "experiments").rglob("*.py")]:
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        modules[name.removesuffix(".__init__")] = path
    found, ahead = set(), [config, modules["lsm.train.fit"]]
    while ahead:
        path = ahead.pop()
        if path not in found:
            found.add(path)
            for pair in _read(path.read_text())[1]:
                ahead += _files(*pair, modules)
    return sorted(found)


def _files(module: str, name: str | None, modules: dict[str, Path]) -> Iterator[Path]:
    """Yields our file that an import reads, looked up through `__init__.py`; none if not ours."""
    inner = f"{module}.{name}"
    if inner in modules:
        module, name = inner, None
    if module not in modules or module.partition(".")[2].split(".")[0] in ASIDE:
        return
    path = modules[module]
    passed_on = dict(map(reversed, _read(path.read_text())[1])) if name else {}
    if path.name == "__init__.py" and name in passed_on:
        yield from _files(passed_on[name], name, modules)
    else:
        yield path


@functools.cache
def _read(text: str) -> tuple[str, list[tuple[str, str | None]]]:
    """Returns the code of a file without what nothing computes, and its imports as (module, name).

    Of the text and not of the tree, which newer versions of Python write in another way.
    """
    lines, imports = text.splitlines(), []
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                lines[node.lineno - 1 : node.end_lineno] = [""] * (
                    node.end_lineno - node.lineno + 1
                )
            case ast.Import():
                imports += [(alias.name, None) for alias in node.names]
            case ast.ImportFrom():
                imports += [(node.module, alias.name) for alias in node.names]
    kept = [line.rstrip() for line in lines if line.strip() and not line.strip().startswith("#")]
    return "\n".join(kept), imports
