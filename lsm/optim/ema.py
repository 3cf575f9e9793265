"""Exponential moving average of the parameters and the model state, as an Optax transform."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lsm.params import names, path_name


class ParamsEmaState(NamedTuple):
    """State of `params_ema`."""

    count: jax.Array  # shape=(), dtype=int32: updates seen.
    average: optax.Params  # shapes and dtypes of the parameters.
    model_state: Any = ()  # likewise of what `with_model_state` put in; `()` before.


def params_ema(decay: float) -> optax.GradientTransformation:
    """Keeps the exponential moving average of the parameters; updates pass unchanged.

    Must stand last in a chain: the average takes in `params + updates`. After t updates it is

        (1 - decay) / (1 - decay^t) * sum_i decay^(t - i) * params_i,    i = 1 .. t,

    the bias correction of Adam (Kingma & Ba 2015, section 3): the random initial parameters
    have no share in it, so it is of use from the first step on. Averaging as in Polyak & Juditsky
    1992.

    With `with_model_state` it is kept of the model state, too, as timm and big_vision do: batch
    norm's statistics under the parameters as they are do not fit the averaged ones. `update` then
    needs the new one as `model_state`.

    Args:
      decay: in (0, 1); the average looks back over about 1 / (1 - decay) steps.

    Returns:
      A transform whose state is a `ParamsEmaState`; before the first update its average is the
      initial parameters.
    """

    def init(params: optax.Params) -> ParamsEmaState:
        return ParamsEmaState(jnp.zeros([], jnp.int32), jax.tree.map(jnp.array, params))

    def update(updates, state, params=None, *, model_state: Any = None, **extra):
        del extra
        count = optax.safe_increment(state.count)
        # 1 - decay^t by expm1: the plain difference loses all digits for decay near 1.
        share = (1 - decay) / -jnp.expm1(count * math.log(decay))

        def moved(average, new):
            if isinstance(average, optax.MaskedNode):
                return average
            return average + (share * (new - average)).astype(average.dtype)

        average = jax.tree.map(moved, state.average, optax.apply_updates(params, updates))
        kept = state.model_state
        if kept:
            new = {name: model_state[name] for name in kept}
            kept = jax.tree.map(moved, kept, new, is_leaf=_is(optax.MaskedNode))
        return updates, ParamsEmaState(count, average, kept)

    return optax.GradientTransformationExtraArgs(init, update)


def with_model_state(opt_state: Any, model_state: Mapping[str, Any], params: optax.Params) -> Any:
    """Returns `opt_state` whose averages are of the float arrays in `model_state` as well.

    An array goes with the average that has the parameters nearest to it: in a `Partition`, those of
    its module.

    Args:
      opt_state: what the transform's `init` returned.
      model_state: collections by name; constants left out.
      params: the parameters.
    """

    def begun(node: Any) -> Any:
        if not isinstance(node, ParamsEmaState):
            return node
        averaged = set(names(node.average))

        def kept(path: Any, x: jax.Array) -> Any:
            near = _nearest(path_name(path[1:]), names(params))  # without the collection's name
            fits = jnp.issubdtype(x.dtype, jnp.floating) and near & averaged
            return jnp.array(x) if fits else optax.MaskedNode()

        tree = jax.tree_util.tree_map_with_path(kept, dict(model_state))
        return node._replace(model_state=tree if jax.tree.leaves(tree) else ())

    return jax.tree.map(begun, opt_state, is_leaf=_is(ParamsEmaState))


def _nearest(path: str, among: list[str]) -> set[str]:
    """Returns those paths that have the most in common with `path`, from the root on."""

    def common(name: str) -> int:
        pairs = zip(path.split("/"), name.split("/"), strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    most = max(map(common, among), default=0)
    return {name for name in among if common(name) == most}


def averages_model_state(opt_state: Any) -> bool:
    """Whether an average in `opt_state` is of the model state, too, and its `update` needs it."""
    return any(state.model_state for state in _averages(opt_state))


def averaged_params(opt_state: Any, params: optax.Params) -> optax.Params:
    """Returns the averaged parameters in `opt_state` where there are any, else `params`.

    Args:
      opt_state: state of any Optax transform; several averages of disjoint parts are put together.
      params: the parameters; frozen leaves, which have no average, are taken from here.
    """
    for state in _averages(opt_state):
        params = _over(params, state.average)
    return params


def averaged_model_state(opt_state: Any, model_state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns `model_state` with the averages in `opt_state`, where there are any."""
    for state in _averages(opt_state):
        if state.model_state:
            part = {name: model_state[name] for name in state.model_state}
            model_state = {**model_state, **_over(part, state.model_state)}
    return model_state


def _averages(opt_state: Any) -> list[ParamsEmaState]:
    nodes = jax.tree.leaves(opt_state, is_leaf=_is(ParamsEmaState))
    return [node for node in nodes if isinstance(node, ParamsEmaState)]


def _over(tree: Any, average: Any) -> Any:
    """Returns `tree` with the leaves of `average`, where that has them."""
    return jax.tree.map(
        lambda a, x: x if isinstance(a, optax.MaskedNode) else a,
        average,
        tree,
        is_leaf=_is(optax.MaskedNode),
    )


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda node: isinstance(node, kind)
