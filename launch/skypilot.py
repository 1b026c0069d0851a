"""SkyPilot: one task file a job, for the cloud that has the devices, as a managed job that survives preemption.

The `sky` command is asked, never imported: it brings a server and some hundred packages, and lives in an environment of
its own as well as here (`pip install skypilot`).

Source: "Task YAML" and "Managed jobs" (docs.skypilot.co).
"""

import json
import shlex
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

PORT = 8476
_STATES = {
    "queued": {"PENDING", "SUBMITTED", "STARTING"},
    "running": {"RUNNING", "WINDING_DOWN"},
    "preempted": {"RECOVERING"},
    "done": {"SUCCEEDED"},
    "cancelled": {"CANCELLED", "CANCELLING"},
}


class SkyPilot(Launcher):
    """Managed jobs of SkyPilot."""

    name = "skypilot"
    SHARES_FILES = False
    OPTIONS = (
        IMAGE,
        ROOT,
        Option("bucket", "what is mounted at --root: gs://NAME, s3://NAME, ...", required=True),
        Option("infra", "cloud, region and zone (gcp/us-east5); none: where it is cheapest"),
        Option("setup", "line of shell before the command, once a machine; several may be given", tuple, ()),
        Option("max_restarts", "times that a job that failed is started again", int, 3),
    )

    def check_job(self, job: Job) -> None:
        """What a task can say."""
        asked, devices = job.resources, parse(job.resources.devices)
        if asked.slices != 1:
            raise UserError(f"--slices={asked.slices}: SkyPilot starts single slices; several take --on=gke or tpu_vm")
        if asked.processes_per_node != 1:
            raise UserError(
                f"--processes-per-node={asked.processes_per_node}: a task is one process a machine, drop it"
            )
        if asked.hours is not None:
            raise UserError(f"--hours={asked.hours:g}: SkyPilot has no time limit, drop it")
        if devices.kind == "tpu" and asked.nodes != 1:
            raise UserError(
                f"--nodes={asked.nodes}: {asked.devices} has {devices.hosts} hosts by its shape, drop --nodes"
            )
        if devices.kind == "gpu" and not devices.name:
            raise UserError(f"--devices={asked.devices}: SkyPilot asks which GPU, like gpu:h100:{devices.per_host}")
        if "://" not in self.options["bucket"]:
            raise UserError(f"--bucket={self.options['bucket']}: write it with its cloud, like gs://my-runs")
        if not Path(self.options["root"]).is_absolute():
            raise UserError(f"--root={self.options['root']} has to be an absolute path, like /data")

    def describe(self, jobs: Sequence[Job]) -> str:
        """The YAML."""
        return yaml_text.dump(self.task(job) for job in jobs)

    def task(self, job: Job) -> dict[str, Any]:
        """The task of a job."""
        asked, devices, root = job.resources, parse(job.resources.devices), self.options["root"]
        resources: dict[str, Any] = {"image_id": f"docker:{self.options['image']}"}
        if devices.kind != "cpu":
            resources["accelerators"] = _accelerators(devices)
        if devices.kind == "tpu":
            resources["accelerator_args"] = {"runtime_version": GENERATIONS[devices.name].runtime}
        if self.options["infra"] is not None:
            resources["infra"] = self.options["infra"]
        if asked.cores is not None:
            resources["cpus"] = f"{asked.cores}+"
        if asked.memory_gb is not None:
            resources["memory"] = f"{asked.memory_gb:g}+"
        resources["use_spot"] = asked.preemptible
        resources["job_recovery"] = {"max_restarts_on_errors": self.options["max_restarts"]}
        task: dict[str, Any] = {
            "name": job.name,
            "num_nodes": asked.nodes,
            "resources": resources,
            "file_mounts": {root: {"source": self.options["bucket"], "mode": "MOUNT"}},
            "envs": {"ISOFLOP_CACHE": f"{root}/cache", **job.environment},
        }
        if self.options["setup"]:
            task["setup"] = "\n".join(self.options["setup"]) + "\n"
        task["run"] = "\n".join([*_processes(devices, asked.nodes), shlex.join(job.command)]) + "\n"
        return task

    # --- commands -----------------------------------------------------------------------------------------------------

    def _submit(self, jobs: Sequence[Job]) -> list[Handle]:
        handles: list[Handle] = []
        for job in jobs:
            path = job.workdir / JOBS / f"skypilot-{job.name}.yaml"
            path.write_text(self.describe([job]), encoding="utf-8")
            answer = _sky("launch", "--name", job.name, "--yes", "--detach-run", "--async", str(path))
            if answer.returncode != 0:
                before = f" (submitted before: {', '.join(handle.id for handle in handles)})" if handles else ""
                raise UserError(f"SkyPilot refuses {job.name}: {_said(answer)}{before}")
            handles.append(Handle(self.name, job.name, job.name, job.workdir))
        return handles

    def status(self, handle: Handle) -> Status:
        """By SkyPilot's queue; of several jobs of a name, the newest."""
        answer = _sky("queue", "--all", "--output", "json")
        if answer.returncode != 0:
            return Status("unknown", _said(answer))
        try:
            found = json.loads(answer.stdout)
        except ValueError:
            return Status("unknown", f"sky answers no JSON: {answer.stdout.strip()[:80]!r}")
        return status_of(found, handle.id)

    def cancel(self, handle: Handle) -> None:
        """Ends the job and its machines."""
        answer = _sky("cancel", "--name", handle.id, "--yes")
        if answer.returncode != 0 and not self.status(handle).ended:
            raise UserError(f"SkyPilot does not cancel {handle.id}: {_said(answer)}")

    def logs(self, handle: Handle) -> Iterator[str]:
        """Of all machines, as far as they have come."""
        answer = _sky("logs", "--name", handle.id, "--no-follow")
        yield from (answer.stdout if answer.returncode == 0 else _said(answer)).splitlines()


def status_of(queue: Any, name: str) -> Status:
    """The state of the newest job of a name in the queue's JSON."""
    rows = queue.get("jobs", []) if isinstance(queue, dict) else queue
    mine = [row for row in rows if row.get("job_name", row.get("name")) == name]
    if not mine:
        return Status("unknown", "SkyPilot does not know it")
    row = max(mine, key=lambda row: int(row.get("job_id") or 0))
    word = str(row.get("status", "")).rpartition(".")[2]
    state = next((state for state, words in _STATES.items() if word in words), None)
    if state is None:
        state = "failed" if word.startswith("FAILED") else "unknown"
    return Status(state, row.get("failure_reason") or word)


def _accelerators(devices: Devices) -> str:
    if devices.kind == "tpu":
        return f"tpu-{devices.accelerator_type}:1"
    return f"{devices.name.upper()}:{devices.per_host}"


def _processes(devices: Devices, nodes: int) -> list[str]:
    """How the machines find one another, by the variables that SkyPilot sets. Slices know the rest by themselves."""
    several = nodes > 1 or (devices.kind == "tpu" and devices.hosts > 1)
    lines = [f'export JAX_COORDINATOR_ADDRESS="$(echo "$SKYPILOT_NODE_IPS" | head -n1):{PORT}"'] if several else []
    if several and devices.kind != "tpu":
        lines += ["export JAX_NUM_PROCESSES=$SKYPILOT_NUM_NODES", "export JAX_PROCESS_ID=$SKYPILOT_NODE_RANK"]
    return lines


def _sky(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("sky") is None:
        raise UserError(
            "--on=skypilot: there is no sky on the PATH: `pip install skypilot`, or add --dry-run to see the task"
        )
    command = ["sky", "jobs", *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def _said(answer: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (answer.stderr + answer.stdout).splitlines() if line.strip()]
    return lines[-1] if lines else f"exit status {answer.returncode}"
