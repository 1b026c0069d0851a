"""A user's mistake gets one sentence that names it, and nothing that was written is lost."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from research.cli.main import main
from research.data import prepare
from tests.integration.conftest import ROOT, arguments, losses

Refused = Callable[[list[str]], str]


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("bad") / "run"
    assert main(arguments(workdir, corpus)) == 0
    return workdir


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__num_step": 5}, ["unknown key train.num_step", "did you mean train.num_steps"]),
        ({"train__num_steps": 0}, ["train.num_steps=0", "at least 1"]),
        ({"train__num_steps": "many"}, ["train.num_steps=many", "integer"]),
        ({"model__num_heads": 5}, ["model.num_heads=5", "model.embed_dim=32"]),
        ({"optimizer__warmup_steps": 100}, ["optimizer.warmup_steps=100", "train.num_steps=12"]),
        ({"train__batch_size": 12}, ["train.batch_size=12", "8"]),
        ({"train__accumulation": 3}, ["train.accumulation=3", "train.batch_size=8"]),
        ({"parallel__mesh__fsdp": 3}, ["parallel.mesh.fsdp=3", "8 devices"]),
        ({"parallel__preset": "tp", "model__num_heads": 4}, ["model.num_heads=4", "parallel.mesh.tensor=8"]),
        ({"data__path": "/nowhere/at/all.jsonl"}, ["data.path", "/nowhere/at/all.jsonl"]),
        ({"data__text_key": "body"}, ["topics.jsonl", "body"]),
        ({"data__source": "docstrings"}, ["data.path=", "data.source=docstrings"]),
        ({"data__num_tokens": 10**9}, ["data.num_tokens=1000000000"]),
        ({"data__sequence_length": 10**6}, ["sequence"]),
        ({"tokenizer__vocab_size": 100_000}, ["tokenizer.vocab_size=100000"]),
        ({"objective__name": "maskd"}, ["objective.name='maskd'", "masked"]),
        ({"optimizer__groups": "nothing=0.5"}, ["optimizer.groups", "nothing=0.5"]),
        ({"parallel__attention": "splash"}, ["parallel.attention=splash", "TPU"]),
    ],
)
def test_settings(corpus: Path, tmp_path: Path, refused: Refused, changes: dict, words: list[str]) -> None:
    said = refused(arguments(tmp_path / "run", corpus, **changes))
    assert all(word in said for word in words), said


@pytest.mark.parametrize("changes", [{"optimizer__groups": "nothing=0.5"}, {"train__batch_size": 12}])
def test_a_mistake_leaves_no_record_that_holds_the_next_attempt_to_it(
    corpus: Path, tmp_path: Path, refused: Refused, changes: dict
) -> None:
    refused(arguments(tmp_path / "run", corpus, **changes))
    assert not (tmp_path / "run" / "config.json").exists()


def test_empty_corpus(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    assert "empty.jsonl" in refused(arguments(tmp_path / "run", tmp_path / "empty.jsonl"))


def test_damaged_line_of_a_corpus(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "torn.jsonl").write_text('{"text": "good"}\n{"text": "to')
    said = refused(arguments(tmp_path / "run", tmp_path / "torn.jsonl"))
    assert "torn.jsonl" in said and "2" in said


def test_a_recipe_or_run_that_is_not_there(tmp_path: Path, refused: Refused) -> None:
    assert "configs/cusal.py" in refused(["train", "--config=configs/cusal.py:tiny", f"--workdir={tmp_path}"])
    assert "'9m'" in refused(["train", f"--config={ROOT}/configs/causal.py:9m", f"--workdir={tmp_path}"])
    assert str(tmp_path / "no") in refused(["evaluate", f"--workdir={tmp_path / 'no'}"])
    assert "--stepz=3" in refused(["evaluate", f"--workdir={tmp_path / 'no'}", "--stepz=3"])


def test_another_run_in_the_same_directory(run: Path, corpus: Path, refused: Refused) -> None:
    before = (run / "metrics.jsonl").read_bytes()
    said = refused(arguments(run, corpus, model__embed_dim=64))
    assert "model.embed_dim was 32, now 64" in said
    assert "train.num_steps was 12, now 24" in refused(arguments(run, corpus, train__num_steps=24))
    assert (run / "metrics.jsonl").read_bytes() == before


def test_checkpoint_of_another_model(run: Path, corpus: Path, tmp_path: Path, refused: Refused) -> None:
    assert main(arguments(tmp_path / "run", corpus, model__embed_dim=64)) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(run / "checkpoints", tmp_path / "run" / "checkpoints")
    said = refused(arguments(tmp_path / "run", corpus, model__embed_dim=64))
    assert "embedding/tokens" in said and "512" in said and "64" in said
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").glob("0*")) == ["00000010", "00000012"]


def test_damaged_data(
    run: Path, corpus: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(prepare.cache_directory() / "prepared", cache / "prepared")
    monkeypatch.setenv("ISOFLOP_CACHE", str(cache))
    for shard in cache.rglob("train-00000.bin"):
        content = bytearray(shard.read_bytes())
        content[100] ^= 1
        shard.write_bytes(content)
    assert "train-00000.bin" in refused(arguments(tmp_path / "run", corpus))
    for shard in cache.rglob("train-00000.bin"):
        shard.write_bytes(shard.read_bytes()[:-2])
    assert "train-00000.bin" in refused(arguments(run, corpus))
    assert len(losses(run)) == 12


def test_tokenizer_of_other_data(
    run: Path, corpus: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(prepare.cache_directory() / "prepared", cache / "prepared")
    monkeypatch.setenv("ISOFLOP_CACHE", str(cache))
    for model in cache.rglob("tokenizer.model"):
        model.write_bytes(model.read_bytes() + b"\0")
    assert "tokenizer.model" in refused(arguments(tmp_path / "run", corpus))


def test_a_workdir_that_cannot_be_written(corpus: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("something else")
    said = refused(arguments(tmp_path / "file" / "run", corpus))
    assert str(tmp_path / "file") in said and "--workdir" in said


def test_a_prompt_beyond_the_context(run: Path, refused: Refused) -> None:
    assert "context of 32" in refused(["generate", f"--workdir={run}", "--prompt=" + "word " * 40])
    assert "temperature=-1" in refused(["generate", f"--workdir={run}", "--prompt=a", "--temperature=-1"])


def test_a_document_longer_than_the_context_is_cut_and_nothing_of_it_lost(corpus: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.jsonl"
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    long.write_text("".join(json.dumps({"text": text}) + "\n" for text in ["\n".join(texts), *texts]))
    assert main(arguments(tmp_path / "run", long, train__num_steps=2)) == 0
    assert "longer" in (tmp_path / "run" / "data_card.md").read_text()


def test_a_full_disk_is_said_and_the_run_goes_on_elsewhere(corpus: Path, tmp_path: Path, refused: Refused) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        said = refused(arguments(disk / "run", corpus))
        assert str(disk / "run") in said and "make room" in said
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_run_without_its_config(run: Path, corpus: Path, tmp_path: Path, refused: Refused) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    assert "without its config.json" in refused(arguments(tmp_path / "run", corpus, seed=9))
    assert len(losses(tmp_path / "run")) == 12


def test_a_run_whose_checkpoints_are_gone_keeps_its_record(run: Path, corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert main(arguments(tmp_path / "run", corpus)) == 0
    assert (tmp_path / "run" / "metrics.before-1.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    assert (tmp_path / "run" / "summary.before-1.json").exists()
    assert losses(tmp_path / "run") == losses(run)


def test_a_machine_reads_the_mistake_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", f"--workdir={tmp_path}", "--json"]) == 2
    assert "not a run directory" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--seed=-1"], "--seed=-1"), (["--candidates=0"], "--candidates=0"), (["--stop="], "--stop=")],
)
def test_options_of_generate(run: Path, refused: Refused, options: list[str], words: str) -> None:
    assert words in refused(["generate", f"--workdir={run}", "--prompt=a", *options])


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("def get_config(:\n", "line 1"),
        ("def get_config():\n    return None\n", "NoneType"),
        ("get = 1\n", "get_config"),
    ],
)
def test_recipes_that_are_none(tmp_path: Path, refused: Refused, recipe: str, words: str) -> None:
    (tmp_path / "mine.py").write_text(recipe)
    said = refused(["train", f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}"])
    assert words in said and "mine.py" in said
