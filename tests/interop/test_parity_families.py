"""Every family against `transformers`: logits, loss, gradients, padding, packing, and the way back."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.torch import load_file

from research import trees
from research.interop import huggingface
from research.interop.directory import pieces
from research.interop.families import family_of
from research.interop.huggingface import Pretrained
from research.interop.weights import stored
from research.kernels.choice import REFERENCE
from tests.interop import originals
from tests.interop.originals import VOCAB, torch
from tests.small import jit

LENGTH = 12
# Three rows: one document, a shorter one with padding, and two that are packed. Lengths of documents, by row.
ROWS = ((12,), (9,), (5, 7))
DECODER_ROWS = ((8,), (6,), (3, 5))
DECODER_LENGTH = 8


class Side(NamedTuple):
    """Tokens of one side of a model, packed into rows, and apart."""

    tokens: np.ndarray
    segment_ids: np.ndarray
    documents: list[tuple[int, slice]]


def packed(rows: tuple[tuple[int, ...], ...], length: int, seed: int) -> Side:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, VOCAB, (len(rows), length))
    segment_ids, documents = np.zeros_like(tokens), []
    for row, lengths in enumerate(rows):
        start = 0
        for number, size in enumerate(lengths, 1):
            segment_ids[row, start : start + size] = number
            documents.append((row, slice(start, start + size)))
            start += size
    return Side(np.where(segment_ids > 0, tokens, 0), segment_ids, documents)


TOKENS, DECODER = packed(ROWS, LENGTH, 0), packed(DECODER_ROWS, DECODER_LENGTH, 1)
TYPES = np.random.default_rng(2).integers(0, 2, TOKENS.tokens.shape) * (TOKENS.segment_ids > 0)


class Both(NamedTuple):
    """A model of `transformers`, and ours of the same files."""

    path: Path
    theirs: Any
    ours: Pretrained
    params: Any

    @property
    def target(self) -> Side:
        """What the logits are of."""
        return DECODER if self.theirs.config.is_encoder_decoder else TOKENS

    def arguments(self) -> dict[str, Any]:
        if self.theirs.config.is_encoder_decoder:
            return {"decoder_tokens": DECODER.tokens, "decoder_segment_ids": DECODER.segment_ids}
        return {"types": TYPES} if self.ours.core.settings.token_types > 1 else {}

    def document(self, number: int) -> Any:
        """Their logits of one document alone."""
        row, part = TOKENS.documents[number]
        more: dict[str, Any] = {}
        if self.theirs.config.is_encoder_decoder:
            own, other = DECODER.documents[number]
            more["decoder_tokens"] = DECODER.tokens[own : own + 1, other]
        elif "types" in self.arguments():
            more["token_type_ids"] = TYPES[row : row + 1, part]
        return originals.logits(self.theirs, TOKENS.tokens[row : row + 1, part], **more)[0]


@pytest.fixture(scope="module", params=list(originals.CASES))
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    path = tmp_path_factory.mktemp(request.param) / "original"
    theirs = originals.saved(originals.CASES[request.param], path)
    return Both(path, theirs, *huggingface.load(path))


class Computed(NamedTuple):
    logits: np.ndarray
    loss: float
    gradients: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def compute(both: Both) -> Callable[[dict[str, Any]], Computed]:
    """Ours, compiled once for rows of these lengths; the reference kernels, to which others are compared elsewhere."""
    core, side = dataclasses.replace(both.ours.core, kernels=REFERENCE), both.target
    targets, weights = jnp.asarray(targets_of(side), jnp.int32), jnp.asarray(side.segment_ids > 0, jnp.float32)

    def loss(params: Any, inputs: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        hidden = core.apply(params, inputs, pattern=both.ours.pattern).hidden
        flat = hidden.reshape(-1, hidden.shape[-1])
        total = core.vocabulary_loss(params, flat, targets.reshape(-1), weights.reshape(-1)).total
        return total / weights.sum(), core.unembed(params, hidden)

    compiled = jit(jax.value_and_grad(loss, has_aux=True))

    def run(inputs: dict[str, Any]) -> Computed:
        (value, logits), gradients = compiled(both.params, inputs)
        every = pieces(both.ours.family, core, both.ours.parts)
        named = {tensor.name: tensor.make() for tensor in stored(trees.flatten(gradients), every)}
        return Computed(np.asarray(logits), float(value), named)

    return run


@pytest.fixture(scope="module")
def computed(both: Both, compute: Callable[[dict[str, Any]], Computed]) -> Computed:
    """All documents in one batch."""
    return compute(both.ours.inputs(TOKENS.tokens, TOKENS.segment_ids, **both.arguments()))


def targets_of(side: Side) -> np.ndarray:
    return (side.tokens * 7 + 3) % VOCAB


def test_logits_of_whole_padded_and_packed_documents(both: Both, computed: Computed) -> None:
    for number, (row, part) in enumerate(both.target.documents):
        with torch.no_grad():
            expected = both.document(number).numpy()
        found = computed.logits[row, part]
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max(), f"document {number}"


def test_logits_beside_padding_are_those_of_an_attention_mask(
    both: Both, compute: Callable[[dict[str, Any]], Computed]
) -> None:
    mask = (TOKENS.segment_ids > 0).astype(np.int64)
    more = {name: array for name, array in both.arguments().items() if name == "decoder_tokens"}
    with torch.no_grad():
        expected = originals.logits(both.theirs, TOKENS.tokens, attention_mask=mask, **more).numpy()
    types = {"types": np.zeros_like(TYPES)} if "types" in both.arguments() else {}
    found = compute(both.ours.inputs(TOKENS.tokens, attention_mask=mask, **more, **types)).logits
    real = (both.target.segment_ids > 0)[..., None]
    assert np.abs((found - expected) * real).max() <= 1e-4 * np.abs(expected * real).max()


def test_loss_and_all_gradients(both: Both, computed: Computed) -> None:
    targets, total = torch.tensor(targets_of(both.target)), torch.zeros(())
    for number, (row, part) in enumerate(both.target.documents):
        total += torch.nn.functional.cross_entropy(both.document(number), targets[row, part], reduction="sum")
    total = total / float((both.target.segment_ids > 0).sum())
    both.theirs.zero_grad()
    total.backward()
    assert computed.loss == pytest.approx(total.item(), rel=1e-4)
    theirs = {name: p.grad.numpy() for name, p in both.theirs.named_parameters() if p.grad is not None}
    names = fused(theirs, computed.gradients)
    assert len(names) >= 10
    largest = max(np.abs(theirs[name]).max() for name in names)
    for name in names:
        scale = max(np.abs(theirs[name]).max(), 1e-2 * largest)
        assert np.abs(computed.gradients[name] - theirs[name]).max() <= 1e-4 * scale, name


def fused(theirs: dict[str, np.ndarray], ours: dict[str, np.ndarray]) -> list[str]:
    """The names that both have; the experts of Mixtral, which `transformers` holds fused, are put together first."""
    for name in [name for name in theirs if ".mlp.experts." in name or ".mlp.gate.weight" in name]:
        block = name.split(".mlp.")[0] + ".block_sparse_moe"
        count = sum(found.startswith(f"{block}.experts.") and found.endswith("w1.weight") for found in ours)
        parts = {
            n: np.stack([ours[f"{block}.experts.{i}.{n}.weight"] for i in range(count)]) for n in ("w1", "w2", "w3")
        }
        if name.endswith("gate_up_proj"):
            ours[name] = np.concatenate([parts["w1"], parts["w3"]], axis=1)
        else:
            ours[name] = parts["w2"] if name.endswith("down_proj") else ours[f"{block}.gate.weight"]
    return sorted(theirs.keys() & ours.keys())


def test_import_then_export_is_the_identity(both: Both, tmp_path: Path) -> None:
    huggingface.save(tmp_path / "again", both.ours, both.params)
    before, after = (load_file(path / "model.safetensors") for path in (both.path, tmp_path / "again"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype, name
        assert tensor.numpy().tobytes() == after[name].numpy().tobytes(), name
    assert originals.config_of(tmp_path / "again") == originals.config_of(both.path)


def test_a_config_of_our_settings_is_the_same_model(both: Both, tmp_path: Path) -> None:
    assert family_of(both.ours.core.settings, both.ours.objective) is both.ours.family
    made = dataclasses.replace(both.ours, config={})
    huggingface.save(tmp_path / "ours", made, both.params)
    again = originals.loaded(tmp_path / "ours")
    with torch.no_grad():
        found = Both(tmp_path, again, both.ours, both.params).document(0).numpy()
        expected = both.document(0).numpy()
    np.testing.assert_array_equal(found, expected)
