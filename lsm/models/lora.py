"""Low-rank adapters (LoRA, arXiv:2106.09685) beside the frozen dense layers of any model."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsm.checks import require, require_choice, require_pattern, require_sizes
from lsm.errors import ConfigError, listed, nearest
from lsm.mesh import Fsdp, Layout, Rule
from lsm.models import adapters
from lsm.models.around import Around, beside
from lsm.models.quantised import dequantise, float_shape, quantise
from lsm.params import flat, matches, nested, require_match

_BASE = "base"
_A, _B = "lora_a/kernel", "lora_b/kernel"  # kernels by name, which decay as others do
_CONSTANTS, _LOSSES = "constants", "losses"  # those of `lsm.tasks`


class Lora(Around):
    """A model whose dense layers learn a product of two thin kernels, and nothing else.

    A layer with the kernel W (D, F) gives x W + s (x A) B, where A (D, rank) is drawn as He et al.
    2015 do (normal, of variance 2 / D) and B (rank, F) is 0: at first the model is the base to the
    bit. Stacked layers have an A and a B each. The base lies in the collection "constants" under
    "base", by its own paths, and is frozen; "params" holds `lora_a/kernel` and `lora_b/kernel` in
    the places of their kernels. Applied with the parameters {} it is the base alone.

    Fields and methods of the model are those of this module too.

    Attributes:
      model: the base; it has no state beside its parameters.
      targets: pattern of the kernels, by their paths in the model, that get adapters: such as
        "blocks/" for those of all blocks.
      rank: columns of A.
      alpha: s is alpha / rank.
      dropout: dropout on what A reads.
      rank_stabilised: s is alpha / sqrt(rank) instead (rsLoRA, arXiv:2312.03732).
      trained: pattern of parameters of the model that are trained as they are, such as a new head;
        None is none.
      held: how the base is held. As "int8" or "int4" (QLoRA, arXiv:2305.14314) the kernels of dense
        layers are whole numbers, with scales beside them in `kernel_scale`, and are made float
        where they are used (`lsm.models.quantised.quantise`); the rest is float32.
    """

    targets: str
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    rank_stabilised: bool = False
    trained: str | None = None
    held: Literal["float32", "bfloat16", "int8", "int4"] = "float32"

    def __post_init__(self):
        require_sizes(self, "rank")
        require(self, alpha="(0, inf)", dropout="[0, 1)")
        require_pattern(self, "targets", *(["trained"] if self.trained is not None else []))
        require_choice(self, "held", "float32", "bfloat16", "int8", "int4")
        if isinstance(self.model, Around):  # which calls layers its own way, adapters and all
            raise ConfigError(
                f"Lora.model: {type(self.model).__name__} given; the plain model is needed, which "
                "`held` holds as whole numbers."
            )
        super().__post_init__()

    @property
    def layout(self) -> Layout:
        """The model's own; A and B lie as the rows and columns of their kernel do."""
        layout = getattr(self.model, "layout", Layout())
        of_a = beside(layout, "kernel", _A, lambda spec: (*spec[:-1], None))
        of_b = beside(
            layout, "kernel", f"({_B}|kernel_scale)", lambda spec: (*spec[:-2], None, spec[-1])
        )
        rest = Rule(r"(lora_[ab]/kernel|kernel_scale)$", Fsdp())
        return dataclasses.replace(layout, rules=(*of_a, *of_b, rest, *layout.rules))

    @property
    def scale(self) -> float:
        """The factor s of what adapters add."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)

    @nn.nowrap
    def merged(self, params: Any, constants: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the float32 parameters of `model` that does what this one does: W + s A B.

        Args:
          params: the collection "params", or {} for the base alone.
          constants: the collection "constants".
        """
        own, base = flat(params), flat(constants[_BASE])
        whole = {path: x for path, x in own.items() if not _is_adapter(path)}
        for path in base:
            if path.endswith("kernel_scale"):
                continue
            kernel = _float(path, base)
            if (a := _parent(path) + _A) in own and path.endswith("kernel"):
                kernel += self.scale * (own[a] @ own[_parent(path) + _B])
            whole[path] = kernel
        return nested(whole)

    @nn.nowrap
    def given(
        self, here: Mapping[str, jax.ShapeDtypeStruct]
    ) -> dict[str, tuple[jax.ShapeDtypeStruct, Callable[[jax.Array], dict[str, jax.Array]]]]:
        """Returns how a start gives what is held as whole numbers, see `lsm.train.start`.

        By path: a float array, and the function that makes the arrays of it that are held.

        Args:
          here: shape and dtype of all arrays, by path, "constants/base/..." among them.
        """

        def made(path: str, kernel: jax.Array) -> dict[str, jax.Array]:
            # A layer at a time, as what comes in between is of floats.
            one = functools.partial(quantise, bits=self.held)
            whole, scale = jax.lax.map(one, kernel) if kernel.ndim > 2 else one(kernel)
            return {path: whole, f"{path}_scale": scale}

        return {
            path: (
                jax.ShapeDtypeStruct(float_shape(x), jnp.float32, sharding=x.sharding),
                functools.partial(made, path),
            )
            for path, x in here.items()
            if f"{path}_scale" in here and path.startswith(f"{_CONSTANTS}/{_BASE}/")
        }

    def called(self, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Calls the model, with the adapters."""
        method = None if name == "__call__" else name
        if self.is_initializing() and not self.has_variable(_CONSTANTS, _BASE):
            self._init(method, args, options)
        train = _train(getattr(type(self.model), name), args, options)
        with nn.intercept_methods(adapters.applied):
            y, changed = self.unbound.apply(
                {"params": self._variables(train)},
                *args,
                rngs=self.keys(),
                mutable=[_LOSSES],
                method=method,
                **options,
            )
        if not self.is_initializing():
            for path, values in flat(changed.get(_LOSSES, {})).items():
                self.sow(_LOSSES, path.split("/")[-2], values)  # the last is its place in a tuple
        return y

    def _init(self, method: str | None, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Draws the base, and adapters beside it."""
        rngs = {"params": self.make_rng("params"), **self.keys()}
        variables = dict(self.unbound.init(rngs, *args, method=method, **options))
        variables.pop(_LOSSES, None)
        params = variables.pop("params", {})
        if variables:
            raise ConfigError(
                f"Lora.model: {type(self.model).__name__} has {min(variables)!r} beside its "
                "parameters, which no adapter goes with."
            )
        call = functools.partial(self.unbound.apply, rngs=self.keys(), method=method, **options)
        dense = adapters.dense_kernels(call, params, *args)
        leaves, chosen = flat(params), self._chosen(params, dense)
        trained = {path: x for path, x in leaves.items() if self._is_trained(path)}
        frozen = {path: x for path, x in leaves.items() if path not in trained}
        drawn = self._drawn({path: leaves[path] for path in chosen})
        for name, tree in nested(trained | drawn).items():
            self.put_variable("params", name, tree)
        self.put_variable(_CONSTANTS, _BASE, nested(self._held(frozen, dense)))

    def _is_trained(self, path: str) -> bool:
        return self.trained is not None and matches(self.trained, path)

    def _chosen(self, params: Any, dense: set[str]) -> list[str]:
        """Returns the paths of the kernels that get adapters."""
        kernels = [path for path in flat(params) if path.split("/")[-1] == "kernel"]
        if self.trained is not None:
            require_match("Lora.trained", self.trained, params)
        found = [path for path in kernels if matches(self.targets, path)]
        found = [path for path in found if not self._is_trained(path)]
        wrong = [path for path in found if path not in dense]
        if wrong or not found:
            told = f"{wrong[0]!r} is" if wrong else f"{self.targets!r} matches"
            raise ConfigError(
                f"Lora.targets: {told} no kernel of a dense layer; there are "
                f"{listed(sorted(dense)) or 'none'}.{nearest(self.targets, dense)}"
            )
        return found

    def _drawn(self, kernels: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        drawn = {}
        for path, kernel in kernels.items():
            *stack, rows, columns = kernel.shape
            a = jax.random.normal(self.make_rng("params"), (*stack, rows, self.rank))
            drawn[_parent(path) + _A] = a * (2 / rows) ** 0.5
            drawn[_parent(path) + _B] = jnp.zeros((*stack, self.rank, columns))
        return drawn

    def _held(self, frozen: Mapping[str, jax.Array], dense: set[str]) -> dict[str, jax.Array]:
        if self.held in ("float32", "bfloat16"):
            return {path: x.astype(self.held) for path, x in frozen.items()}
        held = dict(frozen)
        for path in dense.intersection(frozen):
            held[path], held[f"{path}_scale"] = quantise(frozen[path], self.held)
        return held

    def _variables(self, train: bool) -> dict[str, Any]:
        """The model's parameters, with adapters beside the kernels."""
        base = flat(self.get_variable(_CONSTANTS, _BASE))
        own = flat(dict(self.variables.get("params", {})))
        leaves = base | {path: x for path, x in own.items() if not _is_adapter(path)}
        for kernel in sorted(path.removesuffix(_A) for path in own if path.endswith(_A)):
            keys = None
            if train and self.dropout and self.has_rng("dropout"):
                keys = self.make_rng("dropout")
                if stack := own[kernel + _A].shape[:-2]:
                    keys = jax.random.split(keys, stack)
            leaves[kernel + adapters.NAME] = adapters.Adapter(
                own[kernel + _A], own[kernel + _B], keys, self.scale, self.dropout
            )
        return nested(leaves)


def _train(method: Callable, args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Whether a method is called to train."""
    given = inspect.signature(method).bind_partial(None, *args, **options)
    return bool(given.arguments.get("train", False))


def _parent(path: str) -> str:
    """Returns "blocks/qkv/" of "blocks/qkv/kernel", and "" of "kernel"."""
    before, slash, _ = path.rpartition("/")
    return before + slash


def _is_adapter(path: str) -> bool:
    return path.endswith((_A, _B))


def _float(path: str, base: Mapping[str, jax.Array]) -> jax.Array:
    scale = base.get(f"{path}_scale")
    return base[path].astype(jnp.float32) if scale is None else dequantise(base[path], scale)
