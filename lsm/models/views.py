"""Test-time augmentation: what a model says of several views of a picture, averaged."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsm.checks import require_sizes
from lsm.errors import ConfigError
from lsm.mesh import Layout
from lsm.models.around import Around


class Views(nn.Module):
    """Mirrors and shifts pictures in evaluation, and averages the logits; training is the model's.

    Six views (Jordan 2024, arXiv:2404.00498, section 3.5): the picture with weight 1/2, and with
    1/4 each, shifted up and to the left, and down and to the right, the border reflected; of each
    the mean with its mirror image. Parameters have the paths of the model's own.

    Attributes:
      model: maps pictures (B, H, W, C) to logits (B, K).
      shift: pixels.
      mirror: whether the mirror image is a view; of digits it is none.
    """

    model: nn.Module
    shift: int = 1
    mirror: bool = True

    def __post_init__(self):
        require_sizes(self, "shift")
        if isinstance(self.model, Around):
            kind = type(self.model).__name__
            raise ConfigError(f"Views.model: {kind} given; allowed: {kind} around Views instead.")
        super().__post_init__()

    def setup(self):
        """Shares the model's scope."""
        nn.share_scope(self, self.model)

    @property
    def layout(self) -> Layout:
        """The model's own."""
        return getattr(self.model, "layout", Layout())

    @property
    def outputs(self) -> int | None:
        """The model's own."""
        return getattr(self.model, "outputs", None)

    def __call__(self, x_BxHxWxC: jax.Array, train: bool = False) -> jax.Array:
        """Maps (B, H, W, C) to logits (B, K)."""
        if train:
            return self.model(x_BxHxWxC, train=True)
        (_, h, w, _), s = x_BxHxWxC.shape, 2 * self.shift
        padded = jnp.pad(x_BxHxWxC, ((0, 0), *[(self.shift,) * 2] * 2, (0, 0)), "reflect")
        # The picture itself first: who asks for what layers give takes their first call.
        plain = self._seen(x_BxHxWxC)
        shifted = self._seen(padded[:, :h, :w]) + self._seen(padded[:, s:, s:])
        return plain / 2 + shifted / 4

    def _seen(self, x_BxHxWxC: jax.Array) -> jax.Array:
        logits_BxK = self.model(x_BxHxWxC, train=False)
        if not self.mirror:
            return logits_BxK
        return (logits_BxK + self.model(x_BxHxWxC[:, :, ::-1], train=False)) / 2
