"""Start a run where it is to run: processes here, SLURM, Kubernetes, TPU VMs, SkyPilot; ask after it, end it.

The settings are checked here, before anything is queued, and the job gets them as they are now: what is edited later
changes nothing. A job that was taken away is started again and goes on from its last checkpoint.

examples:
  isoflop launch --on=slurm --config=configs/causal.py:125m --workdir=runs/pod --nodes=2 --devices=gpu:8 --hours=24
  isoflop launch --on=gke --config=configs/causal.py:1b --workdir=runs/1b --devices=v5p:4x4x4 --slices=2 \\
    --image=europe-docker.pkg.dev/me/isoflop:1 --root=/data --volume=bucket:my-runs --dry-run
  isoflop launch --status=runs/pod
  isoflop launch --logs=runs/pod
  isoflop launch --cancel=runs/pod
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import launch
from launch import Handle, Job, Launcher, Option, Resources, records
from research import config
from research.cli.arguments import Result, absolute, add_config, console, keys_table, settings
from research.errors import UserError
from research.settings import Settings
from research.train import provenance
from research.train.metrics import write_json

RESOURCES: dict[str, tuple[type, str]] = {
    "nodes": (int, "machines (TPU slices know theirs)"),
    "processes_per_node": (int, "processes of the run on each machine (SLURM with GPUs: 1 or one a GPU)"),
    "cores": (int, "CPU cores of a process"),
    "devices": (str, "cpu, gpu:8 or gpu:h100:8 of a node, or a TPU slice: v5p:4x4x4"),
    "memory_gb": (float, "memory of a node [GB]"),
    "hours": (float, "time limit; before it the run saves, and it goes on in a new job where the place can"),
    "slices": (int, "TPU slices that train together"),
    "preemptible": (bool, "take cheaper machines that may be taken away"),
}


def epilog() -> str | None:
    """What `--help` ends with."""
    return keys_table()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_config(parser, required=False)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--workdir", type=absolute, metavar="DIR", help="run directory; its jobs/ keeps the job's record"
    )
    which.add_argument("--status", type=absolute, metavar="DIR", help="where the jobs of a run or sweep stand")
    which.add_argument("--cancel", type=absolute, metavar="DIR", help="end the jobs of a run or sweep")
    which.add_argument(
        "--logs", type=absolute, metavar="DIR", help="print what the jobs of a run or sweep have written"
    )
    parser.add_argument("--name", help="of the job (default: from the run directory)")
    add_launcher(parser)


def add_launcher(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """`--on`, `--dry-run`, `--env`, the resources of a job, and the options that each launcher declares."""
    parser.add_argument("--on", metavar="PLACE", default=default, help=f"where: {', '.join(launch.LAUNCHERS)}")
    parser.add_argument("--dry-run", action="store_true", help="show what would be submitted, and stop")
    parser.add_argument("--env", action="append", metavar="NAME=VALUE", default=[], help="variable of the jobs")
    asked = parser.add_argument_group("resources of a job")
    for name, (kind, meaning) in RESOURCES.items():
        asked.add_argument(f"--{name.replace('_', '-')}", default=None, help=meaning, **_reading(kind, name))
    declared: dict[str, tuple[Option, list[str]]] = {}
    for place in launch.LAUNCHERS:
        for option in launch.launcher_class(place).OPTIONS:
            declared.setdefault(option.name, (option, []))[1].append(place)
    own = parser.add_argument_group("options of one place or several")
    for name, (option, places) in declared.items():
        unless = "" if option.default in (None, "", False, ()) else f" (default {option.default})"
        help_ = f"[{', '.join(places)}] {option.meaning}{unless}"
        own.add_argument(option.flag, default=None, dest=f"place_{name}", help=help_, **_reading(option.kind, name))


def _reading(kind: type, name: str) -> dict[str, Any]:
    """How argparse reads a value of a kind, and what it calls it."""
    if kind is bool:
        return {"action": "store_true"}
    shown = {"metavar": name.rpartition("_")[2].upper()}
    return shown | ({"action": "append"} if kind is tuple else {"type": kind})


def chosen_launcher(options: argparse.Namespace) -> Launcher:
    """The launcher of `--on` with its options.

    Raises:
      UserError: no such place, an option of another place, or one that is missing.
    """
    if options.on is None:
        raise UserError(f"--on is missing: say where, {', '.join(launch.LAUNCHERS)}")
    given = {
        name.removeprefix("place_"): value
        for name, value in vars(options).items()
        if name.startswith("place_") and value is not None
    }
    typed = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return launch.make(options.on, typed)


def asked_resources(options: argparse.Namespace) -> Resources:
    """The resources of the arguments; what is not given keeps the default of `Resources`."""
    return Resources(**{name: value for name in RESOURCES if (value := getattr(options, name)) is not None})


def asked_environment(options: argparse.Namespace) -> dict[str, str]:
    """The variables of `--env`."""
    found = {}
    for text in options.env:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--env={text}: write NAME=VALUE")
        found[name] = value
    return found


def submitted(launcher: Launcher, jobs: Sequence[Job]) -> list[Handle]:
    """Submits jobs and keeps a record of each in its `workdir/jobs`, with the environment it was made in."""
    handles = launcher.submit(jobs)
    records.write(jobs, handles, records.environment(provenance.commit()))
    return handles


def run(options: argparse.Namespace) -> Result:
    """Submits a run, or asks after those of a directory."""
    for verb in ("status", "cancel", "logs"):
        if (directory := getattr(options, verb)) is not None:
            return ask(options, verb, directory)
    launcher = chosen_launcher(options)
    if options.config is None:
        raise UserError("--config is missing: say what is to be trained, like --config=configs/causal.py:tiny")
    chosen = settings(options.config, options.overrides)
    job = training_job(launcher, options, chosen)
    shown = console(options)
    launcher.check([job])
    text = launcher.describe([job])
    shown.print(text.rstrip(), markup=False, soft_wrap=True)
    if options.dry_run:
        return 0, {"launcher": launcher.name, "name": job.name, "submits": text, "handle": None}
    if launcher.SHARES_FILES:
        (job.workdir / records.JOBS).mkdir(parents=True, exist_ok=True)
        write_json(pinned(job.workdir, chosen), config.to_record(chosen))
    (handle,) = submitted(launcher, [job])
    shown.print(f"\nsubmitted {job.name} as {handle.id} of {launcher.name}", markup=False)
    shown.print(f"isoflop launch --status={job.workdir} says where it stands", markup=False)
    return 0, {"launcher": launcher.name, "name": job.name, "submits": text, "handle": handle.to_record()}


def training_job(launcher: Launcher, options: argparse.Namespace, chosen: Settings) -> Job:
    """`isoflop train` of these settings, as they are now."""
    workdir, there = options.workdir, launcher.place(options.workdir)
    if launcher.SHARES_FILES:
        recipe = [f"--config={pinned(workdir, chosen)}"]
    else:  # no file of this machine is there: every key that differs from its default is said
        keys = {name: chosen[name] for name, key in config.KEYS.items() if chosen[name] != key.default}
        recipe = ["--config=configs/base.py", *(f"--config.{name}={written(value)}" for name, value in keys.items())]
    return Job(
        name=options.name or job_name(workdir),
        command=(*launcher.program, "train", *recipe, f"--workdir={there}"),
        workdir=workdir,
        environment=asked_environment(options),
        resources=asked_resources(options),
    )


def pinned(workdir: Path, chosen: Settings) -> Path:
    """Where the settings of a job wait for it, by what they are: a second submission changes none that is queued."""
    return workdir / records.JOBS / f"{config.scientific_hash(chosen)}-{config.execution_hash(chosen)}.config.json"


def written(value: Any) -> str:
    """A value of a key as `--config.KEY=` takes it."""
    return {None: "none", True: "true", False: "false"}.get(
        value, repr(value) if isinstance(value, float) else str(value)
    )


def job_name(workdir: Path) -> str:
    """A name that queues take, from a directory's."""
    name = re.sub(r"[^a-z0-9]+", "-", workdir.name.lower()).strip("-")[:30].rstrip("-")
    return name if name[:1].isalpha() else f"run-{name}".rstrip("-")


def ask(options: argparse.Namespace, verb: str, directory: Path) -> Result:
    """Status, end or output of the jobs of a directory."""
    if options.config is not None or options.overrides:
        raise UserError(f"--{verb}={directory} asks after jobs: --config belongs to --workdir, which starts one")
    handles = [handle for handle in records.read(directory) if options.on in (None, handle.launcher)]
    if not handles:
        raise UserError(
            f"--{verb}={directory}: no job of it was launched from here" + (f" on {options.on}" if options.on else "")
        )
    shown, found = console(options), []
    for handle in handles:
        launcher = launch.of(handle)
        if verb == "logs":
            for line in launcher.logs(handle):
                print(line, file=sys.stderr if options.json else sys.stdout)
            continue
        if verb == "cancel" and not launcher.status(handle).ended:
            launcher.cancel(handle)
        now = launcher.status(handle)
        found.append(
            {
                "name": handle.name,
                "launcher": handle.launcher,
                "id": handle.id,
                "state": now.state,
                "reason": now.reason,
            }
        )
        shown.print(f"{handle.name}  {handle.launcher} {handle.id}  {now.state}  {now.reason}".rstrip(), markup=False)
    return 0, {"jobs": found}
