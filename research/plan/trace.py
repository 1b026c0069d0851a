"""What the update keeps and multiplies, read from its trace: nothing is compiled, no device is needed."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array, Float

from research.data.draws import Draws
from research.data.windows import Windows
from research.kernels.splash import Splash
from research.models import Model
from research.parallel import arrays, rules
from research.settings import MeshSettings
from research.train.assembly import Assembly
from research.train.step import own_terms, sequences, total

# Of one row: neither the content nor the number of documents changes a shape.
_FIRST = 5
# Rows that are traced, times the devices: divisible by every mesh, and no other dimension of any model is a multiple.
_ROWS = 13
_TRACES: dict[Any, "Trace"] = {}


@dataclasses.dataclass(frozen=True)
class Trace:
    """Of a micro-batch of `rows`; all but what has no rows grows in proportion to them.

    Attributes:
      rows: sequences.
      kept: shapes and types of what the forward pass keeps for the backward pass, beside weights and batch.
      product_flops: operations of matrix products, forward, backward and computed again.
      kernel_calls: Pallas kernels among them, whose operations are not in `product_flops`.
    """

    rows: int
    kept: tuple[tuple[tuple[int, ...], np.dtype], ...]
    product_flops: float
    kernel_calls: int


def batch_shapes(assembly: Assembly) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of the global batch, `[accumulation, rows, ...]`; no data are read.

    They are those of one made-up window after the objective's own corruption.
    """
    train, length = assembly.settings.train, assembly.raw_length
    tokens = np.full((1, length), _FIRST, np.int32)
    ids = np.zeros(1, np.int64)
    places = np.arange(length, dtype=np.int32)[None]
    windows = Windows(tokens, np.ones_like(tokens), places, np.full(1, _FIRST, np.int32), ids, ids)
    if assembly.objective.partners:
        windows = dataclasses.replace(windows, partners=windows)
    row = assembly.objective.corrupt(windows, Draws(0, ids, ids, np.zeros(1)))
    sharding = arrays.batch_sharding(assembly.mesh)
    rows = train.batch_size // train.accumulation
    return {
        name: jax.ShapeDtypeStruct((train.accumulation, rows, *array.shape[1:]), array.dtype, sharding=sharding)
        for name, array in row.items()
    }


def trace(assembly: Assembly) -> Trace:
    """What a micro-batch of the run keeps and multiplies; traced once for all batches, and all meshes of a size."""
    settings = assembly.settings
    parallel = dataclasses.replace(settings.parallel, mesh=MeshSettings(), preset="dp", remat="none")
    train = dataclasses.replace(settings.train, batch_size=1, accumulation=1)
    own = dataclasses.replace(settings, parallel=parallel, train=train)
    key = (own, assembly.model.remat, assembly.kernels.names, assembly.mesh.size)
    if key not in _TRACES:
        _TRACES[key] = _trace(assembly)
    return _TRACES[key]


def _trace(assembly: Assembly) -> Trace:
    rows = _ROWS * assembly.mesh.size
    given_rows = batch_shapes(assembly)
    batch = {name: jax.ShapeDtypeStruct((rows, *of.shape[2:]), of.dtype) for name, of in given_rows.items()}
    model, objective = _traceable(assembly), assembly.objective

    def loss(params: Any, batch: Mapping[str, Array], dropout: Float[Array, ""]) -> Float[Array, ""]:
        key = jax.random.key(0)
        outputs = model.apply(params, batch, pattern=objective.pattern, key=key, dropout=dropout)
        weights = objective.weights(batch) | dict.fromkeys(model.loss_coefficients, sequences(batch))
        terms = objective.terms(model, params, outputs, batch) | own_terms(model, outputs, weights)
        return total(terms, {name: term.sum for name, term in terms.items()})

    params = jax.eval_shape(model.init, jax.random.key(0))
    given = (params, batch, jax.ShapeDtypeStruct((), jnp.float32))
    # Without the mesh as context: kernels make small constants while they are traced, which need a device that is here.
    pullback = jax.make_jaxpr(lambda p, b, d: jax.vjp(lambda q: loss(q, b, d), p)[1])(*given).jaxpr
    gradient = jax.make_jaxpr(jax.value_and_grad(loss))(*given).jaxpr
    known = set(pullback.invars) | set(pullback.constvars)
    kept = dict.fromkeys(var for var in pullback.outvars if isinstance(var, core.Var) and var not in known)
    avals: list[Any] = [var.aval for var in kept]
    shapes = tuple((aval.shape, np.dtype(aval.dtype)) for aval in avals if _held(aval))
    return Trace(rows, shapes, *_products(gradient, assembly.mesh.size))


def _traceable(assembly: Assembly) -> Model:
    """The model, its attention by a kernel that is traced without its hardware.

    cuDNN's asks for a GPU; a TPU's keeps the same for the backward pass: the output and one number a row.
    """
    model, mesh = assembly.model, assembly.mesh
    if mesh.devices.flat[0].platform != "gpu" or dict(assembly.kernels.names)["attention"] != "cudnn":
        return model
    layout = None if mesh.size == 1 else rules.layout(mesh, assembly.settings.parallel.preset)
    return dataclasses.replace(model, kernels=dataclasses.replace(model.kernels, attention=Splash(layout)))


def _held(aval: Any) -> bool:
    """Whether a value takes memory of the device: no key of random numbers, nothing that is offloaded."""
    on_host = "host" in str(getattr(aval, "memory_space", "")).lower()
    return not on_host and not jax.dtypes.issubdtype(aval.dtype, jax.dtypes.prng_key)


def _products(jaxpr: Any, devices: int) -> tuple[float, int]:
    """Operations of all matrix products and calls of Pallas kernels, loops by their lengths."""
    flops, calls = 0.0, 0
    for equation in jaxpr.eqns:
        name, times, parts = equation.primitive.name, 1.0, 1.0
        if name == "pallas_call":
            calls += 1
            continue
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            out = math.prod(equation.outvars[0].aval.shape)
            flops += 2.0 * out * math.prod(left[axis] for axis in contracted)
        elif name in {"ragged_dot", "ragged_dot_general"}:
            left, right = (var.aval.shape for var in equation.invars[:2])
            flops += 2.0 * math.prod(left) * right[-1]
        elif name == "scan":
            times = float(equation.params["length"])
        elif name == "shard_map":
            parts = float(devices)
        inner = [_products(each, devices) for each in _inside(equation)]
        if inner:
            found = max(inner) if name == "cond" else tuple(sum(parts) for parts in zip(*inner, strict=True))
            flops, calls = flops + times * parts * found[0], calls + int(times * found[1])
    return flops, calls


def _inside(equation: Any) -> list[Any]:
    found = []
    for value in equation.params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(each, "eqns"):
                found.append(each)
            elif hasattr(each, "jaxpr") and hasattr(each.jaxpr, "eqns"):
                found.append(each.jaxpr)
    return found
