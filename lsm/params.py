"""Parameters chosen by their path, "a/b/kernel".

A pattern is a regular expression that is *searched for* in the path, as in the sharding rules:
"head/" chooses everything under any module `head`, "^Dense_1/" one module, "bias$" every bias.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax

from lsm.errors import ConfigError, listed, nearest

PyTree = Any


def path_name(path: Any) -> str:
    """Returns a pytree key path as "a/b/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flat(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of `tree` by path."""
    return {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dicts with these leaves: undoes `flat` for a tree of dicts."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def names(tree: PyTree) -> list[str]:
    """Returns the path of every leaf of `tree`."""
    return list(flat(tree))


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
        # Without the signs of regular expressions, for `nearest` to compare with paths.
        plain = re.sub(r"[\\^$.*+?()\[\]{}|]", "", pattern)
        raise ConfigError(
            f"{field}: {pattern!r} matches no parameter; the parameters are {listed(known)}."
            f"{nearest(plain, known)}"
        )
