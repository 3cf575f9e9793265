"""launch.tpu_vm: the gcloud commands that it gives, to a gcloud that records them."""

import json
import os
import pathlib
import shlex
import subprocess
import sys
import time

import golden
import pytest

from launch import tpu_vm

ROOT = pathlib.Path(__file__).parents[2]
PLACE = ("--name=mine", "--zone=us-west4-a")
DIGITS = ("python", "-m", "experiments.digits", "--config=experiments/configs/digits/cnn.py")
WORDS = (*DIGITS, "--workdir=/runs/a b", '--config.data.test=it\'s "$(HOME) 50 %"')
COMMANDS = {
    "create": ("create", *PLACE, "--topology=v5e:4x4", "--spot", "--valid_for=6h"),
    "create_slices": ("create", *PLACE, "--topology=v5p:4x4x4", "--slices=2", "--reserved", "--project=p"),
    "wait": ("wait", *PLACE),
    "setup": ("setup", *PLACE, "--bucket=my-runs"),
    "run": ("run", *PLACE, "--", *WORDS),
    "logs": ("logs", *PLACE, "--worker=3"),
    "status": ("status", *PLACE),
    "stop": ("stop", *PLACE),
    "delete": ("delete", *PLACE),
}  # fmt: skip


@pytest.fixture
def gcloud(tmp_path, monkeypatch):
    """A gcloud that records its arguments, prints the next of `answers`, and does ssh right here."""
    program = tmp_path / "bin/gcloud"
    program.parent.mkdir()
    program.write_text(
        f"""#!{sys.executable}
import json, os, pathlib, subprocess, sys
folder = pathlib.Path({str(tmp_path)!r})
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
answers = folder / "answers"
lines = answers.read_text().splitlines() if answers.exists() else []
if lines:
    answers.write_text("".join(line + "\\n" for line in lines[1:]))
    if lines[0].startswith("ERROR"):
        sys.exit(lines[0])
    print(lines[0])
script = [word for word in sys.argv if word.startswith("--command=")]
if "ssh" in sys.argv:
    home = str(folder / "home")
    sys.exit(subprocess.run(["bash", "-c", script[0][10:]], cwd=home).returncode)
"""
    )
    program.chmod(0o755)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return tmp_path


def calls(folder):
    path = folder / "calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def error(capsys, *argv):
    assert tpu_vm.main(list(argv)) == 1
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", COMMANDS)
def test_dry_run_is_the_golden_one(name, gcloud, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    verb, *rest = COMMANDS[name]
    tpu_vm.main([verb, "--dry_run", *rest])
    text = capsys.readouterr().out
    golden.compare(f"tpu_vm_{name}.sh", text)
    golden.check_shell(text)
    for line in text.splitlines():
        for word in shlex.split(line):
            if word.startswith("--command="):
                golden.check_shell(word.removeprefix("--command="))
    assert not calls(gcloud)


@pytest.mark.parametrize("name", ["create", "create_slices", "logs", "status", "stop", "delete"])
def test_a_real_run_gives_gcloud_what_the_dry_run_prints(name, gcloud, capsys):
    (gcloud / "home/lsm").mkdir()
    (gcloud / "home/lsm/run.log").write_text("a line\n")
    (gcloud / "bin/tail").write_text("#!/bin/sh\nexit 0\n")  # in place of following for ever
    (gcloud / "bin/tail").chmod(0o755)
    sleeper = subprocess.Popen(["sleep", "60"])
    (gcloud / "home/lsm/run.pid").write_text(f"{sleeper.pid}\n")
    try:
        tpu_vm.main(list(COMMANDS[name]))
    finally:
        sleeper.kill()
        ended = sleeper.wait()
    [given] = calls(gcloud)
    tpu_vm.main([COMMANDS[name][0], "--dry_run", *COMMANDS[name][1:]])
    assert ["gcloud", *given] == shlex.split(capsys.readouterr().out)
    assert (ended == -15) == (name == "stop")


def test_the_run_gets_exactly_the_words_given(gcloud, capsys):
    home = gcloud / "home/lsm"
    (home / ".venv/bin").mkdir(parents=True)
    python = home / ".venv/bin/python"
    python.write_text('#!/bin/bash\nprintf "%s\\0" "$LSM_COORDINATOR" "$@" > words\nsleep 60\n')
    python.chmod(0o755)
    tpu_vm.main(list(COMMANDS["run"]))
    pid = int((home / "run.pid").read_text())
    try:
        end = time.monotonic() + 20
        while not (home / "words").exists() or not (home / "words").read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
        assert (home / "words").read_text().split("\0")[:-1] == ["auto", *WORDS[1:]]
        # A second one is refused while the first goes on.
        assert "ended with status 1" in error(capsys, *COMMANDS["run"])
        assert int((home / "run.pid").read_text()) == pid
    finally:
        subprocess.run(["pkill", "--parent", str(pid)], check=False)
        os.kill(pid, 9)


def test_wait_tells_every_change_and_ends_when_active(gcloud, capsys):
    states = ["WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    (gcloud / "answers").write_text("\n".join(states))
    tpu_vm.main(["wait", *PLACE, "--every=0"])
    assert capsys.readouterr().out.split() == [
        "mine:", "WAITING_FOR_RESOURCES", "mine:", "PROVISIONING", "mine:", "ACTIVE",
    ]  # fmt: skip
    assert len(calls(gcloud)) == 4


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_wait_ends_when_nothing_will_come(state, gcloud, capsys):
    (gcloud / "answers").write_text(f"PROVISIONING\n{state}\n")
    assert error(capsys, "wait", *PLACE, "--every=0") == (
        f"error: mine: {state}; it does not come back. Delete it, create it again, and give the same "
        "command: the run goes on from its checkpoint."
    )


def test_what_gcloud_says_against_it_is_one_line(gcloud, capsys):
    (gcloud / "answers").write_text("ERROR: (gcloud) no such zone\n" * 2)
    message = error(capsys, "wait", *PLACE)
    assert message.startswith("error: `gcloud compute tpus") and message.endswith("no such zone")
    assert "ended with status 1." in error(capsys, "delete", *PLACE)


def test_setup_stops_at_the_first_step_that_fails(gcloud, capsys, monkeypatch):
    (gcloud / "bin/git").write_text("#!/bin/sh\nexit 128\n")
    (gcloud / "bin/git").chmod(0o755)
    assert "`git archive" in error(capsys, "setup", *PLACE)
    assert not calls(gcloud)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("creat", *PLACE), "'creat' given; allowed: create, wait, setup, run, logs, status, stop, delete. Did you mean 'create'?"),
        (("create", *PLACE, "--topology=v5e:4x4", "--spot", "--reserved"), "--spot, --reserved: only one of them can be."),
        (("create", *PLACE, "--topology=v5e:4x4", "--valid_for=6"), "--valid_for: '6' given; a time such as 6h is needed."),
        (("create", *PLACE, "--topology=tpu7x:2x2x1"), "--topology: tpu7x is only to be had in GKE; see launch.kubernetes."),
        (("wait", "--name=mine", "--zone=west"), "--zone: 'west' given; a zone such as us-west4-a is needed."),
        (("wait", *PLACE, "--", "python"), "`-- python ...` given; only `run` takes a command."),
        (("run", *PLACE, "--", *DIGITS, "--workdir=w"), "--workdir: 'w' is not inside '/runs', where setup --bucket is mounted; other hosts and a restart would not see it. Give --workdir=/runs/NAME."),
        (("setup", *PLACE, "--bucket=gs://x"), "--bucket: 'gs://x' given; a name is needed, without gs://."),
    ],
)  # fmt: skip
def test_slips_are_one_line(argv, message, capsys):
    assert error(capsys, *argv) == f"error: {message}"
