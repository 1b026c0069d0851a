"""A real SLURM of two virtual nodes: an array, a cancelled job, a training over two nodes, a preempted run."""

import json
import sys
import time
from pathlib import Path

import pytest

from launch import Handle, Job, Resources, records
from launch.slurm import Slurm
from research.cli.main import main
from research.errors import UserError
from tests.integration.conftest import ROOT, SMALL, arguments, losses
from tests.slurm.conftest import DEADLINE, ended, has_rows, requeue, wait

LONG = {
    "train__num_steps": 600,
    "train__checkpoint_every": 1000,
    "train__evaluate_every": 1000,
    "train__log_every": 50,
}
FSDP = {"parallel__preset": "fsdp", "train__num_steps": 10, "train__checkpoint_every": 10, "train__evaluate_every": 10}


def command(workdir: Path, corpus: Path, changes: dict) -> tuple[str, ...]:
    return (sys.executable, "-m", "research.cli.main", *arguments(workdir, corpus, **changes))


def devices(count: int) -> dict[str, str]:
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}


def launch(workdir: Path, corpus: Path, changes: dict, *options: str) -> Handle:
    """By the command, as a user does it."""
    train = arguments(workdir, corpus, **changes)[1:]
    assert main(["launch", "--on=slurm", *train, *options]) == 0
    (handle,) = records.read(workdir)
    return handle


@pytest.fixture(scope="module")
def array(cluster: None, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two cells that one array has run: one device, and four devices of one process."""
    folder = tmp_path_factory.mktemp("sweep")
    jobs = [
        Job("long", command(folder / "long", corpus, LONG), folder, devices(1)),
        Job("four", command(folder / "four", corpus, FSDP), folder, devices(4)),
    ]
    handles = Slurm().submit(jobs)
    assert {handle.id.partition("_")[0] for handle in handles} == {handles[0].id.removesuffix("_0")}
    assert [handle.id.partition("_")[2] for handle in handles] == ["0", "1"]
    for handle in handles:
        assert ended(handle).state == "done"
    return folder


def test_an_array_runs_its_cells_and_a_cancelled_job_ends(array: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(losses(array / "long")) == 600 and len(losses(array / "four")) == 10
    slurm = Slurm()
    sleeps = Job("sleeps", ("sleep", "600"), array, {}, Resources(hours=0.5))
    (handle,) = slurm.submit([sleeps])
    records.write([sleeps], [handle], {})
    wait(handle, lambda status: status.state == "running")
    assert main(["launch", f"--cancel={array}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["jobs"][0]["name"] == "sleeps"
    assert ended(handle).state == "cancelled"
    slurm.cancel(handle)  # a second time is no mistake


def test_a_cluster_that_refuses_says_so_in_its_own_words(cluster: None, tmp_path: Path) -> None:
    job = Job("refused", ("true",), tmp_path)
    with pytest.raises(UserError, match=r"^SLURM refuses refused: .*[Ii]nvalid partition[^\n]*$"):
        Slurm(partition="nowhere").submit([job])
    assert not list((tmp_path / "jobs").iterdir())


@pytest.mark.slurm
def test_an_array_of_workers_runs_the_cells_of_a_sweep(
    cluster: None, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = [SMALL | {"data.path": str(corpus), "seed": seed} for seed in (0, 1)]
    text = "from research.sweeps import Sweep\ndef get_sweep():\n    return Sweep(question='which seed', "
    recipe = f"{ROOT}/configs/causal.py:tiny"
    (tmp_path / "sweep.py").write_text(f"{text}recipe={recipe!r}, points={tuple(points)!r})\n")
    folder = tmp_path / "folder"
    assert main(["sweep", "run", str(tmp_path / "sweep.py"), "--on=slurm", "--parallel=2", f"--workdir={folder}"]) == 0
    handles = records.read(folder)
    assert [handle.id.partition("_")[2] for handle in handles] == ["0", "1"]
    assert [ended(handle).state for handle in handles] == ["done", "done"]
    capsys.readouterr()
    assert main(["sweep", "status", str(folder)]) == 0
    assert "2 cells: 2 done" in capsys.readouterr().out
    assert [len(losses(cell)) for cell in (folder / "cells").iterdir()] == [SMALL["train.num_steps"]] * 2


@pytest.mark.slurm
@pytest.mark.multihost
def test_two_nodes_train_what_one_process_does(array: Path, corpus: Path, tmp_path: Path) -> None:
    environment = [f"--env={name}={value}" for name, value in devices(2).items()]
    handle = launch(tmp_path / "run", corpus, FSDP, "--nodes=2", *environment)
    assert ended(handle).state == "done"
    logs = sorted(path.name for path in (tmp_path / "run" / "logs").iterdir())
    assert logs == ["process-0000.log", "process-0001.log"]
    # Gloo adds in another order than the sum within a process.
    assert losses(tmp_path / "run") == pytest.approx(losses(array / "four"), rel=1e-5)


@pytest.mark.slurm
def test_a_preempted_run_goes_on_with_the_same_bits(array: Path, corpus: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    handle = launch(workdir, corpus, LONG, *(f"--env={name}={value}" for name, value in devices(1).items()))
    until = time.monotonic() + DEADLINE
    while not has_rows(workdir / "metrics.jsonl", 5):
        assert time.monotonic() < until and not Slurm().status(handle).ended, list(Slurm().logs(handle))
        time.sleep(0.01)
    requeue(handle)
    assert wait(handle, lambda status: status.state != "running").state == "preempted"
    reached = len(losses(workdir))
    assert 5 <= reached < 600
    assert [path.name for path in (workdir / "checkpoints").glob("0*")] == [f"{reached:08d}"]
    assert ended(handle).state == "done"
    assert losses(workdir) == losses(array / "long")


@pytest.mark.slurm
def test_a_run_saves_before_its_time_limit_and_takes_another_turn(cluster: None, tmp_path: Path) -> None:
    """SLURM ends jobs by the minute: the command here only says what it is told."""
    text = 'echo "turn ${SLURM_RESTART_COUNT:-0}"; [ "$SLURM_RESTART_COUNT" = 1 ] && exit; trap "exit 143" TERM; '
    text += "for i in $(seq 900); do sleep 0.1; done"
    job = Job("limited", ("bash", "-c", text), tmp_path / "a folder", {}, Resources(hours=1 / 60))
    (handle,) = Slurm(save_before=30).submit([job])
    assert ended(handle).state == "done"
    assert [line for line in Slurm().logs(handle) if line.startswith("turn")] == ["turn 0", "turn 1"]
    (handle,) = Slurm(max_requeues=0).submit([Job("never", ("bash", "-c", "exit 143"), tmp_path)])
    assert ended(handle).state == "failed"
