"""Length, batch and record of a run."""

import dataclasses

from research.errors import UserError
from research.settings.fields import setting


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """The loop."""

    num_steps: int = setting(1000, "length of the run", unit="updates", minimum=1, resumable=True)
    batch_size: int = setting(32, "global batch", unit="sequences", minimum=1)
    accumulation: int = setting(1, "micro-batches that one update is computed from", minimum=1, execution=True)
    log_every: int = setting(50, "interval of plain log lines", unit="updates", minimum=1, execution=True)
    checkpoint_every: int = setting(500, "interval of checkpoints", unit="updates", minimum=1, execution=True)
    keep_last: int = setting(2, "latest checkpoints that are kept", minimum=1, execution=True)
    keep_every: int | None = setting(
        None, "checkpoints at multiples of this are kept for ever", unit="updates", minimum=1, execution=True
    )
    keep_best: bool = setting(True, "keep the checkpoint with the lowest held-out loss", execution=True)
    evaluate_every: int = setting(500, "interval of held-out evaluation", unit="updates", minimum=1, execution=True)
    tensorboard: bool = setting(True, "write TensorBoard events beside metrics.jsonl", execution=True)
    noise_scale: bool = setting(
        False,
        "measure the gradient noise scale from the micro-batches of each update, for which accumulation is 2 or more",
        execution=True,
    )

    def check(self) -> None:
        """Raises `UserError` where keys contradict each other."""
        if self.batch_size % self.accumulation:
            raise UserError(
                f"train.accumulation={self.accumulation} does not divide train.batch_size={self.batch_size}: "
                "change one of them"
            )
        if self.noise_scale and self.accumulation < 2:
            raise UserError(
                f"train.noise_scale=true compares micro-batches, and train.accumulation={self.accumulation} leaves but "
                "one: set train.accumulation to 2 or more"
            )
