"""Counts of parameters and operations: against the program that is executed, and by hand on shapes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from research import objectives
from research.kernels import Pattern
from research.kernels.choice import REFERENCE
from research.models import EncoderDecoder, build, flops
from research.settings.families import FAMILIES
from research.train.state import initial_state
from research.train.step import make_step
from tests import small
from tests.small import LENGTH, VARIANTS, VOCAB

CAUSAL = Pattern(causal=True)
MEMORY = 8


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


@pytest.mark.parametrize("name", [*VARIANTS, *FAMILIES, "pairs"])
def test_model_flops_are_those_of_the_gradient(name: str) -> None:
    """Exactly: the first layer needs its input's gradient too, since that is the gradient of the embeddings."""
    # The reference sends all tokens through all experts, which is what is needed where all are chosen.
    every = {"num_experts": 4, "experts_per_token": 4} if name == "mixtral" else {}
    heads = {"pooler": True, "pair_head": True} if name == "pairs" else {}
    made = small.model("bert" if name == "pairs" else name, kernels=REFERENCE, scan=0, **every, **heads)
    ids = jax.ShapeDtypeStruct((2, LENGTH), jnp.int32)
    batch = dict.fromkeys(("tokens", "segment_ids", "positions"), ids)
    if isinstance(made, EncoderDecoder):
        batch |= {f"encoder_{key}": jax.ShapeDtypeStruct((2, MEMORY), jnp.int32) for key in batch}

    def loss(params: Any, batch: Any) -> jax.Array:
        out = made.apply(params, batch, pattern=CAUSAL)
        flat = out.hidden.reshape(-1, out.hidden.shape[-1])
        total = made.vocabulary_loss(params, flat, batch["tokens"].reshape(-1), jnp.ones(2 * LENGTH)).total
        return total + (jnp.sum(made.classify_pairs(params, out.hidden)) if name == "pairs" else 0.0)

    params = jax.eval_shape(made.init, jax.random.key(0))
    program = jax.make_jaxpr(jax.grad(loss))(params, batch)
    work = flops.Work(LENGTH, CAUSAL, MEMORY if isinstance(made, EncoderDecoder) else 0, pairs=name == "pairs")
    assert operations(program.jaxpr) == pytest.approx(2 * flops.count(made, work).model_flops, rel=1e-12)


@pytest.mark.parametrize(("variant", "name"), [("llama", "causal"), ("bert", "masked")])
def test_the_training_step_computes_the_head_where_it_predicts(variant: str, name: str) -> None:
    changes = {f"model.{key}": value for key, value in VARIANTS[variant].items()} | {
        "objective.name": name,
        "model.num_heads": 4,
        "parallel.layers": "unroll",
    }
    of = small.settings(changes)
    model = build(of, REFERENCE)
    objective = objectives.build(of, small.VOCABULARY)
    state = jax.eval_shape(lambda: initial_state(of, model))
    batch = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, small.random_batch(of, 0)))
    program = jax.make_jaxpr(make_step(of, model, objective))(state, batch)
    length = of.data.sequence_length
    share = 8 / length if name == "masked" else 1.0  # the head is computed at max_targets(16) = 8 positions
    count = flops.count(model, flops.Work(length, objective.pattern))
    head = 6.0 * model.vocab_size * of.model.embed_dim * length
    assert operations(program.jaxpr) == of.train.batch_size * (count.model_flops - (1 - share) * head)


def test_required_flops_leave_out_what_is_hidden_and_what_is_not_predicted() -> None:
    model = small.model("llama")
    head, attention = 6.0 * VOCAB * 16 * LENGTH, 6.0 * 2 * 2 * LENGTH**2 * 16
    both = flops.count(model, flops.Work(LENGTH, Pattern(causal=False)))
    causal = flops.count(model, flops.Work(LENGTH, CAUSAL, targets=LENGTH / 4))
    assert both.required_flops == both.model_flops == causal.model_flops
    seen = np.tril(np.ones((LENGTH, LENGTH))).mean()
    np.testing.assert_allclose(both.model_flops - causal.required_flops, 0.75 * head + (1 - seen) * attention)
    assert causal.per(LENGTH).model_flops * LENGTH == causal.model_flops


@pytest.mark.parametrize("window", [None, 0, 1, 3, 40])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("documents", [(12,), (5, 4, 1), (1, 1)])
def test_visible_pairs_are_those_of_the_mask(window: int | None, causal: bool, documents: tuple[int, ...]) -> None:
    segments = jnp.asarray([np.repeat(np.arange(1, len(documents) + 1), documents)], jnp.int32)
    seen = Pattern(causal, window).visible(segments, segments)
    work = flops.Work(sum(documents), Pattern(causal), documents=documents)
    assert flops.visible_pairs(work, sum(documents), window) == int(jnp.sum(seen))


def test_visible_pairs_of_a_prefix_are_those_of_the_mask() -> None:
    pattern, ones = Pattern(causal=True, prefix=True), jnp.ones((1, 12), jnp.int32)
    seen = pattern.visible(ones, ones, 0, jnp.asarray([[1] * 6 + [0] * 6], jnp.int32))
    assert flops.visible_pairs(flops.Work(12, pattern, prefix=0.5), 12, None) == int(jnp.sum(seen))


def test_of_experts_those_that_a_token_is_sent_to_count() -> None:
    model = small.model("mixtral", num_experts=8, experts_per_token=2)
    count = flops.count(model, flops.Work(LENGTH, CAUSAL))
    expert = 2 * 3 * 16 * 24  # layers, projections, widths
    assert count.parameters - count.active_parameters == 6 * expert
    more = flops.count(small.model("mixtral", num_experts=8, experts_per_token=3), flops.Work(LENGTH, CAUSAL))
    assert more.model_flops - count.model_flops == 6.0 * expert * LENGTH


@pytest.mark.parametrize("variant", [*VARIANTS, *FAMILIES])
def test_non_embedding_parameters_leave_out_the_tables(variant: str) -> None:
    model = small.model(variant)
    count = flops.count(model, flops.Work(LENGTH, CAUSAL))
    tables = {"embedding/tokens", "embedding/positions", "embedding/types", "head/table"}
    sizes = {path: parameter.size for path, parameter in model.parameters().items()}
    assert count.parameters - count.non_embedding_parameters == sum(sizes.get(path, 0) for path in tables)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert count.parameters == sum(leaf.size for leaf in jax.tree.leaves(shapes))
