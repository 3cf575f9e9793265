"""An exported model in use: needs jax alone."""

import contextlib
import functools
import os
import pathlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lsm.cpu.libtpu import ignore_without_tpu
from lsm.cpu.options import compiler_options
from lsm.errors import DataError, ExportError, listed
from lsm.export import generating, preprocess
from lsm.export.artefact import PREDICT, PREPROCESSING, STATISTICS, Artefact, Signature
from lsm.export.program import callable_of
from lsm.export.spec import Function, check_names
from lsm.files import expanded, silent_stderr

_DONATED = "cache/"
"""Beginning of the names of arrays that a decoder takes and gives back."""


class Model:
    """A function of named arrays, compiled for each size of them.

    It may be called from several threads.

    Attributes:
      signature: what there is to call, and with what.
      platform: what it runs on here: "cpu", "cuda" or "tpu".
    """

    def __init__(self, artefact: Artefact):
        """Takes an artefact whose files are checked; the weights go to JAX's first device."""
        self.signature: Signature = artefact.signature
        self._artefact, device = artefact, jax.devices()[0]
        self.platform = "cuda" if device.platform == "gpu" else device.platform
        if self.platform not in self.platforms:
            raise ExportError(
                f"{artefact.folder}: is exported for {listed(self.platforms)}, and JAX runs on "
                f"{self.platform} here; export again with --platforms={self.platform}."
            )
        # Copied: what is mapped changes with its file, and kills the process where that shrinks.
        self._weights = {name: jax.device_put(np.array(x), device) for name, x in artefact.arrays()}
        self._programs: dict[Any, Callable[..., dict[str, jax.Array]]] = {}
        self._lock = threading.Lock()

    @property
    def platforms(self) -> tuple[str, ...]:
        """What it is exported for."""
        return self.signature.platforms

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The names of the classes, in the order of their numbers; None where none are known."""
        return self.signature.labels

    @property
    def preprocessing(self) -> dict[str, Any] | None:
        """What `preprocessing.json` says."""
        return self._artefact.json(PREPROCESSING)

    @property
    def statistics(self) -> dict[str, Any] | None:
        """What `statistics.json` says; None where the export has made none."""
        return self._artefact.json(STATISTICS)

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Returns the predictions of examples, (B, ...) by name, as `lsm.load(RUN).predict` does.

        Args:
          inputs: the columns that the signature names, (B, ...). 64-bit numbers are taken as 32-bit
            ones where they fit. Sizes that are new compile first; see `compile`.

        Raises:
          DataError: a column is missing, unknown, or of another shape or dtype.
        """
        function = self._function(PREDICT)
        check_names(inputs, function.inputs, "inputs")
        arrays = {n: _as(one.dtype, inputs[n], n) for n, one in function.inputs.items()}
        return jax.device_get(self.call(PREDICT, arrays))

    def call(self, name: str, inputs: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Returns what a function of the signature gives, on the device.

        Args:
          name: of the function.
          inputs: arrays of its dtypes. A decoder's cache is taken, and is no more after the call.

        Raises:
          DataError: as above.
        """
        function = self._function(name)
        check_names(inputs, function.inputs, "inputs")
        for column, array in function.inputs.items():
            given = getattr(inputs[column], "dtype", "no array")
            if given != array.dtype:
                raise DataError(f"inputs: {column!r} of {given} given; {array.dtype} is needed.")
        program, weights = self._program(name, function.sizes(inputs))
        kept = {n: x for n, x in inputs.items() if not n.startswith(_DONATED)}
        return program(weights, kept, {n: x for n, x in inputs.items() if n not in kept})

    def compile(self, name: str = PREDICT, **sizes: int) -> None:
        """Compiles a function for sizes of its symbols, such as `batch=8`, before it is called.

        Raises:
          DataError: a symbol is missing or unknown, or its size is not in its range.
        """
        function = self._function(name)
        check_names(sizes, function.symbols, "compile")
        for symbol, size in sizes.items():
            function.check(symbol, size)
        self._program(name, sizes)

    def preprocess(self, values: Any) -> dict[str, np.ndarray]:
        """Returns the columns of what a run reads: pictures, texts, or arrays, as they are called.

        See `lsm.export.preprocess`.
        """
        columns = preprocess.columns(self._artefact, values)
        wanted = self._function(PREDICT).inputs
        return {name: x for name, x in columns.items() if name in wanted}

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_tokens: int = 256, stop: bool = True
    ) -> list[np.ndarray]:
        """Returns the ids (n,) int32 that a decoder writes after prompts, the likeliest each time.

        Args:
          prompts: ids of each, at least one.
          max_tokens: of a text, at the most.
          stop: whether a token that ends a text does so; it is the last of what is returned.

        Raises:
          DataError: a prompt is empty or no ids, or longer with `max_tokens` than the context.
          ExportError: the model writes no texts.
        """
        ends = self.signature.ends if stop else ()
        return generating.greedy(self, prompts, max_tokens, ends)

    def content(self, name: str) -> bytes:
        """Returns a file of the folder, such as "tokenizer.json"."""
        return self._artefact.content(name)

    def _function(self, name: str) -> Function:
        if name not in self.signature.functions:
            raise ExportError(
                f"{self._artefact.folder}: has no function {name!r}; it has "
                f"{listed(self.signature.functions)}."
            )
        return self.signature.functions[name]

    def _program(self, name: str, sizes: Mapping[str, int]) -> tuple[Callable, dict]:
        function = self.signature.functions[name]
        key = (name, *(sizes[symbol] for symbol in function.symbols if symbol in sizes))
        weights = self._of[name]
        if key not in self._programs:
            with self._lock:  # one at a time: threads that want the same wait for it
                if key not in self._programs:
                    self._programs[key] = self._compiled(name, sizes)
        return self._programs[key], weights

    @functools.cached_property
    def _of(self) -> dict[str, dict[str, jax.Array]]:
        """The weights of each function."""
        return {
            name: {weight: self._weights[weight] for weight in function.weights}
            for name, function in self.signature.functions.items()
        }

    def _compiled(self, name: str, sizes: Mapping[str, int]) -> Callable[..., dict[str, jax.Array]]:
        function, run = self.signature.functions[name], self._runner(name)
        given = {
            column: jax.ShapeDtypeStruct([sizes.get(dim, dim) for dim in one.shape], one.dtype)
            for column, one in function.inputs.items()
        }
        cache = {column: x for column, x in given.items() if column.startswith(_DONATED)}
        kept = {column: x for column, x in given.items() if column not in cache}
        options = compiler_options("some") if self.platform == "cpu" else None
        jitted = jax.jit(run, donate_argnums=(2,) if cache else (), compiler_options=options)
        wrote = self.signature.versions.get("jax")
        # Of what it does not know, StableHLO prints lines of its own.
        quiet = contextlib.nullcontext() if wrote == jax.__version__ else silent_stderr()
        try:
            with quiet:
                return jitted.lower(self._of[name], kept, cache).compile()
        except (ValueError, TypeError, jax.errors.JaxRuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ExportError(
                f"{self._artefact.folder / function.file}: JAX {jax.__version__} cannot compile "
                f"it: {reason}; it is of JAX {wrote}: use that or a newer one, or export again."
            ) from error

    def _runner(self, name: str) -> Callable[..., dict[str, jax.Array]]:
        function = self.signature.functions[name]
        module = self._artefact.content(function.file)
        call = callable_of(function, module, self.signature.weights, self.platforms)
        return lambda weights, inputs, cache: call(weights, {**inputs, **cache})


def load(folder: os.PathLike | str) -> Model:
    """Loads what `lsm.export.export` has written; needs no library but jax.

    Raises:
      ExportError: there is none, it is damaged or of another version, or for other devices.
    """
    ignore_without_tpu()
    return Model(Artefact.open(pathlib.Path(expanded(folder, "folder"))))


def _as(dtype: str, x: Any, name: str) -> np.ndarray:
    """Returns an array in a dtype that holds its values; raises DataError where it does not."""
    try:
        given = x if isinstance(x, jax.Array) else np.asarray(x)
    except ValueError as error:  # of rows of different lengths
        raise DataError(f"inputs: {name!r}: {error}.") from error
    if given.dtype == dtype:
        return given
    wanted = jax.numpy.dtype(dtype)
    same = given.dtype.kind == wanted.kind or (given.dtype.kind in "iu" and wanted.kind in "iu")
    if same and given.dtype.kind in "iuf":
        with np.errstate(over="ignore"):
            made = given.astype(wanted)
        # Of fractions the nearest fit, but nothing that would become infinite.
        whole = given.dtype.kind != "f"
        fits = made == given if whole else (abs(made) < np.inf) == (abs(given) < np.inf)
        if fits.all():
            return made
    raise DataError(f"inputs: {name!r} of {given.dtype} given; {dtype} is needed.")
