r"""Runs an experiment on Cloud TPU VMs, asked for as a queued resource, through gcloud.

    python -m launch.tpu_vm create --name=mine --zone=us-west4-a --topology=v5e:4x4 --spot
    python -m launch.tpu_vm wait --name=mine --zone=us-west4-a
    python -m launch.tpu_vm setup --name=mine --zone=us-west4-a --bucket=my-runs
    python -m launch.tpu_vm run --name=mine --zone=us-west4-a \
        -- python -m experiments.digits --workdir=/runs/digits
    python -m launch.tpu_vm logs --name=mine --zone=us-west4-a
    python -m launch.tpu_vm delete --name=mine --zone=us-west4-a

`status` shows the state, and `stop` makes the run save and end.
"""

import dataclasses
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from launch import command, slices
from launch.actions import Action, RunProgram, perform
from launch.command import LaunchError
from lsm import command_line

MOUNT = "/runs"
"""Where `setup --bucket` mounts the bucket."""

_ENVIRONMENT = 'PATH="$PWD/.venv/bin:$PATH" LSM_COORDINATOR=auto PYTHONUNBUFFERED=1'
_DEAD = ("FAILED", "SUSPENDING", "SUSPENDED", "DELETING")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Which queued resource is meant.

    Attributes:
      name: of the queued resource, and of its TPUs.
      zone: where it is, such as us-west4-a.
      project: by default that of your gcloud configuration.
      dry_run: prints what would be done, as a shell script, and does nothing.
    """

    name: str
    zone: str
    project: str | None = None
    dry_run: bool = False

    def __post_init__(self):
        command.name_of("name", self.name)
        if not re.fullmatch(r"[a-z]+(-[a-z]+)+\d+-[a-z]", self.zone):
            raise LaunchError(f"--zone: {self.zone!r} given; a zone such as us-west4-a is needed.")

    def gcloud(self, verb: str, *rest: str) -> tuple[str, ...]:
        """Returns the words of `gcloud compute tpus queued-resources VERB ...` for this one."""
        place = [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project else [])]
        return ("gcloud", "compute", "tpus", "queued-resources", verb, *rest, *place)

    def everywhere(self, script: str) -> RunProgram:
        """Returns the action that runs a shell script on every host, all at a time."""
        where = ("--worker=all", "--node=all")
        return RunProgram(self.gcloud("ssh", self.name, *where, f"--command={script}"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Create(Target):
    """Asks for TPUs; they come when there are some.

    Attributes:
      topology: of a slice, `v5e:4x4`.
      slices: how many, to train together.
      spot: at the price, and the risk, of spot.
      reserved: from your reservation.
      valid_for: how long the request may wait, such as `6h`; by default for ever.
      runtime: image of the machines; by default the generation's for JAX.
    """

    topology: str
    slices: int = 1
    spot: bool = False
    reserved: bool = False
    valid_for: str | None = None
    runtime: str | None = None

    def __post_init__(self):
        super().__post_init__()
        command.at_least("slices", self.slices, 1)
        if self.spot and self.reserved:
            raise LaunchError("--spot, --reserved: only one of them can be.")
        if self.valid_for and not re.fullmatch(r"\d+[smhd]", self.valid_for):
            raise LaunchError(
                f"--valid_for: {self.valid_for!r} given; a time such as 6h is needed."
            )

    def actions(self, words: tuple[str, ...]) -> list[Action]:
        """Returns the request."""
        _nothing_after(words)
        piece = slices.parse(self.topology)
        several = (f"--node-count={self.slices}", f"--node-prefix={self.name}")
        options = [
            f"--accelerator-type={piece.accelerator_type}",
            f"--runtime-version={self.runtime or piece.generation.runtime}",
            *(several if self.slices > 1 else [f"--node-id={self.name}"]),
            *(["--spot"] if self.spot else []),
            *(["--reserved"] if self.reserved else []),
            *([f"--valid-until-duration={self.valid_for}"] if self.valid_for else []),
        ]
        return [RunProgram(self.gcloud("create", self.name, *options))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wait(Target):
    """Waits until the TPUs are there; ends with an error when they will not come.

    Attributes:
      every: seconds between two looks.
    """

    every: int = 30

    def __post_init__(self):
        super().__post_init__()
        command.at_least("every", self.every, 0)

    def perform(self) -> None:
        """Looks until the state is ACTIVE, and prints every change.

        Raises:
          LaunchError: the request failed, or its TPUs were taken away.
        """
        look = self.gcloud("describe", self.name, "--format=value(state.state)")
        if self.dry_run:
            print(f'until [ "$({shlex.join(look)})" = ACTIVE ]; do sleep {self.every}; done')
            return
        before = None
        while True:
            state = _output(look)
            if state != before:
                print(f"{self.name}: {state}", flush=True)
            if state == "ACTIVE":
                return
            if state in _DEAD:
                raise LaunchError(
                    f"{self.name}: {state}; it does not come back. Delete it, create it again, and "
                    "give the same command: the run goes on from its checkpoint."
                )
            before = state
            time.sleep(self.every)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup(Target):
    """Copies the committed files of this repository to every host, and installs them.

    Attributes:
      bucket: Google Cloud Storage bucket to mount at /runs on every host.
    """

    bucket: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.bucket and not re.fullmatch(r"[a-z0-9][\w.-]+", self.bucket):
            raise LaunchError(f"--bucket: {self.bucket!r} given; a name is needed, without gs://.")

    def actions(self, words: tuple[str, ...]) -> list[Action]:
        """Returns: pack, copy, install and mount."""
        _nothing_after(words)
        package = f"/tmp/lsm-{self.name}.tar.gz"
        where = ("--worker=all", "--node=all")
        steps = [
            "rm -rf lsm && mkdir lsm && tar -xzf lsm.tar.gz -C lsm && cd lsm",
            *command.install("tpu"),
        ]
        if self.bucket:
            source = "https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main"
            key = "https://packages.cloud.google.com/apt/doc/apt-key.gpg"
            signed = "/usr/share/keyrings/cloud.google.asc"
            listing = "/etc/apt/sources.list.d/gcsfuse.list"
            steps += [
                f"curl -fsS {key} | sudo tee {signed} > /dev/null",
                f'echo "deb [signed-by={signed}] {source}" | sudo tee {listing} > /dev/null',
                "sudo apt-get update -qq && sudo apt-get install -qq -y gcsfuse",
                f'sudo mkdir -p {MOUNT} && sudo chown "$USER" {MOUNT}',
                f"{{ mountpoint -q {MOUNT} || gcsfuse --implicit-dirs {self.bucket} {MOUNT}; }}",
            ]
        return [
            RunProgram(("git", "archive", "--format=tar.gz", f"--output={package}", "HEAD")),
            RunProgram(self.gcloud("scp", package, f"{self.name}:lsm.tar.gz", *where)),
            self.everywhere(" && ".join(steps)),
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start(Target):
    """Starts the command after `--` on every host and comes back; see `logs`."""

    def actions(self, words: tuple[str, ...]) -> list[Action]:
        """Returns the start of the run. Raises LsmError: the command or its config is wrong."""
        command.experiment(words)
        if command.trains(words):
            command.under(MOUNT, "setup --bucket", words)
        command.check_config(words)
        start = f"{_ENVIRONMENT} nohup {shlex.join(words)} > run.log 2>&1 < /dev/null"
        busy = 'kill -0 "$(cat run.pid 2> /dev/null)" 2> /dev/null'
        told = "echo 'error: a run is going on here; stop it first.' >&2; exit 1"
        script = f"cd lsm || exit 1; if {busy}; then {told}; fi; {start} & echo $! > run.pid"
        return [self.everywhere(script)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logs(Target):
    """Follows what the run prints, until Ctrl-C; the run does not mind.

    Attributes:
      worker: host of the slice; 0 tells most.
      node: slice.
      lines: how many old lines to show first.
    """

    worker: int = 0
    node: int = 0
    lines: int = 100

    def actions(self, words: tuple[str, ...]) -> list[Action]:
        """Returns the following of the log."""
        _nothing_after(words)
        where = (f"--worker={self.worker}", f"--node={self.node}")
        follow = f"--command=tail -n {self.lines} -F lsm/run.log"
        return [RunProgram(self.gcloud("ssh", self.name, *where, follow))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status(Target):
    """Shows the state of the queued resource."""

    def actions(self, words: tuple[str, ...]) -> list[Action]:
        """Returns the question."""
        _nothing_after(words)
        return [RunProgram(self.gcloud("describe", self.name, "--format=yaml(name,state,tpu)"))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stop(Target):
    """Makes the run save and end, on every host."""

    def actions(self, words: tuple[str, ...]) -> list[Action]:
        """Returns the signal."""
        _nothing_after(words)
        return [self.everywhere('kill -TERM "$(cat lsm/run.pid)"')]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delete(Target):
    """Gives the TPUs back, or withdraws the request; what runs on them is killed."""

    def actions(self, words: tuple[str, ...]) -> list[Action]:
        """Returns the deletion."""
        _nothing_after(words)
        return [RunProgram(self.gcloud("delete", self.name, "--force", "--quiet"))]


VERBS = {
    "create": Create,
    "wait": Wait,
    "setup": Setup,
    "run": Start,
    "logs": Logs,
    "status": Status,
    "stop": Stop,
    "delete": Delete,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit status, 1 after one line on stderr."""
    return command_line.status(lambda: _act(*command.split(sys.argv[1:] if argv is None else argv)))


def _act(own: list[str], words: tuple[str, ...]) -> None:
    verb = own[0] if own else ""
    if verb in command_line.HELP:
        verbs = (f"{name}: {cls.__doc__.splitlines()[0]}" for name, cls in VERBS.items())
        command_line.show([*__doc__.splitlines(), "", *verbs, "", "VERB --help lists its flags."])
        return
    command_line.require_one_of(verb, VERBS)
    target = command.parse(VERBS[verb], own[1:], VERBS[verb].__doc__.splitlines()[0])
    if isinstance(target, Wait):
        _nothing_after(words)
        target.perform()
    else:
        perform(target.actions(words), target.dry_run)


def _nothing_after(words: tuple[str, ...]) -> None:
    if words:
        raise LaunchError(f"`-- {words[0]} ...` given; only `run` takes a command.")


def _output(words: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise LaunchError(
            f"{words[0]}: there is no such program here; --dry_run prints what would be done."
        ) from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise LaunchError(f"`{shlex.join(words[:6])} ...`: {last}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
