"""What every objective makes of windows, and what is particular to each."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from research import objectives
from research.data.draws import Draws
from research.data.windows import Windows
from research.kernels import Pattern
from research.models import Outputs
from research.objectives import Objective
from research.objectives.causal import Causal
from research.objectives.masked import Masked
from research.settings import ObjectiveSettings
from tests import small
from tests.small import VOCAB, assert_close

VOCABULARY = dataclasses.replace(small.VOCABULARY, size=VOCAB)
LENGTH = 40
OBJECTIVES: dict[str, Objective] = {
    "causal": Causal(VOCABULARY),
    "masked": Masked(VOCABULARY, 0.15, 0.8, 0.1),
    "masked often": Masked(VOCABULARY, 0.6, 0.5, 0.5),
    "masked rarely": Masked(VOCABULARY, 0.001, 1.0, 0.0),
}
MASKED = [name for name in OBJECTIVES if name.startswith("masked")]
every_objective = pytest.mark.parametrize("name", OBJECTIVES)
every_masked = pytest.mark.parametrize("name", MASKED)


def windows(ids: Any, epoch: int = 0, length: int = LENGTH) -> Windows:
    """Windows whose text is a function of their id: documents that end in eos, and padding behind two in three."""
    ids = np.asarray(ids, np.int64)
    tokens, segment_ids, positions = (np.zeros((len(ids), length), np.int32) for _ in range(3))
    left = np.full(len(ids), VOCABULARY.bos, np.int32)
    for row, number in enumerate(ids):
        rng = np.random.default_rng(int(number))
        filled = length if number % 3 == 0 else int(rng.integers(1, length))
        tokens[row, :filled] = rng.integers(5, VOCAB, filled)
        ends = rng.random(filled) < 0.15
        tokens[row, :filled][ends] = VOCABULARY.eos
        segment_ids[row, :filled] = 1 + np.concatenate([[0], np.cumsum(ends[:-1])])
        for place in range(1, filled):
            positions[row, place] = 0 if ends[place - 1] else positions[row, place - 1] + 1
        left[row] = rng.integers(5, VOCAB) if number % 2 else VOCABULARY.bos
    return Windows(tokens, segment_ids, positions, left, ids, np.full(len(ids), epoch, np.int64))


def batch(name: str, made: Windows, seed: int = 0) -> dict[str, np.ndarray]:
    return OBJECTIVES[name].corrupt(made, Draws(seed, made.epochs, made.ids))


def rows(found: dict[str, np.ndarray], places: Any) -> dict[str, np.ndarray]:
    return {key: array[places] for key, array in found.items()}


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for key in found:
        np.testing.assert_array_equal(found[key], expected[key], err_msg=key)


# --- every objective ----------------------------------------------------------------------------------------------


@every_objective
def test_a_batch_has_the_schema_and_leaves_the_windows_alone(name: str) -> None:
    made, again = windows(range(30)), windows(range(30))
    found = batch(name, made)
    assert {key: str(array.dtype) for key, array in found.items()} == {
        "tokens": "int32",
        "segment_ids": "int32",
        "positions": "int32",
        "targets": "int32",
        "weights": "float32",
    }
    length = OBJECTIVES[name].raw_length(LENGTH)
    assert all(array.shape == (30, length) for array in found.values())
    assert all((getattr(made, f.name) == getattr(again, f.name)).all() for f in dataclasses.fields(Windows))
    np.testing.assert_array_equal(found["segment_ids"], made.segment_ids)
    np.testing.assert_array_equal(found["positions"], made.positions)
    assert ((found["tokens"] >= 0) & (found["tokens"] < VOCAB)).all()


@every_objective
def test_targets_are_the_text_and_padding_never_counts(name: str) -> None:
    made = windows(range(300))
    found = batch(name, made)
    assert set(np.unique(found["weights"])) <= {0.0, 1.0}
    assert (found["weights"][made.segment_ids == 0] == 0.0).all()
    assert (found["tokens"][made.segment_ids == 0] == VOCABULARY.pad).all()
    counted = found["weights"] > 0
    np.testing.assert_array_equal(found["targets"][counted], made.tokens[counted])


@every_objective
def test_a_window_is_corrupted_alike_in_every_batch(name: str) -> None:
    whole = batch(name, windows(range(12)))
    assert_equal(batch(name, windows([7, 3, 11])), rows(whole, [7, 3, 11]))
    assert_equal(batch(name, windows([5, 5])), rows(whole, [5, 5]))


@every_objective
def test_what_is_selected_is_all_that_counts(name: str) -> None:
    found = {key: jnp.asarray(array) for key, array in batch(name, windows(range(8))).items()}
    hidden = np.random.default_rng(0).normal(size=(8, LENGTH, 3)).astype(np.float32)
    picked, targets, weights = map(np.asarray, small.jit(OBJECTIVES[name].select)(hidden, found))
    counted = weights > 0
    selected = {(*map(float, vector), int(t)) for vector, t in zip(picked[counted], targets[counted], strict=True)}
    places = np.asarray(found["weights"]) > 0
    expected = {
        (*map(float, vector), int(t)) for vector, t in zip(hidden[places], found["targets"][places], strict=True)
    }
    assert selected == expected and counted.sum() == places.sum()


@every_objective
def test_the_loss_is_the_cross_entropy_of_all_that_counts(name: str) -> None:
    objective, model = OBJECTIVES[name], small.model("llama")
    found = {key: jnp.asarray(array) for key, array in batch(name, windows(range(8))).items()}
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(8, LENGTH, 16)), jnp.float32)
    params = small.weights(model)
    (term,) = small.jit(lambda h, b: objective.terms(model, params, Outputs(h, {}), b))(hidden, found).values()
    logits = np.asarray(hidden, np.float64) @ np.asarray(params["head"]["table"], np.float64).T
    chosen = np.take_along_axis(logits, np.asarray(found["targets"])[:, :, None], axis=-1)[:, :, 0]
    losses = np.log(np.exp(logits).sum(axis=-1)) - chosen
    assert_close(term.sum, np.sum(losses * np.asarray(found["weights"])))
    assert float(term.weight) == found["weights"].sum() == objective.weights(found)["loss"]
    assert float(term.coefficient) == 1.0


def test_settings_choose_the_objective_and_its_pattern() -> None:
    causal = objectives.build(ObjectiveSettings(), VOCABULARY)
    masked = objectives.build(ObjectiveSettings(name="masked", mask_rate=0.2), VOCABULARY)
    assert (causal.name, causal.pattern) == ("causal", Pattern(causal=True))
    assert (masked.name, masked.pattern) == ("masked", Pattern(causal=False))
    assert masked == Masked(VOCABULARY, 0.2, 0.8, 0.1)


# --- causal -------------------------------------------------------------------------------------------------------


def test_a_causal_input_is_the_token_before_and_bos_where_a_document_begins() -> None:
    made = windows(range(60))
    found = batch("causal", made)
    for row, place in np.argwhere(made.segment_ids > 0):
        if place == 0:
            expected = made.left[row]
        elif made.segment_ids[row, place] != made.segment_ids[row, place - 1]:
            expected = VOCABULARY.bos
        else:
            expected = made.tokens[row, place - 1]
        assert found["tokens"][row, place] == expected
    np.testing.assert_array_equal(found["weights"], made.segment_ids > 0)


def test_a_causal_input_holds_nothing_of_its_target_or_of_the_future() -> None:
    """Row r changes the token at place r: the input changes at place r + 1 alone, and only within the document."""
    made = windows([3] * LENGTH)
    own = np.eye(LENGTH, dtype=bool) & (made.tokens != VOCABULARY.eos)
    tokens = np.where(own, (made.tokens - 5 + 1) % (VOCAB - 5) + 5, made.tokens).astype(np.int32)
    before, after = batch("causal", made), batch("causal", dataclasses.replace(made, tokens=tokens))
    expected = np.zeros((LENGTH, LENGTH), bool)
    expected[:, 1:] = own[:, :-1]
    np.testing.assert_array_equal(before["tokens"] != after["tokens"], expected)
    np.testing.assert_array_equal(before["targets"] != after["targets"], own)


# --- masked -------------------------------------------------------------------------------------------------------


def candidates(made: Windows) -> np.ndarray:
    return (made.segment_ids > 0) & ~np.isin(made.tokens, VOCABULARY.special)


@every_masked
def test_special_tokens_are_never_chosen_and_never_drawn(name: str) -> None:
    made = windows(range(500))
    found = batch(name, made)
    assert not (found["weights"] > 0)[~candidates(made)].any()
    drawn = (found["tokens"] != made.tokens) & (found["tokens"] != VOCABULARY.mask)
    assert not np.isin(found["tokens"][drawn], VOCABULARY.special).any()


@every_masked
def test_the_share_is_exact_and_at_least_one_in_short_windows(name: str) -> None:
    made = windows(range(500))
    count = candidates(made).sum(axis=1)
    wanted = [min(n, max(1, round(OBJECTIVES[name].rate * n))) for n in count.tolist()]
    found = batch(name, made)
    np.testing.assert_array_equal(found["weights"].sum(axis=1), wanted)
    assert min(count) == 0 and (found["weights"].sum(axis=1)[count > 0] >= 1).all()
    assert max(wanted) <= OBJECTIVES[name].max_targets(LENGTH) <= LENGTH


@every_masked
def test_what_is_not_chosen_is_shown_as_it_is(name: str) -> None:
    made = windows(range(100))
    found = batch(name, made)
    kept = found["weights"] == 0
    np.testing.assert_array_equal(found["tokens"][kept], made.tokens[kept])


@every_masked
def test_chosen_tokens_are_masked_drawn_or_kept_in_their_shares(name: str) -> None:
    made = windows(range(0, 9000, 3))
    objective, found = OBJECTIVES[name], batch(name, made)
    chosen = found["weights"] > 0
    shown, text = found["tokens"][chosen], made.tokens[chosen]
    total, ordinary = chosen.sum(), VOCAB - len(VOCABULARY.special)
    masks, random = objective.mask_token_rate, objective.random_token_rate
    shares = {
        "masked": ((shown == VOCABULARY.mask).sum(), masks),
        "as it is": ((shown == text).sum(), 1 - masks - random + random / ordinary),
    }
    for kind, (number, share) in shares.items():
        assert abs(number - share * total) <= 5 * np.sqrt(share * (1 - share) * total) + 1e-6, kind
    drawn = shown[(shown != VOCABULARY.mask) & (shown != text)]
    if random > 0:
        counts = np.bincount(drawn, minlength=VOCAB)[5:]
        assert (np.abs(counts - counts.mean()) < 6 * np.sqrt(counts.mean()) + 1).all()


@every_masked
def test_every_place_is_chosen_alike(name: str) -> None:
    made = windows(range(0, 9000, 3))
    among = candidates(made)
    chosen = ((batch(name, made)["weights"] > 0) & among).sum(axis=0) / among.sum(axis=0)
    expected = (batch(name, made)["weights"] > 0).sum() / among.sum()
    assert (np.abs(chosen - expected) < 6 * np.sqrt(expected * (1 - expected) / among.sum(axis=0))).all()


@every_masked
def test_seed_and_epoch_choose_anew(name: str) -> None:
    first = batch(name, windows(range(50)))
    assert_equal(batch(name, windows(range(50))), first)
    for other in (batch(name, windows(range(50), epoch=1)), batch(name, windows(range(50)), seed=1)):
        assert (other["weights"] != first["weights"]).any(axis=1).mean() > 0.5
        np.testing.assert_array_equal(other["weights"].sum(axis=1), first["weights"].sum(axis=1))


def test_near_rates_share_the_shape_of_the_head() -> None:
    sizes = {rate: Masked(VOCABULARY, rate, 0.8, 0.1).max_targets(128) for rate in (0.001, 0.12, 0.15, 0.18, 0.9)}
    assert sizes == {0.001: 8, 0.12: 16, 0.15: 24, 0.18: 24, 0.9: 120}
    assert Masked(VOCABULARY, 0.9, 0.8, 0.1).max_targets(5) == 5
