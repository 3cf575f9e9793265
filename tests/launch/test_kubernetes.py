"""launch.kubernetes: its manifests, and the shell script that stands between a pod and the run."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import golden
import pytest
import yaml

from launch import kubernetes
from launch.actions import perform
from launch.command import LaunchError
from launch.kubernetes import Kubernetes

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = ("python", "-m", "experiments.digits", "--config=experiments/configs/digits/cnn.py")
WORDS = (*DIGITS, "--workdir=/runs/a b", '--config.data.test=it\'s "$(HOME) 50 %"')
JOBS = {
    "tpu": Kubernetes(image="r/lsm:1", topology="v5e:4x4", claim="runs"),
    "tpu_slices": Kubernetes(
        image="r/lsm:1", name="big", namespace="lab", topology="v5p:4x4x4", slices=2,
        bucket="my-runs", service_account="trainer", spot=True, grace=300, max_restarts=9,
    ),
    "tpu_host": Kubernetes(image="r/lsm:1", topology="v6e:2x4", claim="runs"),
    "gpu": Kubernetes(image="r/lsm:1", gpus=8, gpu="nvidia-h100-80gb", nodes=2, claim="runs"),
}  # fmt: skip


def manifest(job):
    [apply] = kubernetes.plan(job, WORDS)
    assert apply.words == ("kubectl", "apply", "--filename=-")
    return yaml.safe_load(apply.stdin)


@pytest.mark.parametrize("name", JOBS)
def test_dry_run_is_the_golden_one(name, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    perform(kubernetes.plan(JOBS[name], WORDS), dry_run=True)
    text = capsys.readouterr().out
    golden.compare(f"kubernetes_{name}.sh", text)
    golden.check_shell(text)


@pytest.mark.parametrize("name", JOBS)
def test_structure(name):
    """What JobSet v1alpha2 and batch/v1 ask for."""
    job, tree = JOBS[name], manifest(JOBS[name])
    assert (tree["apiVersion"], tree["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    policy = tree["spec"]["failurePolicy"]
    assert policy["restartStrategy"] == "BlockingRecreate"  # two runs in one workdir cannot be
    assert policy["maxRestarts"] == job.max_restarts
    [replicated] = tree["spec"]["replicatedJobs"]
    assert set(replicated) == {"name", "replicas", "template"}
    spec = replicated["template"]["spec"]
    assert spec["parallelism"] == spec["completions"]
    assert spec["completionMode"] == "Indexed" and spec["backoffLimit"] == 0
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # as podFailurePolicy needs
    assert pod["terminationGracePeriodSeconds"] == job.grace
    [container] = pod["containers"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    longest = f"{tree['metadata']['name']}-{replicated['name']}-{job.slices - 1}-99999-abcde"
    assert len(longest) <= 63
    # An interruption that was saved is not a failure, nor is a pod that was taken away.
    exit_code, disruption = spec["podFailurePolicy"]["rules"]
    assert exit_code["onExitCodes"]["values"] == [75]
    assert disruption["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert policy["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_pods_of_gpus_share_what_no_stranger_knows():
    [replicated] = manifest(JOBS["gpu"])["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1  # so that all are pods of one Job
    [container] = replicated["template"]["spec"]["template"]["spec"]["containers"]
    (secret,) = (entry for entry in container["env"] if entry["name"] == "LSM_SECRET")
    label = "metadata.labels['batch.kubernetes.io/controller-uid']"
    assert secret["valueFrom"] == {"fieldRef": {"fieldPath": label}}


def test_tpu_slices_ask_for_their_hosts_and_chips():
    tree = manifest(JOBS["tpu_slices"])
    [slices] = tree["spec"]["replicatedJobs"]
    assert slices["replicas"] == 2
    assert slices["template"]["spec"]["parallelism"] == 16  # 64 chips, 4 in each machine
    pod = slices["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert {"name": "LSM_COORDINATOR", "value": "auto"} in pod["containers"][0]["env"]


def test_gpu_nodes_are_told_where_process_0_is():
    [nodes] = manifest(JOBS["gpu"])["spec"]["replicatedJobs"]
    env = {
        e["name"]: e for e in nodes["template"]["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    # JobSet names a pod SET-JOB-REPLICA-INDEX, in the headless service SET.
    assert env["LSM_COORDINATOR"]["value"] == "digits-hosts-0-0.digits:8476"
    assert env["LSM_PROCESSES"]["value"] == "2"
    path = env["LSM_PROCESS"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "--topology, --gpus: one of them is needed"),
        ({"topology": "v5e:4x4", "gpus": 8}, "--topology, --gpus: one of them is needed, and not both"),
        ({"gpus": 8, "slices": 2}, "--slices: only TPUs have slices"),
        ({"topology": "v5e:4x4", "nodes": 2}, "--nodes, --gpu: only for GPUs"),
        ({"topology": "v5e:2x4", "slices": 2}, "--slices: 2 given; GKE joins only slices of several hosts"),
        ({"topology": "v5e:4x4", "claim": None}, "--claim, --bucket: one of them is needed"),
        ({"topology": "v5e:4x4", "mount": "runs"}, "--mount: 'runs' given; an absolute folder"),
        ({"topology": "v5e:4x4", "name": "Big_run"}, "--name: 'Big_run' given; .* Did you mean 'big-run'"),
        ({"topology": "v5e:4x4", "name": "x" * 41}, "--name: .* 40 of them"),
        ({"topology": "v5e:4x4", "mount": "/other"}, "--workdir: '/runs/a b' is not inside '/other'"),
    ],
)  # fmt: skip
def test_flags_that_cannot_be(flags, message):
    with pytest.raises(LaunchError, match=message):
        manifest(Kubernetes(**{"image": "i", "claim": "runs", **flags}))


def guarded(tmp_path, code):
    """Starts `python -c code` as a pod does; returns the process, once it has printed a line."""
    process = subprocess.Popen(
        ["bash", "-c", kubernetes.GUARD, "guard", sys.executable, "-c", code, "an argument"],
        env={**os.environ, "WORKDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "started\n"
    return process


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("open(sys.argv[1] + '/result.json', 'w')", 0),
        ("pass", 75),
        ("sys.exit(1)", 1),
        ("os.kill(os.getpid(), signal.SIGTERM)", 75),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),
    ],
)
def test_the_guard_tells_finished_from_interrupted(tmp_path, ending, status):
    code = f"import os, signal, sys; sys.argv[1] = os.environ['WORKDIR']; print('started', flush=True); {ending}"
    process = guarded(tmp_path, code)
    assert process.wait(20) == status
    process.stdout.close()


def test_the_guard_hands_on_the_signal_and_waits(tmp_path):
    code = """
import signal, sys, time
def save(*_):
    time.sleep(0.5)
    print(f"saved {sys.argv[1]}", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("started", flush=True)
time.sleep(30)
"""
    process = guarded(tmp_path, code)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # a second one does not hurry it
    assert process.stdout.read() == "saved an argument\n"
    assert process.wait(20) == 75
    process.stdout.close()
