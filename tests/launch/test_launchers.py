"""What holds for every launcher, by being listed."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import launch
from launch import LAUNCHERS, Handle, records
from launch.launcher import STATES
from research.errors import UserError
from tests.launch.conftest import OPTIONS, Place, job, make
from tests.small import assert_one_sentence

AWAY = [name for name in LAUNCHERS if name != "local"]
AWKWARD = 'it\'s a "value" with $HOME, `ls`, 50 % and\ttabs: {yes}'
TELL = "import json, os, sys; print('told', json.dumps([sys.argv[1:], os.environ['TOLD']]))"

everywhere = pytest.mark.parametrize("name", list(LAUNCHERS))
# Local processes need no place; their whole life is tested as it is.
elsewhere = pytest.mark.parametrize("name", AWAY)


def executed(name: str, text: str, workdir: Path) -> str:
    """What a described job prints when it is run as the place would run it, on this machine."""
    environment = dict(os.environ)
    if name in ("gke", "skypilot"):
        described = yaml.safe_load(text)
        if name == "gke":
            spec = described["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
            container = spec["containers"][0]
            environment |= {one["name"]: one["value"] for one in container["env"]}
            command = container["command"]
        else:
            environment |= described["envs"]
            command = ["bash", "-c", described["run"]]
    elif name == "slurm":
        (workdir / "srun").write_text('#!/bin/bash\nexec "$@"\n')
        (workdir / "srun").chmod(0o755)
        environment |= {"PATH": f"{workdir}:{environment['PATH']}", "SLURM_JOB_ID": "1"}
        command = ["bash", "-c", text]
    else:
        command = ["bash", "-c", text.partition("startup.sh\n")[2]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + "".join(path.read_text() for path in workdir.rglob("*.log"))


@everywhere
def test_it_declares_what_it_takes_and_refuses_the_rest(name: str) -> None:
    made = launch.launcher_class(name)
    assert made.name == name and made.__doc__
    for option in made.OPTIONS:
        assert re.fullmatch(r"[a-z_]+", option.name) and option.meaning
        assert option.default is None or isinstance(option.default, option.kind)
        if option.required:
            with pytest.raises(UserError) as refused:
                make(name, **{option.name: None})
            assert_one_sentence(str(refused.value), option.flag, name)
    with pytest.raises(UserError) as refused:
        make(name, nonsense=1)
    assert_one_sentence(str(refused.value), "--nonsense", name)


@everywhere
@pytest.mark.parametrize("wrong", ["", "Upper", "under_score", "9first", "-first", "first-", "a" * 41, "a b", "é"])
def test_names_that_some_place_cannot_take_are_refused_by_all(name: str, wrong: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        make(name).submit([job(name, tmp_path, name=wrong)])
    assert_one_sentence(str(refused.value), repr(wrong))
    assert not (tmp_path / "jobs").exists()


@everywhere
def test_two_jobs_of_one_name_and_numbers_that_cannot_be_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two jobs are called first"):
        make(name).submit([job(name, tmp_path), job(name, tmp_path)])
    for field in ("nodes", "cores", "memory_gb", "hours", "slices", "processes_per_node"):
        with pytest.raises(UserError) as refused:
            make(name).submit([job(name, tmp_path, resources={field: 0})])
        assert_one_sentence(str(refused.value), f"--{field.replace('_', '-')}=0")
    for environment in ({"A B": "1"}, {"": "1"}, {"A": "two\nlines"}):
        with pytest.raises(UserError, match="environment variable"):
            make(name).submit([job(name, tmp_path, environment=environment)])
    with pytest.raises(UserError, match="has no command"):
        make(name).submit([launch.Job("first", (), tmp_path)])
    assert not (tmp_path / "jobs").exists()


@everywhere
def test_describing_starts_nothing_and_shows_the_command(name: str, tmp_path: Path, place: Place) -> None:
    text = make(name).describe([job(name, tmp_path, "isoflop", "train", "--config=a.py:tiny")])
    assert "isoflop" in text and "--config=a.py:tiny" in text
    assert not (tmp_path / "jobs").exists() and not (place.home / "calls.jsonl").exists()


@everywhere
def test_arguments_and_variables_arrive_as_they_were(name: str, tmp_path: Path) -> None:
    command = (sys.executable, "-c", TELL, AWKWARD, "", "--x=1e3")
    wanted = f"told {json.dumps([[AWKWARD, '', '--x=1e3'], AWKWARD])}"
    there = {"root": str(tmp_path)} if "root" in OPTIONS[name] else {}
    asked = job(name, tmp_path, *command, environment={"TOLD": AWKWARD})
    if name == "local":
        local = make(name)
        (handle,) = local.submit([asked])
        until = time.monotonic() + 120
        while not local.status(handle).ended and time.monotonic() < until:
            time.sleep(0.05)
        assert local.status(handle).state == "done"
        assert wanted in list(local.logs(handle))
        return
    (tmp_path / "jobs").mkdir()
    text = make(name, **there).describe([asked])
    assert wanted in executed(name, text, tmp_path).splitlines()


@elsewhere
def test_a_job_lives_and_can_be_asked_after_by_another_process(name: str, tmp_path: Path, place: Place) -> None:
    asked = job(name, tmp_path)
    handles = make(name).submit([asked])
    paths = records.write([asked], handles, {"commit": "c0ffee"})
    (handle,) = records.read(tmp_path)
    assert handle == handles[0] == Handle.from_record(json.loads(json.dumps(handles[0].to_record())))
    again = launch.of(handle)
    assert type(again) is launch.launcher_class(name) and again.options.keys() == make(name).options.keys()
    assert json.loads(paths[0].read_text())["environment"] == {"commit": "c0ffee"}
    for state in ("queued", "running", "preempted", "done", "failed"):
        place.becomes(state)
        found = again.status(handle)
        assert found.state == state and found.state in STATES, found
        assert found.ended == (state in ("done", "failed"))
    place.becomes("running")
    if name == "slurm":
        Path(handle.details["log"]).write_text("first line\nsecond line\n")
    assert list(again.logs(handle)) == ["first line", "second line"]
    again.cancel(handle)
    assert again.status(handle).state in ("cancelled", "unknown")


@pytest.mark.parametrize(("name", "program"), [("gke", "kubectl"), ("skypilot", "sky")])
def test_an_answer_that_is_no_json_is_no_state(
    name: str, program: str, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    (handle,) = make(name).submit([job(name, tmp_path)])
    (tmp_path / program).write_text("#!/bin/sh\necho 'a newer version is available'\n")
    (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = make(name).status(handle)
    assert found.state == "unknown" and not found.ended and "a newer version is available" in found.reason


def test_a_local_job_that_is_cancelled_or_fails_says_so(tmp_path: Path) -> None:
    local = make("local", parallel=2)
    asked = [job("local", tmp_path, "sleep", "600"), job("local", tmp_path, "false", name="second")]
    handles = local.submit(asked)
    local.cancel(handles[0])
    until = time.monotonic() + 120
    while not all(found.ended for found in local.statuses(handles)) and time.monotonic() < until:
        time.sleep(0.05)
    assert [found.state for found in local.statuses(handles)] == ["cancelled", "failed"]


@elsewhere
def test_a_place_that_refuses_is_quoted(
    name: str, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_REFUSES", "error: quota of nodes exceeded")
    with pytest.raises(UserError) as refused:
        make(name).submit([job(name, tmp_path)])
    assert_one_sentence(str(refused.value), "first", "quota of nodes exceeded")


@elsewhere
def test_a_machine_without_the_place_says_what_is_missing(name: str, tmp_path: Path, nowhere) -> None:
    nowhere()
    with pytest.raises(UserError) as refused:
        make(name).submit([job(name, tmp_path)])
    program = {"slurm": "sbatch", "gke": "kubectl", "tpu_vm": "gcloud", "skypilot": "sky"}[name]
    assert_one_sentence(str(refused.value), f"--on={name}", f"no {program} on the PATH")


@everywhere
def test_a_directory_is_found_there(name: str, tmp_path: Path) -> None:
    launcher = make(name)
    if launcher.SHARES_FILES:
        assert launcher.place(tmp_path) == tmp_path and launcher.program[0] == sys.executable
    else:
        root = Path(launcher.options["root"])
        assert launcher.place(tmp_path / "run") == root / "run" and launcher.program == ("isoflop",)
        assert launcher.place(root / "sweeps" / "run") == root / "sweeps" / "run"
