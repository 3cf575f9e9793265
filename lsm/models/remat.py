"""Rematerialisation by name: what a layer keeps for the backward pass."""

from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.ad_checkpoint import checkpoint_name

from lsm.models.attention import ATTENTION

Remat = Literal["none", "dots", "full", "offload"]
"""What is computed again in the backward pass (arXiv:1604.06174): "none" keeps everything; "dots"
keeps the products with parameters and the attention kernel's results, but not the products of
experts, and with stages (`mesh.pipeline`) the kernel's alone; "full" keeps each layer's input
alone; "offload" keeps that in the host's memory."""

_INPUT = "layer_input"


def rematerialised(layer: Callable, remat: Remat, looped: bool = True) -> Callable:
    """Returns `layer(rows, ...)` with the policy laid over it; rows is a tree of arrays.

    `looped` says whether layers are turns of a loop, or written out one after the other.
    """
    if remat == "none":
        return layer
    policies = jax.checkpoint_policies
    if remat == "dots":
        policy = policies.save_from_both_policies(
            # Products with parameters have no batch dimensions; those of q, k and v have.
            policies.dots_with_no_batch_dims_saveable,
            policies.save_only_these_names(ATTENTION),
        )
    elif remat == "full":
        policy = policies.nothing_saveable
    else:
        policy = policies.save_and_offload_only_these_names(
            # All else is computed again, as with "full".
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[_INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        )

    def named(rows: Any, *args: Any) -> Any:
        return layer(jax.tree.map(lambda x: checkpoint_name(x, _INPUT), rows), *args)

    # In a loop, common subexpressions cannot undo the recomputation; preventing it costs fusions.
    return jax.checkpoint(named, policy=policy, prevent_cse=not looped)
