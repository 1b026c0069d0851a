"""Each law is broken on purpose, and the examination of that law says so."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from research import doctor
from research.data.loader import Loader
from research.doctor import execution, findings, sharding, targets, visibility
from research.kernels import Pattern, attention, choice
from research.models import EncoderDecoder, Transformer
from research.models.lstm import Lstm
from research.models.stack import Stack
from research.objectives import units
from research.objectives.causal import Causal
from research.objectives.masked import Masked
from research.objectives.prefix import Prefix
from research.objectives.span_corruption import SpanCorruption
from research.objectives.terms import Objective
from research.parallel import arrays
from research.vocabulary import Vocabulary
from tests import small

LENGTH = 32
SPANS = {"objective.name": "span_corruption"}
BOTH = SPANS | {"model.architecture": "encoder_decoder", "model.position": "relative"}
MASKED = {"objective.name": "masked"}
PREFIX = {"objective.name": "prefix"}
LSTM = {"model.architecture": "lstm"}

Break = Callable[[pytest.MonkeyPatch], None]


def wrapped(owner: Any, name: str, change: Callable[..., Any]) -> Break:
    """Replaces a method by `change(original, *arguments)`."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        original = getattr(owner, name)
        patch.setattr(owner, name, lambda *a, **k: change(original, *a, **k))

    return apply


def backend(name: str, change: Callable[[attention.Operands], attention.Operands]) -> Break:
    """Changes the operands of an attention backend, wherever it is used."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        original = attention.BACKENDS[name]

        def other(of: attention.Operands, form: attention.Form) -> Any:
            return original(change(of), form)

        patch.setitem(attention.BACKENDS, name, other)
        if choice.CPU.attention is original:
            patch.setattr(choice, "CPU", dataclasses.replace(choice.CPU, attention=other))

    return apply


def one_ahead(original: Any, self: Pattern, query: Any, key: Any, offset: Any = 0, prefix: Any = None) -> Any:
    return original(self, query, key, offset + 1, prefix)


def one_document(of: attention.Operands) -> attention.Operands:
    return of._replace(query_segments=jnp.ones_like(of.query_segments), key_segments=jnp.ones_like(of.key_segments))


def scaled(of: attention.Operands) -> attention.Operands:
    return of._replace(query=1.02 * of.query)


def all_memory(of: attention.Operands) -> attention.Operands:
    return of if of.query_segments is of.key_segments else one_document(of)


def unshifted(original: Any, self: Causal, windows: Any, draws: Any) -> dict[str, np.ndarray]:
    batch = original(self, windows, draws)
    return batch | {"tokens": windows.tokens}


def long_prefix(original: Any, self: Prefix, windows: Any, draws: Any) -> dict[str, np.ndarray]:
    batch = original(self, windows, draws)
    return batch | {"prefix": np.ones_like(batch["prefix"])}


def any_token(original: Any, candidates: Any, begins: Any, scores: Any, *rest: Any, **named: Any) -> Any:
    del original, begins, rest, named
    return scores < 0.3 * np.ones_like(candidates)


def target_dropped(original: Any, self: Objective, hidden: Any, batch: Any) -> Any:
    found, targets, weights = original(self, hidden, batch)
    return found, targets, weights * (jnp.arange(weights.shape[0]) != jnp.argmax(weights)).astype(weights.dtype)


def all_targets(original: Any, self: Objective, hidden: Any, batch: Any) -> Any:
    found, targets, weights = original(self, hidden, batch)
    return found, targets, jnp.ones_like(weights)


def next_target(original: Any, self: Objective, hidden: Any, batch: Any) -> Any:
    found, targets, weights = original(self, hidden, batch)
    return found, jnp.roll(targets, 1), weights


def foreign_targets(original: Any, self: Objective, windows: Any, draws: Any) -> dict[str, np.ndarray]:
    batch = original(self, windows, draws)
    return batch | {"targets": np.roll(batch["targets"], 1, axis=0)}


def mean_of_means(original: Any, self: Objective, batch: Any) -> dict[str, Any]:
    known = original(self, batch)
    rows = batch["weights"].shape[0]
    return {name: weight * (0.9 if rows > 1 and batch["weights"].ndim == 3 else 1.0) for name, weight in known.items()}


def stale_positions(original: Any, self: Transformer, params: Any, cache: Any, inputs: Any, *, pattern: Pattern) -> Any:
    inputs = {**inputs, "positions": jnp.arange(inputs["tokens"].shape[1])[None] + jnp.zeros_like(inputs["positions"])}
    return original(self, params, cache, inputs, pattern=pattern)


def forgotten_memory(original: Any, self: EncoderDecoder, params: Any, cache: Any, inputs: Any) -> Any:
    found = original(self, params, cache, inputs)
    return found._replace(cross_values=found.cross_values[:, ::-1])


def lossy_remat(original: Any, self: Stack, run: Any) -> Any:
    kept = original(self, run)
    if self.remat == "none":
        return kept

    def other(x: Any, *rest: Any) -> Any:
        return kept(x * 1.01, *rest)

    return other


def reversed_loop(original: Any, self: Stack, block: Any, x: Any, *stacked: Any) -> Any:
    if self.scan:
        stacked = tuple({**part, "mlp_norm": {k: v[::-1] for k, v in part["mlp_norm"].items()}} for part in stacked)
    return original(self, block, x, *stacked)


def swapped_rows(original: Any, batch: Any, rows: int, held: Any, mesh: Any) -> Any:
    if mesh.size > 1:
        batch = {**batch, "targets": batch["targets"][:, ::-1].copy()}
    return original(batch, rows, held, mesh)


def rows_on_wrong_devices(patch: pytest.MonkeyPatch) -> None:
    made = sharding.layouts(settings({}))
    patch.setattr(sharding, "layouts", lambda settings: {"dp": made["dp"]})
    wrapped(arrays, "to_global", swapped_rows)(patch)


def wrong_product(patch: pytest.MonkeyPatch) -> None:
    right = choice.CPU.product
    patch.setattr(choice, "CPU", dataclasses.replace(choice.CPU, product=lambda x, weight: right(x, weight) * 1.001))


def remembers(original: Any, self: Loader, step: int) -> Any:
    batch = original(self, step)
    self.calls = getattr(self, "calls", 0) + 1  # type: ignore[attr-defined]
    return batch | {"tokens": batch["tokens"] + np.int32(self.calls - 1)}  # type: ignore[attr-defined]


def never_begins(original: Any, self: Lstm, params: Any, cache: Any, inputs: Any, *rest: Any) -> Any:
    return original(self, params, cache, {**inputs, "segment_ids": jnp.zeros_like(inputs["segment_ids"])}, *rest)


def sentinels_shuffled(original: Any, self: SpanCorruption, windows: Any, draws: Any) -> dict[str, np.ndarray]:
    batch = original(self, windows, draws)
    last, ids = self.vocabulary.sentinels[0], batch["targets"]
    return batch | {"targets": np.where(ids == last, last + 1, ids)}


def only_ordinary(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Vocabulary, "special", property(lambda self: (self.pad,)))


BREAKAGES: dict[str, tuple[str, dict[str, Any], Break]] = {
    "a causal pattern that sees one place ahead": (visibility.FUTURE, {}, wrapped(Pattern, "visible", one_ahead)),
    "a prefix pattern that sees one place ahead": (visibility.FUTURE, PREFIX, wrapped(Pattern, "visible", one_ahead)),
    "inputs that are not shifted": (visibility.TARGET, {}, wrapped(Causal, "corrupt", unshifted)),
    "targets flagged as prefix": (visibility.TARGET, PREFIX, wrapped(Prefix, "corrupt", long_prefix)),
    "a backend that ignores documents": (visibility.PACKING, {}, backend("blocked", one_document)),
    "another backend that ignores documents": (visibility.PACKING, MASKED, backend("reference", one_document)),
    "a state that runs on into the next document": (visibility.PACKING, LSTM, wrapped(Lstm, "_read", never_begins)),
    "a decoder that sees all of the encoder": (visibility.PACKING, BOTH, backend("blocked", all_memory)),
    "a backend with another scale": (visibility.BACKENDS, {}, backend("blocked", scaled)),
    "positions that begin anew in each piece": (
        visibility.CACHE,
        {},
        wrapped(Transformer, "decode", stale_positions),
    ),
    "an encoder whose rows are remembered in another order": (
        visibility.CACHE,
        BOTH,
        wrapped(EncoderDecoder, "remember", forgotten_memory),
    ),
    "special tokens among the chosen": (targets.SPECIAL, MASKED, wrapped(units, "choose", any_token)),
    "special tokens taken for ordinary ones": (targets.SPECIAL, SPANS, only_ordinary),
    "sentinels that are not asked": (targets.SPECIAL, SPANS, wrapped(SpanCorruption, "corrupt", sentinels_shuffled)),
    "a target that is lost": (targets.LOSS, MASKED, wrapped(Masked, "select", target_dropped)),
    "a loss everywhere": (targets.LOSS, MASKED, wrapped(Masked, "select", all_targets)),
    "targets of other places": (targets.LOSS, {}, wrapped(Causal, "select", next_target)),
    "targets of other windows": (targets.LOSS, {}, wrapped(Causal, "corrupt", foreign_targets)),
    "a divisor of each micro-batch": (execution.ACCUMULATION, {}, wrapped(Causal, "weights", mean_of_means)),
    "recomputation of something else": (execution.REMAT, {}, wrapped(Stack, "_rematerialised", lossy_remat)),
    "a loop in another order": (execution.SCAN, {"model.num_layers": 2}, wrapped(Stack, "_repeat", reversed_loop)),
    "a product that is slightly wrong": (execution.KERNELS, {}, wrong_product),
    "a batch that depends on how often it is asked for": (
        execution.TWICE,
        {},
        wrapped(Loader, "batch", remembers),
    ),
    "rows on the wrong devices": (sharding.SHARDED, {}, rows_on_wrong_devices),
}


def settings(changes: dict[str, Any]) -> Any:
    """A model of one thin layer over windows of several documents."""
    thin = {"data.sequence_length": LENGTH, "model.num_layers": 1, "model.embed_dim": 16, "model.num_heads": 4}
    return small.settings(thin | changes)


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_law_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    law, changes, broken = BREAKAGES[name]
    broken(monkeypatch)
    report = doctor.examine(settings(changes), only=[law])
    verdicts = {finding.verdict for finding in report.findings}
    assert findings.FAILS in verdicts, report.findings
    assert not report.holds


def test_every_law_is_broken_somewhere() -> None:
    assert {law for law, _, _ in BREAKAGES.values()} == {law.name for law in doctor.LAWS} | {sharding.SHARDED}
