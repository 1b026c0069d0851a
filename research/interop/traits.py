"""What a Hugging Face config says and how ours says it: traits, each of which reads some keys and writes them."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from research.errors import UserError
from research.settings import ModelSettings

Changes = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Config:
    """A `config.json` with the defaults of its model type.

    Attributes:
      where: the file, for the sentences of errors.
      values: what it says.
      defaults: what `transformers` takes where it says nothing.
    """

    where: str
    values: Mapping[str, Any]
    defaults: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        """The value of a key, or its default.

        Raises:
          UserError: there is neither.
        """
        if key in self.values:
            return self.values[key]
        if key not in self.defaults:
            raise UserError(f"{self.where} has no {key}: it is not a whole config, fetch it again")
        return self.defaults[key]

    def says(self, key: str) -> bool:
        """Whether the file has a value for the key."""
        return self.values.get(key) is not None

    def refused(self, key: str, allowed: str, value: Any = None) -> UserError:
        """The sentence for a value that the core has no counterpart of."""
        shown = self.values.get(key, self.defaults.get(key)) if value is None else value
        return UserError(f"{self.where}: {key}={shown!r} has no counterpart in Isoflop, which can do {allowed}")


@dataclasses.dataclass(frozen=True)
class Trait:
    """One thing that both sides have words for.

    Attributes:
      read: the settings that a config asks for.
      write: the keys that say it, for settings whose optional keys are filled in.
    """

    read: Callable[[Config], Changes]
    write: Callable[[ModelSettings], Changes]


def resolved(settings: ModelSettings) -> ModelSettings:
    """The same model with every value that follows from others written out, and what says nothing at its default."""
    default, count = ModelSettings(), settings.num_layers
    letters = (settings.attention_period * count)[:count]
    changes: Changes = {
        "num_encoder_layers": settings.encoder_layers or None,
        "num_kv_heads": settings.kv_heads,
        "head_dim": settings.head_width,
        "mlp_dim": settings.mlp_width,
        "qkv_bias": settings.projection_bias,
        "attention_scale": settings.attention_scale or settings.head_width**-0.5,
        "attention_period": letters if "l" in letters else "g",
        "attention_window": settings.attention_window if "l" in letters else None,
        "norm_bias": settings.norm_bias or settings.norm == "rmsnorm",
    }
    silent = {
        "rotary": settings.position != "rotary",
        "relative": settings.position != "relative",
        "position_offset": settings.position != "learned",
        "experts_per_token": not settings.num_experts,
        "expert_capacity": not settings.num_experts,
        "balance_loss": not settings.num_experts,
        "rotary_base_local": "l" not in letters,
        "rotary_factor": settings.rotary_scaling == "none",
        **dict.fromkeys(
            ("rotary_low", "rotary_high", "rotary_original_length"), settings.rotary_scaling not in {"llama3", "yarn"}
        ),
    }
    for field in dataclasses.fields(settings):
        if silent.get(field.name) or silent.get(field.name.split("_")[0]):
            changes[field.name] = getattr(default, field.name)
    return dataclasses.replace(settings, **changes)


# --- single keys ------------------------------------------------------------------------------------------------------


def same(ours: str, theirs: str) -> Trait:
    """A value that both sides write alike."""
    return Trait(lambda config: {ours: config[theirs]}, lambda settings: {theirs: getattr(settings, ours)})


def only(key: str, *allowed: Any) -> Trait:
    """A key of which the core knows one value; the first is written."""

    def read(config: Config) -> Changes:
        if config[key] not in allowed:
            raise config.refused(key, f"{key}={allowed[0]!r}")
        return {}

    return Trait(read, lambda _: {key: allowed[0]})


def absent(key: str) -> Trait:
    """A key that must have no value."""

    def read(config: Config) -> Changes:
        if config.says(key):
            raise config.refused(key, f"weights without {key}")
        return {}

    return Trait(read, lambda _: {})


def alike(first: str, second: str, ours: str) -> Trait:
    """Two keys for what is one in the core."""

    def read(config: Config) -> Changes:
        if bool(config[first]) != bool(config[second]):
            raise config.refused(first, f"{first} and {second}={config[second]!r} that are equal")
        return {ours: bool(config[first])}

    def write(settings: ModelSettings) -> Changes:
        return {first: getattr(settings, ours), second: getattr(settings, ours)}

    return Trait(read, write)


def constant(**values: Any) -> Trait:
    """Keys that decide nothing here and are written for whoever reads them."""
    return Trait(lambda _: {}, lambda _: dict(values))


def training(**names: str) -> Trait:
    """Rates and deviations of training, which weights do not depend on: written, not read."""
    return Trait(lambda _: {}, lambda settings: {key: getattr(settings, ours) for key, ours in names.items()})


# --- non-linearities --------------------------------------------------------------------------------------------------

_FUNCTIONS = {
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu_exact",
    "gelu_python": "gelu_exact",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
}
_GATED = {"silu": "swiglu", "gelu": "geglu", "gelu_exact": "geglu_exact"}


def activation(key: str, gated: bool, tanh: str = "gelu_new", exact: str = "gelu") -> Trait:
    """The non-linearity of the MLP.

    Args:
      key: its key.
      gated: the family's MLPs have gates.
      tanh: what the family calls the approximated GELU.
      exact: what it calls the exact one.
    """
    known = sorted(name for name, ours in _FUNCTIONS.items() if (ours in _GATED if gated else ours != "silu"))

    def read(config: Config) -> Changes:
        if config[key] not in known:
            raise config.refused(key, ", ".join(known))
        ours = _FUNCTIONS[config[key]]
        return {"activation": _GATED[ours] if gated else ours}

    def write(settings: ModelSettings) -> Changes:
        said = {"gelu": tanh, "gelu_exact": exact}.get(settings.nonlinearity, settings.nonlinearity)
        return {key: said if said in known else exact}  # what has no word here is found out when it is read again

    return Trait(read, write)


def head_activation(key: str, body: str) -> Trait:
    """The non-linearity of the head's transform, which in the core is that of the body."""

    def read(config: Config) -> Changes:
        if _FUNCTIONS.get(config[key]) != _FUNCTIONS.get(config[body]):
            raise config.refused(key, f"the function of {body}={config[body]!r}")
        return {}

    return Trait(read, lambda _: {key: "gelu"})


# --- rotary positions -------------------------------------------------------------------------------------------------

_KINDS = {"default": "none", "linear": "linear", "llama3": "llama3", "yarn": "yarn"}


def rotary() -> Trait:
    """Base and scaling, as `rope_parameters` or as the older `rope_theta` and `rope_scaling`."""

    def read(config: Config) -> Changes:
        found = dict(config.values.get("rope_scaling") or config.values.get("rope_parameters") or {})
        return scaling(config, found, float(found.get("rope_theta") or config["rope_theta"]))

    def write(settings: ModelSettings) -> Changes:
        scaled = {"rope_type": "default"} | _scaling_keys(settings)
        base = settings.rotary_base
        older = {"rope_theta": base, "rope_scaling": _scaling_keys(settings) or None}
        return older | {"rope_parameters": scaled | {"rope_theta": base}}

    return Trait(read, write)


def scaling(config: Config, found: Mapping[str, Any], base: float) -> Changes:
    """The settings of one set of rotary parameters.

    Raises:
      UserError: a scaling, or a parameter of it, that the core does not have.
    """
    kind = found.get("rope_type", found.get("type", "default"))
    if kind not in _KINDS:
        raise config.refused("rope_type", ", ".join(_KINDS), kind)
    for part in (config.values.get("partial_rotary_factor"), found.get("partial_rotary_factor")):
        if part not in {None, 1}:
            raise config.refused("partial_rotary_factor", "partial_rotary_factor=1.0", part)
    changes: Changes = {"rotary_base": base, "rotary_scaling": _KINDS[kind]}
    if kind == "default":
        return changes
    length = found.get("original_max_position_embeddings") or config["max_position_embeddings"]
    factor = float(found.get("factor") or config["max_position_embeddings"] / length)
    changes["rotary_factor"] = factor
    if kind == "llama3":
        changes |= {"rotary_original_length": length}
        changes |= {"rotary_low": float(found["low_freq_factor"]), "rotary_high": float(found["high_freq_factor"])}
    elif kind == "yarn":
        changes |= {"rotary_original_length": length}
        low, high = float(found.get("beta_slow") or 1), float(found.get("beta_fast") or 32)
        changes |= {"rotary_low": low, "rotary_high": high}
        _check_yarn(config, found, factor)
    return changes


def _check_yarn(config: Config, found: Mapping[str, Any], factor: float) -> None:
    expected = 0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0
    given = found.get("attention_factor")
    if given is not None and not math.isclose(given, expected, rel_tol=1e-6):
        raise config.refused("attention_factor", f"attention_factor={expected:.6g} for factor={factor:g}", given)
    if given is None and found.get("mscale") and found.get("mscale_all_dim"):
        raise config.refused("mscale", "yarn without mscale and mscale_all_dim", found["mscale"])
    if found.get("truncate") is False:
        raise config.refused("truncate", "truncate=True", False)


def _scaling_keys(settings: ModelSettings) -> Changes:
    """What a scaled encoding has beside its base; empty where it is not scaled."""
    kind = settings.rotary_scaling
    if kind not in _KINDS.values() or kind == "none":
        return {}
    keys: Changes = {"rope_type": kind, "factor": settings.rotary_factor}
    if kind != "linear":
        low, high = {"llama3": ("low_freq_factor", "high_freq_factor"), "yarn": ("beta_slow", "beta_fast")}[kind]
        keys |= {low: settings.rotary_low, high: settings.rotary_high}
        keys["original_max_position_embeddings"] = settings.rotary_original_length
    return keys


# --- layers that see all, and layers that see a window ----------------------------------------------------------------

_LETTERS = {"full_attention": "g", "sliding_attention": "l"}


def windows(
    default: Callable[[Config, int], str],
    key: str = "sliding_window",
    reach: Callable[[int], int] = lambda width: width - 1,
    width: Callable[[int], int] = lambda reach: reach + 1,
    extra: Callable[[ModelSettings], Changes] = lambda _: {},
    layer_types: bool = True,
) -> Trait:
    """Which layers are local, and how far they see.

    Args:
      default: the letter of each layer (`g` or `l`) where `layer_types` says nothing.
      key: of the window's width.
      reach: the farthest distance that is seen, of a width.
      width: the inverse.
      extra: further keys that say it.
      layer_types: whether the family lists the kinds of its layers.
    """

    def read(config: Config) -> Changes:
        count = config["num_hidden_layers"]
        types = config.values.get("layer_types") if layer_types else None
        if types is not None and (unknown := sorted(set(types) - set(_LETTERS))):
            raise config.refused("layer_types", " and ".join(_LETTERS), unknown[0])
        letters = "".join(_LETTERS[kind] for kind in types) if types is not None else default(config, count)
        if "l" not in letters or config[key] is None:
            return {"attention_period": "g", "attention_window": None}
        return {"attention_period": period(letters), "attention_window": reach(config[key])}

    def write(settings: ModelSettings) -> Changes:
        local, count = settings.attention_window, settings.num_layers
        letters = (settings.attention_period * count)[:count]
        types = [name for letter in letters for name, own in _LETTERS.items() if own == letter]
        listed = {"layer_types": types} if layer_types else {}
        return {key: None if local is None else width(local), **listed, **extra(settings)}

    return Trait(read, write)


def period(letters: str) -> str:
    """The shortest beginning that gives all letters when it is repeated."""
    return next(
        letters[:size] for size in range(1, len(letters) + 1) if (letters[:size] * len(letters)).startswith(letters)
    )
