"""What a batch asks of the model."""

import dataclasses

from research.errors import UserError
from research.settings.fields import setting


@dataclasses.dataclass(frozen=True)
class ObjectiveSettings:
    """The pretraining objective."""

    name: str = setting("causal", "pretraining objective", choices=("causal", "masked"))
    mask_rate: float = setting(0.15, "share of the tokens that a masked model must restore", minimum=0.001, maximum=0.9)
    mask_token_rate: float = setting(0.8, "share of the chosen tokens shown as [MASK]", minimum=0.0, maximum=1.0)
    random_token_rate: float = setting(
        0.1, "share of the chosen tokens shown as a random token", minimum=0.0, maximum=1.0
    )

    def check(self) -> None:
        """Raises `UserError` where keys contradict each other."""
        if self.mask_token_rate + self.random_token_rate > 1.0 + 1e-9:
            raise UserError(
                f"objective.mask_token_rate={self.mask_token_rate} and objective.random_token_rate="
                f"{self.random_token_rate} add up to more than 1: lower one of them"
            )
