"""What each yardstick gives for several runs: bits per byte of suffixes, probes, distance from baselines."""

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from research.cli import measures, rundir
from research.cli.compared import BASELINES, PROBES, SUFFIXES, Run, Stage
from research.errors import UserError
from research.evaluate import bootstrap, probes
from research.evaluate.bootstrap import Interval, Resamples
from research.evaluate.features import features
from research.evaluate.heldout import heldout_evaluation
from research.evaluate.suffixes import cut, suffix_nats
from research.train.assembly import Assembly

# Tokens of a document that a probe's features are of, at most.
READ = 128


@dataclasses.dataclass(frozen=True)
class Amounts:
    """How much is asked: tokens that are given, tokens of a suffix, documents that probes learn from."""

    given: int
    suffix: int
    documents: int


def compare(runs: Sequence[Run], yardsticks: Sequence[str], amounts: Amounts, stage: Stage) -> dict[str, Any]:
    """What the yardsticks give, by their names, and `runs`, which checkpoint of each it is of.

    Suffixes are asked of the runs that predict text from what stands before it, the others of all.
    """
    asked: dict[str, Measure] = {}
    of = {name: [run for run in runs if name != SUFFIXES or run.continues] for name in yardsticks}
    for name in yardsticks:
        stage(f"settling what is asked by {name}")
        asked[name] = MEASURES[name](of[name], amounts)
    facts = []
    for run in runs:
        stage(f"loading {run.name}")
        params, step = rundir.open_parameters(run.workdir, run.assembly, None)
        with jax.set_mesh(run.assembly.mesh):
            for name, measure in asked.items():
                if run in of[name]:
                    stage(f"{name} of {run.name}")
                    measure.add(of[name].index(run), run, params, step)
        facts.append(
            {
                "run": run.name,
                "workdir": str(run.workdir),
                "objective": run.objective,
                "step": step,
                "num_steps": run.settings.train.num_steps,
                "config_hash": run.provenance.get("config_hash"),
                "data_hash": run.prepared.data_hash,
                "commit": run.provenance.get("commit"),
            }
        )
    return {"runs": facts} | {name: measure.result() for name, measure in asked.items()}


class Measure(abc.ABC):
    """One yardstick: made for all runs, asked of each in turn, then for what it found."""

    @abc.abstractmethod
    def __init__(self, runs: Sequence[Run], amounts: Amounts) -> None:
        """Settles what is asked of all of them."""

    @abc.abstractmethod
    def add(self, number: int, run: Run, params: Any, step: int) -> None:
        """Measures one run."""

    @abc.abstractmethod
    def result(self) -> dict[str, Any]:
        """What was found, as JSON."""


class Suffixes(Measure):
    """Bits per byte of the same suffixes."""

    def __init__(self, runs: Sequence[Run], amounts: Amounts) -> None:
        self._amounts = amounts
        self._pieces = cut([run.prepared for run in runs], amounts.given, amounts.suffix)
        self._batches = []
        for run, pieces in zip(runs, self._pieces, strict=True):
            batch = run.assembly.objective.continuation(pieces.windows(run.prepared), pieces.given)
            longest = max(array.shape[1] for array in batch.values())
            if longest > run.settings.data.sequence_length:
                raise UserError(
                    f"--given={amounts.given} and --suffix={amounts.suffix} make {longest} positions of "
                    f"{run.name} ({run.objective}), more than its data.sequence_length="
                    f"{run.settings.data.sequence_length}: lower one of them"
                )
            self._batches.append(batch)
        first = self._pieces[0]
        self._bytes = first.by_document(first.num_bytes)
        self._bits: list[np.ndarray] = []
        self._rows: list[dict[str, Any]] = []

    def add(self, number: int, run: Run, params: Any, step: int) -> None:
        """Asks for the suffixes."""
        own, pieces = run.assembly, self._pieces[number]
        nats = suffix_nats(own.model, own.objective, params, self._batches[number], own.evaluation_batch, own.mesh)
        self._bits.append(pieces.by_document(nats) / math.log(2))
        self._rows.append(
            {"run": run.name, "objective": run.objective, "step": step, "tokens": int(pieces.asked.sum())}
        )

    def result(self) -> dict[str, Any]:
        """Best first: bits per byte, and by how much it is more than that of the best."""
        drawn = bootstrap.resamples(len(self._bytes))
        return {
            "given": self._amounts.given,
            "suffix": self._amounts.suffix,
            "documents": len(self._bytes),
            "pieces": len(self._pieces[0].asked),
            "bytes": int(self._bytes.sum()),
            "ranked": ranked(self._rows, self._bits, self._bytes, drawn, "bits_per_byte", sign=1),
        }


class Probes(Measure):
    """Accuracy of linear probes on frozen features."""

    def __init__(self, runs: Sequence[Run], amounts: Amounts) -> None:
        length = min(READ, *(run.settings.data.sequence_length - 1 for run in runs))
        self._task = task = probes.task(runs[0].prepared, length, amounts.documents)
        self._length, self._bag = length, probes.probe({"bag of tokens": probes.bag_of_tokens(task)}, task)
        self._hits: list[np.ndarray] = []
        self._rows: list[dict[str, Any]] = []

    def add(self, number: int, run: Run, params: Any, step: int) -> None:
        """Probes the trained model, and the same one with its initial weights."""
        own = run.assembly
        initial = jax.jit(own.model.init)(jax.random.key(run.settings.seed))
        trained, untrained = (self._probe(own, weights) for weights in (params, initial))
        drawn = bootstrap.resamples(len(trained.hits))
        hits, plain, bag = (of.hits.astype(np.float64) for of in (trained, untrained, self._bag))
        row = {"run": run.name, "objective": run.objective, "step": step, "features": trained.name}
        row |= {"decay": trained.decay, "untrained": shares(plain, drawn)}
        row |= {"over_untrained": over(hits, plain, drawn), "over_bag_of_tokens": over(hits, bag, drawn)}
        self._rows.append(row)
        self._hits.append(hits)

    def _probe(self, own: Assembly, params: Any) -> probes.Probe:
        found = features(own.model, own.objective, params, self._task.texts, own.evaluation_batch, own.mesh)
        return probes.probe({name: probes.standardised(of, self._task) for name, of in found.items()}, self._task)

    def result(self) -> dict[str, Any]:
        """Best first; beside them the probe of a bag of tokens and the most frequent class."""
        task, count = self._task, len(self._bag.hits)
        drawn = bootstrap.resamples(count)
        return {
            "label": "package",
            "classes": list(task.classes),
            "documents": {"fitted": task.fitted, "chosen": task.chosen, "counted": count, "dropped": task.dropped},
            "tokens": self._length,
            "ranked": ranked(self._rows, self._hits, np.ones(count), drawn, "accuracy", sign=-1),
            "bag_of_tokens": shares(self._bag.hits.astype(np.float64), drawn),
            "most_frequent": shares(probes.majority(task).astype(np.float64), drawn),
        }


class Baselines(Measure):
    """How far below its own baselines each run is; of different questions, so that there is no order."""

    def __init__(self, runs: Sequence[Run], amounts: Amounts) -> None:
        self._rows: list[dict[str, Any]] = []

    def add(self, number: int, run: Run, params: Any, step: int) -> None:
        """Evaluates a run and counts the targets that it was trained on."""
        own, prepared = run.assembly, run.prepared
        heldout = measures.heldout_batches(own, prepared)
        found = heldout_evaluation(own.model, own.objective, heldout, own.evaluation_batch, own.mesh)(params)
        counted = measures.run_baselines(own, prepared, step) if step else {}
        loss, unigram = found["heldout_loss"], counted.get("unigram_loss")
        row = {"run": run.name, "objective": run.objective, "step": step, "loss": loss, "unigram_loss": unigram}
        row["share_removed"] = None if unigram is None or loss is None else 1.0 - loss / unigram
        row |= {"accuracy": found["heldout_accuracy"], "unigram_accuracy": counted.get("unigram_accuracy")}
        row["bits_per_byte"] = found["heldout_bits_per_byte"]
        row |= {name: counted.get(name) for name in ("bigram_bits_per_byte", "trigram_bits_per_byte")}
        self._rows.append(row)

    def result(self) -> dict[str, Any]:
        """In the order in which the runs were named."""
        return {"rows": self._rows}


MEASURES: dict[str, type[Measure]] = {SUFFIXES: Suffixes, PROBES: Probes, BASELINES: Baselines}


def ranked(
    rows: Sequence[Mapping[str, Any]],
    sums: Sequence[np.ndarray],
    weights: np.ndarray,
    drawn: Resamples,
    name: str,
    sign: int,
) -> list[dict[str, Any]]:
    """The rows with a measure and how much more it is than the best's, best first; `sign` is -1 where more is better.

    Sums and weights are those of each document.
    """
    order = sorted(range(len(rows)), key=lambda number: sign * float(sums[number].sum()))
    best = sums[order[0]]
    return [
        {
            **rows[number],
            name: as_json(bootstrap.ratio(sums[number], weights, drawn)),
            "from_best": as_json(bootstrap.difference(sums[number], best, weights, drawn)) if place else None,
        }
        for place, number in enumerate(order)
    ]


def shares(hits: np.ndarray, drawn: Resamples) -> dict[str, float | None]:
    """The share of hits with its interval."""
    return as_json(bootstrap.ratio(hits, np.ones(len(hits)), drawn))


def over(hits: np.ndarray, other: np.ndarray, drawn: Resamples) -> dict[str, float | None]:
    """By how much a share of hits is more than another."""
    return as_json(bootstrap.difference(hits, other, np.ones(len(hits)), drawn))


def as_json(interval: Interval) -> dict[str, float | None]:
    """A number and its interval."""
    return dict(interval._asdict())
