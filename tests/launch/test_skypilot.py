"""Every field of a task that decides where it runs; the package's own validators where it is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from research.errors import UserError
from tests.launch.conftest import job, make
from tests.small import assert_one_sentence

RESOURCES = {
    "gpu": {"devices": "gpu:h100:8", "nodes": 2, "preemptible": True, "cores": 16, "memory_gb": 200},
    "tpu": {"devices": "v5p:4x4x4"},
    "cpu": {},
}
# An environment that has SkyPilot, with all that it brings: `ISOFLOP_SKYPILOT_PYTHON=/path/to/its/python`.
PYTHON = os.environ.get("ISOFLOP_SKYPILOT_PYTHON", sys.executable)
VALIDATE = """
import sys, jsonschema, sky, yaml
from sky.utils import schemas
for task in yaml.safe_load_all(sys.stdin):
    jsonschema.validate(task, schemas.get_task_schema())
    jsonschema.validate(task["resources"], schemas.get_resources_schema())
    for mount in task["file_mounts"].values():
        jsonschema.validate(mount, schemas.get_storage_schema())
    print(sky.Task.from_yaml_config(task).name, "accepted")
"""


def task(asked: dict, **options: object) -> dict:
    return yaml.safe_load(
        make("skypilot", **options).describe([job("skypilot", Path("/runs/first"), "run", resources=asked)])
    )


def test_nodes_of_gpus() -> None:
    found = task(RESOURCES["gpu"], infra="gcp/us-east5", max_restarts=7)
    assert found["name"] == "first" and found["num_nodes"] == 2
    assert found["resources"] == {
        "image_id": "docker:registry/isoflop:1",
        "accelerators": "H100:8",
        "infra": "gcp/us-east5",
        "cpus": "16+",
        "memory": "200+",
        "use_spot": True,
        "job_recovery": {"max_restarts_on_errors": 7},
    }
    for line in ("JAX_NUM_PROCESSES=$SKYPILOT_NUM_NODES", "JAX_PROCESS_ID=$SKYPILOT_NODE_RANK", "head -n1):8476"):
        assert line in found["run"]


def test_a_slice_of_tpus_is_one_node_whose_hosts_know_their_number() -> None:
    found = task(RESOURCES["tpu"])
    assert found["num_nodes"] == 1 and found["resources"]["accelerators"] == "tpu-v5p-128:1"
    assert found["resources"]["accelerator_args"] == {"runtime_version": "v2-alpha-tpuv5"}
    assert found["resources"]["use_spot"] is False and "infra" not in found["resources"]
    assert "JAX_COORDINATOR_ADDRESS" in found["run"] and "JAX_PROCESS_ID" not in found["run"]


def test_one_machine_needs_no_address_and_keeps_its_runs() -> None:
    found = task(RESOURCES["cpu"], setup=("pip list", "nvidia-smi"))
    assert found["run"] == "run\n" and found["setup"] == "pip list\nnvidia-smi\n"
    assert found["file_mounts"] == {"/data": {"source": "gs://runs", "mode": "MOUNT"}}
    assert found["envs"] == {"ISOFLOP_CACHE": "/data/cache"} and "accelerators" not in found["resources"]


@pytest.mark.parametrize(
    ("asked", "options", "named"),
    [
        ({"devices": "gpu:8"}, {}, "gpu:h100:8"),
        ({"slices": 2, "devices": "v5e:4x4"}, {}, "--slices=2"),
        ({"hours": 2}, {}, "--hours=2"),
        ({"processes_per_node": 2}, {}, "--processes-per-node=2"),
        ({"devices": "v5e:4x4", "nodes": 2}, {}, "--nodes=2"),
        ({}, {"bucket": "runs"}, "--bucket=runs"),
        ({}, {"root": "data"}, "--root=data"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(asked: dict, options: dict, named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        make("skypilot", **options).submit([job("skypilot", tmp_path, resources=asked)])
    assert_one_sentence(str(refused.value), named)


@pytest.mark.slow
def test_skypilot_itself_accepts_the_tasks(tmp_path: Path) -> None:
    if subprocess.run(
        [PYTHON, "-c", "import sky"], env={"HOME": str(tmp_path)}, capture_output=True, check=False
    ).returncode:
        pytest.skip(f"{PYTHON} has no SkyPilot: pip install skypilot, and name its Python in ISOFLOP_SKYPILOT_PYTHON")
    jobs = [job("skypilot", Path("/runs"), "run", name=name, resources=asked) for name, asked in RESOURCES.items()]
    text = make("skypilot", infra="gcp/us-east5").describe(jobs)
    done = subprocess.run(
        [PYTHON, "-c", VALIDATE], input=text, env={"HOME": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{name} accepted" for name in RESOURCES]
