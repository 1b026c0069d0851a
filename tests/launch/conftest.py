"""Launchers with what each must be told, and programs that stand in for the places."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import launch
from launch import Job, Launcher, Resources

# What a user has to say besides `--on`, and devices that the place has.
OPTIONS = {
    "local": {},
    "slurm": {},
    "gke": {"image": "registry/isoflop:1", "root": "/data", "volume": "claim:runs"},
    "tpu_vm": {"root": "/mnt/runs", "zone": "us-east5-a"},
    "skypilot": {"image": "registry/isoflop:1", "root": "/data", "bucket": "gs://runs"},
}
DEVICES = {"tpu_vm": "v5p:2x2x1"}
PROGRAMS = ("sbatch", "squeue", "scancel", "kubectl", "gcloud", "sky")


def make(name: str, /, **more: object) -> Launcher:
    return launch.make(name, {**OPTIONS[name], **more})


def job(launcher: str, workdir: Path, /, *command: str, **changes: object) -> Job:
    """A job that the launcher of this name takes."""
    resources = {"devices": DEVICES.get(launcher, "cpu")} | dict(changes.pop("resources", {}))
    fields = {"name": "first", "environment": {}} | changes
    return Job(command=command or ("true",), workdir=workdir, resources=Resources(**resources), **fields)


class Place:
    """What stands in for a place: its state, and what it was told."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def becomes(self, state: str) -> None:
        (self.home / "state").write_text(state)

    @property
    def submitted(self) -> str:
        return (self.home / "submitted").read_text()

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.home / "calls.jsonl").read_text().splitlines()]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Stand-ins alone are on the PATH, beside the system's own programs."""
    home = tmp_path / "place"
    home.mkdir()
    source = Path(__file__).with_name("stand_in.py").read_text()
    for name in PROGRAMS:
        (home / name).write_text(f"#!{sys.executable} -S\n{source}")
        (home / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}:/bin")
    monkeypatch.setenv("STAND_IN", str(home))
    return Place(home)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A PATH without any of the places' programs."""

    def leave() -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert not any(shutil.which(name) for name in PROGRAMS)

    return leave
