import dataclasses
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from research import trees
from research.errors import UserError
from research.interop.family import different
from research.interop.gguf import open_gguf, write_gguf
from research.interop.gguf_architectures import ARCHITECTURES, architecture_of, rotary_factors
from research.interop.source import Leaf
from research.kernels import Pattern
from research.kernels.choice import REFERENCE
from research.models import Model, build
from research.settings import ModelSettings, Settings
from research.settings.families import FAMILIES

gguf = pytest.importorskip("gguf")

VOCAB = 96
SHAPE = {
    "num_layers": 3,
    "embed_dim": 64,
    "num_heads": 4,
    "num_kv_heads": 2,
    "mlp_dim": 96,
    "max_positions": 64,
}
# Models by name: the architecture of their file, and settings. Qwen3 and Mistral have the values that transformers,
# which does not read them from a GGUF, supposes.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**FAMILIES["llama"], "head_dim": 24, "rotary_base": 5e5}),
    "llama_tied": ("llama", {**FAMILIES["llama"], "tied_embeddings": True}),
    "mistral": ("llama", {**FAMILIES["mistral"]}),
    "qwen2": ("qwen2", FAMILIES["qwen2"]),
    "qwen3": ("qwen3", {**FAMILIES["qwen3"], "head_dim": 128}),
    "gemma": ("gemma", {**FAMILIES["gemma"], "head_dim": 24}),
    "gemma2": ("gemma2", {**FAMILIES["gemma2"], "head_dim": 16, "attention_window": 7}),
    "gpt2": ("gpt2", {**FAMILIES["gpt2"], "num_kv_heads": None}),
    "mixtral": ("llama", {**FAMILIES["mixtral"], "num_experts": 4}),
    "linear": ("llama", {**FAMILIES["llama"], "rotary_scaling": "linear", "rotary_factor": 4.0}),
    "yarn": (
        "qwen2",
        FAMILIES["qwen2"]
        | {
            "rotary_scaling": "yarn",
            "rotary_factor": 4.0,
            "rotary_original_length": 16,
            "rotary_low": 1.0,
            "rotary_high": 32.0,
        },
    ),
    "llama3": (
        "llama",
        FAMILIES["llama"] | {"rotary_scaling": "llama3", "rotary_factor": 8.0, "rotary_original_length": 8192},
    ),
}


def settings_of(name: str) -> ModelSettings:
    return ModelSettings(**{**SHAPE, **MODELS[name][1]})


def model_of(settings: ModelSettings, vocab_size: int = VOCAB) -> Model:
    return build(Settings(model=dataclasses.replace(settings, vocab_size=vocab_size)), REFERENCE)


def random_weights(settings: ModelSettings, vocab_size: int = VOCAB) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        path: (parameter.mean + rng.normal(0, max(parameter.fan_in, 25) ** -0.5, parameter.shape)).astype(np.float32)
        for path, parameter in model_of(settings, vocab_size).parameters().items()
    }


def whole(leaf: Leaf) -> np.ndarray:
    return leaf.read(tuple(slice(0, size) for size in leaf.shape))


def logits(model: Model, flat: Mapping[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    params = trees.unflatten({path: jnp.asarray(value, jnp.float32) for path, value in flat.items()})
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    inputs = {"tokens": tokens, "segment_ids": np.ones_like(tokens), "positions": positions}

    @jax.jit
    def run(params: Any, inputs: Any) -> Any:
        return model.unembed(params, model.apply(params, inputs, pattern=Pattern(causal=True)).hidden)

    return np.asarray(run(params, {name: jnp.asarray(value) for name, value in inputs.items()}))


def written(folder: Path, name: str, dtype: str = "float32") -> tuple[Path, dict[str, np.ndarray]]:
    settings, path = dataclasses.replace(settings_of(name), vocab_size=VOCAB), folder / f"{name}.gguf"
    weights = random_weights(settings)
    write_gguf(path, settings, VOCAB, weights, None, dtype)
    return path, weights


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_reading_gives_back_what_was_written(tmp_path: Path, name: str) -> None:
    path, weights = written(tmp_path, name)
    source = open_gguf(path)
    assert gguf.GGUFReader(path).fields["general.architecture"].contents() == MODELS[name][0]
    assert architecture_of(source.model).name == MODELS[name][0]
    assert different(settings_of(name), source.model) == []
    assert source.model.max_positions == SHAPE["max_positions"]
    assert (source.vocab_size, source.objective, source.tokenizer) == (VOCAB, "causal", None)
    assert source.leaves.keys() == weights.keys()
    raised = ARCHITECTURES[MODELS[name][0]].raised_norms
    for where, leaf in source.leaves.items():
        assert leaf.shape == weights[where].shape and leaf.dtype == np.float32
        rounding = 1e-7 if raised and "norm" in where else 0.0  # of adding one
        np.testing.assert_allclose(whole(leaf), weights[where], rtol=0, atol=rounding, err_msg=where)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_matrices_keep_their_type_and_vectors_are_float32(tmp_path: Path, dtype: Any) -> None:
    path, weights = written(tmp_path, "qwen2", np.dtype(dtype).name)
    source = open_gguf(path)
    assert source.model.parameter_dtype == ("bfloat16" if dtype is ml_dtypes.bfloat16 else "float32")
    for where, leaf in source.leaves.items():
        vector = "norm" in where or "bias" in where
        expected = weights[where] if vector else weights[where].astype(dtype)
        assert leaf.dtype == whole(leaf).dtype == expected.dtype
        np.testing.assert_array_equal(whole(leaf), expected)
    # What is written of it again is the same file.
    write_gguf(tmp_path / "again.gguf", source.model, VOCAB, source.leaves, None, np.dtype(dtype).name)
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
def test_a_part_of_a_leaf_is_that_part_of_the_whole(tmp_path: Path, name: str) -> None:
    source = open_gguf(written(tmp_path, name)[0])
    for leaf in source.leaves.values():
        index = tuple(slice(size // 3, size - size // 4) for size in leaf.shape)
        np.testing.assert_array_equal(leaf.read(index), whole(leaf)[index])
        assert leaf.read((slice(None),) * len(leaf.shape)).shape == leaf.shape


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_tensors_are_dequantised(tmp_path: Path, kind: str) -> None:
    path, weights = written(tmp_path, "llama")
    quantised = gguf.GGMLQuantizationType[kind]
    copy = gguf.GGUFWriter(tmp_path / "quantised.gguf", "llama")
    reader = gguf.GGUFReader(path)
    for key, field in reader.fields.items():
        if key.startswith("llama."):
            copy.add_key_value(key, field.contents(), field.types[0])
    for tensor in reader.tensors:
        if len(tensor.shape) > 1:
            copy.add_tensor(tensor.name, gguf.quants.quantize(tensor.data, quantised), raw_dtype=quantised)
        else:
            copy.add_tensor(tensor.name, np.array(tensor.data))
    copy.write_header_to_file()
    copy.write_kv_data_to_file()
    copy.write_tensors_to_file()
    copy.close()
    source = open_gguf(tmp_path / "quantised.gguf")
    step = {"Q8": 1 / 127, "Q5": 1 / 15, "Q4": 1 / 7}[kind[:2]]
    for where, leaf in source.leaves.items():
        found = whole(leaf)
        assert found.dtype == np.float32
        assert np.abs(found - weights[where]).max() <= step * np.abs(weights[where]).max()


def test_one_tensor_at_a_time_is_in_memory(tmp_path: Path) -> None:
    settings = ModelSettings(**{**SHAPE, **FAMILIES["llama"], "num_layers": 24, "embed_dim": 256, "mlp_dim": 512})
    parameters = model_of(settings).parameters()
    leaves = {
        path: Leaf(p.shape, np.dtype(np.float32), lambda index: np.ones([s.stop - s.start for s in index], np.float32))
        for path, p in parameters.items()
    }
    total, largest = sum(p.size for p in parameters.values()) * 4, 256 * 512 * 4
    tracemalloc.start()
    try:
        write_gguf(tmp_path / "model.gguf", settings, VOCAB, leaves, None)
        assert tracemalloc.get_traced_memory()[1] < 6 * largest < total / 3
        source = open_gguf(tmp_path / "model.gguf")
        leaf = source.leaves["layers/mlp/up"]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        one = leaf.read((slice(3, 4), slice(0, 256), slice(0, 512)))
        assert one.shape == (1, 256, 512)
        assert tracemalloc.get_traced_memory()[1] - before < 3 * largest
    finally:
        tracemalloc.stop()


# --- transformers -----------------------------------------------------------------------------------------------------


def config_of(name: str) -> Any:
    """What transformers does not read from a file; otherwise nothing."""
    import transformers

    settings = settings_of(name)
    if name == "gpt2":
        return transformers.GPT2Config(
            vocab_size=VOCAB,
            n_positions=settings.max_positions,
            n_embd=settings.embed_dim,
            n_layer=settings.num_layers,
            n_head=settings.num_heads,
            n_inner=settings.mlp_dim,
        )
    if name == "gemma2":
        return transformers.Gemma2Config(
            vocab_size=VOCAB,
            hidden_size=settings.embed_dim,
            intermediate_size=settings.mlp_dim,
            num_hidden_layers=settings.num_layers,
            num_attention_heads=settings.num_heads,
            num_key_value_heads=settings.num_kv_heads,
            head_dim=settings.head_dim,
            query_pre_attn_scalar=settings.head_dim,
            sliding_window=8,
            max_position_embeddings=settings.max_positions,
        )
    return None


# A Mistral is loaded as a Llama: within its window they are the same.
@pytest.mark.parametrize("name", ["llama", "llama_tied", "mistral", "qwen2", "qwen3", "gemma2", "gpt2"])
def test_transformers_computes_the_same_of_the_file(tmp_path: Path, name: str) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    settings, path = settings_of(name), tmp_path / "model.gguf"
    weights = random_weights(settings)
    write_gguf(path, settings, VOCAB, weights, None)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager", config=config_of(name)
    )
    tokens = np.random.default_rng(2).integers(0, VOCAB, (2, 24), dtype=np.int32)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens.astype(np.int64))).logits.numpy()
    source = open_gguf(path)
    flat = {where: whole(leaf) for where, leaf in source.leaves.items()}
    found = logits(model_of(source.model), flat, tokens)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


# --- refusals ---------------------------------------------------------------------------------------------------------


def edited(path: Path, changes: Mapping[str, Any], tensors: Mapping[str, np.ndarray | None] | None = None) -> Path:
    """A copy of a file with other metadata (none: without them) and other tensors."""
    reader, copy = gguf.GGUFReader(path), path.with_name("edited.gguf")
    keys = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    architecture = changes.get("general.architecture", keys["general.architecture"].contents())
    writer = gguf.GGUFWriter(copy, architecture)
    for key, field in keys.items():
        if key not in changes and key != "general.architecture":
            writer.add_key_value(key, field.contents(), field.types[0], *field.types[1:])
    for key, value in changes.items():
        if value is not None and key != "general.architecture":
            kinds = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            kinds[type(value)](key, value)
    values = {tensor.name: np.array(tensor.data) for tensor in reader.tensors} | dict(tensors or {})
    for name, value in values.items():
        if value is not None:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return copy


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_gguf(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_what_is_no_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    assert "No such file" in refused(path)
    whole_file = written(tmp_path, "llama")[0].read_bytes()
    for content in (b"x", b"not a gguf" * 10, whole_file[:1000], whole_file[:-500], b"GGUF" + b"\xff" * 60):
        path.write_bytes(content)
        assert "not a GGUF file, or a damaged one" in refused(path)


@pytest.mark.parametrize(
    ("changes", "mentioned"),
    [
        ({"general.architecture": "mamba"}, "general.architecture=mamba"),
        ({"llama.block_count": None}, "llama.block_count=None"),
        ({"llama.block_count": 4}, "blk.3.attn_k.weight"),
        ({"llama.block_count": 2}, "blk.2.attn_k.weight"),
        ({"llama.embedding_length": 32}, "shape"),
        ({"llama.attention.head_count_kv": 4}, "shape"),
        ({"llama.attention.head_count_kv": 3}, "num_kv_heads=3"),
        ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count=8"),
        ({"llama.rope.scaling.type": "longrope"}, "llama.rope.scaling.type=longrope"),
        ({"llama.attention.temperature_scale": 0.5}, "llama.attention.temperature_scale=0.5"),
        ({"tokenizer.ggml.model": "rwkv"}, "tokenizer.ggml.model=rwkv"),
        ({"tokenizer.ggml.model": "gpt2"}, "tokenizer.ggml.merges is missing"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], mentioned: str) -> None:
    assert mentioned in refused(edited(written(tmp_path, "llama")[0], changes))


@pytest.mark.parametrize(
    ("tensors", "mentioned"),
    [
        ({"blk.1.ffn_up.weight": None}, "lacks the tensors blk.1.ffn_up.weight"),
        ({"token_embd.weight": None}, "lacks the tensor token_embd.weight"),
        ({"blk.1.ffn_up.scale": np.ones(4, np.float32)}, "blk.1.ffn_up.scale"),
        ({"blk.1.ffn_up.weight": np.ones((96, 32), np.float32)}, "blk.1.ffn_up.weight has the shape [96, 32]"),
        ({"blk.1.ffn_up.weight": np.ones((96, 64), np.int8)}, "type I8"),
        ({"rope_freqs.weight": np.linspace(1, 8, 12, dtype=np.float32)}, "rope_freqs.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, tensors: dict[str, np.ndarray | None], mentioned: str
) -> None:
    assert mentioned in refused(edited(written(tmp_path, "llama")[0], {}, tensors))


@pytest.mark.parametrize(
    ("changes", "mentioned"),
    [
        ({"position": "alibi"}, "model.position=alibi"),
        ({"activation": "relu"}, "model.activation=relu"),
        ({"qk_norm": True, "qkv_bias": True}, "model.q"),
        ({"attention_scale": 0.5}, "model.attention_scale=0.5"),
        ({"rotary_scaling": "ntk", "rotary_factor": 2.0}, "ntk"),
        ({"max_positions": None}, "model.max_positions"),
    ],
)
def test_a_model_that_the_format_cannot_hold_is_refused(
    tmp_path: Path, changes: dict[str, Any], mentioned: str
) -> None:
    settings = dataclasses.replace(settings_of("llama"), **changes)
    with pytest.raises(UserError) as caught:
        write_gguf(tmp_path / "model.gguf", settings, VOCAB, random_weights(settings), None)
    assert mentioned in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path: Path) -> None:
    path, weights = written(tmp_path, "llama")
    with pytest.raises(UserError, match="exists"):
        write_gguf(path, settings_of("llama"), VOCAB, weights, None)
    with pytest.raises(UserError, match="dtype=int4"):
        write_gguf(tmp_path / "other.gguf", settings_of("llama"), VOCAB, weights, None, "int4")
    with pytest.raises(UserError, match="head/table"):
        write_gguf(tmp_path / "other.gguf", settings_of("llama"), VOCAB, dict(list(weights.items())[:-1]), None)
    with pytest.raises(UserError, match="cannot be written"):
        write_gguf(path / "other.gguf", settings_of("llama"), VOCAB, weights, None)

    class Broken(dict):
        def __getitem__(self, key: str) -> np.ndarray:
            raise RuntimeError(key)

    with pytest.raises(RuntimeError):
        write_gguf(tmp_path / "other.gguf", settings_of("llama"), VOCAB, Broken(weights), None)
    assert list(tmp_path.iterdir()) == [path]


def test_scaling_by_factors_is_that_of_llama_3() -> None:
    factors = rotary_factors(settings_of("llama3"))
    assert factors.shape == (8,) and factors[0] == 1.0 and factors[-1] == pytest.approx(8.0)
