"""Who sees whom: no future, no target, no other document; the same on every attention backend, and from the cache."""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.doctor import synthetic
from research.doctor.findings import HIDDEN, Finding, difference, inapplicable, largest, measured, powerless
from research.doctor.subject import INPUTS, Subject, Traces
from research.kernels import Pattern, attention
from research.models import EncoderDecoder
from research.settings.objective import MASKED

CUTS = 8
ROWS = 2
SINGLE_STEPS = 16

FUTURE, TARGET, PACKING = "no future leak", "no target in sight", "documents isolated"
BACKENDS, CACHE = "backends agree", "cache = full pass"
CAPACITY = "model.expert_capacity: a token can lose its place to a later one of its row, of any document"


class Scene(NamedTuple):
    """Rows in which places are traced.

    Attributes:
      batch: inputs `[rows, seq]` but the tokens.
      table: an embedding for each place: the decoder's, then the encoder's.
      cuts: places before which all hidden states are differentiated at once.
      documents: numbers of the documents that are differentiated one by one.
      seeds: `[1 + cuts + documents, rows, seq]`: all real places, up to each cut, of each document.
    """

    batch: dict[str, np.ndarray]
    table: np.ndarray
    cuts: list[int]
    documents: list[int]
    seeds: np.ndarray

    @property
    def segments(self) -> np.ndarray:
        """Documents of the decoder's places."""
        return self.batch["segment_ids"]

    def flat(self, decoder: np.ndarray, encoder: np.ndarray | None) -> np.ndarray:
        """A mask over all places, as the table has them."""
        return decoder.reshape(-1) if encoder is None else np.concatenate([decoder.reshape(-1), encoder.reshape(-1)])


def scene(subject: Subject) -> Scene:
    """Two rows of the first batch, the last places of the first made padding."""
    batch = {name: array[0, :ROWS].copy() for name, array in subject.batch.items() if name in INPUTS}
    segments = batch["segment_ids"]
    length = segments.shape[1]
    for name in ("segment_ids", "positions", "prefix", "types"):
        if name in batch:
            batch[name][0, -max(1, length // 16) :] = 0
    edges = np.flatnonzero(np.any(np.diff(segments, axis=1) != 0, axis=0)) + 1
    blocks = [start for start, *_ in attention.blocks(Pattern(causal=True), length, length, True)[1:]]
    wanted = [*blocks, *edges.tolist(), *np.linspace(1, length - 1, CUTS).astype(int).tolist()]
    cuts = sorted({cut for cut in wanted[:CUTS] + wanted[-3:] if 0 < cut < length})
    documents = sorted(set(np.unique(segments[segments > 0]).tolist()))
    documents = documents if len(documents) <= 4 else [*documents[:3], documents[-1]]
    real, places = segments > 0, np.arange(length)[None]
    seeds = [real, *(real & (places < cut) for cut in cuts), *(segments == number for number in documents)]
    count = segments.size + batch.get("encoder_segment_ids", np.zeros(0)).size
    rng = np.random.default_rng(2)
    width = subject.settings.model.embed_dim
    table = rng.normal(size=(count, width)) * width**-0.5
    return Scene(batch, table, cuts, documents, np.stack(seeds))


def backends(subject: Subject) -> dict[str, Any]:
    """The kernels with each attention backend, the configured one first; under its own name a model without any."""
    kernels = subject.assembly.kernels
    if not subject.attends:
        return {subject.settings.model.architecture: kernels}
    configured = next((name for name, made in attention.BACKENDS.items() if made is kernels.attention), "configured")
    found = {configured: kernels}
    return found | {
        name: dataclasses.replace(kernels, attention=made)
        for name, made in attention.BACKENDS.items()
        if name != configured
    }


def traced(subject: Subject, made: Scene) -> dict[str, Traces]:
    """One pass on each backend."""
    return {
        name: subject.trace(name, kernels, made.table, made.batch, made.seeds)
        for name, kernels in backends(subject).items()
    }


def future(subject: Subject) -> Iterator[Finding]:
    """No hidden state before a place has a gradient at the embedding of that place, or of a later one.

    What belongs to a prefix may be seen from before.
    """
    if not subject.objective.pattern.causal:
        yield inapplicable(FUTURE, f"objective.name={subject.objective.name} reads from both sides")
        return
    if subject.drops_tokens:
        yield inapplicable(FUTURE, CAPACITY)
        return
    made = scene(subject)
    prefix = made.batch.get("prefix", np.zeros_like(made.segments)) > 0
    places = np.arange(made.segments.shape[1])[None]
    hidden = np.stack([(places >= cut) & ~prefix for cut in made.cuts])
    if not hidden.any():
        yield inapplicable(FUTURE, "every place of every row belongs to a bidirectional prefix")
        return
    for name, found in traced(subject, made).items():
        norms = found.norms[1 : 1 + len(made.cuts), : made.segments.size].reshape(hidden.shape)
        most = largest([norms])
        if not most > 0.0:
            yield powerless(FUTURE, name, "no hidden state depends on any embedding")
            continue
        leak = largest([norms[hidden]]) / most
        yield measured(FUTURE, name, "gradient at later ones", leak, HIDDEN)


def packing(subject: Subject) -> Iterator[Finding]:
    """What stands in one document, or in padding, changes no hidden state of another, and has no gradient from it."""
    if subject.drops_tokens:
        yield inapplicable(PACKING, CAPACITY)
        return
    made = scene(subject)
    read = made.batch.get("encoder_segment_ids")
    for name, kernels in backends(subject).items():
        base = subject.trace(name, kernels, made.table, made.batch, made.seeds)
        size, leaks, moved = largest([base.hidden]), [], []
        for number in made.documents[:2]:
            mine = made.flat(made.segments == number, None if read is None else read == number)
            rng = np.random.default_rng(number)
            table = np.where(mine[:, None], rng.normal(size=made.table.shape) * made.table.std(), made.table)
            changed = subject.trace(name, kernels, table, made.batch, made.seeds).hidden - base.hidden
            other = (made.segments != number) & (made.segments > 0)
            leaks.append(changed[other])
            moved.append(largest([changed[made.segments == number]]))
        if not min(moved) > 0.0:
            yield powerless(PACKING, name, "a document's hidden states do not depend on its own embeddings")
            continue
        leak = largest(leaks) / size
        yield measured(PACKING, f"{name}, forward", "change by others", leak, HIDDEN)
        first = 1 + len(made.cuts)
        pulls = []
        for number, norms in zip(made.documents, base.norms[first:], strict=True):
            pulls.append(norms[made.flat(made.segments != number, None if read is None else read != number)])
        leak = largest(pulls) / max(largest([base.norms]), 1e-30)
        yield measured(PACKING, f"{name}, backward", "gradient at others", leak, HIDDEN)


def agreement(subject: Subject) -> Iterator[Finding]:
    """Every attention backend gives the hidden states and gradients of the reference."""
    if not subject.attends:
        yield inapplicable(BACKENDS, f"model.architecture={subject.settings.model.architecture} has no attention")
        return
    made = scene(subject)
    found = traced(subject, made)
    real = made.segments > 0
    expected = found["reference"]
    for name, traces in found.items():
        if name == "reference":
            continue
        worst = difference(traces.hidden[real], expected.hidden[real])
        yield measured(BACKENDS, f"{name}, hidden states", "difference", worst, subject.tolerance)
        worst = difference(traces.gradient, expected.gradient)
        yield measured(BACKENDS, f"{name}, gradients", "difference", worst, subject.tolerance)


def target(subject: Subject) -> Iterator[Finding]:
    """A token that is to be predicted changes nothing of the hidden state that it is predicted from."""
    if subject.drops_tokens:
        yield inapplicable(TARGET, CAPACITY)
        return
    windows, draws = subject.windows(ROWS)
    rng, ordinary = np.random.default_rng(3), synthetic.ordinary_of(subject.vocabulary)
    embedding = np.asarray(subject.params["embedding"]["tokens"], np.float32)
    base = subject.objective.corrupt(windows, draws)
    name, kernels = next(iter(backends(subject).items()))
    real = (base["segment_ids"] > 0)[None]
    before = subject.trace(name, kernels, _embedded(embedding, base), base, _padded(real, subject)).hidden
    size, leaks, moved, tried = largest([before]), [0.0], 0.0, 0
    for _ in range(200):
        tokens = windows.tokens.copy()
        places = rng.integers(0, windows.raw_length, ROWS)
        rows = np.arange(ROWS)
        old = tokens[rows, places]
        # Words begin where they did, and text stays text.
        new = ordinary[(np.searchsorted(ordinary, old) + 2 * rng.integers(1, len(ordinary) // 2, ROWS)) % len(ordinary)]
        tokens[rows, places] = np.where(np.isin(old, ordinary), new, old)
        other = subject.objective.corrupt(dataclasses.replace(windows, tokens=tokens), draws)
        asked = _asked(subject, base, other)
        if not asked.any():
            continue
        after = subject.trace(name, kernels, _embedded(embedding, other), other, _padded(real, subject)).hidden
        leaks.append(largest([(after - before)[asked]]))
        moved, tried = max(moved, largest([after - before])), tried + 1
        if tried == 4:
            break
    if not tried:
        yield powerless(TARGET, name, "no token of the text is a target")
    elif not moved > 0.0:
        yield powerless(TARGET, name, "no hidden state depends on the text")
    else:
        yield measured(TARGET, name, "change by the target", max(leaks) / size, HIDDEN)


def _asked(subject: Subject, base: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> np.ndarray:
    """Places at which the new token is predicted, in rows that are otherwise as they were."""
    same = np.all((base["weights"] == other["weights"]) & (base["segment_ids"] == other["segment_ids"]), axis=1)
    found = (base["weights"] > 0) & (base["targets"] != other["targets"]) & same[:, None]
    members = np.array([member.name in MASKED for member in getattr(subject.objective, "members", [subject.objective])])
    masked = members[base.get("members", np.zeros(len(same), np.int32))]
    # A masked model may be shown a chosen token as it is: there it does see its target, by design.
    return found & (~masked[:, None] | (base["tokens"] == subject.objective.vocabulary.mask))


def _embedded(embedding: np.ndarray, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    tokens = [batch[name].reshape(-1) for name in ("tokens", "encoder_tokens") if name in batch]
    return embedding[np.concatenate(tokens)]


def _padded(real: np.ndarray, subject: Subject) -> np.ndarray:
    """As many seeds as a scene has, so that no program is compiled for these."""
    count = len(scene(subject).seeds)
    return np.broadcast_to(real, (count, *real.shape[1:]))


# --- the cache --------------------------------------------------------------------------------------------------------


def cache(subject: Subject) -> Iterator[Finding]:
    """Reading in pieces, and then token by token, gives the hidden states of one pass over everything."""
    pattern, model = subject.objective.pattern, subject.model
    if not pattern.causal:
        yield inapplicable(CACHE, f"objective.name={subject.objective.name} reads from both sides")
        return
    if subject.drops_tokens:
        yield inapplicable(CACHE, CAPACITY)
        return
    inputs, first = _pieces(subject)
    length = inputs["tokens"].shape[1]
    placed = jax.tree.map(jnp.asarray, inputs)
    read = {name: array for name, array in placed.items() if name.startswith("encoder_")}
    own = {name: array for name, array in placed.items() if name not in read}
    whole = subject.compiled(lambda params, inputs: model.apply(params, inputs, pattern=pattern).hidden)
    expected = whole(subject.params, placed)
    kept: Any
    if isinstance(model, EncoderDecoder):
        kept = model.init_cache(ROWS, length, read["encoder_tokens"].shape[1])
        kept = subject.compiled(model.remember)(subject.params, kept, read)
    else:
        kept = model.init_cache(ROWS, length)
    advance = subject.compiled(partial(model.decode, pattern=pattern))
    parts = []
    for begin, end in [(0, first), *((place, place + 1) for place in range(first, length))]:
        piece = {name: array[:, begin:end] for name, array in own.items()}
        hidden, kept = advance(subject.params, kept, piece)
        parts.append(hidden)
    real = inputs["segment_ids"] > 0
    found = np.concatenate([np.asarray(part, np.float32) for part in parts], axis=1)[real]
    worst = difference(found, np.asarray(expected, np.float32)[real])
    yield measured(CACHE, subject.settings.model.architecture, "difference", worst, subject.tolerance)


def _pieces(subject: Subject) -> tuple[dict[str, np.ndarray], int]:
    """Inputs of two rows, and the length of the piece that is read at once.

    The first row is a document, and then another that begins among the single tokens; the second has padding before it.
    """
    length = subject.batch["tokens"].shape[-1]
    steps = min(SINGLE_STEPS, length // 2)
    first, second, padding = length - steps, length - steps // 2, min(3, length // 4)
    rng, ordinary = np.random.default_rng(4), synthetic.ordinary_of(subject.vocabulary)
    places = np.broadcast_to(np.arange(length, dtype=np.int32)[None], (ROWS, length))
    segments = np.stack([np.where(places[0] < second, 1, 2), np.where(places[1] < padding, 0, 1)]).astype(np.int32)
    begins = np.stack([np.where(places[0] < second, 0, second), np.full(length, padding)])
    inputs = {
        "tokens": rng.choice(ordinary, (ROWS, length)).astype(np.int32),
        "segment_ids": segments,
        "positions": np.maximum(places - begins, 0).astype(np.int32),
    }
    if subject.objective.pattern.prefix:
        inputs["prefix"] = ((places < first // 2) & (segments == 1)).astype(np.int32)
    if "encoder_tokens" in subject.batch:
        memory = subject.batch["encoder_tokens"].shape[-1]
        places = np.broadcast_to(np.arange(memory, dtype=np.int32)[None], (ROWS, memory))
        half = memory // 2
        inputs["encoder_tokens"] = rng.choice(ordinary, (ROWS, memory)).astype(np.int32)
        inputs["encoder_segment_ids"] = np.where(places < half, 1, 2).astype(np.int32)
        inputs["encoder_positions"] = np.where(places < half, places, places - half).astype(np.int32)
    return inputs, first
