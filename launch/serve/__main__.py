"""`python -m launch.serve`: runs the server in a process of its own, and again if that crashes.

This one imports nothing that could crash with it. A server that is killed by a signal (a fault in
compiled code, memory that ran out) is started again; one that ends by itself ends this one too,
with its status.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

_MOST, _WITHIN = 5, 300.0  # restarts, in seconds, after which it is given up


_SERVER = (sys.executable, "-m", "launch.serve.command")


def main(argv: Sequence[str] | None = None, server: Sequence[str] = _SERVER) -> int:
    """Runs the server with these words; returns its exit status, 128 + N where signal N ended it.

    SIGTERM and SIGINT are passed on to it.

    Args:
      argv: the command line without the program; None takes that of this process.
      server: the program that is run with it.
    """
    command = [*server, *(sys.argv[1:] if argv is None else argv)]
    env = os.environ | {"LSM_SERVE_PARENT": str(os.getpid())}
    child: subprocess.Popen | None = None
    stopping = False

    def stop(number: int, _) -> None:
        nonlocal stopping
        stopping = True
        if child is not None:
            child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    crashes: list[float] = []
    while True:
        # In a session of its own, so that a Ctrl-C reaches it once, through `stop`.
        child = subprocess.Popen(command, env=env, start_new_session=True)
        if stopping:  # the signal fell between two of them
            child.terminate()
        status = child.wait()
        crashes = [at for at in crashes if at > time.monotonic() - _WITHIN] + [time.monotonic()]
        if status >= 0 or stopping or len(crashes) > _MOST:
            return status if status >= 0 else 128 - status
        name = signal.Signals(-status).name
        print(f"launch.serve: the server was killed by {name}; it is restarted.", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
