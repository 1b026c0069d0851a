"""A family of models that Hugging Face and Isoflop have in common: tensors, config and architectures."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from research.errors import UserError
from research.interop.core import validated
from research.interop.names import Rows
from research.interop.traits import Config, Trait, resolved
from research.settings import ModelSettings, check_value, keys
from research.settings.families import FAMILIES

# What a model may have beside its body.
HEAD, POOLER, PAIRS, UNTIED, HEAD_BIAS = "head", "pooler", "pair_head", "untied", "head_bias"
_NAMING = frozenset({HEAD, PAIRS})

# Keys that do not change what a trained model computes.
_FREE = {
    "balance_loss",
    "base_depth",
    "base_head_dim",
    "base_width",
    "compute_dtype",
    "depth_scaling",
    "dropout",
    "embedding_std",
    "max_positions",
    "parameter_dtype",
    "parametrisation",
    "router_z_loss",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """One `model_type`.

    Attributes:
      model_type: its name.
      preset: our preset of the same model.
      objective: what such models are trained on.
      architectures: classes of `transformers`, and which of `HEAD` and `PAIRS` each has; the first is the usual one.
      prefix: under which an architecture with a head keeps the body's tensors.
      body: tensors of the body.
      head: tensors of the heads.
      traits: the config.
      head_traits: keys of the config that matter only where there is a head.
      defaults: values of keys that a config may leave out.
      gated_body: tensors of the body where the MLPs are gated, if they are others.
      parts: tensors that show that a part is there, though the architecture does not name it.
      copies: tensors that repeat another one, which stands under its own name.
      ignored: regular expression of tensors that hold no weights.
    """

    model_type: str
    preset: str
    objective: str
    architectures: Mapping[str, frozenset[str]]
    prefix: str
    body: Rows
    head: Rows
    traits: tuple[Trait, ...]
    defaults: Mapping[str, Any]
    head_traits: tuple[Trait, ...] = ()
    gated_body: Rows | None = None
    parts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: str = r"rotary_emb\.inv_freq$"

    def rows(self, settings: ModelSettings, bare: bool) -> Rows:
        """Names and layouts of all tensors; a `bare` model keeps those of its body without a prefix."""
        body = self.gated_body if self.gated_body is not None and settings.gated else self.body
        prefix = "" if bare else self.prefix
        return tuple(row._replace(name=prefix + row.name) for row in body) + self.head

    def architecture(self, parts: frozenset[str]) -> str:
        """The class of `transformers` that has these parts."""
        found = [name for name, own in self.architectures.items() if own == parts & _NAMING]
        if not found:
            raise UserError(f"{self.model_type} of transformers has no class with {' and '.join(sorted(parts))}")
        return found[0]

    def found_parts(self, architecture: str, tensors: Iterable[str]) -> frozenset[str]:
        """The parts that an architecture names, and those that tensors show."""
        present = set(tensors)
        shown = {part for part, name in self.parts.items() if present & {name, self.prefix + name}}
        return self.architectures[architecture] | shown

    def read(self, config: Config, parts: frozenset[str]) -> ModelSettings:
        """The settings of a config.

        Raises:
          UserError: the core cannot be that model; the sentence names the key and its value.
        """
        changes: dict[str, Any] = dict(FAMILIES[self.preset])
        try:
            for trait in self.traits + (self.head_traits if HEAD in parts else ()):
                changes |= trait.read(config)
        except UserError:
            raise
        except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
            raise UserError(
                f"{config.where} is damaged: it has values of a wrong kind ({error}); fetch it again"
            ) from error
        if HEAD not in parts:
            changes |= {"tied_embeddings": True, "head_transform": False, "head_bias": False}
            changes |= {"head_scale": False, "logit_softcap": None}
        changes |= {"tied_embeddings": False} if UNTIED in parts else {}
        changes |= {"head_bias": True} if HEAD_BIAS in parts else {}
        changes |= {"pooler": POOLER in parts, "pair_head": PAIRS in parts}
        for name in ("vocab_size", "max_positions"):
            if changes.get(name) is None:
                raise UserError(f"{config.where} gives no {name.replace('_', ' ')}: it is not a whole config")
        try:
            for key in keys(ModelSettings):
                if key.name in changes:
                    changes[key.name] = check_value(
                        dataclasses.replace(key, name=f"model.{key.name}"), changes[key.name]
                    )
            return validated(ModelSettings(**changes)).model
        except UserError as error:
            raise UserError(f"{config.where}: {error}") from error

    def write(self, settings: ModelSettings, parts: frozenset[str]) -> dict[str, Any]:
        """The config of a model of this family."""
        filled = resolved(settings)
        written: dict[str, Any] = {
            "architectures": [self.architecture(parts)],
            "model_type": self.model_type,
        }
        for trait in self.traits + (self.head_traits if HEAD in parts else ()):
            written |= trait.write(filled)
        return written

    def differences(self, settings: ModelSettings, parts: frozenset[str]) -> list[str]:
        """The keys of a model that this family has no words for: what is lost by writing a config and reading it."""
        if parts & _NAMING not in self.architectures.values():
            return [f"model.{PAIRS}={settings.pair_head}"]
        try:
            written = self.write(settings, parts)
            back = self.read(Config("config.json", written, self.defaults), parts)
        except UserError as error:
            return [str(error)]
        return different(settings, back)


def different(first: ModelSettings, second: ModelSettings) -> list[str]:
    """`key=value` of the first for every key in which two models compute something else."""
    one, other = resolved(first), resolved(second)
    found = []
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        close = isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=1e-6)
        if field.name not in _FREE and a != b and not close:
            found.append(f"model.{field.name}={getattr(first, field.name)}")
    return found


def own_parts(family: Family, settings: ModelSettings, headless: bool) -> frozenset[str]:
    """The parts of one of our models; a `headless` one gives hidden states."""
    parts = set() if headless else {HEAD}
    parts |= {POOLER} if settings.pooler else set()
    parts |= {PAIRS} if settings.pair_head else set()
    if UNTIED in family.parts and not settings.tied_embeddings:
        parts.add(UNTIED)
    if HEAD_BIAS in family.parts and settings.head_bias:
        parts.add(HEAD_BIAS)
    return frozenset(parts)
