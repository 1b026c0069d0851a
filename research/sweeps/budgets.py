"""Points whose length follows from tokens or operations: matched objectives, isoFLOP grids, ladders, branches.

Each counts a run from its settings alone (`research/objectives/accounting.py`); what is set is `train.num_steps`.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from research import config
from research.errors import UserError
from research.kernels.choice import REFERENCE
from research.models import build as build_model
from research.objectives import accounting
from research.scaling import ladder as rungs
from research.settings import Settings
from research.sweeps.algebra import Point, Points
from research.sweeps.resolve import FROM_STEP, TRUNK, base_record, settings_of

STEPS = "train.num_steps"
COUNTS = ("parameters", "non_embedding_parameters")


class Figures(NamedTuple):
    """Of one update: what `accounting.Account` has; and of the model: its parameters."""

    step_tokens: float
    step_flops: float
    step_required_flops: float
    parameters: int
    non_embedding_parameters: int


@functools.lru_cache(maxsize=4096)
def figures(settings: Settings) -> Figures:
    """Of the settings alone: nothing is allocated, no tokenizer is read."""
    account = accounting.account(settings)
    weights = build_model(settings, REFERENCE).parameters().values()
    outside = sum(weight.size for weight in weights if weight.kind in {"embedding", "head"})
    total = sum(weight.size for weight in weights)
    return Figures(account.tokens_seen, account.model_flops, account.required_flops, total, total - outside)


def recipes(*names: str) -> Points:
    """A point for each recipe: the keys in which any two of them differ.

    `recipes("configs/causal.py:5m", "configs/causal.py:15m")` are two sizes, `recipes("configs/causal.py:tiny",
    "configs/prefix.py:tiny")` two objectives.
    """
    flat = [_flat(base_record(name)["settings"]) for name in names]
    differing = [key for key in config.KEYS if any(one[key] != flat[0][key] for one in flat)]
    return tuple({key: one[key] for key in differing} for one in flat)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def matched(points: Sequence[Point], recipe: str, *, by: str = "model_flops", to: Point | None = None) -> Points:
    """The points with lengths that give each as much as the whole run `to` has, to the nearest update.

    Args:
      points: objectives, sizes or batches to be compared.
      recipe: that they are points of.
      by: `model_flops`, `required_flops`, `tokens_seen` (raw) or `tokens_predicted`.
      to: the run that the others are matched with; none: the first point, which keeps its length.

    Raises:
      UserError: a point cannot be, or nothing is counted by that name.
    """
    other = settings_of(recipe, points[0] if to is None else to)
    return tuple({**point, STEPS: accounting.matched(settings_of(recipe, point), other, by)} for point in points)


def isoflop(sizes: Sequence[Point], budgets: Sequence[float], recipe: str) -> Points:
    """Every size at every budget of model FLOPs, to the nearest update, a budget after the other.

    Raises:
      UserError: a size cannot be, or a budget is less than half an update of it.
    """
    found = []
    for budget, point in itertools.product(budgets, sizes):
        rung = rungs.by_compute(_size(recipe, point, "parameters"), budget)
        found.append({**point, STEPS: rung.num_steps})
    return tuple(found)


def ladder(
    sizes: Sequence[Point], recipe: str, *, tokens_per_parameter: float = 20.0, count: str = "parameters"
) -> Points:
    """Each size with so many raw tokens a parameter, the smallest compute first.

    Args:
      sizes: points that decide the shape of the model.
      recipe: that they are points of.
      tokens_per_parameter: of the parameters that `count` names.
      count: `parameters` or `non_embedding_parameters`.

    Raises:
      UserError: a size cannot be, or the length is less than half an update.
    """
    if count not in COUNTS:
        raise UserError(f"ladder(count={count!r}): choose one of {', '.join(COUNTS)}")
    made = [(rungs.by_tokens(_size(recipe, point, count), tokens_per_parameter), point) for point in sizes]
    made.sort(key=lambda pair: pair[0].flops)
    return tuple({**point, STEPS: rung.num_steps} for rung, point in made)


def _size(recipe: str, point: Point, count: str) -> rungs.Size:
    of = figures(settings_of(recipe, {**point, STEPS: point.get(STEPS, 10**6)}))
    return rungs.Size(getattr(of, count), of.step_tokens, of.step_flops)


def branch(trunks: Sequence[Point], recipe: str, *, at: Sequence[int], cooldown: float = 0.2) -> Points:
    """Long runs under `optimizer.schedule=wsd`, and for each of them cooldowns from its checkpoints.

    A branch at step `s` goes on from what its trunk had after `s` updates and decays to the end within
    `cooldown * s` more: it equals a run of that length from the start, without paying for its first `s` updates
    (Hu et al. 2024, section 4.2; Hägele et al. 2024).

    Args:
      trunks: points of the long runs; their warm-up is fixed here, since it would follow from the length.
      recipe: that they are points of.
      at: updates after which a branch begins, before the trunk's own decay.
      cooldown: length of the decay over `s`.

    Raises:
      UserError: the schedule is another, the mask rate changes with the length, or a branch begins outside the stable
        part of its trunk.
    """
    found: list[Point] = []
    for point in trunks:
        settings = settings_of(recipe, point)
        rule, steps = settings.optimizer, settings.train.num_steps
        if rule.schedule != "wsd":
            raise UserError(f"optimizer.schedule={rule.schedule}: branch() needs wsd, whose middle has no end in sight")
        if settings.objective.mask_rate_start is not None:
            raise UserError("objective.mask_rate_start changes with the length of a run: branch() needs it to be none")
        warmup, decay = rule.warmup(steps), rule.decay(steps)
        fixed = {STEPS: steps, "optimizer.warmup_steps": warmup, "optimizer.decay_steps": decay}
        found.append({**point, **fixed})
        for step in at:
            if not warmup <= step <= steps - decay:
                raise UserError(
                    f"branch(at={step}) lies outside the stable part of its trunk, updates {warmup} to "
                    f"{steps - decay}: choose another step"
                )
            length = max(1, round(cooldown * step))
            own = {STEPS: step + length, "optimizer.warmup_steps": warmup, "optimizer.decay_steps": length}
            found.append({**point, **own, FROM_STEP: step, TRUNK: {STEPS: steps, "optimizer.decay_steps": decay}})
    return tuple(found)
