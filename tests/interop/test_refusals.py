"""What cannot be imported or exported is refused with one sentence that names it."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as torch_
from safetensors.torch import load_file, save_file

from research.errors import UserError
from research.interop import huggingface
from research.interop.directory import open_directory
from research.models import build
from research.settings import ModelSettings, Settings
from tests.interop import originals
from tests.small import CPU, assert_one_sentence


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def one(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "original"
            originals.saved(originals.CASES[name], made[name])
        return made[name]

    return one


@pytest.fixture
def copied(source: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    def one(name: str) -> Path:
        return Path(shutil.copytree(source(name), tmp_path / name))

    return one


def refused(path: Path, *mentioned: str) -> None:
    with pytest.raises(UserError) as caught:
        open_directory(path)
    assert_one_sentence(str(caught.value).replace(str(path), "DIRECTORY"), *mentioned)


CONFIGS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("llama", {"model_type": "mamba"}, ("model_type", "mamba")),
    ("llama", {"architectures": ["LlamaForSequenceClassification"]}, ("LlamaForSequenceClassification",)),
    ("llama", {"architectures": True}, ("architectures", "True")),
    ("llama", {"max_position_embeddings": None}, ("config.json", "no max positions")),
    ("llama", {"vocab_size": None}, ("config.json", "no vocab size")),
    ("llama", {"hidden_act": "relu"}, ("hidden_act", "relu")),
    ("llama", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, ("rope_type", "longrope")),
    ("llama", {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, ("rope_type", "dynamic")),
    ("llama", {"partial_rotary_factor": 0.5}, ("partial_rotary_factor", "0.5")),
    ("llama", {"attention_bias": True}, ("attention_bias", "True", "mlp_bias")),
    ("llama", {"quantization_config": {"quant_method": "gptq"}}, ("quantization_config", "gptq")),
    ("llama", {"hidden_size": "16"}, ("model.embed_dim", "'16'")),
    ("llama", {"num_attention_heads": 3}, ("num_kv_heads", "3")),
    ("llama", {"hidden_size": None}, ("model.embed_dim", "None")),
    ("llama", {"hidden_size": 32, "head_dim": 4}, ("shape", "[99, 16]", "[99, 32]")),
    ("llama", {"num_hidden_layers": 3}, ("lacks the tensors", "model.layers.2.input_layernorm.weight")),
    ("llama", {"num_hidden_layers": 1}, ("no place for", "model.layers.1.input_layernorm.weight")),
    (
        "llama-biases",
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5}},
        ("attention_factor", "1.5"),
    ),
    ("gpt2", {"activation_function": "tanh"}, ("activation_function", "tanh")),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, ("scale_attn_by_inverse_layer_idx", "True")),
    ("qwen3", {"attention_bias": True}, ("attention_bias", "True")),
    ("gemma2", {"layer_types": ["chunked_attention", "full_attention"]}, ("layer_types", "chunked_attention")),
    ("gemma2", {"use_bidirectional_attention": True}, ("use_bidirectional_attention", "True")),
    ("bert", {"is_decoder": True}, ("is_decoder", "True")),
    ("bert", {"position_embedding_type": "relative_key"}, ("position_embedding_type", "relative_key")),
    ("roberta", {"hidden_act": "relu"}, ("hidden_act", "relu")),
    ("modernbert", {"classifier_activation": "relu"}, ("classifier_activation", "relu")),
    ("modernbert", {"mlp_bias": True}, ("attention_bias", "mlp_bias")),
    ("t5", {"feed_forward_proj": "gated-relu"}, ("feed_forward_proj", "relu")),
    ("marian", {"share_encoder_decoder_embeddings": False}, ("share_encoder_decoder_embeddings", "False")),
    ("marian", {"decoder_ffn_dim": 32}, ("decoder_ffn_dim", "32")),
    ("marian", {"decoder_vocab_size": 98}, ("decoder_vocab_size", "98")),
]


@pytest.mark.parametrize(("name", "changes", "mentioned"), CONFIGS, ids=lambda value: str(value)[:40])
def test_a_config_that_the_core_cannot_be(
    name: str, changes: dict[str, Any], mentioned: tuple[str, ...], copied: Callable[[str], Path]
) -> None:
    path = copied(name)
    values = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(values))
    refused(path, *mentioned)


def change_tensors(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")
    return path


def test_a_config_that_is_not_whole(copied: Callable[[str], Path]) -> None:
    path = copied("llama")
    values = json.loads((path / "config.json").read_text())
    del values["hidden_size"]
    (path / "config.json").write_text(json.dumps(values))
    refused(path, "hidden_size")
    (path / "config.json").write_text("[]")
    refused(path, "config.json", "JSON object")
    (path / "config.json").write_text("{")
    refused(path, "config.json", "JSON")
    (path / "config.json").unlink()
    refused(path, "config.json")
    refused(path / "nowhere", "no directory")


def test_tensors_that_are_missing_left_over_or_of_another_kind(copied: Callable[[str], Path]) -> None:
    path = copied("gpt2")
    change_tensors(path, lambda tensors: tensors.pop("transformer.h.1.ln_2.bias"))
    refused(path, "lacks the tensors transformer.h.1.ln_2.bias")
    change_tensors(path, lambda tensors: tensors.update({"transformer.h.1.ln_2.bias": torch_.zeros(17)}))
    refused(path, "transformer.h.1.ln_2.bias", "[17]", "[16]")
    change_tensors(path, lambda tensors: tensors.update({"transformer.h.1.ln_2.bias": torch_.zeros(16, dtype=int)}))
    refused(path, "transformer.h.1.ln_2.bias", "int64")
    change_tensors(path, lambda tensors: tensors.update({"transformer.h.1.ln_2.bias": torch_.zeros(16)}))
    change_tensors(path, lambda tensors: tensors.update({"transformer.extra.weight": torch_.zeros(1)}))
    refused(path, "no place for", "transformer.extra.weight")


def test_two_tensors_that_should_be_one(copied: Callable[[str], Path]) -> None:
    path = copied("gpt2")
    change_tensors(path, lambda tensors: tensors.update({"lm_head.weight": tensors["transformer.wte.weight"].clone()}))
    open_directory(path)
    change_tensors(path, lambda tensors: tensors["lm_head.weight"].add_(1.0))
    refused(path, "lm_head.weight", "transformer.wte.weight", "tie_word_embeddings")


def test_pickles_are_not_opened(copied: Callable[[str], Path]) -> None:
    path = copied("llama")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    refused(path, "pytorch_model.bin", "pickle", "model.safetensors")
    (path / "pytorch_model.bin").unlink()
    refused(path, "no weights", "model.safetensors")


def damages(content: bytes) -> Iterator[bytes]:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    yield b""
    yield content[:4]
    yield (2**60).to_bytes(8, "little") + content[8:]
    yield content[:-1]
    yield content[:8] + b"x" * length + content[8 + length :]
    for change in ({"data_offsets": [0, 10**12]}, {"shape": [-1]}, {"data_offsets": [-4, 0]}, {"dtype": 3}):
        name = next(name for name in header if name != "__metadata__")
        text = json.dumps(header | {name: header[name] | change}).encode()
        yield len(text).to_bytes(8, "little") + text + content[8 + length :]


def test_damaged_files(copied: Callable[[str], Path]) -> None:
    path = copied("llama")
    content = (path / "model.safetensors").read_bytes()
    for damaged in damages(content):
        (path / "model.safetensors").write_bytes(damaged)
        refused(path)


@pytest.mark.parametrize("place", ["../outside.safetensors", "/etc/hostname", "sub/model.safetensors", "model.bin"])
def test_an_index_leads_nowhere_else(place: str, copied: Callable[[str], Path]) -> None:
    path = copied("llama")
    (path / "model.safetensors").rename(path.parent / "outside.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": place}}))
    refused(path, place)


def test_an_index_of_what_is_not_there(copied: Callable[[str], Path]) -> None:
    path = copied("llama")
    (path / "model.safetensors").rename(path / "part.safetensors")
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "other.safetensors"}}))
    refused(path, "other.safetensors", "missing")
    index.write_text(json.dumps({"weight_map": {"lm_head.wait": "part.safetensors"}}))
    refused(path, "lm_head.wait")
    index.write_text("{}")
    refused(path, "weight_map")


def test_nothing_is_overwritten_and_nothing_half_written_stays(
    source: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, params = huggingface.load(source("gpt2"))
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="exists already"):
        huggingface.save(tmp_path / "there", ours, params)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("research.interop.storage.write_file", full)
    with pytest.raises(UserError, match="No space left"):
        huggingface.save(tmp_path / "new", ours, params)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    with pytest.raises(UserError, match="they lack final_norm/bias"):
        huggingface.save(tmp_path / "new", ours, {"embedding": params["embedding"]})


@pytest.mark.parametrize(
    ("changes", "objective", "mentioned"),
    [
        ({"position": "alibi"}, "causal", "model.position=alibi"),
        ({"norm": "layernorm"}, "causal", "model.norm=layernorm"),
        ({"expert_capacity": 1.0, "num_experts": 4, "tied_embeddings": False}, "causal", "model.expert_capacity=1.0"),
        ({}, "masked", "objective.name=masked"),
        ({"architecture": "lstm"}, "causal", "model.architecture=lstm"),
    ],
)
def test_a_model_that_transformers_does_not_have(changes: dict[str, Any], objective: str, mentioned: str) -> None:
    shape = {"num_layers": 2, "embed_dim": 16, "vocab_size": 99, "max_positions": 16}
    model = build(Settings(model=ModelSettings(**shape, **changes)), CPU)
    with pytest.raises(UserError) as caught:
        huggingface.of_core(model, objective)
    assert_one_sentence(str(caught.value), mentioned)


def test_inputs_that_are_missing(source: Callable[[str], Path]) -> None:
    ours, params = huggingface.load(source("t5"))
    with pytest.raises(UserError, match="decoder_tokens"):
        ours.apply(params, np.ones((1, 3), np.int64))


@pytest.mark.parametrize("tokens", [np.ones(3, np.int32), np.ones((1, 3), np.float32)])
def test_tokens_that_are_no_rows_of_ids(tokens: np.ndarray, source: Callable[[str], Path]) -> None:
    ours, _ = huggingface.load(source("llama"))
    with pytest.raises(UserError) as caught:
        ours._side(tokens, None, None, None)
    assert_one_sentence(str(caught.value), str(tokens.dtype), "integers [batch, seq]")
