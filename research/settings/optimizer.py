"""The update and its schedule."""

import dataclasses
import math
import re

from research.errors import UserError
from research.settings.fields import setting
from research.settings.model import ModelSettings

NAMES = ("adamw", "sgd", "rmsprop", "lion", "adafactor", "muon", "schedule_free")

# The keys that only some rules read; to any other rule they may not be given.
READ_BY = {
    "momentum": ("sgd", "rmsprop", "adafactor", "muon"),
    "nesterov": ("sgd",),
    "muon_scale": ("muon",),
    "muon_steps": ("muon",),
}
# What `momentum=none` stands for, where it is not that there is none.
MOMENTUM = {"sgd": 0.9, "muon": 0.95}


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """Optimizer and learning-rate schedule; its numbers are traced, so that changing one compiles nothing anew."""

    name: str = setting("adamw", "update rule", choices=NAMES)
    learning_rate: float = setting(1e-3, "peak learning rate", minimum=0.0)
    schedule: str = setting(
        "cosine",
        "course after the warm-up; wsd: constant, then linear decay",
        choices=("cosine", "linear", "wsd", "constant"),
    )
    warmup_steps: int | None = setting(None, "linear warm-up; none: 5 % of the run", unit="updates", minimum=0)
    decay_steps: int | None = setting(None, "final decay of wsd; none: 20 % of the run", unit="updates", minimum=1)
    final_fraction: float = setting(0.1, "learning rate at the end over its peak", minimum=0.0, maximum=1.0)
    weight_decay: float = setting(0.1, "decoupled decay of kernels, embeddings and heads", minimum=0.0)
    beta1: float = setting(0.9, "decay of the first moment", minimum=0.0, maximum=0.99999)
    beta2: float = setting(0.95, "decay of the second moment", minimum=0.0, maximum=0.999999)
    epsilon: float = setting(1e-8, "added to the root of the second moment", minimum=0.0)
    clip_norm: float = setting(1.0, "largest global gradient norm", minimum=1e-9)
    momentum: float | None = setting(
        None,
        "of sgd, rmsprop, adafactor, muon; none: 0.9 for sgd, 0.95 for muon, without for the others",
        minimum=0.0,
        maximum=0.99999,
        since=3,
    )
    nesterov: bool = setting(False, "sgd looks ahead along its momentum (muon always does)", since=3)
    muon_scale: float = setting(
        0.2,
        "root mean square of muon's update of a matrix; 0.2: that of AdamW, whose rates it can take",
        minimum=0.0,
        since=3,
    )
    muon_steps: int = setting(5, "Newton-Schulz iterations of muon", minimum=1, maximum=20, since=3)
    state_dtype: str = setting(
        "float32",
        "type of stored first moments and momentum; second moments stay float32",
        choices=("float32", "bfloat16"),
        since=3,
    )
    groups: str = setting(
        "",
        "factors of the learning rate: the first of PATTERN=FACTOR,... found in a weight's path; 0 freezes",
        since=3,
    )
    ema_decay: float | None = setting(
        None,
        "decay of averaged weights, which are then the ones evaluated and exported; none: no average",
        minimum=0.0,
        maximum=0.9999999,
        since=3,
    )

    def warmup(self, num_steps: int) -> int:
        """Updates of warm-up in a run of `num_steps`."""
        return num_steps // 20 if self.warmup_steps is None else self.warmup_steps

    def decay(self, num_steps: int) -> int:
        """Updates of the final decay of a warm-up-stable-decay schedule."""
        return max(1, num_steps // 5) if self.decay_steps is None else self.decay_steps

    @property
    def momentum_or_default(self) -> float | None:
        """The momentum of the rule; none where it keeps none."""
        return MOMENTUM.get(self.name) if self.momentum is None else self.momentum

    @property
    def learning_rate_groups(self) -> tuple[tuple[str, float], ...]:
        """The pairs of pattern and factor in `groups`, in their order.

        Raises:
          UserError: a pair that is none, a pattern that is no regular expression, or a factor that is negative.
        """
        return tuple(_group(pair.strip()) for pair in self.groups.split(",") if pair.strip())

    def check(self, num_steps: int) -> None:
        """Raises `UserError` where the schedule does not fit into the run, or keys contradict one another."""
        self._check_schedule(num_steps)
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, rules in READ_BY.items():
            if self.name not in rules and getattr(self, name) != defaults[name]:
                raise UserError(
                    f"optimizer.{name}={getattr(self, name)!r} is read by {', '.join(rules)} alone, and "
                    f"optimizer.name={self.name}: leave it out or change the rule"
                )
        keeps_first_moment = self.name in {"adamw", "lion", "muon"} or self.momentum_or_default is not None
        if self.state_dtype != "float32" and not keeps_first_moment:
            remedy = "set it to float32" + (", or give optimizer.momentum" if self.name in READ_BY["momentum"] else "")
            raise UserError(
                f"optimizer.state_dtype={self.state_dtype} is of first moments, and optimizer.name={self.name} keeps "
                f"none: {remedy}"
            )
        if self.state_dtype != "float32":
            self._check_rounded()
        if self.name == "schedule_free":
            self._check_schedule_free()
        assert self.learning_rate_groups is not None  # read for its errors

    def check_model(self, model: ModelSettings) -> None:
        """Raises `UserError` where no rule says how learning rates follow from the model's size."""
        if self.name != "sgd":
            return
        for name, plain in (("parametrisation", "standard"), ("depth_scaling", "none")):
            if (value := getattr(model, name)) != plain:
                raise UserError(
                    f"optimizer.name=sgd has no rule for model.{name}={value}, since its steps shrink with the "
                    f"gradient and its clipping: set model.{name}={plain}, or another optimizer.name"
                )

    def _check_schedule(self, num_steps: int) -> None:
        warmup = self.warmup(num_steps)
        if warmup > num_steps:
            raise UserError(
                f"optimizer.warmup_steps={warmup} is longer than train.num_steps={num_steps}: "
                "shorten the warm-up or lengthen the run"
            )
        if self.schedule == "wsd" and warmup + self.decay(num_steps) > num_steps:
            raise UserError(
                f"optimizer.warmup_steps={warmup} and optimizer.decay_steps={self.decay(num_steps)} do not fit into "
                f"train.num_steps={num_steps}: shorten one or lengthen the run"
            )

    def _check_rounded(self) -> None:
        """Of a change of 1 - decay, bfloat16 keeps 1 % at 0.99 and next to nothing above."""
        key = {"adamw": "beta1", "lion": "beta2"}.get(self.name, "momentum")
        decay = self.momentum_or_default if key == "momentum" else getattr(self, key)
        if decay is not None and decay > 0.99:
            raise UserError(
                f"optimizer.{key}={decay} is too slow for optimizer.state_dtype={self.state_dtype}, which rounds such "
                f"small changes away: set optimizer.{key} to at most 0.99, or the type to float32"
            )

    def _check_schedule_free(self) -> None:
        if self.schedule != "constant":
            raise UserError(
                f"optimizer.schedule={self.schedule}, but optimizer.name=schedule_free averages the weights in place "
                "of a decay: set optimizer.schedule=constant"
            )
        if self.beta1 == 0.0:
            raise UserError(
                "optimizer.beta1=0.0, but optimizer.name=schedule_free takes gradients that far from its last weights "
                "towards their average: set it above 0"
            )
        if self.ema_decay is not None:
            raise UserError(
                f"optimizer.ema_decay={self.ema_decay}, but optimizer.name=schedule_free averages the weights itself: "
                "set one of them back"
            )


def _group(pair: str) -> tuple[str, float]:
    pattern, separator, text = (part.strip() for part in pair.rpartition("="))
    try:
        factor = float(text) if pattern and separator else math.nan
        re.compile(pattern)
    except ValueError:
        factor = math.nan
    except re.error as error:
        raise UserError(
            f"optimizer.groups: {pattern!r} is not a regular expression ({error}): mend it, and mind that a comma "
            "begins the next pair"
        ) from error
    if not 0.0 <= factor < math.inf:
        raise UserError(
            f"optimizer.groups: {pair!r} is not PATTERN=FACTOR with a factor of at least 0: write for example "
            "embedding=0.1,layers/.*norm=0"
        )
    return pattern, factor
