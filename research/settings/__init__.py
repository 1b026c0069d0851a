"""Every key of a run: default, meaning, unit and bounds, one file a room."""

import dataclasses
from typing import Any

from research.errors import UserError
from research.settings.data import DataSettings, TokenizerSettings
from research.settings.evaluate import EvaluateSettings
from research.settings.fields import Key, check_value, keys, setting
from research.settings.model import ModelSettings
from research.settings.objective import ObjectiveSettings
from research.settings.optimizer import OptimizerSettings
from research.settings.parallel import AXES, MeshSettings, ParallelSettings
from research.settings.train import TrainSettings

__all__ = [
    "AXES",
    "DataSettings",
    "EvaluateSettings",
    "Key",
    "MeshSettings",
    "ModelSettings",
    "ObjectiveSettings",
    "OptimizerSettings",
    "ParallelSettings",
    "Settings",
    "TokenizerSettings",
    "TrainSettings",
    "check_value",
    "keys",
    "setting",
]


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that decides a run, validated when it is made."""

    seed: int = setting(0, "seed of initial weights, data order, corruption and dropout", minimum=0, maximum=2**31 - 1)
    data: DataSettings = dataclasses.field(default_factory=DataSettings)
    tokenizer: TokenizerSettings = dataclasses.field(default_factory=TokenizerSettings)
    model: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    objective: ObjectiveSettings = dataclasses.field(default_factory=ObjectiveSettings)
    optimizer: OptimizerSettings = dataclasses.field(default_factory=OptimizerSettings)
    parallel: ParallelSettings = dataclasses.field(default_factory=ParallelSettings)
    train: TrainSettings = dataclasses.field(default_factory=TrainSettings)
    evaluate: EvaluateSettings = dataclasses.field(default_factory=EvaluateSettings)

    def __post_init__(self) -> None:
        for key in keys(Settings):
            check_value(key, self[key.name])
        self.model.check()
        self.objective.check()
        self.objective.check_model(self.model)
        self.train.check()
        self.optimizer.check(self.train.num_steps)
        self.optimizer.check_model(self.model)
        if self.data.source != "docstrings" and not self.data.path:
            raise UserError(
                f"data.path is empty, but data.source={self.data.source} needs a file, directory or pattern"
            )

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding: the tokenizer's ids and those that the objective adds, unless the model says more.

        With ids of the objective there are so many rows that 8 divides them, so that meshes do.
        """
        own, extra = self.tokenizer.vocab_size, self.objective.extra_ids
        needed = own + extra if not extra else -(-(own + extra) // 8) * 8
        return needed if self.model.vocab_size is None else self.model.vocab_size

    def __getitem__(self, name: str) -> Any:
        """The value of a dotted key."""
        value: Any = self
        for part in name.split("."):
            value = getattr(value, part)
        return value
