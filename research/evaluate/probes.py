"""Linear probes: how much of a label can be read off frozen features by a line (Alain & Bengio 2016).

A multinomial logistic regression is fitted to some documents, its weight decay and which of a model's features it gets
are chosen on others, and its hits are counted on a third group, once. The same classifier on bags of tokens says what
the words alone give away, and on an untrained model what the architecture does.
"""

import dataclasses
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import scipy.optimize
import scipy.sparse
from jaxtyping import Bool, Float, Float64, Int64

from research.data.origins import origins
from research.data.prepare import Prepared
from research.errors import UserError
from research.evaluate.features import Texts

# Beside a mean cross entropy, for inputs whose mean square is one.
DECAYS = (10.0, 1.0, 0.3, 0.1, 0.01, 1e-3)
ITERATIONS = 100
# Packages with fewer documents to learn from are left out, whose few held-out documents would say nothing.
FEWEST = 20
VALIDATION = 0.2
Features = Float[np.ndarray, "documents features"]
Inputs: TypeAlias = Features | scipy.sparse.csr_array
Labels = Int64[np.ndarray, " documents"]


@dataclasses.dataclass(frozen=True)
class Task:
    """Labelled documents: those to fit on, then those to choose on, then those to count on.

    Attributes:
      texts: beginnings of the documents, as tokens.
      labels: number of the class of each.
      classes: names of the classes.
      fitted: documents to fit on, the first ones.
      chosen: documents to choose on, behind them; the rest is held out.
      dropped: documents of classes that were left out.
    """

    texts: Texts
    labels: Labels
    classes: tuple[str, ...]
    fitted: int
    chosen: int
    dropped: int

    @property
    def parts(self) -> tuple[slice, slice, slice]:
        """Where the three groups lie."""
        middle = self.fitted + self.chosen
        return slice(0, self.fitted), slice(self.fitted, middle), slice(middle, len(self.labels))


@dataclasses.dataclass(frozen=True)
class Probe:
    """A fitted probe.

    Attributes:
      name: of the features that were best on the documents to choose on.
      decay: that was best there.
      chosen_accuracy: share of hits there.
      hits: for each held-out document whether its label was found.
    """

    name: str
    decay: float
    chosen_accuracy: float
    hits: Bool[np.ndarray, " heldout"]


def task(prepared: Prepared, length: int, documents: int) -> Task:
    """Which package a documentation string comes from.

    Documents to fit and to choose on are the last of the training split, whose order is one of hashes; what is counted
    is the held-out split, which no model was trained on.

    Args:
      prepared: the corpus.
      length: tokens of a document that are read, at most.
      documents: to fit and to choose on, and at most as many held-out ones.

    Raises:
      UserError: a corpus without origins, or too few documents of two packages.
    """
    known = origins(prepared)
    if known is None:
        raise UserError(
            f"data.source={prepared.manifest['source']['kind']} keeps no labels of documents, which probes read off: "
            "choose another --yardstick, or runs of data.source=docstrings"
        )
    fit_on = range(max(0, prepared.train.num_documents - documents), prepared.train.num_documents)
    count_on = range(min(documents, prepared.heldout.num_documents))
    numbered = (("train", fit_on), ("heldout", count_on))
    packages = [[known[split][number].partition("/")[0] for number in numbers] for split, numbers in numbered]
    learned = packages[0][: len(fit_on) - round(VALIDATION * len(fit_on))]
    classes = tuple(sorted(name for name in set(learned) if learned.count(name) >= FEWEST))
    if len(classes) < 2 or not set(classes) & set(packages[1]):
        raise UserError(
            f"--documents={documents} has fewer than two packages with {FEWEST} documents each: ask for more documents"
        )
    readers = [(prepared.train, number) for number in fit_on] + [(prepared.heldout, number) for number in count_on]
    names = [*packages[0], *packages[1]]
    kept = np.array([name in classes for name in names])
    tokens, lengths = np.zeros((int(kept.sum()), length), np.int32), np.zeros(int(kept.sum()), np.int64)
    for row, place in enumerate(np.flatnonzero(kept)):
        reader, number = readers[place]
        start, stop = reader.document_offsets[number : number + 2].tolist()
        text = reader.read(start, min(stop - 1, start + length))
        tokens[row, : len(text)], lengths[row] = text, len(text)
    fitted, whole = int(kept[: len(learned)].sum()), int(kept[: len(fit_on)].sum())
    labels = np.array([classes.index(name) for name, keep in zip(names, kept, strict=True) if keep], dtype=np.int64)
    return Task(Texts(tokens, lengths), labels, classes, fitted, whole - fitted, int((~kept).sum()))


def probe(features: Mapping[str, Inputs], task: Task) -> Probe:
    """The best of the features by name, and what its probe finds on the held-out documents.

    Features have a mean square of about one: see `standardised` and `bag_of_tokens`.
    """
    fit_on, choose_on, count_on = task.parts
    found: list[tuple[float, str, float, np.ndarray]] = []
    for name, values in features.items():
        weights = np.zeros((values.shape[1] + 1, len(task.classes)))
        for decay in DECAYS:
            weights = fit(values[fit_on], task.labels[fit_on], decay, weights)
            hits = predictions(values, weights) == task.labels
            found.append((float(hits[choose_on].mean()), name, decay, hits[count_on]))
    accuracy, name, decay, hits = max(found, key=lambda one: one[0])  # the first of equals: the largest decay
    return Probe(name, decay, accuracy, hits)


def majority(task: Task) -> Bool[np.ndarray, " heldout"]:
    """For each held-out document whether it is of the class that is most frequent among those to fit on."""
    fit_on, _, count_on = task.parts
    return task.labels[count_on] == np.bincount(task.labels[fit_on], minlength=len(task.classes)).argmax()


def bag_of_tokens(task: Task) -> scipy.sparse.csr_array:
    """Logarithmic counts of the tokens, those weighed less that are in many documents; all rows of one length.

    Tokens are counted in as much of each document as the models read; those that no document to fit on has are left
    out. The mean square is one, as that of standardised features.
    """
    texts, fit_on = task.texts, slice(0, task.fitted)
    real = np.arange(texts.tokens.shape[1])[None] < texts.lengths[:, None]
    ids = np.unique(texts.tokens[fit_on][real[fit_on]])
    rows, tokens = np.nonzero(real)[0], texts.tokens[real]
    columns = np.minimum(np.searchsorted(ids, tokens), len(ids) - 1)
    known = ids[columns] == tokens
    shape, once = (len(texts.lengths), len(ids)), np.ones(int(known.sum()))
    bags = scipy.sparse.coo_array((once, (rows[known], columns[known])), shape).tocsr()  # adds what stands twice
    bags.data = np.log1p(bags.data)
    documents = np.bincount(bags[fit_on].indices, minlength=len(ids))
    bags = bags.multiply(np.log((1 + task.fitted) / documents)[None]).tocsr()
    norms = np.maximum(np.sqrt(bags.multiply(bags).sum(axis=1)), 1e-12)
    return bags.multiply((len(ids) ** 0.5 / norms)[:, None]).tocsr()


# --- the classifier ---------------------------------------------------------------------------------------------------


def standardised(values: Features, task: Task) -> Float64[np.ndarray, "documents features"]:
    """Features less their means, over their standard deviations, both of the documents to fit on."""
    values = values.astype(np.float64)
    centred = values - values[: task.fitted].mean(axis=0)
    return centred / np.maximum(centred[: task.fitted].std(axis=0), 1e-6)


def fit(
    values: Inputs,
    labels: Labels,
    decay: float,
    start: Float64[np.ndarray, "inputs classes"],
) -> Float64[np.ndarray, "inputs classes"]:
    """Weights, and biases in the last row, that minimise mean cross entropy + decay / 2 * sum of squared weights.

    The problem is strictly convex but for a constant that all biases share; L-BFGS starts at `start`.
    """
    rows = np.arange(len(labels))

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(start.shape)
        logits = values @ weights[:-1] + weights[-1]
        logits -= logits.max(axis=1, keepdims=True)
        normaliser = np.log(np.exp(logits).sum(axis=1))
        errors = np.exp(logits - normaliser[:, None])
        total = np.mean(normaliser - logits[rows, labels]) + decay / 2 * np.sum(weights[:-1] ** 2)
        errors[rows, labels] -= 1.0
        gradient = np.concatenate([values.T @ errors, errors.sum(axis=0, keepdims=True)]) / len(labels)
        gradient[:-1] += decay * weights[:-1]
        return float(total), gradient.ravel()

    options = {"maxiter": ITERATIONS, "gtol": 1e-5, "ftol": 1e-10}
    found = scipy.optimize.minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(start.shape)


def predictions(values: Inputs, weights: Float64[np.ndarray, "inputs classes"]) -> Labels:
    """The most probable class of each document."""
    return np.argmax(values @ weights[:-1] + weights[-1], axis=1)
