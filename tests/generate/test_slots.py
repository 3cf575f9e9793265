"""Texts that share a batch: each is what it is alone, whoever comes and goes."""

import dataclasses
import functools
import itertools
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsm.errors import ConfigError
from lsm.generate import (
    GREEDY,
    CancelledError,
    ClosedError,
    DeadlineError,
    Decoder,
    Engine,
    FaultError,
    QueueFullError,
    Request,
    Sampling,
    Slots,
    Stop,
    Written,
    collected,
    slots,
    write,
)
from lsm.generate.slots import Rows
from lsm.mesh import Mesh, make_mesh, shard
from lsm.models import GPT, Transformer
from lsm.models.experts import Experts

V = 31
SIZES = {"layers": 2, "heads": 4, "width": 16}
MODELS = {
    "gpt2": Transformer(**SIZES, bias=True),
    "llama": Transformer(
        layers=1, heads=4, width=16, kv_heads=2, theta=1e4, norm="rms", mlp="swiglu"
    ),
    "gemma": Transformer(
        **SIZES, theta=1e4, window=3, global_every=2, global_theta=1e5, norm="rms", mlp="geglu"
    ),
    "experts": Transformer(**SIZES, theta=1e4, experts=Experts(count=4, top_k=2)),
}
WAYS = [
    GREEDY,
    Sampling(),
    Sampling(temperature=2.0, top_k=9, top_p=0.9, min_p=0.01),
    Sampling(temperature=0, repetition_penalty=1.7),
]


@functools.cache
def made(name):
    model = GPT(vocabulary=V, context=64, transformer=MODELS[name])
    variables = model.init(jax.random.key(0), jnp.zeros((1, 4), int))
    # Larger than they start, so that logits differ, and so do tokens.
    return model, jax.tree.map(lambda x: 5 * x if x.ndim > 1 else x, dict(variables))


@functools.cache
def decoder(name):
    return Decoder(*made(name))


@functools.cache
def slots_of(name):
    """Small ones: chunks of 4, 6 and 8 tokens, steps of 1 and 3 slots; some look at spans of 16, too."""
    least, spans = (64, (64,)) if name == "llama" else (16, (64, 16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slots, "_LEAST", 4)
        patch.setattr(slots, "_LEAST_SPAN", least)
        found = Slots(decoder(name), count=3, length=64, chunk=8)
        assert (found.spans, found.batches) == (spans, (3, 1))
        found.size = functools.cache(found.size)
        assert [found.size(n, 0) for n in range(1, 9)] == [4] * 4 + [6] * 2 + [8] * 2
        assert [found.size(n, 8) for n in range(1, 9)] == [4] * 4 + [8] * 4
    return found


def text(ids):
    return "".join(chr(97 + number) for number in ids)


def engine(name="llama", **options):
    made = slots_of(name)
    made.reset()
    return Engine(made, text, **options)


class Listener(list):
    """What came of a request."""

    @property
    def tokens(self):
        return [piece.token for piece in self if not isinstance(piece, Exception)]

    @property
    def log_probabilities(self):
        return [piece.log_probability for piece in self if not isinstance(piece, Exception)]


def asked(engine, request):
    listener = Listener()
    return engine.submit(request, listener.append), listener


def stepped(engine, most=500):
    for _ in range(most):
        if not engine.busy:
            return
        engine.step()
    raise AssertionError("it does not come to an end")


def alone(request, name="llama"):
    """As `write` writes it; always in the same room, so that few programs are compiled."""
    longest, stop = (
        request.stop.longest,
        dataclasses.replace(request.stop, longest=64 - len(request.prompt)),
    )
    given = ([request.prompt], text, stop, request.sampling, [request.seed])
    (found,) = collected(write(decoder(name), *given), 1)
    if len(found.tokens) <= longest:
        return found
    tokens = found.tokens[:longest]
    return Written(text(tokens), tokens, found.log_probabilities[:longest], "length")


def requests(count, seed=0):
    """Prompts of all lengths, of which some begin alike, drawn in all ways."""
    draw = np.random.default_rng(seed)
    common = draw.integers(0, V, 12)
    for number in range(count):
        own = draw.integers(0, V, draw.integers(1, 20))
        prompt = np.concatenate([common[: draw.choice([0, 9, 12])], own])
        yield Request(
            prompt=prompt,
            stop=Stop(longest=int(draw.integers(1, 64 - len(prompt)))),
            sampling=WAYS[number % len(WAYS)],
            seed=number,
        )


def together(engine, given, seed=1):
    """All of them, each some steps after the other."""
    draw, found = np.random.default_rng(seed), []
    for request in given:
        found.append(asked(engine, request)[1])
        for _ in range(draw.integers(0, 6)):
            engine.step()
    stepped(engine)
    return found


@pytest.mark.parametrize(
    "name", ["llama", *(pytest.param(n, marks=pytest.mark.slow) for n in MODELS if n != "llama")]
)
def test_texts_are_those_written_alone(name):
    given, running = [*requests(12)], engine(name)
    for request, found in zip(given, together(running, given), strict=True):
        expected = alone(request, name)
        assert found.tokens == [*expected.tokens]
        np.testing.assert_allclose(found.log_probabilities, expected.log_probabilities, atol=1e-5)
        assert "".join(piece.text for piece in found) == expected.text
        assert [piece.finish for piece in found] == [None] * (len(found) - 1) + ["length"]
    counters = running.counters
    assert counters.reused > 0
    assert counters.read + counters.reused == sum(len(request.prompt) - 1 for request in given)
    assert counters.tokens == sum(request.stop.longest for request in given)
    assert counters.ended == {"length": 12}
    assert (counters.running, counters.waiting, counters.positions) == (0, 0, 0)
    assert counters.first_tokens == 12
    assert all(counters.steps[1:])


def test_others_change_nothing_to_the_bit():
    """In a program of one shape, other texts beside it, drawn in other ways."""
    one, *others = (
        Request(prompt=np.arange(n, n + 6), stop=Stop(longest=20), sampling=way, seed=n)
        for n, way in enumerate([WAYS[1], *WAYS, WAYS[2]])
    )
    found = []
    for beside in (others[:2], others[2:4], [others[4], one]):
        running = engine()
        listener = asked(running, one)[1]
        for request in beside:
            asked(running, request)
        stepped(running)
        found.append(listener)
    assert found[0] == found[1] == found[2]


def test_a_prompt_that_is_there_is_not_read_again():
    """In a slot that was left, and by a copy from one where somebody writes."""
    draw = np.random.default_rng(5)
    system = draw.integers(0, V, 19)
    prompts = [np.concatenate([system, draw.integers(0, V, 4)]) for _ in range(3)]
    given = [Request(prompt=p, stop=Stop(longest=9), sampling=Sampling()) for p in prompts]
    running = engine()
    first = asked(running, given[0])[1]
    for _ in range(4):
        running.step()
    assert (running.counters.read, running.counters.reused) == (22, 0)
    beside = asked(running, given[1])[1]
    stepped(running)
    after = asked(running, given[2])[1]
    stepped(running)
    assert (running.counters.read, running.counters.reused) == (22 + 2 * 6, 2 * 16)
    for request, found in zip(given, (first, beside, after), strict=True):
        expected = alone(request)
        assert found.tokens == [*expected.tokens]
        np.testing.assert_allclose(found.log_probabilities, expected.log_probabilities, atol=1e-5)


def test_a_prompt_is_what_it_was_when_it_was_given():
    """Whoever asks may write the next prompt into the same array."""
    draw, running = np.random.default_rng(6), engine()
    buffer = draw.integers(0, V, 20)
    for _ in range(2):
        request = Request(prompt=buffer.copy(), stop=Stop(longest=5), sampling=GREEDY)
        found = asked(running, dataclasses.replace(request, prompt=buffer))[1]
        buffer[:] = draw.integers(0, V, 20)
        stepped(running)
        assert found.tokens == [*alone(request).tokens]
    assert running.counters.reused == 0


def test_texts_end_by_tokens_and_strings_and_leave_at_once():
    prompt, running = np.array([1, 2, 3]), engine()
    whole = alone(Request(prompt=prompt, stop=Stop(longest=20), sampling=GREEDY))
    end, string = whole.tokens[4], whole.text[6:8]
    stops = [Stop(longest=20, tokens={end}), Stop(longest=20, strings=[string]), Stop(longest=3)]
    found = [asked(running, Request(prompt=prompt, stop=s, sampling=GREEDY))[1] for s in stops]
    stepped(running)
    for listener, stop in zip(found, stops, strict=True):
        expected = alone(Request(prompt=prompt, stop=stop, sampling=GREEDY))
        assert "".join(piece.text for piece in listener) == expected.text
        assert (listener.tokens, listener[-1].finish) == ([*expected.tokens], expected.finish)
    assert running.counters.ended == {"stop": 2, "length": 1}


def test_the_likeliest_tokens_are_told():
    running = engine()
    told, plain = (
        asked(running, Request(prompt=np.array([4, 5]), stop=Stop(longest=3), likeliest=n))[1]
        for n in (5, 0)
    )
    stepped(running)
    assert told.tokens == plain.tokens
    model, variables = made("llama")
    logits = model.apply(variables, np.array([[4, 5, *told.tokens]]))[0, 1:-1]
    for piece, log_p in zip(told, np.array(jax.nn.log_softmax(logits)), strict=True):
        best = np.argsort(-log_p)[:5]
        assert [token for token, _ in piece.likeliest] == best.tolist()
        np.testing.assert_allclose([p for _, p in piece.likeliest], log_p[best], atol=1e-5)
        np.testing.assert_allclose(piece.log_probability, log_p[piece.token], atol=1e-5)
    assert [piece.likeliest for piece in plain] == [()] * 3


def test_a_request_that_is_cancelled_leaves_at_the_next_step():
    running, stop = engine(), Stop(longest=30)
    other = [dataclasses.replace(request, stop=stop) for request in requests(4)]
    given = [asked(running, request) for request in other]
    for _ in range(8):
        running.step()
    assert (running.counters.running, running.counters.waiting) == (3, 1)
    given[1][0].cancel()
    running.step()
    assert isinstance(given[1][1][-1], CancelledError)
    assert (running.counters.running, running.counters.waiting) == (3, 0)
    stepped(running)
    for request, (_, found) in zip(other, given, strict=True):
        expected = [*alone(request).tokens]
        assert found.tokens == (
            expected if found is not given[1][1] else expected[: len(found) - 1]
        )


def test_time_runs_for_those_who_write_and_those_who_wait():
    now = [0.0]
    running = engine(clock=lambda: now[0])
    slow = Request(prompt=np.array([1]), stop=Stop(longest=60), seconds=5)
    given = [asked(running, slow)[1] for _ in range(4)]
    now[0] = 4.9
    for _ in range(3):
        running.step()
    assert [len(found) for found in given] == [2, 2, 2, 0]
    now[0] = 5.0
    running.step()
    for found in given:
        assert str(found[-1]) == "generate: the request's 5 seconds are over."
        assert isinstance(found[-1], DeadlineError)
    assert running.counters.ended == {"DeadlineError": 4}


def test_a_full_queue_refuses_and_a_drained_engine_ends():
    running = engine(waiting=2)
    request = Request(prompt=np.array([1]), stop=Stop(longest=2))
    given = [asked(running, request)[1] for _ in range(2)]
    with pytest.raises(QueueFullError, match="2 requests wait, and allowed are 2; come back later"):
        asked(running, request)
    running.step()
    given.append(asked(running, request)[1])
    running.drain()
    with pytest.raises(ClosedError, match="closes; it takes no requests"):
        asked(running, request)
    running.run()  # returns
    assert [found[-1].finish for found in given] == ["length"] * 3


def test_what_is_closed_ends_under_way():
    running = engine()
    given = [
        asked(running, Request(prompt=np.array([1]), stop=Stop(longest=9)))[1] for _ in range(5)
    ]
    running.step()
    running.close()
    running.run()
    assert all(isinstance(found[-1], ClosedError) for found in given)


def test_pieces_come_from_another_thread():
    running = engine()
    thread = threading.Thread(target=running.run)
    thread.start()
    request = Request(prompt=np.array([3, 1]), stop=Stop(longest=12))
    try:
        assert [p.token for p in running.pieces(request)] == [*alone(request).tokens]
        begun = running.pieces(Request(prompt=np.array([3, 1]), stop=Stop(longest=62)))
        next(begun)
        begun.close()  # whoever asked goes away
        with pytest.raises(
            ConfigError, match="2 tokens given and 63 to come; allowed together: 64"
        ):
            next(running.pieces(Request(prompt=np.array([3, 1]), stop=Stop(longest=63))))
    finally:
        running.drain()
        thread.join(60)
    assert not thread.is_alive()
    assert running.counters.ended["CancelledError"] == 1


def test_a_fault_ends_what_is_under_way_and_no_more(monkeypatch):
    running, request = engine(), Request(prompt=np.arange(20), stop=Stop(longest=6))
    given = [asked(running, request)[1] for _ in range(4)]
    for _ in range(6):
        running.step()

    def broken(*_):
        raise RuntimeError("the device is gone\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(running.slots, "step", broken)
        running.step()
    for found in given[:3]:
        assert isinstance(found[-1], FaultError)
        assert str(found[-1]) == (
            "generate: the model failed: RuntimeError: the device is gone and more"
        )
    assert running.healthy
    stepped(running)
    assert given[3].tokens == [*alone(request).tokens]
    # Twice on end: it says so, and nobody waits for ever.
    given = [asked(running, request)[1] for _ in range(8)]
    with monkeypatch.context() as patch:
        patch.setattr(running.slots, "read", broken)
        stepped(running, 3)
    assert not running.healthy
    assert all(isinstance(found[-1], FaultError) for found in given)
    with pytest.raises(ClosedError, match="has failed"):
        asked(running, request)


def test_logits_that_are_not_finite_end_one_text_and_leave_nothing(monkeypatch):
    """Weights of 0 for a NaN in the cache are NaN: whoever came next would suffer."""
    running = engine()
    prompts = [np.arange(n, n + 12) for n in (1, 2)]
    given = [asked(running, Request(prompt=p, stop=Stop(longest=8))) for p in prompts]
    for _ in range(5):
        running.step()
    step = running.slots.step

    def broken(*args):
        chosen = step(*args)
        return chosen._replace(log_probability_N=chosen.log_probability_N.at[0].set(np.nan))

    with monkeypatch.context() as patch:
        patch.setattr(running.slots, "step", broken)
        running.step()
    running.step()
    (_, first), (ticket, second) = given
    assert str(first[-1]) == "generate: the model's logits are not finite."
    assert not any(x[0].any() for x in jax.tree.leaves(running.slots._held.cache) if x.ndim)
    again = asked(running, Request(prompt=prompts[0], stop=Stop(longest=8)))[1]
    stepped(running)
    assert running.counters.reused == 0
    assert again.tokens == [*alone(Request(prompt=prompts[0], stop=Stop(longest=8))).tokens]
    assert second.tokens == [*alone(ticket.request).tokens]


def test_a_listener_that_fails_harms_nobody():
    running, request = engine(), Request(prompt=np.array([2]), stop=Stop(longest=5))

    def gone(_):
        raise BrokenPipeError

    running.submit(request, gone)
    other = asked(running, request)[1]
    stepped(running)
    assert other.tokens == [*alone(request).tokens]
    assert running.counters.ended == {"length": 1, "CancelledError": 1}
    assert running.healthy


@pytest.mark.slow
@pytest.mark.parametrize("data", [1, 2])
def test_a_mesh_writes_the_same(data):
    """Slots in two parts, which read prompts at the same time; heads over devices."""
    model, variables = made("llama")
    mesh = make_mesh(Mesh(data=data, tensor=2), jax.devices()[: 2 * data])
    placed = jax.device_put(variables, shard(variables, mesh, model.layout.rules))
    running = Engine(Slots(Decoder(model, placed, mesh), count=4, length=64, chunk=8), text)
    given = [*requests(8)]
    for request, found in zip(given, together(running, given), strict=True):
        expected = alone(request)
        assert found.tokens == [*expected.tokens]
        np.testing.assert_allclose(found.log_probabilities, expected.log_probabilities, atol=1e-5)
    assert running.counters.reused > 0


@pytest.mark.parametrize(
    ("name", "sizes"), [("llama", [1, 1, 3, 1, 1]), ("gpt2", [1, 1, 1, 1, 1, 3, 1, 1])]
)
def test_programs_are_few(name, sizes):
    """Whatever comes, before or after: those that `compile` has made are all."""
    fresh = slots_of(name)
    together(engine(name), requests(6, seed=9))
    fresh.compile()
    for begin, count in itertools.product(range(0, 64, 8), range(1, 9)):
        fresh.read({0: (begin, np.zeros(count, np.int32))})
    made = [*fresh._step.values(), *fresh._read.values(), fresh._copy, fresh._see]
    assert [program._cache_size() for program in made] == sizes


@pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="XLA of jax 0.10 drops the barrier on a CPU, and copies"
)
def test_nothing_copies_the_cache():
    fresh = slots_of("llama")
    fresh.reset()
    held, variables = fresh._held, fresh.decoder.variables
    one = np.zeros(1, np.int32)
    programs = [
        *(
            fresh._step[n, 64].lower(
                variables,
                held,
                fresh._last,
                np.arange(n, dtype=np.int32),
                Rows.idle(n),
                np.bool_(False),
            )
            for n in (3, 1)
        ),
        fresh._read[64].lower(variables, held.cache, np.zeros((1, 8), np.int32), one, one, one > 0),
        fresh._copy.lower(held.cache, np.zeros((1, 2), np.int32)),
    ]
    cache = held.cache[0]
    shapes = {",".join(map(str, x.shape)) for x in (cache.k_BxGxKxS, cache.v_BxGxSxK)}
    for program in programs:
        text = program.compile().as_text()
        copied = re.findall(r"f32\[([\d,]+)\]\S* (?:copy|transpose|concatenate)\(", text)
        fused = re.findall(r"f32\[([\d,]+)\]\S* fusion\(.*calls=%\w*(?:copy|transpose)", text)
        assert not {*copied, *fused} & shapes
        # Every cache is written where it is.
        aliased = re.search(r"input_output_alias=\{(.*?)\}, entry", text, re.S).group(1)
        assert aliased.count("alias") >= 2 * len(held.cache)


@pytest.mark.parametrize(
    ("request_", "line"),
    [
        ({"prompt": np.zeros(0, int)}, r"int64 \(0,\) given; ids \(n,\) are needed, one or more"),
        ({"prompt": np.array([0.5])}, "float64 .* given; ids"),
        ({"prompt": np.array([3, V])}, "ids 3 to 31 given; allowed: 0 to 30"),
        ({"prompt": np.array([-1])}, "ids -1 to -1 given"),
        ({"prompt": np.ones(60, int)}, "60 tokens given and 5 to come; allowed together: 64"),
        ({"likeliest": 21}, r"Request.likeliest: 21 given; allowed: a number in \[0, 20\]"),
        ({"seconds": 0}, "Request.seconds: 0 given"),
        ({"seed": 2**63}, "Request.seed: 9223372036854775808 given"),
    ],
)
def test_a_request_that_cannot_be_is_one_line(request_, line):
    with pytest.raises(ConfigError, match=line):
        options = {"prompt": np.array([1]), "stop": Stop(longest=5)} | request_
        asked(engine(), Request(**options))


def test_slots_that_cannot_be_are_one_line():
    for options, line in [
        ({"length": 65}, "Slots.length: 65 given; allowed: 2 to 64"),
        ({"count": 0}, "Slots.count: 0 given; allowed: multiples of 1"),
        ({"chunk": 0}, "Slots.chunk: 0 given"),
    ]:
        with pytest.raises(ConfigError, match=line):
            Slots(decoder("llama"), **options)
