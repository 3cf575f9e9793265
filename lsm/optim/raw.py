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

_ALLOWED = "such as optax.adam(1e-3), or a function of the horizon that returns one"
_INJECTED = (optax.InjectHyperparamsState, optax.InjectStatefulHyperparamsState)


@dataclasses.dataclass(frozen=True)
class Raw(Optimizer):
    """A chain that is written in Optax; `update` hands it `value`, the loss of the step.

    Where an optimiser is asked for, an Optax transform is taken for `Raw` of it. Clipping, decay,
    schedule and the sign of the step are its own affair, as are stacks of layers
    (`lsm.optim.unstacked` takes them one by one). Its learning rate is logged where the state has
    it: of `optax.inject_hyperparams`. `config.json` holds what the transform was made with, as far
    as its functions tell, and not what they do; of a function of the horizon the name.

    Attributes:
      chain: the transform; or a function of the horizon (`horizon.steps`, ...) that returns it.
    """

    chain: optax.GradientTransformation | Callable[[Horizon], optax.GradientTransformation]

    def __post_init__(self):
        if not (isinstance(self.chain, optax.GradientTransformation) or callable(self.chain)):
            raise ConfigError(
                f"Raw.chain: {type(self.chain).__name__} given; allowed: a transform of Optax, "
                f"{_ALLOWED}."
            )

    def make(
        self, horizon: Horizon, *, master: bool = False, stacks: Stacks = ()
    ) -> optax.GradientTransformationExtraArgs:
        """See `Optimizer.make`; the chain's state is under "chain"."""
        del stacks
        chain = self.chain
        if not isinstance(chain, optax.GradientTransformation):
            chain = chain(horizon)
        if not isinstance(chain, optax.GradientTransformation):
            raise ConfigError(
                f"Raw.chain: it returned {type(chain).__name__}; a transform of Optax is needed, "
                f"{_ALLOWED}."
            )
        # A dict of one, for "master" to stand beside it.
        transform = optax.named_chain(("chain", chain))
        return keep_master(transform) if master else transform

    def learning_rates(
        self, horizon: Horizon, step: int | jax.Array, opt_state: Any = None
    ) -> dict[str, jax.typing.ArrayLike]:
        """Returns what `optax.inject_hyperparams` has in the state; {} without.

        Several are numbered, "learning_rate/0", in the order of the chain.
        """
        del horizon, step
        nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, _INJECTED))
        found = [n.hyperparams for n in nodes if isinstance(n, _INJECTED)]
        rates = [given["learning_rate"] for given in found if "learning_rate" in given]
        if len(rates) == 1:
            return {"learning_rate": rates[0]}
        return {f"learning_rate/{index}": rate for index, rate in enumerate(rates)}


def as_optimizer(given: Any) -> Any:
    """Returns `Raw` of an Optax transform, and anything else as it is."""
    return Raw(given) if isinstance(given, optax.GradientTransformation) else given
