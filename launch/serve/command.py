"""Serves models over HTTP: exported ones, and those that write texts.

    python -m launch.serve.keys add --file=keys.json --name=me --scope=infer
    python -m launch.serve digits=exports/digits --keys=keys.json --port=8000

A model is NAME=DIR, where DIR is an artefact of `lsm.export`, or holds its versions 1, 2, ..., of
which the newest is served; or the workdir of a run that writes texts. See docs/serving.md.
"""

import asyncio
import contextlib
import dataclasses
import gc
import pathlib
import re
import socket
import ssl
import sys
from collections.abc import Sequence

from launch.actions import perform
from launch.command import LaunchError, flags_of, require_installed
from launch.serve import deploy
from launch.serve.flags import Serve
from launch.serve.keys import Keys
from lsm import command_line
from lsm.errors import shortened
from lsm.files import expanded

_FILES = ("keys", "tls_cert", "tls_key", "audit_log")
_PACKAGES = ("starlette", "uvicorn", "uvloop", "httptools", "prometheus_client", "orjson")


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit status."""
    return command_line.status(lambda: _serve(sys.argv[1:] if argv is None else argv))


def _serve(argv: Sequence[str]) -> None:
    given = flags_of(Serve, deploy.Deploy)
    words = command_line.parse(given, argv, doc=__doc__, words=True)
    flags, deployed = (
        cls(**{field.name: given[field.name].value for field in dataclasses.fields(cls)})
        for cls in (Serve, deploy.Deploy)
    )
    flags = _at_home(flags)
    if deployed.dry_run:
        plain = {name: str(folder) for name, folder in _models(words).items()}
        perform(deploy.plan(deployed, flags, plain), dry_run=True)
        return
    require_installed("serve", _PACKAGES)
    folders = _models(words)
    _check_certificate(flags)
    if flags.traces:
        from launch.serve import traces

        traces.check()
    with _listening(flags) as listener:
        import uvloop

        # A request takes a tenth less time than in asyncio's own loop.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(flags, folders, listener))


async def _run(flags: Serve, folders: dict[str, pathlib.Path], listener: socket.socket) -> None:
    from launch.serve import app, demo, logs, models, server, traces
    from launch.serve.batching import Policy
    from launch.serve.metrics import Metrics
    from launch.serve.repository import Repository
    from launch.serve.writers import Room, is_run, load_writer

    logs.to_stderr()
    keys = Keys(pathlib.Path(flags.keys)) if flags.keys else None
    audit = logs.Audit(pathlib.Path(flags.audit_log) if flags.audit_log else None)
    metrics = Metrics()
    wait = flags.batch_wait_ms / 1000
    policy = Policy(flags.batch_rows, wait, flags.queue, flags.model_timeout)
    room = Room(flags.slots, flags.slot_tokens, flags.queue, flags.model_timeout)
    runs = {name: folder for name, folder in folders.items() if is_run(folder)}
    writers = [load_writer(name, folder, room, metrics) for name, folder in runs.items()]
    exported = {name: folder for name, folder in folders.items() if name not in runs}
    repository = Repository(exported, models.load, policy, metrics, writers)
    mib = 2**20
    bounds = app.Bounds(
        flags.body_mb * mib,
        flags.memory_mb * mib,
        flags.client_timeout,
        flags.request_timeout,
        flags.elements,
    )
    more = [demo.declare] if flags.demo else []
    gate = app.application(repository, keys, metrics, audit, bounds, more)
    with traces.exported() if flags.traces else contextlib.nullcontext() as provider:
        running = server.configured(
            gate,
            traces.around(gate, provider) if provider else None,
            seconds=flags.client_timeout,
            connections=flags.connections,
            requests=flags.queue * len(folders),
            grace=flags.grace,
            ssl_certfile=flags.tls_cert,
            ssl_keyfile=flags.tls_key,
        )
        _warn(flags, listener, logs.log)
        # What computes waits so long for the interpreter, several times a batch, while requests
        # come.
        sys.setswitchinterval(0.0002)
        settling = asyncio.create_task(_settle(repository))
        await running.serve(sockets=[listener])
        settling.cancel()


async def _settle(repository) -> None:
    """Takes what is there once all models are ready out of the garbage collector's sight.

    JAX's objects stay to the end, and to look through them stops every request for 0.1 s.
    """
    while not repository.ready:
        await asyncio.sleep(0.5)
    gc.collect()
    gc.freeze()
    # Under load thousands of objects wait with their requests: not to be looked through for every
    # 700 that come, as by default, which takes a tenth of the time.
    gc.set_threshold(50_000)
    # Python looks for garbage in cycles among old objects once those that came since the last full
    # search are a quarter of what was left by it: without this one, of all that is frozen now.
    gc.collect()


def _at_home(flags: Serve) -> Serve:
    """Returns flags whose files have "~" replaced: a shell leaves that of --keys=~/k as it is."""
    given = {name: getattr(flags, name) for name in _FILES}
    files = {name: file for name, file in given.items() if file is not None}
    found = {name: str(expanded(file, f"--{name}")) for name, file in files.items()}
    return dataclasses.replace(flags, **found)


def _warn(flags: Serve, listener: socket.socket, log) -> None:
    from launch.serve.gate import is_loopback

    host, port = listener.getsockname()[:2]
    log.info("listening at %s://%s:%s", "https" if flags.tls_cert else "http", host, port)
    if flags.no_auth:
        log.warning("NO KEYS ARE ASKED FOR: anyone on this machine can do everything (--no_auth).")
    elif not flags.tls_cert and not is_loopback(flags.host):
        log.warning("keys travel unencrypted: give --tls_cert and --tls_key, or a proxy that does.")


def _models(words: Sequence[str]) -> dict[str, pathlib.Path]:
    folders: dict[str, pathlib.Path] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            given = shortened(repr(word))
            raise LaunchError(
                f"{given} given; NAME=DIR is needed, a name of letters, digits, '.', '_' and '-'."
            )
        if name in folders:
            raise LaunchError(f"{name} is given twice; every model needs a name of its own.")
        folders[name] = expanded(folder, name)
    if not folders:
        raise LaunchError("a model is needed: python -m launch.serve NAME=DIR.")
    return folders


def _check_certificate(flags: Serve) -> None:
    if flags.tls_cert is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            flags.tls_cert, flags.tls_key, password=lambda: ""
        )
    except (OSError, ssl.SSLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise LaunchError(f"--tls_cert, --tls_key: cannot be used: {reason}.") from error


def _listening(flags: Serve) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in flags.host else socket.AF_INET
        return socket.create_server((flags.host, flags.port), family=family, backlog=1024)
    except OSError as error:
        where = f"--host={flags.host} --port={flags.port}"
        raise LaunchError(f"{where}: cannot be listened at: {error.strerror or error}.") from error


if __name__ == "__main__":
    sys.exit(main())
