"""Distillation, against its formula in NumPy; features, chunks, weights; no gradient to a teacher."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm import losses
from lsm.errors import ConfigError, DataError
from lsm.models import CNN, GPT, MLP, Transformer, Views
from lsm.models.bert import BERT, BLOCKS, Classifier
from lsm.optim import Magnitude
from lsm.params import flat
from lsm.tasks import (
    CONSTANTS,
    Classification,
    Distillation,
    LanguageModelling,
    Match,
    Regression,
    Teacher,
    TextClassification,
)

RANDOM = np.random.default_rng(0)


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence(logits, teacher, t):
    """T^2 KL(teacher || student), written out in float64."""
    p, q = (log_softmax(np.asarray(x, np.float64) / t) for x in (teacher, logits))
    return t**2 * (np.exp(p) * (p - q)).sum(-1)


def test_the_loss_is_hinton_s():
    logits, teacher = RANDOM.normal(size=(2, 5, 4)) * 3
    found = losses.distillation(jnp.float32(logits), jnp.float32(teacher), 3.0)
    np.testing.assert_allclose(found, divergence(logits, teacher, 3.0), rtol=1e-5)
    with pytest.raises(DataError, match=r"targets \(5, 3\) for predictions \(5, 4\)"):
        losses.distillation(jnp.float32(logits), jnp.float32(teacher[:, :3]), 1.0)


def test_at_high_temperatures_it_is_the_squared_error_of_centred_logits():
    # Hinton et al. 2015, equation 4: then dL/dz = (z - v) / K, of logits with mean 0.
    logits, teacher = (x - x.mean(-1, keepdims=True) for x in RANDOM.normal(size=(2, 5, 4)))
    gradient = jax.grad(lambda z: losses.distillation(z, jnp.float32(teacher), 1e3).sum())
    np.testing.assert_allclose(gradient(jnp.float32(logits)), (logits - teacher) / 4, atol=2e-3)


CNNS = [CNN(widths=widths, convs=1, outputs=3) for widths in ((4, 6), (4, 8))]
PICTURES = {
    "image": RANDOM.integers(0, 256, (6, 8, 8, 1)).astype(np.uint8),
    "label": np.arange(6, dtype=np.int32) % 3,
    "weight": np.float32([1, 1, 0, 1, 2, 1]),
}
PICTURE_TASK = Distillation(
    student=Classification(model=CNNS[0], label_smoothing=0.1),
    teacher=Teacher(task=Classification(model=CNNS[1], mean=0.5, std=0.2), path="runs/teacher"),
    temperature=2.0,
    share=0.7,
    features=(Match("Conv_0", "Conv_0", 0.5), Match("Conv_1", "Conv_1", 0.25)),
)

TEXT = {
    "tokens": RANDOM.integers(1, 20, (4, 8)).astype(np.int32),
    "tokens_length": np.int32([8, 3, 5, 1]),
    "label": np.int32([0, 1, 1, 0]),
}


def bert(layers, width):
    blocks = dataclasses.replace(BLOCKS, layers=layers, heads=2, width=width, dropout=0.0)
    return Classifier(BERT(vocabulary=20, transformer=blocks, context=8))


TEXT_TASK = Distillation(
    student=TextClassification(model=bert(1, 8)),
    teacher=Teacher(task=TextClassification(model=bert(2, 12)), path="runs/teacher"),
    features=(Match("block_0", "block_1"),),
)


def initialised(task, batch):
    return jax.jit(task.init)(jax.random.key(0), batch)


@pytest.fixture(scope="module")
def pictures():
    """The task's variables, and what its loss says."""
    params, state = initialised(PICTURE_TASK, PICTURES)
    (_, output), grads = jax.jit(
        jax.value_and_grad(
            lambda params, state: PICTURE_TASK.loss(params, state, PICTURES, {}),
            argnums=(0, 1),
            has_aux=True,
        )
    )(params, state)
    return params, state, output, grads


def own_and_theirs(params, state, train=True):
    """Logits of both, and what their convolutions give, called without the task."""

    def called(model, params, stats, x, train):
        said, found = model.apply(
            {"params": params, "batch_stats": stats},
            x,
            train=train,
            capture_intermediates=True,
            mutable=["batch_stats", "intermediates"],
        )
        return said, [found["intermediates"][f"Conv_{i}"]["__call__"][0] for i in (0, 1)]

    x = PICTURES["image"] / np.float32(255)
    teacher = state[CONSTANTS]["teacher"]
    own = {name: tree for name, tree in params.items() if name != "distillation_projections"}
    return (
        called(CNNS[0], own, state["batch_stats"], x, train),
        called(CNNS[1], teacher["params"], teacher["batch_stats"], (x - 0.5) / 0.2, False),
    )


def test_the_loss_of_pictures_is_its_parts(pictures):
    params, state, output, _ = pictures
    (logits, layers), (theirs, their_layers) = own_and_theirs(params, state)
    weights = PICTURES["weight"]

    def mean(values):
        return (values * weights).sum() / weights.sum()

    smooth = 0.9 * np.eye(3)[PICTURES["label"]] + 0.1 / 3
    own = mean(-(smooth * log_softmax(np.asarray(logits, np.float64))).sum(-1))
    soft = mean(divergence(logits, theirs, 2.0))
    # The second has 6 filters for 8 of the teacher's, so that a matrix is between them.
    between = params["distillation_projections"]
    assert {name: x["matrix"].shape for name, x in between.items()} == {"1": (6, 8)}
    assert not any(Magnitude(sparsity=0.5).prunes(path, (6, 8)) for path in flat(between))
    layers[1] = layers[1] @ between["1"]["matrix"]
    errors = [
        mean(np.square(np.asarray(a) - b).mean((1, 2, 3)))
        for a, b in zip(layers, their_layers, strict=True)
    ]
    found = {name: float(x.mean) for name, x in output.metrics.items()}
    assert found["own_loss"] == pytest.approx(own, rel=1e-4)
    assert found["soft_loss"] == pytest.approx(soft, rel=1e-4)
    assert [found[f"feature_loss/{i}"] for i in (0, 1)] == pytest.approx(errors, rel=1e-4)
    whole = 0.3 * own + 0.7 * soft + 0.5 * errors[0] + 0.25 * errors[1]
    assert found["loss"] == pytest.approx(whole, rel=1e-4)
    assert output.metrics["loss"].weight == weights.sum()


def test_a_teacher_of_several_views_is_matched_at_the_picture_itself():
    model = CNNS[0]
    plain, seen = (
        dataclasses.replace(
            PICTURE_TASK,
            student=Classification(model=model),
            teacher=Teacher(task=Classification(model=of), path="runs/teacher"),
            features=(Match("Conv_0", "Conv_0"),),
        )
        for of in (model, Views(model))
    )
    params, state = initialised(plain, PICTURES)
    found = [
        task.loss(params, state, PICTURES, {})[1].metrics["feature_loss/0"].mean
        for task in (plain, seen)
    ]
    # Both are drawn with one key: the student is its teacher.
    assert found[0] == 0 and found[1] == pytest.approx(0, abs=1e-6)


def test_the_student_has_gradients_and_the_teacher_none(pictures):
    params, _, output, (grads, of_state) = pictures
    assert all(np.abs(x).max() > 0 for path, x in flat(grads).items() if "kernel" in path)
    assert grads.keys() == params.keys()
    assert all(not np.any(x) for x in jax.tree.leaves(of_state[CONSTANTS]["teacher"]))
    # It runs as in evaluation: what changed is the student's.
    assert output.model_state.keys() == {"batch_stats"}


def test_evaluation_is_the_student_s_alone(pictures):
    params, state, *_ = pictures
    logits = own_and_theirs(params, state, train=False)[0][0]
    plain = PICTURE_TASK.plain.metrics(logits, PICTURES, False, 0)
    found = jax.jit(PICTURE_TASK.evaluate)(params, state, PICTURES)
    assert found.keys() == plain.keys() == {"loss", "accuracy"}
    assert found["loss"].mean == pytest.approx(float(plain["loss"].mean), rel=1e-5)


@pytest.fixture(scope="module")
def texts():
    """Variables of two encoders."""
    return initialised(TEXT_TASK, TEXT)


def test_padding_is_no_feature(texts):
    loss = jax.jit(lambda batch: TEXT_TASK.loss(*texts, batch, {})[1].metrics)
    found = loss(TEXT)
    padding = np.arange(8) >= TEXT["tokens_length"][:, None]
    other = loss({**TEXT, "tokens": np.where(padding, 19, TEXT["tokens"])})
    assert float(found["feature_loss/0"].mean) > 0.1
    for name, x in found.items():
        assert float(other[name].mean) == pytest.approx(float(x.mean), rel=1e-5), name


def gpt(layers, width, theta=1e4):
    blocks = Transformer(layers=layers, heads=2, width=width, theta=theta)
    return GPT(vocabulary=20, transformer=blocks, context=8)


@pytest.mark.slow
def test_tokens_are_taught_one_by_one_by_their_weights_in_parts_or_whole():
    batch = {"tokens": RANDOM.integers(0, 20, (3, 9)).astype(np.int32), "tokens_length": TEXT["tokens_length"][:3]}  # fmt: skip
    models = gpt(1, 8), gpt(1, 12)

    def task(own, theirs):
        student, teacher = (
            LanguageModelling(model=model, chunks=chunks)
            for model, chunks in zip(models, (own, theirs), strict=True)
        )
        features = (Match("block_0", "block_0"),)
        return Distillation(
            student=student, teacher=Teacher(task=teacher, path=""), features=features
        )

    variables = initialised(task(1, 1), batch)
    # Of size, as at first all logits are alike.
    variables = jax.tree.map(lambda x: 20 * x if x.ndim > 1 else x, variables)

    def loss(task, params, state):
        return task.loss(params, state, batch, {})[1].metrics

    whole, parts = (
        jax.jit(loss, static_argnums=0)(task(*chunks), *variables) for chunks in ((1, 1), (4, 2))
    )
    params, teacher = variables[0], variables[1][CONSTANTS]["teacher"]["params"]
    own, theirs = (
        model.apply({"params": of}, batch["tokens"][:, :-1])
        for model, of in zip(models, (params, teacher), strict=True)
    )
    weights = np.arange(1, 9) < batch["tokens_length"][:, None]
    expected = divergence(own, theirs, 4.0)[weights].mean()
    assert float(whole["soft_loss"].mean) == pytest.approx(expected, rel=1e-4)
    assert float(whole["soft_loss"].weight) == weights.sum() and expected > 0.1
    for name, x in whole.items():
        assert float(parts[name].mean) == pytest.approx(float(x.mean), rel=1e-4), name


@pytest.mark.parametrize(
    ("features", "line"),
    [
        (Match("Conv_2", "Conv_1"), "Match.student: the student has no layer 'Conv_2' .* Did you"),
        (
            Match("Conv_1", "Conv_0"),
            r"'Conv_1' .* gives \(6, 4, 4, 6\) .* \(6, 8, 8, 4\); they may",
        ),
    ],
    ids=["name", "shape"],
)
def test_layers_that_cannot_be_matched_are_one_line(features, line):
    task = dataclasses.replace(PICTURE_TASK, features=(features,))
    with pytest.raises(ConfigError, match=line):
        jax.eval_shape(task.init, jax.random.key(0), PICTURES)


def test_fields_are_checked():
    mlp = MLP(widths=(4,), outputs=1)
    with pytest.raises(ConfigError, match="Distillation.student: Regression given; allowed: class"):
        dataclasses.replace(PICTURE_TASK, student=Regression(model=mlp))
    with pytest.raises(ConfigError, match="model tells 3 classes or tokens apart, and the student"):
        wide = dataclasses.replace(CNNS[0], outputs=4)
        dataclasses.replace(PICTURE_TASK, student=Classification(model=wide))
    with pytest.raises(ConfigError, match="temperature: 0 given"):
        dataclasses.replace(PICTURE_TASK, temperature=0)
    with pytest.raises(ConfigError, match="share: 1.5 given"):
        dataclasses.replace(PICTURE_TASK, share=1.5)
    with pytest.raises(DataError, match="of the teacher: task.input: the data has no column 'big'"):
        teacher = Teacher(task=Classification(model=CNNS[1], input="big"), path="runs/teacher")
        dataclasses.replace(PICTURE_TASK, teacher=teacher).check(PICTURES)
