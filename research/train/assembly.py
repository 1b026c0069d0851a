"""The parts of a run, put together from its settings: mesh, kernels, model, objective."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from research.errors import UserError
from research.kernels import Kernels, choose
from research.models import Model, build, flops
from research.objectives import Objective, accounting, raw_length
from research.objectives import build as build_objective
from research.optim.groups import rate_factors
from research.parallel import arrays, mesh, rules
from research.settings import Settings
from research.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Assembly:
    """What training, evaluation and generation are made of; holds no weights."""

    settings: Settings
    mesh: Mesh
    kernels: Kernels
    model: Model
    objective: Objective

    @property
    def evaluation_batch(self) -> int:
        """Sequences of an evaluation batch."""
        train = self.settings.train
        return self.settings.evaluate.batch_size or train.batch_size // train.accumulation

    @property
    def raw_length(self) -> int:
        """Raw tokens of a window."""
        return raw_length(self.objective, self.settings)

    @property
    def count(self) -> flops.Count:
        """Parameters, and operations a raw token."""
        return accounting.count(self.model, self.objective, self.raw_length).per(self.raw_length)

    def parameter_shapes(self) -> dict[str, Any]:
        """Shapes, types and shardings of the weights."""
        shardings = rules.parameter_shardings(self.model.parameters(), self.mesh, self.settings.parallel.preset)
        shapes = jax.eval_shape(self.model.init, jax.random.key(0))
        return rules.with_shardings(shapes, rules.state_shardings(shapes, shardings, self.mesh))


def assemble(settings: Settings, vocabulary: Vocabulary, devices: Sequence[jax.Device] | None = None) -> Assembly:
    """Checks that settings, devices and tokenizer fit, and builds the parts. Nothing is compiled or allocated.

    The devices are those of this run, unless others are given: some of them, or those of a topology that is elsewhere.

    Raises:
      UserError: a batch or a weight that the mesh does not divide, a tokenizer of another size, or too few positions.
    """
    train = settings.train
    if vocabulary.size != settings.tokenizer.vocab_size:
        raise UserError(
            f"tokenizer.vocab_size={settings.tokenizer.vocab_size}, but the tokenizer has {vocabulary.size} ids: "
            f"set tokenizer.vocab_size={vocabulary.size}"
        )
    core, length = settings.model, settings.data.sequence_length
    if core.position == "learned" and core.max_positions is not None and core.max_positions < length:
        raise UserError(
            f"model.max_positions={core.max_positions} is fewer than data.sequence_length={length}, and learned "
            "positions end there: change one of them"
        )
    grid = mesh.make_mesh(settings.parallel, devices)
    platform = grid.devices.flat[0].platform
    kernels = choose(settings.parallel, rules.layout(grid, settings.parallel.preset))
    model = build(settings, kernels, rules.constrainer(grid), platform)
    assembly = Assembly(settings, grid, model.kernels, model, build_objective(settings, vocabulary))
    arrays.check_rows(train.batch_size, train.accumulation, grid)
    arrays.check_rows(assembly.evaluation_batch, 1, grid, key="evaluate.batch_size")
    rate_factors(settings.optimizer, model.parameters())
    rules.parameter_shardings(model.parameters(), grid, settings.parallel.preset)
    positions = max(assembly.objective.lengths(assembly.raw_length))
    rules.check_positions(positions, grid, length, settings.objective.name)
    return assembly
