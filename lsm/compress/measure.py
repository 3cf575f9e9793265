"""What a link has come to: size, and the time of a batch, against the others at the same time."""

import dataclasses
import functools
import pathlib
import time
import zlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from lsm.config.origin import experiment_of
from lsm.data import EvalBatches
from lsm.export.weights import stored
from lsm.mesh import batch_sharding, jit, place, replicated
from lsm.models.quantised import halves
from lsm.models.whole_layers import SCALE
from lsm.params import flat
from lsm.train.program import make_predict
from lsm.train.trained import load

BATCHES = (1, 32)
"""Examples of the batches whose latency is measured."""

_ROUNDS, _SECONDS = 30, 20.0  # at the most; a fifth of the rounds in any case
_COLD, _WARM = 2, 3  # calls of a turn: those that do not count, and those that do


@dataclasses.dataclass(frozen=True)
class Size:
    """How large a model is.

    Attributes:
      parameters: numbers that it computes with: parameters and constants.
      nonzero: those that are not 0.
      bytes: of all its arrays in their own dtypes, two to a byte in four bits: of a file of
        safetensors, without its header.
      compressed: the same bytes after DEFLATE (zlib, level 6), as gzip and zip have it. Zeros go
        almost for nothing then; no format of sparse arrays is counted.
    """

    parameters: int
    nonzero: int
    bytes: int
    compressed: int


@dataclasses.dataclass(frozen=True)
class Latency:
    """Milliseconds of a compiled forward pass, its inputs on the device, until it is done.

    Attributes:
      median: of all rounds.
      p95: 95 of 100 were no longer.
    """

    median: float
    p95: float


class Subject:
    """A run's model, loaded on one device and compiled for batches of its data."""

    def __init__(self, workdir: pathlib.Path, split: str, data_dir: str | None):
        """Reads the first examples of a split ("validation" or "test") beside the model."""
        self._run = load(workdir, experiment=experiment_of(workdir), devices=jax.devices()[:1])
        data = self._run.experiment.data
        self._dataset = data.source.open(getattr(data, split), data_dir)
        self._change = data.evaluate
        self._asked: dict[int, tuple] = {}

    @functools.cached_property
    def size(self) -> Size:
        """See `Size`."""
        arrays = _arrays(self._run.params, self._run.model_state)
        return size_of({path: np.asarray(x) for path, x in arrays.items()})

    def call(self, rows: int) -> None:
        """Runs the model on the first so many examples, and waits for it."""
        jax.block_until_ready(self._predict(*self._arguments(rows)))

    @functools.cached_property
    def _predict(self):
        run, rows, whole = self._run, batch_sharding(self._run.mesh), replicated(self._run.mesh)
        held = jax.tree.map(lambda x: x.sharding, (run.params, run.model_state))
        return jit(
            make_predict(run.experiment.task, run.experiment.train.seed),
            in_shardings=(*held, rows, whole, whole),
            out_shardings=whole,
            calls="many",
            mesh=run.mesh,
        )

    def _arguments(self, rows: int) -> tuple:
        if rows not in self._asked:
            self._asked[rows] = self._placed(rows)
        return self._asked[rows]

    def _placed(self, rows: int) -> tuple:
        run = self._run
        batch = EvalBatches(self._dataset, rows, change=self._change).batch_at(0)
        whole = replicated(run.mesh)
        numbers = jax.device_put((np.int32(0), np.int32(run.step)), whole)
        return (run.params, run.model_state, place(batch, batch_sharding(run.mesh)), *numbers)


def latencies(subjects: Sequence[Subject]) -> list[dict[int, Latency]]:
    """Returns the time of each subject's batches, by their examples.

    All take turns, and each round begins with another: what else the machine does meanwhile falls
    on all alike. The first calls of a turn find the caches full of another model, as those of a
    model that is used do not, and do not count.
    """
    calls = [(subject, rows) for subject in subjects for rows in BATCHES]
    times: dict[tuple[Subject, int], list[float]] = {call: [] for call in calls}
    for subject, rows in calls * 2:  # compiled, and once more: the first call is longer
        subject.call(rows)
    begun = time.perf_counter()
    for number in range(_ROUNDS):
        if number >= _ROUNDS // 5 and time.perf_counter() - begun > _SECONDS:
            break
        first = number % len(calls)
        for subject, rows in calls[first:] + calls[:first]:
            timed = [_milliseconds(subject, rows) for _ in range(_COLD + _WARM)]
            times[subject, rows] += timed[_COLD:]
    return [
        {
            rows: Latency(*map(float, np.percentile(times[subject, rows], (50, 95))))
            for rows in BATCHES
        }
        for subject in subjects
    ]


def _milliseconds(subject: Subject, rows: int) -> float:
    start = time.perf_counter()
    subject.call(rows)
    return 1e3 * (time.perf_counter() - start)


def _arrays(params, model_state) -> dict[str, jax.Array]:
    return flat({"params": params, **model_state})


def size_of(arrays: Mapping[str, np.ndarray]) -> Size:
    """Returns the size of a model, of its arrays by their paths."""
    packer = zlib.compressobj(6)
    held = [path for path in arrays if path.startswith(("params/", "constants/"))]
    numbers = [x for path in held for x in _numbers(path, arrays)]
    contents = [stored(x).tobytes() for _, x in sorted(arrays.items())]
    compressed = sum(len(packer.compress(content)) for content in contents)
    return Size(
        parameters=sum(x.size for x in numbers),
        nonzero=sum(int(np.count_nonzero(x)) for x in numbers),
        bytes=sum(map(len, contents)),
        compressed=compressed + len(packer.flush()),
    )


def _numbers(path: str, arrays: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
    """The numbers of an array; of a kernel of int4, whose bytes hold two, both halves."""
    return halves(arrays[path]) if path + SCALE in arrays else (arrays[path],)
