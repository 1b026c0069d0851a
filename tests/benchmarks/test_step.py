import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SIZES = {"embed": 16, "layers": 2, "heads": 2, "mlp": 32, "vocabulary": 320, "sequence": 16, "batch": 2}
TINY = [f"--{name}={value}" for name, value in {**SIZES, "rounds": 2, "steps": 2}.items()]
# The bare step is written for JAX as it comes: not for the suite's strict promotion and its eight devices.
STRICT = ("JAX_NUMPY_", "XLA_", "ISOFLOP_BENCH_")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(STRICT)}
PEERS = "nanogpt,huggingface,litgpt,nanodo,maxtext"


def benchmark(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.step", *TINY, *flags],
        cwd=ROOT,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_a_benchmark_of_a_tiny_shape(tmp_path: Path) -> None:
    ran = benchmark("--json", "--kernels", "auto,reference", "--without", PEERS, "--output", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    (result,) = json.loads(ran.stdout)
    assert list(result["figures"]) == ["bare", "isoflop", "isoflop-reference", "loop"]
    assert any(line.startswith("nanodo is absent: set ISOFLOP_BENCH_NANODO") for line in result["absent"])
    assert result["start_from_cached_programs"]["first_step_seconds"] > 0.0
    assert all(len(entry["rounds"]) == 2 for entry in result["records"].values())
    assert 0.0 < result["figures"]["isoflop"]["peak_gigabytes"] < 10.0
    assert result["records"]["isoflop-reference"]["start"]["kernels"]["product"] == "reference"
    (written,) = tmp_path.glob("*.json")
    assert json.loads(written.read_text()) == result
    assert written.stat().st_size < 100_000 and written.with_suffix(".svg").stat().st_size < 100_000


@pytest.mark.slow
def test_a_peer_that_cannot_start_is_left_out(tmp_path: Path) -> None:
    """A folder that exists and is no checkout."""
    others = ",".join(name for name in PEERS.split(",") if name != "nanodo")
    ran = benchmark(
        "--rounds=1",
        "--steps=1",
        "--without",
        f"cached,loop,bare,{others}",
        "--output",
        str(tmp_path),
        ISOFLOP_BENCH_NANODO=str(tmp_path),
    )
    assert ran.returncode == 0, ran.stderr
    assert "nanodo is left out: the contestant nanodo ended with status 1" in ran.stdout
    (written,) = tmp_path.glob("*.json")
    assert list(json.loads(written.read_text())["figures"]) == ["isoflop"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--heads=3"], "--heads divides --embed"),
        (["--layers=0"], "at least 1"),
        (["--cores=99"], "--cores: choose of"),
        (["--without=nobody"], "--without nobody"),
    ],
)
def test_a_mistake_is_said_before_anything_starts(flags: list[str], said: str) -> None:
    ran = benchmark(*flags)
    assert ran.returncode == 2 and said in ran.stderr and "Traceback" not in ran.stderr
