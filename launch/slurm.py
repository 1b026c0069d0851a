"""SLURM, by `sbatch` scripts that can be read, kept and run again by hand.

A library between (submitit) was left out: it queues pickled Python calls, polls their results through files of its own,
and resumes by pickling again, while what is queued here is a command that resumes by itself. What remains is one script
and the four commands `sbatch`, `squeue`, `scancel`, `scontrol`; `sacct` is asked only where the cluster keeps accounts.

Jobs with equal resources are one array. `srun` starts a process for each task, and JAX finds the others by SLURM's
variables. Before the time limit SLURM sends SIGTERM to the processes, which save and leave with status 143; the script
then queues itself again. A job that SLURM takes away (preemption, a lost node) is queued again by SLURM.
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.devices import parse
from launch.launcher import Handle, Job, Launcher, Option, Resources, Status
from launch.records import JOBS
from research.errors import UserError

# What a run leaves with that saved because it was asked to stop: 128 + SIGTERM.
INTERRUPTED = 143

_STATES = {
    "queued": {"PENDING", "CONFIGURING"},
    "running": {"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING"},
    "preempted": {"PREEMPTED", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "SUSPENDED", "STOPPED"},
    "done": {"COMPLETED"},
    "cancelled": {"CANCELLED", "REVOKED"},
    "failed": {"FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"},
}


class Slurm(Launcher):
    """Jobs of a SLURM cluster, from one of its login nodes."""

    name = "slurm"
    OPTIONS = (
        Option("partition", "partition of the cluster"),
        Option("account", "whom the hours are charged to"),
        Option("qos", "quality of service"),
        Option("constraint", "features that the nodes have"),
        Option("at_once", "jobs of an array that run at the same time", kind=int),
        Option("save_before", "seconds before the time limit at which the run saves and leaves", kind=int, default=300),
        Option("max_requeues", "times that a job is queued again before it counts as failed", kind=int, default=100),
        Option("setup", "line of shell before the command (module load ...); several may be given", tuple, ()),
        Option("sbatch", "further argument of sbatch (--exclude=n7); several may be given", tuple, ()),
    )

    def check_job(self, job: Job) -> None:
        """CPUs or GPUs, and a time limit that leaves room to save."""
        asked, hours = job.resources, job.resources.hours
        gpus = _gpus(asked)
        if asked.slices != 1:
            raise UserError(f"--slices={asked.slices}: SLURM has nodes, say --nodes")
        if gpus and asked.processes_per_node not in (1, gpus):
            raise UserError(
                f"--processes-per-node={asked.processes_per_node} with --devices={asked.devices}: start 1 process on a "
                f"node for all its GPUs, or {gpus} with one each"
            )
        if hours is not None and hours * 3600 < 2 * self.options["save_before"]:
            raise UserError(
                f"--hours={hours:g} is over before the run has come far: it saves {self.options['save_before']} s "
                "before the limit; ask for more, or lower --save-before"
            )

    def describe(self, jobs: Sequence[Job]) -> str:
        """The scripts."""
        return "\n".join(self.script(group) for group in _groups(jobs))

    # --- the script ---------------------------------------------------------------------------------------------------

    def script(self, jobs: Sequence[Job]) -> str:
        """The batch script of jobs with equal resources; of several, an array with an element each."""
        log = jobs[0].workdir / JOBS / ("slurm-%A_%a.log" if len(jobs) > 1 else "slurm-%j.log")
        lines = ["#!/bin/bash", *(f"#SBATCH {argument}" for argument in self._arguments(jobs, log)), ""]
        lines += [f"id={'${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}' if len(jobs) > 1 else '$SLURM_JOB_ID'}"]
        lines += [f"ended={shlex.quote(str(jobs[0].workdir / JOBS))}/slurm-$id.exit", 'rm -f "$ended"', ""]
        lines += list(self.options["setup"])
        if len(jobs) == 1:
            lines += _call(jobs[0])
        else:
            lines += ["case $SLURM_ARRAY_TASK_ID in"]
            for number, job in enumerate(jobs):
                lines += [f"{number})  # {job.name}", *(f"  {line}" for line in _call(job)), "  ;;"]
            lines += ["esac"]
        lines += ["", _processes(jobs[0].resources), "status=$?", ""]
        again = f'[ $status = {INTERRUPTED} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {self.options["max_requeues"]} ]'
        lines += [
            f"# {INTERRUPTED}: asked to stop, it saved. It goes on in a new turn, unless the job was cancelled.",
            f"if {again} && scontrol show job $id | grep -qE 'JobState=(RUNNING|SIGNALING)' \\",
            "  && scontrol requeue $id; then",
            "  sleep 60  # SLURM ends this turn",
            "fi",
            'echo $status > "$ended"',
            "exit $status",
        ]
        return "\n".join(lines) + "\n"

    def _arguments(self, jobs: Sequence[Job], log: Path) -> list[str]:
        asked, options, gpus = jobs[0].resources, self.options, _gpus(jobs[0].resources)
        found: list[tuple[str, Any]] = [
            ("job-name", jobs[0].name if len(jobs) == 1 else jobs[0].workdir.name),
            ("nodes", asked.nodes),
            ("ntasks-per-node", asked.processes_per_node),
            ("cpus-per-task", asked.cores),
            ("gpus-per-node", asked.devices.removeprefix("gpu:") if gpus else None),
            ("mem", None if asked.memory_gb is None else f"{round(asked.memory_gb * 1e9 / 2**20)}M"),
            ("time", None if asked.hours is None else max(1, round(asked.hours * 60))),
            *((name, options[name]) for name in ("partition", "account", "qos", "constraint")),
            ("signal", None if asked.hours is None else f"TERM@{options['save_before']}"),
            ("output", log),
            ("chdir", os.getcwd()),
        ]
        if len(jobs) > 1:
            most = "" if options["at_once"] is None else f"%{options['at_once']}"
            found.append(("array", f"0-{len(jobs) - 1}{most}"))
        # A turn of a job writes after the one before it.
        fixed = ["--requeue", "--open-mode=append"]
        named = [f"--{name}={_quoted(str(value))}" for name, value in found if value is not None]
        return [*named, *fixed, *options["sbatch"]]

    # --- commands -----------------------------------------------------------------------------------------------------

    def _submit(self, jobs: Sequence[Job]) -> list[Handle]:
        if shutil.which("sbatch") is None:
            raise UserError(
                "--on=slurm: there is no sbatch on the PATH: log in to a node of the cluster, or launch with --on=local"
            )
        found: dict[str, Handle] = {}
        for group in _groups(jobs):
            text, directory = self.script(group), group[0].workdir / JOBS
            answer = _command(["sbatch", "--parsable"], text)
            if answer.returncode != 0:
                said = [line.partition("error: ")[2] or line for line in answer.stderr.splitlines() if line.strip()]
                before = f" (submitted before: {', '.join(handle.id for handle in found.values())})" if found else ""
                raise UserError(f"SLURM refuses {group[0].name}: {'; '.join(said) or 'without a reason'}{before}")
            number = answer.stdout.strip().split(";")[0]
            (directory / f"slurm-{number}.sh").write_text(text)
            for index, job in enumerate(group):
                id_ = f"{number}_{index}" if len(group) > 1 else number
                details = {"log": str(directory / f"slurm-{id_}.log"), "exit": str(directory / f"slurm-{id_}.exit")}
                found[job.name] = Handle(self.name, id_, job.name, job.workdir, details)
        return [found[job.name] for job in jobs]

    def status(self, handle: Handle) -> Status:
        """By `squeue`, by the accounts, or by what the script wrote when it ended."""
        return self.statuses([handle])[0]

    def statuses(self, handles: Sequence[Handle]) -> list[Status]:
        """One question to the queue for all of them."""
        known = _queue(handles)
        return [known.get(handle.id) or _past(handle) for handle in handles]

    def cancel(self, handle: Handle) -> None:
        """`scancel`: SIGTERM, upon which a run saves, and SIGKILL later."""
        answer = _command(["scancel", handle.id])
        if answer.returncode != 0 and "Invalid job id" not in answer.stderr:
            raise UserError(f"SLURM does not cancel {handle.id}: {'; '.join(answer.stderr.split(chr(10))).strip('; ')}")

    def logs(self, handle: Handle) -> Iterator[str]:
        """What the processes wrote, all turns one after the other."""
        path = Path(handle.details["log"])
        if path.exists():
            with path.open(encoding="utf-8", errors="replace") as file:
                yield from (line.rstrip("\n") for line in file)


def _quoted(value: str) -> str:
    """As sbatch reads it in its lines of a script, which no shell does."""
    return f'"{value}"' if " " in value else value


def _groups(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs that can be one array: equal resources and one directory; in their order."""
    found: dict[tuple[Resources, Path], list[Job]] = {}
    for job in jobs:
        found.setdefault((job.resources, job.workdir), []).append(job)
    return list(found.values())


def _gpus(asked: Resources) -> int:
    """GPUs of a node.

    Raises:
      UserError: devices that SLURM does not know.
    """
    devices = parse(asked.devices)
    if devices.kind == "tpu":
        raise UserError(f"--devices={asked.devices}: SLURM has cpu, gpu:8 or gpu:h100:8 (of a node)")
    return devices.per_host


def _call(job: Job) -> list[str]:
    """The job's variables and its command, for bash."""
    variables = [f"export {name}={shlex.quote(value)}" for name, value in job.environment.items()]
    return [*variables, f"command=({shlex.join(job.command)})"]


def _processes(asked: Resources) -> str:
    """`srun` of the command. It does not take over `--cpus-per-task` since SLURM 22.05."""
    gpus = _gpus(asked)
    cores = "" if asked.cores is None else f" --cpus-per-task={asked.cores}"
    # JAX gives each process of SLURM the one device of its own number, unless it is told.
    alone = f"export JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(gpus)))}\n" if gpus > 1 and asked.nodes > 1 else ""
    return f'{alone if asked.processes_per_node == 1 else ""}srun{cores} "${{command[@]}}"'


def _command(arguments: Sequence[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, input=text, capture_output=True, text=True, check=False)


def _queue(handles: Sequence[Handle]) -> Mapping[str, Status]:
    """What SLURM itself knows; it forgets a job some minutes after its end."""
    if not handles or shutil.which("squeue") is None:
        return {}
    numbers = ",".join(sorted({handle.id.partition("_")[0] for handle in handles}))
    wanted = "--Format=JobArrayID:|,State:|,RestartCnt:|,Reason:|"
    answer = _command(["squeue", "--noheader", "--array", "--states=all", f"--jobs={numbers}", wanted])
    found = {}
    for line in answer.stdout.splitlines():
        id_, state, restarts, reason = (part.strip() for part in line.split("|")[:4])
        found[id_] = _status(state, reason, int(restarts or 0))
    return found


def _status(state: str, reason: str = "", restarts: int = 0) -> Status:
    """SLURM's word in ours; a job that waits for another turn was taken away."""
    word = state.split()[0].rstrip("+")
    own = next((own for own, words in _STATES.items() if word in words), "unknown")
    if own == "queued" and restarts:
        own = "preempted"
    said = f"{word} ({reason})" if reason not in ("", "None") else word
    return Status(own, said)


def _past(handle: Handle) -> Status:
    """Of a job that the queue has forgotten."""
    if shutil.which("sacct") is not None:
        answer = _command(
            ["sacct", "--noheader", "--parsable2", "--allocations", "--format=State", f"--jobs={handle.id}"]
        )
        if answer.returncode == 0 and answer.stdout.strip():
            return _status(answer.stdout.splitlines()[-1])
    path = Path(handle.details["exit"])
    if not path.exists():
        return Status("unknown", "neither the queue nor the accounts know it")
    status = path.read_text().strip()
    return Status("done" if status == "0" else "failed", f"exit status {status}")
