"""What is said to Google Cloud's queue, and what every host does when it starts."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from launch import Job
from launch.tpu_vm import TpuVm
from research.errors import UserError
from tests.launch.conftest import Place, job, make
from tests.small import assert_one_sentence

ASKED = {"devices": "v5p:4x4x4"}


def created(asked: dict, **options: object) -> list[str]:
    launcher = make("tpu_vm", **options)
    assert isinstance(launcher, TpuVm)
    return launcher.create(job("tpu_vm", Path("/runs/first"), "run", resources=asked), Path("script.sh"))


def script(asked: dict, workdir: Path = Path("/runs/first"), *command: str, **options: object) -> str:
    launcher = make("tpu_vm", **options)
    assert isinstance(launcher, TpuVm)
    text = launcher.script(job("tpu_vm", workdir, *command, resources=asked))
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    return text


def test_a_slice_is_asked_for_by_type_zone_and_software() -> None:
    assert created(ASKED, project="lab") == shlex.split(
        "gcloud compute tpus queued-resources create first --zone=us-east5-a --project=lab --node-id=first "
        "--accelerator-type=v5p-128 --runtime-version=v2-alpha-tpuv5 "
        "--metadata-from-file=startup-script=script.sh --async"
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed here")
@pytest.mark.parametrize("asked", [ASKED, {"devices": "v5e:4x4", "slices": 2, "preemptible": True}], ids=["one", "two"])
def test_gcloud_itself_understands_the_command(asked: dict, tmp_path: Path) -> None:
    """It reads all arguments before it asks who we are; nobody is logged in here, so nothing is made."""
    wrong = [*created(asked, project="lab"), "--no-such-argument=1"]
    (tmp_path / "script.sh").write_text("#!/bin/bash\n")
    for command, word in ((created(asked, project="lab"), "active account"), (wrong, "--no-such-argument")):
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "CLOUDSDK_CONFIG": str(tmp_path), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0 and word in done.stderr, done.stderr


def test_slices_are_nodes_of_one_request() -> None:
    found = created(ASKED | {"slices": 4, "preemptible": True}, network="fast", service_account="me@lab")
    assert {"--node-count=4", "--node-prefix=first", "--spot", "--network=fast", "--service-account=me@lab"} < set(
        found
    )
    assert not any(word.startswith("--node-id") for word in found)
    assert "--reserved" in created(ASKED, reserved=True) and "--spot" not in created(ASKED)


def test_all_hosts_learn_where_process_0_is() -> None:
    assert "export JAX_COORDINATOR_ADDRESS=$host:8476" in script(ASKED)
    assert "JAX_COORDINATOR_ADDRESS" not in script({"devices": "v5p:2x2x1"})
    assert "JAX_COORDINATOR_ADDRESS" in script({"devices": "v5p:2x2x1", "slices": 2})


@pytest.mark.parametrize(
    ("environment", "endpoints", "address"),
    [
        ("", "unknown:unknown:10.0.0.7,unknown:unknown:10.0.0.8", "10.0.0.7:8476"),
        ("", "first-w-0,first-w-1", "first-w-0:8476"),
        ("TYPE: 'V5P'\\nMEGASCALE_COORDINATOR_ADDRESS: '10.0.1.1:8080'\\n", "a:b:10.0.0.7", "10.0.1.1:8476"),
        ("MEGASCALE_COORDINATOR_ADDRESS: '10.0.1.1'\\n", "a:b:10.0.0.7", "10.0.1.1:8476"),
    ],
)
def test_the_address_is_read_from_what_the_machine_is_told(environment: str, endpoints: str, address: str) -> None:
    lines = script(ASKED).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("told()"))
    answers = f'told() {{ case $1 in tpu-env) printf "{environment}";; *) echo {endpoints};; esac; }}'
    text = "\n".join([answers, *lines[start + 1 : start + 4], "echo $JAX_COORDINATOR_ADDRESS"])
    assert subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True).stdout.strip() == address


def test_the_command_runs_in_the_image_with_its_variables() -> None:
    text = script(ASKED, image="registry/isoflop:1")
    assert "docker run --rm --privileged --network=host --volume /mnt/runs:/mnt/runs" in text
    assert "--env ISOFLOP_CACHE --env JAX_COORDINATOR_ADDRESS registry/isoflop:1 true" in text


@pytest.mark.parametrize(("status", "turns"), [(0, 1), (2, 1), (1, 3)])
def test_a_failure_is_tried_again_and_a_mistake_is_not(status: int, turns: int, tmp_path: Path) -> None:
    command = ("bash", "-c", f"echo turn; exit {status}")
    text = script({"devices": "v5p:2x2x1"}, tmp_path, *command, root=str(tmp_path), retries=2).replace("sleep 30", ":")
    for _ in range(2):  # a host that starts again after the end does nothing
        subprocess.run(["bash", "-c", text], check=False)
        (log,) = (tmp_path / "jobs").glob("*.log")
        assert log.read_text().count("turn\n") == turns
        (ended,) = (tmp_path / "jobs").glob("*.exit")
        assert ended.read_text().strip() == str(status)


def test_machines_are_deleted_only_where_that_was_asked_for() -> None:
    assert "queued-resources delete first" in script(ASKED, delete_after=True)
    assert "delete" not in script(ASKED)


def test_what_was_taken_away_is_asked_for_anew(tmp_path: Path, place: Place) -> None:
    launcher, asked = make("tpu_vm"), job("tpu_vm", tmp_path)
    place.becomes("preempted")
    launcher.submit([asked])
    verbs = [call[4] for call in place.calls]
    assert verbs == ["describe", "delete", "create"]


@pytest.mark.parametrize(
    ("asked", "options", "named"),
    [
        ({"devices": "cpu"}, {}, "--devices=cpu"),
        ({"devices": "v5p:4x4x16"}, {}, "--devices=v5p:4x4x16"),
        (ASKED | {"nodes": 2}, {}, "--nodes"),
        (ASKED | {"hours": 3}, {}, "--hours=3"),
        (ASKED | {"cores": 3}, {}, "--cores=3"),
        (ASKED | {"preemptible": True}, {"reserved": True}, "--reserved"),
        (ASKED, {"root": "runs"}, "--root=runs"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(asked: dict, options: dict, named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        make("tpu_vm", **options).submit([job("tpu_vm", tmp_path, resources=asked)])
    assert_one_sentence(str(refused.value), named)
    assert isinstance(job("tpu_vm", tmp_path), Job)
