"""What becomes 0 and when: pruning by magnitude or movement, two of four, or by masks given.

    AdamW(learning_rate=1e-3, prune=Magnitude(sparsity=0.9))

`lsm.optim.masks` has the transform.
"""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lsm.checks import require, require_choice, require_duration, require_pattern
from lsm.durations import Duration, Horizon, to_steps
from lsm.errors import ConfigError
from lsm.optim.smallest import MOST, order, smallest
from lsm.optim.stacks import Stacks, depth
from lsm.params import matches

Arrays = Mapping[str, jax.Array]
"""Arrays by the path of their parameter."""

_MOST_TIMES = 10_000


@dataclasses.dataclass(frozen=True)
class Times:
    """After which updates is pruned: begin, begin + every, ... and end; none where that is None.

    Attributes:
      begin: number of updates made.
      end: likewise; the last time.
      every: updates between two times.
    """

    begin: int = 0
    end: int | None = None
    every: int = 1

    @property
    def count(self) -> int:
        """How many times there are."""
        return 0 if self.end is None else 1 + -(-(self.end - self.begin) // self.every)

    def due(self, updates: jax.Array) -> jax.Array:
        """Returns how many times have come after so many updates, int32."""
        if self.end is None:
            return jnp.zeros_like(updates)
        so_far = jnp.clip((updates - self.begin) // self.every + 1, 0, self.count - 1)
        return jnp.where(updates >= self.end, self.count, so_far)

    @property
    def progress(self) -> np.ndarray:
        """The share of the way from begin to end at each time, float64 in [0, 1]."""
        if self.end is None or self.count == 1:
            return np.ones(self.count)
        passed = np.minimum(np.arange(self.count) * self.every, self.end - self.begin)
        return passed / (self.end - self.begin)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pruning(abc.ABC):
    """Weights that become 0 and stay so; subclasses say which, and when.

    A weight that is 0 once is 0 after every later update, in the average and in the float32 master
    copy too, and has no gradient.

    Attributes:
      pattern: regular expression searched for in the parameter path: what is pruned. By default
        kernels: of dense layers, convolutions, recurrences and blocks, the head's too; not biases,
        norms, embeddings and learned positions. Frozen parameters are left as they are.
    """

    scored: ClassVar[bool] = False
    """Whether `masks` reads scores, which then are kept."""

    pattern: str = r"kernel$"

    def __post_init__(self):
        require_pattern(self, "pattern")

    @abc.abstractmethod
    def times(self, horizon: Horizon) -> Times:
        """Returns when is pruned; raises ConfigError where the run is too short for it."""

    @abc.abstractmethod
    def masks(
        self, number: jax.Array, times: Times, masks: Arrays, values: Arrays, stacks: Stacks
    ) -> dict[str, jax.Array]:
        """Returns the masks after the `number`-th time, bool: False is 0.

        Args:
          number: from 1 on, int32 scalar.
          times: what `times` returned.
          masks: those before.
          values: the weights, float32; scores where `scored`.
          stacks: which leading axes are stacks of layers or experts.
        """

    def prunes(self, name: str, shape: tuple[int, ...]) -> bool:
        """Returns whether the parameter of this path and shape is pruned."""
        del shape
        return matches(self.pattern, name)

    def check(self, shapes: Mapping[str, tuple[int, ...]], stacks: Stacks) -> None:
        """Raises ConfigError where parameters of these shapes cannot be pruned so."""
        del shapes, stacks


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Gradual(Pruning):
    """Pruning of the smallest, more and more of them.

    After the time t the share of zeros is, of each layer or of all weights, rounded down,

        s_t = sparsity + (initial - sparsity) (1 - (t - begin) / (end - begin))^3

    (Zhu & Gupta 2017, arXiv:1710.01878). Of weights that are equal some go first, always the same.

    Attributes:
      sparsity: share of zeros in the end.
      scope: whether weights are compared with those of their own "layer" (of each layer of a stack,
        of each expert), which then all have this share; or with all, "global".
      initial: share of zeros at the beginning.
      begin: when pruning begins.
      end: when it ends; what is left of the run is for the rest to recover.
      every: time from one pruning to the next.
    """

    sparsity: float
    scope: Literal["global", "layer"] = "global"
    initial: float = 0.0
    begin: Duration = "20%"
    end: Duration = "70%"
    every: Duration = "1%"

    def __post_init__(self):
        super().__post_init__()
        require(self, sparsity="[0, 1)", initial="[0, 1)")
        require_choice(self, "scope", "global", "layer")
        require_duration(self, "begin", self.begin, zero=True)
        require_duration(self, "end", self.end, zero=True)
        require_duration(self, "every", self.every)
        if self.initial > self.sparsity:
            raise ConfigError(
                f"{type(self).__name__}.initial: {self.initial} given; allowed: up to sparsity, "
                f"{self.sparsity}."
            )

    def times(self, horizon: Horizon) -> Times:
        """See `Pruning.times`."""
        own = type(self).__name__
        end = _within(horizon, self.end, f"{own}.end")
        begin = to_steps(self.begin, horizon, f"{own}.begin")
        if begin > end:
            raise ConfigError(
                f"{own}.begin: {self.begin!r} given, step {begin}, which is after the end, {end}."
            )
        times = Times(begin, end, to_steps(self.every, horizon, f"{own}.every"))
        if times.count > _MOST_TIMES:
            raise ConfigError(
                f"{own}.every: {self.every!r} given, which prunes {times.count:,} times; allowed: "
                f"{_MOST_TIMES:,} or fewer."
            )
        return times

    def masks(
        self, number: jax.Array, times: Times, masks: Arrays, values: Arrays, stacks: Stacks
    ) -> dict[str, jax.Array]:
        """See `Pruning.masks`."""
        # What is 0 comes before everything else, so that it is counted, and stays.
        keys = {
            name: jnp.where(mask, order(self.size(values[name])) + jnp.uint32(1), jnp.uint32(0))
            for name, mask in masks.items()
        }
        chosen: dict[str, jax.Array] = {}
        for names, n in self._compared({name: key.shape for name, key in keys.items()}, stacks):
            count = jnp.asarray(self.zeros(times, n))[number - 1]
            levels = depth(stacks, names[0]) if self.scope == "layer" else 0
            found = smallest([keys[name] for name in names], count, levels)
            chosen |= dict(zip(names, found, strict=True))
        return {name: mask & ~chosen[name] for name, mask in masks.items()}

    def zeros(self, times: Times, n: int) -> np.ndarray:
        """Returns how many of n weights are 0 after each time, int32."""
        shares = self.sparsity + (self.initial - self.sparsity) * (1 - times.progress) ** 3
        # 0.57 x 100 is 56.99999999999999.
        return np.floor(np.round(shares * n, 6)).astype(np.int32)

    @staticmethod
    def size(values: jax.Array) -> jax.Array:
        """Returns what the smallest go first by."""
        return values

    def check(self, shapes: Mapping[str, tuple[int, ...]], stacks: Stacks) -> None:
        """See `Pruning.check`."""
        for names, n in self._compared(shapes, stacks):
            if n > MOST:
                raise ConfigError(
                    f"{type(self).__name__}.scope: {self.scope!r} compares {n:,} weights "
                    f"({names[0]!r}, ...); allowed: {MOST:,} or fewer."
                )

    def _compared(
        self, shapes: Mapping[str, tuple[int, ...]], stacks: Stacks
    ) -> list[tuple[list[str], int]]:
        """Returns the names of what is compared with each other, and how many weights those are."""
        if self.scope == "global":
            return [(list(shapes), sum(map(math.prod, shapes.values())))]
        return [([name], math.prod(shape[depth(stacks, name) :])) for name, shape in shapes.items()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Magnitude(_Gradual):
    """Prunes the weights of the smallest magnitude, |w| (Han et al. 2015, arXiv:1506.02626)."""

    @staticmethod
    def size(values: jax.Array) -> jax.Array:
        """Returns |w|."""
        return jnp.abs(values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Movement(_Gradual):
    """Prunes the weights that move towards 0: of the lowest score, -sum of w x gradient.

    Sanh et al. 2020 (arXiv:2005.07683), who mean fine-tuning: there magnitudes are those of the
    pretraining. The sum is over all updates so far, of the mean gradients as they come. There a
    weight's value is kept behind its mask and may come back; here it is 0, and does not.
    """

    scored: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoOfFour(Pruning):
    """Keeps the two largest, by |w|, of every four consecutive inputs of a kernel's output.

    Half of the weights, in the form that tensor cores skip (Mishra et al. 2021, arXiv:2104.08378).
    Inputs are the last axis but one of a kernel; of a convolution, the channels. Kernels whose
    inputs are no multiple of four, such as a first convolution's, stay whole.

    Attributes:
      begin: when they are pruned, all at once.
    """

    begin: Duration = 0

    def __post_init__(self):
        super().__post_init__()
        require_duration(self, "begin", self.begin, zero=True)

    def times(self, horizon: Horizon) -> Times:
        """See `Pruning.times`."""
        begin = _within(horizon, self.begin, "TwoOfFour.begin")
        return Times(begin, begin)

    def prunes(self, name: str, shape: tuple[int, ...]) -> bool:
        """See `Pruning.prunes`."""
        return super().prunes(name, shape) and len(shape) > 1 and shape[-2] % 4 == 0

    def masks(
        self, number: jax.Array, times: Times, masks: Arrays, values: Arrays, stacks: Stacks
    ) -> dict[str, jax.Array]:
        """See `Pruning.masks`."""
        del number, times, stacks
        return {name: mask & _two_of_four(values[name]) for name, mask in masks.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedMasks(Pruning):
    """Prunes what `Experiment.start` says by its `masks`, from the first step on, and no more."""

    def times(self, horizon: Horizon) -> Times:
        """See `Pruning.times`."""
        del horizon
        return Times()

    def masks(
        self, number: jax.Array, times: Times, masks: Arrays, values: Arrays, stacks: Stacks
    ) -> dict[str, jax.Array]:
        """See `Pruning.masks`; it is never time."""
        del number, times, values, stacks
        return dict(masks)


def _within(horizon: Horizon, duration: Duration, field: str) -> int:
    """Returns a duration in steps; raises ConfigError where the run is over by then."""
    steps = to_steps(duration, horizon, field)
    if steps > horizon.steps:
        raise ConfigError(
            f"{field}: {duration!r} given, step {steps}; allowed: up to {horizon.steps}, the run's "
            "last."
        )
    return steps


def _two_of_four(kernel: jax.Array) -> jax.Array:
    """Returns where weights (..., I, O) are the two largest of four inputs; the first if equal."""
    *before, inputs, outputs = kernel.shape
    x = jnp.abs(kernel).reshape(*before, inputs // 4, 4, outputs)
    one, other = x[..., :, None, :], x[..., None, :, :]
    earlier = jnp.arange(4)[:, None] > jnp.arange(4)  # (one, other): whether other comes first
    larger = (other > one) | ((other == one) & earlier[..., None])
    return (larger.sum(-2) < 2).reshape(kernel.shape)
