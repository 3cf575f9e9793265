"""Several optimisers, each for the parameters of some paths."""

import dataclasses
import itertools
import re
from typing import Any

import jax
import optax

from lsm.checks import require_pattern
from lsm.durations import Horizon
from lsm.errors import ConfigError, listed
from lsm.optim.base import Optimizer, check_first_matches, checked, first_match
from lsm.optim.pruning import Pruning
from lsm.optim.raw import as_optimizer
from lsm.optim.stacks import Stacks
from lsm.params import names, path_name


@dataclasses.dataclass(frozen=True)
class Part:
    """Parameters with an optimiser of their own.

    Attributes:
      pattern: regular expression searched for in the parameter path, such as "^generator/".
      optimizer: what updates them; it sees no other parameters.
    """

    pattern: str
    optimizer: Optimizer

    def __post_init__(self):
        require_pattern(self, "pattern")
        object.__setattr__(self, "optimizer", as_optimizer(self.optimizer))
        if not isinstance(self.optimizer, Optimizer):
            raise ConfigError(
                f"Part.optimizer: {self.optimizer!r} given; allowed: an Optimizer, such as Adam."
            )


@dataclasses.dataclass(frozen=True, init=False)
class Partition(Optimizer):
    """Several optimisers by path: `Partition(("^generator/", Adam(...)), (".*", SGD(...)))`.

    A parameter belongs to the first part whose pattern matches, and there must be one. Each part
    has its own schedule, clipping, decay, groups, average and pruning, and counts its own
    parameters only.

    Attributes:
      parts: (pattern, optimiser) each; a plain pair is made a `Part`.
    """

    parts: tuple[Part, ...]

    def __init__(self, *pairs: Part | tuple[str, Optimizer], parts: tuple[Part, ...] = ()):
        """Takes the parts one by one, or all as `parts`."""
        # `dataclasses.replace`, by which overrides are put in, gives `parts` by name.
        parts = tuple(map(_part, (*pairs, *parts)))
        if not parts:
            raise ConfigError("Partition.parts: none given; allowed: at least one.")
        object.__setattr__(self, "parts", parts)

    def check(self, params: optax.Params) -> None:
        """Checks that every part has parameters, and every parameter a part."""
        patterns = self._patterns()
        check_first_matches("Partition.parts", "Part.pattern", patterns, params)
        alone = [name for name in names(params) if first_match(patterns, name) is None]
        if alone:
            raise ConfigError(
                f"Partition.parts: no pattern matches {listed(alone)}; a last part with the "
                "pattern '.*' takes the rest."
            )

    def make(
        self, horizon: Horizon, *, master: bool = False, stacks: Stacks = ()
    ) -> optax.GradientTransformationExtraArgs:
        """See `Optimizer.make`; the state of part i is under "inner_states/i/inner_state"."""
        # Numbered, not named: a name in the path could match the sharding rule of another part.
        transforms = {
            str(index): _within(
                f"Partition.parts.{index}",
                part.optimizer.make(horizon, master=master, stacks=stacks),
            )
            for index, part in enumerate(self.parts)
        }
        return checked(optax.partition(transforms, self._labels), self.check)

    def learning_rates(
        self, horizon: Horizon, step: int | jax.Array, opt_state: Any = None
    ) -> dict[str, jax.typing.ArrayLike]:
        """Returns those of the parts, "learning_rate/generator" for the pattern "^generator/"."""
        rates = {}
        for index, (name, part) in enumerate(zip(self._names(), self.parts, strict=True)):
            state = None
            if opt_state is not None:
                # As `optax.partition` nests them.
                state = opt_state.inner_states[str(index)].inner_state
            for key, rate in part.optimizer.learning_rates(horizon, step, state).items():
                rates[f"learning_rate/{name}{key.removeprefix('learning_rate')}"] = rate
        return rates

    @property
    def prunings(self) -> tuple[Pruning, ...]:
        """See `Optimizer.prunings`."""
        return tuple(one for part in self.parts for one in part.optimizer.prunings)

    def _patterns(self) -> list[str]:
        return [part.pattern for part in self.parts]

    def _labels(self, tree: optax.Params) -> optax.Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: str(first_match(self._patterns(), path_name(path))), tree
        )

    def _names(self) -> list[str]:
        """Returns the words of each pattern, and a number behind them where others have them."""
        names: list[str] = []
        for pattern in self._patterns():
            # Without the signs of regular expressions: "^(a|b)/kernel$" is "a-b-kernel".
            words = [word.strip("/") for word in re.findall(r"[\w/]+", pattern)]
            name = "-".join(filter(None, words)) or "rest"
            found = itertools.chain([name], (f"{name}_{i}" for i in itertools.count(2)))
            names.append(next(name for name in found if name not in names))
        return names


def _part(given: Any) -> Part:
    if isinstance(given, Part):
        return given
    if isinstance(given, tuple | list) and len(given) == 2:
        return Part(*given)
    raise ConfigError(f"Partition.parts: {given!r} given; allowed: a pair (pattern, Optimizer).")


def _within(
    field: str, inner: optax.GradientTransformationExtraArgs
) -> optax.GradientTransformationExtraArgs:
    """Returns `inner` whose errors at `init` begin with `field`."""

    def init(params):
        try:
            return inner.init(params)
        except ConfigError as error:
            raise ConfigError(f"{field}: {error}") from error

    return optax.GradientTransformationExtraArgs(init, inner.update)
