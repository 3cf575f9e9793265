"""Models that write texts: what they need at the start, who asks them wrongly, and stuck steps."""

import json
import sys
import threading

import pytest

pytest.importorskip("tokenizers", reason="the model's tokenizer")

from serving import serving, until
from writing import CONTEXT, run

from launch.command import LaunchError
from launch.serve import writers
from launch.serve.app import Bounds
from launch.serve.metrics import Metrics
from launch.serve.writers import Room, load_writer
from lsm.generate import Slots

ASKED = {"model": "chain", "prompt": "x", "max_tokens": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return run(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("library", ["tokenizers", "jinja2"])
def test_a_library_that_is_missing_is_told_of_at_the_start(library, model, tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "load", lambda folder: model)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(LaunchError, match=rf"^chain=.*: {library} is not installed.*lsm\[text\]"):
        load_writer("chain", tmp_path, Room(slots=1, tokens=CONTEXT), Metrics())


def test_kserve_is_told_where_texts_are_asked_for(tmp_path, model):
    room = Room(slots=1, tokens=CONTEXT)
    with serving(tmp_path, {}, runs={"chain": model}, room=room) as server:
        status, answer = server.json("POST", "/v2/models/chain/infer", {"inputs": []})
        assert status == 404
        assert answer["error"] == "chain writes texts: it has no versions, and is asked under /v1."
        status, answer = server.json("GET", "/v2/models/chian")
        assert status == 404
        line = "'chian' is no model here; there are chain. Did you mean 'chain'?"
        assert answer["error"] == line


@pytest.fixture
def going(monkeypatch):
    """An event: while it is not set, no step of a model ends."""
    step, event = Slots.step, threading.Event()
    event.set()
    monkeypatch.setattr(Slots, "step", lambda self, *args: event.wait(30) and step(self, *args))
    yield event
    event.set()


def test_who_waits_for_a_stuck_model_is_told_so(tmp_path, model, going):
    room = Room(slots=1, tokens=CONTEXT, timeout=0.2)
    with serving(tmp_path, {}, runs={"chain": model}, room=room) as server:
        for stream in (False, True):
            going.clear()
            status, headers, answer = server.request(
                "POST", "/v1/completions", ASKED | {"stream": stream}
            )
            event = answer.decode().strip().removeprefix("data: ")
            assert json.loads(event)["error"]["message"] == "the model does not answer."
            assert (status, headers["Retry-After"]) == ((200, None) if stream else (503, "10"))
            going.set()
            until(lambda: server.json("POST", "/v1/completions", ASKED)[0] == 200)
        page = server.request("GET", "/metrics", key="metrics")[2].decode()
        assert 'lsm_errors_total{kind="stuck"} 2.0' in page


def test_a_deadline_holds_while_a_step_goes_on(tmp_path, model, going):
    room, bounds = Room(slots=1, tokens=CONTEXT), Bounds(seconds=0.3)
    with serving(tmp_path, {}, runs={"chain": model}, room=room, bounds=bounds) as server:
        going.clear()
        status, answer = server.json("POST", "/v1/completions", ASKED)
        assert (status, answer["error"]["type"]) == (504, "server_error")
        assert answer["error"]["message"].startswith("the text was not done within the time")
        going.set()
