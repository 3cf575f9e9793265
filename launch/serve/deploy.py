"""The files by which a server is deployed, printed as a shell script: `--dry_run`.

    python -m launch.serve digits=exports/digits --keys=keys.json --dry_run=docker | bash

Each runs it as a user without rights, on a file system that it cannot write to. The keys are in a
folder, not a file: a new file of keys is seen without a restart.
"""

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Mapping
from typing import Literal, get_args

from launch import command
from launch.actions import Action, RunProgram, WriteFile, as_yaml
from launch.command import LaunchError
from launch.serve.flags import Serve
from lsm.command_line import require_one_of

Target = Literal["docker", "kubernetes", "systemd"]

_PYTHON = sys.executable  # of systemd: the one that prints the unit
_USER = 10001  # of containers: none that a machine has
_LIVE, _READY = "/v2/health/live", "/v2/health/ready"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deploy:
    """What is printed instead of serving.

    Attributes:
      dry_run: prints files and commands for docker, kubernetes or systemd, and does nothing.
      name: of the container, service or Deployment; by default that of the first model.
      image: container with lsm, which docker builds and kubernetes pulls.
      claim: of kubernetes: PersistentVolumeClaim with the models, to which each DIR is relative.
      cpus: that the server may use.
      memory_gib: that it may take.
    """

    dry_run: str | None = None
    name: str | None = None
    image: str = "lsm-serve"
    claim: str | None = None
    cpus: int = 2
    memory_gib: int = 4

    def __post_init__(self):
        if self.dry_run is not None:
            require_one_of(self.dry_run, get_args(Target))
        for flag in ("cpus", "memory_gib"):
            command.at_least(flag, getattr(self, flag), 1)
        if self.claim is not None:
            command.name_of("claim", self.claim)


def plan(deploy: Deploy, serve: Serve, models: Mapping[str, str]) -> list[Action]:
    """Returns what `--dry_run` prints.

    Args:
      deploy: where to.
      serve: how models are served.
      models: folders, by name, as they were given.

    Raises:
      LaunchError: a flag does not go together with a deployment.
    """
    if serve.keys is None:
        raise LaunchError("--dry_run: --keys is needed; others than this machine can ask it.")
    if serve.audit_log is not None:
        raise LaunchError("--audit_log: not with --dry_run; the audit log goes to stdout there.")
    if (deploy.dry_run == "kubernetes") != (deploy.claim is not None):
        raise LaunchError("--claim: needed with --dry_run=kubernetes, and with nothing else.")
    name = command.name_of("name", deploy.name or next(iter(models)).lower(), most=50)
    made = {"docker": _docker, "kubernetes": _kubernetes, "systemd": _systemd}[deploy.dry_run]
    return made(deploy, serve, models, name)


def _words(serve: Serve, models: Mapping[str, str], **places: str | int) -> tuple[str, ...]:
    """The words after the program: models, and what is not as it is by default."""
    given = dataclasses.asdict(serve) | places
    changed = [
        f"--{field.name}={given[field.name]}"
        for field in dataclasses.fields(Serve)
        if given[field.name] != field.default
    ]
    return (*(f"{name}={folder}" for name, folder in models.items()), *changed)


def _inside(serve: Serve, models: Mapping[str, str]) -> tuple[str, ...]:
    """The words in a container."""
    places = {"host": "0.0.0.0", "port": 8000, "keys": "/keys/keys.json"}
    if serve.tls_cert:
        places |= {"tls_cert": "/tls/tls.crt", "tls_key": "/tls/tls.key"}
    return _words(serve, models, **places)


def _asked(serve: Serve, path: str, where: str) -> str:
    """Python that fails where a probe does; who asks this machine need not check its name."""
    scheme, context = "http", ""
    if serve.tls_cert:
        scheme, context = "https", "c.check_hostname, c.verify_mode = False, ssl.CERT_NONE; "
        context = "c = ssl.create_default_context(); " + context
    more = ", context=c" if serve.tls_cert else ""
    url = f"{scheme}://{where}{path}"
    return f"import ssl, urllib.request; {context}urllib.request.urlopen('{url}', timeout=5{more})"


def _dockerfile(serve: Serve) -> str:
    test = json.dumps(["python", "-c", _asked(serve, _READY, "127.0.0.1:8000")])
    extras = "serve,text,traces" if serve.traces else "serve,text"
    return f"""\
FROM python:3.12-slim
WORKDIR /lsm
COPY pyproject.toml README.md LICENSE ./
COPY lsm lsm
COPY launch launch
COPY experiments experiments
RUN pip install --no-cache-dir '.[{extras}]'
WORKDIR /
ENV HOME=/tmp PYTHONUNBUFFERED=1
USER {_USER}:{_USER}
HEALTHCHECK --interval=10s --timeout=6s --start-period=120s CMD {test}
ENTRYPOINT ["python", "-m", "launch.serve"]
"""


def _docker(deploy: Deploy, serve: Serve, models: Mapping[str, str], name: str) -> list[Action]:
    here, where = {model: f"/models/{model}" for model in models}, f"/etc/lsm-serve/{name}"
    volumes = {f"{where}/keys": "/keys"}
    volumes |= {os.path.abspath(folder): here[model] for model, folder in models.items()}
    if serve.tls_cert:
        volumes[f"{where}/tls"] = "/tls"
    run = [
        *("docker", "run", "--detach", f"--name={name}", "--restart=on-failure:5", "--init"),
        *(f"--user={_USER}:{_USER}", "--read-only", "--tmpfs=/tmp:rw,nosuid,nodev,size=1g"),
        *("--cap-drop=ALL", "--security-opt=no-new-privileges", "--pids-limit=512"),
        *(f"--cpus={deploy.cpus}", f"--memory={deploy.memory_gib}g"),
        f"--stop-timeout={_grace(serve)}",
        f"--publish={_host(serve.host)}:{serve.port}:8000",
        *(f"--mount=type=bind,source={a},target={b},readonly" for a, b in volumes.items()),
        deploy.image,
        *_inside(serve, here),
    ]
    build = ("docker", "build", f"--tag={deploy.image}", "--file=Dockerfile.serve", ".")
    return [
        WriteFile("Dockerfile.serve", _dockerfile(serve)),
        RunProgram(build),
        *_installed(serve, where, str(_USER)),
        RunProgram(tuple(run)),
    ]


def _host(address: str) -> str:
    """An address before a port."""
    return f"[{address}]" if ":" in address else address


def _grace(serve: Serve) -> int:
    return int(serve.grace) + 15


def _installed(serve: Serve, where: str, user: str) -> list[Action]:
    """Puts keys and certificate where `user` alone can read them; once more after a change."""
    files = {serve.keys: f"{where}/keys/keys.json"}
    if serve.tls_cert:
        files |= {serve.tls_cert: f"{where}/tls/tls.crt", serve.tls_key: f"{where}/tls/tls.key"}
    mode = ("install", "-D", f"--owner={user}", f"--group={user}", "--mode=0400")
    return [RunProgram((*mode, source, target)) for source, target in files.items()]


def _systemd(deploy: Deploy, serve: Serve, models: Mapping[str, str], name: str) -> list[Action]:
    where, user = f"/etc/lsm-serve/{name}", f"lsm-{name}"
    places = {"keys": f"{where}/keys/keys.json"}
    if serve.tls_cert:
        places |= {"tls_cert": f"{where}/tls/tls.crt", "tls_key": f"{where}/tls/tls.key"}
    models = {model: os.path.abspath(folder) for model, folder in models.items()}
    users = f"/etc/sysusers.d/{user}.conf"
    unit = f"/etc/systemd/system/{name}.service"
    return [
        WriteFile(users, f"u {user} -\n"),
        RunProgram(("systemd-sysusers", users)),
        *_installed(serve, where, user),
        WriteFile(unit, _unit(deploy, serve, _words(serve, models, **places), user)),
        RunProgram(("systemctl", "daemon-reload")),
        RunProgram(("systemctl", "enable", "--now", f"{name}.service")),
    ]


def _unit(deploy: Deploy, serve: Serve, words: tuple[str, ...], user: str) -> str:
    """The unit; code is compiled into memory, so that MemoryDenyWriteExecute cannot be."""
    probe = f'for i in $(seq 120); do {_PYTHON} -c "$1" 2>/dev/null && exit; sleep 1; done; exit 1'
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(serve.host, serve.host)
    wait = ("/bin/sh", "-c", probe, "wait", _asked(serve, _READY, f"{_host(host)}:{serve.port}"))
    return f"""\
[Unit]
Description=lsm: models over HTTP
After=network-online.target
Wants=network-online.target

[Service]
ExecStart={_line((_PYTHON, "-m", "launch.serve", *words))}
ExecStartPost={_line(wait)}
TimeoutStartSec=180
TimeoutStopSec={_grace(serve)}
Restart=on-failure
RestartSec=2
User={user}
Environment=HOME=/tmp PYTHONUNBUFFERED=1
CPUQuota={100 * deploy.cpus}%
MemoryMax={deploy.memory_gib}G
TasksMax=512
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=read-only
ProtectProc=invisible
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
PrivateTmp=yes
PrivateDevices=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077

[Install]
WantedBy=multi-user.target
"""


def _line(words: tuple[str, ...]) -> str:
    """A command line as systemd reads it; `$$` and `%%` are its words for `$` and `%`."""
    return " ".join(_quoted(word.replace("%", "%%").replace("$", "$$")) for word in words)


def _quoted(word: str) -> str:
    if shlex.quote(word) == word:
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _kubernetes(deploy: Deploy, serve: Serve, models: Mapping[str, str], name: str) -> list[Action]:
    for model, folder in models.items():
        if folder.startswith("/") or ".." in folder.split("/"):
            raise LaunchError(
                f"{model}: {folder!r} given; with --claim a folder in it is needed, without '/' "
                "first and without '..'."
            )
    here = {model: f"/models/{folder}" for model, folder in models.items()}
    create = ("kubectl", "create", "secret")
    keys = RunProgram((*create, "generic", f"{name}-keys", f"--from-file=keys.json={serve.keys}"))
    secrets = [keys]
    if serve.tls_cert:
        files = (f"--cert={serve.tls_cert}", f"--key={serve.tls_key}")
        secrets.append(RunProgram((*create, "tls", f"{name}-tls", *files)))
    text = "---\n".join(map(as_yaml, manifests(deploy, serve, here, name)))
    return [*secrets, RunProgram(("kubectl", "apply", "--filename=-"), stdin=text)]


def manifests(deploy: Deploy, serve: Serve, models: Mapping[str, str], name: str) -> list[dict]:
    """Returns Deployment, Service and NetworkPolicy as JSON values.

    Args:
      deploy: where to.
      serve: how models are served.
      models: folders in the container, by name.
      name: of all three.
    """
    labels = {"app.kubernetes.io/name": name}
    selector = {"matchLabels": labels}
    template = {"metadata": {"labels": labels}, "spec": _pod(deploy, serve, models, name)}
    # One: rates of keys are counted in each server, and shares of versions are its own.
    spec = {"replicas": 1, "selector": selector, "template": template}
    asking = [{"podSelector": {"matchLabels": {f"{name}-client": "true"}}}]
    reached = {"from": asking, "ports": [{"protocol": "TCP", "port": 8000}]}
    policy = {
        "podSelector": selector,
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [reached],
        "egress": [],  # it asks nobody
    }
    ports = [{"name": "http", "port": serve.port, "targetPort": "http"}]
    kinds = {
        ("apps/v1", "Deployment"): spec,
        ("v1", "Service"): {"type": "ClusterIP", "selector": labels, "ports": ports},
        ("networking.k8s.io/v1", "NetworkPolicy"): policy,
    }
    metadata = {"name": name, "labels": labels}
    return [
        {"apiVersion": version, "kind": kind, "metadata": metadata | {}, "spec": spec}
        for (version, kind), spec in kinds.items()
    ]


def _pod(deploy: Deploy, serve: Serve, models: Mapping[str, str], name: str) -> dict:
    claim = {"claimName": deploy.claim, "readOnly": True}
    volumes = [
        {"name": "models", "persistentVolumeClaim": claim},
        {"name": "keys", "secret": {"secretName": f"{name}-keys", "defaultMode": 0o440}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
    ]
    if serve.tls_cert:
        secret = {"secretName": f"{name}-tls", "defaultMode": 0o440}
        volumes.append({"name": "tls", "secret": secret})
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _grace(serve),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(deploy, serve, models, [v["name"] for v in volumes])],
        "volumes": volumes,
    }


def _container(deploy: Deploy, serve: Serve, models: Mapping[str, str], volumes: list[str]) -> dict:
    # Kubernetes would put a variable's value for $(NAME); $$ is a $ that it leaves alone.
    args = [word.replace("$(", "$$(") for word in _inside(serve, models)]
    scheme = "HTTPS" if serve.tls_cert else "HTTP"

    def probe(path: str, failures: int) -> dict:
        get = {"path": path, "port": "http", "scheme": scheme}
        return {"httpGet": get, "periodSeconds": 5, "failureThreshold": failures}

    return {
        "name": "serve",
        "image": deploy.image,
        "args": args,
        "env": [{"name": "HOME", "value": "/tmp"}],
        "ports": [{"name": "http", "containerPort": 8000}],
        "startupProbe": probe(_READY, 60),  # until all is compiled
        "livenessProbe": probe(_LIVE, 6),
        "readinessProbe": probe(_READY, 1),
        "resources": {
            "requests": {"cpu": str(deploy.cpus), "memory": f"{deploy.memory_gib}Gi"},
            "limits": {"cpu": str(deploy.cpus), "memory": f"{deploy.memory_gib}Gi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": v, "mountPath": f"/{v}"} | ({} if v == "tmp" else {"readOnly": True})
            for v in volumes
        ],
    }
