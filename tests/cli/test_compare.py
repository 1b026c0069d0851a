"""`isoflop compare`: the yardstick that fits, its table and its object, and a sentence for what cannot be compared."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from research.checkpoint import Checkpoints
from research.cli import rundir
from research.cli.main import main
from research.data.prepare import Prepared
from research.sweeps import Sweep
from research.sweeps import folder as folders
from research.sweeps.folder import Folder
from research.sweeps.ledger import Ledger
from research.sweeps.resolve import base_record
from research.sweeps.sweep import cells_of
from research.train.assembly import assemble
from tests import small
from tests.evaluate.corpora import corpus
from tests.small import assert_one_sentence

ENCODER = {"model.architecture": "encoder_decoder"}
RUNS: dict[str, dict[str, Any]] = {
    "causal": {},
    "prefix": {"objective.name": "prefix"},
    "spans": {"objective.name": "span_corruption", **ENCODER},
    "masked": {"objective.name": "masked"},
}
SMALL = {"data.source": "docstrings", "data.validation_fraction": 0.2, "data.sequence_length": 32}
AMOUNTS = ["--given=10", "--suffix=8", "--documents=150"]


def write_run(workdir: Path, prepared: Prepared, changes: dict[str, Any], steps: tuple[int, ...] = (20,)) -> None:
    """A run with random weights, as training leaves it."""
    size = {"tokenizer.vocab_size": prepared.tokenizer.vocabulary.size, "model.num_layers": 1}
    settings = small.settings(SMALL | size | changes)
    assembly = assemble(settings, prepared.tokenizer.vocabulary)
    workdir.mkdir(parents=True)
    rundir.write_record(workdir, settings, prepared, {})
    place = jax.NamedSharding(assembly.mesh, jax.P())
    params = jax.tree.map(lambda leaf: jax.device_put(leaf, place), small.weights(assembly.model))
    for step in steps:
        with Checkpoints(workdir / "checkpoints") as checkpoints:
            checkpoints.save(step, {"step": jnp.full((), step, jnp.int32, device=place), "params": params})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("cache")
        patch.setenv("ISOFLOP_CACHE", str(directory))
        yield directory


@pytest.fixture(scope="module")
def runs(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        prepared, other = corpus(patch, cache), corpus(patch, cache, 340)
        for name, changes in RUNS.items():
            write_run(folder / name, prepared, changes)
        write_run(folder / "unfinished", prepared, {"seed": 1}, (3, 7))
        write_run(folder / "tokenizer", other, {})
        split = corpus(patch, cache, fraction=0.3)
        write_run(folder / "split", split, {"data.validation_fraction": 0.3})
    (folder / "checkpoints").mkdir()
    (folder / "fresh").mkdir()
    (folder / "fresh" / "config.json").write_bytes((folder / "causal" / "config.json").read_bytes())
    return folder


Compared = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def compared(runs: Path, capsys: pytest.CaptureFixture[str]) -> Compared:
    """The object and the table of a comparison."""

    def run(*names: str, options: tuple[str, ...] = ()) -> tuple[dict[str, Any], str]:
        assert main(["compare", *(str(runs / name) for name in names), *AMOUNTS, *options, "--json"]) == 0
        said = capsys.readouterr()
        return json.loads(said.out.splitlines()[-1]), said.err

    return run


def test_objectives_that_predict_text_are_asked_for_the_same_suffixes(compared: Compared) -> None:
    found, said = compared("causal", "prefix", "spans", "unfinished")
    assert found["yardsticks"] == ["suffixes"] and "predict text" in found["reason"]
    ranked = found["suffixes"]["ranked"]
    assert {row["run"] for row in ranked} == {"causal", "prefix", "spans", "unfinished"}
    values = [row["bits_per_byte"]["value"] for row in ranked]
    assert values == sorted(values) and len({row["tokens"] for row in ranked}) == 1
    for row in ranked:
        assert row["bits_per_byte"]["low"] < row["bits_per_byte"]["value"] < row["bits_per_byte"]["high"]
    assert ranked[0]["from_best"] is None
    for row in ranked[1:]:
        assert row["from_best"]["value"] == pytest.approx(row["bits_per_byte"]["value"] - values[0])
    steps = {row["run"]: row["step"] for row in found["runs"]}
    assert steps == {"causal": 20, "prefix": 20, "spans": 20, "unfinished": 7}
    assert "unfinished is unfinished: 7 of 20 updates" in said
    # The same weights and the same text: prefix differs from causal by what is seen, the other seed by nothing here.
    assert all(f"{value:.4f}" in said for value in values)


def test_tokenizers_are_compared_by_bits_of_the_same_bytes(compared: Compared) -> None:
    found, _ = compared("causal", "tokenizer")
    assert found["yardsticks"] == ["suffixes"] and found["runs"][0]["data_hash"] != found["runs"][1]["data_hash"]
    assert len({row["tokens"] for row in found["suffixes"]["ranked"]}) == 2


def test_a_masked_run_is_compared_by_probes_and_stands_beside_its_baselines(compared: Compared) -> None:
    found, said = compared("causal", "masked")
    assert found["yardsticks"] == ["probes", "baselines"] and "predicted by masked" in found["reason"]
    probed, rows = found["probes"], found["baselines"]["rows"]
    assert probed["classes"] == ["numpy", "optax", "rich"]
    assert probed["bag_of_tokens"]["value"] > 0.8 > probed["most_frequent"]["value"]
    for row in probed["ranked"]:
        assert 0.0 <= row["accuracy"]["low"] <= row["accuracy"]["value"] <= row["accuracy"]["high"] <= 1.0
        bag = row["over_bag_of_tokens"]["value"]
        assert bag == pytest.approx(row["accuracy"]["value"] - probed["bag_of_tokens"]["value"])
    # No ranking of losses: rows stand as they were named, whichever loss is lower.
    assert [row["run"] for row in rows] == ["causal", "masked"]
    for row in rows:
        assert row["share_removed"] == pytest.approx(1 - row["loss"] / row["unigram_loss"])
    assert rows[0]["bits_per_byte"] and rows[1]["bits_per_byte"] is None and rows[1]["unigram_accuracy"]
    assert "no order" in said and "best" not in said.partition("held-out loss in nats")[2]


def test_a_yardstick_can_be_asked_for(compared: Compared) -> None:
    found, _ = compared("causal", "prefix", options=("--yardstick=baselines",))
    assert found["yardsticks"] == ["baselines"] and found["baselines"]["rows"][1]["run"] == "prefix"


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        (["causal"], [], ["causal", "alone"]),
        (["causal", "causal"], [], ["causal", "twice"]),
        (["causal", "nothing"], [], ["nothing", "config.json"]),
        (["causal", "fresh"], [], ["fresh", "no checkpoint"]),
        (["causal", "split"], [], ["causal", "split", "different data"]),
        (["causal", "masked"], ["--yardstick=suffixes"], ["masked", "objective.name=masked", "probes"]),
        (["causal", "tokenizer"], ["--yardstick=probes"], ["--yardstick=probes", "several tokenizers"]),
        (["masked", "tokenizer"], [], ["masked", "several tokenizers"]),
        (["causal", "prefix"], ["--given=40"], ["--given=40", "--suffix=8", "causal", "data.sequence_length=32"]),
        (["spans", "unfinished"], ["--suffix=31"], ["--suffix=31", "spans", "data.sequence_length=32"]),
        (["causal", "prefix"], ["--suffix=0"], ["--suffix=0", "at least 1"]),
        (["causal", "masked"], ["--documents=20"], ["--documents=20"]),
        (["causal", "prefix"], ["--config.seed=3"], ["--config.seed"]),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    runs: Path, capsys: pytest.CaptureFixture[str], names: list[str], options: list[str], words: list[str]
) -> None:
    amounts = [amount for amount in AMOUNTS if not any(amount.split("=")[0] in option for option in options)]
    assert main(["compare", *(str(runs / name) for name in names), *amounts, *options]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("isoflop compare: ")
    assert_one_sentence(said.replace(str(runs), ""), *words)


# --- a sweep's folder -------------------------------------------------------------------------------------------------


def sweep_of(runs: Path, directory: Path, objectives: tuple[str, ...], done: tuple[str, ...]) -> Folder:
    """A sweep over objectives, of whose cells some are done."""
    points = tuple({"objective.name": name} for name in objectives)
    sweep = Sweep("?", "configs/causal.py:tiny", points, keep="last", analyses=())
    entries = [folders.described(cell, {}, "data") for cell in cells_of(sweep)[0]]
    source = {"sweep": "sweep.py", "sweep_hash": "0"}
    folder = folders.create(directory, sweep, base_record(sweep.recipe), entries, [], source, True)
    ledger = Ledger(directory)
    for cell in folder.cells:
        if cell.point["objective.name"] in done:
            shutil.copytree(runs / cell.point["objective.name"], folder.run(cell.id))
            with ledger.claimed(cell.id):
                ledger.begin(cell.id, 0, "")
                ledger.end(cell.id, "done", None, 20)
    return folder


def test_the_cells_of_a_sweep_are_compared_and_it_is_kept_in_its_folder(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep_of(runs, tmp_path / "sweep", ("causal", "prefix", "masked", "fim"), ("causal", "prefix", "masked"))
    assert main(["compare", str(folder.directory), *AMOUNTS]) == 0
    said = capsys.readouterr().out
    kept = json.loads((folder.directory / "compare.json").read_text())
    assert kept["yardsticks"] == ["suffixes", "probes", "baselines"]
    assert {row["run"] for row in kept["suffixes"]["ranked"]} == {"causal", "prefix"}
    assert {row["run"] for row in kept["probes"]["ranked"]} == {"causal", "prefix", "masked"}
    assert [row["run"] for row in kept["baselines"]["rows"]] == ["causal", "prefix", "masked"]
    assert [one["workdir"] for one in kept["runs"]] == [f"cells/{cell.id}" for cell in folder.cells[:3]]
    assert "the others are asked for the same suffixes among themselves" in said and "compare.json" in said


def test_a_sweep_with_one_finished_cell_is_not_compared(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep_of(runs, tmp_path / "sweep", ("causal", "masked"), ("causal",))
    assert main(["compare", str(folder.directory)]) == 2
    assert_one_sentence(capsys.readouterr().err.strip(), "1 finished cells", "let the sweep finish")
    assert not (folder.directory / "compare.json").exists()
