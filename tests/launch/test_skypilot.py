"""launch.skypilot: its task files, and what their `run` does on a node."""

import importlib.metadata
import os
import pathlib
import re
import subprocess
import tomllib

import golden
import pytest
import yaml

from launch import skypilot
from launch.actions import perform
from launch.command import LaunchError
from launch.skypilot import SkyPilot

SECRET = "0123456789abcdef" * 2
ROOT = pathlib.Path(__file__).parents[2]
DIGITS = ("python", "-m", "experiments.digits", "--config=experiments/configs/digits/cnn.py")
WORDS = (*DIGITS, "--workdir=/runs/a b", '--config.data.test=it\'s "$(HOME) 50 %"')
JOBS = {
    "gpus": SkyPilot(accelerators="H100:8", nodes=2, bucket="gs://my-runs", spot=True),
    "one_gpu": SkyPilot(
        accelerators="L4", bucket="s3://my-runs/lsm", infra="aws/us-east-1", managed=False,
        setup="pip install '.[wandb]'", file="tasks/one.yaml",
    ),
    "tpu": SkyPilot(accelerators="tpu-v5litepod-16", bucket="gs://my-runs", max_restarts=0),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _known_secret(monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda size: "0123456789abcdef" * (size // 8))


@pytest.mark.parametrize("name", JOBS)
def test_dry_run_is_the_golden_one(name, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    perform(skypilot.plan(JOBS[name], WORDS), dry_run=True)
    text = capsys.readouterr().out
    golden.compare(f"skypilot_{name}.sh", text)
    golden.check_shell(text)


@pytest.mark.parametrize("name", JOBS)
def test_structure(name):
    """The fields of SkyPilot's YAML; checked by hand with the schema of SkyPilot 0.14.1."""
    job = JOBS[name]
    write, launch = skypilot.plan(job, WORDS)
    task = yaml.safe_load(write.text)
    several = {"secrets"} if job.nodes > 1 else set()
    assert set(task) - several == {
        "name", "workdir", "num_nodes", "resources", "file_mounts", "setup", "run"
    }  # fmt: skip
    assert task.get("secrets") == ({"LSM_SECRET": SECRET} if several else None)
    assert task["num_nodes"] == job.nodes
    assert task["resources"]["accelerators"] == job.accelerators
    assert task["resources"]["use_spot"] == job.spot
    assert ("job_recovery" in task["resources"]) == job.managed
    assert task["file_mounts"] == {
        "/runs": {"source": job.bucket, "mode": "MOUNT_CACHED" if name == "one_gpu" else "MOUNT"}
    }
    golden.check_shell(task["setup"])
    golden.check_shell(task["run"])
    assert launch.words[-1] == write.path
    assert launch.words[:3] == (
        ("sky", "jobs", "launch") if job.managed else ("sky", "launch", "--cluster")
    )


def run_on_a_node(tmp_path, status, name="gpus", finished=False, **env):
    """Runs the task's `run` with a python that records its words; returns status and words."""
    (tmp_path / "python").write_text(
        f'#!/bin/bash\nprintf "%s\\0" "$LSM_COORDINATOR" "$LSM_PROCESSES" "$LSM_PROCESS" "$@" '
        f'> "{tmp_path}/words"\nexit {status}\n'
    )
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "a b").mkdir()
    if finished:
        (tmp_path / "a b/result.json").write_text("{}")
    text = yaml.safe_load(skypilot.plan(JOBS[name], WORDS)[0].text)["run"]
    text = text.replace("/runs/", f"{tmp_path}/")
    done = subprocess.run(
        ["bash", "-e", "-c", text],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **env},
    )
    return done.returncode, (tmp_path / "words").read_text().split("\0")[:-1]


@pytest.mark.parametrize(("name", "extra"), [("gpus", "cuda"), ("tpu", "tpu")])
def test_setup_brings_the_python_and_the_jax_that_are_needed(name, extra, tmp_path):
    """With stand-ins: uv makes the environment whose python then runs the command."""
    task = yaml.safe_load(skypilot.plan(JOBS[name], WORDS)[0].text)
    (tmp_path / "python3").write_text(f'#!/bin/bash\necho "$@" >> "{tmp_path}/words"\n')
    (tmp_path / "python3").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", task["setup"]], env=env, check=True, cwd=tmp_path)
    assert (tmp_path / "words").read_text().splitlines() == [
        "-m pip install --quiet --user uv",
        "-m uv venv --quiet --allow-existing --python=3.12 .venv",
        f"-m uv pip install --quiet --python=.venv .[{extra}]",
    ]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (needed,) = extras[extra]
    known = importlib.metadata.metadata("jax").get_all("Provides-Extra")
    assert re.fullmatch(r"jax\[(\w+)\]", needed)[1] in known
    assert 'export PATH="$PWD/.venv/bin:$PATH"\n' in task["run"]
    (tmp_path / "python3").write_text("#!/bin/bash\nexit 1\n")
    assert subprocess.run(["bash", "-c", task["setup"]], env=env, cwd=tmp_path).returncode == 1


@pytest.mark.parametrize(
    ("status", "finished", "expected"), [(0, True, 0), (0, False, 75), (1, False, 1)]
)
def test_a_node_tells_finished_from_interrupted(tmp_path, status, finished, expected):
    nodes = {
        "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
    }
    ended, words = run_on_a_node(tmp_path, status, finished=finished, **nodes)
    assert ended == expected
    given = [word.replace("/runs/", f"{tmp_path}/") for word in WORDS[1:]]
    assert words == ["10.0.0.4:8476", "2", "1", *given]


@pytest.mark.parametrize(("nodes", "coordinator"), [("1", ""), ("4", "auto")])
def test_hosts_of_a_tpu_slice_find_each_other(tmp_path, nodes, coordinator):
    _, words = run_on_a_node(tmp_path, 0, "tpu", SKYPILOT_NUM_NODES=nodes)
    assert words[:3] == [coordinator, "", ""]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"accelerators": "H100 x 8"}, "--accelerators: 'H100 x 8' given; NAME or NAME:COUNT"),
        ({"accelerators": "tpu-v6e-16", "nodes": 2}, "--nodes: a TPU slice is one node"),
        ({"bucket": "my-runs"}, "--bucket: 'my-runs' given; a URL such as gs://NAME"),
        ({"bucket": "s3://my-runs", "nodes": 2}, "--bucket: .* several hosts need gs://NAME"),
        ({"mount": "runs"}, "--mount: 'runs' given; an absolute folder is needed"),
        ({"mount": "/b"}, "--workdir: '/runs/a b' is not inside '/b', where --bucket is mounted"),
        ({"name": "A.b"}, "--name: 'A.b' given; .* Did you mean 'a-b'"),
    ],
)
def test_flags_that_cannot_be(flags, message):
    with pytest.raises(LaunchError, match=message):
        skypilot.plan(SkyPilot(**{"accelerators": "L4", "bucket": "gs://b", **flags}), WORDS)
