"""Runs of any two objectives see the same documents in the same order, and can be made equally long by any measure."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from research import objectives
from research.data.draws import Draws
from research.data.loader import Batch, Loader
from research.data.shards import ShardReader
from research.data.windows import Windows, documents_of, make_plan
from research.errors import UserError
from research.objectives import accounting
from research.objectives.accounting import Account, account, matched
from research.settings import Settings
from research.vocabulary import Vocabulary
from tests import small
from tests.data.corpora import token_reader

SIZE = 100
VOCABULARY = Vocabulary(SIZE, 0, 1, 2, 3, 4, word_starts=(True,) * SIZE)
ENCODER = {"model.architecture": "encoder_decoder"}
PAIRS = {"model.pair_head": True, "model.pooler": True, "model.token_types": 2}
KINDS: dict[str, dict] = {
    "causal": {},
    "masked": {"objective.name": "masked"},
    "masked spans": {"objective.name": "masked", "objective.masking": "span", "objective.mask_rate_start": 0.4},
    "prefix": {"objective.name": "prefix"},
    "spans": {"objective.name": "span_corruption"},
    "t5": {"objective.name": "span_corruption", **ENCODER},
    "ul2": {"objective.name": "span_corruption", "objective.denoisers": "r,x,s", **ENCODER},
    "fill in middle": {"objective.name": "fill_in_middle"},
    "order": {"objective.name": "sentence_pairs", **PAIRS},
    "next": {"objective.name": "sentence_pairs", "objective.pairs": "next", **PAIRS},
    "seq2seq": {"objective.name": "seq2seq", **ENCODER},
    "mixture": {"objective.name": "mixture", "objective.mixture": "causal:2,masked:1,span_corruption:1"},
}


def settings(kind: str, **changes: object) -> Settings:
    shape = {"tokenizer.vocab_size": SIZE + 200, "data.sequence_length": 64, "train.batch_size": 4}
    return small.settings({**shape, **KINDS[kind], **changes})


@pytest.fixture
def reader(tmp_path: Path) -> ShardReader:
    lengths = np.random.default_rng(5).integers(2, 60, size=80).tolist()
    return token_reader(tmp_path, lengths, vocab_size=SIZE)


def seen(kind: str, reader: ShardReader, packing: str) -> tuple[list[Windows], list[Batch]]:
    """The windows that reach the objective, and the batches that come of them."""
    of = settings(kind, **{"data.raw_length": 40})
    objective = objectives.build(of, VOCABULARY)
    found: list[Windows] = []

    def spy(windows: Windows, draws: Draws) -> dict[str, np.ndarray]:
        found.append(windows)
        return objective.corrupt(windows, draws)

    loader = Loader(
        reader,
        VOCABULARY,
        seed=1,
        batch_size=4,
        accumulation=2,
        raw_length=objectives.raw_length(objective, of),
        packing=packing,
        num_tokens=None,
        corrupt=spy,
        num_steps=20,
        partners=objective.partners,
    )
    return found, [loader.batch(step) for step in range(20)]


@pytest.mark.parametrize("packing", ["stream", "fit"])
def test_any_two_objectives_see_the_same_windows_in_the_same_order(reader: ShardReader, packing: str) -> None:
    found = {kind: seen(kind, reader, packing) for kind in KINDS}
    for left, right in itertools.combinations(found, 2):
        for a, b in zip(found[left][0], found[right][0], strict=True):
            for name in ("tokens", "segment_ids", "positions", "left", "ids", "epochs"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for kind, (_, batches) in found.items():
        assert all(batch["weights"].sum(axis=-1).min() >= 1 for batch in batches), kind
        shapes = {tuple((name, array.shape) for name, array in batch.items()) for batch in batches}
        assert len(shapes) == 1


@pytest.mark.parametrize("packing", ["stream", "fit"])
def test_partners_are_of_other_documents_and_the_same_for_every_host(reader: ShardReader, packing: str) -> None:
    kept: list[Windows] = []

    def keep(windows: Windows, draws: Draws) -> dict[str, np.ndarray]:
        kept.append(windows)
        return {"ids": windows.ids}

    arguments = {"seed": 1, "accumulation": 1, "raw_length": 40, "packing": packing, "num_tokens": None}
    for rows in (None, [0, 1], [2, 3, 4, 5]):
        loader = Loader(reader, VOCABULARY, batch_size=6, corrupt=keep, partners=True, rows=rows, **arguments)  # type: ignore[arg-type]
        loader.batch(3)
    whole, *parts = kept
    plan = make_plan(reader, packing, 40)
    assert whole.partners is not None
    own, others = (documents_of(plan, reader, ids) for ids in (whole.ids, whole.partners.ids))
    assert all(not a & b for a, b in zip(own, others, strict=True))
    joined = np.concatenate([part.partners.tokens for part in parts if part.partners is not None])
    np.testing.assert_array_equal(joined, whole.partners.tokens)


def test_one_document_has_no_partner(tmp_path: Path) -> None:
    reader = token_reader(tmp_path, [200], vocab_size=SIZE)
    found: list[Windows] = []

    def keep(windows: Windows, draws: Draws) -> dict[str, np.ndarray]:
        found.append(windows)
        return {"ids": windows.ids}

    Loader(
        reader,
        VOCABULARY,
        seed=1,
        batch_size=4,
        accumulation=1,
        raw_length=40,
        packing="stream",
        num_tokens=None,
        corrupt=keep,
        partners=True,
    ).batch(0)
    assert found[0].partners is not None
    np.testing.assert_array_equal(found[0].partners.ids, found[0].ids)


# --- accounting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_account_is_that_of_the_batches(kind: str) -> None:
    of = settings(kind)
    found = account(of)
    objective = objectives.build(
        of, dataclasses.replace(VOCABULARY, size=SIZE + 200, word_starts=(True,) * (SIZE + 200))
    )
    raw = objectives.raw_length(objective, of)
    assert found.tokens_seen == 4 * raw
    assert found.tokens_predicted == 4 * objective.expected_targets(raw)
    assert 0 < found.required_flops <= found.model_flops
    assert account(settings(kind, **{"train.batch_size": 8})) == Account(*(2 * value for value in found))


def test_masked_and_prefix_need_less_than_causal_heads_and_spans_need_longer_rows() -> None:
    accounts = {kind: account(settings(kind, **{"data.raw_length": 40})) for kind in KINDS}
    assert len({found.tokens_seen for found in accounts.values()}) == 1
    assert accounts["causal"].model_flops == accounts["masked"].model_flops == accounts["prefix"].model_flops
    assert accounts["masked"].tokens_predicted == pytest.approx(0.15 * accounts["causal"].tokens_predicted)
    assert accounts["spans"].model_flops > accounts["causal"].model_flops


@pytest.mark.parametrize("by", Account._fields)
def test_matched_runs_have_as_much_of_what_they_are_matched_by(by: str) -> None:
    other = settings("causal", **{"train.num_steps": 1000})
    for kind in KINDS:
        steps = matched(settings(kind), other, by)
        ours, theirs = getattr(account(settings(kind)), by), getattr(account(other), by)
        assert abs(steps * ours - 1000 * theirs) <= ours / 2
    assert matched(other, other, by) == 1000


def test_what_runs_cannot_be_matched_by_is_one_sentence() -> None:
    with pytest.raises(UserError) as caught:
        matched(settings("causal"), settings("masked"), "hours")
    small.assert_one_sentence(str(caught.value), "hours", "tokens_seen")
    assert accounting.Account is Account
