"""One question for every model that predicts text: the end of a piece of held-out text, given its beginning.

What is asked is settled before any model is looked at, by bytes of text: beginnings and ends lie where every tokenizer
has a boundary, so that each model predicts the same bytes from the same bytes, and bits per byte are of one text. In
which form a model is asked is its objective's business (`Objective.continuation`); what that writes around the text
(sentinels, marks, ends) is neither counted nor paid for.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float64, Int64

from research.data.prepare import Prepared
from research.data.windows import Windows
from research.errors import UserError
from research.evaluate.rows import over_rows
from research.models import Model
from research.objectives import Objective

# Held-out documents stand in the order of their hashes: the first ones are as good a sample as any.
MOST_PIECES = 2048


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Pieces of held-out documents as one tokenizer has them.

    Attributes:
      starts: place of the first token of each in the held-out stream.
      given: tokens of its beginning.
      asked: tokens of its end, which is the suffix.
      documents: number of the document that it is of; pieces of a document stand together.
      num_bytes: UTF-8 bytes of the suffix.
    """

    starts: Int64[np.ndarray, " pieces"]
    given: Int64[np.ndarray, " pieces"]
    asked: Int64[np.ndarray, " pieces"]
    documents: Int64[np.ndarray, " pieces"]
    num_bytes: Float64[np.ndarray, " pieces"]

    def windows(self, prepared: Prepared) -> Windows:
        """The pieces, each as if it began a document: nobody is shown what stands before it."""
        reader, vocabulary = prepared.heldout, prepared.tokenizer.vocabulary
        lengths = self.given + self.asked
        columns = np.arange(int(lengths.max()))[None]
        real = columns < lengths[:, None]
        places = np.minimum(self.starts[:, None] + columns, reader.num_tokens - 1)
        tokens = np.where(real, reader.at(places), np.int32(vocabulary.pad)).astype(np.int32)
        left, ids = np.full(len(lengths), vocabulary.bos, np.int32), np.arange(len(lengths))
        positions = np.where(real, columns, 0).astype(np.int32)
        return Windows(tokens, real.astype(np.int32), positions, left, ids, np.zeros_like(ids))

    def by_document(self, values: Float64[np.ndarray, " pieces"]) -> Float64[np.ndarray, " documents"]:
        """Sums over the pieces of each document."""
        _, number = np.unique(self.documents, return_inverse=True)
        return np.bincount(number, weights=values)


def cut(corpora: Sequence[Prepared], given: int, asked: int, most: int = MOST_PIECES) -> list[Pieces]:
    """The same pieces of the same held-out documents for each of several tokenizers.

    A document is cut into pieces, one behind the other; their beginnings have `given` tokens and their ends `asked` by
    the tokenizer that has most, or as many fewer as the next common boundary wants; the last end is what is left.

    Args:
      corpora: one corpus, prepared with one or several tokenizers.
      given: most tokens of a beginning.
      asked: most tokens of an end.
      most: pieces; what comes behind them is left out.

    Raises:
      UserError: no document is long enough, or several tokenizers of which one loses text.
    """
    several = len({prepared.tokenizer.hash for prepared in corpora}) > 1
    for prepared in corpora:
        if several and not prepared.tokenizer.exact:
            raise UserError(
                "runs of several tokenizers are compared where each gives back every text that it encodes, and that of "
                f"tokenizer.vocab_size={prepared.tokenizer.vocabulary.size} does not: compare runs of one tokenizer"
            )
    found: list[tuple[int, list[tuple[int, int, int]]]] = []
    for document in range(corpora[0].heldout.num_documents):
        places = _common_boundaries(corpora, document, several)
        found += [(document, piece) for piece in _pieces(places, given, asked)]
        if len(found) >= most:
            break
    if not found:
        raise UserError(f"--given={given}: no held-out document is longer than that; lower it")
    return [_of(prepared, number, found[:most]) for number, prepared in enumerate(corpora)]


def _common_boundaries(corpora: Sequence[Prepared], document: int, several: bool) -> list[np.ndarray]:
    """For each tokenizer the numbers of tokens of the document before each boundary that all of them have."""
    ends = []
    for prepared in corpora:
        start, stop = prepared.heldout.document_offsets[document : document + 2].tolist()
        lengths = np.ones(stop - 1 - start, dtype=np.int64)
        if several:
            lengths = prepared.tokenizer.byte_lengths[prepared.heldout.read(start, stop - 1)]
        ends.append(np.concatenate([[0], np.cumsum(lengths)]))
    common = functools.reduce(np.intersect1d, ends)
    return [np.searchsorted(own, common) for own in ends]


def _pieces(places: list[np.ndarray], given: int, asked: int) -> list[list[tuple[int, int, int]]]:
    """For each piece, by tokenizer: first token, tokens given, tokens asked."""
    found: list[list[tuple[int, int, int]]] = []
    start = 0
    while True:
        cut = min(int(np.searchsorted(own, own[start] + given, side="right")) for own in places) - 1
        end = min(int(np.searchsorted(own, own[cut] + asked, side="right")) for own in places) - 1
        if not start < cut < end:
            return found
        found.append([(int(own[start]), int(own[cut] - own[start]), int(own[end] - own[cut])) for own in places])
        start = end


def _of(prepared: Prepared, number: int, found: list) -> Pieces:
    """The pieces as the tokenizer of that number has them."""
    reader, tokenizer = prepared.heldout, prepared.tokenizer
    documents = np.array([document for document, _ in found], dtype=np.int64)
    first, given, asked = np.array([piece[number] for _, piece in found], dtype=np.int64).T
    starts = reader.document_offsets[documents] + first
    num_bytes = []
    for begin, count in zip(starts + given, asked, strict=True):
        places = np.arange(begin, begin + count)
        exact = tokenizer.exact
        num_bytes.append(tokenizer.byte_lengths[reader.at(places)].sum() if exact else reader.bytes_at(places))
    return Pieces(starts, given, asked, documents, np.array(num_bytes, dtype=np.float64))


def suffix_nats(
    model: Model, objective: Objective, params: Any, batch: Mapping[str, np.ndarray], size: int, mesh: Mesh
) -> Float64[np.ndarray, " pieces"]:
    """Cross entropy of each suffix in nats, summed over its tokens.

    Args:
      model: gives the hidden states.
      objective: gives the pattern.
      params: weights.
      batch: of `objective.continuation`.
      size: rows of a call.
      mesh: devices.
    """
    most = int(batch["weights"].sum(axis=1).max())

    def nats(params: Any, rows: Mapping[str, Array]) -> Float[Array, " rows"]:
        hidden = model.apply(params, rows, pattern=objective.pattern).hidden
        weights, places = jax.lax.top_k(rows["weights"], most)
        logits = model.unembed(params, jnp.take_along_axis(hidden, places[:, :, None], axis=1))
        targets = jnp.take_along_axis(rows["targets"], places, axis=1)
        chosen = jnp.take_along_axis(logits, targets[:, :, None], axis=-1)[:, :, 0]
        return jnp.sum(weights * (jax.nn.logsumexp(logits, axis=-1) - chosen), axis=1)

    return over_rows(nats, params, batch, size, mesh).astype(np.float64)
