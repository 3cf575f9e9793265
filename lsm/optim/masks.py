"""Pruning as an Optax transform, with its masks in the state."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lsm.durations import Horizon
from lsm.errors import ConfigError
from lsm.optim.ema import ParamsEmaState
from lsm.optim.pruning import Arrays, Pruning
from lsm.optim.stacks import Stacks
from lsm.params import flat, path_name, require_match


class PruneState(NamedTuple):
    """State of `pruned`."""

    updates: optax.ScaleByScheduleState  # a count of updates: it goes on where one is skipped.
    times: jax.Array  # shape=(), dtype=int32: how many times was pruned.
    zeros: jax.Array  # shape=(), dtype=float32: how many weights are 0.
    masks: optax.Params  # bool, shapes of the parameters; False is 0. None of what is not pruned.
    scores: Any = ()  # float32, likewise, where the pruning reads any.


def pruned(
    inner: optax.GradientTransformationExtraArgs,
    pruning: Pruning,
    horizon: Horizon,
    stacks: Stacks = (),
) -> optax.GradientTransformationExtraArgs:
    """Runs `inner` on parameters some of which are 0 after every update.

    Gradients of the pruned are 0 before `inner` sees them, as those of mask x weight are, and the
    averages of `lsm.optim.params_ema` in its state are masked after. Masks are computed when it is
    time to prune, and only then.

    Args:
      inner: a named chain, which gives the whole update.
      pruning: what is pruned.
      horizon: what its durations are measured against.
      stacks: which leading axes are stacks of layers or experts.

    Returns:
      A transform whose state is that of `inner` with "prune" added, a `PruneState`.

    Raises:
      ConfigError: a duration does not fit the run; and, from `init`, nothing is pruned.
    """
    times = pruning.times(horizon)

    def init(params: optax.Params) -> dict[str, Any]:
        _check(pruning, params, stacks)

        def made(make: Callable[[jax.Array], jax.Array]) -> optax.Params:
            return jax.tree_util.tree_map_with_path(
                lambda path, x: (
                    make(x) if pruning.prunes(path_name(path), x.shape) else optax.MaskedNode()
                ),
                params,
            )

        masks = made(lambda x: jnp.ones(x.shape, bool))
        scores = made(lambda x: jnp.zeros(x.shape, jnp.float32)) if pruning.scored else ()
        count = optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))
        state = PruneState(count, jnp.int32(0), jnp.float32(0), masks, scores)
        return {"prune": state, **inner.init(params)}

    def update(updates, state, params=None, **extra):
        state = dict(state)
        prune = state.pop("prune")
        updates = _masked(prune.masks, updates)
        prune = _scored(prune, updates, params)
        updates, state = inner.update(updates, state, params, **extra)
        prune = _advanced(prune, optax.apply_updates(params, updates))
        kept = flat(prune.masks)
        updates = _mapped(
            lambda u, p, mask: jnp.where(mask, u, -p.astype(u.dtype)), kept, updates, params
        )
        return updates, {"prune": prune, **_with_averages(prune.masks, state)}

    def _advanced(prune: PruneState, params: optax.Params) -> PruneState:
        """Counts the update, and prunes where it is time."""
        count = optax.safe_increment(prune.updates.count)
        prune = prune._replace(updates=optax.ScaleByScheduleState(count))
        if not times.count:
            return prune
        due, before = times.due(count), flat(prune.masks)

        def chosen() -> tuple[Arrays, jax.Array]:
            values = flat(prune.scores if pruning.scored else params)
            found = pruning.masks(due, times, before, values, stacks)
            return found, _zeros(found)

        masks, zeros = jax.lax.cond(due > prune.times, chosen, lambda: (before, prune.zeros))
        masks = _mapped(lambda _, mask: mask, masks, prune.masks)
        return prune._replace(times=due, zeros=zeros, masks=masks)

    return optax.GradientTransformationExtraArgs(init, update)


def with_masks(opt_state: Any, masks: Arrays) -> Any:
    """Returns `opt_state` with these masks, by the path of their parameter, in place of its own."""

    def begun(node: Any) -> Any:
        if not isinstance(node, PruneState):
            return node
        placed = _mapped(lambda _, mask: mask, masks, node.masks)
        return node._replace(masks=placed, zeros=_zeros(flat(placed)))

    return jax.tree.map(begun, opt_state, is_leaf=_is_pruned)


def masks_of(opt_state: Any) -> Arrays:
    """Returns the masks in `opt_state` by the path of their parameter; {} without pruning."""
    return {path: mask for state in _states(opt_state) for path, mask in flat(state.masks).items()}


def sparsity(opt_state: Any) -> dict[str, float]:
    """Returns the share of what is pruned that is 0, as "sparsity"; {} where nothing is pruned."""
    states = _states(opt_state)
    if not states:
        return {}
    weights = sum(mask.size for mask in masks_of(opt_state).values())
    return {"sparsity": sum(float(state.zeros) for state in states) / weights}


def _check(pruning: Pruning, params: optax.Params, stacks: Stacks) -> None:
    """Raises ConfigError where nothing is pruned, or what is cannot be."""
    field = f"{type(pruning).__name__}.pattern"
    require_match(field, pruning.pattern, params)
    shapes = {name: x.shape for name, x in flat(params).items() if pruning.prunes(name, x.shape)}
    if not shapes:
        raise ConfigError(
            f"{field}: {pruning.pattern!r} matches no kernel whose inputs are a multiple of 4."
        )
    pruning.check(shapes, stacks)


def _scored(prune: PruneState, grads: optax.Updates, params: optax.Params) -> PruneState:
    """Adds -w x gradient to the scores, where there are any."""
    if not jax.tree.leaves(prune.scores):
        return prune
    grads, params = flat(grads), flat(params)
    moved = {
        name: score - params[name].astype(jnp.float32) * grads[name].astype(jnp.float32)
        for name, score in flat(prune.scores).items()
    }
    return prune._replace(scores=_mapped(lambda _, score: score, moved, prune.scores))


def _with_averages(masks: optax.Params, state: Any) -> Any:
    """Returns `state` with 0 in its averages where the parameters are pruned."""

    def node(x: Any) -> Any:
        average = isinstance(x, ParamsEmaState)
        return x._replace(average=_masked(masks, x.average)) if average else x

    return jax.tree.map(node, state, is_leaf=lambda x: isinstance(x, ParamsEmaState))


def _masked(masks: optax.Params, tree: optax.Params) -> optax.Params:
    return _mapped(lambda x, mask: jnp.where(mask, x, jnp.zeros_like(x)), flat(masks), tree)


def _mapped(function: Callable, chosen: Arrays, tree: Any, *others: Any) -> Any:
    """Returns `tree` with function(leaf, those of others, chosen[path]) where that is there."""

    def at(path: Any, x: jax.Array, *rest: jax.Array) -> jax.Array:
        name = path_name(path)
        return function(x, *rest, chosen[name]) if name in chosen else x

    return jax.tree_util.tree_map_with_path(at, tree, *others)


def _zeros(masks: Mapping[str, jax.Array]) -> jax.Array:
    return sum((~mask).sum(dtype=jnp.float32) for mask in masks.values())


def _states(opt_state: Any) -> list[PruneState]:
    nodes = jax.tree.leaves(opt_state, is_leaf=_is_pruned)
    return [node for node in nodes if isinstance(node, PruneState)]


def _is_pruned(node: Any) -> bool:
    return isinstance(node, PruneState)
