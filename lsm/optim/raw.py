"""Any Optax transform as the optimiser of an experiment."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from lsm.durations import Horizon
from lsm.errors import ConfigError
from lsm.optim.base import Optimizer
from lsm.optim.master import keep_master
from lsm.optim.stacks import Stacks

_EXAMPLE = "such as lambda horizon: optax.adam(1e-3)"


@dataclasses.dataclass(frozen=True)
class Raw(Optimizer):
    """A chain that is written in Optax; `update` hands it `value`, the loss of the step.

    Clipping, decay, schedule and the sign of the step are its own affair, as are stacks of layers
    (`lsm.optim.unstacked` takes them one by one); and its learning rate is not logged.
    `config.json` holds the function's name, not what it does.

    Attributes:
      chain: function of the horizon (`horizon.steps`, ...) that returns the transform.
    """

    chain: Callable[[Horizon], optax.GradientTransformation]

    def __post_init__(self):
        if not callable(self.chain):
            raise ConfigError(
                f"Raw.chain: {type(self.chain).__name__} given; allowed: a function of the "
                f"horizon, {_EXAMPLE}."
            )

    def make(
        self, horizon: Horizon, *, master: bool = False, stacks: Stacks = ()
    ) -> optax.GradientTransformationExtraArgs:
        """See `Optimizer.make`; the chain's state is under "chain"."""
        del stacks
        chain = self.chain(horizon)
        if not isinstance(chain, optax.GradientTransformation):
            raise ConfigError(
                f"Raw.chain: it returned {type(chain).__name__}; an optax.GradientTransformation "
                f"is needed, {_EXAMPLE}."
            )
        # A dict of one, for "master" to stand beside it.
        transform = optax.named_chain(("chain", chain))
        return keep_master(transform) if master else transform

    def learning_rates(
        self, horizon: Horizon, step: int | jax.Array, opt_state: Any = None
    ) -> dict[str, jax.typing.ArrayLike]:
        """Returns {}: what the learning rate is, only the chain knows."""
        del horizon, step, opt_state
        return {}
