"""Every line of a SLURM script that decides where it runs, with what, and what becomes of it; tests/slurm runs them."""

import subprocess
from pathlib import Path

import pytest

from launch.slurm import Slurm
from research.errors import UserError
from tests.launch.conftest import job
from tests.small import assert_one_sentence


def script(asked: dict | None = None, number: int = 1, **options: object) -> str:
    jobs = [job("slurm", Path("/runs/sweep"), "run", name=f"cell-{n}", resources=asked or {}) for n in range(number)]
    text = Slurm(**options).describe(jobs)
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    return text


def directives(text: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_resources_and_wishes_become_directives() -> None:
    asked = {"nodes": 2, "processes_per_node": 8, "cores": 6, "devices": "gpu:h100:8", "memory_gb": 512, "hours": 1.5}
    wishes = {"partition": "gpu", "account": "team", "qos": "high", "constraint": "nvlink", "sbatch": ("--exclude=n7",)}
    text = script(asked, **wishes)
    found = directives(text)
    assert found["--nodes"] == "2" and found["--ntasks-per-node"] == "8" and found["--cpus-per-task"] == "6"
    assert found["--gpus-per-node"] == "h100:8" and found["--mem"] == "488281M" and found["--time"] == "90"
    assert [found[f"--{name}"] for name in ("partition", "account", "qos", "constraint")] == list(wishes.values())[:4]
    assert found["--exclude"] == "n7" and found["--job-name"] == "cell-0" and found["--chdir"] == str(Path.cwd())
    # srun does not take over the cores of a task by itself, and eight processes have a GPU each.
    assert 'srun --cpus-per-task=6 "${command[@]}"' in text and "JAX_LOCAL_DEVICE_IDS" not in text


def test_what_is_not_asked_for_is_left_to_the_cluster() -> None:
    found = directives(script())
    assert set(found) == {
        *("--job-name", "--nodes", "--ntasks-per-node", "--output", "--chdir", "--requeue", "--open-mode")
    }


def test_jobs_of_equal_resources_are_one_array_and_others_are_not() -> None:
    text = script(number=3, at_once=2)
    assert directives(text)["--array"] == "0-2%2" and directives(text)["--output"].endswith("slurm-%A_%a.log")
    mixed = [job("slurm", Path("/runs/sweep"), name=f"cell-{n}", resources={"cores": 1 + n % 2}) for n in range(4)]
    assert Slurm().describe(mixed).count("#!/bin/bash") == 2


def test_a_run_is_told_before_its_limit_and_queued_again() -> None:
    text = script({"hours": 2}, save_before=600, max_requeues=5)
    found = directives(text)
    assert found["--signal"] == "TERM@600" and found["--open-mode"] == "append" and "--requeue" in found
    assert "[ $status = 143 ]" in text and "-lt 5 ]" in text and "scontrol requeue $id" in text
    assert "JobState=(RUNNING|SIGNALING)" in text  # not a job that was cancelled: it would come to life again
    assert "--signal" not in directives(script())


def test_one_process_of_several_gpus_sees_them_all() -> None:
    text = script({"devices": "gpu:4", "nodes": 2})
    assert "export JAX_LOCAL_DEVICE_IDS=0,1,2,3\nsrun" in text
    assert "JAX_LOCAL_DEVICE_IDS" not in script({"devices": "gpu:4"})


def test_set_up_stands_before_the_command() -> None:
    text = script(setup=("module load cuda", "source /opt/isoflop/bin/activate"))
    assert text.index("module load cuda") < text.index("source /opt") < text.index("command=(")


@pytest.mark.parametrize(
    ("asked", "options", "named"),
    [
        ({"devices": "v5p:4x4x4"}, {}, "--devices=v5p:4x4x4"),
        ({"slices": 2}, {}, "--slices=2"),
        ({"devices": "gpu:8", "processes_per_node": 3}, {}, "--processes-per-node=3"),
        ({"hours": 0.1}, {}, "--hours=0.1"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(asked: dict, options: dict, named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        Slurm(**options).submit([job("slurm", tmp_path, resources=asked)])
    assert_one_sentence(str(refused.value), named)
