"""Gates, the verdict on a trial, and configs that cannot be."""

import dataclasses
import math

import numpy as np
import pytest
import retraining

from launch.retrain import Bound, Canary, NoWorse, Retraining
from launch.retrain.cycle import Cycles
from launch.retrain.incoming import Incoming
from launch.retrain.journal import Journal
from launch.retrain.server import Seen, Server, checked_url
from launch.retrain.trial import judged
from lsm.config import flags
from lsm.data import Digits
from lsm.errors import LsmError

FIGURES = {"accuracy": 0.9, "accuracy/cat": 0.7, "accuracy/dog": 0.95, "latency_ms": 5.0}


@pytest.mark.parametrize(
    ("gate", "missed"),
    [
        (Bound("accuracy", least=0.9), []),
        (Bound("accuracy", least=0.91), ["accuracy 0.9, at least 0.91 is needed"]),
        (Bound("accuracy/*", least=0.8), ["accuracy/cat 0.7, at least 0.8 is needed"]),
        (Bound("latency_ms", most=5), []),
        (Bound("latency_ms", most=4), ["latency_ms 5, at most 4 is allowed"]),
        (NoWorse("accuracy"), ["accuracy 0.9, 0.92 serves; 0 is allowed"]),
        (NoWorse("accuracy", by=0.03), []),
        (NoWorse("latency_ms", by=1), []),
        (NoWorse("latency_ms"), ["latency_ms 5, 4 serves; 0 is allowed"]),
        (NoWorse("accuracy/*"), []),
    ],
)
def test_gates(gate, missed):
    serving = {"accuracy": 0.92, "accuracy/cat": 0.7, "latency_ms": 4.0}
    assert gate.missed(FIGURES, serving) == missed
    if isinstance(gate, NoWorse):
        assert gate.missed(FIGURES, None) == []


def test_what_is_no_number_passes_no_gate():
    new = {"accuracy": math.nan}
    for gate in (Bound("accuracy", least=-1), Bound("accuracy", most=9), NoWorse("accuracy", by=9)):
        assert len(gate.missed(new, {"accuracy": 0.5})) == 1


def test_a_figure_that_there_is_not():
    with pytest.raises(LsmError, match="'acuracy'; there are .* Did you mean 'accuracy'"):
        Bound("acuracy", least=1).missed(FIGURES, None)


OLD = Seen(answered=900, calls=900, call_seconds=9.0)


@pytest.mark.parametrize(
    ("seen", "missed"),
    [
        ({}, ""),
        ({"answered": 99, "call_seconds": 99.0, "drift": 9.0}, ""),  # too few yet
        ({"answered": 9, "failed": 1}, "1 of 9 requests failed"),
        ({"call_seconds": 2.1}, "a call takes 2.1 times as long; 2 is allowed"),
        ({"drift": 0.6}, "outputs drift by 0.6; 0.5 is allowed"),
        ({"drift": math.nan}, ""),
    ],
)
def test_the_verdict_on_a_trial(seen, missed):
    new = dataclasses.replace(Seen(answered=100, calls=100, call_seconds=1.0), **seen)
    assert "; ".join(judged(Canary(requests=100), OLD, new)) == missed


def test_what_was_seen_since():
    assert OLD.since(Seen(answered=100, calls=100, call_seconds=1.0)).answered == 800
    # The server was started again: any figure that is lower tells.
    for before in (Seen(answered=1000), Seen(calls=1000), Seen(call_seconds=1e6), Seen(failed=1e6)):
        assert OLD.since(before) == OLD


def config(folder="data"):
    return flags.read(f"{retraining.CONFIG}:{folder}", Retraining, {}, "get_retraining")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gates": ()}, "Retraining.gates: none given"),
        ({"split": "validation"}, "Retraining.split: data.validation is None"),
        ({"recent": 0}, "Retraining.recent: 0 given"),
    ],
)
def test_configs_that_cannot_be(changes, message):
    with pytest.raises(LsmError, match=message):
        dataclasses.replace(config(), **changes)


@pytest.mark.parametrize("fixed", ["train[90%:]", "all", "test+train[:10%]"])
def test_the_fixed_set_is_no_part_of_train(fixed):
    experiment = config().experiment
    data = dataclasses.replace(experiment.data, test=fixed)
    with pytest.raises(LsmError, match="Retraining.split: data.test is .*a split of its own"):
        dataclasses.replace(config(), experiment=dataclasses.replace(experiment, data=data))


def test_a_class_s_name_does_not_say_which_figure_is_better():
    gate, old = NoWorse("accuracy/*"), {"accuracy/glossy": 0.95, "accuracy/terror": 0.5}
    assert len(gate.missed({"accuracy/glossy": 0.1, "accuracy/terror": 0.4}, old)) == 2
    assert not gate.missed({"accuracy/glossy": 0.99, "accuracy/terror": 0.5}, old)
    for gate, missed in ((NoWorse("brier"), 0), (NoWorse("brier", better="lower"), 1)):
        assert len(gate.missed({"brier": 0.3}, {"brier": 0.2})) == missed
    with pytest.raises(LsmError, match="NoWorse.better: 'less' given"):
        NoWorse(better="less")


def test_new_files_need_files():
    experiment = config().experiment
    data = dataclasses.replace(experiment.data, source=Digits())
    with pytest.raises(LsmError, match=r"its data is Digits; lsm.data.Files is needed"):
        dataclasses.replace(config(), experiment=dataclasses.replace(experiment, data=data))


def test_addresses():
    assert checked_url("http://127.0.0.1:8000/") == "http://127.0.0.1:8000"
    for text in ("127.0.0.1:8000", "ftp://a", "http://a/v2"):
        with pytest.raises(LsmError, match="--server: "):
            checked_url(text)


def test_a_set_is_asked_in_pieces_that_a_body_can_hold(monkeypatch):
    """64 pictures of 224 x 224 in one were refused for their size, and tried again for ever."""
    asked = []

    def answer(self, method, path, body):
        (one,) = body["inputs"]
        asked.append(one["shape"])
        size = len(one["data"]) // one["shape"][0]
        return {"outputs": [{"data": one["data"][::size]}]}

    monkeypatch.setattr(Server, "_json", answer)
    image = np.zeros((5, 224, 224, 1), np.uint8)
    image[:, 0, 0, 0] = range(5)
    said = Server("http://127.0.0.1:1", None, "m").said("1", {"image": image})
    np.testing.assert_array_equal(said, range(5))
    assert asked == [[2, 224, 224, 1], [2, 224, 224, 1], [1, 224, 224, 1]]


def test_a_version_from_elsewhere_is_not_gone_on_from_in_silence(tmp_path):
    retraining.prepared(tmp_path)
    (tmp_path / "models/1").mkdir(parents=True)
    (tmp_path / "models/1/signature.json").write_text("{}")
    given, said = dataclasses.replace(config(tmp_path / "data"), settle=0), []
    journal = Journal(tmp_path / "j")
    incoming = Incoming(given, tmp_path / "incoming", tmp_path / "s", journal, None, print)
    cycles = Cycles(
        given, tmp_path, tmp_path / "models", None, journal, incoming, None, said.append
    )
    assert cycles._start()["from_cycle"] is None
    assert said == ["version 1 was not made in this --workdir: 2 begins anew."]
