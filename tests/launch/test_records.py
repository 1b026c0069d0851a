"""What a submission leaves behind, and what of the environment it keeps."""

import json
from pathlib import Path

import jax
import pytest

from launch import Handle, records
from research.errors import UserError
from tests.launch.conftest import job


def test_the_environment_says_versions_and_variables_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JAX_ENABLE_X64", "XLA_FLAGS", "NCCL_DEBUG"):
        monkeypatch.setenv(name, "1")
    for name in ("ISOFLOP_TOKEN", "JAX_API_KEY", "TPU_PASSWORD", "HOME_OF_NOBODY"):
        monkeypatch.setenv(name, "secret")
    found = records.environment("c0ffee+changes")
    assert found["commit"] == "c0ffee+changes" and found["packages"]["jax"] == jax.__version__
    assert {"JAX_ENABLE_X64", "XLA_FLAGS", "NCCL_DEBUG"} <= found["variables"].keys()
    assert "secret" not in json.dumps(found)


def test_jobs_are_read_in_the_order_of_their_submission(tmp_path: Path) -> None:
    for id_ in ("12", "9_3", "projects/x/10"):
        asked = job("slurm", tmp_path)
        (path,) = records.write([asked], [Handle("slurm", id_, "first", tmp_path)], {})
        assert json.loads(path.read_text())["job"]["resources"]["devices"] == "cpu"
        assert path.parent == tmp_path / "jobs"
    (tmp_path / "jobs" / "other.json").write_text("not one of ours")
    assert [handle.id for handle in records.read(tmp_path)] == ["12", "9_3", "projects/x/10"]
    assert records.read(tmp_path / "nowhere") == []


def test_a_record_that_cannot_be_kept_says_what_was_submitted(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="but first was submitted as 12"):
        records.write([job("slurm", tmp_path)], [Handle("slurm", "12", "first", tmp_path)], {})
