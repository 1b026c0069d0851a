"""Every field of a JobSet that decides where its pods are, how many, and what becomes of one that fails."""

import json
from pathlib import Path

import pytest
import yaml

from launch import Resources
from launch.devices import GENERATIONS
from research.errors import UserError
from tests.launch.conftest import job, make
from tests.launch.openapi import violations
from tests.small import assert_one_sentence

SCHEMA = json.loads(Path(__file__).with_name("jobset_schema.json").read_text())["schema"]
RESOURCES = {
    "tpu": {"devices": "v5p:4x4x4"},
    "slices": {"devices": "v5e:16x16", "slices": 2, "preemptible": True, "hours": 2},
    "one host": {"devices": "v6e:2x2"},
    "gpu": {"devices": "gpu:h100:8", "nodes": 2},
    "any gpu": {"devices": "gpu:1", "cores": 4, "memory_gb": 16},
    "cpu": {"nodes": 3},
}


def described(asked: dict, **options: object) -> dict:
    """The JobSet as a server would read it."""
    return yaml.safe_load(make("gke", **options).describe([job("gke", Path("/runs/first"), "run", resources=asked)]))


def child(manifest: dict) -> dict:
    (replicated,) = manifest["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def pod(manifest: dict) -> dict:
    return child(manifest)["template"]["spec"]


def variables(manifest: dict) -> dict:
    (container,) = pod(manifest)["containers"]
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


@pytest.mark.parametrize("asked", RESOURCES.values(), ids=RESOURCES)
@pytest.mark.parametrize("volume", ["claim:runs", "bucket:runs"])
def test_the_api_knows_every_field_and_its_type(asked: dict, volume: str) -> None:
    manifest = described(asked, volume=volume, queue="team", service_account="trainer")
    assert violations(SCHEMA, manifest) == []
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")


def test_the_validator_sees_a_misspelt_field_a_wrong_type_and_what_is_missing() -> None:
    manifest = described(RESOURCES["tpu"])
    child(manifest)["paralellism"] = 16
    pod(manifest)["nodeSelector"]["cloud.google.com/gke-tpu-topology"] = 4
    del pod(manifest)["containers"][0]["name"]
    child(manifest)["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] = [True]
    found = violations(SCHEMA, manifest)
    assert len(found) == 4
    for name in ("paralellism is unknown", "gke-tpu-topology: 4", "containers[0].name is missing", "values[0]: True"):
        assert any(name in line for line in found), found


@pytest.mark.parametrize(
    ("devices", "label", "topology", "hosts", "chips"),
    [
        ("v5p:4x4x4", "tpu-v5p-slice", "4x4x4", 16, 4),
        ("v5p:2x2x1", "tpu-v5p-slice", "2x2x1", 1, 4),
        ("v5p:8x8x16", "tpu-v5p-slice", "8x8x16", 256, 4),
        ("v4:2x2x4", "tpu-v4-podslice", "2x2x4", 4, 4),
        ("v5e:16x16", "tpu-v5-lite-podslice", "16x16", 64, 4),
        ("v5e:1x1", "tpu-v5-lite-podslice", "1x1", 1, 1),
        ("v6e:4x8", "tpu-v6e-slice", "4x8", 8, 4),
    ],
)
def test_a_slice_is_selected_and_filled(devices: str, label: str, topology: str, hosts: int, chips: int) -> None:
    manifest = described({"devices": devices})
    assert pod(manifest)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": label,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    assert child(manifest)["parallelism"] == child(manifest)["completions"] == hosts
    assert child(manifest)["completionMode"] == "Indexed"
    (container,) = pod(manifest)["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": chips}, "requests": {"google.com/tpu": chips}}
    assert manifest["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    # GKE names the hosts of a slice to one another: nothing here may contradict it.
    assert not {"JAX_COORDINATOR_ADDRESS", "TPU_WORKER_ID", "MEGASCALE_NUM_SLICES"} & variables(manifest).keys()


def test_slices_are_replicas_that_megascale_joins() -> None:
    manifest = described(RESOURCES["slices"])
    (replicated,) = manifest["spec"]["replicatedJobs"]
    assert (replicated["name"], replicated["replicas"], child(manifest)["completions"]) == ("slice", 2, 64)
    found = variables(manifest)
    assert found["MEGASCALE_NUM_SLICES"] == "2"
    assert found["MEGASCALE_SLICE_ID"] == {
        "fieldRef": {"fieldPath": "metadata.annotations['jobset.sigs.k8s.io/job-index']"}
    }
    assert found["MEGASCALE_COORDINATOR_ADDRESS"] == "first-slice-0-0.first"  # job, child, its index, pod, subdomain
    assert manifest["spec"]["network"]["enableDNSHostnames"] is True


def test_what_may_be_taken_away_is_asked_for_on_spot_nodes_alone() -> None:
    spot = described(RESOURCES["slices"])
    assert pod(spot)["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod(spot)["tolerations"][0]["key"] == "cloud.google.com/gke-spot"
    firm = described(RESOURCES["tpu"])
    assert "cloud.google.com/gke-spot" not in pod(firm)["nodeSelector"] and "tolerations" not in pod(firm)


def test_a_pod_that_fails_restarts_all_and_a_mistake_ends_all() -> None:
    manifest = described(RESOURCES["slices"], max_restarts=7, grace=90)
    assert pod(manifest)["restartPolicy"] == "Never" and child(manifest)["backoffLimit"] == 0
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    assert policy["rules"][0]["action"] == "FailJobSet"
    assert policy["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy", "DeadlineExceeded"]
    (rule,) = child(manifest)["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    assert rule["onExitCodes"]["containerName"] == pod(manifest)["containers"][0]["name"]
    assert pod(manifest)["terminationGracePeriodSeconds"] == 90
    assert child(manifest)["activeDeadlineSeconds"] == 7200
    assert "activeDeadlineSeconds" not in child(described(RESOURCES["tpu"]))


def test_gpu_nodes_find_one_another_by_jax_itself() -> None:
    manifest = described(RESOURCES["gpu"])
    assert pod(manifest)["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert pod(manifest)["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert child(manifest)["completions"] == child(manifest)["parallelism"] == 2
    found = variables(manifest)
    assert found["JAX_COORDINATOR_ADDRESS"] == "first-slice-0-0.first:8476" and found["JAX_NUM_PROCESSES"] == "2"
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert found["JAX_PROCESS_ID"] == {"fieldRef": {"fieldPath": index}}
    assert pod(manifest)["containers"][0]["ports"] == [{"containerPort": 8476}]
    assert "annotations" not in manifest["metadata"]
    alone = described(RESOURCES["any gpu"])
    assert pod(alone)["nodeSelector"] == {} and "JAX_NUM_PROCESSES" not in variables(alone)
    assert pod(alone)["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 1, "cpu": 4, "memory": "16000M"}


def test_what_outlives_the_pods_is_mounted_where_the_runs_are() -> None:
    manifest = described(RESOURCES["cpu"])
    assert pod(manifest)["volumes"] == [{"name": "root", "persistentVolumeClaim": {"claimName": "runs"}}]
    assert pod(manifest)["containers"][0]["volumeMounts"] == [{"name": "root", "mountPath": "/data"}]
    assert variables(manifest)["ISOFLOP_CACHE"] == "/data/cache"
    bucket = described(RESOURCES["cpu"], volume="bucket:my-runs", service_account="trainer")
    assert pod(bucket)["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "my-runs"
    assert pod(bucket)["serviceAccountName"] == "trainer"
    assert child(bucket)["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}


@pytest.mark.parametrize(
    ("asked", "options", "named"),
    [
        ({"devices": "v5p:4x4"}, {}, "--devices=v5p:4x4"),
        ({"devices": "v5p:3x1x3"}, {}, "--devices=v5p:3x1x3"),
        ({"devices": "v9:2x2"}, {}, "--devices=v9:2x2"),
        ({"devices": "v5p:4x4x4", "nodes": 2}, {}, "--nodes=2"),
        ({"devices": "gpu:8", "slices": 2}, {}, "--slices=2"),
        ({"processes_per_node": 2}, {}, "--processes-per-node=2"),
        ({}, {"volume": "runs"}, "--volume=runs"),
        ({}, {"volume": "claim:"}, "--volume=claim:"),
        ({}, {"root": "data"}, "--root=data"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(asked: dict, options: dict, named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        make("gke", **options).submit([job("gke", tmp_path, resources=asked)])
    assert_one_sentence(str(refused.value), named)


def test_every_generation_has_a_label() -> None:
    assert len({generation.node_label for generation in GENERATIONS.values()}) == len(GENERATIONS)
    assert Resources().devices == "cpu"
