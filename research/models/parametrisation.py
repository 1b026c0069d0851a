"""How initial values and learning rates follow from width and depth, so that what was tuned on a small model holds.

The maximal-update parametrisation (Yang et al. 2022, table 3 for kernels and heads, table 8 for tied embeddings) and
the scaling of residual branches with depth (Yang et al. 2024, Depth-muP; Dey et al. 2025, CompleteP, table 1).

Published rules multiply some values in the forward pass: the attention logits by 1/d instead of 1/sqrt(d), the logits
of a tied head by 1/width, residual branches by a power of 1/depth. Here each multiplier is taken into a weight that it
acts on linearly: into queries, into the norm before the head, into what a branch ends with. A weight `m w` with initial
values, learning rate and 1/epsilon times `m` is at every update what the multiplier `m` on `w` would be, for any rule
whose steps do not shrink with the gradient (Yang et al. 2022, lemma J.1). So the forward pass is that of the standard
parametrisation: generation, evaluation, sharding, checkpoints and exported files need to know nothing of it.
"""

import dataclasses
import math
import re

from research.parameters import Parameter, Scaling
from research.settings import ModelSettings

STACKED = ("layers", "experts")
ENDS = re.compile(r"attention/out(_bias)?$|mlp/down(_bias)?$|experts/down$")
POST_NORMS = re.compile(r"_post_norm/")
QUERIES = re.compile(r"attention/query(_bias)?$")


def parametrised(settings: ModelSettings, parameter: Parameter) -> Parameter:
    """The weight with the initial values and the scaling that the settings' parametrisation gives it."""
    if settings.parametrisation == "standard" and settings.depth_scaling == "none":
        return parameter
    width, depth = settings.width_growth, settings.depth_growth
    path, within = parameter.path.removeprefix("encoder/"), "layers" in parameter.dimensions
    fan_in, fan_out = _fans(settings, parameter)
    branch = depth**-settings.branch_exponent if within else 1.0
    multiplier = _multiplier(settings, parameter.path, branch)

    spread = min(1.0, math.sqrt(fan_out / fan_in)) * multiplier
    if within and ENDS.search(path) and settings.depth_scaling != "none":
        spread *= math.sqrt(depth)  # their values were divided by the root of the depth, which the branch's factor does
    if QUERIES.search(path) and settings.attention_scale is not None:
        spread *= math.sqrt(settings.head_growth)  # undoes that their values go by the width of a head
    if path == "relative_bias/table":
        spread *= math.sqrt(width)  # added to logits, whatever the width
    mean = parameter.mean
    if parameter.kind == "norm":
        mean = multiplier * (1.0 + mean) - 1.0 if settings.norm_centred else multiplier * mean
    shared = within or path.startswith("relative_bias/")
    rate = depth ** (settings.branch_exponent - 1.0) if shared and settings.depth_scaling != "none" else 1.0
    scaling = Scaling(fan_in, fan_out, multiplier, rate, branch)
    return dataclasses.replace(parameter, std=parameter.std * spread, mean=mean, scaling=scaling)


def _fans(settings: ModelSettings, parameter: Parameter) -> tuple[float, float]:
    """Growth of the inputs that an output sums over, and of the outputs. A table's row is chosen, not summed over."""
    own = [(name, size) for name, size in zip(parameter.dimensions, parameter.shape, strict=True)]
    own = [(name, size) for name, size in own if name not in STACKED]
    names = [name for name, _ in own]
    if parameter.kind == "head":
        return _growth(settings, names[1:]), _growth(settings, names[:1])
    if parameter.kind != "kernel":
        return 1.0, _growth(settings, names if parameter.kind != "embedding" else names[1:])
    end = next(end for end in range(1, len(own)) if math.prod(size for _, size in own[:end]) == parameter.fan_in)
    return _growth(settings, names[:end]), _growth(settings, names[end:])


def _growth(settings: ModelSettings, names: list[str]) -> float:
    """Of the product of dimensions. What is as wide as the residual stream, or the MLP, grows with it."""
    width, head = settings.width_growth, settings.head_growth
    if "head_dim" in names and {"heads", "kv_heads"} & set(names):
        return width
    known = {"embed": width, "mlp": width, "hidden": width, "head_dim": head}
    known |= dict.fromkeys(("heads", "kv_heads"), width / head)
    return math.prod(known.get(name, 1.0) for name in names)


def _multiplier(settings: ModelSettings, path: str, branch: float) -> float:
    """The factor that is taken into a weight, relative to the model that rates were tuned on."""
    width, root = settings.width_growth, math.sqrt(settings.width_growth)
    readout = 1.0
    if settings.tied_embeddings:  # what is missing to 1/width (Yang et al. 2022, table 8)
        readout = (root if settings.head_scale else 1.0) * (root if settings.embedding_scale else 1.0) / width
    if path == "embedding/tokens" and settings.embedding_scale:
        return 1.0 / root
    if path == "head/table" and settings.head_scale:
        return root
    if path.startswith("head/norm/" if settings.head_transform else "final_norm/"):
        return readout
    if path == "pooler/kernel" and not settings.head_transform:
        return 1.0 / readout  # it reads what the norm before the head gives
    return _within(settings, path, branch)


def _within(settings: ModelSettings, path: str, branch: float) -> float:
    head = settings.head_growth
    queries = 1.0 / (math.sqrt(head) if settings.attention_scale is None else head)  # what is missing to 1/head_dim
    if QUERIES.search(path) and not settings.qk_norm:
        return queries
    if path.endswith("attention/query_norm"):
        return queries
    after = settings.norm_position == "both" and settings.architecture in {"transformer", "encoder_decoder"}
    return branch if (POST_NORMS if after else ENDS).search(path) else 1.0
