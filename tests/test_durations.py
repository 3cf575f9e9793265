"""Durations by properties: every text is steps or one line, and the arithmetic is monotone."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsm.checks import require_duration
from lsm.durations import LONGEST, Horizon, parse, to_steps
from lsm.errors import ConfigError
from lsm.optim import Exponential

HORIZONS = st.builds(
    Horizon,
    steps=st.integers(1, LONGEST),
    batch_size=st.integers(1, 10**6) | st.floats(0.01, 1e6),
    examples=st.integers(1, 10**12),
)
AMOUNTS = st.integers(0, 10**12) | st.floats(0, 1e12, allow_nan=False)
UNITS = st.sampled_from(["steps", "epochs", "examples", "%", " Epoch", " step", " %"])
LIKE = st.text("0123456789._e+-% stepochxamlSTEPn²\n'", max_size=20)


@given(st.text() | LIKE, HORIZONS)
def test_any_text_is_steps_or_one_line(text, horizon):
    try:
        steps = to_steps(text, horizon, "field")
    except ConfigError as error:
        assert str(error).startswith("field: ") and "\n" not in str(error)
    else:
        assert type(steps) is int and 0 <= steps <= LONGEST


@given(AMOUNTS, AMOUNTS, UNITS, HORIZONS)
def test_more_is_never_fewer_steps(one, other, unit, horizon):
    found = []
    for amount in sorted((one, other)):
        try:
            found.append(to_steps(f"{amount:f}{unit}", horizon))
        except ConfigError:
            found.append(math.inf)
        if amount >= 1e-6:
            assert found[-1] >= 1
    assert found == sorted(found)


@given(st.integers(-5, 2 * LONGEST), HORIZONS)
def test_numbers_are_steps(number, horizon):
    if 0 <= number <= LONGEST:
        assert to_steps(number, horizon) == to_steps(f"{number} steps", horizon) == number
    else:
        with pytest.raises(ConfigError):
            to_steps(number, horizon)


@given(HORIZONS)
def test_units_agree(horizon):
    assert to_steps("100%", horizon) == horizon.steps
    one = round(horizon.examples / horizon.batch_size)
    if one <= LONGEST:
        assert abs(to_steps("1 epoch", horizon) - max(one, 1)) <= 1
        assert to_steps("1 epoch", horizon) == to_steps(f"{horizon.examples} examples", horizon)


@given(st.text() | LIKE)
def test_what_a_config_accepts_can_be_parsed(text):
    try:
        require_duration(Exponential(), "every", text)
    except ConfigError:
        return
    amount, unit = parse(text)
    assert amount > 0 and math.isfinite(amount)
    assert unit in ("steps", "epochs", "examples", "%")


def test_a_run_is_counted_in_32_bits():
    with pytest.raises(ConfigError, match=r"train: 2.15e\+09 steps given; allowed: 2,147,483,647"):
        Horizon(steps=LONGEST + 1, batch_size=1, examples=1)
