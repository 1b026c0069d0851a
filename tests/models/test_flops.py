"""Counts of parameters and operations: against the program that is executed, and by hand on shapes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from research import objectives
from research.kernels.choice import REFERENCE
from research.models import build, flops
from research.train.state import initial_state
from research.train.step import make_step
from tests import small
from tests.small import VARIANTS


def operations(jaxpr: Any) -> float:
    """Two for each multiply-add of each matrix product in a program; bodies of loops as often as they run."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * np.prod([left[axis] for axis in contracted])
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(operations(inner) for inner in jaxprs_in_params(equation.params))
    return total


@pytest.mark.parametrize(("variant", "name"), [*((variant, "causal") for variant in VARIANTS), ("bert", "masked")])
def test_model_flops_are_those_of_the_training_step(variant: str, name: str) -> None:
    """Exactly: the first layer needs its input's gradient too, since that is the gradient of the embeddings."""
    changes = {f"model.{key}": value for key, value in VARIANTS[variant].items()} | {
        "objective.name": name,
        "model.num_heads": 4,
        "parallel.layers": "unroll",
    }
    of = small.settings(changes)
    model = build(of, REFERENCE)
    objective = objectives.build(of.objective, small.VOCABULARY)
    state = jax.eval_shape(lambda: initial_state(of, model))
    batch = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, small.random_batch(of, 0)))
    program = jax.make_jaxpr(make_step(of, model, objective))(state, batch)
    length = of.data.sequence_length
    share = 8 / length if name == "masked" else 1.0  # the head is computed at max_targets(16) = 8 positions
    count = flops.count(model, length, causal=objective.pattern.causal)
    head = 6.0 * model.vocab_size * of.model.embed_dim
    tokens = of.train.batch_size * length
    assert operations(program.jaxpr) == tokens * (count.model_flops - (1 - share) * head)


def test_required_flops_leave_out_what_is_hidden_and_what_is_not_predicted() -> None:
    model = small.model("llama")
    length = small.LENGTH
    head, attention = 6.0 * small.VOCAB * 16, 6.0 * 2 * 2 * length * 16
    both = flops.count(model, length, causal=False)
    causal = flops.count(model, length, causal=True, head_share=0.25)
    assert both.required_flops == both.model_flops == causal.model_flops
    seen = np.tril(np.ones((length, length))).mean()
    np.testing.assert_allclose(both.model_flops - causal.required_flops, 0.75 * head + (1 - seen) * attention)


@pytest.mark.parametrize("variant", VARIANTS)
def test_non_embedding_parameters_leave_out_the_tables(variant: str) -> None:
    model = small.model(variant)
    count = flops.count(model, small.LENGTH, causal=True)
    tables = small.VOCAB * 16 * (1 if model.settings.tied_embeddings else 2)
    tables += small.LENGTH * 16 if model.settings.position == "learned" else 0
    assert count.parameters - count.non_embedding_parameters == tables
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert count.parameters == sum(leaf.size for leaf in jax.tree.leaves(shapes))
