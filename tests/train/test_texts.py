"""Runs on texts: buckets, packing, resuming, and what a run keeps to be asked without the data."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import lsm
from lsm import Data, Experiment, Mesh, Train
from lsm.data import Arrays, ByLength, Subwords, Texts, Words
from lsm.errors import ConfigError, DataError
from lsm.metrics import Weighted
from lsm.models import MLP
from lsm.models.families import gpt2
from lsm.optim import SGD
from lsm.tasks import LanguageModelling
from lsm.train.trainer import Trainer

pytest.importorskip("tokenizers", reason="needs pip install 'lsm[text]'")

SIZES = {"vocabulary": 32, "layers": 2, "heads": 2, "width": 16, "context": 32}
WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "log", "and", "ran"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LSM_CACHE", str(tmp_path / "cache"))


def texts(**more):
    rng = np.random.default_rng(0)
    lines = np.empty(64, object)
    lines[:] = [" ".join(rng.choice(WORDS, rng.integers(2, 20))) for _ in range(64)]
    arrays = Arrays({"text": lines}, validation={"text": lines[:21]})
    return Texts(arrays, Words(16), {"tokens": "text"}, 17, **more)


def experiment(source, sampling=ByLength(pool=3), **more):
    return Experiment(
        task=LanguageModelling(model=gpt2(**SIZES)),
        data=Data(source=source, validation="validation", test=None, sampling=sampling),
        optimizer=SGD(learning_rate=0.1),
        train=Train(steps=6, batch_size=8),
        **more,
    )


def leaves(result_dir):
    return jax.tree.leaves(lsm.load(result_dir, step="last").params)


@pytest.mark.parametrize("source", [{"buckets": (5, 9)}, {"pack": True}], ids=["buckets", "packed"])
def test_a_run_on_eight_devices_is_one_on_one_and_resumes_bitwise(source, tmp_path):
    made = experiment(texts(**source))
    few = Mesh(fsdp=2, data=4)
    made = dataclasses.replace(
        made, mesh=few, checkpoint=dataclasses.replace(made.checkpoint, every=3)
    )
    lsm.fit(made, tmp_path / "whole")
    half = dataclasses.replace(made, callbacks=(_stop_at(3),))
    lsm.fit(half, tmp_path / "half")
    again = dataclasses.replace(made, data=dataclasses.replace(made.data, source=texts(**source)))
    lsm.fit(again, tmp_path / "half", allow_config_change=True)
    for x, y in zip(leaves(tmp_path / "whole"), leaves(tmp_path / "half"), strict=True):
        np.testing.assert_array_equal(x, y)


def _stop_at(step):
    from lsm.config.callbacks import Callback, StopTraining

    def stop(moment):
        if moment.step == step:
            raise StopTraining("halfway")

    return Callback(after_checkpoint=stop)


def test_another_vocabulary_is_not_gone_on_with(tmp_path):
    made = experiment(texts())
    lsm.fit(made, tmp_path / "run")
    (tmp_path / "run/result.json").unlink()
    other = dataclasses.replace(texts(), vocabulary=Words(15))
    with pytest.raises(ConfigError, match="vocabulary"):
        lsm.fit(experiment(other), tmp_path / "run")


def test_a_run_is_asked_for_texts_without_its_data(tmp_path):
    lsm.fit(experiment(texts(buckets=(5, 9))), tmp_path / "run")
    saved = json.loads((tmp_path / "run/tokenizer.json").read_text())
    assert saved["model"]["type"] == "WordLevel"
    run = lsm.load(tmp_path / "run")
    assert run.column == "tokens"
    one, two = run.predict("the cat sat"), run.predict(["the cat sat", "a dog ran on the mat"])
    assert [len(row) for row in two["token"]] == [2, 5]
    np.testing.assert_array_equal(one["token"][0], two["token"][0])
    names = run.inputs.encoder.names
    assert two["text"][1] == names.text(two["token"][1])
    (tmp_path / "new.txt").write_text("the cat sat\n\na dog\n")
    count = lsm.train.predict_files(
        tmp_path / "run", str(tmp_path / "new.txt"), tmp_path / "o.jsonl"
    )
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert count == 2 and [row["line"] for row in rows] == [1, 3]
    with pytest.raises(DataError, match="a text is needed"):
        run.predict([["the", "cat"], "a"])


def test_packed_texts_are_as_if_each_stood_alone():
    dataset = texts(pack=True).open("train")
    batch = dataset.take(np.arange(len(dataset)))
    alone = texts().open("train")
    task = LanguageModelling(model=gpt2(**SIZES))
    params, state = task.init(jax.random.key(0), batch)
    params = jax.tree.map(lambda x: 5 * x, params)
    logits, _ = task.forward(params, state, batch, {}, False, 0)
    seen, total, correct = 0, Weighted(0.0, 0.0), task.evaluate(params, state, batch)["loss"]
    known = {}
    for row in alone.take(np.arange(64))["tokens"]:
        known[tuple(row[row > 0])] = row
    for row, (tokens, segments) in enumerate(
        zip(batch["tokens"], batch["tokens_segments"], strict=True)
    ):
        for segment in range(1, segments.max() + 1):
            places = np.flatnonzero(segments == segment)
            text = tokens[places]
            assert tuple(text) in known
            one = {"tokens": np.append(text, 0)[None], "tokens_length": np.array([len(text)])}
            expected, _ = task.forward(params, state, one, {}, False, 0)
            found = logits[row, places[places < 16]]
            np.testing.assert_allclose(found, expected[0, : len(found)], atol=1e-5)
            loss = task.evaluate(params, state, one)["loss"]
            total = Weighted(total.sum + float(loss.sum), total.weight + float(loss.weight))
            seen += 1
    assert seen == 64
    # Of each text every token but the first is a target.
    assert total.weight == correct.weight == sum(map(len, known)) - len(known)
    np.testing.assert_allclose(total.sum, correct.sum, rtol=1e-4)


def test_the_loss_counts_no_padding():
    made = texts().open("train")
    batch = made.take(np.arange(8))
    task = LanguageModelling(model=gpt2(**SIZES))
    params, state = task.init(jax.random.key(0), batch)
    loss = task.evaluate(params, state, batch)["loss"]
    assert loss.weight == (batch["tokens_length"] - 1).sum()
    other = batch | {"tokens": np.where(batch["tokens"] == 0, 7, batch["tokens"])}
    np.testing.assert_allclose(task.evaluate(params, state, other)["loss"].sum, loss.sum, rtol=1e-6)


def test_a_model_without_a_mask_is_told():
    batch = texts(pack=True).open("train").take(np.arange(2))
    with pytest.raises(DataError, match="takes no mask"):
        LanguageModelling(model=MLP(outputs=16)).check(batch)


def test_flops_are_the_mean_of_the_buckets(tmp_path):
    from lsm.train.throughput import Throughput, training_flops

    trainer = Trainer.of(experiment(texts(buckets=(5, 9))), None)
    widths = [trainer.train.width_at(step) for step in range(6)]
    assert len(set(widths)) > 1
    task, state = trainer.experiment.task, trainer.program.abstract_state
    flops = [training_flops(task, state, trainer.train.batch_at(step)).total for step in range(6)]
    np.testing.assert_allclose(Throughput.of(trainer).flops, np.mean(flops))


def test_subwords_are_put_together_in_predictions(tmp_path):
    source = dataclasses.replace(texts(), vocabulary=Subwords(kind="bpe", size=300))
    model = gpt2(**SIZES | {"vocabulary": 300})
    made = dataclasses.replace(experiment(source), task=LanguageModelling(model=model))
    lsm.fit(made, tmp_path / "run")
    run = lsm.load(tmp_path / "run")
    found = run.predict(["the cat"])
    assert found["text"][0] == run.inputs.encoder.names.text(found["token"][0])
