"""Held-out evaluation and samples."""

import dataclasses

from research.settings.fields import setting


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """What is measured beside the training loss; none of it changes the trained weights."""

    batch_size: int | None = setting(
        None, "sequences a batch; none: train.batch_size", unit="sequences", minimum=1, execution=True
    )
    max_windows: int | None = setting(
        None, "held-out windows used, from the first; none: all", unit="windows", minimum=1, execution=True
    )
    seed: int = setting(0, "seed of the corruption of held-out text", minimum=0, execution=True)
    num_samples: int = setting(3, "samples shown at the end of a run", minimum=0, execution=True)
    sample_tokens: int = setting(48, "length of a sample", unit="tokens", minimum=1, execution=True)
