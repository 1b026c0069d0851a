"""Sampling by hand examples; decoding against full passes; masks filled in the order of their probability."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.generate import Sampling, fill_masks, generate
from research.kernels import Pattern
from tests import small
from tests.small import VOCAB, assert_one_sentence

VOCABULARY = dataclasses.replace(small.VOCABULARY, size=VOCAB, eos=VOCAB - 1)  # an eos that greedy rows do not meet
MODEL = small.model("llama", num_layers=1, max_positions=24)
PROMPTS = [[11, 12, 13, 14, 15, 16, 17], [31], [41, 42, 43, 44]]
GREEDY = Sampling(temperature=0.0)


def run(prompts: list[list[int]] = PROMPTS, max_tokens: int = 8, **changes: Any) -> np.ndarray:
    """Generated ids `[batch, made]`."""
    vocabulary = changes.pop("vocabulary", VOCABULARY)
    changes = {"sampling": GREEDY, **changes}
    made = generate(MODEL, small.weights(MODEL), vocabulary, prompts, max_tokens=max_tokens, **changes)
    return np.stack(list(made), axis=1)


@functools.partial(small.jit, static_argnums=0)
def logits(pattern: Pattern, batch: Any) -> jax.Array:
    params = small.weights(MODEL)
    return MODEL.unembed(params, MODEL.apply(params, batch, pattern=pattern).hidden)


@functools.cache
def by_full_passes(max_tokens: int = 8) -> np.ndarray:
    """The most probable next token, each from a pass over everything before it."""
    rows = []
    for prompt in PROMPTS:
        ids = [VOCABULARY.bos, *prompt]
        for _ in range(max_tokens):
            padded = np.zeros((1, 24), np.int32)
            padded[0, : len(ids)] = ids
            found = logits(Pattern(causal=True), small.inputs(padded, np.arange(24)[None] < len(ids)))
            ids.append(int(np.argmax(found[0, len(ids) - 1])))
        rows.append(ids[len(prompt) + 1 :])
    return np.array(rows)


# --- decoding -----------------------------------------------------------------------------------------------------


def test_greedy_decoding_is_that_of_full_passes_whatever_the_rows_lengths() -> None:
    found = run()
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, by_full_passes())
    assert len(np.unique(found)) > 5


def test_a_row_does_not_depend_on_the_others() -> None:
    order = [2, 0, 1]
    np.testing.assert_array_equal(run([PROMPTS[row] for row in order]), by_full_passes()[order])
    sampled = run(sampling=Sampling(), seed=3)
    other = run([PROMPTS[0], PROMPTS[2], PROMPTS[1]], sampling=Sampling(), seed=3)
    np.testing.assert_array_equal(other[0], sampled[0])


def test_a_seed_gives_the_same_tokens_and_another_gives_others() -> None:
    first = run([PROMPTS[0]] * 3, sampling=Sampling(), seed=3)
    np.testing.assert_array_equal(run([PROMPTS[0]] * 3, sampling=Sampling(), seed=3), first)
    assert (run([PROMPTS[0]] * 3, sampling=Sampling(), seed=4) != first).any(axis=1).all()
    assert len(np.unique(first, axis=0)) == 3  # equal prompts in one batch go their own ways
    assert len(np.unique(first[0])) > 2


def test_a_row_ends_with_its_stop_token_and_pads_from_there() -> None:
    expected = by_full_passes()
    stop = int(expected[0, 2])
    for changes in ({"stop": [stop]}, {"vocabulary": dataclasses.replace(VOCABULARY, eos=stop)}):
        found = run(**changes)
        for row in range(3):
            ends = np.flatnonzero(expected[row] == stop)
            last = ends[0] + 1 if len(ends) else 8
            np.testing.assert_array_equal(found[row, :last], expected[row, :last])
            assert (found[row, last:] == VOCABULARY.pad).all()
        assert (found[0] == stop).any()


def test_only_text_and_its_end_are_generated() -> None:
    made = np.concatenate([run(sampling=Sampling(temperature=100.0), seed=seed).ravel() for seed in range(20)])
    assert len(np.unique(made)) > VOCAB // 2
    rows_end = np.isin(made, [VOCABULARY.eos, VOCABULARY.pad])  # behind an end stands padding
    assert not np.isin(made[~rows_end], VOCABULARY.special).any()


def test_it_ends_when_every_row_has() -> None:
    expected = by_full_passes()
    first = [int(row[1]) for row in expected]
    found = run(stop=first)
    lengths = [1 + min(np.flatnonzero(np.isin(row, first))) for row in expected]
    assert found.shape[1] == max(lengths) < 8


def test_a_context_is_filled_to_its_end_and_not_beyond() -> None:
    room = MODEL.max_positions - len(PROMPTS[0])
    assert run(max_tokens=room).shape == (3, room)
    with pytest.raises(UserError) as caught:
        run(max_tokens=room + 1)
    assert_one_sentence(str(caught.value), "7 tokens", f"{room + 1} new", "24")
    with pytest.raises(UserError, match="at least one"):
        run(max_tokens=0)


# --- sampling -----------------------------------------------------------------------------------------------------

PROBABILITIES = np.array([0.05, 0.4, 0.2, 0.3, 0.05])


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), PROBABILITIES),
        (Sampling(top_k=1), [0, 1, 0, 0, 0]),
        (Sampling(top_k=2), [0, 4 / 7, 0, 3 / 7, 0]),
        (Sampling(top_k=3), [0, 4 / 9, 2 / 9, 3 / 9, 0]),
        (Sampling(top_k=99), PROBABILITIES),
        (Sampling(top_p=0.1), [0, 1, 0, 0, 0]),
        (Sampling(top_p=0.39), [0, 1, 0, 0, 0]),
        (Sampling(top_p=0.41), [0, 4 / 7, 0, 3 / 7, 0]),
        (Sampling(top_p=0.69), [0, 4 / 7, 0, 3 / 7, 0]),
        (Sampling(top_p=0.71), [0, 4 / 9, 2 / 9, 3 / 9, 0]),
        (Sampling(top_k=3, top_p=0.7), [0, 4 / 7, 0, 3 / 7, 0]),  # of three: 0.44, 0.33, 0.22
        (Sampling(temperature=0.5), PROBABILITIES**2 / np.sum(PROBABILITIES**2)),
        (Sampling(temperature=2.0), PROBABILITIES**0.5 / np.sum(PROBABILITIES**0.5)),
        (Sampling(temperature=0.5, top_p=0.5), [0, 1, 0, 0, 0]),  # squares: 0.55, 0.31, 0.14
    ],
    ids=str,
)
def test_what_is_left_to_choose_from(sampling: Sampling, expected: Any) -> None:
    rows = jnp.log(jnp.asarray(np.stack([PROBABILITIES, PROBABILITIES[::-1]]), jnp.float32))
    found = jax.nn.softmax(sampling.restrict(rows), axis=-1)
    np.testing.assert_allclose(found, np.stack([expected, np.array(expected)[::-1]]), atol=1e-6)


def test_choices_come_with_their_probabilities() -> None:
    rows = jnp.tile(jnp.log(jnp.asarray(PROBABILITIES, jnp.float32)), (20_000, 1))
    for sampling, expected in ((Sampling(), PROBABILITIES), (Sampling(top_k=3), np.array([0, 4, 2, 3, 0]) / 9)):
        shares = np.bincount(sampling.choose(rows, jax.random.key(0)), minlength=5) / 20_000
        assert (np.abs(shares - expected) <= 5 * np.sqrt(expected * (1 - expected) / 20_000)).all()
    assert (np.asarray(GREEDY.choose(rows[:3], jax.random.key(2))) == 1).all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"top_p": float("nan")}, "top_p=nan"),
    ],
)
def test_a_way_to_choose_that_cannot_be_is_one_sentence(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as caught:
        Sampling(**changes)
    assert_one_sentence(str(caught.value), named)


# --- masks --------------------------------------------------------------------------------------------------------


def test_candidates_for_masks_are_ranked_and_never_special() -> None:
    ids = [11, VOCABULARY.mask, 13, 14, VOCABULARY.mask, 16]
    ranked = fill_masks(MODEL, small.weights(MODEL), VOCABULARY, ids, num_candidates=VOCAB)
    padded = np.zeros((1, 24), np.int32)
    padded[0, :6] = ids
    found = logits(Pattern(causal=False), small.inputs(padded, np.arange(24)[None] < 6))
    ordinary = np.setdiff1d(np.arange(VOCAB), VOCABULARY.special)
    assert len(ranked) == 2
    for place, candidates in zip((1, 4), ranked, strict=True):
        own = np.asarray(found[0, place], np.float64)[ordinary]
        expected = dict(zip(ordinary.tolist(), np.exp(own) / np.exp(own).sum(), strict=True))
        best = [candidate for candidate in candidates if candidate.probability > 0]
        assert {candidate.token for candidate in best} == set(ordinary)
        probabilities = [candidate.probability for candidate in best]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1.0, abs=1e-5)
        for candidate in best:
            assert candidate.probability == pytest.approx(expected[candidate.token], rel=1e-3)
    few = fill_masks(MODEL, small.weights(MODEL), VOCABULARY, ids, num_candidates=3)
    assert few == [candidates[:3] for candidates in ranked]


@pytest.mark.parametrize(
    ("ids", "mentioned"), [([11, 12], "[MASK]"), ([], "[MASK]"), ([VOCABULARY.mask] * 25, "25 tokens")]
)
def test_prompts_that_cannot_be_filled_are_one_sentence(ids: list[int], mentioned: str) -> None:
    with pytest.raises(UserError) as caught:
        fill_masks(MODEL, small.weights(MODEL), VOCABULARY, ids)
    assert_one_sentence(str(caught.value), mentioned)
