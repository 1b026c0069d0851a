"""Settings and vocabulary to an objective."""

from typing import Any

from research.errors import UserError
from research.objectives.causal import Causal
from research.objectives.fill_in_middle import FillInMiddle
from research.objectives.masked import Masked
from research.objectives.mixture import Mixture
from research.objectives.prefix import Prefix
from research.objectives.sentence_pairs import SentencePairs
from research.objectives.seq2seq import SequenceToSequence
from research.objectives.span_corruption import SpanCorruption, denoisers_of
from research.objectives.terms import Objective
from research.settings import Settings
from research.settings.objective import MASKED
from research.vocabulary import Vocabulary


def build(settings: Settings, vocabulary: Vocabulary) -> Objective:
    """The objective of the settings.

    Raises:
      UserError: the tokenizer lacks what the objective writes, or the windows do not fit into the model.
    """
    own = settings.objective
    extended = vocabulary.extended(own.num_sentinels, own.marks)
    _check_vocabulary(settings, extended)
    losses = {"label_smoothing": own.label_smoothing, "z_loss": own.z_loss}
    made = [(member(name, settings, extended, losses), share) for name, share in own.shares.items()]
    objective = Mixture(extended, tuple(made), **losses) if own.name == "mixture" else made[0][0]
    raw_length(objective, settings)
    return objective


def member(name: str, settings: Settings, vocabulary: Vocabulary, losses: dict[str, Any]) -> Objective:
    """One objective by its name."""
    own = settings.objective
    if name in MASKED:
        masking = (own.mask_rate, own.mask_token_rate, own.random_token_rate, own.masking, own.mask_rate_start)
        if name == "masked":
            return Masked(vocabulary, *masking, **losses)
        return SentencePairs(vocabulary, *masking, own.pairs, **losses)
    if name == "prefix":
        return Prefix(vocabulary, own.prefix_fraction, **losses)
    if name == "span_corruption":
        ways = denoisers_of(own.denoisers, own.corruption_rate, own.mean_span_length, vocabulary)
        return SpanCorruption(vocabulary, ways, settings.model.architecture == "encoder_decoder", **losses)
    if name == "fill_in_middle":
        return FillInMiddle(vocabulary, own.fim_rate, own.fim_spm_rate, **losses)
    if name == "seq2seq":
        return SequenceToSequence(vocabulary, own.prefix_fraction, **losses)
    assert name == "causal", name
    return Causal(vocabulary, **losses)


def raw_length(objective: Objective, settings: Settings) -> int:
    """Raw tokens of a window: `data.raw_length`, or what the objective turns into `data.sequence_length`.

    Raises:
      UserError: they do not fit.
    """
    data = settings.data
    most = objective.raw_length(data.sequence_length)
    if most < 2:
        raise UserError(
            f"data.sequence_length={data.sequence_length} leaves objective.name={objective.name} no room for text: "
            "make it longer"
        )
    if data.raw_length is not None and data.raw_length > most:
        raise UserError(
            f"data.raw_length={data.raw_length} does not fit: objective.name={objective.name} turns {most} tokens at "
            f"most into data.sequence_length={data.sequence_length} positions; lower the one or raise the other"
        )
    return most if data.raw_length is None else data.raw_length


def _check_vocabulary(settings: Settings, vocabulary: Vocabulary) -> None:
    own = settings.objective
    if set(own.shares) & set(MASKED) and vocabulary.mask < 0:
        raise UserError(
            f"objective.name={own.name} needs a mask token, which this tokenizer has not: choose another objective or "
            "another tokenizer.path"
        )
    if own.masking == "whole_word" and not vocabulary.word_starts:
        raise UserError(
            "objective.masking=whole_word needs a tokenizer that knows where words begin: choose token or span"
        )
    if vocabulary.num_rows > settings.vocab_size:
        raise UserError(
            f"model.vocab_size={settings.vocab_size} has no row for {vocabulary.num_rows} ids of tokenizer and "
            "objective: raise it, or set model.vocab_size=none"
        )
