"""What is asked: special tokens stay out of it, and the loss is that of the text's own tokens, where it should be."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.doctor import synthetic
from research.doctor.findings import HIDDEN, Finding, measured, powerless
from research.doctor.subject import Subject
from research.models import Outputs
from research.objectives import Objective
from research.objectives import build as build_objective
from research.settings.objective import MASKED
from research.vocabulary import Vocabulary

SPECIAL, LOSS = "special tokens stay out", "loss where it should be"
NUM_WINDOWS = 64


class Rows(NamedTuple):
    """Windows with special tokens in them, and what the objective makes of them.

    Attributes:
      batch: the arrays.
      raw: tokens of the windows, `pad` in padding.
      partners: tokens that a row may have besides.
      members: name of each row's objective.
      vocabulary: of the tokenizer and the objective.
    """

    batch: dict[str, np.ndarray]
    raw: np.ndarray
    partners: np.ndarray | None
    members: np.ndarray
    vocabulary: Vocabulary

    def of(self, names: tuple[str, ...]) -> np.ndarray:
        """Which rows belong to one of the objectives."""
        return np.isin(self.members, names)


def special(subject: Subject) -> Iterator[Finding]:
    """Special tokens are neither chosen nor drawn, padding is no target, sentinels and marks are where they belong."""
    rows = _rows(subject)
    batch, vocabulary = rows.batch, rows.vocabulary
    asked = batch["weights"] > 0

    def wrong(variant: str, quantity: str, places: np.ndarray) -> Finding:
        return measured(SPECIAL, variant, quantity, float(np.count_nonzero(places)), 0.0)

    if not asked.any():
        yield powerless(SPECIAL, "targets", "nothing is a target")
        return
    yield wrong("padding", "targets", asked & (batch["segment_ids"] == 0))
    never = synthetic.special_of(synthetic.without_extras(vocabulary))
    masked = rows.of(MASKED)[:, None]
    if masked.any():
        yield wrong("chosen", "special tokens", asked & masked & np.isin(batch["targets"], never))
        drawn = masked & asked & np.isin(batch["tokens"], never) & (batch["tokens"] != vocabulary.mask)
        yield wrong("shown", "special tokens", drawn)
        yield wrong("kept", "changed tokens", masked & ~asked & (batch["tokens"] != batch["targets"]))
    spans = rows.of(("span_corruption",))[:, None]
    if spans.any():
        taken = np.setdiff1d(never, [vocabulary.eos])
        yield wrong("taken out", "special tokens", asked & spans & np.isin(batch["targets"], taken))
    yield from _extras(rows)


def _rows(subject: Subject) -> Rows:
    """Windows of few ids, so that a wrong draw or choice is certain to happen."""
    windows, draws = subject.windows(NUM_WINDOWS)
    objective, vocabulary = subject.objective, subject.vocabulary
    if not subject.settings.tokenizer.path:
        vocabulary = synthetic.made_up_vocabulary(synthetic.SMALL_VOCABULARY)
        objective = build_objective(subject.single, vocabulary)
        ordinary = synthetic.ordinary_of(vocabulary)

        def small(tokens: np.ndarray) -> np.ndarray:
            text = ~np.isin(tokens, synthetic.special_of(subject.vocabulary))
            return np.where(text, ordinary[tokens % len(ordinary)], tokens).astype(np.int32)

        windows = _mapped(windows, small)
    windows = _mapped(windows, lambda tokens: tokens, vocabulary)
    batch = objective.corrupt(windows, draws)
    parts = getattr(objective, "members", [objective])
    numbers = batch.get("members", np.zeros(len(windows.tokens), np.int32))
    members = np.array([part.name for part in parts])[numbers]
    partners = None if windows.partners is None else windows.partners.tokens
    return Rows(batch, windows.tokens, partners, members, objective.vocabulary)


def _mapped(windows: Any, change: Any, vocabulary: Vocabulary | None = None) -> Any:
    """The windows (and their partners) with other tokens, special ones among them if a vocabulary is given."""
    tokens = change(windows.tokens)
    if vocabulary is not None:
        tokens = synthetic.with_special_tokens(vocabulary, tokens, windows.segment_ids)
    partners = None if windows.partners is None else _mapped(windows.partners, change, vocabulary)
    return dataclasses.replace(windows, tokens=tokens, partners=partners)


def _extras(rows: Rows) -> Iterator[Finding]:
    """Sentinels and marks stand in rows of objectives that write them; those of the inputs are asked, in order."""
    batch, vocabulary = rows.batch, rows.vocabulary
    extras = {"sentinels": np.asarray(vocabulary.sentinels), "marks": np.asarray(vocabulary.ids_of_marks)}
    writers = {"sentinels": ("span_corruption",), "marks": ("span_corruption", "fill_in_middle")}
    for name, ids in extras.items():
        if len(ids):
            strangers = ~rows.of(writers[name])
            found = sum(
                np.count_nonzero(np.isin(batch[key], ids)[strangers])
                for key in ("tokens", "targets", "encoder_tokens")
                if key in batch
            )
            yield measured(SPECIAL, name, "in other objectives", float(found), 0.0)
    if not rows.of(("span_corruption",)).any():
        return
    unmatched = total = 0
    for row in np.flatnonzero(rows.of(("span_corruption",))).tolist():
        for inside, asked in _sides(batch, row):
            read, answered = (side[np.isin(side, extras["sentinels"])] for side in (inside, asked))
            expected = extras["sentinels"][: len(read)]
            unmatched += not (np.array_equal(read, expected) and np.array_equal(answered, expected))
            total += len(read)
    if not total:
        yield powerless(SPECIAL, "sentinels", "no span was taken out")
    else:
        yield measured(SPECIAL, "sentinels", "not asked in order", float(unmatched), 0.0)


def _sides(batch: Mapping[str, np.ndarray], row: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What is read and what is asked of each document of a row of span corruption."""
    segments, targets, asked = batch["segment_ids"][row], batch["targets"][row], batch["weights"][row] > 0
    encoder = batch.get("encoder_segment_ids")
    present = segments if encoder is None else encoder[row]
    for number in np.unique(present[present > 0]):
        own = segments == number
        inside = targets[own & ~asked] if encoder is None else batch["encoder_tokens"][row][encoder[row] == number]
        yield inside, targets[own & asked]


# --- the loss ---------------------------------------------------------------------------------------------------------


def loss(subject: Subject) -> Iterator[Finding]:
    """The loss has a gradient at a hidden state exactly where its weight is positive, and is that of the batch's
    targets, which are tokens of the window, each asked once."""
    batch = {name: array[0] for name, array in subject.batch.items()}
    asked = batch["weights"] > 0
    if not asked.any():
        yield powerless(LOSS, "targets", "nothing is a target")
        return
    norms, summed, direct, weight = jax.device_get(_losses(subject, batch))
    most = float(norms.max())
    if not most > 0.0:
        yield powerless(LOSS, "gradient", "the loss depends on no hidden state")
        return
    outside = float(norms[~asked].max(initial=0.0)) / most
    yield measured(LOSS, "weight 0", "gradient", outside, HIDDEN)
    missed = float(np.count_nonzero(norms[asked] <= HIDDEN * most))
    yield measured(LOSS, "weight 1", "without a gradient", missed, 0.0)
    value = float(abs(summed - direct) / abs(direct))
    yield measured(LOSS, "value", "against the logits", value, subject.tolerance)
    value = float(abs(weight - batch["weights"].sum()))
    yield measured(LOSS, "divisor", "against the targets", value, 0.0)
    yield _own_text(subject)


def _losses(subject: Subject, batch: Mapping[str, np.ndarray]) -> Any:
    """Of random hidden states: gradient of the loss at each, its value, the same from the logits, and its weight."""
    objective, model = subject.objective, subject.model
    settings = subject.settings.model
    rng = np.random.default_rng(5)
    hidden = rng.normal(size=(*batch["tokens"].shape, settings.embed_dim)).astype(np.float32)
    plain = dataclasses.replace(objective, label_smoothing=0.0, z_loss=0.0)

    def run(params: Any, hidden: Any, batch: Any) -> Any:
        hidden = hidden.astype(settings.compute_dtype)

        def summed(hidden: Any, of: Objective) -> Any:
            return of.terms(model, params, Outputs(hidden, {}, {}), batch)["loss"].sum

        gradient = jax.grad(lambda hidden: summed(hidden, objective))(hidden)
        logits = jax.nn.log_softmax(model.unembed(params, hidden), axis=-1)
        chosen = jnp.take_along_axis(logits, batch["targets"][:, :, None], axis=-1)[:, :, 0]
        norms = jnp.max(jnp.abs(gradient.astype(jnp.float32)), axis=-1)
        return norms, summed(hidden, plain), -jnp.sum(batch["weights"] * chosen), objective.weights(batch)["loss"]

    return subject.compiled(run)(subject.params, jnp.asarray(hidden), jax.tree.map(jnp.asarray, dict(batch)))


def _own_text(subject: Subject) -> Finding:
    """Of windows as they are: every target is a token of its window, asked no more often than it stands there."""
    windows, draws = subject.windows(NUM_WINDOWS)
    batch = subject.objective.corrupt(windows, draws)
    text = synthetic.ordinary_of(subject.vocabulary)
    foreign = 0
    for row in range(len(windows.tokens)):
        held = Counter(windows.tokens[row].tolist())
        if windows.partners is not None:
            held += Counter(windows.partners.tokens[row].tolist())
        asked = batch["targets"][row][batch["weights"][row] > 0]
        foreign += (Counter(asked[np.isin(asked, text)].tolist()) - held).total()
    return measured(LOSS, "targets", "of other windows", float(foreign), 0.0)
