"""Transformers and ResNets with some of their blocks: against what the others are the identity in."""

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
from lsm.models import GPT, MLP, QuantisationAware, Quantised, ResNet, Transformer
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


RESNET = ResNet(depths=(1, 3, 2), width=4, stem="cifar", outputs=3, shortcut="padding")
PICTURES = {
    "image": np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32),
    "label": np.arange(16, dtype=np.int32) % 3,
}


def pictured(model):
    return experiment(Classification(model=model), PICTURES)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """The workdir of a run of a ResNet of 1 + 3 + 2 blocks."""
    workdir = tmp_path_factory.mktemp("resnet") / "run"
    lsm.fit(pictured(RESNET), workdir)
    return workdir


@pytest.mark.slow
def test_blocks_of_a_resnet_go_as_if_they_added_nothing(resnet, tmp_path):
    shorten(resnet, tmp_path / "out", layers=(0, 1, 3, 4), experiment=pictured(RESNET))
    short = dataclasses.replace(RESNET, depths=(1, 2, 1))
    whole = lsm.load(resnet, experiment=pictured(RESNET))
    made = lsm.load(tmp_path / "out", experiment=pictured(short))
    params = {**whole.params}
    for gone in ("stage_2_block_1", "stage_3_block_1"):
        nothing = jax.tree.map(jax.numpy.zeros_like, params[gone]["norm_2"])
        params[gone] = {**params[gone], "norm_2": nothing}
    known, found = (
        model.apply({"params": weights, **run.model_state}, PICTURES["image"])
        for model, run, weights in ((RESNET, whole, params), (short, made, made.params))
    )
    np.testing.assert_allclose(found, known, rtol=1e-5, atol=1e-6)


def test_the_first_block_of_each_stage_of_a_resnet_stays(resnet, tmp_path):
    line = "shorten.layers: .* given; the first block of each stage stays, here 0, 1, 4."
    cut = functools.partial(shorten, resnet, tmp_path / "out", experiment=pictured(RESNET))
    for layers in ((1, 4), (0, 2, 4), (0, 1)):
        with pytest.raises(ConfigError, match=line):
            cut(layers=layers)
    with pytest.raises(ConfigError, match="of the 6 blocks some are needed, by rising numbers"):
        cut(layers=(0, 1, 4, 6))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_model_without_blocks_is_told(tmp_path):
    columns = {"image": np.zeros((16, 4), np.float32), "label": np.zeros(16, np.int32)}
    case = experiment(Classification(model=MLP(widths=(4,))), columns)
    lsm.fit(case, tmp_path / "run")
    with pytest.raises(ConfigError, match="shorten: MLP is neither a ResNet nor a stack"):
        shorten(tmp_path / "run", tmp_path / "out", layers=(0,), experiment=case)


@pytest.mark.slow
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
