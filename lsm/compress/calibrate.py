"""The largest numbers that a model's layers read, measured on batches of data.

A layer tells of what it reads by a gradient: that of a probe, which lies beside its kernel among
the parameters and goes where the kernel goes, through loops over stacked layers too.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lsm.data import Columns
from lsm.errors import ConfigError, MeshError, listed
from lsm.mesh import batch_sharding, jit, place, replicated
from lsm.models.whole_layers import reads
from lsm.params import flat, nested
from lsm.rng import streams
from lsm.train.trained import Trained

_log = logging.getLogger("lsm.compress")

_PROBE = "probe"


@jax.custom_vjp
def _seen(probe: jax.Array, x: jax.Array) -> jax.Array:
    """Returns x; the gradient of `probe` (2,) is the largest number in x, and 1."""
    del probe
    return x


def _forward(probe: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x, jnp.stack([jnp.abs(x).max().astype(probe.dtype), jnp.ones((), probe.dtype)])


_seen.defvjp(_forward, lambda found, g: (found, g))


def largest_inputs(
    run: Trained, batches: Iterable[Columns], axes: Mapping[str, int]
) -> dict[str, jax.Array]:
    """Returns what each layer reads at the most, float32 (..., 1): the mean over the batches.

    Of a layer that is called several times in a batch, the mean over those calls too.

    Args:
      run: the model, float.
      batches: columns of whole batches.
      axes: layers by the paths of their kernels, and the dimensions that those sum over.

    Raises:
      ConfigError: no batch comes by a layer, or what comes is not finite.
      MeshError: the mesh has stages, in which layers see parts of batches, and ticks without any.
    """
    if (stages := run.mesh.shape.get("pipeline", 1)) > 1:
        raise MeshError(
            f"mesh.pipeline={stages} given, but calibration needs 1; give one device, by devices."
        )
    params, measured = flat(run.params), None
    probes = {
        path: jnp.zeros((*params[path].shape[: -1 - sums], 2))
        for path, sums in axes.items()
        if sums
    }
    measure = _measure(run, probes)
    for number, batch in enumerate(batches):
        found = measure(probes, place(batch, batch_sharding(run.mesh)), np.int32(number))
        measured = found if measured is None else jax.tree.map(jnp.add, measured, found)
    sums_of = jax.device_get(measured)
    for path, sums in sums_of.items():
        if not (sums[..., 1] > 0).all() or not np.isfinite(sums).all():
            fault = "reads nothing of" if np.isfinite(sums).all() else "reads what is not finite of"
            raise ConfigError(f"calibration: the layer of {path!r} {fault} the batches given.")
    if several := [path for path, sums in sums_of.items() if sums[..., 1].max() > number + 1]:
        _log.warning(
            "calibration: several calls a batch read the layers of %s; what is cut off is beyond "
            "the mean of their largest numbers.",
            listed(several, 5),
        )
    return {path: sums[..., :1] / sums[..., 1:] for path, sums in measured.items()}


def _measure(run: Trained, probes: Mapping[str, jax.Array]) -> Callable[..., dict[str, jax.Array]]:
    """Returns the compiled function (probes, batch, number) -> their gradients."""
    task, seed = run.experiment.task, run.experiment.train.seed

    def loss(probes, params, model_state, batch, number):
        beside = {path.removesuffix("kernel") + _PROBE: x for path, x in probes.items()}
        with nn.intercept_methods(_probed):
            figures = task.evaluate(
                nested(flat(params) | beside),
                model_state,
                batch,
                streams(task.streams, seed, number, "evaluation"),
                np.int32(run.step),
            )
        return figures["loss"].sum

    rows, whole = batch_sharding(run.mesh), replicated(run.mesh)
    held = jax.tree.map(lambda x: x.sharding, (run.params, run.model_state))
    measure = jit(
        jax.grad(loss),
        in_shardings=(jax.tree.map(lambda _: whole, dict(probes)), *held, rows, whole),
        out_shardings=jax.tree.map(lambda _: whole, dict(probes)),
        mesh=run.mesh,
    )
    return lambda probes, *of: measure(probes, run.params, run.model_state, *of)


def _probed(next_fun: Callable, args: Any, options: Any, context: Any) -> Any:
    module = context.module
    if reads(context) != "kernel" or not module.has_variable("params", _PROBE):
        return next_fun(*args, **options)
    (x,) = (*args, *options.values())  # by its place or its name
    return next_fun(_seen(module.get_variable("params", _PROBE), x))
