"""What every objective makes of windows, whatever it is."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data.draws import Draws
from research.data.windows import Windows
from research.models import Outputs
from research.objectives.mixture import Mixture
from tests import small
from tests.objectives.cases import LENGTH, OBJECTIVES, TEXT_IDS, VOCABULARY, assert_equal, batch, draws, windows
from tests.small import VOCAB, assert_close

every_objective = pytest.mark.parametrize("name", OBJECTIVES)
SIDES = ("", "encoder_")


def rows(found: dict[str, np.ndarray], places: Any) -> dict[str, np.ndarray]:
    return {key: array[places] for key, array in found.items()}


def sides(found: dict[str, np.ndarray]) -> list[str]:
    return [side for side in SIDES if f"{side}tokens" in found]


@every_objective
def test_a_batch_has_the_schema_and_leaves_the_windows_alone(name: str) -> None:
    made, again = windows(range(30)), windows(range(30))
    found, lengths = batch(name, made), OBJECTIVES[name].lengths(LENGTH)
    places = {key: array for key, array in found.items() if array.ndim == 2}
    assert {"tokens", "segment_ids", "positions", "targets", "weights"} <= places.keys()
    assert places.keys() <= {
        *("tokens", "segment_ids", "positions", "targets", "weights", "prefix", "types"),
        *("encoder_tokens", "encoder_segment_ids", "encoder_positions"),
    }
    for key, array in found.items():
        assert str(array.dtype) == ("float32" if key.endswith("weights") else "int32"), key
        assert array.shape[:1] == (30,), key
    for key, array in places.items():
        assert array.shape[1] == (lengths.encoder if key.startswith("encoder_") else lengths.sequence), key
    assert ("encoder_tokens" in found) == (lengths.encoder > 0)
    assert ("prefix" in found) == OBJECTIVES[name].pattern.prefix
    names = [field.name for field in dataclasses.fields(Windows) if field.name != "partners"]
    assert all((getattr(made, key) == getattr(again, key)).all() for key in names)


@every_objective
def test_segments_stand_in_order_and_count_from_zero_and_padding_is_empty(name: str) -> None:
    found = batch(name, windows(range(100)))
    for side in sides(found):
        tokens, numbers, positions = (found[side + key] for key in ("tokens", "segment_ids", "positions"))
        assert ((tokens >= 0) & (tokens < VOCABULARY.num_rows)).all()
        real = numbers > 0
        assert (real[:, 1:] <= real[:, :-1]).all() and (np.diff(numbers, axis=1)[real[:, 1:]] >= 0).all()
        begins = np.diff(numbers, axis=1, prepend=0) != 0
        expected = np.where(begins[:, 1:], 0, positions[:, :-1] + 1)
        np.testing.assert_array_equal(positions[:, 1:][real[:, 1:]], expected[real[:, 1:]])
        assert (positions[:, 0] == 0).all() and (positions[~real] == 0).all()
        assert (tokens[~real] == VOCABULARY.pad).all()
    padding = found["segment_ids"] == 0
    assert set(np.unique(found["weights"])) <= {0.0, 1.0}
    assert (found["weights"][padding] == 0.0).all()
    if "prefix" in found:
        assert set(np.unique(found["prefix"])) <= {0, 1} and (found["prefix"][padding] == 0).all()


@every_objective
def test_a_window_is_corrupted_alike_in_every_batch(name: str) -> None:
    whole = batch(name, windows(range(12)))
    assert_equal(batch(name, windows([7, 3, 11])), rows(whole, [7, 3, 11]))
    assert_equal(batch(name, windows([5, 5])), rows(whole, [5, 5]))


@every_objective
def test_every_window_that_can_has_a_target(name: str) -> None:
    made = windows(range(200))
    ordinary = (made.segment_ids > 0) & ~np.isin(made.tokens, VOCABULARY.special)
    inside = ordinary[:, 1:] & (made.segment_ids[:, 1:] == made.segment_ids[:, :-1])
    assert (batch(name, made)["weights"].sum(axis=1)[inside.any(axis=1)] >= 1).all()


@every_objective
def test_targets_are_never_shown_to_those_who_predict_them(name: str) -> None:
    """Of shifted rows: the input at a place is the target before, and what is seen from everywhere has no target."""
    found = batch(name, windows(range(100)))
    same = (np.diff(found["segment_ids"], axis=1) == 0) & (found["segment_ids"][:, 1:] > 0)
    if OBJECTIVES[name].pattern.causal:
        backward = np.ones(len(found["tokens"]), bool)
        if isinstance(mixed := OBJECTIVES[name], Mixture):
            backward = np.array([member.pattern.causal for member in mixed.members])[found["members"]]
        shown, asked = found["tokens"][:, 1:], found["targets"][:, :-1]
        np.testing.assert_array_equal(shown[same & backward[:, None]], asked[same & backward[:, None]])
        if "prefix" in found:
            flagged = same & (found["prefix"][:, 1:] > 0) & backward[:, None]
            assert (found["weights"][:, :-1][flagged] == 0).all() and (found["prefix"][:, :-1][flagged] == 1).all()


@every_objective
def test_a_document_says_nothing_in_the_rows_of_another(name: str) -> None:
    """Other text of the same shape in one document changes the batch in the segments of that document alone."""
    made = windows(range(0, 240, 3))
    other = made.tokens + 2 * (made.tokens < 25) - 2 * (made.tokens >= 25)  # as ordinary, and as likely a word's begin
    own = (made.segment_ids == 2) & (made.tokens >= 5)
    tokens = np.where(own & (other >= 5), other, made.tokens).astype(np.int32)
    before, after = batch(name, made), batch(name, dataclasses.replace(made, tokens=tokens))
    for side in sides(before):
        np.testing.assert_array_equal(before[f"{side}segment_ids"], after[f"{side}segment_ids"])
        numbers = before[f"{side}segment_ids"]
        changed = before[f"{side}tokens"] != after[f"{side}tokens"]
        touched = [np.unique(numbers[row][changed[row]]) for row in range(len(changed))]
        assert all(len(segments) <= 1 for segments in touched) and any(len(segments) for segments in touched)


@every_objective
def test_seed_and_epoch_draw_anew(name: str) -> None:
    first = batch(name, windows(range(50)))
    assert_equal(batch(name, windows(range(50))), first)
    for other in (batch(name, windows(range(50), epoch=1)), batch(name, windows(range(50)), seed=1)):
        changed = np.zeros(50, bool)
        for key, array in first.items():
            changed |= (array != other[key]).reshape(50, -1).any(axis=1)
        assert changed.mean() > 0.3 or name.startswith("causal") or name.endswith("of a quarter")


@every_objective
def test_what_is_selected_is_all_that_counts(name: str) -> None:
    found = {key: jnp.asarray(array) for key, array in batch(name, windows(range(8))).items()}
    length = found["tokens"].shape[1]
    hidden = np.random.default_rng(0).normal(size=(8, length, 3)).astype(np.float32)
    picked, targets, weights = map(np.asarray, small.jit(OBJECTIVES[name].select)(hidden, found))
    counted = weights > 0
    selected = {(*map(float, vector), int(t)) for vector, t in zip(picked[counted], targets[counted], strict=True)}
    places = np.asarray(found["weights"]) > 0
    expected = {
        (*map(float, vector), int(t)) for vector, t in zip(hidden[places], found["targets"][places], strict=True)
    }
    assert selected == expected and counted.sum() == places.sum()
    assert len(weights) == 8 * OBJECTIVES[name].max_targets(length)


@every_objective
def test_the_loss_is_the_cross_entropy_of_all_that_counts(name: str) -> None:
    objective = OBJECTIVES[name]
    model = small.model("llama", pooler=True, pair_head=True, token_types=2)
    found = {key: jnp.asarray(array) for key, array in batch(name, windows(range(8))).items()}
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(*found["tokens"].shape, 16)), jnp.float32)
    params = small.weights(model)
    terms = small.jit(
        lambda h, b: {key: term[:2] for key, term in objective.terms(model, params, Outputs(h, {}), b).items()}
    )(hidden, found)
    logits = np.asarray(hidden, np.float64) @ np.asarray(params["head"]["table"], np.float64).T
    chosen = np.take_along_axis(logits, np.asarray(found["targets"])[:, :, None], axis=-1)[:, :, 0]
    normaliser = np.log(np.exp(logits).sum(axis=-1))
    weights = np.asarray(found["weights"])
    known = objective.weights(found)
    assert known.keys() == terms.keys()
    assert all(float(terms[key][1]) == float(weight) for key, weight in known.items())
    assert float(known["loss"]) == weights.sum()
    expected = {"loss": np.sum(weights * (normaliser - chosen))}
    if objective.z_loss:
        smooth = np.sum(weights * (normaliser - logits.mean(axis=-1)))
        plain, z = expected["loss"], np.sum(weights * normaliser**2)
        total = (1 - objective.label_smoothing) * plain + objective.label_smoothing * smooth + objective.z_loss * z
        expected = {"loss": total, "cross_entropy": plain, "z": z}
    if isinstance(objective, Mixture):
        for number, member in enumerate(objective.members):
            own = weights * (np.asarray(found["members"]) == number)[:, None]
            expected[member.name] = np.sum(own * (normaliser - chosen))
    for key, value in expected.items():
        assert_close(terms[key][0], value, 1e-5)


@every_objective
def test_raw_lengths_fill_the_sequence_and_no_more(name: str) -> None:
    objective = OBJECTIVES[name]
    for length in (24, 40, 128, 512):
        most = objective.raw_length(length)
        assert max(objective.lengths(most)) <= length < max(objective.lengths(most + 1))
        assert objective.max_targets(length) <= length


@every_objective
@given(raw=st.integers(2, 90), ends=st.floats(0.0, 1.0), first=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_every_window_has_room(name: str, raw: int, ends: float, first: int) -> None:
    """Whatever the documents are, many tiny ones included, the rows are as long as the objective says."""
    made = windows(range(first, first + 3), length=raw, ends=ends)
    found, lengths = batch(name, made), OBJECTIVES[name].lengths(raw)
    assert found["tokens"].shape[1] == lengths.sequence
    most = OBJECTIVES[name].max_targets(lengths.sequence)
    assert (found["weights"].sum(axis=1) <= most).all()


@every_objective
def test_targets_are_as_many_as_expected(name: str) -> None:
    objective = OBJECTIVES[name]
    made = windows(range(0, 600, 3), length=60, ends=0.0)
    late = Draws(0, made.epochs, made.ids, np.linspace(0.0, 1.0, len(made.ids)))
    made = dataclasses.replace(made, partners=made.rows(np.roll(np.arange(len(made.ids)), 1)))
    found = objective.corrupt(made, late)["weights"].sum(axis=1).mean()
    # Words and spans are chosen whole: what is left of the budget may be smaller than each of them.
    whole = getattr(objective, "masking", "token") != "token"
    assert found == pytest.approx(objective.expected_targets(60), rel=0.15 if whole else 0.06, abs=0.6)


@every_objective
def test_documents_of_a_window_keep_their_text(name: str) -> None:
    """No ordinary token of a target is invented: it stands in the window (or in the one beside it)."""
    made = windows(range(100))
    found = batch(name, made)
    assert made.partners is not None
    for row in range(100):
        text = set(made.tokens[row]) | set(made.partners.tokens[row]) | set(VOCABULARY.special)
        assert set(found["targets"][row][found["weights"][row] > 0]) <= text
    assert TEXT_IDS <= VOCAB and draws(made).progress is None
