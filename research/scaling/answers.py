"""What a fit says: estimates with intervals, optima for budgets, predictions, refusals; as records and in sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from research.scaling.bootstrap import Estimate

TITLES = {
    "curves": "Minima over training curves",
    "isoflop": "IsoFLOP parabolas",
    "parametric": "Parametric L(N, D)",
    "kaplan": "Kaplan's law",
    "data": "Data-constrained law",
    "ladder": "Power law along the ladder",
}


@dataclass(frozen=True)
class Optimum:
    """What is best for a budget.

    Attributes:
      flops: the budget.
      parameters: optimal N.
      tokens: optimal D.
      loss: at the optimum, where the approach predicts one.
    """

    flops: float
    parameters: Estimate
    tokens: Estimate
    loss: Estimate | None = None

    def to_json(self) -> dict[str, Any]:
        """`{"flops", "parameters", "tokens", "loss"}`."""
        loss = {} if self.loss is None else {"loss": self.loss.to_json()}
        return {"flops": self.flops, "parameters": self.parameters.to_json(), "tokens": self.tokens.to_json(), **loss}


@dataclass(frozen=True)
class Parabola:
    """Losses of one budget over sizes, and their minimum.

    Attributes:
      flops: the budget.
      cells: names of its runs.
      curve: `(N, loss)` along the parabola.
      parameters: where it is least.
      loss: the least loss.
    """

    flops: float
    cells: tuple[str, ...]
    curve: tuple[tuple[float, float], ...]
    parameters: Estimate
    loss: float

    def to_json(self) -> dict[str, Any]:
        """As the report takes it."""
        least = {"parameters": self.parameters.value, "low": self.parameters.low, "high": self.parameters.high}
        return {
            "flops": self.flops,
            "cells": list(self.cells),
            "curve": [list(point) for point in self.curve],
            "minimum": least | {"loss": self.loss},
        }


@dataclass(frozen=True)
class Prediction:
    """A run that was not fitted: what the fit said, and what was measured.

    Attributes:
      name: of the run.
      predicted: loss, with an interval of the fit's uncertainty and a new run's noise.
      measured: loss.
    """

    name: str
    predicted: Estimate
    measured: float

    @property
    def inside(self) -> bool:
        """Whether the measurement lies in the interval."""
        return self.predicted.covers(self.measured)

    def to_json(self) -> dict[str, Any]:
        """`{"cell", "predicted", "low", "high", "measured", "inside"}`."""
        found = self.predicted
        return {
            "cell": self.name,
            "predicted": found.value,
            "low": found.low,
            "high": found.high,
            "measured": self.measured,
            "inside": self.inside,
        }

    def sentence(self) -> str:
        """In words."""
        found, word = self.predicted, "inside" if self.inside else "outside"
        return (
            f"{self.name}: predicted {found.value:.4f} ({found.low:.4f} to {found.high:.4f}), measured "
            f"{self.measured:.4f}, {word} the interval"
        )


@dataclass(frozen=True)
class Answer:
    """What one approach found.

    Attributes:
      approach: `curves`, `isoflop`, `parametric`, `kaplan`, `data` or `ladder`.
      form: the law.
      count: what N counts, `parameters` or `non_embedding_parameters`.
      runs: how many were fitted.
      estimates: by name.
      residual: standard deviation of log loss about the fit, per degree of freedom.
      optima: for the budgets that were asked for.
      frontier: optima from the smallest run's budget to ten times the largest run's.
      parabolas: of isoFLOP budgets.
      predictions: of held-out runs.
      notes: what was assumed or could not be said, in sentences.
      refused: why there is no fit; everything else is empty then.
    """

    approach: str
    form: str = ""
    count: str = "parameters"
    runs: int = 0
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    residual: float | None = None
    optima: Sequence[Optimum] = ()
    frontier: Sequence[Optimum] = ()
    parabolas: Sequence[Parabola] = ()
    predictions: Sequence[Prediction] = ()
    notes: Sequence[str] = ()
    refused: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As `answer.json` and the report take it."""
        head = {"name": self.approach, "title": TITLES[self.approach], "count": self.count}
        if self.refused is not None:
            return head | {"refused": self.refused}
        return head | {
            "form": self.form,
            "runs": self.runs,
            "estimates": {name: estimate.to_json() for name, estimate in self.estimates.items()},
            "residual": self.residual,
            "optima": [optimum.to_json() for optimum in self.optima],
            "frontier": [optimum.to_json() for optimum in self.frontier],
            "parabolas": [parabola.to_json() for parabola in self.parabolas],
            "predictions": [prediction.to_json() for prediction in self.predictions],
            "notes": list(self.notes),
        }

    def sentence(self) -> str:
        """The headline in words."""
        if self.refused is not None:
            return f"{TITLES[self.approach]}: {self.refused}"
        shown = {name: self.estimates[name] for name in ("a", "b", "gamma") if name in self.estimates}
        laws = {"a": "N grows as C^{}", "b": "D as C^{}", "gamma": "the reducible loss falls as C^-{}"}
        parts = [
            laws[name].format(f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})")
            for name, found in shown.items()
        ]
        return f"{TITLES[self.approach]}, {self.runs} runs: {', '.join(parts)}"


def record(answers: Sequence[Answer], confidence: float, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """All answers as `answer.json` holds them.

    The predictions are those of the law that the fitted runs scatter least about, for its parameters; each says `by`
    which. Those of the other laws stand in their fits.
    """
    told = [answer for answer in answers if answer.predictions and answer.residual is not None]
    chosen = min(told, key=lambda answer: answer.residual or 0.0, default=Answer(""))
    return {
        "confidence": confidence,
        "fits": [answer.to_json() for answer in answers],
        "predictions": [prediction.to_json() | {"by": chosen.approach} for prediction in chosen.predictions],
        "provenance": dict(provenance),
    }
