r"""Runs an experiment on a Slurm cluster, and puts it back when it is preempted.

    python -m launch.slurm --nodes=2 --gpus_per_node=8 --time=04:00:00 \
        -- python -m experiments.digits --workdir=runs/digits

writes WORKDIR/slurm.sh and submits it. The tasks find each other by Slurm's own variables (see
`lsm.processes`). SIGTERM, 60 s before the time limit, at a preemption or from
`scancel --signal=TERM JOB`, makes them save and stop; the script then requeues the job, until the
run has its result.json.
"""

import dataclasses
import re
import shlex
import sys

from launch import actions, command, sweep
from launch.actions import RunProgram, WriteFile
from launch.command import LaunchError
from lsm.errors import nearest

_OWN = {
    *("job-name", "nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "partition"),
    *("account", "time", "array", "signal", "requeue", "open-mode", "output"),
}
"""Options of sbatch that the launcher writes itself."""

_TIME = re.compile(r"\d+(:\d\d?){0,2}|\d+-\d+(:\d\d?){0,2}|UNLIMITED|INFINITE", re.A | re.I)


_SECRET = "export LSM_SECRET=\"$(od -An -N16 -tx1 /dev/urandom | tr -d ' \\n')\""
"""Made by the script at each start, so that tasks of an earlier one are refused."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slurm:
    """The job that is asked for.

    Attributes:
      name: of the job; by default the experiment's.
      nodes: how many.
      tasks_per_node: processes on each; by default one a GPU, as JAX takes it under Slurm, or one.
      cpus_per_task: CPU cores of each process.
      gpus_per_node: GPUs of each node; 0 asks for none.
      partition: queue; by default the cluster's.
      account: who pays; by default yours.
      time: limit of one stay on the machines, as Slurm writes it: `04:00:00`, `2-12`, `90`.
      grace: seconds before that limit at which the run is told to save.
      requeue: whether a run that was interrupted is put back.
      sweep: `config.FIELD=VALUE,VALUE`; repeated, the product: an array job, one run each.
      at_once: most runs of a sweep at one time.
      sbatch: any other option of sbatch, such as `--sbatch=--mem=64G`; may be repeated.
      dry_run: prints what would be done, as a shell script, and does nothing.
    """

    name: str | None = None
    nodes: int = 1
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    gpus_per_node: int = 0
    partition: str | None = None
    account: str | None = None
    time: str | None = None
    grace: int = 60
    requeue: bool = True
    sweep: tuple[str, ...] = ()
    at_once: int | None = None
    sbatch: tuple[str, ...] = ()
    dry_run: bool = False

    def __post_init__(self):
        for flag in ("nodes", "tasks_per_node", "cpus_per_task", "at_once", "grace"):
            command.at_least(flag, getattr(self, flag), 1)
        command.at_least("gpus_per_node", self.gpus_per_node, 0)
        if self.gpus_per_node and (self.tasks_per_node or self.gpus_per_node) != self.gpus_per_node:
            raise LaunchError(
                f"--tasks_per_node: {self.tasks_per_node} given; under Slurm, JAX gives a task one "
                f"GPU, so {self.gpus_per_node}, as --gpus_per_node says."
            )
        if self.at_once and not self.sweep:
            raise LaunchError("--at_once: only a --sweep has several runs.")
        for option in self.sbatch:
            _check_option(option)
        if self.time is not None and not _TIME.fullmatch(self.time):
            raise LaunchError(
                f"--time: {self.time!r} given; allowed: MINUTES, MM:SS, HH:MM:SS, D-HH, D-HH:MM, "
                "D-HH:MM:SS or UNLIMITED, such as 04:00:00."
            )
        for flag in ("name", "partition", "account", "sbatch"):
            if "\n" in str(getattr(self, flag)):
                raise LaunchError(f"--{flag}: a line break is not allowed.")

    @property
    def tasks_here(self) -> int:
        """Processes on each node."""
        return self.tasks_per_node or self.gpus_per_node or 1


def plan(job: Slurm, words: tuple[str, ...]) -> list[actions.Action]:
    """Returns the actions: write WORKDIR/slurm.sh, and submit it.

    Args:
      job: what is asked of Slurm.
      words: `python -m experiments.NAME ... --workdir=DIR`, not quoted.

    Raises:
      LsmError: the command, the sweep or the config is wrong.
    """
    name, folder = job.name or command.experiment(words), command.workdir(words)
    runs = sweep.points(job.sweep) if job.sweep else ()
    command.check_config(words)
    for point in runs:
        command.check_config(words, point.overrides)
    text = "\n".join([*_header(job, name, folder, len(runs)), "", *_body(job, words, runs), ""])
    path = f"{folder}/slurm.sh"
    return [WriteFile(path, text), RunProgram(("sbatch", path))]


def _check_option(option: str) -> None:
    name = option.removeprefix("--").partition("=")[0]
    if not option.startswith("--"):
        raise LaunchError(f"--sbatch: {option!r} given; an option such as --mem=64G is needed.")
    if name in _OWN:
        own = name.replace("-", "_").replace("ntasks_", "tasks_").replace("job_", "")
        known = [field.name for field in dataclasses.fields(Slurm)]
        hint = nearest(own, known) or " It is set by the launcher."
        raise LaunchError(f"--sbatch: {option!r}: launch.slurm has a flag for this.{hint}")


def _header(job: Slurm, name: str, folder: str, runs: int) -> list[str]:
    array = f"0-{runs - 1}" + (f"%{job.at_once}" if job.at_once else "") if runs else None
    log = f"{folder.replace('%', '%%')}/slurm-{'%A_%a' if runs else '%j'}.log"
    options = {
        "job-name": name,
        "nodes": job.nodes,
        "ntasks-per-node": job.tasks_here,
        "cpus-per-task": job.cpus_per_task,
        "gpus-per-node": job.gpus_per_node or None,
        "partition": job.partition,
        "account": job.account,
        "time": job.time,
        "array": array,
        "signal": f"TERM@{job.grace}",
        "output": log,
        "open-mode": "append",
    }
    given = [f"--{key}={_quoted(str(v))}" for key, v in options.items() if v is not None]
    given += ["--requeue" if job.requeue else "--no-requeue", *map(_option, job.sbatch)]
    return [
        "#!/bin/bash",
        "# Written by launch.slurm.",
        *(f"#SBATCH {option}" for option in given),
    ]


def _option(option: str) -> str:
    key, equals, value = option.partition("=")
    return f"{key}={_quoted(value)}" if equals else option


def _quoted(value: str) -> str:
    """Quotes as sbatch reads its #SBATCH lines: double quotes keep blanks and '#'."""
    if any(char in value for char in " \t#'\"\\"):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return value


def _body(job: Slurm, words: tuple[str, ...], runs: tuple[sweep.Point, ...]) -> list[str]:
    folder = command.workdir(words)
    lines = [f"workdir={shlex.quote(folder)}"]
    if runs:
        lines += ["point=()", 'case "$SLURM_ARRAY_TASK_ID" in']
        for index, point in enumerate(runs):
            place = shlex.quote(f"{folder}/{point.name}")
            lines.append(f"  {index}) workdir={place} point=({shlex.join(point.overrides)}) ;;")
        lines += ["esac"]
    point = ' "${point[@]}"' if runs else ""
    several = job.nodes * job.tasks_here > 1
    cpus = f"--cpus-per-task={job.cpus_per_task} " if job.cpus_per_task else ""
    lines += [
        "",
        "# The tasks get SIGTERM from Slurm; they save and stop. This script gets it only where",
        "# Slurm ends the job itself (scancel, a preemption that requeues), and waits for them.",
        "trap 'ending=1' TERM",
        "export PYTHONUNBUFFERED=1",
        *([_SECRET] if several else []),
        f"srun {cpus}--kill-on-bad-exit=1 --label \\",
        f'  {shlex.join(command.without_workdir(words))}{point} --workdir="$workdir"',
        "status=$?",
    ]
    # The number of an array's last run is also the number of the array, all of whose runs it means.
    own = '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' if runs else '"$SLURM_JOB_ID"'
    if job.requeue and command.trains(words):
        lines += [
            "",
            "# Interrupted and saved (0), or told to stop before it could catch the signal (143):",
            "# without a result.json it is not finished, and goes on in the same workdir.",
            'if [ -z "${ending:-}" ] && [ ! -e "$workdir/result.json" ] &&',
            '   { [ "$status" -eq 0 ] || [ "$status" -eq 143 ]; }; then',
            '  echo "launch.slurm: not finished; requeued"',
            f"  scontrol requeue {own}",
            "fi",
        ]
    return [*lines, 'exit "$status"']


if __name__ == "__main__":
    sys.exit(actions.main(Slurm, plan))
