"""Whatever is sent to OpenAI's routes: an answer or one line, never a fault, and it goes on."""

import json
import logging

import hypothesis
import pytest
from hypothesis import strategies as st

pytest.importorskip("tokenizers", reason="the model's tokenizer")

from serving import serving
from writing import CONTEXT, run

from launch.serve.writers import Room

SMALL = st.none() | st.booleans() | st.integers(-2, 70_000) | st.floats() | st.text(max_size=6)
JSON = st.recursive(
    SMALL,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "system", "assistant", "developer", "tool", "x"]) | JSON,
        "content": st.text(max_size=8) | st.just([{"type": "text", "text": "o"}]) | JSON,
        "name": JSON,
        "tool_calls": JSON,
    },
)
FIELDS = {
    "max_tokens": st.integers(0, 6) | JSON,
    "max_completion_tokens": st.integers(0, 6) | JSON,
    "temperature": st.floats(-1, 3) | JSON,
    "top_p": st.floats(-1, 2) | JSON,
    "top_k": st.integers(-1, 300) | JSON,
    "min_p": st.floats(-1, 2) | JSON,
    "repetition_penalty": st.floats(-1, 3) | JSON,
    "n": st.integers(0, 3) | JSON,
    "seed": st.integers() | JSON,
    "stop": st.lists(st.text(max_size=2), max_size=5) | JSON,
    "stream": st.booleans() | JSON,
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": JSON}) | JSON,
    "logprobs": st.booleans() | st.integers(-1, 30) | JSON,
    "top_logprobs": st.integers(-1, 30) | JSON,
    "echo": st.booleans() | JSON,
    "response_format": JSON,
    "tools": JSON,
    "user": JSON,
}
MODEL = st.just("chain") | JSON
CHAT = st.fixed_dictionaries(
    {"model": MODEL, "messages": st.lists(MESSAGE, max_size=3) | JSON}, optional=FIELDS
)
PROMPT = st.text(max_size=6) | st.lists(st.integers(-5, 400) | st.text(max_size=3), max_size=4)
COMPLETION = st.fixed_dictionaries({"model": MODEL, "prompt": PROMPT | JSON}, optional=FIELDS)
EMBEDDING = st.fixed_dictionaries({"model": MODEL, "input": PROMPT | JSON})
ASKED = st.one_of(
    st.tuples(st.just("/v1/chat/completions"), CHAT),
    st.tuples(st.just("/v1/completions"), COMPLETION),
    st.tuples(st.just("/v1/embeddings"), EMBEDDING),
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    model, room = run(tmp_path_factory.mktemp("tokenizer")), Room(slots=4, tokens=CONTEXT, queue=16)
    with serving(tmp_path_factory.mktemp("hostile"), runs={"chain": model}, room=room) as server:
        yield server


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True, database=None)
@hypothesis.given(ASKED)
def test_hostile_bodies_get_an_answer_or_one_line(served, asked):
    path, body = asked
    text = json.dumps(body)  # with NaN and Infinity where there are any
    status, headers, answer = served.request("POST", path, text)
    assert status in (200, 400, 404), (status, answer)
    if status != 200:
        told = json.loads(answer)["error"]
        assert told["message"] and "\n" not in told["message"] and len(told["message"]) < 1000
        assert set(told) == {"message", "type", "param", "code"}
    elif headers["Content-Type"].startswith("text/event-stream"):
        assert answer.endswith(b"data: [DONE]\n\n") and b'"error"' not in answer
    else:
        assert json.loads(answer)["choices"]


def test_after_all_that_the_server_writes_as_before(served, caplog):
    with caplog.at_level(logging.ERROR):
        body = {"model": "chain", "prompt": "o", "max_tokens": 3, "temperature": 0}
        status, answer = served.json("POST", "/v1/completions", body)
    assert (status, answer["usage"]["completion_tokens"]) == (200, 3)
    assert not caplog.records
