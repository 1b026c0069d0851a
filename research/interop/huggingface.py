"""Models of Hugging Face's `transformers`, both ways, from Python.

from research.interop import huggingface

model, params = huggingface.load("path/to/directory")
logits = model.apply(params, tokens, attention_mask=mask)
huggingface.save("path/to/new", model, params)
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from research.data.tokenizer import Tokenizer
from research.interop import saving
from research.interop.core import core
from research.interop.directory import CONFIG, identify, open_directory
from research.interop.families import family_of
from research.interop.family import HEAD, own_parts
from research.interop.placing import place
from research.interop.pretrained import Pretrained
from research.models import Model

__all__ = ["Pretrained", "load", "of_core", "save"]


def load(path: str | Path, dtype: Any = None) -> tuple[Pretrained, dict[str, Any]]:
    """The model in a directory of `transformers`, and its weights.

    Args:
      path: the directory: config.json and safetensors; nothing is fetched.
      dtype: type of the weights, `"bfloat16"` for example; none: as they are stored. Activations are float32; take
        `dataclasses.replace(model.core.settings, compute_dtype="bfloat16")` for others.

    Raises:
      UserError: the model is not one that the core can be, or files are missing or damaged; one sentence says which.
    """
    opened = open_directory(Path(path).expanduser())
    source = opened.source
    params = place(source.leaves, dtype=None if dtype is None else jnp.dtype(dtype))
    made = Pretrained(
        core(source.model), opened.family, opened.parts, source.objective, opened.config, source.tokenizer
    )
    return made, params


def of_core(
    model: Model,
    objective: str,
    tokenizer: Path | Tokenizer | None = None,
    config: Mapping[str, Any] | None = None,
) -> Pretrained:
    """A model that was trained here, as one of `transformers`.

    Args:
      model: the core.
      objective: what it was trained on, `objective.name`.
      tokenizer: its tokenizer.
      config: the config.json that its weights came with, where they were imported.

    Raises:
      UserError: `transformers` has no such model; the sentence names the key that has no counterpart.
    """
    settings = dataclasses.replace(model.settings, vocab_size=model.vocab_size, max_positions=model.max_positions)
    family, bare, values = None, False, dict(config or {})
    if values:
        family, architecture = identify(values, CONFIG)
        bare = HEAD not in family.architectures[architecture]
    family = family or family_of(settings, objective)
    return Pretrained(model, family, own_parts(family, settings, bare), objective, values, tokenizer)


def save(
    path: str | Path,
    model: Pretrained,
    params: Mapping[str, Any],
    tokenizer: Path | Tokenizer | None = None,
    dtype: Any = None,
) -> list[str]:
    """Writes a directory that `transformers` loads; gives notes on what a reader should know of it.

    Args:
      path: the new directory; it must not exist.
      model: as `load` or `of_core` gave it.
      params: its weights.
      tokenizer: a tokenizer, or a directory that has one; none: the model's own.
      dtype: type of the stored weights; none: that of `params`.

    Raises:
      UserError: the directory exists or cannot be written.
    """
    stored = None if dtype is None else jnp.dtype(dtype)
    return saving.save(Path(path).expanduser(), model, params, tokenizer or model.tokenizer, stored)
