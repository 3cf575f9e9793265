"""Functions that a run calls at its seams: what they are told, what they can do, what they cannot."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import lsm
from lsm import Callback, Checkpoint, Data, Evaluation, Experiment, StopTraining, Train
from lsm.config import schema
from lsm.data import Arrays, Digits
from lsm.models import MLP
from lsm.optim import Adam
from lsm.tasks import Classification
from lsm.writers import Jsonl


def columns(rows=48):
    random = np.random.default_rng(0)
    label = random.integers(0, 3, rows).astype(np.int32)
    return {"image": np.float32(random.normal(size=(rows, 4)) + label[:, None]), "label": label}


PLAIN = Experiment(
    name="seams",
    task=Classification(model=MLP(widths=(5,), outputs=3)),
    data=Data(source=Arrays(train=columns(), test=columns()), train="train", validation="test"),
    optimizer=Adam(learning_rate=1e-2),
    train=Train(steps=6, batch_size=16, log_every=2),
    evaluation=Evaluation(every=3),
    checkpoint=Checkpoint(every=3, keep=9),
    writers=(Jsonl(),),
)


def with_callbacks(*callbacks):
    return dataclasses.replace(PLAIN, callbacks=callbacks)


def nothing(moment):
    """Is called, and that is all."""


def stop(moment):
    raise StopTraining("seen enough")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return lsm.fit(PLAIN, tmp_path_factory.mktemp("plain"))


def test_callbacks_see_all_and_change_nothing(plain, tmp_path):
    seen, moments, kept = [], [], []

    def look(moment):
        state = moment.state()
        assert int(state.step) == moment.step and moment.workdir == tmp_path
        seen.append((moment.step, moment.split, dict(moment.figures)))
        moments.append(moment)
        copy = jax.device_get(state.params["Dense_0"]["kernel"])
        kept.append((state.params["Dense_1"]["kernel"], copy, copy.copy()))
        state.params["Dense_0"]["kernel"] = None  # in dicts of its own
        state.params.clear()
        with pytest.raises(TypeError):
            moment.figures["loss"] = 0.0

    def saved(moment):
        assert (moment.workdir / "checkpoints" / str(moment.step)).is_dir()
        seen.append((moment.step, moment.split, dict(moment.figures)))

    one = Callback(after_row=look, after_evaluation=look, after_checkpoint=saved)
    result = lsm.fit(with_callbacks(one, Callback(after_row=nothing)), tmp_path)
    assert (result.fingerprint, result.metrics) == (plain.fingerprint, plain.metrics)
    assert [(step, split) for step, split, _ in seen] == [
        *((2, "train"), (3, "train"), (3, "validation"), (3, "")),
        *((4, "train"), (6, "train"), (6, "validation"), (6, "")),
    ]
    rows = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    rows = {(row.pop("step"), row.pop("split")): row for row in rows}
    for step, split, figures in seen:
        assert not split or rows[step, split] == pytest.approx(figures)
    with pytest.raises(RuntimeError, match=r"Moment\.state: called after the callback's end"):
        moments[0].state()
    array, copy, copied = kept[0]
    np.testing.assert_array_equal(copy, copied)
    with pytest.raises(RuntimeError, match="deleted"):
        array + 1


@pytest.mark.parametrize(
    ("seam", "at"), [("after_row", 2), ("after_evaluation", 3), ("after_checkpoint", 4)]
)
def test_stop_training_ends_the_run_for_good(seam, at, tmp_path, caplog):
    experiment = with_callbacks(Callback(**{seam: stop}))
    with caplog.at_level("INFO", "lsm.train"):
        result = lsm.fit(experiment, tmp_path)
    assert (result.stopped, result.step) == ("early stopping", at)
    assert set(result.metrics) == {"validation", "test"}
    assert "a callback stops the run: seen enough" in caplog.text
    assert lsm.fit(experiment, tmp_path) == result  # done, with its figures
    assert lsm.fit(PLAIN, tmp_path) == result  # also without the callback, and without a word


@pytest.mark.slow
def test_a_stopped_run_goes_on_where_more_steps_are_asked(plain, tmp_path):
    half = dataclasses.replace(PLAIN.train, steps=5)
    lsm.fit(dataclasses.replace(with_callbacks(Callback(after_row=stop)), train=half), tmp_path)
    result = lsm.fit(PLAIN, tmp_path, allow_config_change=True)
    assert (result.stopped, result.step) == ("completed", 6)
    assert result.fingerprint == plain.fingerprint


def test_an_error_of_a_callback_ends_the_run(tmp_path):
    with pytest.raises(KeyError, match="accurcy"):
        lsm.fit(with_callbacks(Callback(after_row=lambda m: m.figures["accurcy"])), tmp_path)


def test_config_json_names_callbacks_and_a_run_loads_without_them():
    told = schema.to_json(with_callbacks(Callback(after_row=stop, after_evaluation=lambda m: 0)))
    told["data"]["source"] = schema.to_json(Digits())
    (one,) = told["callbacks"]
    assert one["after_row"] == f"{__name__}.stop" and "<lambda>" in one["after_evaluation"]
    assert schema.from_json(told, Experiment).callbacks == ()
