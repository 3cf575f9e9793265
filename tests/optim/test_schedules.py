"""Schedules against their closed forms, over a run of 1000 steps of 40 to the epoch."""

import math

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm.durations import Horizon
from lsm.errors import ConfigError
from lsm.optim import (
    SGD,
    Adam,
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    ReduceOnPlateau,
    Step,
    WarmUp,
)

HORIZON = Horizon(steps=1000, batch_size=25, examples=1000)


def warm(t, then, steps=100, start=0.0):
    return start + (1 - start) * t / steps if t < steps else then(t - steps)


def cosine(t, steps=1000, final=0.0):
    return final + (1 - final) * (1 + math.cos(math.pi * min(t, steps) / steps)) / 2


CASES = {
    "constant": (Constant(), lambda t: 1),
    "linear": (Linear(), lambda t: 1 - t / 1000),
    "linear, to 0.2": (Linear(to=0.2), lambda t: 1 - 0.8 * t / 1000),
    "exponential, an epoch": (Exponential(0.9, every="1 epoch"), lambda t: 0.9 ** (t / 40)),
    "exponential, examples": (Exponential(0.5, every="500 examples"), lambda t: 0.5 ** (t / 20)),
    "step, per cent": (Step(("50%", "75%"), 0.1), lambda t: 0.1 ** ((t >= 500) + (t >= 750))),
    "step, epochs": (Step(("5 epochs", 300), 0.5), lambda t: 0.5 ** ((t >= 200) + (t >= 300))),
    "step, twice at once": (Step(("10%", 100), 0.5), lambda t: 0.25 if t >= 100 else 1),
    "cosine": (Cosine(), cosine),
    "cosine, to 0.1": (Cosine(final=0.1), lambda t: cosine(t, final=0.1)),
    "inverse root": (InverseSqrt("5%"), lambda t: 1 / math.sqrt(1 + t / 50)),
    "reduce on plateau": (ReduceOnPlateau(), lambda t: 1),
    "warm-up, constant": (WarmUp(100), lambda t: warm(t, lambda t: 1)),
    "warm-up, cosine": (
        WarmUp("10%", then=Cosine()),
        lambda t: warm(t, lambda t: cosine(t, steps=900)),
    ),
    "warm-up from 0.1, linear": (
        WarmUp("2.5 epochs", then=Linear(), start=0.1),
        lambda t: warm(t, lambda t: 1 - t / 900, start=0.1),
    ),
    "warm-up, half of the rest": (
        WarmUp(100, then=Step(("50%",), 0.1)),
        lambda t: warm(t, lambda t: 0.1 if t >= 450 else 1),
    ),
    "warm-up of nothing": (WarmUp("0%", then=Linear()), lambda t: 1 - t / 1000),
}


@pytest.mark.parametrize("case", CASES)
def test_closed_form(case):
    schedule, closed_form = CASES[case]
    steps = np.r_[0:1000:7, 39:42, 99:102, 199:202, 499:502, 549:551, 749:752, 999:1001]
    values = jax.vmap(schedule.shape(HORIZON))(steps) * np.ones(len(steps))
    np.testing.assert_allclose(values, [closed_form(int(t)) for t in steps], rtol=2e-5, atol=1e-6)


def test_transformer_schedule_is_warm_up_and_inverse_root():
    # Vaswani et al. 2017, equation 3: min(t^-0.5, t w^-1.5), here with its peak w^-0.5 divided out.
    w = 40
    shape = WarmUp(w, then=InverseSqrt(w)).shape(HORIZON)
    for t in (1, 10, 39, 40, 41, 200, 999):
        published = min(t**-0.5, t * w**-1.5) / w**-0.5
        assert float(shape(t)) == pytest.approx(published, rel=1e-6)


def rate(optimizer, step, state=None, horizon=HORIZON):
    (name, value), *others = optimizer.learning_rates(horizon, step, state).items()
    assert (name, others) == ("learning_rate", [])
    return float(value)


def test_learning_rate_is_the_peak():
    schedule = WarmUp("10%", then=Cosine())
    optimizer = SGD(learning_rate=3e-4, schedule=schedule)
    rates = [rate(optimizer, t) for t in range(0, 1001, 10)]
    assert max(rates) == pytest.approx(3e-4)
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("schedule", [Constant(), Linear(), WarmUp(3, then=Cosine(final=0.5))])
def test_the_update_follows_the_schedule(schedule):
    horizon = Horizon(steps=8, batch_size=1, examples=8)
    optimizer = SGD(learning_rate=0.5, schedule=schedule)
    transform = optimizer.make(horizon)
    params = {"kernel": np.float32([2.0])}
    state = transform.init(params)
    for step in range(8):
        updates, state = transform.update({"kernel": np.float32([1.0])}, state, params, value=1.0)
        expected = -rate(optimizer, step, horizon=horizon)
        assert float(updates["kernel"][0]) == pytest.approx(expected, rel=1e-6)


def losses_to_rates(schedule, losses, accumulation_steps=1):
    optimizer = SGD(learning_rate=1.0, schedule=schedule)
    transform = optimizer.make(HORIZON)
    params = {"kernel": np.float32([0.0])}
    state = transform.init(params)
    update = jax.jit(transform.update)
    rates = []
    for loss in losses:
        for _ in range(accumulation_steps):
            updates, state = update({"kernel": np.float32([1.0])}, state, params, value=loss)
        rates.append(-float(updates["kernel"][0]))
    return rates, state, optimizer


def test_reduce_on_plateau_counts_as_keras():
    # Best is 1.0; two values in a row no better (patience 2) halve the rate; the value after it is
    # within the cooldown and not counted, the next two are.
    schedule = ReduceOnPlateau(factor=0.5, patience=2, cooldown=1, accumulation=1)
    losses = [2.0, 1.0, 1.0, 0.99999, 1.0, 1.0, 1.0, 0.5, 0.6]
    rates, state, optimizer = losses_to_rates(schedule, losses)
    assert rates == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    assert rate(optimizer, 9, state) == 0.25
    assert rate(optimizer, 9) == 1


def test_reduce_on_plateau_averages_over_the_accumulation():
    # 25 examples a step: "75 examples" are three steps to a value.
    schedule = ReduceOnPlateau(factor=0.1, patience=1, accumulation="75 examples", floor=0.05)
    rates, _, _ = losses_to_rates(schedule, [1.0, 0.5, 0.5, 0.5, 0.5], accumulation_steps=3)
    np.testing.assert_allclose(rates, [1, 1, 0.1, 0.05, 0.05], rtol=1e-6)


def test_a_loss_of_nothing_is_none_to_reduce_on_plateau():
    schedule = ReduceOnPlateau(factor=0.5, patience=2, accumulation=2)
    transform = SGD(learning_rate=1.0, schedule=schedule).make(HORIZON)
    params, gradient = {"kernel": np.float32([0.0])}, {"kernel": np.float32([1.0])}
    losses = [3.0, 2.0, 1.5, 1.0, 1.0, 0.5]
    states = {}
    for between in (False, True):
        state = transform.init(params)
        for loss in losses:
            _, state = transform.update(gradient, state, params, value=loss, weight=7.0)
            if between:  # 0 is what the mean of nothing is
                _, state = transform.update(gradient, state, params, value=0.0, weight=0.0)
        states[between] = state["plateau"]
    jax.tree.map(np.testing.assert_array_equal, states[True], states[False])


def test_reduce_on_plateau_after_a_warm_up():
    schedule = WarmUp(2, then=ReduceOnPlateau(factor=0.5, patience=2, accumulation=1))
    rates, _, _ = losses_to_rates(schedule, [3.0, 2.0, 1.0, 1.0, 1.0])
    assert rates == [0, 0.5, 1, 1, 0.5]


def test_an_optimizer_without_plateau_ignores_the_loss():
    transform = Adam(learning_rate=1e-3).make(HORIZON)
    params = {"kernel": np.float32([1.0])}
    with_loss, _ = transform.update(params, transform.init(params), params, value=np.nan)
    without, _ = transform.update(params, transform.init(params), params)
    assert with_loss["kernel"] == without["kernel"]
    assert isinstance(transform, optax.GradientTransformationExtraArgs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WarmUp("2 eopchs"), r"WarmUp\.duration: '2 eopchs' .*Did you mean 'epochs'"),
        (lambda: WarmUp(0.1), r"WarmUp\.duration: 0\.1 given; allowed: a duration, such as 300"),
        (lambda: WarmUp(10, then=0.1), r"WarmUp\.then: 0\.1 given; allowed: a Schedule"),
        (lambda: Exponential(every=0), r"Exponential\.every: 0 given; allowed: a duration above 0"),
        (lambda: Step(("50%", -1)), r"Step\.milestones: -1 given"),
        (lambda: Cosine(final=2), r"Cosine\.final: 2 given; allowed: a number in \[0, 1\]"),
        (lambda: ReduceOnPlateau(factor=1.5), r"ReduceOnPlateau\.factor: 1\.5 given"),
        (lambda: ReduceOnPlateau(patience=0), r"ReduceOnPlateau\.patience: 0 given"),
        (
            lambda: WarmUp("26 epochs", then=Cosine()).shape(HORIZON),
            r"WarmUp\.duration: '26 epochs' is 1040 steps, but the run has 1000",
        ),
    ],
)
def test_a_wrong_schedule_is_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


DURATIONS = st.integers(1, 3000) | st.sampled_from(["1 epoch", "0.1 epochs", "33%", "100%", "0.1%"])
PLAIN = st.one_of(
    st.just(Constant()),
    st.builds(Linear, to=st.floats(0, 1)),
    st.builds(Exponential, factor=st.floats(1e-6, 1), every=DURATIONS),
    st.builds(
        Step,
        milestones=st.lists(DURATIONS, max_size=4).map(tuple),
        factor=st.floats(1e-6, 1),
    ),
    st.builds(Cosine, final=st.floats(0, 1)),
    st.builds(InverseSqrt, timescale=DURATIONS),
)
WARM = st.builds(
    WarmUp,
    duration=st.sampled_from([0, 1, "10%", "99.9%", "100%"]),
    then=PLAIN,
    start=st.floats(0, 1),
)
RUNS = st.builds(
    Horizon, steps=st.integers(1, 3000), batch_size=st.integers(1, 50), examples=st.integers(1, 999)
)


@settings(max_examples=15)  # each compiles a little
@given(PLAIN | WARM, RUNS)
def test_any_schedule_stays_between_0_and_1_and_falls_once_it_has_risen(schedule, horizon):
    # Beyond the end too: `skip_nonfinite` and a longer run that is continued go there.
    steps = np.unique(np.linspace(0, 1.2 * horizon.steps, 50).astype(int))
    factors = np.asarray(jax.vmap(schedule.shape(horizon))(steps))
    assert np.isfinite(factors).all() and factors.min() >= 0 and factors.max() <= 1 + 1e-6
    rises = np.diff(factors) > 1e-6
    assert not rises[np.argmin(rises) :].any()
    if not isinstance(schedule, WarmUp):
        assert not rises.any() and factors[0] <= 1
