"""Servers under rising load: `launch.serve` beside FastAPI, LitServe and `transformers serve`.

    python -m benchmarks.serve [--model=FOLDER] [--peer_python=PATH] [--seconds=4]
    python -m benchmarks.serve write docs/serving.md
    python -m benchmarks.serve check docs/serving.md

The CNN of `step_time`, pictures as JSON: requests a second and percentiles of the time to an answer
where 1, 8 and 32 clients each ask again when they are answered; then requests come at random at
twice the best of these rates, and what counts is how many are answered within a second.

FOLDER is a language model of Hugging Face's: 1, 4 and 8 conversations at once are streamed to the
package `openai`, each up to 32 of the likeliest tokens. Tokens a second, and seconds to the first.

All servers and the client share the CPUs, one server at a time. Each is started and loaded three
times, by turns; of each load, the turn with the rate between the others' counts. The peers may live
in another interpreter, best of the same Python; what is not there is left out, and said so. The
record is `benchmarks/serve.json`.
"""

import asyncio
import contextlib
import gc
import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

import lsm
from benchmarks.compare import python_version, version_of
from benchmarks.documents import between, keep, kept, origin, wrote_or_checked
from benchmarks.serve_load import Connection, Load, at_rate, in_turn, post
from benchmarks.step_time_cases import CASES, experiment
from benchmarks.step_time_tables import markdown
from lsm import command_line
from lsm.errors import DataError, ProcessError
from lsm.export.write import write
from lsm.run.result import git_revision, hardware, versions
from lsm.train.imported import import_model

RECORD = Path(__file__).with_suffix(".json")
CLIENTS = (1, 8, 32)
TEXTS = (1, 4, 8)
TOKENS = 32
TURNS = 3
PEERS = ("FastAPI", "LitServe", "torch", "transformers")
PATIENCE = 120.0  # seconds until a server has to answer
IN_TIME = 1.0  # seconds within which an answer to an overload is still a good one
SUBJECTS = ("rain", "bread", "chess", "Rome", "violins", "tea", "glass", "bees", "tides", "maps")


@contextlib.contextmanager
def running(command: Sequence[str], port: int, request: bytes) -> Iterator[None]:
    """Runs a server until it is left; enters when it answers the request with 200.

    Raises:
      ProcessError: it ended, or did not answer in time; with its last words.
    """
    with tempfile.TemporaryFile() as words:
        server = subprocess.Popen(command, stdout=words, stderr=words, start_new_session=True)
        try:
            if not asyncio.run(_answers(server, port, request)):
                words.seek(0)
                last = words.read().decode(errors="replace").strip().rpartition("\n")[2]
                raise ProcessError(f"{' '.join(map(str, command[:4]))}: {last}")
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):  # of LitServe's there are several
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


async def _answers(server: subprocess.Popen, port: int, request: bytes) -> bool:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        connection = Connection(port)
        try:
            status, _ = await connection.ask(request)
        except (OSError, EOFError):
            status = 0
        finally:
            connection.close()
        if status == 200:
            return True
        await asyncio.sleep(0.2)
    return False


def pictures(seconds: float, python: str) -> dict[str, Any]:
    """Returns what each server did with the CNN; see the module."""
    import uvloop  # the faster the client's loop, the more of the CPUs is left to the server

    pixels = np.random.default_rng(0).integers(0, 256, 3072).tolist()
    one = {"name": "image", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": pixels}
    theirs = post("/predict", json.dumps({"image": pixels}).encode())
    with tempfile.TemporaryDirectory() as folder:
        words = [f"cnn={_artefact(folder)}", "--no_auth", "--audit_log=/dev/null"]
        ours = post("/v2/models/cnn/infer", json.dumps({"inputs": [one]}).encode())
        servers = {"lsm": ([sys.executable, "-m", "launch.serve", *words, "--port={}"], ours)}
        for name in ("FastAPI", "LitServe"):
            script = Path(__file__).with_name(f"serve_{name.lower()}.py")
            servers[name] = ([python, str(script), "{}"], theirs)

        def measured(port: int, name: str) -> dict[str, Any]:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_loaded(port, servers[name][1], seconds))

        return _by_turns(servers, measured)


def _by_turns(
    servers: Mapping[str, tuple[Sequence[str], bytes]],
    measured: Callable[[int, str], dict[str, Any]],
) -> dict[str, Any]:
    """Returns by server what `measured(port, name)` found, the middle one of its turns.

    Each has a command, with {} for the port, and a request that it answers once it is ready; one
    that ends before is left out.
    """
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
    for name, (command, request) in [*servers.items()] * TURNS:
        port = _free_port()
        try:
            with running([word.format(port) for word in command], port, request):
                turns[name].append(measured(port, name))
        except ProcessError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    return _middle(turns)


def _middle(turns: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Returns by server each load at the turn whose rate is in the middle."""
    return {
        name: {load: sorted((t[load] for t in of), key=_rate)[(len(of) - 1) // 2] for load in of[0]}
        for name, of in turns.items()
        if of
    }


def _rate(figures: dict[str, float]) -> float:
    return figures.get("goodput", figures["rate"])


def _artefact(folder: str) -> str:
    case = next(case for case in CASES["cpu"] if case.model == "cnn")
    config = experiment(case, "float32", steps=1)
    with contextlib.redirect_stdout(io.StringIO()):
        lsm.fit(config, f"{folder}/run")
    write(lsm.load(f"{folder}/run", experiment=config), f"{folder}/artefact", platforms=["cpu"])
    return f"{folder}/artefact"


async def _loaded(port: int, request: bytes, seconds: float) -> dict[str, Any]:
    gc.collect()
    gc.freeze()  # JAX's objects, else looked through by this client now and then, for 0.1 s
    await in_turn(port, request, 8, 2.0)  # warms up
    found = {}
    for clients in CLIENTS:
        found[str(clients)] = _figures(await in_turn(port, request, clients, seconds))
    peak = max(of["rate"] for of in found.values())
    load = await at_rate(port, request, 2 * peak, seconds)
    found["twice"] = _figures(load) | {"goodput": load.rate(IN_TIME), "peak": peak}
    return found


def _figures(load: Load) -> dict[str, Any]:
    refused, sent = load.count(429, 503), len(load.answers)
    failed = sent - load.count(200) - refused
    times = {f"p{q}": load.percentile(q) for q in (50, 95, 99)}
    counts = {"sent": sent, "refused": refused, "failed": failed}
    return {"rate": load.rate(), "client": load.cpus, **counts, **times}


def texts(folder: Path, python: str) -> dict[str, Any]:
    """Returns tokens a second and seconds to the first, by server and number of conversations.

    Raises:
      DataError: the servers do not begin the same answer alike, so it is not the same model.
    """
    from tokenizers import Tokenizer

    tokenizer, begun = Tokenizer.from_file(str(folder / "tokenizer.json")), {}
    with tempfile.TemporaryDirectory() as made:
        import_model(folder, made)
        ours = [sys.executable, "-m", "launch.serve", f"model={made}", "--no_auth"]
        theirs = [python, "-m", "transformers.cli.transformers", "serve", str(folder)]
        theirs += ["--device=cpu", "--dtype=float32", "--port={}"]
        commands = {
            "lsm": [*ours, "--audit_log=/dev/null", "--slots=16", "--port={}"],
            "transformers": theirs,
            "transformers, continuous batching": [*theirs, "--continuous-batching"],
        }
        models = {name: "model" if name == "lsm" else str(folder) for name in commands}

        def hello(model: str) -> bytes:
            asked = {"model": model, "messages": _asked("rain"), "max_tokens": 2}
            return post("/v1/chat/completions", json.dumps(asked).encode())

        def measured(port: int, name: str) -> dict[str, Any]:
            asyncio.run(_streamed(port, models[name], 1, tokenizer))  # the client's first, as well
            of = {}
            for count in TEXTS:
                streamed = _streamed(port, models[name], count, tokenizer)
                of[str(count)], begun[name] = asyncio.run(streamed)
            return of

        servers = {name: (command, hello(models[name])) for name, command in commands.items()}
        found = _by_turns(servers, measured)
    if len({text[:40] for text in begun.values()}) > 1:
        raise DataError(f"serve: the servers write different texts: {begun}.")
    return found


def _asked(subject: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Write a long story about {subject}."}]


async def _streamed(port: int, model: str, count: int, tokenizer: Any) -> tuple[dict, str]:
    import openai

    client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")

    async def one(number: int) -> tuple[float, str]:
        start, first, text = time.perf_counter(), None, ""
        subject = SUBJECTS[number % len(SUBJECTS)] + " and time" * (number // len(SUBJECTS))
        stream = await client.chat.completions.create(
            model=model, messages=_asked(subject), max_tokens=TOKENS, temperature=0, stream=True
        )
        async for chunk in stream:
            if chunk.choices and (piece := chunk.choices[0].delta.content):
                first = first or time.perf_counter() - start
                text += piece
        return first or np.nan, text

    async with client:
        start = time.perf_counter()
        answers = await asyncio.gather(*(one(number) for number in range(count)))
        seconds = time.perf_counter() - start
    tokens = sum(len(tokenizer.encode(text, add_special_tokens=False)) for _, text in answers)
    firsts = [first for first, _ in answers]
    of = {"rate": tokens / seconds, "first": float(np.median(firsts)), "last": max(firsts)}
    return of, answers[0][1]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def tables(record: dict[str, Any]) -> str:
    """Returns a record as Markdown."""
    parts = [f"{origin(record)}.\n"]
    head = [f"{n} clients: requests/s; p50, p95, p99 in ms" for n in CLIENTS]
    rows = [["", *head, "lsm's rate / it", "in time at twice its best rate; CPUs the client took"]]
    for name, of in record["pictures"].items():
        twice = of["twice"]
        share = f"{twice['goodput'] / twice['peak']:.0%} of that".replace("%", " %")
        share += f"; {twice['client']:.2f} ({max(of[str(n)]['client'] for n in CLIENTS):.2f})"
        cells = [_cell(of[str(n)]) for n in CLIENTS]
        rows.append([name, *cells, _ratios(record["pictures"]["lsm"], of, CLIENTS), share])
    parts.append(markdown(rows))
    if record["texts"]:
        head = [f"{n} at once: tokens/s; first token, ms" for n in TEXTS]
        rows = [["", *head, "lsm's rate / it"]]
        for name, of in record["texts"].items():
            cells = [f"{of[str(n)]['rate']:.1f}; {1e3 * of[str(n)]['first']:.0f}" for n in TEXTS]
            rows.append([name, *cells, _ratios(record["texts"]["lsm"], of, TEXTS)])
        parts.append(markdown(rows))
    return "\n".join(parts)


def _ratios(ours: dict[str, Any], theirs: dict[str, Any], counts: Sequence[int]) -> str:
    return ", ".join(f"{ours[str(n)]['rate'] / theirs[str(n)]['rate']:.2f}" for n in counts)


def _cell(of: dict[str, float]) -> str:
    times = ", ".join(f"{1e3 * of[p]:.1f}" for p in ("p50", "p95", "p99"))
    return f"{of['rate']:.0f}; {times}"


def filled(document: Path) -> str:
    """Returns the text of `document` with the tables as the record has them now."""
    return between(document, "serve", tables(kept(RECORD)))


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and keeps the record, or does `write` or `check`; returns the exit status."""
    given = flags.FlagValues()
    flags.DEFINE_string("model", None, "folder of a language model", given)
    flags.DEFINE_string("peer_python", sys.executable, "interpreter with the peers", given)
    flags.DEFINE_float("seconds", 4.0, "of each load", flag_values=given)
    return command_line.run(_act, given, argv, doc=__doc__, words=True)


def _act(given: flags.FlagValues, words: list[str]) -> None:
    if wrote_or_checked(words, filled):
        return
    if given.model and not importlib.util.find_spec("openai"):
        raise DataError("--model: texts are asked for by the package openai, which is not here.")
    made = {
        "hardware": hardware(),
        "git_revision": git_revision(),
        "versions": _versions(given.peer_python),
        "pictures": pictures(given.seconds, given.peer_python),
        "texts": texts(Path(given.model), given.peer_python) if given.model else None,
    }
    print(tables(made))
    keep(RECORD, made)


def _versions(python: str) -> dict[str, str]:
    peers = {name: version_of(python, name.lower()) for name in PEERS}
    own = {"Python": versions()["python"], "jax": versions()["jax"]}
    return own | {n: v for n, v in {"peers' Python": python_version(python), **peers}.items() if v}


if __name__ == "__main__":
    sys.exit(main())
