"""Where a run begins: with parameters that are drawn, computed, or held by a run or a file.

A model may hold arrays in another form than they are given in, such as kernels in whole numbers. It
says so by a method `given`: of arrays here by path, it returns by path the float array that is
asked for instead, and the pure function that makes those here of it (`lsm.models.Lora.given`).
"""

import logging
import re
from collections.abc import Callable, Iterable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lsm.config import Computed, Experiment, Start
from lsm.data import Dataset
from lsm.errors import CheckpointError, ConfigError, listed
from lsm.interop import Names
from lsm.mesh import jit
from lsm.optim import FixedMasks, masks_of
from lsm.params import flat, matches, require_match
from lsm.run.weights import FileWeights, NamedWeights, Spec, Weights, open_weights
from lsm.tasks import Distillation, Task
from lsm.tasks.base import CONSTANTS, PROJECTIONS, TEACHER
from lsm.train.program import Program
from lsm.train.state import MASKS, TrainState

_log = logging.getLogger("lsm")
_TEACHER = f"{CONSTANTS}/{TEACHER}/"
_HELP = {
    "start": "Start.take, Start.rename, Start.fresh and Start.names",
    "task.teacher": "Teacher.rename and Teacher.names",
}


def check_masks(experiment: Experiment) -> None:
    """Raises ConfigError where masks are given and nothing is pruned, or the other way round."""
    given, prunings = getattr(experiment.start, "masks", None), experiment.optimizer.prunings
    if given is not None and not prunings:
        raise ConfigError(
            f"Start.masks: {given!r} given, but nothing is pruned; optimizer.prune, such as "
            "FixedMasks(), is needed."
        )
    if given is None and any(isinstance(pruning, FixedMasks) for pruning in prunings):
        raise ConfigError(
            "FixedMasks: it prunes what Start.masks says, and there is none; give "
            "start=Start(path=..., masks=...)."
        )


def begin(
    program: Program, start: Start | Computed | None, task: Task, dataset: Dataset
) -> TrainState:
    """Returns the state at step 0; what `start` takes is read straight into its place on the mesh.

    So is a teacher, which `start` does not see.

    Raises:
      CheckpointError: there is nothing to take, it is damaged, or it does not fit the model.
      ConfigError: a pattern or path of `start` matches nothing.
    """
    taken = teacher(program, task)
    if start is None:
        return program.start(taken) if taken else program.init()
    beside = (_TEACHER, f"params/{PROJECTIONS}/")
    here = {path: x for path, x in _arrays(program).items() if not path.startswith(beside)}
    if isinstance(start, Computed):
        made = start.arrays(task, dataset, here)
        taken |= {path: _place(x, here[path].sharding) for path, x in made.items()}
    else:
        _check_heads("Start.names", start.names, task.model)
        made = task.model.given(here) if hasattr(task.model, "given") else {}
        taken |= _taken(start, here, made)
        if start.masks is not None:
            taken |= _masks(start, program.abstract_state, here)
    return program.start(taken)


def teacher(program: Program, task: Task) -> dict[str, jax.Array]:
    """Returns the arrays of a student's teacher, by path, read from where it is; {} without one.

    Raises:
      CheckpointError: it is not there, is damaged, or is of another model.
    """
    if not isinstance(task, Distillation):
        return {}
    given, here = task.teacher, _arrays(program)
    _check_heads("task.teacher.names", given.names, given.task.model)
    start = Start(path=given.path, rename=((f"^{_TEACHER}", ""), *given.rename), names=given.names)
    here = {path: x for path, x in here.items() if path.startswith(_TEACHER)}
    read = _taken(start, here, {}, "task.teacher")
    return {path: x.astype(here[path].dtype) for path, x in read.items()}


def _check_heads(field: str, names: Names | None, model: nn.Module) -> None:
    """Raises ConfigError where names divide queries by other heads than the model has.

    Every shape would fit, and every head would have parts of others.
    """
    inner = model
    while isinstance(getattr(inner, "model", None), nn.Module):  # such as `Views`
        inner = inner.model
    blocks = getattr(getattr(inner, "encoder", inner), "transformer", None)
    for kind, has in (("heads", "heads"), ("key_heads", "kv_heads")):
        given, own = getattr(names, kind, None), getattr(blocks, has, None)
        if given is not None and own is not None and given != own:
            raise ConfigError(
                f"{field}.{kind}: {given} given; allowed: {own}, as {type(model).__name__} has."
            )


def _arrays(program: Program) -> dict[str, jax.ShapeDtypeStruct]:
    state = program.abstract_state
    return {
        path: leaf
        for path, leaf in flat({"params": state.params, **state.model_state}).items()
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    }


def _taken(
    start: Start, here: Spec, made: Mapping[str, tuple], field: str = "start"
) -> dict[str, jax.Array]:
    """Returns what a start takes, by path here; `made` is what the model has made of some."""
    with open_weights(start.path, f"{field}.path") as weights:
        made = {path: how for path, how in made.items() if not _held(path, how[0], weights, here)}
        asked = _asked(here, made)
        if start.names is not None:
            weights = _named(weights, start, asked)
        names = match(start, asked, weights, field)
        # Two arrays here may have one source; it is read once.
        plain = {path: name for path, name in names.items() if path not in made}
        read = weights.read({name: here[path].sharding for path, name in plain.items()})
        taken = {path: jax.device_put(read[n], here[path].sharding) for path, n in plain.items()}
        # One after the other: no two are here as they are given.
        for path, name in names.items():
            if path in made:
                taken |= _made(*made[path], weights, name, here)
    fresh = listed(path for path in asked if path not in names) or "none"
    _log.info("%s: %d arrays of %s; drawn anew: %s", field, len(names), weights.where, fresh)
    return taken


def _asked(here: Spec, made: Mapping[str, tuple[jax.ShapeDtypeStruct, Callable]]) -> Spec:
    """Returns what is asked for: floats in the places of what is made of them."""
    results = {path for spec, make in made.values() for path in jax.eval_shape(make, spec)}
    kept = {path: leaf for path, leaf in here.items() if path not in results}
    return kept | {path: spec for path, (spec, _) in made.items()}


def _held(path: str, spec: jax.ShapeDtypeStruct, weights: Weights, here: Spec) -> bool:
    """Says whether an array is there as it is here, such as in whole numbers: it is taken so."""
    kind = there.dtype if (there := weights.spec.get(path)) is not None else spec.dtype
    return kind != spec.dtype and path in here and kind == here[path].dtype


def _made(
    spec: jax.ShapeDtypeStruct, make: Callable, weights: Weights, name: str, here: Spec
) -> dict[str, jax.Array]:
    """Returns the arrays here that are made of one there."""
    found = weights.read({name: spec.sharding})[name]
    places = {path: here[path].sharding for path in jax.eval_shape(make, spec)}
    return jit(make, in_shardings=(spec.sharding,), out_shardings=places, calls="one")(
        jax.device_put(found, spec.sharding)
    )


def _masks(start: Start, state: TrainState, here: Spec) -> dict[str, jax.Array]:
    """Returns what is not 0 there, of what is pruned here, by the paths of `init_state`."""
    paths = [f"params/{name}" for name in masks_of(state.opt_state)]
    with open_weights(start.masks, "start.masks") as weights:
        there = weights.spec
        wrong = [p for p in paths if p not in there or there[p].shape != here[p].shape]
        if wrong:
            raise CheckpointError(
                f"start.masks: {weights.where} does not have, or has in another shape, "
                f"{listed(wrong)}, which is pruned here."
            )
        read = weights.read({path: here[path].sharding for path in paths})
    masks = {MASKS + path.removeprefix("params/"): x != 0 for path, x in read.items()}
    zeros = sum(x.size - int(x.sum()) for x in masks.values())
    weights_here = sum(x.size for x in masks.values())
    _log.info("start.masks: %d of %d weights are 0 in %s", zeros, weights_here, weights.where)
    return masks


def _place(x: np.ndarray, sharding: jax.sharding.NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def _named(weights: Weights, start: Start, here: Spec) -> NamedWeights:
    if not isinstance(weights, FileWeights):
        raise ConfigError(
            f"Start.names: given for safetensors; {weights.where} is a run's, called as here."
        )
    renamed = {_renamed(path, start.rename): leaf for path, leaf in here.items()}
    return NamedWeights(weights, start.names, renamed)


def match(start: Start, here: Spec, weights: Weights, field: str = "start") -> dict[str, str]:
    """Returns the name there of every array here that is taken, by its path here.

    Raises:
      CheckpointError: arrays are missing, left over, or of another shape or kind; names them all.
      ConfigError: a pattern matches nothing.
    """
    there, called = weights.spec, getattr(weights, "called", {})
    if start.fresh is not None:
        require_match("Start.fresh", start.fresh, here)
    require_match("Start.take", start.take, there)
    names = {path: _renamed(path, start.rename) for path in here}
    fresh = {p for p in here if start.fresh is not None and matches(start.fresh, p)}
    taken = {name for name in there if matches(start.take, name)}
    names_of_fresh = {names.pop(path) for path in fresh}
    found = {path: name for path, name in names.items() if name in taken}
    shown = {path: called.get(name, name) for path, name in names.items()}
    faults = {
        "missing there": [_as(path, shown[path]) for path in names if names[path] not in taken],
        "left over there": map(repr, sorted(taken - {*names.values(), *names_of_fresh})),
        "of another shape or kind": [
            f"{_as(path, shown[path])} is {_said(there[name])} there and {_said(here[path])} here"
            for path, name in found.items()
            if not _fits(here[path], there[name])
        ],
    }
    told = [f"{fault}: {', '.join(names)}" for fault, names in _filled(faults)]
    if told:
        raise CheckpointError(
            f"{field}: {weights.where} does not fit this model; {'; '.join(told)}. "
            f"See {_HELP[field]}."
        )
    return found


def _renamed(path: str, rename: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rename:
        path = re.sub(pattern, replacement, path)
    return path


def _fits(here: jax.ShapeDtypeStruct, there: jax.ShapeDtypeStruct) -> bool:
    floats = [jnp.issubdtype(x.dtype, jnp.floating) for x in (here, there)]
    return here.shape == there.shape and (here.dtype == there.dtype or all(floats))


def _as(path: str, name: str) -> str:
    return repr(path) if path == name else f"{path!r} (there {name!r})"


def _said(array: jax.ShapeDtypeStruct) -> str:
    return f"{array.shape} {array.dtype}"


def _filled(faults: Mapping[str, Iterable[str]]) -> list[tuple[str, list[str]]]:
    lists = {fault: list(names) for fault, names in faults.items()}
    return [(fault, names) for fault, names in lists.items() if names]
