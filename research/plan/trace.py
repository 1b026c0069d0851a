"""What the update keeps and multiplies, read from its trace: nothing is compiled, no device is needed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.sharding import Mesh
from jaxtyping import Array, Float

from research.data.draws import Draws
from research.data.windows import Windows
from research.kernels import embedding, experts, grouped_experts, ring
from research.kernels.fused import Fused
from research.kernels.sharded_attention import ShardedAttention
from research.kernels.sharded_vocabulary import ShardedVocabulary
from research.kernels.splash import Splash
from research.models import Model
from research.models.layers import unconstrained
from research.parallel import arrays, rules
from research.plan.operations import Noted, Operations, operations
from research.settings import MeshSettings
from research.train.assembly import Assembly
from research.train.step import own_terms, sequences, total

# Of one row: neither the content nor the number of documents changes a shape.
_FIRST = 5
# Rows that are traced: the first prime that divides no other dimension, so that whatever it divides has the rows.
_ROWS = (211, 223, 227, 229, 233, 239, 241)
_TRACES: dict[Any, "Trace"] = {}

Held = tuple[tuple[int, ...], np.dtype]


@dataclasses.dataclass(frozen=True)
class Trace:
    """Of a micro-batch of `rows` on one device: no mesh cuts or gathers any shape.

    Attributes:
      rows: sequences; a dimension that has them, alone or times others, is a multiple of this, and no other one is.
      kept: shapes and types of what the forward pass keeps for the backward pass, beside weights and batch.
      offloaded: the same of what waits in the host's memory.
      operations: forward, backward and computed again, in proportion to the rows.
    """

    rows: int
    kept: tuple[Held, ...]
    offloaded: tuple[Held, ...]
    operations: Operations


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
    """What a micro-batch of the run keeps and multiplies; traced once for all batches and meshes."""
    settings = assembly.settings
    parallel = dataclasses.replace(settings.parallel, mesh=MeshSettings(), preset="dp", remat="none")
    train = dataclasses.replace(settings.train, batch_size=1, accumulation=1, noise_scale=False)
    own = dataclasses.replace(settings, parallel=parallel, train=train)
    key = (own, assembly.model.remat, assembly.kernels.names, assembly.mesh.devices.flat[0].platform)
    if key not in _TRACES:
        _TRACES[key] = _trace(assembly)
    return _TRACES[key]


def _trace(assembly: Assembly) -> Trace:
    given_rows = batch_shapes(assembly)
    rows = _rows(assembly, given_rows)
    batch = {name: jax.ShapeDtypeStruct((rows, *of.shape[2:]), of.dtype) for name, of in given_rows.items()}
    model, objective = _alone(assembly), assembly.objective

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
    listed: list[Any] = [var.aval for var in kept]
    avals = [aval for aval in listed if not jax.dtypes.issubdtype(aval.dtype, jax.dtypes.prng_key)]
    away = [aval for aval in avals if _on_host(aval)]
    here = [aval for aval in avals if not _on_host(aval)]
    kept_here, kept_away = (tuple((aval.shape, np.dtype(aval.dtype)) for aval in part) for part in (here, away))
    return Trace(rows, kept_here, kept_away, operations(gradient))


def _rows(assembly: Assembly, batch: Mapping[str, jax.ShapeDtypeStruct]) -> int:
    """How many rows are traced: a number that shapes can be searched for."""
    sizes = {size for parameter in assembly.model.parameters().values() for size in parameter.shape}
    sizes |= {size for array in batch.values() for size in array.shape[2:]}
    return next(rows for rows in _ROWS if all(size % rows for size in sizes))


def _alone(assembly: Assembly) -> Model:
    """The model on one device: each kernel is what a device of the mesh runs on its own part.

    cuDNN's attention asks for a GPU; a TPU's keeps the same for the backward pass: the output and one number a row.
    Experts are traced by the ragged product, which counts each row once, as every platform's kernel computes it.
    """
    model, mesh, kernels = assembly.model, assembly.mesh, assembly.model.kernels
    first = Mesh(mesh.devices.reshape(-1)[:1].reshape((1,) * mesh.devices.ndim), mesh.axis_names)
    layout = rules.layout(first, assembly.settings.parallel.preset)
    attend = kernels.attention
    if isinstance(attend, ShardedAttention):
        attend = ring.Alone(layout) if attend.around else attend.inner
    if isinstance(attend, (Splash, Fused)):
        attend = Noted(Splash())
    loss = kernels.vocabulary_loss
    alone = dataclasses.replace(
        kernels,
        attention=attend,
        vocabulary_loss=dataclasses.replace(loss, layout=layout) if isinstance(loss, ShardedVocabulary) else loss,
        experts=experts.reference if kernels.experts is experts.reference else grouped_experts.in_groups,
        capacity=experts.capacity,
        embedding=embedding.reference,
    )
    return dataclasses.replace(model, kernels=alone, constrain=unconstrained)


def _on_host(aval: Any) -> bool:
    return "host" in str(getattr(aval, "memory_space", "")).lower()
