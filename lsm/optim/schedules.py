"""Learning-rate schedules: the shape over the run, as a factor of the peak learning rate.

A schedule says how the learning rate changes, `Algorithm.learning_rate` how high it is:

    Adam(learning_rate=1e-3, schedule=WarmUp("5%", then=Cosine(final=0.1)))
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from lsm.checks import require, require_duration
from lsm.durations import Duration, Horizon, to_steps
from lsm.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The shape of the learning rate over the run."""

    constant: ClassVar[bool] = False
    """Whether the shape is 1 at every step, so that no step counter is needed."""

    def shape(self, horizon: Horizon) -> optax.Schedule:
        """Returns the factor of the learning rate as a function of the step, from 0 on."""
        raise NotImplementedError

    def feedback(self, horizon: Horizon) -> optax.GradientTransformationExtraArgs | None:
        """Returns a transform that scales the updates by what the loss does, or None."""
        del horizon


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """The learning rate stays at its peak."""

    constant: ClassVar[bool] = True

    def shape(self, horizon: Horizon) -> optax.Schedule:
        """Returns 1 at every step."""
        del horizon
        return optax.constant_schedule(1.0)


@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    """A straight line from 1 at the first step to `to`, and level from there on.

    Attributes:
      to: factor at the end.
      over: when that is reached; None is the end of the run.
    """

    to: float = 0.0
    over: Duration | None = None

    def __post_init__(self):
        require(self, to="[0, inf)")
        if self.over is not None:
            require_duration(self, "over", self.over)

    def shape(self, horizon: Horizon) -> optax.Schedule:
        """Returns 1 + (to - 1) * step / steps."""
        over = horizon.steps
        if self.over is not None:
            over = to_steps(self.over, horizon, "Linear.over")
        # A warm-up that takes the whole run leaves 0 steps, which Optax takes as never to change.
        return optax.linear_schedule(1.0, self.to, max(over, 1))


@dataclasses.dataclass(frozen=True)
class Exponential(Schedule):
    """Exponential decay, smooth from step to step.

    Attributes:
      factor: what the learning rate is multiplied by in each `every`.
      every: duration of one such decay.
    """

    factor: float = 0.9
    every: Duration = "1 epoch"

    def __post_init__(self):
        require(self, factor="(0, 1]")
        require_duration(self, "every", self.every)

    def shape(self, horizon: Horizon) -> optax.Schedule:
        """Returns factor ^ (step / every)."""
        every = to_steps(self.every, horizon, "Exponential.every")
        return optax.exponential_decay(1.0, every, self.factor)


@dataclasses.dataclass(frozen=True)
class Step(Schedule):
    """Steps down at milestones.

    Attributes:
      milestones: when; the step at a milestone is the first at the lower rate.
      factor: what the learning rate is multiplied by at each milestone.
    """

    milestones: tuple[Duration, ...] = ("50%", "75%")
    factor: float = 0.1

    def __post_init__(self):
        require(self, factor="(0, inf)")
        require_duration(self, "milestones", *self.milestones)

    def shape(self, horizon: Horizon) -> optax.Schedule:
        """Returns factor ^ (number of milestones reached)."""
        scales: dict[int, float] = {}
        for milestone in self.milestones:
            step = to_steps(milestone, horizon, "Step.milestones")
            # In a short run, milestones may fall on one step: each counts.
            scales[step] = scales.get(step, 1.0) * self.factor
        return optax.piecewise_constant_schedule(1.0, scales)


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from 1 to `final` over the run, without restarts.

    Loshchilov & Hutter 2017, arXiv:1608.03983.

    Attributes:
      final: factor at the end of the run.
    """

    final: float = 0.0

    def __post_init__(self):
        require(self, final="[0, 1]")

    def shape(self, horizon: Horizon) -> optax.Schedule:
        """Returns final + (1 - final) * (1 + cos(pi * step / steps)) / 2."""
        # A warm-up that takes the whole run leaves 0 steps, which Optax refuses.
        return optax.cosine_decay_schedule(1.0, max(horizon.steps, 1), alpha=self.final)


@dataclasses.dataclass(frozen=True)
class InverseSqrt(Schedule):
    """Falls as 1 / sqrt(step).

    `WarmUp(w, then=InverseSqrt(w))` is the schedule of the Transformer (Vaswani et al. 2017,
    arXiv:1706.03762, equation 3), peak and all.

    Attributes:
      timescale: T; the factor is 0.5 after 3 T.
    """

    timescale: Duration = 1000

    def __post_init__(self):
        require_duration(self, "timescale", self.timescale)

    def shape(self, horizon: Horizon) -> optax.Schedule:
        """Returns 1 / sqrt(1 + step / timescale)."""
        timescale = to_steps(self.timescale, horizon, "InverseSqrt.timescale")
        # Under WarmUp the step is negative until the warm-up is over; the value is not used then.
        return lambda step: 1 / jnp.sqrt(1 + jnp.maximum(step, 0) / timescale)


@dataclasses.dataclass(frozen=True)
class WarmUp(Schedule):
    """A straight line from `start` up to 1, and then another schedule.

    The schedule after it counts its steps from the end of the warm-up and sees a run of the
    remaining steps: `WarmUp("10%", then=Cosine())` reaches the cosine's end at the run's end.

    Attributes:
      duration: of the warm-up; no longer than the run, and 0 for none.
      then: the schedule that follows.
      start: factor at the first step; at 0 the first update changes nothing.
    """

    duration: Duration
    then: Schedule = Constant()
    start: float = 0.0

    def __post_init__(self):
        require(self, start="[0, 1]")
        require_duration(self, "duration", self.duration, zero=True)
        if not isinstance(self.then, Schedule):
            raise ConfigError(f"WarmUp.then: {self.then!r} given; allowed: a Schedule.")

    def shape(self, horizon: Horizon) -> optax.Schedule:
        """Returns start + (1 - start) * step / duration, then the shape of `then`."""
        # `join_schedules` calls the second with its own steps, from 0 at the boundary.
        rest = self._rest(horizon)
        steps = horizon.steps - rest.steps
        rise = optax.linear_schedule(self.start, 1.0, steps)
        return optax.join_schedules([rise, self.then.shape(rest)], [steps])

    def feedback(self, horizon: Horizon) -> optax.GradientTransformationExtraArgs | None:
        """Returns the feedback of `then`, which watches the loss during the warm-up as well."""
        return self.then.feedback(self._rest(horizon))

    def _rest(self, horizon: Horizon) -> Horizon:
        steps = to_steps(self.duration, horizon, "WarmUp.duration")
        if steps > horizon.steps:
            raise ConfigError(
                f"WarmUp.duration: {self.duration!r} is {steps} steps, but the run has "
                f"{horizon.steps}; allowed: at most the run, for example '5%'."
            )
        return dataclasses.replace(horizon, steps=horizon.steps - steps)


@dataclasses.dataclass(frozen=True)
class ReduceOnPlateau(Schedule):
    """Multiplies the learning rate by `factor` whenever the training loss stops falling.

    The loss is averaged over `accumulation`, which makes one value; a value counts as better
    where it is below (1 - tolerance) times the best so far, which supposes losses above 0. With the
    default accumulation, patience and cooldown are in epochs, as in Keras, whose patience this is
    (PyTorch waits for one value more); its cooldown leaves out one value fewer.

    Attributes:
      factor: what the learning rate is multiplied by, in (0, 1).
      patience: values without a better one, before the learning rate falls.
      cooldown: values after a fall that are not counted.
      accumulation: duration over which the loss is averaged to one value.
      tolerance: relative improvement below which a value does not count as better.
      floor: factor of the peak that the learning rate never falls below.
    """

    # What falls is a number in the state of `feedback`.
    constant: ClassVar[bool] = True
    factor: float = 0.1
    patience: int = 10
    cooldown: int = 0
    accumulation: Duration = "1 epoch"
    tolerance: float = 1e-4
    floor: float = 0.0

    def __post_init__(self):
        require(self, factor="(0, 1)", patience="[1, inf)", cooldown="[0, inf)")
        require(self, tolerance="(0, 1]", floor="[0, 1]")
        require_duration(self, "accumulation", self.accumulation)

    def shape(self, horizon: Horizon) -> optax.Schedule:
        """Returns 1 at every step: what falls is the factor kept by `feedback`."""
        del horizon
        return optax.constant_schedule(1.0)

    def feedback(self, horizon: Horizon) -> optax.GradientTransformationExtraArgs:
        """Returns the transform; its update needs the loss of the step as `value`.

        A step whose loss has the `weight` 0 says nothing of it, and is left out.
        """
        plateau = optax.contrib.reduce_on_plateau(
            factor=self.factor,
            patience=self.patience,
            rtol=self.tolerance,
            cooldown=self.cooldown,
            accumulation_size=to_steps(self.accumulation, horizon, "ReduceOnPlateau.accumulation"),
            min_scale=self.floor,
        )

        def update(updates, state, params=None, *, value, weight=1.0, **others):
            _, told = plateau.update(updates, state, params, value=value)
            state = jax.tree.map(lambda now, was: jnp.where(weight == 0, was, now), told, state)
            return jax.tree.map(lambda g: state.scale * g, updates), state

        return optax.GradientTransformationExtraArgs(plateau.init, update)
