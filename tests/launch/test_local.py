"""Several real processes under `launch.local`: logs, statuses, signals."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from launch.local import Local, environment
from lsm.errors import LsmError

ROOT = pathlib.Path(__file__).parents[2]


def start(code, *flags):
    return subprocess.Popen(
        [sys.executable, "-m", "launch.local", *flags, "--", "python", "-c", code],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code, *flags):
    process = start(code, *flags)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_processes_know_their_place_and_their_lines_are_merged():
    code = """
import os, sys
e = os.environ
print(e["LSM_PROCESS"], e["LSM_PROCESSES"], e["JAX_NUM_CPU_DEVICES"], e["LSM_COORDINATOR"])
print("a warning", file=sys.stderr)
sys.stdout.write("no newline at the end")
"""
    status, out, err = run(code, "--processes=3", "--devices=4")
    assert status == 0
    assert sorted(err.splitlines()) == [f"[{n}] a warning" for n in range(3)]
    lines = out.splitlines()
    for number in range(3):
        mine = [line for line in lines if line.startswith(f"[{number}] ")]
        assert mine[0].startswith(f"[{number}] {number} 3 4 127.0.0.1:")
        assert mine[1:] == [f"[{number}] no newline at the end"]
    assert len({line.split()[-1] for line in lines if "127.0.0.1" in line}) == 1


@pytest.mark.slow
def test_the_first_failure_gives_the_status_and_ends_the_others():
    code = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it has to be killed
print("up", flush=True)
if os.environ["LSM_PROCESS"] == "1":
    time.sleep(1)
    sys.exit(7)
time.sleep(600)
"""
    began = time.monotonic()
    status, _, err = run(code, "--processes=3", "--grace=2")
    assert status == 7 and time.monotonic() - began < 45
    assert err == (
        "launch.local: process 1 ended: exit status 7; 2 others are stopped within 2 s.\n"
    )


def test_a_killed_process_is_told_with_its_signal():
    code = """
import os, time
if os.environ["LSM_PROCESS"] == "0":
    os.kill(os.getpid(), 9)
time.sleep(600)
"""
    status, _, err = run(code, "--grace=1")
    assert status == 128 + 9
    assert "process 0 ended: killed by SIGKILL; 1 others are stopped within 1 s." in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_go_to_all(number):
    code = f"""
import signal, sys, time
def leave(*_):
    print("saved", flush=True)
    sys.exit(0)
signal.signal({int(number)}, leave)
print("up", flush=True)
time.sleep(600)
"""
    process = start(code, "--processes=2")
    for _ in range(2):
        assert process.stdout.readline().endswith("up\n")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert sorted(out.splitlines()) == ["[0] saved", "[1] saved"]


def test_wrong_flags_are_one_line():
    status, _, err = run("", "--proceses=2")
    assert status == 1 and err.count("\n") == 1
    assert "--proceses" in err and "Did you mean '--processes'?" in err
    with pytest.raises(LsmError, match="--processes: 0 given; 1 or more"):
        Local(processes=0)


def test_a_program_that_is_not_there_is_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "launch.local", "--", "no-such-program"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == "error: no-such-program: cannot be started: No such file or directory.\n"


def test_processes_share_a_secret():
    _, out, _ = run("import os; print(os.environ['LSM_SECRET'])")
    first, second = (line.split()[1] for line in out.splitlines())
    assert first == second and len(first) == 32


def test_devices_are_simulated_only_where_asked_for():
    assert "JAX_PLATFORMS" not in environment(Local(), "h:1", 0, {})
    env = environment(Local(devices=4), "h:1", 1, {"A": "b"})
    assert env["A"] == "b" and env["JAX_PLATFORMS"] == "cpu" and env["LSM_PROCESS"] == "1"
