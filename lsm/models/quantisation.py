"""Models whose kernels are whole numbers, and models that are trained for it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsm.checks import require_choice, require_pattern
from lsm.errors import ConfigError
from lsm.mesh import Fsdp, Layout, Rule
from lsm.models import whole_layers
from lsm.models.around import Around, beside
from lsm.models.marks import NAME as MARK
from lsm.models.marks import layers, marked
from lsm.models.quantised import Bits, float_shape, quantise, quantise_table
from lsm.models.rounding import fake, rounded_kernel
from lsm.models.whole_layers import INPUT, SCALE, Activations
from lsm.params import flat, matches, nested, require_match

_CONSTANTS, _LOSSES = "constants", "losses"  # those of `lsm.tasks`
_HELD = "quantised"


class _Rounding(Around):
    """What a quantised model and one that is trained for it have in common."""

    weights: Bits = "int8"
    kept: str | None = None

    def __post_init__(self):
        require_choice(self, "weights", "int8", "int4")
        if self.kept is not None:
            require_pattern(self, "kept")
        super().__post_init__()

    @property
    def layout(self) -> Layout:
        """The model's own."""
        return getattr(self.model, "layout", Layout())

    @nn.nowrap
    def chosen(self, found: Mapping[str, int], params: Any) -> dict[str, int]:
        """Returns the arrays that are rounded, of those that layers of the model read.

        Args:
          found: by path; see `lsm.models.marks.layers`.
          params: the model's.

        Raises:
          ConfigError: there are none, or `kept` matches nothing.
        """
        name = type(self).__name__
        if self.kept is not None:
            require_match(f"{name}.kept", self.kept, params)
        chosen = {path: axes for path, axes in found.items() if self.rounds(path)}
        if not chosen:
            told = f"all are kept by {self.kept!r}" if found else "there are none"
            raise ConfigError(
                f"{name}.model: {type(self.model).__name__} has no kernel of a dense layer or a "
                f"convolution, and no embedding, to round: {told}."
            )
        return chosen

    @nn.nowrap
    def rounds(self, path: str) -> bool:
        """Returns whether a kernel or an embedding is rounded, by its path."""
        return self.kept is None or not matches(self.kept, path)

    def _applied(self, params: Any, layer: Callable, name: str, args: Any, options: Any) -> Any:
        """Calls a method of the model, whose layers an interceptor computes, on such parameters."""
        others = {k: v for k, v in self.variables.items() if k not in ("params", _LOSSES)}
        if _HELD in others.get(_CONSTANTS, {}):
            others[_CONSTANTS] = {k: v for k, v in others[_CONSTANTS].items() if k != _HELD}
        changing = [k for k in others if k != _CONSTANTS and self.is_mutable_collection(k)]
        with nn.intercept_methods(layer):
            y, changed = self.unbound.apply(
                {"params": params, **others},
                *args,
                rngs=self.keys(),
                mutable=[*changing, _LOSSES],
                method=None if name == "__call__" else name,
                **options,
            )
        if not self.is_initializing():
            for path, values in flat(changed.pop(_LOSSES, {})).items():
                self.sow(_LOSSES, path.split("/")[-2], values)  # the last is its place in a tuple
            for collection in changing:
                for key, tree in changed[collection].items():
                    self.put_variable(collection, key, tree)
        return y

    def _init(self, name: str, args: Any, options: Any) -> tuple[dict[str, Any], dict[str, int]]:
        """Draws the model's variables; returns its parameters, and the layers that are rounded.

        All but the parameters are put in their places.
        """
        method = None if name == "__call__" else name
        rngs = {"params": self.make_rng("params"), **self.keys()}
        variables = dict(self.unbound.init(rngs, *args, method=method, **options))
        variables.pop(_LOSSES, None)
        params = variables.pop("params", {})
        for collection, trees in variables.items():
            for key, tree in trees.items():
                self.put_variable(collection, key, tree)

        def call(params: Any, *args: Any) -> Any:
            run = functools.partial(self.unbound.apply, rngs=self.keys(), method=method, **options)
            return run({"params": params, **variables}, *args, mutable=[*variables, _LOSSES])

        return params, self.chosen(layers(call, params, *args), params)


class Quantised(_Rounding):
    """A model whose kernels and embeddings are held as whole numbers, and computed with as such.

    Those of dense layers, convolutions and embeddings lie in the collection "constants" under
    "quantised", by their own paths, scales beside them (`lsm.models.quantised.quantise`), and
    nothing trains them; biases, norms and what other layers have are in "params" as they were.

    Fields and methods of the model are those of this module too.

    Attributes:
      model: the model as it was.
      weights: how kernels are held: "int8" with a scale for each output; "int4" with one for each
        output of groups of up to 64 rows, where rows and columns allow that, else "int8".
        Embeddings are int8, with a scale for each row.
      kept: pattern of kernels and embeddings, by their paths, that stay float; None is none.
      activations: what layers read is rounded to int8 as well: with the largest number of each row
        or picture, "dynamic", or one for each layer that was measured on data, "calibrated". None
        leaves it float.
    """

    activations: Activations | None = None

    def __post_init__(self):
        if self.activations is not None:
            require_choice(self, "activations", "dynamic", "calibrated")
        super().__post_init__()

    @property
    def layout(self) -> Layout:
        """The model's own; scales lie as the columns of their kernel and the rows of a table do."""
        layout = getattr(self.model, "layout", Layout())

        def stack(kernel: tuple[Any, ...]) -> tuple[Any, ...]:
            return kernel[: len(kernel) == 3]  # (L, D, F); of a convolution none are stacked

        rules = (
            *beside(layout, "kernel", "kernel" + SCALE, lambda s: (*stack(s), None, s[-1])),
            *beside(layout, "kernel", INPUT, lambda s: (*stack(s), None)),
            *beside(layout, "embedding", "embedding" + SCALE, lambda s: (s[0], None)),
            Rule(f"({SCALE}|{INPUT})$", Fsdp()),
        )
        return dataclasses.replace(layout, rules=(*rules, *layout.rules))

    @nn.nowrap
    def held(
        self, params: Any, axes: Mapping[str, int], largest: Mapping[str, jax.Array]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the parameters that stay, and the whole numbers, of the model's parameters.

        Args:
          params: of `model`.
          axes: of each array to round, by path; see `lsm.models.marks.layers`.
          largest: float32 (..., 1), of what each layer reads, by path; ones where it is not there.
        """
        leaves, whole = flat(params), {}
        for path, sums in axes.items():
            array = leaves.pop(path)
            made = quantise_table(array) if not sums else quantise(array, self.weights, sums)
            whole[path], whole[path + SCALE] = made
            if sums and self.activations == "calibrated":
                lead = array.shape[: array.ndim - sums - 1]
                beside = path.removesuffix("kernel") + INPUT
                whole[beside] = largest.get(path, jnp.ones((*lead, 1)))
        return nested(leaves), nested(whole)

    @nn.nowrap
    def given(
        self, here: Mapping[str, jax.ShapeDtypeStruct]
    ) -> dict[str, tuple[jax.ShapeDtypeStruct, Callable[[jax.Array], dict[str, jax.Array]]]]:
        """Returns how a start gives what is held as whole numbers, see `lsm.train.start`.

        By path: a float array, and the function that makes the arrays of it that are held.

        Args:
          here: shape and dtype of all arrays, by path, "constants/quantised/..." among them.
        """

        def made(path: str, axes: int, array: jax.Array) -> dict[str, jax.Array]:
            whole = quantise(array, self.weights, axes) if axes else quantise_table(array)
            return {path: whole[0], path + SCALE: whole[1]}

        found = {}
        for path, x in here.items():
            if path + SCALE in here and path.startswith(f"{_CONSTANTS}/{_HELD}/"):
                lead = here[path + SCALE].ndim - 2  # of stacked layers
                axes = 0 if path.endswith("embedding") else x.ndim - lead - 1
                spec = jax.ShapeDtypeStruct(float_shape(x), jnp.float32, sharding=x.sharding)
                found[path] = spec, functools.partial(made, path, axes)
        return found

    def called(self, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Calls the model, with whole numbers."""
        if self.is_initializing() and not self.has_variable(_CONSTANTS, _HELD):
            params, axes = self._init(name, args, options)
            params, whole = self.held(params, axes, {})
            for key, tree in params.items():
                self.put_variable("params", key, tree)
            self.put_variable(_CONSTANTS, _HELD, whole)
        whole = self.get_variable(_CONSTANTS, _HELD)
        params = _joined(dict(self.variables.get("params", {})), whole)
        return self._applied(params, whole_layers.computed(self.activations), name, args, options)


class QuantisationAware(_Rounding):
    """A model that is trained as if it were quantised (arXiv:1712.05877).

    Parameters have the model's own paths and are float; kernels and embeddings are rounded in every
    call as `Quantised` holds them, with the gradient as if they were not. `lsm.compress.quantise`
    makes a `Quantised` of a run, which says the same up to rounding.

    Fields and methods of the model are those of this module too.

    Attributes:
      model: the model as it is.
      weights: as in `Quantised`.
      kept: as in `Quantised`.
      activations: "dynamic" as in `Quantised`, or None. What "calibrated" measures is known once a
        run is trained.
    """

    activations: Literal["dynamic"] | None = None

    def __post_init__(self):
        if self.activations is not None:
            require_choice(self, "activations", "dynamic")
        super().__post_init__()

    def called(self, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Calls the model, with what is rounded."""
        if self.is_initializing() and not self.variables.get("params"):
            params, _ = self._init(name, args, options)
            for key, tree in params.items():
                self.put_variable("params", key, tree)
        params = marked(dict(self.variables["params"]), self.rounds)
        return self._applied(params, _rounding(self.weights, self.activations), name, args, options)


def _rounding(weights: Bits, activations: Activations | None) -> Callable[..., Any]:
    """Returns an interceptor, for `nn.intercept_methods`, of layers whose arrays have a mark.

    The array, and where that is asked for the input, are rounded first.
    """

    def rounded(next_fun: Callable, args: Any, options: Any, context: Any) -> Any:
        module, name = context.module, whole_layers.reads(context)
        if name is None or not module.has_variable("params", MARK):
            return next_fun(*args, **options)
        params = {k: v for k, v in module.variables["params"].items() if k != MARK}
        axes = whole_layers.kernel_axes(module)
        params[name] = rounded_kernel(params[name], weights, axes)
        if axes and activations:
            (x,) = (*args, *options.values())  # by its place or its name
            args, options = (fake(x, whole_layers.input_axes(module, x)),), {}
        of = module.clone(parent=None, name=None)
        return of.apply({"params": params}, *args, method=context.method_name, **options)

    return rounded


def _joined(a: Any, b: Any) -> Any:
    """Returns two trees of dicts as one; blocks may be tuples of each block's."""
    if isinstance(a, tuple):
        return tuple(_joined(x, y) for x, y in zip(a, b, strict=True))
    both = {**a, **b}
    return {k: _joined(a[k], b[k]) if k in a and k in b else x for k, x in both.items()}
