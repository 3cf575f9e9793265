"""A loss that is a plain function: figures as NumPy's over all examples, one line for a slip."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lsm
from lsm import Data, Evaluation, Experiment, Train
from lsm.config import schema
from lsm.data import Arrays
from lsm.durations import Horizon
from lsm.errors import ConfigError, DataError
from lsm.models import MLP
from lsm.optim import SGD
from lsm.tasks import Function, Task
from lsm.train import init_state, make_step, state_table

COUNT = 37  # a prime: whatever the batch, the last one is filled up


def cross_entropy(logits, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def right(logits, batch):
    return logits.argmax(-1) == batch["label"]


def squares(outputs, batch):
    return (outputs - batch["y"]) ** 2


def columns(count=COUNT):
    random = np.random.default_rng(0)
    x, label = random.normal(size=(count, 4)), random.integers(0, 3, count)
    return {"x": x.astype(np.float32), "label": label.astype(np.int32)}


TASK = Function(MLP(widths=(5,), outputs=3), cross_entropy, metric_fns={"accuracy": right})


def experiment(task=TASK, data=None, **train):
    return Experiment(
        name="function",
        task=task,
        data=Data(source=Arrays(train=data or columns(), test=data or columns())),
        optimizer=SGD(learning_rate=0.1),
        train=Train(**{"steps": 2, "batch_size": 16} | train),
        evaluation=Evaluation(batch_size=8),
        writers=(),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("function")
    return workdir, lsm.fit(experiment(), workdir)


def test_figures_are_those_of_all_examples(finished):
    workdir, result = finished
    data = columns()
    found = lsm.load(workdir, experiment=experiment()).predict({"x": data["x"]})
    logits = np.float64(found["outputs"])
    log_probability = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -log_probability[np.arange(COUNT), data["label"]]
    assert result.metrics["test"]["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    hits = (logits.argmax(-1) == data["label"]).sum()
    assert result.metrics["test"]["accuracy"] == pytest.approx(hits / COUNT, abs=1e-7)


def test_predictions_are_the_outputs_of_every_example(finished):
    _, files = lsm.predict_run(experiment(), finished[0])
    rows = [json.loads(line) for line in files["test"].read_text().splitlines()]
    assert [len(row["outputs"]) for row in rows] == [3] * COUNT


def test_functions_are_told_by_their_names(finished):
    workdir, _ = finished
    task = json.loads((workdir / "config.json").read_text())["task"]
    assert task["loss_fn"] == f"{__name__}.cross_entropy"
    assert task["metric_fns"] == {"accuracy": f"{__name__}.right"}
    assert schema.from_json(schema.to_json(TASK), Task) == TASK
    assert "params/Dense_1/kernel" in state_table(experiment())


def test_four_micro_batches_are_one_also_of_uneven_weights():
    batch = columns(16) | {"weight": np.float32(np.r_[np.arange(12) / 4, np.zeros(4)])}
    transform = SGD(learning_rate=0.1).make(Horizon(4, 16, 16))
    state = init_state(TASK, transform, batch, seed=0)
    whole, parts = (
        jax.jit(make_step(TASK, transform, accumulation=n))(state, batch) for n in (1, 4)
    )
    short = {name: x[:12] for name, x in batch.items()}  # weight 0 is not there at all
    real = jax.jit(make_step(TASK, transform))(state, short)
    for other in (parts, real):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            (whole[0].params, whole[1]),
            (other[0].params, other[1]),
        )


def metrics(loss_fn, batch, outputs=None, **more):
    task = Function(nn.Dense(2), loss_fn, **more)
    outputs = jnp.zeros((4, 2)) if outputs is None else outputs
    return task.metrics(outputs, batch, True, jnp.int32(0))


def test_values_of_any_shape_and_pairs():
    y = np.arange(8, dtype=np.float32).reshape(4, 2)
    weight = np.float32([1, 2, 0, 0])
    total, count = metrics(squares, {"y": y, "weight": weight})["loss"]
    assert (float(total), float(count)) == (0 + 1 + 2 * (4 + 9), 6)
    by_place = np.float32([[1, 0], [0, 0], [0, 0], [0, 2]])
    total, count = metrics(squares, {"y": y, "weight": by_place})["loss"]
    assert (float(total), float(count)) == (2 * 49, 3)
    pair = metrics(lambda o, batch: (batch["y"].sum(), 5.0), {"y": y})["loss"]
    assert tuple(map(float, pair)) == (28, 5)


def test_several_columns_are_a_dict():
    task = Function(nn.Dense(2), squares, ("x", "y"))
    batch = {"x": np.ones(4), "y": np.zeros(4), "weight": np.ones(4)}
    assert task.inputs(batch).keys() == {"x", "y"}


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda: metrics(lambda o, b: squares(o, b).mean(), {"y": np.zeros((4, 2))}),
            r"task\.loss_fn: it returns a scalar for examples \(4,\); one value each, \(B,\) or",
        ),
        (
            lambda: metrics(
                lambda o, b: b["y"][:, 0], {"y": np.ones((4, 2)), "weight": np.ones((4, 2))}
            ),
            r"task\.loss_fn: it returns \(4,\) for examples \(4, 2\);",
        ),
        (
            lambda: metrics(cross_entropy, {"lable": np.zeros(4)}),
            r"task\.loss_fn: the data has no column 'label'; it has lable\. Did you mean 'lable'\?",
        ),
        (
            lambda: metrics(squares, {"y": np.zeros((4, 2))}, metric_fns={"hits": right}),
            r"task\.metric_fns\.hits: the data has no column 'label'; it has y\.",
        ),
        (
            lambda: Function(nn.Dense(2), squares, "image").check({"x": np.ones(4)}),
            r"task\.input: the data has no column 'image'; it has x",
        ),
        (
            lambda: Function(nn.Dense(2), squares).check({"x": np.array([b"a", b"bc"], object)}),
            r"task\.input: the examples are bytes of different shapes",
        ),
        (lambda: Function(nn.Dense(2), squares, metric_fns={"loss": right}), "'loss' given"),
        (
            lambda: metrics(lambda o, b: (o[:, :1] - b["y"]) ** 2, {"y": np.zeros(4)}),
            r"task\.loss_fn: it returns \(4, 4\) for 4 examples, a value for each pair of them; the "
            r"outputs are \(4, 2\)",
        ),
        (lambda: metrics(lambda o, b: "loss", {"y": np.zeros(4)}), "it returns str; an array"),
    ],
)
def test_a_slip_is_one_line(make, line):
    with pytest.raises((ConfigError, DataError), match=line) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_key_that_outputs_have_not_is_no_missing_column():
    with pytest.raises(KeyError, match="code"):
        metrics(lambda o, b: o["code"], {"y": np.zeros(4)}, {"logits": jnp.zeros(4)})
