r"""Runs an experiment on any cloud through SkyPilot, which finds the machines.

    python -m launch.skypilot --accelerators=H100:8 --nodes=2 --bucket=gs://my-runs --spot \
        -- python -m experiments.digits --workdir=/runs/digits

writes a task file and gives it to `sky jobs launch`: a managed job, which SkyPilot starts again on
other machines when a spot instance is taken away; the run goes on from its checkpoint in the
bucket.
"""

import dataclasses
import re
import secrets
import shlex
import sys

from launch import actions, command
from launch.actions import RunProgram, WriteFile
from launch.command import UNFINISHED, LaunchError

PORT = 8476
"""Where process 0 listens for the others."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkyPilot:
    """The task that is asked for.

    Attributes:
      accelerators: of each node, as `sky show-gpus` lists them: `H100:8`, `tpu-v5litepod-16`.
      bucket: `gs://NAME`, or for one node `s3://NAME` and the like, mounted at `mount`.
      name: of the task; by default the experiment's.
      nodes: machines that train together; a TPU slice counts as one.
      infra: cloud, region and zone, `gcp/us-central1`; by default SkyPilot chooses.
      mount: folder where the bucket appears; `--workdir` is inside it.
      setup: command that installs lsm in the copied project; by default, in .venv, with Python 3.12
        and the JAX of the accelerators.
      spot: whether spot instances are asked for.
      managed: whether SkyPilot restarts the task (`sky jobs launch`) or only starts it
        (`sky launch`).
      max_restarts: failures (not preemptions) after which it is given up.
      file: where the task file is written; by default NAME.sky.yaml.
      dry_run: prints what would be done, as a shell script, and does nothing.
    """

    accelerators: str
    bucket: str
    name: str | None = None
    nodes: int = 1
    infra: str | None = None
    mount: str = "/runs"
    setup: str | None = None
    spot: bool = False
    managed: bool = True
    max_restarts: int = 3
    file: str | None = None
    dry_run: bool = False

    def __post_init__(self):
        command.at_least("nodes", self.nodes, 1)
        command.at_least("max_restarts", self.max_restarts, 0)
        if not re.fullmatch(r"[\w.-]+(:\d+)?", self.accelerators):
            raise LaunchError(
                f"--accelerators: {self.accelerators!r} given; NAME or NAME:COUNT is needed, "
                "as in H100:8; `sky show-gpus` lists them."
            )
        if self.tpu and self.nodes != 1:
            raise LaunchError("--nodes: a TPU slice is one node to SkyPilot, whatever its hosts.")
        if not re.fullmatch(r"(gs|s3|r2|cos|oci)://[\w.-]+(/[\w./-]*)?", self.bucket):
            raise LaunchError(
                f"--bucket: {self.bucket!r} given; a URL such as gs://NAME or s3://NAME is needed."
            )
        if self.shared and not self.bucket.startswith("gs://"):
            raise LaunchError(
                f"--bucket: {self.bucket!r} given; several hosts need gs://NAME, as only "
                "there what one host appends to a file is seen by the others."
            )
        if not re.fullmatch(r"(/[\w.-]+)+", self.mount):
            raise LaunchError(f"--mount: {self.mount!r} given; an absolute folder is needed.")

    @property
    def tpu(self) -> bool:
        """Whether a TPU slice is asked for."""
        return self.accelerators.lower().startswith("tpu")

    @property
    def shared(self) -> bool:
        """Whether several hosts may write to the bucket."""
        return self.nodes > 1 or self.tpu


def plan(job: SkyPilot, words: tuple[str, ...]) -> list[actions.Action]:
    """Returns the actions: write the task file, and launch it.

    Raises:
      LsmError: the command, the name or the config is wrong.
    """
    name = command.name_of("name", job.name or command.experiment(words).replace("_", "-"))
    path = job.file or f"{name}.sky.yaml"
    verb = ("jobs", "launch", "--name") if job.managed else ("launch", "--cluster")
    text = "# Written by launch.skypilot.\n" + actions.as_yaml(task(job, words, name))
    return [WriteFile(path, text), RunProgram(("sky", *verb, name, "--yes", path))]


def task(job: SkyPilot, words: tuple[str, ...], name: str) -> dict:
    """Returns the SkyPilot task as JSON values."""
    command.under(job.mount, "--bucket", words)
    command.check_config(words)
    resources = {
        "infra": job.infra,
        "accelerators": job.accelerators,
        "use_spot": job.spot,
        "job_recovery": {
            "max_restarts_on_errors": job.max_restarts,
            "recover_on_exit_codes": [UNFINISHED],
        }
        if job.managed
        else None,
    }
    # MOUNT_CACHED takes every kind of write, but hosts do not see each other's files at once.
    mode = "MOUNT" if job.shared else "MOUNT_CACHED"
    return {
        "name": name,
        "workdir": ".",
        "num_nodes": job.nodes,
        "resources": {key: value for key, value in resources.items() if value is not None},
        "file_mounts": {job.mount: {"source": job.bucket, "mode": mode}},
        **({"secrets": {"LSM_SECRET": secrets.token_hex(16)}} if job.nodes > 1 else {}),
        "setup": "\n".join(_setup(job)) + "\n",
        "run": _run(job, words),
    }


def _setup(job: SkyPilot) -> list[str]:
    if job.setup is not None:
        return [job.setup]
    return ["set -e", *command.install("tpu" if job.tpu else "cuda")]


def _run(job: SkyPilot, words: tuple[str, ...]) -> str:
    lines = ["export PYTHONUNBUFFERED=1"]
    if job.setup is None:
        lines.append('export PATH="$PWD/.venv/bin:$PATH"')
    if job.tpu:
        lines += [
            "# The hosts of a TPU slice find each other.",
            'if [ "$SKYPILOT_NUM_NODES" -gt 1 ]; then export LSM_COORDINATOR=auto; fi',
        ]
    elif job.nodes > 1:
        lines += [
            f'export LSM_COORDINATOR="$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{PORT}"',
            'export LSM_PROCESSES="$SKYPILOT_NUM_NODES" LSM_PROCESS="$SKYPILOT_NODE_RANK"',
        ]
    if command.trains(words):
        result = shlex.quote(f"{command.workdir(words)}/result.json")
        lines += [
            f"status=0; {shlex.join(words)} || status=$?",
            "# Interrupted and saved is not finished: SkyPilot starts it again at this status.",
            f'if [ "$status" -eq 0 ] && [ ! -e {result} ]; then exit {UNFINISHED}; fi',
            'exit "$status"',
        ]
    else:
        lines.append(shlex.join(words))
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(actions.main(SkyPilot, plan))
