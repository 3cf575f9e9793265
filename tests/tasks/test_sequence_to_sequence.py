"""Sequence to sequence: figures against NumPy's, the search, and what a wrong batch is told."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lsm
from lsm import Data, Evaluation, Experiment, Train
from lsm.data import Arrays
from lsm.durations import Horizon
from lsm.errors import ConfigError, DataError
from lsm.evaluate import Bleu, Metric
from lsm.generate import Beam
from lsm.models import MLP, EncoderDecoder, Transformer
from lsm.models.experts import Experts
from lsm.optim import SGD, Adam
from lsm.tasks import Classification, SequenceToSequence
from lsm.train import init_state, make_step

BEGIN, END, V, ROOM = 2, 3, 12, 7
BLOCKS = Transformer(layers=1, heads=2, width=16, hidden=32)
MODEL = EncoderDecoder(vocabulary=V, encoder=BLOCKS, decoder=BLOCKS, context=16)
TASK = SequenceToSequence(model=MODEL, search=Beam(size=3, longest=ROOM))


class Letters(tuple):
    """Names of tokens that make a text: without the special ones."""

    def text(self, ids):
        return "".join(self[int(i)] for i in ids if i > END)


NAMES = Letters("____abcdefgh")


def texts(count, seed=0):
    """Sources of 2 to 5 letters, and the same as targets."""
    random = np.random.default_rng(seed)
    columns = {name: np.zeros((count, ROOM), np.int32) for name in ("source", "target")}
    lengths = random.integers(2, 6, count).astype(np.int32)
    written = np.zeros((count, ROOM), np.uint8)
    for row, n in enumerate(lengths):
        letters = random.integers(END + 1, V, n)
        columns["source"][row, :n] = letters
        columns["target"][row, : n + 2] = [BEGIN, *letters, END]
        written[row, :n] = [*NAMES.text(letters).encode()]
    columns |= {"source_length": lengths, "target_length": lengths + 2}
    return columns | {"written": written}


@functools.cache
def parameters():
    return jax.jit(lambda: TASK.init(jax.random.key(0), texts(4))[0])()


@pytest.mark.slow
def test_padding_balances_no_experts():
    blocks = dataclasses.replace(BLOCKS, experts=Experts(count=4, top_k=1, balance=1.0))
    task = dataclasses.replace(
        TASK, model=dataclasses.replace(MODEL, encoder=blocks, decoder=blocks)
    )
    batch = texts(4)
    params, state = task.init(jax.random.key(0), batch)
    behind = np.arange(ROOM) >= batch["target_length"][:, None]
    assert behind.any()

    @jax.jit
    def loss(batch):
        return task.loss(params, state, batch, {})[0]

    other = batch | {"target": np.where(behind, 7, batch["target"])}
    assert loss(other) == loss(batch)


def weighted(batch):
    return batch | {"weight": np.float32([1, 2, 0, 1])}


@jax.jit
def evaluated(params, batch):
    return TASK.evaluate(params, {}, batch)


def test_figures_are_those_of_numpy_over_real_targets():
    params, batch = parameters(), weighted(texts(4))
    smoothing = dataclasses.replace(TASK, label_smoothing=0.1)

    @jax.jit
    def trained(params, batch):
        logits = MODEL.apply({"params": params}, TASK.inputs(batch))
        return logits, smoothing.loss(params, {}, batch, {"dropout": jax.random.key(0)})

    logits, (value, output) = trained(params, batch)
    p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    total = smoothed = right = weight = 0.0
    for row, (n, w) in enumerate(zip(batch["target_length"], batch["weight"], strict=True)):
        for t, target in enumerate(batch["target"][row, 1:n]):
            total -= w * p[row, t, target]
            smoothed -= w * (0.9 * p[row, t, target] + 0.1 * p[row, t].mean())
            right += w * (p[row, t].argmax() == target)
            weight += w
    found = evaluated(params, batch)
    figures = TASK.summary(found)
    assert float(found["loss"].weight) == weight
    assert figures["loss"] == pytest.approx(total / weight, rel=1e-5)
    assert figures["accuracy"] == pytest.approx(right / weight, rel=1e-5)
    assert figures["perplexity"] == pytest.approx(np.exp(total / weight), rel=1e-5)
    assert value == pytest.approx(smoothed, rel=1e-5)
    assert smoothing.summary(output.metrics)["perplexity"] == pytest.approx(np.exp(total / weight))


def test_padding_alters_nothing():
    batch = weighted(texts(4))
    expected = evaluated(parameters(), batch)
    padded = dict(batch)
    for name in ("source", "target"):
        behind = np.arange(ROOM + 3) >= batch[f"{name}_length"][:, None]
        wider = np.pad(batch[name], ((0, 0), (0, 3)))
        padded[name] = np.where(behind, 5, wider)
    found = evaluated(parameters(), padded)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def learnt():
    """Parameters that copy short texts."""
    optimizer = Adam(learning_rate=0.01).make(Horizon(100, 4, 4))
    started = jax.jit(lambda: init_state(TASK, optimizer, texts(4), 0))()
    step = jax.jit(make_step(TASK, optimizer, seed=0))
    for number in range(300):
        started, metrics = step(started, texts(64, seed=number + 1))
    assert metrics["loss"].mean < 0.1
    return started.params


@pytest.mark.slow
def test_it_learns_and_the_search_finds_it():
    params, batch = learnt(), texts(32, seed=1000)
    sources = {name: x for name, x in batch.items() if name.startswith("source")}
    found = jax.jit(TASK.predict)(params, {}, sources)
    assert found["tokens"].shape == (32, ROOM) and found["tokens"].dtype == jnp.int32
    right = [
        (row[:n] == target[1:m]).all() if n == m - 1 else False
        for row, n, target, m in zip(
            *(found["tokens"], found["length"], batch["target"], batch["target_length"]),
            strict=True,
        )
    ]
    assert np.mean(right) > 0.9
    # What it says of a text is what teacher forcing says of it.
    row = int(np.argmax(right))
    alone = {name: x[row : row + 1].repeat(4, 0) for name, x in batch.items()}
    loss = evaluated(params, alone | {"weight": np.float32([1, 0, 0, 0])})["loss"]
    assert float(found["log_probability"][row]) == pytest.approx(-float(loss.sum), abs=1e-4)
    said = TASK.named(jax.device_get(found), NAMES)["text"][row]
    assert said == NAMES.text(batch["target"][row])
    assert TASK.named(found, ["a"] * V) == {}


def test_bleu_is_sacrebleus():
    sacrebleu = pytest.importorskip("sacrebleu", reason="sacreBLEU is the reference")
    metric = Bleu(reference="text").told(NAMES)
    said = ["abcdab cd", "a b c d e", "hhh"]
    written = ["abcdab cd e", "a b d c e", ""]
    names = Letters("____abcdefgh ")
    tokens = np.zeros((3, 12), np.int32)
    references = np.zeros((3, 12), np.uint8)
    for row, (text, reference) in enumerate(zip(said, written, strict=True)):
        tokens[row, : len(text) + 1] = [*(names.index(c) for c in text), END]
        references[row, : len(reference)] = [*reference.encode()]
    lengths = np.array([len(text) + 1 for text in said])
    metric = dataclasses.replace(metric, names=names)
    accumulator = metric.init()
    assert np.isnan(metric.compute(accumulator)["bleu"])
    for rows in ([0], [1, 2]):  # of any batches
        predictions = {"tokens": tokens[rows], "length": lengths[rows]}
        accumulator = metric.update(accumulator, predictions, {"text": references[rows]})
    expected = sacrebleu.corpus_bleu(said, [written]).score
    assert metric.compute(accumulator)["bleu"] == pytest.approx(expected) and expected > 10
    with pytest.raises(DataError, match="no method `text`"):
        Bleu(reference="text").told(["a"]).update((), predictions, {"text": references})


@dataclasses.dataclass(frozen=True)
class Right(Metric):
    """Share of examples that are right."""

    columns = ("label",)

    def init(self):
        return (0, 0)

    def update(self, accumulator, predictions, batch):
        right = predictions["label"] == batch["label"]
        return accumulator[0] + right.sum(), accumulator[1] + len(right)

    def compute(self, accumulator):
        return {"right": accumulator[0] / max(accumulator[1], 1)}


def experiment(**evaluation):
    """Of a task that compiles fast: metrics of the end are of any task."""
    random = np.random.default_rng(0)
    parts = {
        name: {"x": random.normal(size=(n, 3)).astype(np.float32), "label": np.arange(n) % 3}
        for name, n in {"train": 64, "validation": 20, "test": 17}.items()
    }
    return Experiment(
        name="right",
        task=Classification(model=MLP(widths=(), outputs=3), input="x"),
        data=Data(source=Arrays(**parts), validation="validation", test="test"),
        optimizer=SGD(learning_rate=0.01),
        train=Train(steps=4, batch_size=16, log_every=2),
        evaluation=Evaluation(**{"every": 2, "final": (Right(),)} | evaluation),
        writers=(lsm.writers.Jsonl(),),
    )


def test_metrics_of_the_end_are_computed_at_the_end_alone(tmp_path):
    result = lsm.fit(experiment(), tmp_path)
    assert {"right", "loss"} <= result.metrics["test"].keys() & result.metrics["validation"].keys()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert ["right" in row for row in rows if row["split"] == "validation"] == [False, False]
    assert ["right" in row for row in rows if row["split"] == "test"] == [True]
    assert lsm.evaluate_run(experiment(), tmp_path)[1] == result.metrics


@dataclasses.dataclass(frozen=True)
class RightTexts(Right):
    """Share of texts that are right to the letter."""

    columns = ("target",)

    def update(self, accumulator, predictions, batch):
        said, written = predictions["tokens"][:, : ROOM - 1], batch["target"][:, 1:]
        return super().update(
            accumulator, {"label": (said == written).all(1)}, {"label": np.ones(len(said), bool)}
        )


@pytest.mark.slow
def test_a_run_searches_at_its_end(tmp_path):
    parts = {name: texts(n, n) for name, n in {"train": 64, "test": 17}.items()}
    made = dataclasses.replace(
        experiment(final=(RightTexts(),)),
        task=TASK,
        data=Data(source=Arrays(**parts), validation=None, test="test"),
    )
    result = lsm.fit(made, tmp_path)
    assert {"right", "loss"} <= result.metrics["test"].keys()
    found = lsm.load(tmp_path, experiment=made).predict(parts["test"])
    right = (found["tokens"][:, : ROOM - 1] == parts["test"]["target"][:, 1:]).all(1)
    assert result.metrics["test"]["right"] == right.mean()


def test_metrics_of_the_end_are_checked_at_the_start(tmp_path):
    with pytest.raises(ConfigError, match="no metric 'right'; this task has"):
        lsm.fit(experiment(monitor="right"), tmp_path)
    with pytest.raises(DataError, match="evaluation.final: the data has no column 'en_bytes'"):
        lsm.fit(experiment(final=(Bleu(),)), tmp_path)
    with pytest.raises(ConfigError, match="both give 'right'"):
        lsm.fit(experiment(metrics=(Right(),)), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": None}, "task.target: the data has no column 'target'"),
        ({"source_length": None}, "task.source: the data has no column 'source_length'"),
        ({"source": np.full((4, ROOM), V)}, "task.source: a label of 12"),
        ({"source": np.zeros((4, 17), int)}, "texts of 17 tokens where task.model.context is 16"),
        ({"target": np.full((4, ROOM), 4)}, "task.begin: 2 given, but a text .* begins with 4"),
        ({"target_length": np.full(4, 2)}, "task.end: 3 given, but no text in column 'target'"),
    ],
)
def test_a_wrong_batch_is_told(change, message):
    batch = {k: x for k, x in (texts(4) | change).items() if x is not None}
    with pytest.raises(DataError, match=message):
        TASK.check(batch)


def test_a_search_beyond_the_context_is_told():
    with pytest.raises(ConfigError, match="longest: 16 tokens after the begin token"):
        SequenceToSequence(model=MODEL, search=Beam(longest=16))
