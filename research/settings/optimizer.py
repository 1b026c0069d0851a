"""The update and its schedule."""

import dataclasses

from research.errors import UserError
from research.settings.fields import setting


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """Optimizer and learning-rate schedule; its numbers are traced, so that changing one compiles nothing anew."""

    name: str = setting("adamw", "update rule", choices=("adamw",))
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

    def warmup(self, num_steps: int) -> int:
        """Updates of warm-up in a run of `num_steps`."""
        return num_steps // 20 if self.warmup_steps is None else self.warmup_steps

    def decay(self, num_steps: int) -> int:
        """Updates of the final decay of a warm-up-stable-decay schedule."""
        return max(1, num_steps // 5) if self.decay_steps is None else self.decay_steps

    def check(self, num_steps: int) -> None:
        """Raises `UserError` where the schedule does not fit into the run."""
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
