"""Units of a model, such as filters and heads, and the arrays that they lie in: a table a model."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lsm.errors import ConfigError, listed
from lsm.models import (
    BERT,
    CNN,
    GPT,
    MLP,
    Airbench,
    Classifier,
    Embedder,
    MaskedLM,
    ResNet,
    TokenClassifier,
    Transformer,
    Views,
    ViT,
)
from lsm.models.transformer import GATED

Kind = Literal["filters", "heads", "hidden"]
Shares = Mapping[Kind, float]
"""Of each kind, the share that stays."""

_KNOWN = (MLP, CNN, Airbench, ResNet, ViT, GPT, BERT)


@dataclasses.dataclass(frozen=True)
class Part:
    """Where the units of a layer lie in one array.

    Attributes:
      path: of the array, "params/Dense_0/kernel", "batch_stats/BatchNorm_0/mean".
      axis: along which, counted from the last, -1; what is longer than the units are repeats.
      size: entries of one unit, one after the other.
      factor: what is left of the array is multiplied by it.
    """

    path: str
    axis: int = -1
    size: int = 1
    factor: float = 1.0

    def split(self, x: jax.Array, count: int) -> tuple[jax.Array, int]:
        """Returns `x` with an axis of `count` units, and the number of that axis."""
        axis = x.ndim + self.axis
        return x.reshape(*x.shape[:axis], -1, count, self.size, *x.shape[axis + 1 :]), axis + 1

    def squares(self, x: jax.Array, count: int) -> jax.Array:
        """Returns the sum of the squares of each unit, float32 (count,)."""
        split, axis = self.split(x.astype(jnp.float32), count)
        return jnp.square(split).sum([i for i in range(split.ndim) if i != axis])

    def cut(self, x: jax.Array, kept: jax.Array, count: int) -> jax.Array:
        """Returns `x` with the units of these numbers alone."""
        split, axis = self.split(x, count)
        taken = jnp.take(split, kept, axis)
        at = x.ndim + self.axis
        return (taken * self.factor).reshape(*x.shape[:at], -1, *x.shape[at + 1 :]).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Units:
    """The units of one layer, or of every layer of a stack.

    Attributes:
      kind: what they are.
      count: how many there are.
      kept: how many stay.
      parts: where they lie.
      stacked: whether the arrays have a leading layer axis, each layer of which has its own units.
    """

    kind: Kind
    count: int
    kept: int
    parts: tuple[Part, ...]
    stacked: bool = False

    def each(self, function: Callable) -> Callable:
        """Returns `function` of arrays of one layer as one of all layers that are stacked."""
        return jax.vmap(function) if self.stacked else function

    def largest(self, arrays: Mapping[str, jax.Array]) -> jax.Array:
        """Returns the numbers, in order, of the units that stay: (kept,), or (L, kept)."""
        squares = [
            self.each(partial(part.squares, count=self.count))(arrays[part.path])
            for part in self.parts
            if part.path.endswith("/kernel")
        ]
        return jnp.sort(jnp.argsort(-sum(squares), stable=True)[..., : self.kept])


def left(count: int, share: float) -> int:
    """Returns how many of `count` units are left: the share, rounded, one at least."""
    return max(1, round(count * share))


def shrunk(model: Any, shares: Shares) -> tuple[Any, list[Units]]:
    """Returns the smaller model, and what is cut.

    Args:
      model: a Linen module: MLP, CNN, Airbench, ResNet, ViT, GPT, or BERT with or without a head.
      shares: of each kind of unit, the share that stays.

    Raises:
      ConfigError: no table has the model, or what it consists of.
    """
    match model:
        case MLP(widths=widths):
            units = _dense(widths, shares)
            return replace(model, widths=_kept(units)), units
        case CNN():
            return _cnn(model, shares)
        case Airbench():
            return _airbench(model, shares)
        case ResNet():
            return _resnet(model, shares)
        case ViT() | GPT() | BERT():
            transformer, units = _blocks(model.transformer, shares)
            return replace(model, transformer=transformer), units
        # Their parameters lie beside those of what they hold.
        case Classifier() | TokenClassifier() | MaskedLM() | Embedder():
            encoder, units = shrunk(model.encoder, shares)
            return replace(model, encoder=encoder), units
        case Views():
            inner, units = shrunk(model.model, shares)
            return replace(model, model=inner), units
    raise ConfigError(
        f"shrink: {type(model).__name__} given; allowed: {listed(c.__name__ for c in _KNOWN)}, "
        "BERT's heads and Views of them."
    )


def _kept(units: list[Units]) -> tuple[int, ...]:
    return tuple(of.kept for of in units)


def _dense(widths: tuple[int, ...], shares: Shares) -> list[Units]:
    """Returns the hidden units of dense layers that read each other."""
    units = []
    for number, width in enumerate(widths):
        here, after = f"params/Dense_{number}", f"params/Dense_{number + 1}"
        parts = (Part(f"{here}/kernel"), Part(f"{here}/bias"), Part(f"{after}/kernel", -2))
        units.append(Units("hidden", width, left(width, shares["hidden"]), parts))
    return units


def _norm(name: str, scale: bool = True) -> list[Part]:
    stats = [Part(f"batch_stats/{name}/mean"), Part(f"batch_stats/{name}/var")]
    return [*([Part(f"params/{name}/scale")] if scale else []), Part(f"params/{name}/bias"), *stats]


def _cnn(model: CNN, shares: Shares) -> tuple[CNN, list[Units]]:
    widths, filters = [width for width in model.widths for _ in range(model.convs)], []
    for number, width in enumerate(widths):
        bias = [Part(f"params/Bias_{number}/bias")]
        beside = _norm(f"BatchNorm_{number}") if model.batch_norm else bias
        # Where the picture is flattened, each filter has an input for every pixel.
        after = f"Conv_{number + 1}" if number + 1 < len(widths) else "Dense_0"
        parts = (Part(f"params/Conv_{number}/kernel"), *beside, Part(f"params/{after}/kernel", -2))
        filters.append(Units("filters", width, left(width, shares["filters"]), parts))
    hidden = _dense(model.hidden, shares)
    fields = {"widths": _kept(filters)[:: model.convs], "hidden": _kept(hidden)}
    return replace(model, **fields), filters + hidden


def _airbench(model: Airbench, shares: Shares) -> tuple[Airbench, list[Units]]:
    widths, units = [width for width in model.widths for _ in range(2)], []
    for number, width in enumerate(widths):
        kept = left(width, shares["filters"])
        after = Part(f"params/conv_{number + 1}/kernel", -2)
        if number + 1 == len(widths):
            after = Part("params/head/kernel", -2, factor=kept / width)  # it divides by its inputs
        parts = (Part(f"params/conv_{number}/kernel"), *_norm(f"norm_{number}", scale=False), after)
        units.append(Units("filters", width, kept, parts))
    return replace(model, widths=_kept(units)[::2]), units


def _resnet(model: ResNet, shares: Shares) -> tuple[ResNet, list[Units]]:
    """Filters within blocks: what blocks give is added up, and stays as wide as it is."""
    units = []
    for stage, (depth, width) in enumerate(zip(model.depths, model.within, strict=True), 1):
        for block in range(depth):
            for number in (1, 2) if model.bottleneck else (1,):
                at = f"stage_{stage}_block_{block}"
                parts = (
                    Part(f"params/{at}/conv_{number}/kernel"),
                    *_norm(f"{at}/norm_{number}"),
                    Part(f"params/{at}/conv_{number + 1}/kernel", -2),
                )
                units.append(Units("filters", width, left(width, shares["filters"]), parts))
    inner = tuple(left(width, shares["filters"]) for width in model.within)
    return replace(model, inner=inner), units


def _blocks(config: Transformer, shares: Shares) -> tuple[Transformer, list[Units]]:
    """Groups of heads with the key and value that they share, and hidden units of the MLP."""
    groups, queries, size = config.groups
    kept = left(groups, shares["heads"])
    parts = [
        *_reads(config, "qkv", (queries + 2) * size, reads=True),
        _writes("out", queries * size),
    ]
    units = [Units("heads", groups, kept, tuple(parts), stacked=True)]
    fields = {"heads": kept * queries, "head_width": size}
    if config.kv_heads is not None:
        fields["kv_heads"] = kept
    if config.experts is None:
        width, names = config.hidden or 4 * config.width, ("up", "gate")
        kept = left(width, shares["hidden"])
        inputs = [_reads(config, name) for name in (names if config.mlp in GATED else names[:1])]
        parts = (*itertools.chain(*inputs), _writes("down"))
        units.append(Units("hidden", width, kept, parts, stacked=True))
        fields["hidden"] = kept
    return replace(config, **fields), units


def _reads(config: Transformer, name: str, size: int = 1, reads: bool = False) -> list[Part]:
    """Returns where units lie in a dense layer that reads the residual stream."""
    biased = config.dense(1, name, reads=reads).use_bias
    return [Part(f"params/blocks/{name}/{x}", -1, size) for x in ("kernel", *["bias"] * biased)]


def _writes(name: str, size: int = 1) -> Part:
    return Part(f"params/blocks/{name}/kernel", -2, size)
