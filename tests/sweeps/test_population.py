"""Packs: which cells can train together, when it pays, and that a pack costs no cell anything."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import pytest

from research import config
from research.errors import UserError
from research.parallel.chips import CHIPS
from research.sweeps import Sweep, only, over, product, seeds
from research.sweeps.folder import Folder, create, described
from research.sweeps.ledger import CANCELLED, DONE, FAILED, PENDING, Ledger
from research.sweeps.population import NUMBERS, check_pack, on_chip, on_cpu, packable, partners, program_of
from research.sweeps.resolve import base_record
from research.sweeps.sweep import Cell, cells_of
from research.sweeps.worker import Worker
from research.train.assembly import assemble
from research.train.state import initial_state
from research.train.step import make_step
from tests import small
from tests.small import assert_one_sentence

SHORT = {"flops": 1e9, "seconds": None}
# For each number of a run that decides no program, another value.
OTHER: dict[str, Any] = {
    "seed": 3,
    "data.num_tokens": 4096,
    "model.dropout": 0.4,
    "objective.mask_rate": 0.45,
    "objective.mask_rate_start": 0.3,
    "objective.mask_token_rate": 0.5,
    "objective.random_token_rate": 0.2,
    "objective.masking": "span",
    "objective.prefix_fraction": 0.5,
    "objective.corruption_rate": 0.2,
    "objective.mean_span_length": 4.0,
    "objective.fim_rate": 0.1,
    "objective.fim_spm_rate": 0.1,
    "optimizer.learning_rate": 0.5,
    "optimizer.warmup_steps": 3,
    "optimizer.decay_steps": 7,
    "optimizer.final_fraction": 0.3,
    "optimizer.weight_decay": 0.5,
    "optimizer.beta1": 0.5,
    "optimizer.beta2": 0.5,
    "optimizer.epsilon": 1e-3,
    "optimizer.clip_norm": 0.3,
    "optimizer.momentum": 0.5,
    "optimizer.muon_scale": 0.4,
    "optimizer.ema_decay": 0.5,
}
USED = {
    "data.sequence_length": 32,
    "objective.name": "masked",
    "objective.mask_rate": 0.5,
    "model.dropout": 0.1,
    "optimizer.name": "muon",
    "optimizer.ema_decay": 0.9,
}


def program_text(changes: dict[str, Any]) -> str:
    """The update as it is handed to the compiler."""
    of = small.settings(changes)
    assembly = assemble(of, small.VOCABULARY, devices=jax.devices()[:1])
    state = jax.eval_shape(lambda: initial_state(of, assembly.model))
    update = jax.jit(make_step(of, assembly.model, assembly.objective))
    with jax.set_mesh(assembly.mesh):
        return str(update.lower(state, small.placed(assembly, small.random_batch(of, 0, most=1))).as_text())


def test_what_may_differ_in_a_pack_decides_no_program() -> None:
    assert set(OTHER) == NUMBERS
    plain, changed = small.settings(USED), small.settings(USED | OTHER)
    assert all(plain[name] != changed[name] for name in NUMBERS)
    assert program_of(plain) == program_of(changed)
    assert program_text(USED) == program_text(USED | OTHER)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.dropout": 0.0},
        {"objective.mask_rate": 0.2},  # fewer places at which the head is computed
        {"optimizer.ema_decay": None},
        {"optimizer.schedule": "linear"},
        {"train.num_steps": 21},
        {"train.evaluate_every": 7},
        {"model.num_layers": 1},
        {"objective.z_loss": 0.1},
    ],
    ids=str,
)
def test_what_decides_a_program_or_the_loop_keeps_cells_apart(changes: dict[str, Any]) -> None:
    assert program_of(small.settings(USED)) != program_of(small.settings(USED | changes))


# --- whether it pays --------------------------------------------------------------------------------------------------


def test_on_a_cpu_short_runs_are_packed_and_long_ones_are_not() -> None:
    assert on_cpu(SHORT, 4, 2).count == 4
    long = on_cpu({"flops": 1e15, "seconds": None}, 4, 2)
    assert long.count == 1 and "alone" in long.reason and "\n" not in long.reason
    assert on_cpu({"flops": 1e15, "seconds": 1.0}, 4, 2).count == 4  # a plan that has timed it is believed
    assert on_cpu(SHORT, 1, 2).count == 1
    assert on_cpu(SHORT | {"memory": 3e9}, 8, 2, room=10**10).count == 3
    assert on_cpu(SHORT | {"memory": 6e9}, 8, 2, room=10**10).count == 1


def test_on_a_chip_small_models_are_packed_as_far_as_memory_goes() -> None:
    chip, narrow = CHIPS["v5e"], small.settings()
    assert on_chip(narrow, chip, 8).count == 8
    fits = on_chip(narrow, chip, 10**6).count
    few = on_chip(narrow, dataclasses.replace(chip, hbm_bytes=5 * chip.hbm_bytes // fits), 8)
    assert 4 <= few.count <= 5 and f"holds {few.count}" in few.reason
    wide = small.settings({"model.embed_dim": 4096, "model.mlp_dim": 16384, "data.sequence_length": 2048})
    assert on_chip(wide, chip, 8).count == 1


def test_a_pack_has_a_cell() -> None:
    assert check_pack(1) == 1
    with pytest.raises(UserError) as error:
        check_pack(0)
    assert_one_sentence(str(error.value), "--pack=0")


# --- cells of a folder ------------------------------------------------------------------------------------------------

Result = tuple[int, dict[str, Any]]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Four cells of one program, and one of another."""
    points = product(over("optimizer.learning_rate", [1e-3, 2e-3]), seeds(2)) + product(only({"model.num_layers": 3}))
    sweep = Sweep("which?", "configs/causal.py:tiny", points, keep="all")
    cells, _ = cells_of(sweep)
    entries = [described(cell, SHORT, "data") for cell in cells]
    source = {"sweep": "sweep.py", "sweep_hash": "0"}
    return create(tmp_path / "work", sweep, base_record(sweep.recipe), entries, [], source, any_commit=True)


def checkpoint(folder: Folder, cell: Cell, *steps: int) -> None:
    for step in steps:
        place = folder.run(cell.id) / "checkpoints" / f"{step:08d}"
        place.mkdir(parents=True)
        (place / "commit_success.txt").touch()


def test_cells_that_have_begun_go_on_with_those_that_stand_where_they_do(folder: Folder) -> None:
    first, second, third, fourth, other = folder.cells
    assert packable(folder, first)
    assert partners(folder, first, folder.cells) == [second, third, fourth]
    assert partners(folder, other, folder.cells) == []
    every = first.settings.train.checkpoint_every
    checkpoint(folder, first, every, 2 * every)
    checkpoint(folder, second, every)  # killed before it had saved what the first had
    checkpoint(folder, third, 2 * every, 4 * every)  # went on alone
    assert partners(folder, first, folder.cells) == [second]
    assert partners(folder, fourth, folder.cells) == []


class Trains:
    """What a worker is given, and what it asked for."""

    def __init__(self, end: Callable[[Sequence[Any]], list[Result | UserError]]) -> None:
        self.alone: list[str] = []
        self.packs: list[list[str]] = []
        self._end = end

    def one(self, cell: Cell, directory: Path, data_hash: str) -> Result:
        self.alone.append(cell.id)
        return 0, {}

    def together(self, asked: Sequence[Any]) -> list[Result | UserError]:
        self.packs.append([cell.id for cell, *_ in asked])
        return self._end(asked)


def work(folder: Folder, trains: Trains, pack: int = 4, said: list[str] | None = None) -> tuple[int, list[str]]:
    """Exit status of a worker, and the states of the cells."""
    tell = (lambda line: None) if said is None else said.append
    status = Worker(folder, trains.one, pack=pack, together=trains.together, tell=tell).run()
    return status, [Ledger(folder.directory).read(cell.id)["state"] for cell in folder.cells]


def test_a_worker_packs_what_it_may_and_says_why(folder: Folder) -> None:
    said: list[str] = []
    trains = Trains(lambda asked: [(0, {})] * len(asked))
    assert work(folder, trains, pack=3, said=said) == (0, [DONE] * 5)
    ids = [cell.id for cell in folder.cells]
    assert trains.packs == [ids[:3]] and trains.alone == ids[3:]
    assert sum("packs of 3: a CPU" in line for line in said) == 1
    attempts = [Ledger(folder.directory).read(name)["attempts"] for name in ids]
    assert [[one.get("pack") for one in own] for own in attempts] == [[3], [3], [3], [None], [None]]


def test_cells_that_others_hold_are_not_waited_for(folder: Folder) -> None:
    first, second, *_ = folder.cells
    ledger = Ledger(folder.directory)
    trains = Trains(lambda asked: [(0, {})] * len(asked))
    with ledger.claimed(second.id):
        assert ledger.begin(second.id, 0, "another")
        _, states = work(folder, trains)
        assert trains.packs == [[cell.id for cell in folder.cells if cell.id != second.id][:3]]
        assert states == [DONE, "running", DONE, DONE, DONE]
    assert first.id in trains.packs[0]


def test_each_cell_of_a_pack_ends_by_itself(folder: Folder) -> None:
    ledger = Ledger(folder.directory)

    def end(asked: Sequence[Any]) -> list[Result | UserError]:
        ledger.cancel(asked[2][0].id)
        while not asked[2][3]():  # until the pack is told
            pass
        assert not asked[0][3]()
        return [(0, {}), UserError("the loss of update 3 is nan"), (143, {"step": 2, "signal": 15}), (0, {})]

    status, states = work(folder, Trains(end))
    assert (status, states) == (0, [DONE, FAILED, CANCELLED, DONE, DONE])
    assert ledger.read(folder.cells[1].id)["attempts"][-1]["reason"] == "the loss of update 3 is nan"


def test_a_signal_ends_the_whole_pack_and_the_worker(folder: Folder) -> None:
    status, states = work(folder, Trains(lambda asked: [(143, {"step": 2, "signal": 15})] * len(asked)))
    assert (status, states) == (128 + 15, [PENDING] * 5)


@pytest.mark.parametrize("error", [UserError("no update in common"), ZeroDivisionError("a defect")])
def test_what_cannot_train_together_trains_alone(folder: Folder, error: Exception) -> None:
    def end(asked: Sequence[Any]) -> list[Result | UserError]:
        raise error

    said: list[str] = []
    trains = Trains(end)
    assert work(folder, trains, said=said) == (0, [DONE] * 5)
    assert trains.alone == [cell.id for cell in folder.cells]
    assert any("each trains alone" in line and str(error) in line for line in said)


def test_a_cell_whose_process_died_as_it_began_trains_alone(folder: Folder) -> None:
    ledger = Ledger(folder.directory)
    with ledger.claimed(folder.cells[1].id):
        ledger.begin(folder.cells[1].id, 0, "first")  # and nobody ends it
    assert ledger.died_at_once(folder.cells[1].id, 0) and not ledger.died_at_once(folder.cells[1].id, 2)
    trains = Trains(lambda asked: [(0, {})] * len(asked))
    work(folder, trains)
    assert trains.packs == [[cell.id for cell in folder.cells[:4] if cell.id != folder.cells[1].id]]


def test_branches_and_cut_activations_are_left_alone(folder: Folder) -> None:
    first, second, *_ = folder.cells
    branch = dataclasses.replace(second, after=first.id, from_step=2)
    with_branch = dataclasses.replace(folder, cells=(first, branch))
    assert not packable(with_branch, first) and not packable(with_branch, branch)
    cut = config.from_nested({"parallel.mesh.tensor": 2})
    assert not packable(folder, dataclasses.replace(first, settings=cut))
