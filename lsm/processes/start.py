"""Many processes as one run: `initialize` is the one call, before anything touches a device.

Processes first find each other by themselves (`lsm.processes.peers`), so that the ones that are
missing can be named; then JAX's own service starts. A run of one process does none of this.
"""

import atexit
import contextlib
import dataclasses
import json
import os
import re
import secrets
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from lsm.errors import ProcessError
from lsm.processes.hub import Hub
from lsm.processes.peers import Peers, end, free_port

_peers: Peers | None = None


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where this process stands among the processes of a run.

    Attributes:
      coordinator: "HOST:PORT", HOST where process 0 runs; or "auto", JAX's own detection.
      processes: number of processes; 0 where JAX detects it.
      process: number of this one, from 0.
      secret: what the processes know of each other and a stranger does not; "" for nothing.
    """

    coordinator: str
    processes: int = 0
    process: int = 0
    secret: str = dataclasses.field(default="", repr=False, compare=False)

    def __post_init__(self):
        host, colon, port = self.coordinator.rpartition(":")
        if self.coordinator == "auto":
            return
        if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
            raise ProcessError(
                f"--coordinator: {self.coordinator!r} given; allowed: HOST:PORT of process 0, such "
                "as 10.0.0.1:8476, or auto."
            )
        if not 0 <= self.process < self.processes:
            raise ProcessError(
                f"--process: {self.process} given; allowed: 0 to {self.processes - 1}, as "
                f"--processes is {self.processes}."
            )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of process 0."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def detect(environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """Returns the cluster that the environment tells of, or None for one process alone.

    In this order: `LSM_COORDINATOR`, `LSM_PROCESSES`, `LSM_PROCESS` (set by our launchers); a Slurm
    step of several tasks; Open MPI and TPU slices of several hosts, whose details JAX finds. The
    secret is `LSM_SECRET`; under Slurm without it the number of the job, which is none, but keeps
    other jobs apart. Looks at environment variables alone: no network, no device.
    """
    secret = environment.get("LSM_SECRET", "")
    if environment.get("LSM_COORDINATOR"):
        return _given(
            environment["LSM_COORDINATOR"],
            environment.get("LSM_PROCESSES"),
            environment.get("LSM_PROCESS"),
            secret,
        )
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in environment:
        first = re.match(r"([^,\[]+)(?:\[(\d+))?", environment["SLURM_STEP_NODELIST"])
        job = environment["SLURM_JOB_ID"]
        port = 61440 + int(job) % 4096
        places = ("SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        return Cluster(
            f"{first[1]}{first[2] or ''}:{port}",
            int(environment["SLURM_STEP_NUM_TASKS"]),
            int(environment["SLURM_PROCID"]),
            secret or ".".join([job, *(environment.get(place, "0") for place in places)]),
        )
    slices = int(environment.get("MEGASCALE_NUM_SLICES", 1)) > 1
    hosts = "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1 or hosts or slices:
        return Cluster("auto")
    return None


def _given(coordinator: str, processes: Any, process: Any, secret: str) -> Cluster:
    """Returns what flags or environment say; Cluster checks the ranges."""
    if coordinator == "auto":
        return Cluster("auto")
    for name, value in (("processes", processes), ("process", process)):
        if value is None or not str(value).isdigit():
            raise ProcessError(
                f"--{name}: {value!r} given; with --coordinator={coordinator} a number is needed."
            )
    return Cluster(coordinator, int(processes), int(process), secret)


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    start_timeout: float = 300.0,
    peer_timeout: float = 60.0,
) -> None:
    """Joins this process to the others of its run; does nothing for a process alone.

    Call it once, before anything touches a device. Prints a line before and one after.

    Args:
      coordinator: "HOST:PORT" of process 0, PORT being free there; "auto" for JAX's own detection
        (TPU VMs, Kubernetes, Open MPI); None takes what `detect` finds.
      processes: number of processes, where `coordinator` is given.
      process: number of this process, 0 to `processes - 1`. Where these are given, `LSM_SECRET` is
        the secret of the run, the same text in all; without it any process may join until all have.
      start_timeout: seconds to wait for all processes to come.
      peer_timeout: seconds of silence after which a process is taken for lost, and all end.

    Raises:
      ProcessError: not all processes came in time (they are named), a number is taken twice, a
        flag is missing or out of range, or this is called twice.
    """
    global _peers
    if coordinator is None and (processes is not None or process is not None):
        raise ProcessError("--coordinator: HOST:PORT is needed with --processes and --process.")
    secret = os.environ.get("LSM_SECRET", "")
    cluster = detect() if coordinator is None else _given(coordinator, processes, process, secret)
    if cluster is None or cluster.processes == 1:
        return
    if _peers is not None or jax.distributed.is_initialized():
        raise ProcessError("lsm.processes.initialize: the processes are joined already.")
    options = {"start_timeout": start_timeout, "peer_timeout": peer_timeout}
    jax.config.update("jax_enable_preemption_service", False)  # see lsm.train.interrupt
    _peers = _join_detected(**options) if not cluster.processes else _join(cluster, **options)
    if _peers is None:  # JAX detects one process alone
        return
    sys.excepthook = _fail_on_exception
    atexit.register(finish)
    _check_connection(_peers)
    devices = f"{jax.local_device_count()} of {jax.device_count()} devices"
    _tell(f"{_peers.name}: joined, with {devices}")


def _join(cluster: Cluster, **timeouts: float) -> Peers:
    """Meets the others at the given address, then starts JAX's service on a port found there."""
    name = f"process {cluster.process} of {cluster.processes}"
    patience = timeouts["start_timeout"]
    _tell(f"{name}: waits up to {patience:g} s for all to come to {cluster.coordinator}")
    known = {"secret": cluster.secret, **timeouts}
    if cluster.process == 0:
        host, _ = cluster.address
        coordinator = f"[{host}]:{free_port()}" if ":" in host else f"{host}:{free_port()}"
        Hub(cluster.address, cluster.processes, coordinator=coordinator, **known)
    peers = Peers.join(cluster.address, cluster.process, cluster.processes, **known)
    place = (peers.coordinator, cluster.processes, cluster.process)
    jax.distributed.initialize(*place, **_for_jax(**timeouts))
    return peers


def _join_detected(**timeouts: float) -> Peers | None:
    """Lets JAX find the others, then tells all of them over the devices where to meet."""
    _tell(f"waits up to {timeouts['start_timeout']:g} s for the processes that JAX detects")
    try:
        jax.distributed.initialize(**_for_jax(**timeouts))
    except ValueError as error:
        raise ProcessError(
            f"--coordinator: auto given, but JAX detects no cluster here ({error}); give "
            "HOST:PORT, --processes and --process."
        ) from error
    process, count = jax.process_index(), jax.process_count()
    if count == 1:
        return None
    here = None
    if process == 0:
        secret = secrets.token_hex(16)
        hub = Hub(("", 0), count, secret=secret, **timeouts)
        here = (_own_address(), hub.server_address[1], secret)
    host, port, secret = _of_all(here)[0]
    return Peers.join((host, port), process, count, secret=secret, **timeouts)


def _for_jax(start_timeout: float, peer_timeout: float) -> dict[str, int]:
    """Returns JAX's own limits, at which it aborts with no readable line: ours come first."""
    return {
        "initialization_timeout": int(start_timeout) + 1,
        "heartbeat_timeout_seconds": int(4 * peer_timeout) + 1,
    }


def _own_address() -> str:
    """Returns the address that this host uses to reach others; nothing is sent."""
    for family, far in ((socket.AF_INET, "10.255.255.255"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 1))
            return probe.getsockname()[0]
    return socket.gethostbyname(socket.gethostname())


def _check_connection(peers: Peers) -> None:
    """Makes the devices of all processes talk once, so that a blocked network shows here."""
    there = _of_all(peers.process)
    if there != list(range(peers.count)):
        raise ProcessError(
            f"the devices see processes {there}, where there are 0 to {peers.count - 1}; check "
            "--process of each."
        )


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")  # in one piece, where the logs of processes are merged
    sys.stdout.flush()


def others() -> Peers | None:
    """Returns the connection to the other processes, or None where this process is alone."""
    return _peers


def is_first() -> bool:
    """Returns whether this is process 0, which talks and writes for all."""
    return _peers is None or _peers.process == 0


def gather(name: str, value: Any) -> list[Any]:
    """Waits for all processes; returns what each gave, JSON values in the order of processes.

    The values go over the devices, behind the steps that are under way; so only the main thread
    may call this. `name` is in the line about who is missing after half an hour.
    """
    if _peers is None:
        return [value]
    _peers.arrive(name)
    # In a thread: to wait for one hears Ctrl-C, to wait for devices does not.
    return ThreadPoolExecutor(1).submit(_of_all, value).result()


def wait_for_all(name: str) -> None:
    """Waits until every process is here; all end where one does not come."""
    gather(name, None)


def share(name: str, value: Any) -> Any:
    """Returns process 0's value, a JSON value, in every process."""
    return gather(name, value if is_first() else None)[0]


def _of_all(value: Any) -> list[Any]:
    from jax.experimental import multihost_utils

    text = json.dumps(value).encode()
    length = int(multihost_utils.process_allgather(np.int32(len(text))).max())
    padded = np.frombuffer(text.ljust(length), np.uint8)
    return [json.loads(bytes(row)) for row in multihost_utils.process_allgather(padded)]


def fail(line: str, status: int = 1) -> None:
    """Tells an error on stderr and ends all processes; does nothing where this one is alone."""
    if _peers is None:
        return
    name = "" if _peers.process == 0 else f"{_peers.name}: "
    untold = _peers.fail(line)
    end(f"error: {name}{line}" if untold else "", status)


def _fail_on_exception(kind, error, trace) -> None:
    """A bug, or a collective that broke because a process died: then the peers know of it first."""
    time.sleep(2.0)  # a verdict about a dead process ends this one meanwhile, in one line
    text = f"{kind.__name__}: {' '.join(str(error).split())[:200]}"
    traceback.print_exception(kind, error, trace)
    assert _peers is not None
    _peers.fail(text)
    end("")


def finish() -> None:
    """Takes leave of the other processes, in good order; called at the end of Python."""
    global _peers
    if _peers is not None:
        _peers.leave()
        jax.distributed.shutdown()
        _peers = None
