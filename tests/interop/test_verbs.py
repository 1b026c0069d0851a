"""`isoflop import` and `isoflop export`: someone else's model as a run, and a run as someone else's model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tokenizers
from safetensors.torch import load_file

from research.cli import measures, rundir
from research.cli.main import main
from research.data.loader import Heldout
from research.settings.families import FAMILIES
from research.train.assembly import assemble
from tests.integration.conftest import arguments, corpus, refused
from tests.interop import originals
from tests.interop.originals import hf, torch

__all__ = ["corpus", "refused"]  # fixtures of the whole commands

VOCAB = 320


@pytest.fixture(scope="module")
def tokenizer_json(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE as GPT-2 has it, and the file that names its special token."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>", "<mask>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(corpus.read_text().splitlines(), trainer)
    directory = tmp_path_factory.mktemp("tokenizer")
    made.save(str(directory / "tokenizer.json"))
    roles = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "mask_token": "<mask>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(roles | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    return directory


@pytest.fixture(scope="module", params=["llama", "bert"])
def original(request: pytest.FixtureRequest, tokenizer_json: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "original"
    wide = {**originals._WIDE, "vocab_size": VOCAB + 4}
    if request.param == "llama":
        decoder = {**originals._DECODER, **wide}
        originals.saved(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**decoder)), path, dtype=torch.bfloat16)
    else:
        originals.saved(lambda: hf.BertForMaskedLM(hf.BertConfig(**wide)), path)
    for file in tokenizer_json.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


@pytest.fixture(scope="module")
def imported(original: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("imported") / "run"
    data = ["--config.data.source=jsonl", f"--config.data.path={corpus}", "--config.evaluate.max_windows=4"]
    assert main(["import", str(original), f"--workdir={workdir}", "--json", *data]) == 0
    return workdir


def last_object(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_an_imported_model_says_where_it_is_from(imported: Path, original: Path) -> None:
    record = json.loads((imported / "config.json").read_text())
    assert record["provenance"]["imported_from"] == str(original)
    assert len(record["provenance"]["imported_sha256"]) == 64
    assert record["settings"]["data"]["sequence_length"] == originals.POSITIONS
    brain = "bfloat16" if record["provenance"]["architecture"].startswith("Llama") else "float32"
    assert record["settings"]["model"]["parameter_dtype"] == brain
    assert record["settings"]["model"]["vocab_size"] == VOCAB + 4


def test_an_imported_model_is_evaluated(imported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", f"--workdir={imported}", "--json"]) == 0
    found = last_object(capsys)
    assert found["step"] == 0 and np.isfinite(found["heldout_loss"])
    assert found["imported_format"] == "huggingface"


def test_an_imported_model_generates_what_transformers_does(
    imported: Path, original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = originals.loaded(original)
    tokenizer = rundir.open_tokenizer(imported)
    prompt = "The [MASK] of a list" if "Bert" in type(theirs).__name__ else "The list"
    greedy = ["--temperature=0", "--tokens=6", "--candidates=3", "--json"]
    assert main(["generate", f"--workdir={imported}", f"--prompt={prompt}", *greedy]) == 0
    found = last_object(capsys)
    with torch.no_grad():
        if "candidates" in found:
            assert [len(row) for row in found["candidates"]] == [3]
            return
        start = [tokenizer.vocabulary.bos] if tokenizer.vocabulary.begins else []
        ids = [*start, *tokenizer.encode(prompt).tolist()]
        logits = originals.logits(theirs.float(), np.array([[*ids, *found["tokens"]]]))[0]
    special = [token for token in tokenizer.vocabulary.special if token != tokenizer.vocabulary.eos]
    logits[:, special] = -torch.inf
    for place, token in enumerate(found["tokens"], len(ids) - 1):
        assert logits[place].max() - logits[place, token] < 1e-3


def test_an_imported_model_is_not_trained_on(imported: Path, refused: Callable[[list[str]], str]) -> None:
    said = refused(["train", f"--config={imported}/config.json", f"--workdir={imported}"])
    assert "imported" in said and "new --workdir" in said


def test_an_import_is_exported_as_it_came(
    imported: Path, original: Path, tmp_path: Path, refused: Callable[[list[str]], str]
) -> None:
    command = ["export", f"--workdir={imported}", f"--to={tmp_path}/out"]
    assert main(command) == 0
    before, after = (load_file(place / "model.safetensors") for place in (original, tmp_path / "out"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name
    assert originals.config_of(original) == originals.config_of(tmp_path / "out")
    theirs, ours = (hf.AutoTokenizer.from_pretrained(place) for place in (original, tmp_path / "out"))
    assert theirs("a list of  words\n")["input_ids"] == ours("a list of  words\n")["input_ids"]
    assert "exists already" in refused(command)


def test_what_is_not_imported(original: Path, imported: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "holds a run already" in refused(["import", str(original), f"--workdir={imported}"])
    new = f"--workdir={tmp_path}/new"
    assert "model.embed_dim" in refused(["import", str(original), new, "--config.model.embed_dim=32"])
    assert "positions" in refused(["import", str(original), new, "--config.data.sequence_length=25"])
    assert "optimizer.ema_decay=0.9" in refused(["import", str(original), new, "--config.optimizer.ema_decay=0.9"])
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((original / name).read_bytes())
    assert "no tokenizer" in refused(["import", str(bare), new])
    definition = json.loads((original / "tokenizer.json").read_text())
    definition["added_tokens"].append({**definition["added_tokens"][0], "content": "<new>", "id": VOCAB + 9})
    (bare / "tokenizer.json").write_text(json.dumps(definition))
    assert "330 ids" in (said := refused(["import", str(bare), new])) and "324 rows" in said
    assert not (tmp_path / "new" / "config.json").exists()


def test_weights_that_are_not_numbers(tmp_path: Path, tokenizer_json: Path, refused: Callable[..., str]) -> None:
    def case() -> Any:
        made = hf.LlamaForCausalLM(hf.LlamaConfig(**{**originals._DECODER, "vocab_size": VOCAB}))
        made.model.norm.weight.data[0] = torch.nan
        return made

    originals.saved(case, tmp_path / "model")
    for file in tokenizer_json.iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    said = refused(["import", str(tmp_path / "model"), f"--workdir={tmp_path}/run"])
    assert "final_norm/scale" in said and "NaN" in said


# --- models that were trained here ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("gpt2") / "run"
    preset = {f"model__{name}": value for name, value in FAMILIES["gpt2"].items()}
    shape = {"model__num_layers": 1, "model__num_heads": 4, "train__num_steps": 3, "evaluate__num_samples": 0}
    averaged = {"optimizer__ema_decay": 0.9}  # what is exported are the weights that are evaluated
    assert main(arguments(workdir, corpus, **preset, **shape, **averaged)) == 0
    return workdir


def test_a_run_gives_the_same_heldout_loss_in_transformers(trained: Path, tmp_path: Path) -> None:
    assert main(["export", f"--workdir={trained}", f"--to={tmp_path}/out"]) == 0
    theirs, ours = originals.loaded(tmp_path / "out"), rundir.open_tokenizer(trained)
    summary = json.loads((trained / "summary.json").read_text())
    expected = originals.weighted_loss(theirs, heldout_batches(trained))
    assert summary["heldout_loss"] == pytest.approx(expected, rel=1e-4)

    text = "def words(text: str) -> list:\n\treturn text.split()  # na\u00efve \u4e2d"
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ours.encode(text).tolist()
    assert tokenizer(text)["input_ids"][0] == ours.vocabulary.bos == tokenizer.bos_token_id
    assert tokenizer.decode(ours.encode(text).tolist()) == text


def heldout_batches(workdir: Path) -> list[dict[str, np.ndarray]]:
    settings, provenance = rundir.open_settings(workdir)
    prepared = rundir.open_recorded_data(settings, provenance)
    assembly = assemble(settings, prepared.tokenizer.vocabulary, devices=jax.devices()[:1])
    heldout: Heldout = measures.heldout_batches(assembly, prepared)
    return [heldout.batch(index) for index in range(heldout.num_batches)]


def test_a_run_that_transformers_has_no_model_for(
    trained: Path, tmp_path: Path, refused: Callable[[list[str]], str]
) -> None:
    record = json.loads((trained / "config.json").read_text())
    record["settings"]["model"]["position"] = "alibi"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    (tmp_path / "run" / "tokenizer.model").write_bytes((trained / "tokenizer.model").read_bytes())
    said = refused(["export", f"--workdir={tmp_path}/run", f"--to={tmp_path}/out"])
    assert "model.position=alibi" in said and not (tmp_path / "out").exists()


def test_an_export_is_stopped_before_it_starts(trained: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    command = ["export", f"--workdir={trained}", f"--to={tmp_path}/out"]
    assert "seed" in refused([*command, "--config.seed=1"])
    assert "step 9" in refused([*command, "--step=9"])
    assert not (tmp_path / "out").exists()
