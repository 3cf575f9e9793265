"""Weights by name, lazily read onto a mesh: of a checkpoint of another run, or of safetensors."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Literal, Protocol

import jax
import numpy as np

from lsm.errors import CheckpointError, ConfigError, listed, nearest
from lsm.files import expanded
from lsm.interop import Names, Source, Tensors, gguf, open_tensors
from lsm.params import matches
from lsm.run.checkpoint import Checkpoints

STATE = "model_state/"

Spec = Mapping[str, jax.ShapeDtypeStruct]
"""Shape and dtype of arrays by name."""


class Weights(Protocol):
    """Arrays by name, such as "params/Dense_0/kernel" or "batch_stats/BatchNorm_0/mean".

    Attributes:
      where: what they are of, for error messages.
      spec: name -> shape and dtype.
    """

    where: str
    spec: Spec

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
    """`Weights` of safetensors, by the names in the file.

    Attributes:
      where: see `Weights`.
      spec: see `Weights`.
      tensors: the open file.
    """

    def __init__(self, tensors: Tensors, path: pathlib.Path):
        """Takes what `open_tensors(path)` gave."""
        self.where, self.spec, self.tensors = str(path), tensors.specs, tensors

    def read(self, wanted: Mapping[str, jax.sharding.NamedSharding]) -> dict[str, jax.Array]:
        """See `Weights.read`: each device's part is read from the file, and no more."""
        return {name: self._placed(name, sharding) for name, sharding in wanted.items()}

    def _placed(self, name: str, sharding: jax.sharding.NamedSharding) -> jax.Array:
        shape, read = self.spec[name].shape, self.tensors.read
        # The callback is asked for the parts of this process's devices only.
        return jax.make_array_from_callback(shape, sharding, lambda index: read(name, index))


class NamedWeights:
    """`Weights` of safetensors by the names here, as `Names` tell what they are made of.

    What has no place here, and is not ignored, keeps the name that it has in the file.

    Attributes:
      where: see `Weights`.
      spec: see `Weights`.
      called: names in the file of what an array is made of, whether they are there or not.
    """

    def __init__(self, weights: FileWeights, names: Names, here: Spec):
        """Takes open safetensors, and shapes and dtypes here by name."""
        self.where, self._tensors = weights.where, weights.tensors
        sources, there = names.sources(here), weights.spec
        self.called = {name: ", ".join(source.tensors) for name, source in sources.items()}
        needed = {name: {*_tensors(source)} for name, source in sources.items()}
        left = set(there).difference(*needed.values())
        left = {name for name in left if not (names.ignored and matches(names.ignored, name))}
        whole = {name: source for name, source in sources.items() if needed[name] <= {*there}}
        self._sources = {name: Source((name,)) for name in sorted(left)} | whole
        self.spec = {name: self._spec(name, source) for name, source in self._sources.items()}

    def read(self, wanted: Mapping[str, jax.sharding.NamedSharding]) -> dict[str, jax.Array]:
        """See `Weights.read`: a layer at a time, and of it what a device holds."""
        return {name: self._placed(name, sharding) for name, sharding in wanted.items()}

    def _placed(self, name: str, sharding: jax.sharding.NamedSharding) -> jax.Array:
        source, view, spec = self._sources[name], self._tensors.view, self.spec[name]

        def made(layer: int = 0) -> np.ndarray:
            return source.function(*map(view, source.layer(layer)))

        def part(index: tuple[slice, ...]) -> np.ndarray:
            if source.layers is None:
                whole = np.array(made()[index])
                self._tensors.forget()
                return whole
            layers = range(source.layers)[index[0]]
            shape = (len(range(n)[at]) for n, at in zip(spec.shape[1:], index[1:], strict=True))
            stacked = np.empty((len(layers), *shape), spec.dtype)
            # Into the stack at once: a list of the layers would be as large again.
            for row, layer in zip(stacked, layers, strict=True):
                row[...] = made(layer)[index[1:]]
                self._tensors.forget()
            return stacked

        return jax.make_array_from_callback(self.spec[name].shape, sharding, part)

    def _spec(self, name: str, source: Source) -> jax.ShapeDtypeStruct:
        """Returns what `source` makes, of zeros that take no memory."""
        specs = [
            [self._tensors.specs[tensor] for tensor in source.layer(layer)]
            for layer in range(source.layers or 1)
        ]
        shapes = listed(f"{t} {s.shape}" for t, s in zip(source.tensors, specs[0], strict=True))
        zeros = [np.broadcast_to(np.zeros((), spec.dtype), spec.shape) for spec in specs[0]]
        try:
            made = source.function(*zeros)
        except ValueError as error:  # of NumPy: dimensions that are not there, or do not divide
            raise CheckpointError(
                f"start: {self.where}: no {name!r} can be made of {shapes} ({error})."
            ) from error
        if any(others != specs[0] for others in specs):
            raise CheckpointError(f"start: {self.where}: not every layer is like {shapes}.")
        stack = () if source.layers is None else (source.layers,)
        return jax.ShapeDtypeStruct((*stack, *made.shape), made.dtype)


def _tensors(source: Source) -> Iterator[str]:
    for layer in range(source.layers or 1):
        yield from source.layer(layer)


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
def open_weights(path: os.PathLike | str, field: str = "start.path") -> Iterator[Weights]:
    """Opens a workdir, one of its checkpoints (`WORKDIR/checkpoints/STEP`), safetensors or GGUF.

    Args:
      path: of it.
      field: what errors begin with.

    Raises:
      CheckpointError: there is nothing of the kind, or it is damaged.
    """
    path = expanded(path, field)
    if (path / "checkpoints").is_dir():
        with open_run(path, masters=True) as (weights, _):
            yield weights
    elif path.name.isdigit() and path.parent.name == "checkpoints":
        with open_run(path.parent.parent, int(path.name), masters=True) as (weights, _):
            yield weights
    elif not path.exists() or path.name == "checkpoints":
        what = "a folder of checkpoints; name one of them" if path.exists() else "not there"
        raise CheckpointError(
            f"{field}: {path} is {what}. A workdir, one of its checkpoints, or safetensors is "
            "needed."
        )
    else:
        opened = gguf.opened(path)[0] if path.suffix == ".gguf" else open_tensors(path)
        yield FileWeights(opened, path)
