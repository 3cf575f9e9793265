"""How much of the devices a run uses."""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import jax

from lsm.cost import Flops, chip_of, model_flops
from lsm.errors import ConfigError
from lsm.models.experts import EXPERT_KERNELS, dropless, mixtures
from lsm.params import flat, matches
from lsm.rng import streams
from lsm.tasks import Params, Task
from lsm.train.goodput import Goodput
from lsm.train.state import TrainState
from lsm.train.trainer import Trainer


def active_params(task: Task, params: Params) -> int:
    """Returns the parameters that one token meets: of experts, the `top_k` that it goes to.

    As published: of Mixtral 8x7B's 46.7 billion these are 12.9. Arrays may be
    `jax.ShapeDtypeStruct`.
    """
    shares = [Fraction(experts.top_k, experts.count) for experts in mixtures(task)]
    if len(set(shares)) > 1:
        raise ConfigError("task: mixtures of several shares; which parameters are whose?")
    return sum(
        int(x.size * shares[0]) if shares and matches(EXPERT_KERNELS, path) else x.size
        for path, x in flat(params).items()
    )


def training_flops(task: Task, state: TrainState, batch: Any) -> Flops:
    """Returns the model FLOPs of a step on `batch`; arrays may be `jax.ShapeDtypeStruct`.

    By the convention a token needs 6 FLOPs for each parameter that it meets (`active_params`), and
    attention: places of experts that stay empty do not count, and dropped tokens do.
    """
    task = dropless(task)
    # A single row is not sorted by experts, some of whose places are empty then: two are counted.
    one = bool(mixtures(task)) and {x.shape[0] for x in jax.tree.leaves(batch)} == {1}
    if one:
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype), batch)
    rngs = jax.eval_shape(lambda: streams(task.streams, 0, 0))
    flops = model_flops(task.loss, state.params, state.model_state, batch, rngs, state.step)
    halves = {"forward": flops.forward / 2, "backward": flops.backward / 2}
    return dataclasses.replace(flops, **halves) if one else flops


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Turns steps per second into FLOP/s and their share of the peak.

    Attributes:
      flops: model FLOPs of one step, over all devices; see `lsm.cost.model_flops`.
      devices: how many work on it.
      peak: bfloat16 FLOP/s that one device has at best; None where that is not known, as on CPUs.
    """

    flops: float
    devices: int
    peak: float | None

    @classmethod
    def of(cls, trainer: Trainer) -> "Throughput":
        """Traces the loss for a whole batch: some tens of milliseconds.

        Where batches of texts differ in length, FLOPs are the mean of the first 100 steps.
        """
        program, task = trainer.program, trainer.experiment.task
        state, flops = program.abstract_state, []
        for batch, share in _shapes(trainer):
            flops.append(training_flops(task, state, batch).total * share)
        devices = program.mesh.devices
        chip = chip_of(devices.flat[0].device_kind)
        return cls(sum(flops), devices.size, chip and chip.flops)

    def figures(self, steps_per_sec: float) -> dict[str, float]:
        """Returns model TFLOP/s of each device, and where the peak is known "mfu", 0 to 1."""
        flops_per_sec = self.flops * steps_per_sec / self.devices
        figures = {"tflops_per_sec_per_device": flops_per_sec / 1e12}
        if self.peak:
            figures["mfu"] = flops_per_sec / self.peak
        return figures

    def summary(self, goodput: Goodput, replayed: int, steps: int) -> dict[str, float]:
        """Returns the figures of a whole run: `result.json` holds them, and its row "goodput".

        Args:
          goodput: what the time went into.
          replayed: steps that kills undid.
          steps: steps that the model is made of.

        Returns:
          "goodput", the share of useful steps; "wall_time"; the seconds of each kind as
          "steps_seconds", "input_seconds", ...; "replayed_steps"; and over steps and input together
          "steps_per_sec" and `figures`.
        """
        times = {f"{kind}_seconds": s for kind, s in dataclasses.asdict(goodput).items()}
        summary = {"goodput": goodput.share, "wall_time": goodput.total} | times
        summary["replayed_steps"] = replayed
        if goodput.steps:
            speed = steps / (goodput.steps + goodput.input)
            summary |= {"steps_per_sec": speed} | self.figures(speed)
        return summary


def _shapes(trainer: Trainer) -> Iterator[tuple[Mapping[str, jax.ShapeDtypeStruct], float]]:
    """Yields the shapes of batches, and the share of each: one, unless texts are in buckets."""
    batch, encoder = trainer.program.abstract_batch, trainer.train.dataset.encoder
    if encoder is None or len(encoder.buckets) == 1:
        yield batch, 1.0
        return
    steps = min(trainer.horizon.steps, 100)
    widths = collections.Counter(map(trainer.train.width_at, range(steps)))
    columns = trainer.train.dataset.spec
    full = {
        name: jax.ShapeDtypeStruct((x.shape[0], *columns[name].shape), x.dtype)
        if name in columns
        else x
        for name, x in batch.items()
    }
    for width, count in sorted(widths.items()):
        yield jax.eval_shape(functools.partial(encoder.cut, width=width), full), count / steps
