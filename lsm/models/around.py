"""A module around any model, which has the model's fields and methods beside its own."""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from lsm.mesh import Fsdp, Layout, Rule


class Around(nn.Module):
    """Hands on what it has not itself to `model`; a subclass says what a call is, in `called`."""

    model: nn.Module

    @nn.nowrap
    def __getattr__(self, name: str) -> Any:
        """Fields of the model, and its methods, which are called as `called` says."""
        if name.startswith("_") or name == "model":
            return super().__getattr__(name)
        found = getattr(self.model, name)
        if not inspect.ismethod(found):
            return found

        @functools.wraps(found.__func__)
        def method(self: "Around", *args: Any, **options: Any) -> Any:
            # Without variables, such as `cache`, it is about hyper-parameters alone.
            if self.scope is None:
                return getattr(self.model, name)(*args, **options)
            return self.called(name, args, options)

        return types.MethodType(method, self)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Calls the model."""
        return self.called("__call__", args, options)

    def called(self, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Returns what a method of the model gives, `name` its name."""
        raise NotImplementedError

    @property
    def unbound(self) -> nn.Module:
        """The model, bound to nothing."""
        return self.model.clone(parent=None)

    def keys(self) -> dict[str, jax.Array]:
        """Returns a key of each random stream that the model draws from, of those given."""
        streams = getattr(self.model, "streams", ("dropout",))
        return {name: self.make_rng(name) for name in streams if self.has_rng(name)}


def beside(
    layout: Layout, array: str, name: str, of: Callable[[tuple[Any, ...]], tuple[Any, ...]]
) -> tuple[Rule, ...]:
    """Returns where arrays `name` go, which lie beside the arrays that a layout has rules for.

    Args:
      layout: a model's.
      array: last part of the path of an array, such as "kernel".
      name: pattern of what lies in its place.
      of: the spec there, of the array's.
    """

    def changed(spec: Any) -> Any:
        return spec if spec is None or isinstance(spec, Fsdp) else of(spec)

    return tuple(
        Rule(
            rule.pattern.removesuffix(f"{array}$") + f"{name}$",
            changed(rule.spec),
            changed(rule.otherwise),
        )
        for rule in layout.rules
        if rule.pattern.endswith(f"{array}$") and not isinstance(rule.spec, Fsdp)
    )
