"""Whether a server's memory stays flat: requests of all sorts for minutes, and what it holds.

    python -m benchmarks.serve_soak --artefact=exports/digits --minutes=10

Good requests, malformed ones, ones without their body, clients that leave; from four threads. Every
half minute a line says how many were answered and how much memory the server takes. The exit status
is 1 where the last is more than 5 % and 16 MiB above what it was after a quarter of the time.
"""

import http.client
import json
import pathlib
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence

from absl import flags

from lsm import command_line
from lsm.errors import ProcessError

_THREADS = 4
_EVERY = 30.0  # seconds between lines


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the soak; returns the exit status."""
    given = flags.FlagValues()
    flags.DEFINE_string("artefact", None, "an exported model.", flag_values=given, required=True)
    flags.DEFINE_float("minutes", 10.0, "how long.", flag_values=given)
    return command_line.run(
        lambda f, _: _soak(f["artefact"].value, f["minutes"].value), given, argv, doc=__doc__
    )


def _soak(artefact: str, minutes: float) -> int:
    words = [f"model={artefact}", "--no_auth", "--port=0", "--audit_log=/dev/null"]
    command = [sys.executable, "-m", "launch.serve", *words]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        port, process = _begun(server)
        threading.Thread(target=server.stderr.read, daemon=True).start()
        body = _request(port)
        end, counts = time.monotonic() + 60 * minutes, Counter()
        for _ in range(_THREADS):
            threading.Thread(target=_ask, args=[port, body, end, counts], daemon=True).start()
        return _watched(process, end, counts)
    finally:
        server.terminate()
        server.wait()


def _begun(server: subprocess.Popen) -> tuple[int, int]:
    """Returns the port, and the process that serves, once the model is ready."""
    port = process = None
    for line in server.stderr:
        found = re.search(r"listening at http://[^:]+:(\d+)", line)
        port = int(found[1]) if found else port
        found = re.search(r"Started server process \[(\d+)\]", line)
        process = int(found[1]) if found else process
        if re.search(r"model/\d+: ready", line):
            return port, process
    raise ProcessError("the server ended before it was ready.")


def _request(port: int) -> bytes:
    """Returns a request of the model's with one row of zeros."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/v2/models/model")
    inputs = json.loads(connection.getresponse().read())["inputs"]
    for one in inputs:
        one["shape"] = [max(size, 1) for size in one["shape"]]
        count = 1
        for size in one["shape"]:
            count *= size
        one["data"] = [0] * count
    return json.dumps({"inputs": inputs}).encode()


def _ask(port: int, body: bytes, end: float, counts: Counter) -> None:
    sorts = (body, body, body, b"[" * 5000, body[: len(body) // 2], b'{"inputs": []}', None)
    while time.monotonic() < end:
        for sent in sorts:
            if sent is None:  # a client that leaves in the middle
                with socket.create_connection(("127.0.0.1", port)) as client:
                    head = "POST /v2/models/model/infer HTTP/1.1\r\nHost: localhost\r\n"
                    client.sendall(f"{head}Content-Length: 9999\r\n\r\n".encode() + body[:50])
                counts["left"] += 1
                continue
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("POST", "/v2/models/model/infer", sent)
            counts[str(connection.getresponse().status)] += 1
            connection.close()


def _watched(process: int, end: float, counts: Counter) -> int:
    start, quarter = time.monotonic(), None
    while (now := time.monotonic()) < end:
        time.sleep(min(_EVERY, end - now))
        held = _resident(process)
        answered = ", ".join(f"{count:,} x {status}" for status, count in sorted(counts.items()))
        print(f"{time.monotonic() - start:.0f} s: {held:.1f} MiB; {answered}", flush=True)
        if quarter is None and time.monotonic() - start >= (end - start) / 4:
            quarter = held
    grown = held - (quarter or held)
    print(f"{grown:+.1f} MiB since a quarter of the time")
    return int(grown > 16 and grown > 0.05 * held)


def _resident(process: int) -> float:
    status = pathlib.Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
