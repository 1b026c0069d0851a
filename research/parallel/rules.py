"""Tables from the dimensions of weights and activations to mesh axes. Parallelism is these tables."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from research import trees
from research.errors import UserError
from research.kernels import Layout
from research.parameters import Parameter

Axes = tuple[str, ...]

BATCH: Axes = ("replica", "data", "fsdp", "expert")

# Which axes shard a dimension of a weight. Every dimension that a model declares has a row.
_DIMENSIONS = ("layers", "vocab", "embed", "positions", "types", "heads", "kv_heads", "head_dim", "mlp", "hidden")
_DIMENSIONS_OF_FEW = ("buckets", "router", "classes")
_REPLICATED: dict[str, Axes] = dict.fromkeys(_DIMENSIONS + _DIMENSIONS_OF_FEW, ()) | {"experts": ("expert",)}
_FSDP: dict[str, Axes] = {"embed": ("fsdp",)}
_TENSOR: dict[str, Axes] = {"vocab": ("tensor",), "heads": ("tensor",), "kv_heads": ("tensor",), "mlp": ("tensor",)}
PARAMETERS: dict[str, dict[str, Axes]] = {
    "dp": _REPLICATED,
    "fsdp": _REPLICATED | _FSDP,
    "tp": _REPLICATED | _TENSOR,
    "fsdp_tp": _REPLICATED | _FSDP | _TENSOR,
    # Weights in parts over the devices of a sequence, too, and those that are no expert's over the experts' devices.
    "fsdp_sp": _REPLICATED | {"embed": ("fsdp", "sequence")},
    "fsdp_ep": _REPLICATED | {"embed": ("fsdp", "expert")},
    "fsdp_tp_sp": _REPLICATED | {"embed": ("fsdp", "sequence")} | _TENSOR,
}

# Which axes shard a dimension of an activation, in every preset: axes of size one cost nothing.
ACTIVATIONS: dict[str, Axes] = {
    "batch": BATCH,
    "sequence": ("sequence",),
    "embed": (),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}

# The settings key that a reader would change where a dimension does not divide.
_KEYS = {
    "vocab": "tokenizer.vocab_size",
    "embed": "model.embed_dim",
    "heads": "model.num_heads",
    "kv_heads": "model.num_kv_heads",
    "mlp": "model.mlp_dim",
    "experts": "model.num_experts",
}


def axes_of(names: tuple[str | None, ...], table: Mapping[str, Axes]) -> list[Axes]:
    """The mesh axes of each named dimension; `None` is unsharded.

    Raises:
      KeyError: a name that the table has no row for.
    """
    return [() if name is None else table[name] for name in names]


def num_shards(axes: Axes, mesh: Mesh) -> int:
    """Into how many parts the axes cut a dimension."""
    return math.prod(mesh.shape[axis] for axis in axes)


def layout(mesh: Mesh, preset: str) -> Layout:
    """The mesh and its tables, for kernels that split their own work."""
    return Layout(mesh, BATCH, tuple(PARAMETERS[preset].items()))


def parameter_shardings(parameters: Mapping[str, Parameter], mesh: Mesh, preset: str) -> dict[str, NamedSharding]:
    """`{path: sharding}` of every weight; an axis splits the first dimension of a weight that it is listed for.

    Raises:
      UserError: a dimension that its mesh axes, as a weight's or as an activation's, do not divide.
    """
    found = {}
    for path, parameter in parameters.items():
        rows, used = [], set[str]()
        for size, name, listed in zip(
            parameter.shape, parameter.dimensions, axes_of(parameter.dimensions, PARAMETERS[preset]), strict=True
        ):
            axes = tuple(axis for axis in listed if axis not in used)
            used.update(axes)
            rows.append(axes)
            for split in (axes, ACTIVATIONS.get(name, ())):
                if size % num_shards(split, mesh):
                    named = " x ".join(f"parallel.mesh.{axis}={mesh.shape[axis]}" for axis in split)
                    raise UserError(
                        f"{_KEYS.get(name, name)}={size} is not divisible by {named} (parallel.preset={preset}): "
                        "change one of them"
                    )
        found[path] = NamedSharding(mesh, PartitionSpec(*rows))
    return found


def check_positions(length: int, mesh: Mesh, sequence_length: int, objective: str) -> None:
    """Raises `UserError` where the axis `sequence` does not divide the positions of a row."""
    shards = num_shards(ACTIVATIONS["sequence"], mesh)
    if length % shards:
        whole = length == sequence_length
        shown = "" if whole else f" makes {length} positions under objective.name={objective}, which"
        raise UserError(
            f"data.sequence_length={sequence_length}{shown} is not divisible by parallel.mesh.sequence={shards}: "
            "change one of them"
        )


def state_shardings(state: Any, shardings: Mapping[str, NamedSharding], mesh: Mesh) -> Any:
    """Shardings of a whole training state from those of the weights.

    A leaf whose path ends in that of a weight (a moment, an average) lies like the weight; along a dimension that it
    keeps one entry of (a factored moment) it is not sharded. Scalars are replicated.

    Raises:
      KeyError: a leaf that is none of these.
    """
    longest = sorted(shardings, key=len, reverse=True)

    def find(path: str, leaf: Any) -> NamedSharding:
        if leaf.ndim == 0:
            return NamedSharding(mesh, PartitionSpec())
        weight = next((weight for weight in longest if path == weight or path.endswith("/" + weight)), None)
        if weight is not None and len(spec := shardings[weight].spec) == leaf.ndim:
            rows = [() if size == 1 else row for row, size in zip(spec, leaf.shape, strict=True)]
            return NamedSharding(mesh, PartitionSpec(*rows)) if 1 in leaf.shape else shardings[weight]
        raise KeyError(f"no weight lends its sharding to {path} of shape {leaf.shape}")

    return trees.map_with_path(find, state)


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """The shapes with a sharding each, as loading and compiling want them."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, shardings
    )


def constrainer(mesh: Mesh) -> Callable[[Array, tuple[str | None, ...]], Array]:
    """`constrain(x, names)` for a mesh: pins the layout of an activation by the names of its dimensions.

    An unknown name raises KeyError; a dimension that its axes do not divide is not sharded.
    """

    def constrain(x: Array, names: tuple[str | None, ...]) -> Array:
        assert x.ndim == len(names), f"{names} names an array of shape {x.shape}"
        rows = axes_of(names, ACTIVATIONS)
        if mesh.size == 1:
            return x
        kept = [axes if size % num_shards(axes, mesh) == 0 else () for size, axes in zip(x.shape, rows, strict=True)]
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*kept)))

    return constrain
