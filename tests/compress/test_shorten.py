"""Transformers with some of their blocks: against the blocks called one by one."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import lsm
from lsm import Data, Experiment, Train
from lsm.compress import quantise, shorten, shrink
from lsm.compress.shorten import _shorter
from lsm.data import Arrays
from lsm.errors import ConfigError
from lsm.models import GPT, MLP, QuantisationAware, Quantised, Transformer
from lsm.optim import Adam
from lsm.params import flat
from lsm.tasks import Classification, DirectPreference, LanguageModelling

SMALL = Transformer(layers=3, heads=2, width=8, theta=1e4)
GPT_ = GPT(vocabulary=20, transformer=SMALL, context=8)
TOKENS = {"tokens": np.random.default_rng(0).integers(0, 20, (16, 9)).astype(np.int32)}


def experiment(task, columns=TOKENS):
    return Experiment(
        name="shortened",
        task=task,
        data=Data(source=Arrays(train=columns, test=columns)),
        optimizer=Adam(learning_rate=1e-2),
        train=Train(steps=1, batch_size=16),
        writers=(),
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The workdir of a run of three blocks."""
    workdir = tmp_path_factory.mktemp("base") / "run"
    lsm.fit(experiment(LanguageModelling(model=GPT_)), workdir)
    return workdir


def test_the_blocks_that_stay_are_those_that_were_there(base, tmp_path):
    case = experiment(LanguageModelling(model=GPT_))
    assert shorten(base, tmp_path / "out", layers=(0, 2), experiment=case) == 1
    short = dataclasses.replace(GPT_, transformer=dataclasses.replace(SMALL, layers=2))
    whole, made = (
        lsm.load(of, experiment=experiment(LanguageModelling(model=model)))
        for of, model in ((base, GPT_), (tmp_path / "out", short))
    )
    for path, x in flat(made.params).items():
        there = flat(whole.params)[path]
        np.testing.assert_array_equal(x, there[np.array([0, 2])] if "blocks/" in path else there)
    assert made.experiment.task.model == short


@pytest.mark.slow
def test_a_shorter_model_is_evaluated(base, tmp_path):
    case = experiment(LanguageModelling(model=GPT_))
    shorten(base, tmp_path / "out", layers=(0, 2), experiment=case)
    short = dataclasses.replace(GPT_, transformer=dataclasses.replace(SMALL, layers=2))
    made = lsm.load(tmp_path / "out", experiment=experiment(LanguageModelling(model=short)))
    _, figures = lsm.evaluate_run(made.experiment, tmp_path / "out")
    logits = short.apply({"params": made.params}, TOKENS["tokens"][:, :-1])
    found = -np.take_along_axis(
        np.asarray(jax.nn.log_softmax(logits)), TOKENS["tokens"][:, 1:, None], -1
    )
    assert figures["test"]["loss"] == pytest.approx(found.mean(), rel=1e-4)


@pytest.mark.parametrize("layers", [(), (0, 1, 2), (2, 0), (1, 3), (-1,), (1, 1)])
def test_blocks_that_are_none_are_one_line(base, tmp_path, layers):
    case = experiment(LanguageModelling(model=GPT_))
    with pytest.raises(ConfigError, match="shorten.layers: .* of the 3 blocks some are needed, by"):
        shorten(base, tmp_path / "out", layers=layers, experiment=case)


@pytest.mark.parametrize("around", [Quantised, QuantisationAware])
def test_what_stands_around_a_model_is_told(around):
    line = f"shorten: {around.__name__} stands around GPT; a plain run of that is needed"
    with pytest.raises(ConfigError, match=line):
        _shorter(around(GPT_), (0, 2), {"blocks": {}})


@pytest.mark.slow
def test_a_model_without_blocks_is_told(tmp_path):
    columns = {"image": np.zeros((16, 4), np.float32), "label": np.zeros(16, np.int32)}
    case = experiment(Classification(model=MLP(widths=(4,))), columns)
    lsm.fit(case, tmp_path / "run")
    with pytest.raises(ConfigError, match="shorten: MLP is no stack of Transformer blocks"):
        shorten(tmp_path / "run", tmp_path / "out", layers=(0,), experiment=case)


def test_a_model_that_holds_its_reference_is_refused(tmp_path):
    pairs = dict.fromkeys(("chosen", "rejected"), TOKENS["tokens"])
    weights = {f"{name}_weight": np.ones((16, 8), np.float32) for name in pairs}
    case = experiment(DirectPreference(model=GPT_), pairs | weights)
    lsm.fit(case, tmp_path / "run")
    makers = (
        functools.partial(shorten, layers=(0, 2)),
        functools.partial(shrink, hidden=0.5),
        quantise,
    )
    for make in makers:
        with pytest.raises(ConfigError, match="a run of DirectPreference holds a reference, which"):
            make(tmp_path / "run", tmp_path / "out", experiment=case)
    assert not (tmp_path / "out").exists()
