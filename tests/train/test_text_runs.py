"""Runs on texts: buckets, packing, resuming, and what a run keeps to be asked without the data."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

import lsm
from lsm import Checkpoint, Data, Experiment, Mesh, Train
from lsm.data import Arrays, ByLength, Subwords, Texts, Words
from lsm.errors import ConfigError, DataError
from lsm.models import MLP
from lsm.models.families import gpt2
from lsm.optim import SGD
from lsm.tasks import LanguageModelling
from lsm.train import abstract_batch, predictions
from lsm.train.throughput import Throughput, training_flops
from lsm.train.trainer import Trainer

tokenizers = pytest.importorskip("tokenizers", reason="needs pip install 'lsm[text]'")

SIZES = {"vocabulary": 32, "layers": 1, "heads": 2, "width": 16, "context": 32}
TASK = LanguageModelling(model=gpt2(**SIZES))
WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "log", "and", "ran"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def texts(**more):
    rng = np.random.default_rng(0)
    lines = np.empty(64, object)
    lines[:] = [" ".join(rng.choice(WORDS, rng.integers(2, 20))) for _ in range(64)]
    arrays = Arrays({"text": lines}, validation={"text": lines[:21]})
    return Texts(arrays, Words(16), {"tokens": "text"}, 17, **more)


def experiment(source, sampling=ByLength(pool=3), **more):
    return Experiment(
        name="texts",
        task=TASK,
        data=Data(source=source, validation="validation", test=None, sampling=sampling),
        optimizer=SGD(learning_rate=0.1),
        train=Train(steps=6, batch_size=8),
        writers=(),
        **more,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on subwords over eight devices, and where it is."""
    source = dataclasses.replace(texts(buckets=(9,)), vocabulary=Subwords(kind="bpe", size=300))
    model = gpt2(**SIZES | {"vocabulary": 300})
    made = experiment(source, mesh=Mesh(fsdp=2, data=4), checkpoint=Checkpoint(every=3))
    made = dataclasses.replace(made, task=LanguageModelling(model=model))
    workdir = tmp_path_factory.mktemp("run")
    lsm.fit(made, workdir)
    return workdir, made


def resumes_bitwise(made, whole, half):
    shutil.copytree(whole, half)
    shutil.rmtree(half / "checkpoints/6")
    (half / "result.json").unlink()
    assert [path.name for path in (half / "checkpoints").glob("[0-9]*")] == ["3"]
    assert lsm.fit(made, half).step == 6
    first, second = (lsm.load(path, experiment=made, step="last").params for path in (half, whole))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_run_in_buckets_on_eight_devices_resumes_bitwise(run, tmp_path):
    workdir, made = run
    resumes_bitwise(made, workdir, tmp_path / "half")


@pytest.mark.slow
def test_a_packed_run_on_eight_devices_resumes_bitwise(tmp_path):
    every = Checkpoint(every=3)
    made = experiment(texts(pack=True), mesh=Mesh(fsdp=2, data=4), checkpoint=every)
    lsm.fit(made, tmp_path / "whole")
    resumes_bitwise(made, tmp_path / "whole", tmp_path / "half")


def test_another_vocabulary_is_not_gone_on_with(run):
    workdir, made = run
    other = dataclasses.replace(made.data.source, vocabulary=Subwords(kind="bpe", size=299))
    other = dataclasses.replace(made, data=dataclasses.replace(made.data, source=other))
    with pytest.raises(ConfigError, match=r"vocabulary\.size: 300 -> 299"):
        lsm.fit(other, workdir)


def test_a_run_is_asked_for_texts_without_its_data(run, tmp_path):
    workdir, made = run
    saved = tokenizers.Tokenizer.from_file(str(workdir / "tokenizer.json"))
    assert saved.get_vocab_size() <= 300
    loaded = lsm.load(workdir, experiment=made)
    assert loaded.column == "tokens"
    two = loaded.predict(["the cat sat", "a dog ran on the mat"])
    lengths = [len(saved.encode(text).ids) for text in ("the cat sat", "a dog ran on the mat")]
    assert [len(row) for row in two["token"]] == [n - 1 for n in lengths]
    one = loaded.predict("the cat sat")
    np.testing.assert_array_equal(one["token"][0], two["token"][0])
    assert two["text"][1] == saved.decode(two["token"][1].tolist())
    columns = loaded.predict({"tokens": ["the cat sat"]})
    np.testing.assert_array_equal(columns["token"][0, : lengths[0] - 1], one["token"][0])
    with pytest.raises(DataError, match="a text is needed"):
        loaded.predict(["a", ["the", "cat"]])


def test_predictions_of_a_split_end_with_its_texts(run):
    workdir, made = run
    _, files = predictions.predict_run(made, workdir)
    rows = [json.loads(line) for line in files["validation"].read_text().splitlines()]
    dataset = made.data.source.open("validation")
    lengths = dataset.lengths(np.arange(len(dataset)))
    assert [len(row["token"]) for row in rows] == (lengths - 1).tolist()
    assert rows[3]["text"] == dataset.encoder.names.text(rows[3]["token"])


def test_lines_of_files_are_texts(run, tmp_path, monkeypatch):
    workdir, made = run
    monkeypatch.setattr(predictions, "load", lambda of: lsm.load(of, experiment=made))
    (tmp_path / "new.txt").write_text("the cat sat\n\na dog\n")
    out = tmp_path / "out.jsonl"
    assert predictions.predict_files(workdir, str(tmp_path / "new.txt"), out) == 2
    assert [json.loads(line)["line"] for line in out.read_text().splitlines()] == [1, 3]


@functools.cache
def parameters():
    batch = texts().open("train").take(np.arange(64))
    return jax.jit(lambda: jax.tree.map(lambda x: 5 * x, TASK.init(jax.random.key(0), batch)[0]))()


@jax.jit
def told(params, batch):
    """Returns the logits, and the sum of the losses with its weight."""
    logits, _ = TASK.forward(params, {}, batch, {}, False, 0)
    return logits, TASK.evaluate(params, {}, batch)["loss"]


def test_packed_texts_are_as_if_each_stood_alone():
    rows, alone = (texts(pack=pack).open("train") for pack in (True, False))
    batch, one = (dataset.take(np.arange(len(dataset))) for dataset in (rows, alone))
    (found, loss), (expected, total) = (
        jax.device_get(told(parameters(), given)) for given in (batch, one)
    )
    known = {
        tuple(row[:length]): number
        for number, (row, length) in enumerate(
            zip(one["tokens"], one["tokens_length"], strict=True)
        )
    }
    seen = set()
    for row, segments in enumerate(batch["tokens_segments"]):
        for segment in range(1, segments.max() + 1):
            places = np.flatnonzero(segments == segment)
            number = known[tuple(batch["tokens"][row, places])]
            places = places[places < 16]  # the last token of a row is no input
            alone = expected[number, : len(places)]
            np.testing.assert_allclose(found[row, places], alone, atol=1e-5)
            seen.add(number)
    assert seen == set(known.values())
    # Of each text every token but the first is a target.
    assert loss.weight == total.weight == one["tokens_length"].sum() - 64
    np.testing.assert_allclose(loss.sum, total.sum, rtol=1e-5)


def test_the_loss_counts_no_padding():
    batch = texts().open("train").take(np.arange(64))
    _, loss = told(parameters(), batch)
    assert loss.weight == (batch["tokens_length"] - 1).sum()
    other = batch | {"tokens": np.where(batch["tokens"] == 0, 7, batch["tokens"])}
    np.testing.assert_allclose(told(parameters(), other)[1].sum, loss.sum, rtol=1e-6)


def test_a_model_without_a_mask_is_told():
    batch = texts(pack=True).open("train").take(np.arange(2))
    with pytest.raises(DataError, match="takes no mask"):
        LanguageModelling(model=MLP(outputs=16)).check(batch)


def test_a_batch_in_buckets_is_planned_as_wide_as_the_widest():
    made = experiment(texts(buckets=(5, 9, 13)), ByLength(pool=8))
    for seed in range(4):  # whichever width the first batch has
        train = dataclasses.replace(made.train, seed=seed)
        batch, _ = abstract_batch(dataclasses.replace(made, train=train))
        assert batch["tokens"].shape == (8, 17)


def test_flops_are_the_mean_of_the_buckets(tmp_path):
    trainer = Trainer.of(experiment(texts(buckets=(5, 9))), None)
    widths = [trainer.train.width_at(step) for step in range(6)]
    assert len(set(widths)) > 1
    task, state = trainer.experiment.task, trainer.program.abstract_state
    flops = [training_flops(task, state, trainer.train.batch_at(step)).total for step in range(6)]
    np.testing.assert_allclose(Throughput.of(trainer).flops, np.mean(flops))
