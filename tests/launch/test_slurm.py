"""launch.slurm: its script, and runs on a real Slurm (Debian: slurm-wlm and munge) on loopback."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time

import golden
import pytest

from launch import slurm
from launch.actions import perform
from launch.command import LaunchError

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = ("python", "-m", "experiments.digits", "--config=experiments/configs/digits/cnn.py")


def printed(capsys, job, words):
    perform(slurm.plan(job, words), dry_run=True)
    return capsys.readouterr().out


def script(job, words):
    return slurm.plan(job, words)[0].text


@pytest.mark.parametrize(
    ("name", "job"),
    [
        (
            "slurm_gpus.sh",
            slurm.Slurm(
                nodes=2, gpus_per_node=8, cpus_per_task=12, partition="gpu", account="lab",
                time="04:00:00", grace=120, sbatch=("--mem=64G",),
            ),
        ),
        (
            "slurm_sweep.sh",
            slurm.Slurm(
                name="rates",
                sweep=("config.optimizer.learning_rate=1e-3,3e-3", "config.train.seed=0,1"),
                at_once=2,
            ),
        ),
        ("slurm_once.sh", slurm.Slurm(requeue=False)),
    ],
)  # fmt: skip
def test_dry_run_is_the_golden_one(name, job, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = printed(capsys, job, (*DIGITS, '--config.data.test=it\'s "50 %"', "--workdir=runs/a b"))
    golden.compare(name, text)
    golden.check_shell(text)
    golden.check_shell(script(job, (*DIGITS, "--workdir=runs/a b")))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"nodes": 0}, "--nodes: 0 given; 1 or more is needed."),
        ({"at_once": 2}, "--at_once: only a --sweep has several runs."),
        (
            {"sbatch": ("--ntasks-per-node=2",)},
            "--sbatch: '--ntasks-per-node=2': launch.slurm has a flag for this. Did you mean 'tasks_per_node'?",
        ),
        (
            {"sbatch": ("mem=2G",)},
            "--sbatch: 'mem=2G' given; an option such as --mem=64G is needed.",
        ),
        (
            {"gpus_per_node": 8, "tasks_per_node": 1},
            "--tasks_per_node: 1 given; under Slurm, JAX gives a task one GPU, so 8, as --gpus_per_node says.",
        ),
        (
            {"time": "4hours"},
            "--time: '4hours' given; allowed: MINUTES, MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS or UNLIMITED, such as 04:00:00.",
        ),
        ({"partition": "a\n#SBATCH --uid=0"}, "--partition: a line break is not allowed."),
    ],
)
def test_flags_that_cannot_be(flags, message):
    with pytest.raises(LaunchError) as caught:
        slurm.Slurm(**flags)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "time", ["90", "90:00", "4:00:00", "04:00:00", "2-12", "2-0:30", "10-12:30:00", "unlimited"]
)
def test_times_as_slurm_writes_them(time):
    assert f"\n#SBATCH --time={time}\n" in script(slurm.Slurm(time=time), (*DIGITS, "--workdir=w"))


@pytest.mark.parametrize(
    "time", ["", "4h", "4 hours", "1:2:3:4", "1-", "-1", "2-1:2:3:4", "1.5", "90\n", "04:000", "٣"]
)
def test_times_that_slurm_does_not_read(time):
    with pytest.raises(LaunchError, match="--time: .* given; allowed: MINUTES, MM:SS"):
        slurm.Slurm(time=time)


def test_each_start_of_several_tasks_has_a_secret_of_its_own():
    words = (*DIGITS, "--workdir=w")
    assert "LSM_SECRET" not in script(slurm.Slurm(), words)
    for job in (slurm.Slurm(nodes=2), slurm.Slurm(gpus_per_node=2), slurm.Slurm(tasks_per_node=2)):
        (line,) = (line for line in script(job, words).splitlines() if "LSM_SECRET" in line)
        made = [subprocess.check_output(["bash", "-c", f"{line}; echo $LSM_SECRET"]) for _ in "ab"]
        assert made[0] != made[1] and re.fullmatch(rb"[0-9a-f]{32}\n", made[0])


def test_values_of_other_options_are_quoted():
    options = ("--comment=a b", "--mem=64G", "--exclusive", '--mail-user=it\'s "me"')
    text = script(slurm.Slurm(sbatch=options), (*DIGITS, "--workdir=w"))
    for line in ('--comment="a b"', "--mem=64G", "--exclusive", '--mail-user="it\'s \\"me\\""'):
        assert f"\n#SBATCH {line}\n" in text


def test_a_command_that_is_no_training_is_never_requeued():
    for more in (("--mode=eval",), ("--mode", "eval"), ("--mode=predict",)):
        assert "scontrol" not in script(slurm.Slurm(), (*DIGITS, *more, "--workdir=w"))
    assert "scontrol requeue" in script(slurm.Slurm(), (*DIGITS, "--workdir=w"))


@pytest.mark.parametrize(
    ("status", "finished", "signalled", "requeued"),
    [
        (0, False, False, True),  # interrupted and saved
        (143, False, False, True),  # told to stop while it started
        (0, True, False, False),  # done
        (1, False, False, False),  # an error that the user must mend
        (0, False, True, False),  # scancel: the user wants it gone; a preemption requeues by itself
    ],
)
def test_what_the_script_does_at_the_end(tmp_path, status, finished, signalled, requeued):
    workdir, bin_dir = tmp_path / "a b", tmp_path / "bin"
    bin_dir.mkdir()
    workdir.mkdir()
    if finished:
        (workdir / "result.json").write_text("{}")
    kill = "kill -TERM $PPID;" if signalled else ""
    for name, body in {
        "srun": f'printf "%s\\n" "$@" > {tmp_path}/srun; {kill} exit {status}',
        "scontrol": f'echo "$@" > {tmp_path}/scontrol',
    }.items():
        (bin_dir / name).write_text(f"#!/bin/bash\n{body}\n")
        (bin_dir / name).chmod(0o755)
    words = (*DIGITS, f"--workdir={workdir}", '--config.name=it\'s "$HOME" `x` \\')
    done = subprocess.run(
        ["bash", "-c", script(slurm.Slurm(), words)],
        env={"PATH": f"{bin_dir}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"},
    )
    assert done.returncode == status
    assert (tmp_path / "scontrol").exists() == requeued
    if requeued:
        assert (tmp_path / "scontrol").read_text() == "requeue 7\n"
    given = (tmp_path / "srun").read_text().splitlines()
    assert given[2:] == [*DIGITS, words[-1], f"--workdir={workdir}"]


NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Slurm of one node, on loopback; sets SLURM_CONF."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    missing = [name for name in NEEDED if not shutil.which(name, path=path)]
    if missing:
        pytest.skip(f"needs Slurm, no {missing[0]} here: apt-get install slurm-wlm munge")
    if os.geteuid():
        pytest.skip("needs root: slurmd starts tasks as their users")
    with contextlib.ExitStack() as stack:
        folder = tmp_path_factory.mktemp("slurm")
        conf = folder / "slurm.conf"
        conf.write_text(configuration(folder))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("SLURM_CONF", str(conf))
        patch.setenv("PATH", path)

        def start(*command):
            log = stack.enter_context((folder / f"{command[0]}.out").open("w"))
            daemon = subprocess.Popen(command, stdout=log, stderr=log)
            stack.callback(daemon.wait, 20)
            stack.callback(daemon.terminate)

        start(
            "munged", "--foreground", "--force", f"--key-file={folder}/key",
            f"--socket={folder}/munge", f"--pid-file={folder}/munge.pid",
            f"--log-file={folder}/munge.log", f"--seed-file={folder}/seed",
        )  # fmt: skip
        until(lambda: (folder / "munge").exists(), "munged")
        start("slurmctld", "-D")
        start("slurmd", "-D", "-N", "localhost")
        until(lambda: slurm_says("sinfo", "-h", "-o", "%T") == "idle", "slurmd")
        yield folder
        subprocess.run(["scancel", "--user=root"], check=False)
        until(lambda: slurm_says("squeue", "-h") == "", "the end of all jobs")


def configuration(folder):
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    settings = {
        "ClusterName": "test",
        "SlurmctldHost": "localhost",
        "SlurmctldPort": free_port(),
        "SlurmdPort": free_port(),
        "SlurmUser": "root",
        # A job that is put back waits for its old credential to expire: 5 s, the least, not 120 s.
        "AuthInfo": f"socket={folder}/munge,cred_expire=5",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.pid",
        "SlurmctldLogFile": folder / "slurmctld.log",
        "SlurmdLogFile": folder / "slurmd.log",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "MpiDefault": "none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU",
        "JobAcctGatherType": "jobacct_gather/none",
        "SlurmdParameters": "config_overrides",
        "SchedulerParameters": "sched_interval=1,bf_interval=1,batch_sched_delay=0",
        "ReturnToService": 2,
        "NodeName": "localhost NodeAddr=127.0.0.1 CPUs=8",
        "PartitionName": "test Nodes=localhost Default=YES MaxTime=INFINITE State=UP",
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def slurm_says(*command):
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def until(reached, what, seconds=300, report=lambda: ""):
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, f"waited {seconds} s for {what}: {report()}"
        time.sleep(0.05)


def submit(*words, launcher=()):
    """Runs launch.slurm as users do; returns the number of the job."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "launch.slurm",
            *launcher,
            "--",
            sys.executable,
            *DIGITS[1:],
            *words,
        ],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return re.search(r"Submitted batch job (\d+)", done.stdout)[1]


def rows(workdir):
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


SMALL = (
    "--config.task.model.widths=(4,)",
    "--config.data.workers=1",
    "--config.train.log_every=10",
    "--config.evaluation.every=1000",
)


@pytest.mark.slow
def test_two_tasks_are_interrupted_requeued_and_finish(cluster, tmp_path):
    workdir = tmp_path / 'a "b" 100%d'
    job = submit(
        f"--workdir={workdir}",
        "--config.train.steps=200",
        *SMALL,
        launcher=("--tasks_per_node=2", "--time=10"),
    )
    [log] = [workdir / f"slurm-{job}.log"]

    def report():
        return (slurm_says("squeue"), log.exists() and log.read_text()[-3000:])

    until(lambda: rows(workdir), "the first row of metrics", report=report)
    subprocess.run(["scancel", "--signal=TERM", job], check=True)
    until((workdir / "result.json").exists, "the end of the run", report=report)
    until(lambda: "JobState=COMPLETED" in slurm_says("scontrol", "show", "job", job), "Slurm")

    assert "Restarts=1" in slurm_says("scontrol", "show", "job", job)
    text = log.read_text()
    stopped = int(re.search(r"interrupted at step (\d+)", text)[1])
    assert 10 <= stopped < 200
    assert "launch.slurm: not finished; requeued" in text
    assert re.search(r"^0: digits: completed at step 200", text, re.MULTILINE)
    assert text.count("process 1 of 2") >= 2  # both tasks came, both times
    steps = [row["step"] for row in rows(workdir) if row["split"] == "train"]
    assert steps == sorted(set(steps)) and steps[-1] == 200
    assert (workdir / "slurm.sh").exists()


@pytest.mark.slow
def test_a_sweep_is_an_array_of_runs(cluster, tmp_path):
    workdir = tmp_path / "sweep"
    job = submit(
        f"--workdir={workdir}",
        "--config.train.steps=2",
        *SMALL,
        launcher=("--sweep=config.optimizer.learning_rate=1e-3,3e-3",),
    )
    folders = [workdir / f"learning_rate={rate}" for rate in ("1e-3", "3e-3")]

    def report():
        return slurm_says("squeue"), [p.read_text()[-2000:] for p in workdir.glob("slurm-*.log")]

    until(lambda: all((f / "result.json").exists() for f in folders), "both runs", report=report)
    rates = [
        json.loads((f / "config.json").read_text())["optimizer"]["learning_rate"] for f in folders
    ]
    assert rates == [1e-3, 3e-3]
    logs = sorted(path.name for path in workdir.glob("*.log"))
    assert logs == [f"slurm-{job}_0.log", f"slurm-{job}_1.log"]


STAND_IN = """
import os, pathlib, signal, sys, time
workdir = pathlib.Path(sys.argv[-1].removeprefix("--workdir="))
workdir.mkdir(exist_ok=True)
if "--fail" in sys.argv:
    sys.exit(1)
def save(*_):
    (workdir / "saved").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
if (workdir / "saved").exists():
    (workdir / "result.json").touch()
else:
    (workdir / "started").touch()
    time.sleep(60)
"""


@pytest.mark.slow
def test_who_puts_a_job_back_and_when_nobody_does(cluster, tmp_path, monkeypatch, capfd):
    """A preemption that requeues does what `scontrol requeue` does; the script must not do it too."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/__init__.py").touch()  # or lsm's own is found, where PYTHONPATH has it
    (tmp_path / "experiments/waits.py").write_text(STAND_IN)
    monkeypatch.chdir(tmp_path)
    jobs = {}
    for name in ("preempted", "cancelled", "array", "failing"):
        more = ("--fail",) if name == "failing" else ()
        sweep = ("config.x=1,2",) if name == "array" else ()
        words = (sys.executable, "-m", "experiments.waits", *more, f"--workdir={name}")
        perform(slurm.plan(slurm.Slurm(name=name, sweep=sweep), words), dry_run=False)
        jobs[name] = re.search(r"Submitted batch job (\d+)", capfd.readouterr().out)[1]
    runs = ("preempted", "cancelled", "array/x=1", "array/x=2")
    until(lambda: all((tmp_path / run / "started").exists() for run in runs), "all starts")
    subprocess.run(["scancel", "--signal=TERM", f"{jobs['array']}_1"], check=True)
    subprocess.run(["scontrol", "requeue", jobs["preempted"]], check=True)
    subprocess.run(["scancel", jobs["cancelled"]], check=True)
    for run in ("preempted", "array/x=2"):
        until((tmp_path / run / "result.json").exists, f"the second stay of {run}")
    assert not (tmp_path / "array/x=1/saved").exists()  # the other run of the array is left alone
    subprocess.run(["scancel", jobs["array"]], check=True)

    def shown(name):
        return slurm_says("scontrol", "show", "job", jobs[name])

    until(lambda: slurm_says("squeue", "-h") == "", "the end of all jobs")
    assert "JobState=COMPLETED" in shown("preempted") and "Restarts=1" in shown("preempted")
    assert "JobState=CANCELLED" in shown("cancelled") and "Restarts=0" in shown("cancelled")
    assert (tmp_path / "cancelled/saved").exists()
    assert "JobState=FAILED" in shown("failing") and "Restarts=0" in shown("failing")
