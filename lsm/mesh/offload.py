"""The optimiser state in the hosts' memory, brought to the devices for each update."""

from typing import Any

import jax
import optax


def in_host_memory(shardings: Any, arrays: Any) -> Any:
    """Returns the shardings of `arrays` with the hosts' pinned memory in place; scalars stay."""
    return jax.tree.map(
        lambda s, x: s.with_memory_kind("pinned_host") if x.shape else s, shardings, arrays
    )


def in_device_memory(shardings: Any) -> Any:
    """Returns the shardings with the devices' own memory in place."""
    return jax.tree.map(lambda s: s.with_memory_kind("device"), shardings)


def offloaded(
    inner: optax.GradientTransformationExtraArgs, shardings: Any
) -> optax.GradientTransformationExtraArgs:
    """Returns `inner` with its state fetched before each update and put back behind it.

    It crosses the host's bus twice a step, which takes time; in exchange the devices hold it only
    while the update runs (ZeRO-Offload, arXiv:2101.06840).

    Args:
      inner: the optimiser.
      shardings: of its state, some of them in `in_host_memory`.
    """

    def update(updates, state, params=None, **extra):
        state = jax.device_put(state, in_device_memory(shardings))
        updates, state = inner.update(updates, state, params, **extra)
        return updates, jax.device_put(state, shardings)

    return optax.GradientTransformationExtraArgs(inner.init, update)
