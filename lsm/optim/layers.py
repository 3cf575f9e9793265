"""Learning rates that fall from the head of a network to its embeddings, for fine-tuning."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from lsm.checks import require, require_pattern
from lsm.errors import ConfigError
from lsm.optim.stacks import Stacks, depth
from lsm.params import flat, matches, path_name, require_match


@dataclasses.dataclass(frozen=True)
class LayerDecay:
    """A factor of the learning rate by layer (BERT's in arXiv:1905.05583, BEiT arXiv:2106.08254).

    Of L layers in a stack, layer i = 0, 1, ... has rate^(L - i), embeddings have rate^(L + 1), and
    all else, such as a head, has 1.

    Attributes:
      rate: factor from one layer to the one below, such as 0.9.
      embeddings: pattern of the parameters below all layers.
    """

    rate: float
    embeddings: str = r"(^|/)(tokens|segments|positions|patches|cls|conv_\d+|norm|norm_\d+)(/|$)"

    def __post_init__(self):
        require(self, rate="(0, 1]")
        require_pattern(self, "embeddings")

    def transform(self, stacks: Stacks) -> optax.GradientTransformation:
        """Returns what scales updates by layer; `stacks` are those of the model's `layout`.

        Raises:
          ConfigError: at `init`, where nothing is stacked, or no parameter is an embedding.
        """

        def layers(tree: optax.Params) -> int:
            stacked = [x for name, x in flat(tree).items() if depth(stacks, name)]
            return max((x.shape[0] for x in stacked), default=0)

        def init(params: optax.Params) -> optax.EmptyState:
            if not layers(params):
                raise ConfigError("LayerDecay: no parameters are stacked layers, which it needs.")
            return optax.EmptyState()

        def update(updates, state, params=None):
            del params
            most = layers(updates)

            def scaled(path, u: jax.Array) -> jax.Array:
                name = path_name(path)
                if depth(stacks, name):
                    factor_L = self.rate ** jnp.arange(len(u), 0, -1, dtype=jnp.float32)
                    return u * factor_L.reshape(-1, *[1] * (u.ndim - 1)).astype(u.dtype)
                return u * self.rate ** (most + 1) if matches(self.embeddings, name) else u

            return jax.tree_util.tree_map_with_path(scaled, updates), state

        return optax.GradientTransformation(init, update)

    def check(self, params: optax.Params) -> None:
        """Checks that there are embeddings, else raises ConfigError."""
        require_match("LayerDecay.embeddings", self.embeddings, params)
