"""Generation by every way that a model can be asked: as a prefix, from an encoder, into gaps; against full passes."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.tokenizer import Tokenizer
from research.errors import UserError
from research.generate import Prompt, Sampling, generate, prompt_of, readable, writer
from research.kernels import Pattern
from research.models import Model
from research.objectives import Objective
from tests import small
from tests.objectives.cases import OBJECTIVES, TOKENIZER, VOCABULARY, mixture
from tests.small import VOCAB, assert_one_sentence

GREEDY = Sampling(temperature=0.0)
PROMPTS = [[11, 12, 13, 14, 15, 16, 17], [31], [41, 42, 43, 44]]
# Ids of the whole embedding are text here, and no row meets its end.
PLAIN = dataclasses.replace(small.VOCABULARY, size=VOCAB, eos=VOCAB - 1)
DECODER = small.model("llama", max_positions=24)
ENCODER = small.model("t5", num_layers=1, max_positions=24)


def run(
    model: Model, max_tokens: int = 6, prompts: Any = PROMPTS, vocabulary: Any = PLAIN, **changes: Any
) -> np.ndarray:
    changes = {"sampling": GREEDY, **changes}
    made = generate(model, small.weights(model), vocabulary, prompts, max_tokens=max_tokens, **changes)
    return np.stack(list(made), axis=1)


@functools.partial(small.jit, static_argnums=(0, 1))
def full_pass(model: Model, pattern: Pattern, params: Any, inputs: dict[str, Any]) -> jax.Array:
    return model.unembed(params, model.apply(params, inputs, pattern=pattern).hidden)


def best(model: Model, inputs: dict[str, Any], place: int, pattern: Pattern, never: list[int]) -> int:
    logits = np.array(full_pass(model, pattern, small.weights(model), inputs)[0, place])
    logits[never] = -np.inf
    return int(np.argmax(logits))


def padded(ids: list[int], length: int = 24) -> np.ndarray:
    return np.array([ids + [0] * (length - len(ids))], np.int32)


NEVER = [token for token in PLAIN.special if token != PLAIN.eos]


def test_a_prompt_as_a_prefix_is_seen_from_both_sides() -> None:
    pattern = Pattern(causal=True, prefix=True)
    found = run(DECODER, prefix=True)
    for row, prompt in enumerate(PROMPTS):
        ids = [PLAIN.bos, *prompt]
        for token in found[row]:
            inputs = small.inputs(padded(ids), np.arange(24)[None] < len(ids))
            inputs["prefix"] = jnp.asarray((np.arange(24)[None] < len(prompt) + 1).astype(np.int32))
            assert token == best(DECODER, inputs, len(ids) - 1, pattern, NEVER)
            ids.append(int(token))
    assert (found != run(DECODER)).any()


def test_an_encoder_reads_the_prompt_and_the_decoder_begins() -> None:
    found = run(ENCODER)
    for row, prompt in enumerate(PROMPTS):
        read = small.inputs(padded(prompt), np.arange(24)[None] < len(prompt))
        ids = [PLAIN.bos]
        for token in found[row]:
            inputs = small.inputs(padded(ids), np.arange(24)[None] < len(ids))
            inputs |= {f"encoder_{name}": array for name, array in read.items()}
            assert token == best(ENCODER, inputs, len(ids) - 1, Pattern(causal=True), NEVER)
            ids.append(int(token))
    order = [2, 0, 1]
    np.testing.assert_array_equal(run(ENCODER, prompts=[PROMPTS[row] for row in order]), found[order])


def test_either_side_of_an_encoder_decoder_has_its_own_context() -> None:
    assert run(ENCODER, max_tokens=24, prompts=[[9] * 24]).shape == (1, 24)
    for changes in ({"max_tokens": 25}, {"prompts": [[9] * 25]}):
        with pytest.raises(UserError) as caught:
            run(ENCODER, **changes)
        assert_one_sentence(str(caught.value), "25", "24 tokens on either side")


@pytest.mark.parametrize("name", ["lstm", "mlp"])
def test_the_baselines_write_what_full_passes_choose(name: str) -> None:
    model = small.model(name, max_positions=24)
    found = run(model)
    for row, prompt in enumerate(PROMPTS):
        ids = [PLAIN.bos, *prompt]
        for token in found[row]:
            inputs = small.inputs(padded(ids), np.arange(24)[None] < len(ids))
            assert token == best(model, inputs, len(ids) - 1, Pattern(causal=True), NEVER)
            ids.append(int(token))


@pytest.mark.parametrize("model", [DECODER, ENCODER], ids=["decoder", "encoder"])
def test_ids_above_the_tokenizers_are_made_only_where_they_are_wanted(model: Model) -> None:
    hot = Sampling(temperature=100.0)
    made = np.concatenate([run(model, vocabulary=VOCABULARY, sampling=hot, seed=s).ravel() for s in range(10)])
    allowed = set(range(VOCABULARY.size)) - set(VOCABULARY.special) | {VOCABULARY.eos, VOCABULARY.pad}
    assert set(made.tolist()) <= allowed and len(set(made.tolist())) > 20
    wanted = VOCABULARY.sentinels
    made = run(model, vocabulary=VOCABULARY, sampling=hot, wanted=wanted, prompts=PROMPTS * 8)
    assert set(made.ravel().tolist()) <= allowed | set(wanted) and set(made.ravel().tolist()) & set(wanted)


def test_a_tokenizer_without_a_begin_puts_none_before_a_prompt() -> None:
    bare = dataclasses.replace(PLAIN, begins=False)
    prompts = [[PLAIN.bos, *prompt] for prompt in PROMPTS]
    np.testing.assert_array_equal(run(DECODER, vocabulary=bare, prompts=prompts), run(DECODER))
    np.testing.assert_array_equal(run(DECODER, vocabulary=bare, prompts=[[]]), run(DECODER, prompts=[[]]))


# --- prompts ----------------------------------------------------------------------------------------------------------

ONE, TWO, EOS = VOCABULARY.sentinels[0], VOCABULARY.sentinels[1], VOCABULARY.eos
MARKS = dict(VOCABULARY.marks)


@pytest.mark.parametrize(
    ("name", "parts", "expected"),
    [
        ("causal", [[5, 6]], Prompt([5, 6])),
        ("prefix", [[5, 6]], Prompt([5, 6], prefix=True)),
        ("seq2seq", [[5, 6]], Prompt([5, 6])),
        ("fill in middle", [[5, 6]], Prompt([5, 6])),
        ("fill in middle", [[5], [6]], Prompt([MARKS["prefix"], 5, MARKS["suffix"], 6, MARKS["middle"]])),
        ("spans", [[5], [6], [7]], Prompt([5, ONE, 6, TWO, 7, EOS], True, VOCABULARY.sentinels)),
        ("spans, encoder", [[5]], Prompt([5, ONE, EOS], False, VOCABULARY.sentinels)),
        ("denoisers, encoder", [[5], [6]], Prompt([MARKS["r"], 5, ONE, 6, EOS], False, VOCABULARY.sentinels)),
        ("denoisers, encoder", [[5]], Prompt([MARKS["s"], 5, ONE, EOS], False, VOCABULARY.sentinels)),
    ],
)
def test_a_prompt_is_what_training_looked_like(name: str, parts: list[list[int]], expected: Prompt) -> None:
    assert prompt_of(OBJECTIVES[name], parts) == expected


@pytest.mark.parametrize(
    ("name", "gaps", "mentioned"),
    [("causal", 1, "causal"), ("prefix", 2, "prefix"), ("fill in middle", 2, "fill_in_middle"), ("spans", 100, "99")],
)
def test_gaps_that_nothing_is_known_of_are_one_sentence(name: str, gaps: int, mentioned: str) -> None:
    with pytest.raises(UserError) as caught:
        prompt_of(OBJECTIVES[name], [[5]] * (gaps + 1))
    assert_one_sentence(str(caught.value), f"{gaps} [MASK]", mentioned)


def test_who_can_write_does() -> None:
    masked, causal = OBJECTIVES["masked"], OBJECTIVES["causal"]
    expected: dict[str, Objective | None] = {"masked": None, "next": None, "causal": causal}
    assert {name: writer(OBJECTIVES[name]) for name in expected} == expected
    assert writer(mixture(masked, causal)) == causal and writer(mixture(masked)) is None


def test_marks_and_sentinels_are_readable() -> None:
    class Letters(Tokenizer):
        def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
            raise NotImplementedError

    letters = Letters({}, TOKENIZER, [""] * 50, [bytes([number]) for number in range(50)])
    assert readable(letters, VOCABULARY, [48, ONE, 49, MARKS["s"], TWO]) == "0<0>1<s><1>"
