r"""Runs an experiment on Kubernetes as a JobSet: TPU slices of GKE, or nodes with GPUs.

    python -m launch.kubernetes --image=IMAGE --topology=v5e:4x4 --slices=2 --claim=runs \
        -- python -m experiments.digits --workdir=/runs/digits

On a preemption the pods get SIGTERM, save and end with status 75; the JobSet then starts them all
again, without counting it as a failure, and the run goes on from its checkpoint.
"""

import dataclasses
import re
import sys

from launch import actions, command, slices
from launch.actions import RunProgram
from launch.command import UNFINISHED, LaunchError

PORT = 8476
"""Where process 0 listens for the others, on GPU nodes."""

GUARD = """\
# Hands SIGTERM to the run, and waits until it has saved. As this is process 1, nobody else would.
"$@" &
run=$!
trap 'told=1; kill -TERM "$run"' TERM
while :; do
  told=
  wait "$run"
  status=$?
  [ -n "$told" ] || break
done
if [ "$status" -eq 143 ] || { [ "$status" -eq 0 ] && [ ! -e "$WORKDIR/result.json" ]; }; then
  exit 75  # interrupted, not finished
fi
exit "$status"
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kubernetes:
    """The JobSet that is asked for.

    Attributes:
      image: container with lsm and the experiment.
      name: of the JobSet; by default the experiment's.
      namespace: where it lives; by default that of your context.
      topology: TPU slice, `v5e:4x4`; or else give gpus.
      slices: TPU slices that train together.
      gpus: GPUs of a node; or else give topology.
      gpu: value of the node label cloud.google.com/gke-accelerator, `nvidia-h100-80gb`.
      nodes: GPU nodes that train together.
      claim: PersistentVolumeClaim that all pods can write to, mounted at `mount`.
      bucket: Google Cloud Storage bucket, mounted at `mount` by GKE's Cloud Storage FUSE driver.
      mount: folder where the claim or the bucket appears; `--workdir` is inside it.
      service_account: Kubernetes service account of the pods; a bucket needs one with access.
      spot: whether spot nodes are asked for.
      max_restarts: failures (not preemptions) after which it is given up.
      grace: seconds that a pod has for saving before it is killed.
      dry_run: prints what would be done, as a shell script, and does nothing.
    """

    image: str
    name: str | None = None
    namespace: str | None = None
    topology: str | None = None
    slices: int = 1
    gpus: int | None = None
    gpu: str | None = None
    nodes: int = 1
    claim: str | None = None
    bucket: str | None = None
    mount: str = "/runs"
    service_account: str | None = None
    spot: bool = False
    max_restarts: int = 3
    grace: int = 120
    dry_run: bool = False

    def __post_init__(self):
        if (self.topology is None) == (self.gpus is None):
            raise LaunchError("--topology, --gpus: one of them is needed, and not both.")
        if self.topology is None and self.slices != 1:
            raise LaunchError("--slices: only TPUs have slices; for GPUs give --nodes.")
        if self.gpus is None and (self.nodes != 1 or self.gpu):
            raise LaunchError("--nodes, --gpu: only for GPUs; a topology has its own hosts.")
        for flag in ("slices", "gpus", "nodes"):
            command.at_least(flag, getattr(self, flag), 1)
        for flag in ("max_restarts", "grace"):
            command.at_least(flag, getattr(self, flag), 0)
        if (self.claim is None) == (self.bucket is None):
            raise LaunchError(
                "--claim, --bucket: one of them is needed, for a workdir that outlives the pods."
            )
        for flag in ("namespace", "claim", "service_account"):
            if getattr(self, flag):
                command.name_of(flag, getattr(self, flag))
        if not re.fullmatch(r"(/[\w.-]+)+", self.mount):
            raise LaunchError(f"--mount: {self.mount!r} given; an absolute folder is needed.")


def plan(job: Kubernetes, words: tuple[str, ...]) -> list[actions.Action]:
    """Returns the action: apply the JobSet with kubectl.

    Raises:
      LsmError: the command, the topology, the name or the config is wrong.
    """
    text = actions.as_yaml(manifest(job, words))
    return [RunProgram(("kubectl", "apply", "--filename=-"), stdin=text)]


def manifest(job: Kubernetes, words: tuple[str, ...]) -> dict:
    """Returns the JobSet (jobset.x-k8s.io/v1alpha2) as JSON values."""
    # A pod is called NAME-hosts-REPLICA-HOST-xxxxx, a label of at most 63.
    name = command.name_of("name", job.name or command.experiment(words).replace("_", "-"), most=40)
    flag = "--claim" if job.claim else "--bucket"
    workdir = command.under(job.mount, flag, words)
    command.check_config(words)
    piece = slices.parse(job.topology) if job.topology else None
    hosts = piece.hosts if piece else job.nodes
    if job.slices > 1 and hosts == 1:
        raise LaunchError(
            f"--slices: {job.slices} given; GKE joins only slices of several hosts, "
            f"and {job.topology} is one host. Give a larger --topology."
        )
    metadata = {"name": name}
    if job.namespace:
        metadata["namespace"] = job.namespace
    if piece and hosts > 1:
        # A job of the set, a slice, is kept in one node pool, and has it for itself.
        pools = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
        metadata["annotations"] = pools
    interrupted = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [UNFINISHED]}}
    disrupted = {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget"}]}
    disrupted["onPodConditions"][0]["status"] = "True"
    job_spec = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [interrupted, disrupted]},
        "template": _pod(job, words, name, workdir, piece),
    }
    replicated = {"name": "hosts", "replicas": job.slices, "template": {"spec": job_spec}}
    free = {
        "name": "preempted",
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": job.max_restarts,
                "restartStrategy": "BlockingRecreate",  # the old pods are gone before new ones come
                "rules": [free],
            },
            "replicatedJobs": [replicated],
        },
    }


def _pod(
    job: Kubernetes,
    words: tuple[str, ...],
    name: str,
    workdir: str,
    piece: slices.Slice | None,
) -> dict:
    selector, tolerations = {}, []
    if piece:
        selector["cloud.google.com/gke-tpu-accelerator"] = piece.generation.label
        selector["cloud.google.com/gke-tpu-topology"] = piece.topology
    elif job.gpu:
        selector["cloud.google.com/gke-accelerator"] = job.gpu
    if job.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        key = "cloud.google.com/gke-spot"
        tolerations.append(
            {"key": key, "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        )
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.grace,
        "nodeSelector": selector,
        "tolerations": tolerations,
        "serviceAccountName": job.service_account,
        "containers": [_container(job, words, name, workdir, piece)],
        "volumes": [_volume(job), {"name": "memory", "emptyDir": {"medium": "Memory"}}],
    }
    pod = {"spec": {key: value for key, value in spec.items() if value}}
    if job.bucket:
        pod = {"metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}}, **pod}
    return pod


def _container(
    job: Kubernetes,
    words: tuple[str, ...],
    name: str,
    workdir: str,
    piece: slices.Slice | None,
) -> dict:
    chips = {"google.com/tpu": piece.chips_per_host} if piece else {"nvidia.com/gpu": job.gpus}
    # Kubernetes would put a variable's value for $(NAME); $$ is a $ that it leaves alone.
    args = [word.replace("$(", "$$(") for word in words]
    guarded = ["bash", "-c", GUARD, "guard"] if command.trains(words) else []
    env = {"PYTHONUNBUFFERED": "1", "WORKDIR": workdir.replace("$(", "$$(")}
    return {
        "name": "run",
        "image": job.image,
        "command": [*guarded, *args],
        "env": [{"name": key, "value": value} for key, value in env.items()]
        + _processes(job, name, piece),
        "resources": {"requests": dict(chips), "limits": dict(chips)},
        "volumeMounts": [
            {"name": "runs", "mountPath": job.mount},
            {"name": "memory", "mountPath": "/dev/shm"},
        ],
    }


def _processes(job: Kubernetes, name: str, piece: slices.Slice | None) -> list[dict]:
    """Returns the variables by which `lsm.processes` finds the other processes."""
    if piece and piece.hosts * job.slices > 1:
        # GKE tells the hosts of a slice, and the slices of a JobSet, by TPU_* and MEGASCALE_*.
        return [{"name": "LSM_COORDINATOR", "value": "auto"}]
    if piece or job.nodes == 1:
        return []
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    # Random, the same in all pods of the one Job, and another after a restart of the JobSet.
    uid = "metadata.labels['batch.kubernetes.io/controller-uid']"
    return [
        {"name": "LSM_COORDINATOR", "value": f"{name}-hosts-0-0.{name}:{PORT}"},
        {"name": "LSM_PROCESSES", "value": str(job.nodes)},
        {"name": "LSM_PROCESS", "valueFrom": {"fieldRef": {"fieldPath": index}}},
        {"name": "LSM_SECRET", "valueFrom": {"fieldRef": {"fieldPath": uid}}},
    ]


def _volume(job: Kubernetes) -> dict:
    if job.claim:
        return {"name": "runs", "persistentVolumeClaim": {"claimName": job.claim}}
    attributes = {"bucketName": job.bucket, "mountOptions": "implicit-dirs"}
    driver = "gcsfuse.csi.storage.gke.io"
    return {"name": "runs", "csi": {"driver": driver, "volumeAttributes": attributes}}


if __name__ == "__main__":
    sys.exit(actions.main(Kubernetes, plan))
