"""How an update is executed changes nothing in it: accumulation, recomputation, loops, kernels, a second time."""

from collections.abc import Iterator

import jax
import numpy as np

from research.doctor.findings import Finding, difference, inapplicable, measured
from research.doctor.subject import Subject, Update
from research.kernels.choice import REFERENCE

ACCUMULATION, REMAT, SCAN = "accumulation = full batch", "remat = none", "scan = unrolled"
KERNELS, TWICE = "kernels = reference", "same batch, same bits"
PARTS = 2
BASELINES = ("lstm", "mlp")


def compared(law: str, variant: str, found: Update, expected: Update, tolerance: float) -> Finding:
    """Two updates that should be the same, by their losses and gradients."""
    worst = max(difference(found.losses, expected.losses), difference(found.gradients, expected.gradients))
    return measured(law, variant, "difference", worst, tolerance)


def accumulation(subject: Subject) -> Iterator[Finding]:
    """An update in several micro-batches is the update of the whole batch."""
    found = subject.update({"train.accumulation": PARTS})
    yield compared(ACCUMULATION, f"{PARTS} micro-batches", found, subject.update(), subject.tolerance)


def remat(subject: Subject) -> Iterator[Finding]:
    """What the backward pass computes again is what the forward pass computed."""
    if subject.settings.model.architecture in BASELINES:
        yield inapplicable(REMAT, f"model.architecture={subject.settings.model.architecture} keeps everything")
        return
    configured = subject.settings.parallel.remat
    for other in ("none", "dots", "full"):
        if other != configured:
            found = subject.update({"parallel.remat": other})
            yield compared(REMAT, f"{other} for {configured}", found, subject.update(), subject.tolerance)


def scan(subject: Subject) -> Iterator[Finding]:
    """A loop over the layers computes what the layers one after the other compute."""
    if subject.settings.model.architecture in BASELINES:
        yield inapplicable(
            SCAN, f"model.architecture={subject.settings.model.architecture} always loops over its layers"
        )
        return
    other = "unroll" if subject.model.scan else "scan"
    found = subject.update({"parallel.layers": other})
    yield compared(
        SCAN, f"{other} for {'scan' if subject.model.scan else 'unroll'}", found, subject.update(), subject.tolerance
    )


def kernels(subject: Subject) -> Iterator[Finding]:
    """The platform's kernels compute what the plain formulas compute."""
    if subject.assembly.kernels == REFERENCE:
        yield inapplicable(KERNELS, "the references are what this device uses")
        return
    found = subject.update({"parallel.kernels": "reference"})
    yield compared(KERNELS, "all of them", found, subject.update(), subject.tolerance)


def twice(subject: Subject) -> Iterator[Finding]:
    """A batch is a function of its step alone, whatever was computed before and by which host; so is an update."""
    rows = subject.settings.train.batch_size
    whole, again = subject.loader(), subject.loader()
    again.batch(1)
    hosts = [subject.loader(rows=np.arange(part, rows, 2)).batch(0) for part in range(2)]
    first, second = whole.batch(0), again.batch(0)
    split = {
        name: np.stack([host[name] for host in hosts], axis=2).reshape(array.shape) for name, array in first.items()
    }
    parts = {name: array.reshape(first[name].shape) for name, array in subject.loader(PARTS).batch(0).items()}
    for variant, other in (("second loader", second), ("two hosts", split), ("micro-batches", parts)):
        worst = sum(int(np.count_nonzero(first[name] != other[name])) for name in first)
        yield measured(TWICE, f"batch, {variant}", "entries that differ", float(worst), 0.0)
    states = [jax.tree.leaves(subject.updated()) for _ in range(2)]
    bits = sum(int(np.asarray(a).tobytes() != np.asarray(b).tobytes()) for a, b in zip(*states, strict=True))
    yield measured(TWICE, "update", "arrays that differ", float(bits), 0.0)
