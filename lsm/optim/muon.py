"""Muon: momentum whose matrices are made orthogonal; everything else by AdamW."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import optax

from lsm.checks import require, require_pattern
from lsm.durations import Horizon
from lsm.errors import ConfigError
from lsm.optim.base import Algorithm, Link
from lsm.optim.stacks import Stacks, depth
from lsm.params import matches, path_name, require_match

Dimensions = optax.contrib.MuonDimensionNumbers

_BY_RANK = {
    2: Dimensions((0,), (1,)),  # dense (in, out)
    3: Dimensions((1,), (2,)),  # scanned dense (layer, in, out)
    4: Dimensions((0, 1, 2), (3,)),  # convolution (height, width, in, out)
    5: Dimensions((1, 2, 3), (4,)),  # scanned convolution
}


@dataclasses.dataclass(frozen=True)
class MatrixAxes:
    """How a parameter is read as a matrix, or as a stack of matrices.

    Attributes:
      pattern: regular expression searched for in the parameter path.
      inputs: axes that the layer sums over.
      outputs: axes of the layer's result. Axes in neither (layers, heads) stack matrices.
    """

    pattern: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def __post_init__(self):
        require_pattern(self, "pattern")
        if not self.inputs or not self.outputs or set(self.inputs) & set(self.outputs):
            raise ConfigError(
                f"MatrixAxes: inputs={self.inputs}, outputs={self.outputs} given; allowed: "
                "different axes, at least one of each."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(Algorithm):
    """Muon: w <- w - lr (scale orthogonal(momentum) + weight_decay w) for matrices; else AdamW.

    Jordan 2024, kellerjordan.github.io/posts/muon; "orthogonal" is five Newton-Schulz iterations,
    by `optax.contrib.scale_by_muon`, which corrects the momentum's bias. Weight decay is decoupled.

    With `rms` a matrix moves as far as under AdamW (Liu et al. 2025, arXiv:2502.16982), so one
    learning rate, AdamW's, serves all parameters. Without, it is scaled by
    sqrt(max(1, outputs / inputs)) as Jordan's, and wants a learning rate near 0.02, with `groups`
    that give the others a smaller one.

    Attributes:
      beta: decay of the momentum.
      nesterov: whether the momentum looks one step ahead.
      iterations: of Newton-Schulz.
      rms: root mean square of a matrix's direction; None scales as Jordan's.
      normalised: whether each matrix is brought to the norm sqrt(outputs) before it moves, as
        airbench94 does; its size then says nothing, and weight decay little.
      matrices: regular expression searched for in the path: which parameters are matrices. The
        last layer is one by this default; Jordan leaves it to AdamW.
      axes: how they are read, the first match first. By default the last axis is the output; of
        rank 2 and 4 (dense, convolution) the others are the input; rank 3 and 5 are stacks of these
        along a leading axis, as `nn.scan` makes them. Axes that the model's `layout` calls stacks
        are in front of these defaults; a `MatrixAxes` counts them too.
      adam_b1: AdamW's decay of the mean of gradients.
      adam_b2: AdamW's decay of the mean of their squares.
      adam_eps: AdamW's eps.
    """

    beta: float = 0.95
    nesterov: bool = True
    iterations: int = 5
    rms: float | None = 0.2
    normalised: bool = False
    matrices: str = r"kernel$"
    axes: tuple[MatrixAxes, ...] = ()
    adam_b1: float = 0.9
    adam_b2: float = 0.999
    adam_eps: float = 1e-8

    def __post_init__(self):
        super().__post_init__()
        require(self, beta="[0, 1)", iterations="[1, inf)", adam_eps="(0, inf)")
        require(self, adam_b1="[0, 1)", adam_b2="[0, 1)")
        require_pattern(self, "matrices")
        if self.rms is not None:
            require(self, rms="(0, inf)")

    def check(self, params: optax.Params) -> None:
        """Checks also that there are matrices, and that `axes` fit them."""
        super().check(params)
        require_match("Muon.matrices", self.matrices, params)
        for axes in self.axes:
            require_match("MatrixAxes.pattern", axes.pattern, params)

    def _links(self, horizon: Horizon, stacks: Stacks) -> list[Link]:
        """See `Algorithm._links`."""
        links = super()._links(horizon, stacks)
        if not self.normalised:
            return links
        # An average takes in what the others leave.
        behind = links.pop() if self.ema is not None else None
        links.append(("normalise", optax.stateless(functools.partial(self._normalise, stacks))))
        return links if behind is None else [*links, behind]

    def _normalise(
        self, stacks: Stacks, updates: optax.Updates, params: optax.Params
    ) -> optax.Updates:
        """Returns `updates` and what else brings the matrices to the norm sqrt(outputs)."""

        def add(path, update, x):
            dimensions = self._dimensions(name := path_name(path), x, depth(stacks, name))
            if dimensions is None:
                return update
            axes = (*dimensions.reduction_axis, *dimensions.output_axis)
            outputs = math.prod(x.shape[axis] for axis in dimensions.output_axis)
            square = jnp.square(x.astype(jnp.float32)).sum(axes, keepdims=True)
            factor = math.sqrt(outputs) * jax.lax.rsqrt(jnp.maximum(square, 1e-20))
            return update + ((factor - 1) * x).astype(update.dtype)

        return jax.tree_util.tree_map_with_path(add, updates, params)

    def core(self) -> optax.GradientTransformation:
        """Returns Muon for the matrices and Adam for the others."""
        return self._core(())

    def _unstacked(
        self, stacks: Stacks, name: str, link: optax.GradientTransformation
    ) -> optax.GradientTransformation:
        """See `Algorithm._unstacked`; Optax's Muon needs to be told the axes only."""
        return self._core(stacks) if name == "core" else super()._unstacked(stacks, name, link)

    def _core(self, stacks: Stacks) -> optax.GradientTransformation:
        def dimensions_of(name: str, x: jax.Array) -> Dimensions | None:
            return self._dimensions(name, x, depth(stacks, name))

        # Optax calls it with trees of the matrices alone: the others are masked, and have no leaf.
        dimensions = functools.partial(self._map, dimensions_of)
        muon = optax.contrib.scale_by_muon(
            ns_steps=self.iterations,
            beta=self.beta,
            nesterov=self.nesterov,
            weight_dimension_numbers=dimensions,
        )
        # After the iterations, which forget the size of what they are given.
        scale = optax.stateless(
            lambda updates, _: jax.tree.map(self._scaled, updates, dimensions(updates))
        )
        adam = optax.scale_by_adam(self.adam_b1, self.adam_b2, self.adam_eps)

        def label(name: str, x: jax.Array) -> str:
            return "adam" if dimensions_of(name, x) is None else "muon"

        return optax.partition(
            {"muon": optax.chain(muon, scale), "adam": adam}, functools.partial(self._map, label)
        )

    def _map(self, function, tree: optax.Params):
        return jax.tree_util.tree_map_with_path(lambda path, x: function(path_name(path), x), tree)

    def _dimensions(self, name: str, x: jax.Array, stacked: int) -> Dimensions | None:
        """Returns the axes of a matrix, None of what is no matrix."""
        if not matches(self.matrices, name):
            return None
        for axes in self.axes:
            if matches(axes.pattern, name):
                return Dimensions(axes.inputs, axes.outputs)
        if x.ndim - stacked not in _BY_RANK:
            raise ConfigError(
                f"Muon.axes: {name!r} has shape {x.shape}, which has no default; add a "
                "MatrixAxes(pattern, inputs, outputs), or leave it to AdamW by Muon.matrices."
            )
        return Dimensions(
            *(tuple(a + stacked for a in axes) for axes in _BY_RANK[x.ndim - stacked])
        )

    def _scaled(self, update: jax.Array, dimensions: Dimensions) -> jax.Array:
        inputs = math.prod(update.shape[axis] for axis in dimensions.reduction_axis)
        outputs = math.prod(update.shape[axis] for axis in dimensions.output_axis)
        if self.rms is None:
            return update * math.sqrt(max(1, outputs / inputs))
        # Singular values of 1 make a root mean square of 1 / sqrt(max): Liu et al., lemma 1.
        return update * (self.rms * math.sqrt(max(inputs, outputs)))
