"""The verb: what it checks before anything is queued, what it hands over, what it says."""

import json
from pathlib import Path

import pytest

from research import config
from research.cli import launch as verb
from research.cli.main import main
from tests.launch.conftest import Place, place  # noqa: F401
from tests.small import assert_one_sentence

CONFIG = ["--config=configs/causal.py:tiny", "--config.train.num_steps=7"]
GKE = ["--on=gke", "--image=i:1", "--root=/data", "--volume=claim:runs"]


def said(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_dry_run_shows_all_and_leaves_nothing(tmp_path: Path, capsys, place: Place) -> None:  # noqa: F811
    assert main(["launch", "--on=slurm", *CONFIG, f"--workdir={tmp_path / 'run'}", "--dry-run", "--json"]) == 0
    found = said(capsys)
    assert found["handle"] is None and "#SBATCH --job-name=run" in found["submits"]
    assert not (tmp_path / "run").exists() and not (place.home / "calls.jsonl").exists()


def test_a_job_gets_the_settings_as_they_are_now(tmp_path: Path, capsys, place: Place) -> None:  # noqa: F811
    workdir = tmp_path / "My Run_1"
    environment = ["--env=XLA_FLAGS=--xla_x=1 --xla_y=2"]
    assert main(["launch", "--on=slurm", *CONFIG, f"--workdir={workdir}", "--json", *environment]) == 0
    found = said(capsys)
    assert found["name"] == "my-run-1" and found["handle"]["id"] == "77"
    (saved,) = (workdir / "jobs").glob("*.config.json")
    assert config.from_record(config.read_json(saved)).train.num_steps == 7
    assert f"'--config={saved}'" in place.submitted and "export XLA_FLAGS='--xla_x=1 --xla_y=2'" in place.submitted
    (record,) = (workdir / "jobs").glob("*.job.json")
    kept = json.loads(record.read_text())
    assert kept["environment"]["packages"]["jax"] and kept["environment"]["commit"] and kept["submitted"]
    assert kept["job"]["environment"] == {"XLA_FLAGS": "--xla_x=1 --xla_y=2"}
    place.becomes("running")
    assert main(["launch", f"--status={workdir}", "--json"]) == 0
    assert [(one["name"], one["state"]) for one in said(capsys)["jobs"]] == [("my-run-1", "running")]
    assert main(["launch", f"--cancel={workdir}", "--json"]) == 0
    assert [one["state"] for one in said(capsys)["jobs"]] == ["cancelled"]


def test_where_no_file_is_shared_every_key_is_said(tmp_path: Path, capsys) -> None:
    assert main(["launch", *GKE, *CONFIG, f"--workdir={tmp_path / 'run'}", "--dry-run", "--json"]) == 0
    lines = [line.strip().removeprefix("- ").strip("'") for line in said(capsys)["submits"].splitlines()]
    assert "--workdir=/data/run" in lines and "--config=configs/base.py" in lines
    typed = [line.removeprefix("--config.").partition("=") for line in lines if line.startswith("--config.")]
    again = config.default_config()
    for name, _, text in typed:
        config.override(again, name, text)
    wanted = config.load_recipe("configs/causal.py:tiny")
    config.override(wanted, "train.num_steps", "7")
    assert config.to_settings(again) == config.to_settings(wanted)


@pytest.mark.parametrize("value", [None, True, False, 3, 1e-7, 0.1, "text with = and spaces", ""])
def test_a_value_is_written_as_it_is_read(value: object) -> None:
    assert verb.written(value) == {None: "none", True: "true", False: "false"}.get(value, str(value))


@pytest.mark.parametrize(
    ("directory", "name"), [("Runs/A_b.c", "a-b-c"), ("7b", "run-7b"), ("x" * 60, "x" * 30), ("_", "run")]
)
def test_a_directory_gives_its_job_a_name(directory: str, name: str) -> None:
    assert verb.job_name(Path(directory)) == name


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--workdir=run", *CONFIG], "--on is missing"),
        (["--workdir=run", "--on=moon", *CONFIG], "--on=moon"),
        (["--workdir=run", "--on=slurm"], "--config is missing"),
        (["--workdir=run", "--on=slurm", *CONFIG, "--zone=a"], "--zone"),
        (["--workdir=run", "--on=gke", *CONFIG], "--image"),
        (["--workdir=run", "--on=slurm", *CONFIG, "--config.train.nm_steps=1"], "train.num_steps"),
        (["--workdir=run", "--on=slurm", *CONFIG, "--config.train.num_steps=0"], "train.num_steps"),
        (["--workdir=run", "--on=slurm", *CONFIG, "--env=A"], "--env=A"),
        (["--workdir=run", "--on=slurm", *CONFIG, "--name=A"], "'A'"),
        (["--workdir=run", "--on=slurm", *CONFIG, "--nodes=0"], "--nodes=0"),
        (["--status=run"], "--status"),
        (["--cancel=run", *CONFIG], "--config belongs to --workdir"),
    ],
)
def test_a_mistake_is_one_sentence_and_starts_nothing(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    capsys,
    place: Place,  # noqa: F811
) -> None:
    own = [argument.replace("=run", f"={tmp_path / 'run'}") for argument in arguments]
    assert main(["launch", *own]) == 2
    error = capsys.readouterr().err.strip()
    assert_one_sentence(error.removeprefix("isoflop launch: "), named)
    assert not (tmp_path / "run").exists() and not (place.home / "calls.jsonl").exists()


def test_a_damaged_record_is_named(tmp_path: Path, capsys) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "slurm-1.job.json").write_text("{")
    assert main(["launch", f"--status={tmp_path}"]) == 2
    assert "slurm-1.job.json is damaged" in capsys.readouterr().err
