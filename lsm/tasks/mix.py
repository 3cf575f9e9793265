"""Pictures and their targets mixed within a batch: on the devices, where the batch is whole."""

import abc
import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lsm.checks import require
from lsm.errors import DataError


@dataclasses.dataclass(frozen=True)
class Mix(abc.ABC):
    """How the examples of a batch are mixed, each with the one before it.

    Batches are shuffled, so the one before is any other; the first has the last. How much of which
    is drawn once a batch.

    Attributes:
      alpha: the share of an example itself is of Beta(alpha, alpha): of 1 it is uniform, of less
        more often near 0 or 1; above 0.
    """

    alpha: float = 1.0

    def __post_init__(self):
        require(self, alpha="(0, inf)")

    @abc.abstractmethod
    def __call__(
        self, share: jax.Array, key: jax.Array, x_B: jax.Array, target_BxK: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns inputs and targets as they are trained on.

        Args:
          share: float scalar, 0 to 1: how much of an example is to be its own.
          key: of what else is drawn.
          x_B: float inputs (B, ...).
          target_BxK: float, of each row the shares of the classes.
        """


@dataclasses.dataclass(frozen=True)
class Mixup(Mix):
    """Weighted means of two inputs, and of their targets (Zhang et al. 2018, arXiv:1710.09412)."""

    alpha: float = 0.2

    def __call__(
        self, share: jax.Array, key: jax.Array, x_B: jax.Array, target_BxK: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """See `Mix`."""
        del key
        return blend(x_B, share), blend(target_BxK, share)


@dataclasses.dataclass(frozen=True)
class CutMix(Mix):
    """A rectangle of another picture, and of its target the share of the area that this takes.

    Yun et al. 2019, arXiv:1905.04899: a rectangle of the picture's own shape around a place by
    chance; what of it is outside the picture is lost. Inputs are (B, H, W, C).
    """

    def __call__(
        self, share: jax.Array, key: jax.Array, x_B: jax.Array, target_BxK: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """See `Mix`."""
        if x_B.ndim != 4:
            raise DataError(f"CutMix: inputs are {x_B.shape}; pictures (B, H, W, C) are needed.")
        sides = jnp.array(x_B.shape[1:3])
        half = (jnp.sqrt(1 - share) / 2 * sides).astype(int)
        centre = jax.random.randint(key, (2,), 0, sides)
        start, stop = jnp.maximum(centre - half, 0), jnp.minimum(centre + half, sides)
        own = 1 - (stop - start).prod() / sides.prod()
        return paste(x_B, start, stop), blend(target_BxK, own)


def mixed(
    key: jax.Array, mixes: Sequence[Mix], x_B: jax.Array, target_BxK: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns inputs and targets after one of `mixes`, all as likely as each other; see `Mix`."""
    of_which, of_share, of_place = jax.random.split(key, 3)
    which = jax.random.randint(of_which, (), 0, len(mixes))
    share = beta(of_share, jnp.array([mix.alpha for mix in mixes])[which])
    return jax.lax.switch(which, mixes, share, of_place, x_B, target_BxK)


def beta(key: jax.Array, alpha: jax.Array | float) -> jax.Array:
    """Returns a number of Beta(alpha, alpha): G / (G + G') of two of Gamma(alpha).

    `jax.random.beta` makes them by two samplers, which take twice as long to compile.
    """
    logs = jax.random.loggamma(key, alpha, (2,))
    return jax.nn.sigmoid(logs[0] - logs[1])


def blend(x_B: jax.Array, share: jax.Array | float) -> jax.Array:
    """Returns share * x + (1 - share) * the row before, of float rows (B, ...)."""
    return share * x_B + (1 - share) * jnp.roll(x_B, 1, axis=0)


def paste(image_BxHxWxC: jax.Array, start: jax.Array, stop: jax.Array) -> jax.Array:
    """Returns the pictures with those before them in (y, x) from `start` up to `stop`."""
    inside_H, inside_W = (
        (jnp.arange(side) >= start[axis]) & (jnp.arange(side) < stop[axis])
        for axis, side in enumerate(image_BxHxWxC.shape[1:3])
    )
    inside_HxWx1 = (inside_H[:, None] & inside_W)[..., None]
    return jnp.where(inside_HxWx1, jnp.roll(image_BxHxWxC, 1, axis=0), image_BxHxWxC)
