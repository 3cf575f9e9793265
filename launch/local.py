"""Several processes of one run on this machine, talking over loopback.

    python -m launch.local --processes=2 --devices=4 -- python -m experiments.digits

The processes find each other by environment variables (see `lsm.processes`). What they print is
merged line by line, each behind the number of its process.
"""

import dataclasses
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import BinaryIO, TextIO

from launch.command import LaunchError, at_least, parse, split
from lsm import command_line
from lsm.processes.peers import free_port

_COLORS = (36, 33, 32, 35, 34, 31)
"""ANSI colours of the processes' prefixes, in turn, where the output is a terminal."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Local:
    """The processes that are asked for.

    Attributes:
      processes: how many.
      devices: simulated CPU devices of each; by default the machine's own devices.
      grace: seconds left to the others once one has failed, until they are killed.
    """

    processes: int = 2
    devices: int | None = None
    grace: int = 10

    def __post_init__(self):
        at_least("processes", self.processes, 1)
        at_least("devices", self.devices, 1)
        at_least("grace", self.grace, 1)


class Group:
    """Processes that run together and end together.

    Attributes:
      processes: in the order of their numbers.
    """

    def __init__(self, flags: Local, command: Sequence[str]):
        """Holds the command; `start` runs it."""
        self._flags, self._command = flags, list(command)
        self._signal: int | None = None
        self._grace = flags.grace
        self._printing = threading.Lock()
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._readers: list[threading.Thread] = []
        self.processes: list[subprocess.Popen] = []

    def start(self) -> None:
        """Starts the processes. Raises LaunchError where the program cannot be started."""
        coordinator = f"127.0.0.1:{free_port()}"
        base = os.environ | {"LSM_SECRET": secrets.token_hex(16)}
        for number in range(self._flags.processes):
            env = environment(self._flags, coordinator, number, base)
            try:
                process = subprocess.Popen(
                    self._command,
                    env=env,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,  # a Ctrl-C reaches them once: through `send`
                )
            except OSError as error:
                program = self._command[0]
                raise LaunchError(f"{program}: cannot be started: {error.strerror}.") from error
            self.processes.append(process)
            self._watch(number, process)
            if self._signal is not None:  # it came before this process did
                process.send_signal(self._signal)

    def send(self, number: int) -> None:
        """Passes a signal on to all that still run, and to those that are yet to start."""
        self._signal = number
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self) -> int:
        """Waits for all; returns 0, or the status of the first that failed, 128 + N for signal N.

        Once one fails, the others are left half the grace to stop by themselves, as lsm's do; then
        they get SIGTERM, and at the end of the grace SIGKILL.
        """
        status = 0
        steps = [(float("inf"), signal.SIGTERM)]
        running = len(self.processes)
        while running:
            try:
                number = self._ended.get(timeout=max(min(steps[0][0] - time.monotonic(), 0.2), 0))
            except queue.Empty:
                if time.monotonic() >= steps[0][0]:
                    self.send(steps.pop(0)[1])
                continue
            running -= 1
            code = self.processes[number].returncode
            if code and not status:
                status = code if code > 0 else 128 - code
                self._tell(number, code, running)
                half, never = self._grace / 2, (float("inf"), signal.SIGKILL)
                now = time.monotonic()
                steps = [(now + half, signal.SIGTERM), (now + 2 * half, signal.SIGKILL), never]
        for reader in self._readers:
            reader.join(self._grace)
        return status

    def _watch(self, number: int, process: subprocess.Popen) -> None:
        def ended() -> None:
            process.wait()
            self._ended.put(number)

        copies = [(number, process.stdout, sys.stdout), (number, process.stderr, sys.stderr)]
        readers = [threading.Thread(target=self._copy, args=args, daemon=True) for args in copies]
        self._readers += readers
        for thread in [*readers, threading.Thread(target=ended, daemon=True)]:
            thread.start()

    def _tell(self, number: int, code: int, running: int) -> None:
        how = f"exit status {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
        rest = f"; {running} others are stopped within {self._grace} s" if running else ""
        with self._printing:
            print(f"launch.local: process {number} ended: {how}{rest}.", file=sys.stderr)

    def _copy(self, number: int, source: BinaryIO, sink: TextIO) -> None:
        prefix = f"[{number}] "
        if sink.isatty():
            prefix = f"\x1b[{_COLORS[number % len(_COLORS)]}m{prefix}\x1b[0m"
        for line in source:
            text = line.decode(errors="replace").rstrip("\r\n")
            if not text.startswith("[Gloo] Rank "):  # printed for every new group of devices
                with self._printing:
                    print(prefix + text, file=sink, flush=True)


def environment(
    flags: Local, coordinator: str, number: int, base: Mapping[str, str]
) -> dict[str, str]:
    """Returns `base` with the place of process `number`, and its devices."""
    env = dict(base) | {
        "LSM_COORDINATOR": coordinator,
        "LSM_PROCESSES": str(flags.processes),
        "LSM_PROCESS": str(number),
        "PYTHONUNBUFFERED": "1",
    }
    if flags.devices is not None:
        env |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(flags.devices)}
    return env


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command behind `--`; returns the status of the first failure."""
    return command_line.status(lambda: _act(*split(sys.argv[1:] if argv is None else argv)))


def _act(own: list[str], command: tuple[str, ...]) -> int:
    flags = parse(Local, own)
    if not command:
        raise LaunchError("a command is needed after --, as in -- python -m experiments.digits.")
    if command[0] == "python":
        command = (sys.executable, *command[1:])
    group = Group(flags, command)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: group.send(number))
    group.start()
    return group.wait()


if __name__ == "__main__":
    sys.exit(main())
