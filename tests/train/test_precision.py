"""bfloat16 computes the products; weights, moments and everything that sums many values stay float32."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from research import objectives
from research.kernels.choice import CPU, REFERENCE
from research.models import build
from research.settings.families import FAMILIES
from research.train.state import initial_state
from research.train.step import make_step
from tests import small
from tests.small import VARIANTS

BFLOAT16 = {"model.compute_dtype": "bfloat16", "parallel.layers": "unroll"}
# Besides reductions, what loses most from eight bits of mantissa.
DELICATE = {"exp", "exp2", "log", "log1p", "rsqrt", "sqrt", "erf", "logsumexp", "cumsum", "cumlogsumexp"}


def equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def dtypes(variables: Any) -> list[Any]:
    return [getattr(variable.aval, "dtype", None) for variable in variables]


@pytest.mark.parametrize("kernels", [CPU, REFERENCE], ids=["cpu", "reference"])
@pytest.mark.parametrize("variant", ["llama", "gpt", "bert", "qwen2", "modernbert", "mixtral"])
def test_every_sum_of_many_values_is_float32(variant: str, kernels: Any) -> None:
    own = VARIANTS[variant] if variant in VARIANTS else FAMILIES[variant]
    of = small.settings({f"model.{name}": value for name, value in own.items()} | BFLOAT16 | {"train.accumulation": 2})
    model = build(of, kernels)
    state = jax.eval_shape(lambda: initial_state(of, model))
    batch = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, small.random_batch(of, 0)))
    step = make_step(of, model, objectives.build(of, small.VOCABULARY))
    program = jax.make_jaxpr(step)(state, batch).jaxpr
    coarse = 0
    for equation in equations(program):
        name, inputs = equation.primitive.name, dtypes(equation.invars)
        if name == "reduce_sum" and jnp.bfloat16 in inputs:
            before, after = equation.invars[0].aval.size, equation.outvars[0].aval.size
            assert before == after, f"{before} values are summed to {after} in bfloat16"
        if name in DELICATE and not ("exact" in of.model.activation and name == "exp"):  # of the error function
            assert jnp.bfloat16 not in inputs, name
        coarse += name == "dot_general" and inputs == [jnp.bfloat16, jnp.bfloat16]
    # Four projections, two or three of the MLP, and attention's two, forward and backward.
    assert coarse >= of.model.num_layers * 6 * 3
    after, metrics = jax.eval_shape(step, state, batch)
    floats = [leaf for leaf in jax.tree.leaves((after, metrics)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype(jnp.float32)}


def test_a_bias_is_summed_over_more_tokens_than_bfloat16_can_count() -> None:
    from research.models import layers

    x, bias = jnp.zeros((64, 64, 3), jnp.bfloat16), jnp.zeros(3, jnp.bfloat16)
    found = jax.grad(lambda bias: jnp.sum(layers.biased(x, bias).astype(jnp.float32)))(bias)
    np.testing.assert_array_equal(np.asarray(found, np.float32), 4096.0)
    assert layers.biased(x, bias).dtype == jnp.bfloat16


@pytest.mark.parametrize("variant", ["llama", "gpt"])
def test_a_model_learns_alike_in_bfloat16(variant: str) -> None:
    own = {f"model.{name}": value for name, value in VARIANTS[variant].items()}
    batches = {"batches": lambda of, step: small.random_batch(of, step % 2)}
    losses = {
        dtype: [float(row["loss"]) for row in small.train(own | {"model.compute_dtype": dtype}, steps=12, **batches)[1]]
        for dtype in ("float32", "bfloat16")
    }
    assert losses["bfloat16"] != losses["float32"]
    assert losses["float32"][-1] < losses["float32"][0] - 0.3
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.01)
