"""The coordinate check: how the activations of a model grow with its width after a few updates.

Under a parametrisation that transfers, what an update does to each activation neither grows nor shrinks with the width
(Yang et al. 2022, appendix D.1); under the standard one it grows, so that the best learning rate falls.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from research.data.loader import Loader
from research.doctor import synthetic
from research.doctor.reduction import changed, prepared
from research.doctor.subject import NUM_WINDOWS, quick_options
from research.errors import UserError
from research.models import Model, layers
from research.optim import Hyper
from research.settings import AXES, ModelSettings, Settings
from research.train.assembly import Assembly, assemble
from research.train.state import TrainState, initial_state
from research.train.step import make_step
from research.vocabulary import Vocabulary

GROWTHS = ("heads", "head_dim")
KINDS = {"embed": "stream", "heads": "queries", "mlp": "mlp", "vocab": "logits"}


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """Activations of a model at several widths.

    Attributes:
      names: of the activations, in the order in which they are computed; `stream 0` is the embedding.
      widths: values of model.embed_dim.
      sizes: mean absolute values after 0, 1, 2, ... updates.
      changes: mean absolute differences from those of the initial weights.
      losses: after 0, 1, 2, ... updates.
    """

    names: tuple[str, ...]
    widths: tuple[int, ...]
    sizes: Float[np.ndarray, "widths updates names"]
    changes: Float[np.ndarray, "widths updates names"]
    losses: Float[np.ndarray, "widths updates"]

    def slopes(self, update: int = -1) -> dict[str, float]:
        """The exponent of the width by which each activation's change grows, by least squares in logarithms."""
        return {name: slope(self.widths, self.changes[:, update, place]) for place, name in enumerate(self.names)}

    def record(self) -> dict[str, Any]:
        """What was measured, as plain JSON."""
        return {
            "widths": list(self.widths),
            "activations": list(self.names),
            "slopes": self.slopes(),
            "sizes": self.sizes.tolist(),
            "changes": self.changes.tolist(),
            "losses": self.losses.tolist(),
        }


def off(slopes: Mapping[str, float], tolerance: float) -> dict[str, float]:
    """The exponents that are not near zero.

    Those of logits may lie at -1/2 as well: what the head's initial values make of a change shrinks so, until the head
    has learnt (Yang et al. 2022, appendix D.2).
    """
    return {
        name: value
        for name, value in slopes.items()
        if value > tolerance or value < -tolerance - (0.5 if name == "logits" else 0.0)
    }


def slope(widths: Sequence[int], values: Float[np.ndarray, " widths"]) -> float:
    """The exponent `a` of `values ~ widths^a`, by least squares in logarithms."""
    return float(np.polyfit(np.log(np.asarray(widths, np.float64)), np.log(np.maximum(values, 1e-30)), 1)[0])


def measure(
    settings: Settings,
    widths: Sequence[int],
    steps: int,
    growth: str = "heads",
    seeds: int = 1,
    stage: Callable[[int], None] = lambda width: None,
) -> Coordinates:
    """Activations at each width after 0 to `steps` updates from one batch of made-up documents.

    The schedule is constant and without a warm-up; rates and rule are those of the settings.

    Args:
      settings: whose model is made wider; `model.parametrisation` included.
      widths: values of model.embed_dim, two or more.
      steps: updates.
      growth: what grows with the width, the number of `heads` or their `head_dim`.
      seeds: initial weights to average over.
      stage: is told the width that is measured next.

    Raises:
      UserError: fewer than two widths, or a width that heads do not divide.
    """
    if len(set(widths)) < 2:
        raise UserError(f"--widths={','.join(map(str, widths))}: a slope takes two different widths or more")
    found = []
    for width in widths:
        stage(width)
        found.append(measure_one(at_width(settings, width, growth), steps, seeds))
    names = found[0].names
    assert all(other.names == names for other in found)
    sizes, changes, losses = (
        np.concatenate([getattr(one, part) for one in found]) for part in ("sizes", "changes", "losses")
    )
    return Coordinates(names, tuple(widths), sizes, changes, losses)


def measure_one(settings: Settings, steps: int, seeds: int = 1) -> Coordinates:
    """Activations of one model, at its own width; see `measure`."""
    plain = {"optimizer.schedule": "constant", "optimizer.warmup_steps": 0, "model.dropout": 0.0}
    free: dict[str, Any] = {f"parallel.mesh.{axis}": None for axis in AXES}
    settings = changed(prepared(settings, 1), plain | free | {"parallel.preset": "dp"})
    vocabulary = synthetic.vocabulary_of(settings)
    assembly = assemble(settings, vocabulary, devices=jax.devices()[:1])
    names, *parts = _measured(assembly, made_up_batch(assembly, vocabulary), steps, seeds)
    return Coordinates(names, (settings.model.embed_dim,), *(part[None] for part in parts))


def made_up_batch(assembly: Assembly, vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """The first training batch `[1, rows, ...]` of a made-up corpus, some of whose tokens are frequent, as in text."""
    settings = assembly.settings
    with tempfile.TemporaryDirectory(prefix="isoflop-coordinates-") as folder:
        reader = synthetic.corpus(Path(folder) / "corpus", vocabulary, assembly.raw_length, NUM_WINDOWS, skewed=True)
        loader = Loader(
            reader,
            vocabulary,
            seed=settings.seed,
            batch_size=settings.train.batch_size,
            accumulation=1,
            raw_length=assembly.raw_length,
            packing=settings.data.packing,
            num_tokens=None,
            corrupt=assembly.objective.corrupt,
            num_steps=1,
            partners=assembly.objective.partners,
        )
        return loader.batch(0)


def at_width(settings: Settings, width: int, growth: str) -> Settings:
    """The settings with another width: heads in number or width, and a given mlp_dim, grow in proportion.

    Raises:
      UserError: the proportion gives no whole number of them.
    """
    model = settings.model
    changes: dict[str, Any] = {"model.embed_dim": width}
    names = ["mlp_dim", "head_dim"] if growth == "head_dim" else ["mlp_dim", "num_heads", "num_kv_heads"]
    for name in names:
        if (value := getattr(model, name)) is not None:
            changes[f"model.{name}"] = _proportional(name, value, width, model)
    if model.parametrisation == "mup" and model.base_head_dim is None:
        changes["model.base_head_dim"] = model.head_width
    return changed(settings, changes)


def _proportional(name: str, value: int, width: int, model: ModelSettings) -> int:
    if value * width % model.embed_dim:
        raise UserError(
            f"--widths={width} is {width / model.embed_dim:g} times model.embed_dim={model.embed_dim}, which gives no "
            f"whole model.{name} of {value}: choose multiples of {model.embed_dim}, or let the other of heads and "
            "head_dim grow (--growth)"
        )
    return value * width // model.embed_dim


def _measured(
    assembly: Assembly, batch: Mapping[str, np.ndarray], steps: int, seeds: int
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray]:
    settings, names = assembly.settings, list[str]()
    options = quick_options(assembly.mesh.devices.flat[0].platform)
    step, hyper = make_step(settings, assembly.model, assembly.objective), Hyper.of(settings)

    def advanced(state: TrainState, rows: Mapping[str, Array]) -> tuple[TrainState, list[Array], Array]:
        shown = activations(assembly.model, assembly.objective.pattern, state.params, rows)
        names[:] = [name for name, _ in shown]
        state, metrics = step(state, {name: array[None] for name, array in rows.items()})
        return state, [values for _, values in shown], metrics["loss"]

    born = jax.jit(lambda seed: initial_state(settings, assembly.model, (seed, hyper)), compiler_options=options)
    advance = jax.jit(advanced, compiler_options=options)
    rows = {name: jnp.asarray(array[0]) for name, array in batch.items()}
    found = []
    with jax.set_mesh(assembly.mesh):
        for seed in range(settings.seed, settings.seed + seeds):
            state, shown = born(jnp.asarray(seed, jnp.uint32)), []
            for _ in range(steps + 1):  # the last update is of no interest, what stands before it is
                state, values, loss = advance(state, rows)
                shown.append(jax.device_get((values, loss)))
            found.append(shown)
    sizes = [[[np.abs(x).mean() for x in values] for values, _ in shown] for shown in found]
    changes = [
        [[np.abs(x - first).mean() for x, first in zip(values, shown[0][0], strict=True)] for values, _ in shown]
        for shown in found
    ]
    losses = [[loss for _, loss in shown] for shown in found]
    return tuple(names), *(np.mean(np.asarray(part, np.float64), axis=0) for part in (sizes, changes, losses))


def activations(
    model: Model, pattern: Any, params: Any, inputs: Mapping[str, Array]
) -> list[tuple[str, Float[Array, "..."]]]:
    """What a pass computes, by name: all that has a layout of its own, which is where the model shows it.

    Queries are without the factor that their weights have taken in. Models whose layers are a loop show their logits
    alone.
    """
    found: list[tuple[str, Array]] = []
    taken_in = {path.split("/")[-1]: of.scaling.multiplier for path, of in model.parameters().items()}
    factor = 1.0 / taken_in.get("query_norm", taken_in.get("query", 1.0))

    def keep(x: Array, names: tuple[str | None, ...]) -> Array:
        kind = KINDS[next(name for name in reversed(names) if name in KINDS)]
        number = sum(name.startswith(kind) for name, _ in found)
        values = x.astype(jnp.float32) * (factor if kind == "queries" else 1.0)
        found.append((f"{kind} {number + (kind != 'stream')}" if kind != "logits" else kind, values))
        return x

    attends = model.settings.architecture in {"transformer", "encoder_decoder"}
    open_model = dataclasses.replace(model, constrain=keep, scan=0, remat="none")
    body = open_model if attends else dataclasses.replace(model, constrain=layers.unconstrained)
    hidden = body.apply(params, inputs, pattern=pattern).hidden
    open_model.unembed(params, hidden)
    return found
