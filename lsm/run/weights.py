"""Weights by name, lazily read onto a mesh: of a checkpoint of another run, or of safetensors."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Literal, Protocol

import jax

from lsm.errors import CheckpointError, ConfigError, listed, nearest
from lsm.files import expanded
from lsm.interop.tensors import Tensors, open_tensors
from lsm.run.checkpoint import Checkpoints

STATE = "model_state/"


class Weights(Protocol):
    """Arrays by name, such as "params/Dense_0/kernel" or "batch_stats/BatchNorm_0/mean".

    Attributes:
      where: what they are of, for error messages.
      spec: name -> shape and dtype.
    """

    where: str
    spec: Mapping[str, jax.ShapeDtypeStruct]

    def read(self, wanted: Mapping[str, jax.sharding.NamedSharding]) -> dict[str, jax.Array]:
        """Returns the arrays of `wanted`, in their own dtypes, placed as it says; no others.

        Raises:
          CheckpointError: they are damaged.
        """


class RunWeights:
    """`Weights` of a checkpoint: parameters and model state.

    Of an array that has an average it is that; else, with `masters`, its float32 master copy
    where there is one.

    Attributes:
      where: see `Weights`.
      spec: see `Weights`.
      empties: paths of dicts with nothing in them, by the same names.
    """

    def __init__(self, checkpoints: Checkpoints, step: int, masters: bool = False):
        """Takes open checkpoints, and one of their steps."""
        self.where = str(checkpoints.directory / str(step))
        self._checkpoints, self._step = checkpoints, step
        self._saved = checkpoints.spec(step)
        self._paths = dict(self._named(self._saved, masters))
        self.spec = {name: self._saved[path] for name, path in self._paths.items()}
        self.empties = [
            path.removeprefix(STATE)
            for path in checkpoints.empties(step)
            if path.startswith(("params/", STATE))
        ]

    def read(self, wanted: Mapping[str, jax.sharding.NamedSharding]) -> dict[str, jax.Array]:
        """See `Weights.read`."""
        paths = {name: self._paths[name] for name in wanted}
        found = self._checkpoints.read(
            self._step,
            {
                path: jax.ShapeDtypeStruct(
                    self._saved[path].shape, self._saved[path].dtype, sharding=wanted[name]
                )
                for name, path in paths.items()
            },
        )
        return {name: found[path] for name, path in paths.items()}

    def _named(
        self, saved: Mapping[str, jax.ShapeDtypeStruct], masters: bool
    ) -> Iterator[tuple[str, str]]:
        """Yields the name of each array, and the path of what is read for it."""
        better = _copies(saved, "/master/", "params/") if masters else {}
        # After the masters: where there are both, the average counts.
        better |= _copies(saved, "/average/", "params/") | _copies(saved, f"/{STATE}", STATE)
        for path in saved:
            if path.startswith(("params/", STATE)):
                yield path.removeprefix(STATE), better.get(path, path)


def _copies(saved: Mapping[str, jax.ShapeDtypeStruct], key: str, of: str) -> dict[str, str]:
    """Returns the paths of copies of the arrays under `of` in the optimiser state, by array.

    A copy stands directly under `key`; an average has a count beside it (`ParamsEmaState`), which
    tells it from Adam's moment of a module that is called so.
    """
    found = {}
    for path in saved:
        before, _, name = path.partition(key)
        counted = key == "/master/" or f"{before}/count" in saved
        if path.startswith("opt_state/") and f"{of}{name}" in saved and counted:
            found[f"{of}{name}"] = path
    return found


class FileWeights:
    """`Weights` of safetensors, by the names in the file."""

    def __init__(self, tensors: Tensors, path: pathlib.Path):
        """Takes what `open_tensors(path)` gave."""
        self.where, self.spec, self._tensors = str(path), tensors.specs, tensors

    def read(self, wanted: Mapping[str, jax.sharding.NamedSharding]) -> dict[str, jax.Array]:
        """See `Weights.read`: each device's part is read from the file, and no more."""
        return {name: self._placed(name, sharding) for name, sharding in wanted.items()}

    def _placed(self, name: str, sharding: jax.sharding.NamedSharding) -> jax.Array:
        shape, read = self.spec[name].shape, self._tensors.read
        # The callback is asked for the parts of this process's devices only.
        return jax.make_array_from_callback(shape, sharding, lambda index: read(name, index))


@contextlib.contextmanager
def open_run(
    workdir: os.PathLike | str,
    step: int | Literal["best", "last"] = "best",
    masters: bool = False,
) -> Iterator[tuple[RunWeights, int]]:
    """Opens the weights of a run, and says of which step they are.

    Args:
      workdir: folder of the run.
      step: a step that is saved, the "last" one, or the "best", which is the last where no
        evaluation chose one.
      masters: see `RunWeights`.

    Raises:
      CheckpointError: there is no such checkpoint, or it is damaged.
    """
    if not (step in ("best", "last") or type(step) is int):
        raise ConfigError(
            f"step: {step!r} given; 'best', 'last' or a whole number is needed."
            + nearest(str(step), ("best", "last"))
        )
    directory = expanded(workdir, "--workdir") / "checkpoints"
    if not directory.is_dir() or not any(d.name.isdigit() for d in directory.iterdir()):
        raise CheckpointError(f"no checkpoints in {workdir}; train there first.")
    with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
        found = {"best": checkpoints.chosen, "last": checkpoints.latest}.get(step, lambda: step)()
        if found not in checkpoints.steps():
            steps = listed(map(str, checkpoints.steps())) or "none"
            raise CheckpointError(f"no step {step} in {directory}; there are: {steps}.")
        yield RunWeights(checkpoints, found, masters), found


@contextlib.contextmanager
def open_weights(path: os.PathLike | str) -> Iterator[Weights]:
    """Opens a workdir, one of its checkpoints (`WORKDIR/checkpoints/STEP`), or safetensors.

    Raises:
      CheckpointError: there is nothing of the kind, or it is damaged.
    """
    path = expanded(path, "start.path")
    if (path / "checkpoints").is_dir():
        with open_run(path, masters=True) as (weights, _):
            yield weights
    elif path.name.isdigit() and path.parent.name == "checkpoints":
        with open_run(path.parent.parent, int(path.name), masters=True) as (weights, _):
            yield weights
    elif not path.exists() or path.name == "checkpoints":
        what = "a folder of checkpoints; name one of them" if path.exists() else "not there"
        raise CheckpointError(
            f"start.path: {path} is {what}. A workdir, one of its checkpoints, or safetensors is "
            "needed."
        )
    else:
        yield FileWeights(open_tensors(path), path)
