"""Parameters chosen by their path, "a/b/kernel".

A pattern is a regular expression that is *searched for* in the path, as in the sharding rules:
"head/" chooses everything under any module `head`, "^Dense_1/" one module, "bias$" every bias.
"""

import re
from typing import Any

import jax

from lsm.errors import ConfigError, listed, nearest

PyTree = Any


def path_name(path: Any) -> str:
    """Returns a pytree key path as "a/b/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def names(tree: PyTree) -> list[str]:
    """Returns the path of every leaf of `tree`."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def matches(pattern: str, name: str) -> bool:
    """Returns whether `pattern` is found in the path `name`."""
    return re.search(pattern, name) is not None


def mask(tree: PyTree, pattern: str) -> PyTree:
    """Returns a tree like `tree` that says of each leaf whether its path matches `pattern`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: matches(pattern, path_name(path)), tree)


def require_match(field: str, pattern: str, tree: PyTree) -> None:
    """Checks that `pattern` matches a path in `tree`.

    Raises:
      ConfigError: it matches none; names `field`, the paths and the nearest of them.
    """
    known = names(tree)
    if not any(matches(pattern, name) for name in known):
        plain = re.sub(r"[\\^$.*+?()\[\]{}|]", "", pattern)
        raise ConfigError(
            f"{field}: {pattern!r} matches no parameter; the parameters are {listed(known)}."
            f"{nearest(plain, known)}"
        )
