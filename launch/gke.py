"""Kubernetes with TPUs or GPUs: one JobSet (jobset.x-k8s.io) a job, given to `kubectl`.

A slice is one child job whose pods are its hosts: `completions = parallelism = hosts`. Several slices are replicas of
it, each on a node pool of its own, joined by the variables of Megascale. A pod that fails or is taken away fails its
child job; the JobSet then makes all of them anew, and the run goes on from its last checkpoint. A user's mistake (exit
status 2) ends the JobSet at once, and so does its time limit.

Sources: the API of JobSet (github.com/kubernetes-sigs/jobset, v1alpha2), "Plan TPUs in GKE" and "Deploy TPU Multislices
in GKE" (cloud.google.com/kubernetes-engine/docs).
"""

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launch import yaml_text
from launch.devices import GENERATIONS, Devices, parse
from launch.launcher import IMAGE, ROOT, Handle, Job, Launcher, Option, Status
from launch.records import JOBS
from research.errors import UserError

CHILD, CONTAINER = "slice", "isoflop"
PORT = 8476
# GKE's label of GPU nodes by the names that plans use; any other name is taken as it is.
GPU_LABELS = {
    "l4": "nvidia-l4",
    "a100": "nvidia-a100-80gb",
    "h100": "nvidia-h100-80gb",
    "h200": "nvidia-h200-141gb",
    "b200": "nvidia-b200",
}
# The exit status of a user's mistake (settings, data): another turn would end in the same way.
MISTAKE = 2


class Gke(Launcher):
    """JobSets of a Kubernetes cluster."""

    name = "gke"
    SHARES_FILES = False
    OPTIONS = (
        IMAGE,
        ROOT,
        Option("volume", "what is mounted at --root: claim:NAME or bucket:NAME (Cloud Storage)", required=True),
        Option("namespace", "namespace of the cluster", default="default"),
        Option("context", "context of kubectl"),
        Option("service_account", "Kubernetes service account of the pods (buckets need one)"),
        Option("queue", "Kueue's local queue"),
        Option("max_restarts", "times that a job is started again before it counts as failed", int, 100),
        Option("grace", "seconds between SIGTERM and the end of a pod, in which the run saves", int, 300),
    )

    def check_job(self, job: Job) -> None:
        """Devices that GKE has, and a volume."""
        asked, devices = job.resources, parse(job.resources.devices)
        if devices.kind == "tpu" and asked.nodes != 1:
            raise UserError(
                f"--nodes={asked.nodes}: {asked.devices} has {devices.hosts} hosts by its shape, drop --nodes"
            )
        if devices.kind != "tpu" and asked.slices != 1:
            raise UserError(f"--slices={asked.slices}: only TPUs have slices, say --nodes")
        if asked.processes_per_node != 1:
            raise UserError(f"--processes-per-node={asked.processes_per_node}: a pod is one process here, drop it")
        if self.options["volume"].partition(":")[0] not in {"claim", "bucket"} or self.options["volume"][-1] == ":":
            raise UserError(f"--volume={self.options['volume']}: write claim:NAME or bucket:NAME")
        if not Path(self.options["root"]).is_absolute():
            raise UserError(f"--root={self.options['root']} has to be an absolute path, like /data")

    def describe(self, jobs: Sequence[Job]) -> str:
        """The YAML."""
        return yaml_text.dump(self.manifest(job) for job in jobs)

    # --- the manifest -------------------------------------------------------------------------------------------------

    def manifest(self, job: Job) -> dict[str, Any]:
        """The JobSet of a job."""
        asked, devices = job.resources, parse(job.resources.devices)
        hosts = devices.hosts if devices.kind == "tpu" else asked.nodes
        labels = {} if self.options["queue"] is None else {"kueue.x-k8s.io/queue-name": self.options["queue"]}
        hopeless = {
            "name": "hopeless",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy", "DeadlineExceeded"],
        }
        spec: dict[str, Any] = {
            "failurePolicy": {"maxRestarts": self.options["max_restarts"], "rules": [hopeless]},
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "replicatedJobs": [
                {
                    "name": CHILD,
                    "replicas": asked.slices,
                    "template": {"spec": self._child(job, devices, hosts)},
                }
            ],
        }
        metadata: dict[str, Any] = {"name": job.name, "namespace": self.options["namespace"]}
        if devices.kind == "tpu":  # a slice has a node pool to itself
            topology = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
            metadata["annotations"] = topology
        if labels:
            metadata["labels"] = labels
        return {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata, "spec": spec}

    def _child(self, job: Job, devices: Devices, hosts: int) -> dict[str, Any]:
        pod: dict[str, Any] = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": self.options["grace"],
            "nodeSelector": self._nodes(job, devices),
            "containers": [self._container(job, devices, hosts)],
            "volumes": [self._volume()],
        }
        if job.resources.preemptible:
            spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
            pod["tolerations"] = [spot]
        if self.options["service_account"] is not None:
            pod["serviceAccountName"] = self.options["service_account"]
        bucket = self.options["volume"].startswith("bucket:")
        annotations = {"metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}}} if bucket else {}
        mistake = {"containerName": CONTAINER, "operator": "In", "values": [MISTAKE]}
        child: dict[str, Any] = {
            "parallelism": hosts,
            "completions": hosts,
            "completionMode": "Indexed",
            # One pod that fails ends the slice: the others wait for it in vain. The JobSet starts all of them again.
            "backoffLimit": 0,
            "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": mistake}]},
            "template": {**annotations, "spec": pod},
        }
        if job.resources.hours is not None:
            child["activeDeadlineSeconds"] = round(job.resources.hours * 3600)
        return child

    def _nodes(self, job: Job, devices: Devices) -> dict[str, str]:
        found = {}
        if devices.kind == "tpu":
            found["cloud.google.com/gke-tpu-accelerator"] = GENERATIONS[devices.name].node_label
            found["cloud.google.com/gke-tpu-topology"] = devices.topology
        elif devices.kind == "gpu" and devices.name:
            found["cloud.google.com/gke-accelerator"] = GPU_LABELS.get(devices.name, devices.name)
        if job.resources.preemptible:
            found["cloud.google.com/gke-spot"] = "true"
        return found

    def _container(self, job: Job, devices: Devices, hosts: int) -> dict[str, Any]:
        needs: dict[str, Any] = {}
        if devices.kind != "cpu":
            needs["google.com/tpu" if devices.kind == "tpu" else "nvidia.com/gpu"] = devices.per_host
        if job.resources.cores is not None:
            needs["cpu"] = job.resources.cores
        if job.resources.memory_gb is not None:
            needs["memory"] = f"{round(job.resources.memory_gb * 1000)}M"
        container: dict[str, Any] = {
            "name": CONTAINER,
            "image": self.options["image"],
            "command": list(job.command),
            "env": self._variables(job, devices, hosts),
            "resources": {"limits": needs, "requests": dict(needs)},
            "volumeMounts": [{"name": "root", "mountPath": self.options["root"]}],
        }
        if hosts > 1 or job.resources.slices > 1:  # libtpu's ports, JAX's own
            ports = (8471, 8080) if devices.kind == "tpu" else (PORT,)
            container["ports"] = [{"containerPort": port} for port in ports]
        return container

    def _variables(self, job: Job, devices: Devices, hosts: int) -> list[dict[str, Any]]:
        """The job's own, and by what its processes find one another."""
        own = {"ISOFLOP_CACHE": f"{self.options['root']}/cache", **job.environment}
        found: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in own.items()]
        first = f"{job.name}-{CHILD}-0-0.{job.name}"  # JobSet's name of the first pod
        if job.resources.slices > 1:  # within a slice GKE itself names the hosts (TPU_WORKER_HOSTNAMES, TPU_WORKER_ID)
            found += [
                {"name": "MEGASCALE_NUM_SLICES", "value": str(job.resources.slices)},
                _field("MEGASCALE_SLICE_ID", "jobset.sigs.k8s.io/job-index"),
                {"name": "MEGASCALE_COORDINATOR_ADDRESS", "value": first},
            ]
        elif devices.kind != "tpu" and hosts > 1:
            found += [
                {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{first}:{PORT}"},
                {"name": "JAX_NUM_PROCESSES", "value": str(hosts)},
                _field("JAX_PROCESS_ID", "batch.kubernetes.io/job-completion-index"),
            ]
        return found

    def _volume(self) -> dict[str, Any]:
        kind, _, name = self.options["volume"].partition(":")
        if kind == "claim":
            return {"name": "root", "persistentVolumeClaim": {"claimName": name}}
        attributes = {"bucketName": name, "mountOptions": "implicit-dirs"}
        return {"name": "root", "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}

    # --- commands -----------------------------------------------------------------------------------------------------

    def _submit(self, jobs: Sequence[Job]) -> list[Handle]:
        handles: list[Handle] = []
        for job in jobs:
            text = self.describe([job])
            answer = self._kubectl(["create", "--filename=-"], text)
            if answer.returncode != 0:
                before = f" (submitted before: {', '.join(handle.id for handle in handles)})" if handles else ""
                raise UserError(f"the cluster refuses {job.name}: {_said(answer)}{before}")
            (job.workdir / JOBS / f"gke-{job.name}.yaml").write_text(text, encoding="utf-8")
            handles.append(Handle(self.name, job.name, job.name, job.workdir))
        return handles

    def status(self, handle: Handle) -> Status:
        """By the JobSet's conditions."""
        answer = self._kubectl(["get", f"jobsets.jobset.x-k8s.io/{handle.id}", "--output=json"])
        if answer.returncode != 0:
            return Status("unknown", _said(answer))
        try:
            found = json.loads(answer.stdout)
        except ValueError:
            return Status("unknown", f"kubectl answers no JSON: {answer.stdout.strip()[:80]!r}")
        return status_of(found.get("status", {}))  # a JobSet that its controller has not seen yet has none

    def cancel(self, handle: Handle) -> None:
        """Deletes the JobSet with its pods, which get SIGTERM."""
        answer = self._kubectl(["delete", f"jobsets.jobset.x-k8s.io/{handle.id}", "--ignore-not-found", "--wait=false"])
        if answer.returncode != 0:
            raise UserError(f"the cluster does not delete {handle.id}: {_said(answer)}")

    def logs(self, handle: Handle) -> Iterator[str]:
        """Of process 0."""
        first = {
            "jobset.sigs.k8s.io/jobset-name": handle.id,
            "jobset.sigs.k8s.io/job-index": 0,
            "batch.kubernetes.io/job-completion-index": 0,
        }
        pod = ["--selector=" + ",".join(f"{label}={value}" for label, value in first.items())]
        answer = self._kubectl(["logs", *pod, "--tail=-1"])
        yield from (answer.stdout if answer.returncode == 0 else _said(answer)).splitlines()

    def _kubectl(self, arguments: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
        if shutil.which("kubectl") is None:
            raise UserError("--on=gke: there is no kubectl on the PATH: install it, or add --dry-run to see the YAML")
        where = [f"--namespace={self.options['namespace']}"]
        if self.options["context"] is not None:
            where.append(f"--context={self.options['context']}")
        command = ["kubectl", *where, "--request-timeout=60s", *arguments]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def status_of(status: dict[str, Any]) -> Status:
    """The state of a JobSet's `status`; the API leaves out whatever is empty or zero."""
    true = {found["type"]: found for found in status.get("conditions", []) if found.get("status") == "True"}
    for condition, state in (("Completed", "done"), ("Failed", "failed")):
        if condition in true:
            return Status(state, true[condition].get("message", condition))
    if "Suspended" in true:
        return Status("queued", true["Suspended"].get("message", "suspended"))
    restarts = status.get("restarts", 0)
    said = f"{restarts} restarts" if restarts else ""
    children = status.get("replicatedJobsStatus", [])
    if children and all(child.get("ready", 0) + child.get("succeeded", 0) > 0 for child in children):
        return Status("running", said)
    return Status("preempted" if restarts else "queued", said)


def _field(name: str, annotation: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}}


def _said(answer: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in answer.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit status {answer.returncode}"
