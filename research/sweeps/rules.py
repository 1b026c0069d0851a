"""Learning rates and batches of rungs: by a power law from one reference, by a published one, or from a finished sweep.

    points = scaled(isoflop(SIZES, BUDGETS, RECIPE), RECIPE, "step_law", multiple=4)
    return Sweep(..., points=points, tuning=by_rule(points, RECIPE, "step_law"))

These stand after `isoflop`, `ladder` and `matched`, which say by `train.num_steps` what a point spends: where its batch
changes, so does the number of updates, and what it spends stays, to the nearest update. With one rate and one batch for
all sizes a fit over sizes measures their mistuning as well.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from research.errors import UserError
from research.settings import Settings
from research.sweeps.algebra import Point, Points, canonical
from research.sweeps.budgets import STEPS, figures
from research.sweeps.resolve import TRUNK, settings_of

RATE, BATCH = "optimizer.learning_rate", "train.batch_size"
# What a point may go on spending when its batch changes, and where `figures` has it of one update.
SPENT = {"model_flops": "step_flops", "required_flops": "step_required_flops", "tokens_seen": "step_tokens"}


class Law(NamedTuple):
    """`coefficient * N^parameters * D^tokens * C^flops * B^batch`.

    Without a coefficient it needs a reference, whose value it is scaled from. `N` are non-embedding parameters, `D` the
    raw tokens that a run sees, `C` its model FLOPs without those of the vocabulary head, `B` raw tokens an update.
    """

    coefficient: float | None = None
    parameters: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    batch: float = 0.0

    def of(self, at: "Scale") -> float:
        """The product of powers, without the coefficient."""
        return math.prod(base**power for base, power in zip(at, self[1:], strict=True))


class Scale(NamedTuple):
    """What a law is a function of, see `Law`."""

    parameters: float
    tokens: float
    flops: float
    batch: float


@dataclass(frozen=True)
class Rule:
    """How learning rate and batch follow from the size of a run.

    Attributes:
      name: of the rule.
      source: paper, section, equation.
      conditions: what the runs had in common that it was found on.
      rate: of the peak learning rate; none: it stays.
      batch: of the batch in raw tokens; none: it stays.
      averages: beta1, beta2 and epsilon of AdamW follow the batch as well (Malladi et al. 2022).
      fitted: ranges of the fields of `Scale` that it was found on.
    """

    name: str
    source: str = "of this sweep"
    conditions: str = ""
    rate: Law | None = None
    batch: Law | None = None
    averages: bool = False
    fitted: Mapping[str, tuple[float, float]] = field(default_factory=dict)


RULES = {
    rule.name: rule
    for rule in (
        Rule(
            "deepseek",
            "DeepSeek-AI 2024 (DeepSeek LLM), section 3.1, equation 1",
            "causal decoders of the standard parametrisation, AdamW (0.9, 0.95, weight decay 0.1), a schedule of steps "
            "down at 80 % and 90 % of the run, compute spent optimally; a band of settings is nearly as good",
            rate=Law(0.3118, flops=-0.1250),
            batch=Law(0.2920, flops=0.3271),
            fitted={"flops": (1e17, 2e19)},
        ),
        Rule(
            "step_law",
            "Li et al. 2025 (Predictable Scale, part I: Step Law)",
            "decoders, dense and with experts, of the standard parametrisation, AdamW (0.9, 0.95, weight decay 0.1), "
            "cosine to a final rate of 1e-5 whatever the peak",
            rate=Law(1.79, parameters=-0.713, tokens=0.307),
            batch=Law(0.58, tokens=0.571),
            fitted={"parameters": (6e7, 1e9), "tokens": (2e9, 1e11)},
        ),
        Rule(
            "square_root",
            "Malladi et al. 2022, the square root scaling rule of Adam",
            "batches well below the critical one, where noise outweighs the gradient; sizes and tokens stay",
            rate=Law(batch=0.5),
            averages=True,
        ),
    )
}


def scaled(
    points: Sequence[Point],
    recipe: str,
    rule: str | Rule,
    *,
    reference: Point | None = None,
    keep: str = "model_flops",
    budgets: Sequence[float] = (),
    multiple: int = 1,
) -> Points:
    """The points with the learning rate and the batch that a rule gives each; what each spends stays.

    Args:
      points: with their lengths, from `isoflop`, `ladder` or `matched`.
      recipe: that they are points of.
      rule: a name in `RULES`, or a rule of your own: `Rule("mine", rate=Law(parameters=-0.5))`.
      reference: a point whose rate and batch are known to be good, from which the others are scaled; none: the rule has
        coefficients.
      keep: what a point goes on spending: `model_flops`, `required_flops` or `tokens_seen`.
      budgets: the values of `keep` that the lengths were rounded from, so that they are not rounded twice; none: what
        the lengths give.
      multiple: of rows, that batches are rounded to: micro-batches times devices.

    Raises:
      UserError: there is no such rule, it needs a reference, mup scales the rate already, or a batch cannot be rounded
        so or leaves no update.
    """
    chosen, known = _chosen(rule, reference), None if reference is None else settings_of(recipe, reference)
    found = []
    for point in points:
        settings = unbranched(point, recipe)
        _check_parametrisation(chosen, settings, known)
        scale, changes = scale_of(settings), dict[str, Any]()
        if chosen.batch is not None:
            wanted = _value(chosen.batch, scale, known, "batch")
            rows = _rows(wanted * settings.train.batch_size / scale.batch, multiple, chosen.name, point)
            scale = scale._replace(batch=scale.batch * rows / settings.train.batch_size)
            changes |= {BATCH: rows, STEPS: updates(settings, rows, keep, budgets)}
        if chosen.rate is not None:
            changes[RATE] = float(f"{_value(chosen.rate, scale, known, 'rate'):.4g}")
        if chosen.averages and known is not None:
            changes |= _averages(known, scale.batch / scale_of(known).batch)
        found.append({**point, **changes})
        settings_of(recipe, found[-1])
    return tuple(found)


def by_rule(points: Sequence[Point], recipe: str, rule: str | Rule, reference: Point | None = None) -> str:
    """What `Sweep.tuning` says of points that were scaled so, and how many lie outside what the rule was found on."""
    chosen = _chosen(rule, reference)
    named = [name for name, law in (("learning rates", chosen.rate), ("batches", chosen.batch)) if law is not None]
    told = f"{' and '.join(named)} by the rule {chosen.name} ({chosen.source})"
    if reference is not None:
        told += f" from {canonical(reference)}"
    scales = [scale_of(settings_of(recipe, point)) for point in points]
    for name, (low, high) in chosen.fitted.items():
        outside = sum(not low <= getattr(scale, name) <= high for scale in scales)
        if outside:
            told += f"; {outside} of {len(scales)} points lie outside the {name} of {low:.2g} to {high:.2g} it is from"
    return told


def scale_of(settings: Settings) -> Scale:
    """Of a run, from its settings alone; the head is counted at every position of a row."""
    counted, train = figures(settings), settings.train
    head = 6.0 * settings.vocab_size * settings.model.embed_dim * settings.data.sequence_length * train.batch_size
    return Scale(
        float(counted.non_embedding_parameters),
        train.num_steps * counted.step_tokens,
        train.num_steps * max(counted.step_flops - head, 0.0),
        counted.step_tokens,
    )


def updates(settings: Settings, rows: int, keep: str, budgets: Sequence[float] = ()) -> int:
    """Updates with a batch of so many rows that spend what the run spends, or the budget that its length is rounded
    from, to the nearest.

    Raises:
      UserError: nothing is counted by that name, no budget is that of the run, or it is less than half an update.
    """
    if keep not in SPENT:
        raise UserError(f"keep={keep!r}: choose what a point goes on spending, one of {', '.join(SPENT)}")
    train, each = settings.train, getattr(figures(settings), SPENT[keep])
    budget = train.num_steps * each
    if budgets:
        budget = min(budgets, key=lambda one: abs(math.log(one / (train.num_steps * each))))
        if abs(budget / each - train.num_steps) > 0.5 + 1e-6:
            raise UserError(
                f"no budget of {', '.join(f'{one:.3g}' for one in budgets)} gives train.num_steps={train.num_steps}, "
                f"which spends {train.num_steps * each:.4g} of {keep}: give those that the points were made with"
            )
    exact = budget * train.batch_size / (each * rows)
    if round(exact) < 1:
        raise UserError(
            f"a batch of {rows} rows spends {budget:.2g} of {keep} in {exact:.2g} of an update: raise the budget, or "
            "choose another rule"
        )
    return round(exact)


def _chosen(rule: str | Rule, reference: Point | None) -> Rule:
    if isinstance(rule, str) and rule not in RULES:
        raise UserError(f"there is no rule {rule!r}: choose one of {', '.join(RULES)}, or make a Rule")
    chosen = RULES[rule] if isinstance(rule, str) else rule
    laws = [law for law in (chosen.rate, chosen.batch) if law is not None]
    if not laws:
        raise UserError(f"the rule {chosen.name} has neither a rate nor a batch: give it a Law")
    if reference is None and (chosen.averages or any(law.coefficient is None for law in laws)):
        raise UserError(f"the rule {chosen.name} says how values change and not what they are: give a reference")
    return chosen


def unbranched(point: Point, recipe: str) -> Settings:
    """The settings of a point that is no branch.

    Raises:
      UserError: it is one, or it cannot be.
    """
    if TRUNK in point:
        raise UserError(
            "a branch has the rate and the batch of its trunk: scale or tune the points, then branch() them"
        )
    return settings_of(recipe, point)


def _check_parametrisation(rule: Rule, settings: Settings, known: Settings | None) -> None:
    law = rule.rate
    if law is None or settings.model.parametrisation != "mup":
        return
    if known is None or law.parameters or law.flops:
        raise UserError(
            f"the rule {rule.name} lowers learning rates with the size, and model.parametrisation=mup does so already: "
            "use one of the two, or a rule of tokens and batch with a reference"
        )


def _value(law: Law, scale: Scale, known: Settings | None, what: str) -> float:
    """What a law gives: from its coefficient, or from what a reference has."""
    if known is None:
        assert law.coefficient is not None
        return law.coefficient * law.of(scale)
    base = scale_of(known)
    return (base.batch if what == "batch" else known.optimizer.learning_rate) * law.of(scale) / law.of(base)


def _rows(exact: float, multiple: int, name: str, point: Point) -> int:
    """The nearest multiple; half as much again is too far."""
    rows = max(1, round(exact / multiple)) * multiple
    if rows > 1.5 * exact:
        raise UserError(
            f"the rule {name} asks for a batch of {exact:.2g} rows at {canonical(point)}, and {rows} is the least that "
            f"multiple={multiple} allows: lower multiple or data.sequence_length, or raise the budget"
        )
    return rows


def _averages(known: Settings, ratio: float) -> dict[str, float]:
    """Betas and epsilon of AdamW for a batch `ratio` times as large, so that averages reach back as many rows."""
    of = known.optimizer
    betas = {f"optimizer.{name}": 1.0 - ratio * (1.0 - getattr(of, name)) for name in ("beta1", "beta2")}
    if of.name != "adamw" or min(betas.values()) < 0.0:
        low = min(betas.values())
        problem = f"optimizer.name={of.name}" if of.name != "adamw" else f"a beta of {low:.2g}"
        raise UserError(
            f"the square root rule is of AdamW and of batches a few times as large, and {ratio:.3g} times the "
            f"reference's gives {problem}: use Rule('mine', rate=Law(batch=0.5)), which is of the rate alone"
        )
    return {name: float(f"{beta:.6g}") for name, beta in betas.items()} | {
        "optimizer.epsilon": float(f"{of.epsilon / math.sqrt(ratio):.4g}")
    }
