"""Classification of texts: against Classification's figures, training, bad input."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lsm
from lsm import Data, Evaluation, Experiment, Train
from lsm.data import Arrays
from lsm.durations import Horizon
from lsm.errors import ConfigError, DataError
from lsm.evaluate import F1
from lsm.models import Classifier as BertClassifier
from lsm.models import TextClassifier, families
from lsm.optim import Adam
from lsm.tasks import Classification, TextClassification
from lsm.train import init_state, make_step


def texts(rows, t=6):
    """Texts of 1 to T tokens; the label says whether the last is above 4."""
    random = np.random.default_rng(0)
    tokens = random.integers(1, 10, (rows, t), np.int32)
    lengths = random.integers(1, t + 1, rows, np.int32)
    last = tokens[np.arange(rows), lengths - 1]
    return {
        "tokens": np.where(np.arange(t) < lengths[:, None], tokens, 0),
        "tokens_length": lengths,
        "label": (last > 4).astype(np.int32),
    }


class Lengths(nn.Module):
    """Logits that are known: the length, and the first token."""

    outputs: int = 2

    @nn.compact
    def __call__(self, texts):
        return jnp.stack([texts.lengths_B, texts.tokens_BxT[:, 0]], 1)[:, : self.outputs] / 4.0


class Given(nn.Module):
    """The same logits for Classification."""

    outputs: int = 2

    @nn.compact
    def __call__(self, x_BxD):
        return x_BxD[:, : self.outputs]


@pytest.mark.parametrize("outputs", [1, 2])
def test_figures_and_predictions_are_those_of_classification(outputs):
    batch = texts(16)
    logits = np.stack([batch["tokens_length"], batch["tokens"][:, 0]], 1) / 4.0
    fields = {"label_smoothing": 0.1, "class_weights": (1.0, 3.0)}
    own = TextClassification(model=Lengths(outputs), **fields)
    other = Classification(model=Given(outputs), input="x", **fields)

    def run(task, data):
        def figures(train):
            return task.metrics(task.forward({}, {}, data, {}, train, 0)[0], data, train, 0)

        return figures(True), figures(False), task.predict({}, {}, data)

    *found, predicted = jax.jit(functools.partial(run, own))(batch)
    *wanted, _ = jax.jit(functools.partial(run, other))(batch | {"x": logits.astype(np.float32)})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, wanted)
    assert predicted["label"].shape == (16,) and predicted["probability"].shape == (16, 2)
    assert own.named(predicted, ["bad", "good"])["class"][0] in ("bad", "good")


LAST_WORD = TextClassification(model=TextClassifier(vocabulary=10, outputs=1, units=(16,)))


def test_an_lstm_learns_what_the_last_word_says():
    data, test = texts(256), texts(64)
    transform = Adam(learning_rate=3e-2).make(Horizon(steps=30, batch_size=32, examples=256))
    state = jax.jit(lambda batch: init_state(LAST_WORD, transform, batch, seed=0))(test)
    step = jax.jit(make_step(LAST_WORD, transform))
    for i in range(30):
        rows = np.arange(32) + 32 * (i % 8)
        state, _ = step(state, {name: column[rows] for name, column in data.items()})
    given = (state.params, state.model_state, test)
    figures, said = jax.jit(lambda *x: (LAST_WORD.evaluate(*x), LAST_WORD.predict(*x)))(*given)
    assert figures["accuracy"].mean > 0.95
    assert F1().compute(F1().update(F1().init(), said, test))["f1"] > 0.95


@pytest.mark.slow
def test_a_run_learns_what_the_last_word_says(tmp_path):
    config = Experiment(
        name="last_word",
        task=LAST_WORD,
        data=Data(source=Arrays(train=texts(256), test=texts(64))),
        optimizer=Adam(learning_rate=3e-2),
        train=Train(steps=30, batch_size=32, log_every=30),
        evaluation=Evaluation(every=30, metrics=(F1(),)),
    )
    result = lsm.fit(config, tmp_path)
    assert result.metrics["test"]["accuracy"] > 0.95 and result.metrics["test"]["f1"] > 0.95
    some = {name: column[:4] for name, column in texts(64).items() if name != "label"}
    assert (
        lsm.load(tmp_path, experiment=config).predict(some)["label"] == texts(64)["label"][:4]
    ).all()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"tokens": np.full((4, 6), 10, np.int32)}, "task.tokens: a label of 10 where"),
        (
            {"tokens_length": np.array([1, 2, 3, 7], np.int32)},
            "task.tokens: a length of 7 in column 'tokens_length', where 'tokens' has room for 6.",
        ),
        ({"label": np.array([0, 1, 2, 0])}, "task.label: a label of 2 where the model has 2"),
    ],
)
def test_bad_columns_are_one_line(changes, line):
    task = TextClassification(model=TextClassifier(vocabulary=10))
    task.check(texts(4))
    with pytest.raises(DataError) as error:
        task.check(texts(4) | changes)
    assert str(error.value).startswith(line)


def test_a_type_that_the_model_has_not_is_one_line():
    def task(types):
        sizes = {"vocabulary": 10, "context": 8, "layers": 1, "heads": 1, "width": 8}
        return TextClassification(model=BertClassifier(families.bert_base(**sizes, types=types)))

    batch = texts(4) | {"tokens_types": np.eye(4, 6, 1, np.int32)}
    task(2).check(batch)
    with pytest.raises(DataError, match=r"a type of 1 in column 'tokens_types', where .* has 1;"):
        task(1).check(batch)


def test_missing_columns_are_named():
    task = TextClassification(model=TextClassifier(vocabulary=10), tokens="token")
    with pytest.raises(DataError, match=r"^task.tokens: the data has no column 'token'; "):
        task.check(texts(4))
    without = {name: x for name, x in texts(4).items() if name != "tokens_length"}
    with pytest.raises(DataError, match=r"no column 'tokens_length'; "):
        TextClassification(model=TextClassifier(vocabulary=10)).check(without)


def test_class_weights_are_not_negative():
    with pytest.raises(ConfigError, match=r"^TextClassification.class_weights: \(-1.0,\); "):
        TextClassification(model=TextClassifier(vocabulary=10), class_weights=(-1.0,))
