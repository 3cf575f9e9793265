"""Requests that are joined: no answer depends on its neighbours; queues, deadlines, stuck models."""

import asyncio
import socket
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from serving import SECRETS, Double, Range, Signature, Tensor, serving, until

from launch.serve.app import Bounds
from launch.serve.batching import Batcher, Policy
from launch.serve.joining import buckets
from launch.serve.metrics import Metrics
from launch.serve.refusal import Refused
from launch.serve.worker import Worker, WorkerDied


def run(model, act, policy=None):
    """Runs `act(batcher)` once the batcher has started."""

    async def whole():
        meter = Metrics().meter("m", "1", None)
        batcher = Batcher("m", model, policy or Policy(wait=0.02, largest=8), meter)
        await batcher.start()
        model.batches.clear()
        try:
            return await act(batcher)
        finally:
            await batcher.close()

    return asyncio.run(whole())


def rows(start, count=1):
    return {"x": np.arange(start, start + 3 * count, dtype=np.float32).reshape(count, 3)}


def soon(seconds=10):
    return time.monotonic() + seconds


def test_buckets_are_powers_of_two_and_the_largest():
    assert [*buckets(1)] == [1]
    assert [*buckets(8)] == [1, 2, 4, 8]
    assert [*buckets(12)] == [1, 2, 4, 8, 12]


def test_what_comes_together_is_computed_together_in_a_bucket():
    model = Double()

    async def act(batcher):
        return await asyncio.gather(*(batcher.infer(rows(i, i % 2 + 1), soon()) for i in range(4)))

    outputs = run(model, act)
    assert model.batches == [8]  # 1 + 2 + 1 + 2 rows, and two to fill up
    for i, output in enumerate(outputs):
        np.testing.assert_array_equal(output["y"], 2 * rows(i, i % 2 + 1)["x"])


def test_every_bucket_is_computed_once_before_the_model_is_ready():
    model = Double()

    async def act():
        batcher = Batcher("m", model, Policy(largest=8), Metrics().meter("m", "1", None))
        assert not batcher.ready
        with pytest.raises(Refused, match="not ready"):
            await batcher.infer(rows(0), soon())
        await batcher.start()
        assert model.batches == [1, 2, 4, 8] and batcher.ready
        await batcher.close()

    asyncio.run(act())


def test_more_rows_than_a_batch_are_cut_and_put_together():
    model = Double()
    output = run(model, lambda batcher: batcher.infer(rows(0, 20), soon()))
    np.testing.assert_array_equal(output["y"], 2 * rows(0, 20)["x"])
    assert model.batches == [8, 8, 4]


class Network:
    """Two layers with a softmax, compiled for each bucket, as an exported model is."""

    def __init__(self):
        w, v = (jax.random.normal(jax.random.key(i), (16, 16)) for i in range(2))
        self._apply = jax.jit(lambda x: jax.nn.softmax(jnp.tanh(x @ w) @ v))
        tensor = Tensor(("b", 16), np.dtype(np.float32))
        self.signature, self.batches = Signature({"x": tensor}, {"y": tensor}), []

    def __call__(self, inputs):
        self.batches.append(len(inputs["x"]))
        return {"y": np.asarray(self._apply(inputs["x"]))}


def test_an_answer_is_the_same_alone_and_in_any_company():
    model, rng = Network(), np.random.default_rng(0)
    asked = [
        {"x": rng.normal(scale=10.0**i, size=(i % 3 + 1, 16)).astype(np.float32)} for i in range(4)
    ]
    asked.append({"x": np.full((1, 16), np.nan, np.float32)})  # a neighbour from hell

    async def act(batcher):
        alone = [await batcher.infer(one, soon()) for one in asked]
        model.batches.clear()
        together = await asyncio.gather(*(batcher.infer(one, soon()) for one in asked))
        return alone, together

    alone, together = run(model, act, Policy(wait=0.05, largest=8))
    assert model.batches == [8]
    for one, other in zip(alone[:-1], together[:-1], strict=True):
        np.testing.assert_allclose(other["y"], one["y"], rtol=1e-5, atol=1e-6)
    assert np.isnan(together[-1]["y"]).all()


def test_sizes_that_differ_are_not_joined():
    class Lengths(Double):
        def __init__(self):
            super().__init__()
            tensor = Tensor(("b", "t"), np.dtype(np.float32))
            self.signature = Signature({"x": tensor}, {"y": tensor})

    model = Lengths()

    async def act(batcher):
        inputs = [{"x": np.ones((1, length), np.float32)} for length in (3, 5, 3)]
        outputs = await asyncio.gather(*(batcher.infer(one, soon()) for one in inputs))
        assert [one["y"].shape for one in outputs] == [(1, 3), (1, 5), (1, 3)]
        assert sorted(model.batches) == [1, 2]
        for length in range(6, 68):
            await batcher.infer({"x": np.ones((1, length), np.float32)}, soon())
        with pytest.raises(Refused, match="64 other sizes"):  # each is compiled, and kept
            await batcher.infer({"x": np.ones((1, 99), np.float32)}, soon())

    run(model, act, Policy(wait=0.0))


def test_a_full_queue_a_late_answer_and_a_client_that_goes():
    model = Double()

    async def act(batcher):
        model.hold.clear()
        first = asyncio.create_task(batcher.infer(rows(0), soon()))
        await asyncio.sleep(0.05)  # it is being computed
        late = asyncio.create_task(batcher.infer(rows(1), soon(0.1)))
        gone = asyncio.create_task(batcher.infer(rows(2), soon()))
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="3 requests wait") as refused:
            await batcher.infer(rows(3), soon())
        assert (refused.value.status, refused.value.retry_after) == (429, 1)
        gone.cancel()
        with pytest.raises(Refused, match="within the time") as refused:
            await late
        assert refused.value.status == 504
        model.hold.set()
        await first
        await batcher.infer(rows(4), soon())  # there is room again
        assert model.batches == [1, 1]  # neither the late one nor the gone was computed

    run(model, act, Policy(wait=0.0, queue=3))


def test_a_stuck_model_is_not_ready_until_it_comes_back():
    model = Double()

    async def act(batcher):
        model.hold.clear()
        asked = [asyncio.create_task(batcher.infer(rows(i), soon())) for i in range(2)]
        for one in asked:
            with pytest.raises(Refused, match="does not answer") as refused:
                await one
            assert refused.value.status == 503
        assert not batcher.ready and batcher.stuck_since
        with pytest.raises(Refused, match="not ready"):
            await batcher.infer(rows(0), soon())
        model.hold.set()
        while not batcher.ready:
            await asyncio.sleep(0.01)
        assert batcher.stuck_since is None
        await batcher.infer(rows(0), soon())

    run(model, act, Policy(wait=0.0, timeout=0.1))


@pytest.mark.parametrize("error", [ValueError("a row of NaN"), MemoryError(), SystemExit(3)])
def test_a_model_that_fails_and_a_thread_that_dies_stop_nobody_else(error):
    model = Double()

    async def act(batcher):
        model.error = error
        with pytest.raises(Refused, match="the model failed") as refused:
            await batcher.infer(rows(0), soon())
        assert refused.value.status == 500
        model.error = None
        assert (await batcher.infer(rows(1), soon()))["y"].shape == (1, 3)

    run(model, act, Policy(wait=0.0))


def test_nobody_fails_for_what_a_neighbour_asks():
    class Picky(Double):
        def __call__(self, inputs):
            outputs = super().__call__(inputs)
            if (inputs["x"] == 13).any():
                raise ValueError("13")
            return outputs

    model = Picky()

    async def act(batcher):
        bad = {"x": np.full((1, 3), 13, np.float32)}
        asked = [rows(0), bad, rows(1)]
        return await asyncio.gather(
            *(batcher.infer(one, soon()) for one in asked), return_exceptions=True
        )

    first, failed, last = run(model, act)
    assert isinstance(failed, Refused) and failed.status == 500
    np.testing.assert_array_equal(first["y"], 2 * rows(0)["x"])
    np.testing.assert_array_equal(last["y"], 2 * rows(1)["x"])


def test_a_model_without_a_batch_is_computed_one_by_one():
    class Fixed(Double):
        def __init__(self):
            super().__init__()
            tensor = Tensor((2, 3), np.dtype(np.float32))
            self.signature = Signature({"x": tensor}, {"y": tensor})

    model = Fixed()

    async def act(batcher):
        await asyncio.gather(*(batcher.infer(rows(0, 2), soon()) for _ in range(3)))

    run(model, act)
    assert model.batches == [2, 2, 2]


def test_over_http_a_client_that_goes_away_frees_its_place(tmp_path):
    model = Double()
    with serving(tmp_path, {"double": lambda folder: model}, Policy(wait=0.0, queue=2)) as server:
        model.batches.clear()
        model.hold.clear()
        held = threading.Thread(target=server.infer, args=[[[1, 2, 3]]])
        held.start()
        until(lambda: model.batches)
        body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,3],"data":[1,2,3]}]}'
        head = f"POST /v2/models/double/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nAuthorization: Bearer {SECRETS['infer'][0]}\r\n\r\n"
        client = socket.create_connection(("127.0.0.1", server.port))
        client.sendall(head.encode() + body)
        until(lambda: server.gate.in_flight == 2)
        until(lambda: server.infer([[1, 2, 3]])[0] == 429)
        client.close()
        until(lambda: server.gate.in_flight == 1)
        model.hold.set()
        held.join()
        assert server.infer([[1, 2, 3]])[0] == 200
        assert model.batches == [1, 1]


def test_over_http_a_deadline_and_a_stuck_model(tmp_path):
    model = Double()
    policy, bounds = Policy(wait=0.0, timeout=0.6), Bounds(seconds=0.3)
    with serving(tmp_path, {"double": lambda folder: model}, policy, bounds) as server:
        model.hold.clear()
        assert server.infer([[1, 2, 3]])[0] == 504
        until(lambda: server.request("GET", "/v2/health/ready", key=None)[0] == 503)
        assert server.json("GET", "/v2/models/double/ready")[0] == 503
        status, answered, _ = server.request("POST", "/v2/models/double/infer", {"inputs": []})
        assert (status, answered["Retry-After"]) == (503, "2")
        assert server.request("GET", "/v2/health/live", key=None)[0] == 200
        model.hold.set()
        until(lambda: server.request("GET", "/v2/health/ready", key=None)[0] == 200)
        assert server.infer([[1, 2, 3]])[0] == 200


def test_batches_under_load_over_http(tmp_path):
    model = Double()
    with serving(tmp_path, {"double": lambda folder: model}, Policy(wait=0.02)) as server:
        model.batches.clear()
        found = {}

        def ask(i):
            found[i] = server.infer([[i, i, i]])

        threads = [threading.Thread(target=ask, args=[i]) for i in range(24)]
        model.hold.clear()
        for thread in threads:
            thread.start()
        until(lambda: server.gate.in_flight == 24)
        model.hold.set()
        for thread in threads:
            thread.join()
        for i, (status, answer) in found.items():
            assert status == 200
            assert answer["outputs"][0]["data"] == [2 * i] * 3
        assert len(model.batches) < 12
        text = server.request("GET", "/metrics", key="metrics")[2].decode()
        assert 'lsm_batch_rows_count{model="double",version="1"}' in text
        assert 'lsm_batch_rows_sum{model="double",version="1"} 24.0' in text


class Texts(Double):
    """Sums of the tokens before the padding, and each of them doubled; -1 at the padding."""

    def __init__(self):
        super().__init__()
        tokens, rows = Tensor(("b", "t"), np.dtype(np.int32)), Tensor(("b",), np.dtype(np.int32))
        self.signature = Signature(
            {"text": tokens, "text_length": rows},
            {"sum": rows, "each": tokens},
            {"b": Range(), "t": Range(most=40)},
        )
        self.shapes = []

    def __call__(self, inputs):
        self.batches.append(len(inputs["text"]))
        self.shapes.append(inputs["text"].shape)
        inside = np.arange(inputs["text"].shape[1]) < inputs["text_length"][:, None]
        each = np.where(inside, 2 * inputs["text"], -1)
        return {"sum": np.where(inside, inputs["text"], 0).sum(1, dtype=np.int32), "each": each}


def test_texts_of_other_lengths_are_padded_to_a_bucket_and_cut_again():
    model = Texts()

    async def act(batcher):
        assert model.shapes == [(b, t) for t in (16, 32, 40) for b in (1, 2, 4, 8)]
        model.shapes.clear()
        lengths = (3, 16, 17, 9, 30, 33)
        texts = [np.arange(1, n + 1, dtype=np.int32)[None] for n in lengths]
        asked = [{"text": t, "text_length": np.array([t.shape[1]], np.int32)} for t in texts]
        outputs = await asyncio.gather(*(batcher.infer(one, soon()) for one in asked))
        for text, output in zip(texts, outputs, strict=True):
            np.testing.assert_array_equal(output["sum"], text.sum(1))
            np.testing.assert_array_equal(output["each"], 2 * text)

    run(model, act)
    assert sorted(model.shapes) == [(1, 40), (2, 32), (4, 16)]


def test_over_http_a_length_beyond_its_text_is_refused(tmp_path):
    def ask(length):
        text = {"name": "text", "datatype": "INT32", "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]}
        told = {"name": "text_length", "datatype": "INT32", "shape": [2], "data": [0, length]}
        return server.json("POST", "/v2/models/texts/infer", {"inputs": [text, told]})

    with serving(tmp_path, {"texts": lambda folder: Texts()}) as server:
        status, answer = ask(3)
        assert (status, answer["outputs"][0]["data"]) == (200, [0, 15])
        for length in (4, 16, -1):
            wrong = f"text_length: {length} given; 0 to 3 is allowed."
            assert ask(length) == (400, {"error": wrong})


def test_a_request_that_comes_alone_does_not_wait_for_others():
    model = Double()

    async def act(batcher):
        for i in range(3):
            async with asyncio.timeout(5):
                await batcher.infer(rows(i), soon(60))

    run(model, act, Policy(wait=60.0, largest=8))
    assert model.batches == [1, 1, 1]


def test_a_batch_waits_for_half_as_many_rows_as_the_last_had():
    model = Double()

    async def act(batcher):
        await asyncio.gather(*(batcher.infer(rows(i), soon()) for i in range(6)))
        first = asyncio.create_task(batcher.infer(rows(0), soon(60)))
        second = asyncio.create_task(batcher.infer(rows(1), soon(60)))
        await asyncio.sleep(0.1)
        assert not first.done() and not second.done()
        async with asyncio.timeout(5):
            await asyncio.gather(first, second, batcher.infer(rows(2), soon(60)))

    run(model, act, Policy(wait=60.0, largest=8))
    assert model.batches == [8, 4]  # six rows and three, filled up


def test_no_call_is_left_to_a_thread_that_is_about_to_end():
    async def act():
        worker = Worker("dies")
        for _ in range(50):
            with pytest.raises(WorkerDied, match="SystemExit"):
                await worker.call(exec, "raise SystemExit(3)")
            assert await asyncio.wait_for(worker.call(int), 5) == 0
        worker.close()

    asyncio.run(act())
