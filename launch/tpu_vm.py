"""Cloud TPU VMs by queued resources: one `gcloud` command a job, which waits in Google's queue for its slices.

Every host runs the same start-up script when it boots, and again after maintenance: it mounts and installs
(`--setup`), starts the command, in a container where there is an `--image`, and starts it again when it fails. So
nothing here has to stay awake, and nobody logs in. A spot slice that is taken away is not given back by the queue: the
job is then `preempted`, and the same launch again puts it into the queue anew, from its last checkpoint.

Source: "Manage queued resources" and "Cloud TPU Multislice" (cloud.google.com/tpu/docs).
"""

import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launch.devices import GENERATIONS, parse
from launch.launcher import ROOT, Handle, Job, Launcher, Option, Status
from launch.records import JOBS
from research.errors import UserError

_STATES = {
    "queued": {"ACCEPTED", "CREATING", "PROVISIONING", "WAITING_FOR_RESOURCES"},
    "running": {"ACTIVE"},
    "preempted": {"SUSPENDED", "SUSPENDING"},
    "failed": {"FAILED"},
    "cancelled": {"DELETING"},
}
_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes"


class TpuVm(Launcher):
    """Slices of TPU VMs of a project and zone."""

    name = "tpu_vm"
    SHARES_FILES = False
    OPTIONS = (
        ROOT,
        Option("zone", "zone of the TPUs", required=True),
        Option("project", "Google Cloud project (none: gcloud's own)"),
        Option("image", "container image that has Isoflop (on TPU VMs --setup may install it instead)"),
        Option("setup", "line of shell before the command, as root, on every host; several may be given", tuple, ()),
        Option("runtime", "software of the VMs (none: the one for JAX)"),
        Option("network", "VPC network"),
        Option("service_account", "service account of the VMs"),
        Option("reserved", "take reserved capacity", bool, False),
        Option("retries", "times that a failed command is started again", int, 3),
        Option("delete_after", "delete the machines when the command has ended (--root is not on them)", bool, False),
    )

    def check_job(self, job: Job) -> None:
        """A slice whose type has a name, and no wishes that a queued resource cannot grant."""
        asked, devices = job.resources, parse(job.resources.devices)
        if devices.kind != "tpu":
            raise UserError(f"--devices={asked.devices}: --on=tpu_vm has TPU slices, like v5p:4x4x4")
        if asked.nodes != 1 or asked.processes_per_node != 1:
            raise UserError(f"--nodes and --processes-per-node: the hosts of {asked.devices} follow from it, drop them")
        for name in ("hours", "cores", "memory_gb"):
            if getattr(asked, name) is not None:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag}={getattr(asked, name):g}: a TPU VM comes whole and without a limit, drop it")
        if asked.preemptible and self.options["reserved"]:
            raise UserError("--preemptible and --reserved: capacity is one or the other, drop one")
        if not Path(self.options["root"]).is_absolute():
            raise UserError(f"--root={self.options['root']} has to be an absolute path, like /mnt/runs")
        _ = devices.accelerator_type

    def describe(self, jobs: Sequence[Job]) -> str:
        """The commands, and the script that every host runs."""
        found = []
        for job in jobs:
            script = Path(f"{job.name}.startup.sh")
            found.append(f"{shlex.join(self.create(job, script))}\n\n# {script}\n{self.script(job)}")
        return "\n".join(found)

    # --- what is made -------------------------------------------------------------------------------------------------

    def create(self, job: Job, script: Path) -> list[str]:
        """The command that puts a job into the queue."""
        asked, options, devices = job.resources, self.options, parse(job.resources.devices)
        nodes = (
            [f"--node-count={asked.slices}", f"--node-prefix={job.name}"]
            if asked.slices > 1
            else [f"--node-id={job.name}"]
        )
        found: list[tuple[str, Any]] = [
            ("accelerator-type", devices.accelerator_type),
            ("runtime-version", options["runtime"] or GENERATIONS[devices.name].runtime),
            ("network", options["network"]),
            ("service-account", options["service_account"]),
            ("metadata-from-file", f"startup-script={script}"),
        ]
        flags = [f"--{name}={value}" for name, value in found if value is not None]
        flags += ["--spot"] if asked.preemptible else ["--reserved"] if options["reserved"] else []
        return [*self._gcloud("create", job.name), *nodes, *flags, "--async"]

    def script(self, job: Job) -> str:
        """What every host does at its start."""
        options, devices = self.options, parse(job.resources.devices)
        log = f"{options['root']}/jobs/{job.name}"
        variables = {"ISOFLOP_CACHE": f"{options['root']}/cache", **job.environment}
        lines = ["#!/bin/bash", "set -u", *options["setup"], f"mkdir -p {shlex.quote(options['root'] + '/jobs')}"]
        lines += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        names = list(variables)
        if devices.hosts > 1 or job.resources.slices > 1:
            lines += _coordinator()
            names.append("JAX_COORDINATOR_ADDRESS")
        command = list(job.command)
        if options["image"] is not None:
            mount = f"{options['root']}:{options['root']}"
            passed = [part for name in names for part in ("--env", name)]
            command = ["docker", "run", "--rm", "--privileged", "--network=host", "--volume", mount, *passed]
            command += [options["image"], *job.command]
        lines += [
            f"log={shlex.quote(log)}-$(hostname)",
            '[ -e "$log.exit" ] && exit  # this host was started again after the end',
            f"for turn in $(seq {options['retries'] + 1}); do",
            f'  {shlex.join(command)} >> "$log.log" 2>&1',
            "  status=$?",
            "  [ $status = 0 ] || [ $status = 2 ] && break  # done, or a mistake that another turn would repeat",
            "  sleep 30",
            "done",
            'echo $status > "$log.exit"',
        ]
        if options["delete_after"]:
            delete = shlex.join([*self._gcloud("delete", job.name), "--force", "--quiet", "--async"])
            lines.append(f'case $(hostname) in *-w-0|*-w0) {delete} >> "$log.log" 2>&1 ;; esac')
        return "\n".join(lines) + "\n"

    # --- commands -----------------------------------------------------------------------------------------------------

    def _submit(self, jobs: Sequence[Job]) -> list[Handle]:
        handles: list[Handle] = []
        for job in jobs:
            script = job.workdir / JOBS / f"{job.name}.startup.sh"
            script.write_text(self.script(job), encoding="utf-8")
            before = _run(self._describe(job.name))
            if before.returncode == 0 and before.stdout.strip() in _STATES["preempted"] | _STATES["failed"]:
                _run([*self._gcloud("delete", job.name), "--force", "--quiet"])
            answer = _run(self.create(job, script))
            if answer.returncode != 0:
                so_far = f" (submitted before: {', '.join(handle.id for handle in handles)})" if handles else ""
                raise UserError(f"Google Cloud refuses {job.name}: {_said(answer)}{so_far}")
            node = job.name if job.resources.slices == 1 else f"{job.name}-0"
            handles.append(Handle(self.name, job.name, job.name, job.workdir, {"node": node}))
        return handles

    def status(self, handle: Handle) -> Status:
        """By the queue; of machines that are there, by what the script wrote when it ended."""
        answer = _run(self._describe(handle.id))
        if answer.returncode != 0:
            return Status("unknown", _said(answer))
        word = answer.stdout.strip()
        state = next((state for state, words in _STATES.items() if word in words), "unknown")
        if state != "running":
            return Status(state, word)
        ended = self._on_first_host(handle, "exit")
        if ended.returncode != 0 or not ended.stdout.strip():
            return Status("running", word)
        status = ended.stdout.strip()
        return Status("done" if status == "0" else "failed", f"exit status {status}; the machines are still there")

    def cancel(self, handle: Handle) -> None:
        """Deletes the machines, or the place in the queue."""
        answer = _run([*self._gcloud("delete", handle.id), "--force", "--quiet", "--async"])
        if answer.returncode != 0 and "NOT_FOUND" not in answer.stderr:
            raise UserError(f"Google Cloud does not delete {handle.id}: {_said(answer)}")

    def logs(self, handle: Handle) -> Iterator[str]:
        """Of the first host of the first slice."""
        answer = self._on_first_host(handle, "log")
        yield from (answer.stdout if answer.returncode == 0 else _said(answer)).splitlines()

    def _gcloud(self, verb: str, name: str) -> list[str]:
        return ["gcloud", "compute", "tpus", "queued-resources", verb, name, *self._where()]

    def _describe(self, name: str) -> list[str]:
        return [*self._gcloud("describe", name), "--format=value(state.state)"]

    def _where(self) -> list[str]:
        project = self.options["project"]
        return [f"--zone={self.options['zone']}", *([] if project is None else [f"--project={project}"])]

    def _on_first_host(self, handle: Handle, ending: str) -> subprocess.CompletedProcess[str]:
        log = shlex.quote(f"{self.options['root']}/jobs/{handle.name}")
        read = f"cat {log}-$(hostname).{ending}"
        login = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", handle.details["node"], *self._where()]
        return _run([*login, "--worker=0", f"--command={read}", "--quiet"])


def _coordinator() -> list[str]:
    """Where process 0 is, by what every host is told: host 0 of the first slice, or of the only one."""
    return [
        f"told() {{ curl -sf -H Metadata-Flavor:Google {_METADATA}/$1; }}",
        "host=$(told tpu-env | sed -n \"s/^MEGASCALE_COORDINATOR_ADDRESS: '\\([^':]*\\).*/\\1/p\")",
        'if [ -z "$host" ]; then host=$(told worker-network-endpoints | cut -d, -f1); host=${host##*:}; fi',
        "export JAX_COORDINATOR_ADDRESS=$host:8476",
    ]


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    if shutil.which("gcloud") is None:
        raise UserError("--on=tpu_vm: there is no gcloud on the PATH: install it, or add --dry-run to see the commands")
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def _said(answer: subprocess.CompletedProcess[str]) -> str:
    """What gcloud complains of, its advice left out."""
    lines = [line.strip() for line in answer.stderr.splitlines() if line.strip()]
    start = next((number for number, line in enumerate(lines) if line.startswith("ERROR")), 0)
    said = " ".join(lines[start : start + 2]).removeprefix("ERROR: ")
    return said[:250] or f"exit status {answer.returncode}"
