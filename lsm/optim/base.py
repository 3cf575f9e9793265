"""What an optimiser is, and what every algorithm shares: clipping, decay, groups, the schedule.

The transform of an `Algorithm` is a named chain. Its links, of which only those that are needed are
there:

    clip            global norm of the gradients
    decay           before the core: coupled L2; after it: decoupled
    core            the algorithm, without a learning rate
    groups          factors by path
    layer_decay     factors by layer
    learning_rate   -learning_rate * schedule
    plateau         the factor of ReduceOnPlateau
    ema             the average of the parameters

Beside them stand the masks of what is pruned, "prune", and, with `make(..., master=True)`, the
float32 copy of the parameters, "master".

The path of a state leaf that belongs to a parameter ends with the parameter's path: Adam's first
moment of `Dense_0/kernel` is `core/mu/Dense_0/kernel`, its average `ema/average/Dense_0/kernel`.
It has the shape of the parameter, but for Adafactor's moments (`core/0/v_row/...`, `v_col`, `v`,
the unused ones of shape (1,)) and Shampoo's matrices (`core/0/statistics/AXIS/...`, `roots`), which
have the axes of a stack in front. Counters and scales are scalars.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from lsm.checks import require, require_pattern
from lsm.durations import Horizon
from lsm.errors import ConfigError
from lsm.optim.ema import params_ema
from lsm.optim.layers import LayerDecay
from lsm.optim.masks import pruned
from lsm.optim.master import keep_master
from lsm.optim.pruning import Pruning
from lsm.optim.schedules import Constant, Schedule
from lsm.optim.stacks import Stacks, unstacked
from lsm.params import mask, matches, names, path_name, require_match

Link = tuple[str, optax.GradientTransformation]
"""A named transform of the chain."""


class Optimizer(abc.ABC):
    """What an experiment holds: how steps are made from gradients. Subclasses are dataclasses."""

    @abc.abstractmethod
    def make(
        self, horizon: Horizon, *, master: bool = False, stacks: Stacks = ()
    ) -> optax.GradientTransformationExtraArgs:
        """Returns the whole optimiser as an Optax transform.

        Its `update(grads, state, params, value=loss)` returns what to add to the parameters.
        `value` is the loss of the step, and needed by `ReduceOnPlateau` alone; an average takes the
        new `model_state` too, see `lsm.optim.params_ema`.

        Args:
          horizon: what the durations in the schedule are measured against.
          master: keep a float32 master copy of every parameter that is not frozen; `init` takes
            float32 parameters, `update` those of fewer bits (see `lsm.optim.keep_master`).
          stacks: which leading axes are stacks of layers or experts, each of which is a tensor of
            its own, as the model's `layout` says.

        Raises:
          ConfigError: a duration does not fit the run; and, from the transform's `init`, a
            pattern that matches no parameter.
        """

    @abc.abstractmethod
    def learning_rates(
        self, horizon: Horizon, step: int | jax.Array, opt_state: Any = None
    ) -> dict[str, jax.typing.ArrayLike]:
        """Returns the learning rates of `step` by name, float scalars.

        The name is "learning_rate", or begins with "learning_rate/" where there are several.

        Args:
          horizon: what the transform was made with.
          step: number of updates made before.
          opt_state: the transform's state, for the factor of `ReduceOnPlateau`; without it that
            factor is 1.
        """

    @property
    def prunings(self) -> tuple[Pruning, ...]:
        """What is pruned: one for each optimiser in it that prunes."""
        return ()


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters with a learning rate of their own.

    Attributes:
      pattern: regular expression searched for in the parameter path, such as "^head/".
      scale: factor of the learning rate (and with it of decoupled weight decay); 0 freezes.
    """

    pattern: str
    scale: float

    def __post_init__(self):
        require(self, scale="[0, inf)")
        require_pattern(self, "pattern")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Algorithm(Optimizer):
    """Base of the algorithms: a subclass gives `core`, the rest is here.

    Attributes:
      learning_rate: the peak learning rate, above 0.
      schedule: shape of the learning rate over the run, a factor of `learning_rate`.
      clip_norm: largest global norm of the gradients; larger ones are scaled down to it, before
        everything else (Pascanu et al. 2013, arXiv:1211.5063). Frozen parameters do not count.
      weight_decay: strength; whether it is coupled (added to the gradient as L2 regularisation is)
        or decoupled (Loshchilov & Hutter 2019: the parameters shrink by learning rate times
        weight decay) stands in each optimiser's description.
      decay: regular expression searched for in the parameter path: which parameters decay. By
        default kernels and embeddings; biases and the scales of norms do not.
      groups: factors of the learning rate by path; the first that matches wins, and parameters that
        none matches have 1. Frozen ones (0) keep no state and stay the same to the bit.
      layer_decay: factors of the learning rate (and of decoupled decay) that fall from the last
        layer to the first; None is none.
      ema: decay of an exponential moving average of the parameters and of the model state (batch
        norm's statistics), used for evaluation; with its bias corrected as in Adam, so that the
        initial parameters have no share in it.
      prune: what becomes 0 and stays so, in the average too; None is nothing.
    """

    coupled: ClassVar[bool] = False
    """Whether weight decay is added to the gradient, before the core."""

    learning_rate: float
    schedule: Schedule = Constant()
    clip_norm: float | None = None
    weight_decay: float = 0.0
    decay: str = r".*(kernel|embedding)$"
    groups: tuple[Group, ...] = ()
    layer_decay: LayerDecay | None = None
    ema: float | None = None
    prune: Pruning | None = None

    def __post_init__(self):
        require(self, learning_rate="(0, inf)", clip_norm="(0, inf)", weight_decay="[0, inf)")
        require(self, ema="(0, 1)")
        require_pattern(self, "decay")
        if not isinstance(self.schedule, Schedule):
            raise ConfigError(
                f"{type(self).__name__}.schedule: {self.schedule!r} given; allowed: a Schedule."
            )

    @abc.abstractmethod
    def core(self) -> optax.GradientTransformation | None:
        """Returns gradients -> direction, with no learning rate; None: the gradient itself."""

    def direction(self) -> list[Link]:
        """Returns the core and the weight decay, in the order that the algorithm wants."""
        core, decay = self.core(), []
        if self.weight_decay:
            # A function, since Optax masks the tree of updates too, where frozen leaves are hidden.
            chosen = functools.partial(mask, pattern=self.decay)
            decay = [("decay", optax.add_decayed_weights(self.weight_decay, chosen))]
        links = [] if core is None else [("core", core)]
        return decay + links if self.coupled else links + decay

    def _unstacked(
        self, stacks: Stacks, name: str, link: optax.GradientTransformation
    ) -> optax.GradientTransformation:
        """Returns a link of `direction` that takes the layers of a stack one by one."""
        del name
        return unstacked(link, stacks)

    def check(self, params: optax.Params) -> None:
        """Checks that every pattern chooses a parameter, else raises ConfigError."""
        if self.weight_decay:
            require_match(f"{type(self).__name__}.decay", self.decay, params)
        if self.layer_decay is not None:
            self.layer_decay.check(params)
        check_first_matches(
            f"{type(self).__name__}.groups", "Group.pattern", self._patterns(), params
        )

    def make(
        self, horizon: Horizon, *, master: bool = False, stacks: Stacks = ()
    ) -> optax.GradientTransformationExtraArgs:
        """See `Optimizer.make`; the state is a dict of the links."""
        transform = optax.named_chain(*self._links(horizon, stacks))
        # Within the master copies, so that they are 0 too.
        if self.prune is not None:
            transform = pruned(transform, self.prune, horizon, stacks)
        if master:
            transform = keep_master(transform)
        # Around the master copies, so that frozen parameters have none.
        if any(group.scale == 0 for group in self.groups):
            transform = _freeze(transform, lambda name: self._scale(name) == 0)
        return checked(transform, self.check)

    def learning_rates(
        self, horizon: Horizon, step: int | jax.Array, opt_state: Any = None
    ) -> dict[str, jax.typing.ArrayLike]:
        """See `Optimizer.learning_rates`; there is one, before the factors of `groups`."""
        rate = self.learning_rate * self.schedule.shape(horizon)(step)
        if isinstance(opt_state, dict) and "plateau" in opt_state:
            rate *= opt_state["plateau"].scale
        return {"learning_rate": rate}

    @property
    def prunings(self) -> tuple[Pruning, ...]:
        """See `Optimizer.prunings`."""
        return () if self.prune is None else (self.prune,)

    def _links(self, horizon: Horizon, stacks: Stacks) -> list[Link]:
        links: list[Link] = []
        if self.clip_norm is not None:
            links.append(("clip", optax.clip_by_global_norm(self.clip_norm)))
        # Decay that is coupled is not clipped.
        links += [(name, self._unstacked(stacks, name, link)) for name, link in self.direction()]
        # After the decay: a group's factor is for its decoupled decay too.
        if any(group.scale not in (0, 1) for group in self.groups):
            links.append(("groups", _scale_by_path(self._scale)))
        if self.layer_decay is not None:
            links.append(("layer_decay", self.layer_decay.transform(stacks)))
        links.append(("learning_rate", optax.scale_by_learning_rate(self._rate(horizon))))
        plateau = self.schedule.feedback(horizon)
        if plateau is not None:
            links.append(("plateau", plateau))
        # Last, since it takes in the parameters as this update leaves them.
        if self.ema is not None:
            links.append(("ema", params_ema(self.ema)))
        return links

    def _rate(self, horizon: Horizon) -> float | optax.Schedule:
        # A number needs no counter of steps in the state.
        if self.schedule.constant:
            return self.learning_rate
        shape = self.schedule.shape(horizon)
        return lambda step: self.learning_rate * shape(step)

    def _patterns(self) -> list[str]:
        return [group.pattern for group in self.groups]

    def _scale(self, name: str) -> float:
        index = first_match(self._patterns(), name)
        return 1.0 if index is None else self.groups[index].scale


def first_match(patterns: Sequence[str], name: str) -> int | None:
    """Returns the number of the first pattern that is found in the path `name`, or None."""
    return next((i for i, pattern in enumerate(patterns) if matches(pattern, name)), None)


def check_first_matches(
    field: str, pattern_field: str, patterns: Sequence[str], params: optax.Params
) -> None:
    """Checks that every pattern is the first to match some parameter.

    Raises:
      ConfigError: one is not; names `pattern_field` where it matches none, else `field`.
    """
    found = {first_match(patterns, name) for name in names(params)}
    for index, pattern in enumerate(patterns):
        require_match(pattern_field, pattern, params)
        if index not in found:
            kind = pattern_field.partition(".")[0].lower()
            raise ConfigError(
                f"{field}: every parameter that {pattern!r} matches belongs to an earlier {kind}; "
                "the first match wins, so put it before them."
            )


def _scale_by_path(scale) -> optax.GradientTransformation:
    def update(updates, params=None):
        del params
        return jax.tree_util.tree_map_with_path(lambda path, u: scale(path_name(path)) * u, updates)

    return optax.stateless(update)


def _freeze(
    inner: optax.GradientTransformationExtraArgs, frozen
) -> optax.GradientTransformationExtraArgs:
    """Hides the frozen leaves from `inner`, so that it keeps no state for them."""

    def hide(tree):
        # A node without leaves: no `tree.map` of `inner` comes across it.
        return jax.tree_util.tree_map_with_path(
            lambda path, x: optax.MaskedNode() if frozen(path_name(path)) else x, tree
        )

    def update(updates, state, params=None, **extra):
        shown = None if params is None else hide(params)
        new, state = inner.update(hide(updates), state, shown, **extra)
        # Over `updates`, whose leaves are all there; of `new` the hidden ones arrive as they are.
        return jax.tree.map(hold, updates, new), state

    def hold(update, new):
        # Adding -0.0 changes no float at all; adding 0.0 turns -0.0 into 0.0.
        return jnp.full_like(update, -0.0) if isinstance(new, optax.MaskedNode) else new

    return optax.GradientTransformationExtraArgs(lambda params: inner.init(hide(params)), update)


def checked(
    inner: optax.GradientTransformationExtraArgs, check: Callable[[optax.Params], None]
) -> optax.GradientTransformationExtraArgs:
    """Returns `inner` whose `init` calls `check` of the parameters first."""

    def init(params):
        check(params)
        return inner.init(params)

    return optax.GradientTransformationExtraArgs(init, inner.update)
