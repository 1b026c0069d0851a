"""Suffixes are the same text for every tokenizer and every objective, and their bits are those of the definition."""

import jax
import numpy as np
import pytest

from research.data.prepare import Prepared
from research.errors import UserError
from research.evaluate.suffixes import Pieces, cut, suffix_nats
from research.parallel import mesh
from research.settings import ParallelSettings
from tests import small
from tests.evaluate.corpora import corpus
from tests.objectives.cases import OBJECTIVES, draws
from tests.objectives.test_continuation import ASKED, GIVEN, logits, pieces


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Prepared]:
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        return [corpus(patch, cache), corpus(patch, cache, 340), corpus(patch, cache, 330, "unigram")]


def texts(prepared: Prepared, made: Pieces) -> list[tuple[bytes, bytes]]:
    """The bytes that are given and asked for."""
    found = []
    for start, given, asked in zip(made.starts, made.given, made.asked, strict=True):
        tokens = prepared.heldout.read(int(start), int(start + given + asked))
        decode = prepared.tokenizer.decode_bytes
        found.append((decode(tokens[:given]), decode(tokens[given:])))
    return found


def test_pieces_of_one_tokenizer_follow_one_another_in_each_document(corpora: list[Prepared]) -> None:
    prepared = corpora[0]
    (made,) = cut([prepared], 10, 6)
    reader, eos = prepared.heldout, prepared.tokenizer.vocabulary.eos
    offsets = reader.document_offsets
    assert (made.given == 10).all() and set(made.asked) <= set(range(1, 7)) and (made.asked == 6).mean() > 0.5
    same = made.documents[1:] == made.documents[:-1]
    ends = made.starts + made.given + made.asked
    np.testing.assert_array_equal(made.starts[1:][same], ends[:-1][same])
    np.testing.assert_array_equal(made.starts[1:][~same], offsets[made.documents[1:][~same]])
    assert (made.asked[:-1][same] == 6).all()
    left = offsets[made.documents + 1] - 1 - ends
    assert (left >= 0).all() and (left[:-1][~same] <= 10).all()
    windows = made.windows(prepared)
    assert eos not in windows.tokens and (windows.left == prepared.tokenizer.vocabulary.bos).all()
    for row, (start, end) in enumerate(zip(made.starts, ends, strict=True)):
        np.testing.assert_array_equal(
            windows.tokens[row][windows.segment_ids[row] > 0], reader.read(int(start), int(end))
        )
    assert made.num_bytes.tolist() == [len(asked) for _, asked in texts(prepared, made)]
    assert made.by_document(made.num_bytes).sum() == made.num_bytes.sum()
    assert len(made.by_document(made.num_bytes)) == len(set(made.documents))


def test_tokenizers_are_asked_for_the_same_bytes_behind_the_same_bytes(corpora: list[Prepared]) -> None:
    made = cut(corpora, 12, 8)
    first = texts(corpora[0], made[0])
    assert len({prepared.tokenizer.hash for prepared in corpora}) == 3 and len(first) > 50
    for prepared, own in zip(corpora, made, strict=True):
        assert texts(prepared, own) == first
        np.testing.assert_array_equal(own.num_bytes, made[0].num_bytes)
        np.testing.assert_array_equal(own.documents, made[0].documents)
        assert own.given.min() >= 1 and own.given.max() <= 12 and own.asked.min() >= 1 and own.asked.max() <= 8
    assert any(not np.array_equal(own.asked, made[0].asked) for own in made[1:])


def test_the_first_pieces_are_kept(corpora: list[Prepared]) -> None:
    (whole,), (some,) = cut(corpora[:1], 10, 6), cut(corpora[:1], 10, 6, most=7)
    np.testing.assert_array_equal(some.starts, whole.starts[:7])


def test_what_cannot_be_cut_is_one_sentence(corpora: list[Prepared], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as caught:
        cut(corpora, 10**6, 8)
    small.assert_one_sentence(str(caught.value), "--given=1000000")
    monkeypatch.setitem(vars(corpora[1].tokenizer), "exact", False)
    assert len(cut(corpora[1:2], 10, 6)) == 1
    with pytest.raises(UserError) as caught:
        cut(corpora, 10, 6)
    small.assert_one_sentence(str(caught.value), "tokenizer.vocab_size=340")


NAMES = ["causal", "spans", "spans, encoder", "fill in middle, all", "mixture"]


def measured(name: str, batch: dict[str, np.ndarray], layers: int = 1) -> np.ndarray:
    """Nats of each row by the model that `logits` is of, four rows at a time."""
    variant = "t5" if "encoder_tokens" in batch else "llama"
    model = small.model(variant, max_positions=40, num_layers=layers)
    devices = mesh.make_mesh(ParallelSettings(), jax.devices()[:1])
    with jax.set_mesh(devices):
        return suffix_nats(model, OBJECTIVES[name], small.weights(model), batch, 4, devices)


def expected(name: str, batch: dict[str, np.ndarray]) -> list[float]:
    """The same from all logits."""
    found = []
    for row, values in enumerate(logits(name, batch)):
        targets = batch["targets"][row][batch["weights"][row] > 0]
        wide = values.astype(np.float64)
        found.append(float(np.sum(np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(len(wide)), targets])))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_nats_are_those_of_the_suffix_alone(name: str) -> None:
    """Also of a suffix longer than any target of training: span corruption computes its head at few places."""
    batch = OBJECTIVES[name].continuation(pieces(), GIVEN)
    if name == "spans":
        assert OBJECTIVES[name].max_targets(batch["tokens"].shape[1]) < ASKED.max()
    np.testing.assert_allclose(measured(name, batch), expected(name, batch), rtol=1e-5)


def test_what_a_text_costs_is_what_its_beginning_and_its_end_cost() -> None:
    """The chain rule, for causal models, by the batch that they are trained on."""
    made = pieces()
    whole, end = OBJECTIVES["causal"].corrupt(made, draws(made)), OBJECTIVES["causal"].continuation(made, GIVEN)
    begin = whole | {"weights": whole["weights"] - end["weights"]}
    found = [measured("causal", batch) for batch in (whole, begin, end)]
    np.testing.assert_allclose(found[0], found[1] + found[2], rtol=1e-5)


def test_a_prefix_is_seen_from_both_sides_and_a_causal_beginning_is_not() -> None:
    """The same tokens are asked for behind the same tokens, and two layers answer otherwise."""
    causal, prefix = (OBJECTIVES[name].continuation(pieces(), GIVEN) for name in ("causal", "prefix"))
    assert prefix.keys() - causal.keys() == {"prefix"}
    for key in causal:
        np.testing.assert_array_equal(causal[key], prefix[key])
    assert np.abs(measured("prefix", prefix, layers=2) - measured("causal", causal, layers=2)).min() > 1e-3
