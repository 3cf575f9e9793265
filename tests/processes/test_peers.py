"""The processes of a run, here as threads: their sockets are real."""

import json
import socket
import threading
import time

import numpy as np
import pytest

from lsm.errors import ProcessError
from lsm.processes import hub, peers
from lsm.processes.hub import Hub
from lsm.processes.peers import Peers, free_port

hubs = []


@pytest.fixture(autouse=True)
def ended(monkeypatch):
    """The lines with which processes end; of threads, they go on instead."""
    lines, made = [], []
    init = Peers.__init__

    def remember(self, *args):
        init(self, *args)
        made.append(self)

    monkeypatch.setattr(Peers, "__init__", remember)
    monkeypatch.setattr(peers, "end", lines.append)
    yield lines
    for peer in made:
        peer._leaving = True
    for peer in made:
        peer.close()


def start(port, process, count, start_timeout=20.0, peer_timeout=20.0, host="127.0.0.1", **options):
    address, shared = (host, port), {"start_timeout": start_timeout, "secret": "s"}
    shared["peer_timeout"] = peer_timeout
    if process == 0:
        hubs.append(Hub(address, count, coordinator="host:7", **shared, **options))
    return Peers.join(address, process, count, **shared)


def together(count, function, numbers=None, **options):
    """Calls function(peer, its number) in a thread for each process; returns what came of each."""
    port, results = free_port(), {}

    def run(number):
        try:
            results[number] = function(start(port, number, count, **options), number)
        except ProcessError as error:
            results[number] = str(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in numbers or range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [results[number] for number in sorted(results)]


def wait_for(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def stranger(port):
    """A connection that knows nothing of lsm, made as soon as there is someone to answer."""
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except OSError:
            time.sleep(0.02)


def test_process_0_chooses_the_address_for_jax():
    assert together(2, lambda peer, _: peer.coordinator) == ["host:7", "host:7"]


def test_those_who_miss_the_start_are_named():
    told = together(4, lambda *_: "started", numbers=[0, 2], start_timeout=1)
    assert told == ["processes 1, 3 of 4 are missing, after 1 s at the start."] * 2


def test_a_missing_process_0_is_named():
    (told,) = together(2, lambda *_: "started", numbers=[1], start_timeout=0.5)
    assert "process 1 of 2 waited 0.5 s: process 0 is missing, nothing answers at" in told


def test_a_number_given_twice_is_an_error_everywhere():
    port, told = free_port(), []

    def run(number):
        try:
            start(port, number, 3)
        except ProcessError as error:
            told.append(str(error))

    threads = [threading.Thread(target=run, args=(n,)) for n in (0, 1, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert told == ["two processes have --process=1."] * 3


def test_different_counts_are_an_error():
    port, told = free_port(), {}

    def run(number, count):
        try:
            start(port, number, count)
        except ProcessError as error:
            told[number] = str(error)

    threads = [threading.Thread(target=run, args=pair) for pair in ((0, 2), (1, 3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert told[0] == "process 0 counts 2 processes, and process 1 3."


def test_a_taken_port_is_an_error():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ProcessError, match="cannot be opened on process 0: Address already"):
            start(other.getsockname()[1], 0, 2)


WORDS = [
    b"GET / HTTP/1.1\r\n\r\n",
    b'{"kind": "hello"}\n[]\n7\nnull\n',
    b'{"kind": ["hello"], "process": {}, "count": 2}\n',
    b'{"kind": "hello", "process": "x", "count": 2, "secret": "s"}\n',
    b'{"kind": "hello", "process": 99, "count": 2, "secret": "s"}\n',
    b'{"kind": "hello", "process": -1, "count": 2, "secret": "s"}\n',
    b'{"kind": "hello", "process": 1, "count": 2}\n',
    b'{"kind": "hello", "process": 1, "count": 2, "secret": "of another run"}\n',
    b'{"kind": "hello", "process": 1, "count": 2, "secret": "\\ud800 \xc3\xa9"}\n',
    b'{"kind": "failed", "text": "from nobody"}\n',
    b"[" * 100_000 + b"\n",
    b"\xff" * 300_000,
    b"",
]


@pytest.mark.parametrize("words", WORDS, ids=lambda words: words[:20])
def test_strangers_on_the_port_do_no_harm(words, ended, caplog, capfd):
    port, results = free_port(), []

    def run(number):
        peer = start(port, number, 2)
        results.append(number)
        peer.leave()

    threads = [threading.Thread(target=run, args=(0,))]
    threads[0].start()
    stranger(port).sendall(words)
    time.sleep(0.2)
    threads.append(threading.Thread(target=run, args=(1,)))
    threads[1].start()
    for thread in threads:
        thread.join(30)
    assert sorted(results) == [0, 1] and not ended
    assert hubs[-1].ignored == bool(words) == len(caplog.records)
    assert "Traceback" not in capfd.readouterr().err  # no thread of the hub has ended in one


def test_a_port_holds_out_against_noise(ended, caplog, capfd):
    """Random bytes, and messages of the house with parts of them exchanged, in the middle of a run."""
    rng = np.random.default_rng(0)
    kinds = ["hello", "beat", "at", "leave", "step", "failed", "bye", "stop", "welcome", "", None]
    values = [0, 1, -1, 99, 10**30, 1.5, True, None, "x", "s" * 70_000, [], {}, [[0]], "\ud800"]
    keys = ["process", "count", "secret", "point", "name", "loop", "step", "text"]

    def noise():
        if rng.random() < 0.3:
            return rng.bytes(int(rng.integers(1, 5000)))
        message = {key: values[rng.integers(len(values))] for key in keys if rng.random() < 0.8}
        line = json.dumps(message | {"kind": kinds[rng.integers(len(kinds))]}).encode()
        return line[: rng.integers(len(line))] + b"\n" if rng.random() < 0.2 else line + b"\n"

    def run(peer, number):
        if number == 1:
            for _ in range(300):
                with stranger(peer._connection.getpeername()[1]) as connection:
                    connection.sendall(noise() + noise())
        peer.leave()
        return number

    assert together(2, run) == [0, 1] and not ended
    wait_for(lambda: hubs[-1].ignored > 250)
    assert len(caplog.records) == 1 and "Traceback" not in capfd.readouterr().err


def test_a_process_of_another_run_is_told(ended):
    def run(peer, number):
        address = peer._connection.getpeername()
        peer.arrive("the start")
        if number == 1:
            with pytest.raises(ProcessError, match="process 0 knows another LSM_SECRET than this"):
                Peers.join(address, 1, 2, start_timeout=5, peer_timeout=5, secret="other")
        peer.leave()
        return number

    assert together(2, run) == [0, 1] and not ended


def test_no_more_connections_are_held_than_there_is_place_for(ended, monkeypatch):
    monkeypatch.setattr(hub, "_STRANGERS", 3)

    def run(peer, number):
        if number == 1:
            address = peer._connection.getpeername()
            held = [socket.create_connection(address) for _ in range(20)]
            assert held[-1].recv(1) == b""  # closed at once
            for connection in held:
                connection.close()
        peer.leave()
        return number

    assert together(2, run) == [0, 1] and not ended


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
@pytest.mark.parametrize("host", ["::1", "localhost", "127.0.0.1"])
def test_loopback_of_either_family(host, ended):
    assert together(2, lambda peer, _: peer.coordinator, host=host) == ["host:7"] * 2


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_elsewhere_both_families_are_listened_to():
    timeouts = {"start_timeout": 5, "peer_timeout": 5}
    port = Hub(("", 0), 2, **timeouts).server_address[1]
    told = []

    def run(number, host):
        told.append(Peers.join((host, port), number, 2, **timeouts).process)

    threads = [threading.Thread(target=run, args=pair) for pair in ((0, "127.0.0.1"), (1, "::1"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(told) == [0, 1]


def test_who_says_hello_after_the_start_concerns_nobody_else(ended):
    def run(peer, number):
        if number == 0:
            for hello in ({"process": 1, "count": 2}, {"process": 2, "count": 3}):
                late = stranger(peer._connection.getpeername()[1])
                late.sendall(json.dumps({"kind": "hello", "secret": "s"} | hello).encode() + b"\n")
                told.append(json.loads(late.makefile().readline())["reason"])
        peer.leave()

    told = []
    together(2, run)
    assert told == [
        "two processes have --process=1.",
        "process 0 counts 2 processes, and process 2 3.",
    ]
    assert not ended


def test_messages_that_are_none_are_ignored(ended):
    def run(peer, number):
        for message in ({"kind": "at", "point": "x", "name": 1}, {"kind": "dance"}, {"kind": 3}):
            peer._send(**message)
        peer._send(kind="step", loop=77, step=1)  # of a loop that nobody asked about
        peer.leave()
        return number

    assert together(2, run) == [0, 1]
    assert not ended


@pytest.mark.parametrize("asking", [0, 1, 2])
def test_all_stop_after_the_same_step(asking):
    """Each takes its own time for a step, and no step is waited for but at the end."""

    def loop(peer, number):
        peer.begin_loop()
        for step in range(1, 10_000):
            time.sleep(0.001 * (1 + number))
            if number == asking and step == 50:
                peer.ask_to_stop()
            if peer.stops_after(step):
                return step
        return None

    steps = together(3, loop)
    assert len(set(steps)) == 1 and 50 <= steps[0] < 1000


def test_a_stop_that_is_asked_for_before_others_begin_their_loop_holds_there_too():
    def loop(peer, number):
        if number == 1:
            time.sleep(1)
        peer.begin_loop()
        for step in range(1, 10_000):
            time.sleep(0.001)
            if number == 0 and step == 10:
                peer.ask_to_stop()
            if peer.stops_after(step):
                return step
        return None

    steps = together(2, loop)
    assert steps[0] == steps[1] >= 10


def test_the_next_loop_is_not_stopped_by_the_last_ones_agreement():
    barrier = threading.Barrier(2)

    def loops(peer, number):
        stopped = []
        for _ in range(2):
            peer.begin_loop()
            if number == 0 and not stopped:
                peer.ask_to_stop()
            stopped.append(
                [peer.stops_after(step) for step in range(1, 200) if not time.sleep(0.001)]
            )
            barrier.wait(10)
        return [any(flags) for flags in stopped]

    assert together(2, loops) == [[True, False]] * 2


def test_who_does_not_come_is_named_everywhere(ended):
    def late(peer, number):
        peer.arrive("the claim of the workdir")
        if number == 1:
            wait_for(lambda: len(ended) == 2)
        else:
            peer.arrive("the checkpoint")

    together(2, late, patience=0.5)
    assert sorted(ended) == [
        f"error: process {n} of 2 stops, because process 1 of 2 is missing, after 0.5 s at the "
        "checkpoint."
        for n in (0, 1)
    ]


def hand_made(port, number, count):
    """A process that says who it is, and then what it is told to."""
    connection = stranger(port)
    hello = {"kind": "hello", "process": number, "count": count, "secret": "s"}
    connection.sendall(json.dumps(hello).encode() + b"\n")
    return connection


def test_a_process_that_goes_without_a_word_ends_the_others_at_once(ended):
    port = free_port()
    connections = []
    maker = threading.Thread(target=lambda: connections.append(hand_made(port, 1, 2)))
    maker.start()
    start(port, 0, 2)
    maker.join()
    began = time.monotonic()
    connections[0].close()
    wait_for(lambda: ended)
    assert time.monotonic() - began < 2
    assert "process 0 of 2 stops, because process 1 of 2 has gone (killed, or" in ended[0]


def test_a_process_that_falls_silent_ends_the_others(ended):
    port = free_port()
    maker = threading.Thread(target=lambda: connections.append(hand_made(port, 1, 2)))
    connections = []
    maker.start()
    start(port, 0, 2, peer_timeout=1.5)
    wait_for(lambda: ended)
    assert "process 1 of 2 has not been heard of for 1.5 s" in ended[0]


def test_a_hub_that_falls_silent_ends_the_others(ended):
    with socket.create_server(("127.0.0.1", 0)) as hub:
        threading.Thread(target=start, args=(hub.getsockname()[1], 1, 2, 20, 1.5)).start()
        connection = hub.accept()[0]
        connection.sendall(b'{"kind": "welcome", "jax": ""}\n')
        wait_for(lambda: ended)
        connection.close()
    assert (
        "process 1 of 2 stops, because process 0 of 2 has not been heard of for 1.5 s" in ended[0]
    )


@pytest.mark.slow
def test_beats_keep_idle_processes_alive(ended):
    def idle(peer, number):
        time.sleep(3)
        peer.leave()
        return number

    assert together(2, idle, peer_timeout=1) == [0, 1]
    assert not ended


def test_the_same_error_of_all_is_told_once_by_process_0(ended):
    told = together(3, lambda peer, _: peer.fail("train.steps: 0 given"))
    assert told == [True, False, False]


def test_who_has_heard_a_verdict_does_not_mind_that_process_0_goes_then(ended):
    def fails(peer, number):
        untold = peer.fail("train.steps: 0 given")
        if number == 1:
            wait_for(lambda: gone)
            time.sleep(0.2)
        else:
            hubs[-1]._connections[1].shutdown(socket.SHUT_RDWR)
            gone.append(number)
        return untold

    gone = []
    assert together(2, fails) == [True, False]
    assert not ended


@pytest.mark.parametrize("goes", [True, False])
def test_process_0_which_holds_the_service_of_jax_ends_last(ended, goes, monkeypatch):
    monkeypatch.setattr(hub, "_GRACE", 20.0 if goes else 1.0)
    port, connections = free_port(), []
    maker = threading.Thread(target=lambda: connections.append(hand_made(port, 1, 2)))
    maker.start()
    first = start(port, 0, 2)
    maker.join()
    began, told = time.monotonic(), []
    failing = threading.Thread(target=lambda: told.append(first.fail("train.steps: 0 given", 30)))
    failing.start()
    failing.join(0.5)
    assert failing.is_alive()  # process 1 is there still
    if goes:
        connections[0].close()
    failing.join(15)
    assert told == [True] and not ended
    assert goes or time.monotonic() - began >= 1


def test_an_error_of_one_ends_the_others_with_its_text(ended):
    def fails(peer, number):
        if number == 1:
            return peer.fail("the disk is full")
        wait_for(lambda: len(ended) == 2)
        return None

    assert together(3, fails)[1] is True
    assert sorted(ended) == [
        f"error: process {n} of 3 stops, because process 1 of 3 failed: the disk is full"
        for n in (0, 2)
    ]


def test_after_a_goodbye_nobody_minds(ended):
    def leaves(peer, number):
        peer.leave()
        peer.close()
        return number

    assert together(3, leaves) == [0, 1, 2]
    time.sleep(0.5)
    assert not ended
