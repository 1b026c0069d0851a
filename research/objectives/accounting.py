"""What an update costs and brings under each objective, so that runs can be matched by tokens or by operations."""

import dataclasses
from typing import NamedTuple

from research.errors import UserError
from research.kernels.choice import REFERENCE
from research.models import Model, flops
from research.models import build as build_model
from research.objectives.build import build, raw_length
from research.objectives.mixture import Mixture
from research.objectives.sentence_pairs import SentencePairs
from research.objectives.terms import Objective
from research.settings import Settings
from research.vocabulary import Vocabulary


class Account(NamedTuple):
    """Of one update.

    Attributes:
      tokens_seen: raw tokens of its windows (`data.packing=fit` leaves some of these places empty).
      tokens_predicted: targets, in the mean.
      model_flops: operations, attention and head in full.
      required_flops: operations that the objective needs.
    """

    tokens_seen: float
    tokens_predicted: float
    model_flops: float
    required_flops: float


def count(model: Model, objective: Objective, raw_length: int) -> flops.Count:
    """Parameters, and operations of one update a window of `raw_length` tokens that is one document."""
    whole = flops.count(model, work(objective, raw_length))
    if not isinstance(objective, Mixture):
        return whole
    required = sum(
        share * flops.count(model, work(member, raw_length)).required_flops for member, share in objective.parts
    )
    return dataclasses.replace(whole, required_flops=required)


def work(objective: Objective, raw_length: int) -> flops.Work:
    """What a window of `raw_length` tokens that is one document asks of a model."""
    lengths, targets = objective.lengths(raw_length), objective.expected_targets(raw_length)
    return flops.Work(
        positions=lengths.sequence,
        pattern=objective.pattern,
        encoder_positions=lengths.encoder,
        targets=targets,
        prefix=1.0 - targets / lengths.sequence if objective.pattern.prefix else 0.0,
        pairs=isinstance(objective, SentencePairs),
    )


def account(settings: Settings) -> Account:
    """Of the settings alone: nothing is allocated, no tokenizer is read."""
    size = settings.tokenizer.vocab_size
    vocabulary = Vocabulary(size, 0, 1, 2, 3, 4, word_starts=(True,) * size)
    objective = build(settings, vocabulary)
    raw, rows = raw_length(objective, settings), settings.train.batch_size
    counted = count(build_model(settings, REFERENCE), objective, raw)
    return Account(
        float(rows * raw),
        rows * objective.expected_targets(raw),
        rows * counted.model_flops,
        rows * counted.required_flops,
    )


def matched(settings: Settings, other: Settings, by: str) -> int:
    """Updates after which a run of `settings` has what the whole run `other` has of `by`, to the nearest update.

    Args:
      settings: the run whose length is asked for.
      other: the run that it is matched with.
      by: a field of `Account`.

    Raises:
      UserError: `by` is no field of `Account`.
    """
    if by not in Account._fields:
        raise UserError(f"runs cannot be matched by {by!r}: choose one of {', '.join(Account._fields)}")
    whole = other.train.num_steps * getattr(account(other), by)
    return max(1, round(whole / getattr(account(settings), by)))
