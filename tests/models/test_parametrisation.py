"""What is tuned on a small model holds on a wider and a deeper one: initial values, learning rates, activations."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import config, trees
from research.doctor import coordinates
from research.doctor.reduction import changed
from research.errors import UserError
from research.interop import huggingface
from research.kernels import Pattern
from research.models import Model
from research.parameters import UNSCALED
from research.settings import ModelSettings, Settings
from research.settings.families import FAMILIES
from research.train.state import initial_state
from research.train.step import make_step
from tests import small
from tests.small import assert_close, assert_one_sentence

# Heads four times as wide, and the model: what was 16 is 64.
BASE: dict[str, Any] = {"parametrisation": "mup", "base_width": 16, "base_head_dim": 4}
WIDE: dict[str, Any] = {"embed_dim": 64, "mlp_dim": 96, "num_heads": 4}
# The norm before the head is the last block's, so that a tied head has no weight of its own to be scaled by.
BARE = {"transformer"}
NAMES = sorted(set(FAMILIES) - BARE)


def settings_of(name: str, **model: Any) -> Settings:
    """A recipe of a family, thin."""
    objective = "span_corruption" if name.startswith("t5") else "masked" if "bert" in name else "causal"
    loaded = config.to_settings(config.load_recipe(f"configs/{objective}.py:{name}-tiny"))
    thin = {"tokenizer.vocab_size": 320, "data.sequence_length": 32, "optimizer.learning_rate": 1e-2}
    shape = {"num_layers": 2, "embed_dim": 64, "num_heads": 4, "mlp_dim": 128, **model}
    return changed(loaded, thin | {f"model.{key}": value for key, value in shape.items()})


@pytest.mark.parametrize("name", NAMES)
def test_at_the_base_every_weight_is_that_of_the_standard_parametrisation(name: str) -> None:
    plain = small.model(name)
    of = plain.settings
    changes = BASE | {"base_head_dim": of.head_width}
    if name != "lstm" and of.norm_position != "post":
        changes |= {"depth_scaling": "linear", "base_depth": of.num_layers}
    assert small.model(name, **changes).parameters() == plain.parameters()
    assert all(parameter.scaling == UNSCALED for parameter in plain.parameters().values())


def program(changes: dict[str, Any]) -> str:
    """The text of an update with its initial state: what is computed, to the last operation."""
    assembly, _ = small.trainer(changes)
    batch = {name: jnp.asarray(array) for name, array in small.random_batch(assembly.settings, 0).items()}
    state = jax.eval_shape(lambda: initial_state(assembly.settings, assembly.model))
    step = make_step(assembly.settings, assembly.model, assembly.objective)
    born = jax.make_jaxpr(lambda: initial_state(assembly.settings, assembly.model))
    return f"{born()}{jax.make_jaxpr(step)(state, batch)}"


def test_at_the_base_the_update_is_the_standard_one() -> None:
    base = {"model.parametrisation": "mup", "model.base_width": 32, "model.depth_scaling": "sqrt"}
    plain, mup = program({}), program(base | {"model.base_depth": 2})
    other = program(base | {"model.base_depth": 1})
    # Addresses of functions are all that two traces of one program differ in.
    plain, mup, other = (stripped(text) for text in (plain, mup, other))
    assert mup == plain and other != plain


def stripped(text: str) -> str:
    return re.sub(r"0x[0-9a-f]+", "", text)


@pytest.mark.parametrize("name", NAMES)
def test_no_forward_pass_knows_of_it(name: str) -> None:
    plain, mup = (small.model(name, **WIDE, **changes) for changes in ({}, BASE))
    assert stripped(forward(plain)) == stripped(forward(mup))
    assert mup.parameters() != plain.parameters()


def forward(made: Model) -> str:
    batch = small.inputs(np.zeros((1, 6)))
    inputs = batch | {f"encoder_{key}": value for key, value in batch.items()}

    def logits(params: Any) -> Any:
        return made.unembed(params, made.apply(params, inputs, pattern=Pattern(causal=True)).hidden)

    return str(jax.make_jaxpr(logits)(jax.eval_shape(made.init, jax.random.key(0))))


def test_kernels_grow_as_table_3_says_and_tied_embeddings_as_table_8_says() -> None:
    def told(name: str, path: str, **changes: Any) -> tuple[float, float, float]:
        scaling = small.model(name, **{**WIDE, **BASE, **changes}).parameters()[path].scaling
        return scaling.fan_in, scaling.fan_out, scaling.multiplier

    assert told("llama", "embedding/tokens") == (1, 4, 1)
    assert told("llama", "layers/mlp/up") == told("llama", "layers/mlp/down") == (4, 4, 1)
    assert told("llama", "layers/attention/value") == told("llama", "layers/attention/out") == (4, 4, 1)
    assert told("llama", "head/table") == (4, 1, 1)
    assert told("llama", "final_norm/scale") == told("llama", "layers/mlp_norm/scale") == (1, 4, 1)
    assert told("mixtral", "layers/experts/router") == (4, 1, 1)
    assert told("mixtral", "layers/experts/down") == (4, 4, 1)
    # Logits of attention: 1/d in place of 1/sqrt(d), unless heads stay as wide as they were.
    assert told("llama", "layers/attention/query") == (4, 4, 1 / 2)
    assert told("qwen3", "layers/attention/query") == (4, 4, 1)
    assert told("qwen3", "layers/attention/query_norm") == (1, 4, 1 / 2)
    more = {"num_heads": 16, "num_kv_heads": 16}
    assert told("llama", "layers/attention/query", **more) == (4, 4, 1)
    # Tied heads: 1/width, of which a scaled embedding and a scaled head have the root already.
    assert told("gpt2", "final_norm/scale") == told("gpt2", "final_norm/bias") == (1, 4, 1 / 4)
    assert told("roberta", "head/norm/scale") == (1, 4, 1 / 4)
    assert told("t5", "final_norm/scale") == told("gemma", "final_norm/scale") == (1, 4, 1 / 2)
    assert told("t5", "encoder/final_norm/scale") == (1, 4, 1)
    assert told("gemma", "embedding/tokens") == (1, 4, 1 / 2)


@pytest.mark.parametrize("name", NAMES)
def test_initial_values_of_hidden_weights_keep_what_they_give_and_outputs_shrink(name: str) -> None:
    narrow, wide = (small.model(name, **changes).parameters() for changes in ({}, {**WIDE, **BASE}))
    for path, parameter in wide.items():
        if parameter.kind == "kernel" and not path.endswith("query"):
            given = [of.std * math.sqrt(of.fan_in) for of in (parameter, narrow[path])]
            shrinks = 1 / 2 if parameter.dimensions[-1] in {"router", "classes"} else 1.0
            assert given[0] == pytest.approx(shrinks * given[1]), path
        elif path == "head/table":
            assert parameter.std == pytest.approx(narrow[path].std / 4), path


def absorbed(made: Model, weights: Any) -> Any:
    """Weights of the form with multipliers in the forward pass, with these taken in."""

    def take_in(path: str, leaf: Any) -> Any:
        parameter = made.parameters()[path]
        factor = parameter.scaling.multiplier
        if parameter.kind == "norm" and made.settings.norm_centred:
            return factor * (1.0 + leaf) - 1.0
        return factor * leaf

    return trees.map_with_path(take_in, weights)


@pytest.mark.parametrize("name", ["gpt2", "gemma", "qwen3", "t5"])
def test_what_weights_take_in_is_what_would_multiply_in_the_forward_pass(name: str) -> None:
    made = small.model(name, **WIDE, **BASE)
    of = made.settings
    scale = of.attention_scale or 4**-0.5
    multiplied = dataclasses.replace(
        made,
        settings=dataclasses.replace(of, attention_scale=scale / 4, embedding_scale=False, head_scale=False),
    )
    weights = small.weights(made)
    tables = weights["embedding"]["tokens"]
    plain = {**weights, "embedding": {**weights["embedding"], "tokens": tables * (4.0 if of.embedding_scale else 1.0)}}
    found = logits(made, absorbed(made, weights))
    expected = logits(multiplied, plain)
    if of.tied_embeddings:
        # The output multiplier is a quarter; at width 16 a scaled head is one more, and a scaled embedding four times.
        expected = expected / 4 / (4.0 if of.head_scale else 1.0) / (4.0 if of.embedding_scale else 1.0)
    assert_close(found, expected, 1e-4)


def logits(made: Model, params: Any) -> Any:
    rows = small.inputs(np.random.default_rng(1).integers(5, small.VOCAB, (2, 6)))
    inputs = rows | {f"encoder_{key}": value for key, value in rows.items()}

    def run(params: Any) -> Any:
        return made.unembed(params, made.apply(params, inputs, pattern=Pattern(causal=True)).hidden)

    return np.asarray(small.jit(run)(params))


# --- activations ------------------------------------------------------------------------------------------------------


def slopes(name: str, parametrisation: str, rule: str = "adamw", **shape: Any) -> dict[str, float]:
    """Exponents of the width, from 64 to 512, by which activations change in a few updates; heads become wider."""
    base = {"base_width": 64, "base_head_dim": 16} if parametrisation == "mup" else {}
    of = changed(settings_of(name, parametrisation=parametrisation, **base, **shape), {"optimizer.name": rule})
    return coordinates.measure(of, (64, 512), 4, "head_dim").slopes()


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5"])
def test_activations_change_alike_at_every_width(name: str) -> None:
    assert coordinates.off(slopes(name, "mup", num_layers=1), 0.25) == {}


def test_under_the_standard_parametrisation_they_change_the_more_the_wider_the_model() -> None:
    found = slopes("gpt2", "standard", num_layers=1)
    assert found["stream 1"] > 0.5 and found["mlp 1"] > 0.25, found
    assert "stream 1" in coordinates.off(found, 0.25)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_activations_of_every_family_change_alike_at_every_width(name: str) -> None:
    assert coordinates.off(slopes(name, "mup"), 0.3) == {}


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["lion", "rmsprop", "adafactor", "muon"])
def test_other_rules_transfer_too(rule: str) -> None:
    assert coordinates.off(slopes("llama", "mup", rule), 0.3) == {}


@pytest.mark.slow
@pytest.mark.parametrize("scaling", ["sqrt", "linear"])
def test_with_scaled_branches_activations_change_alike_at_every_depth(scaling: str) -> None:
    def change(num_layers: int, **depth: Any) -> np.ndarray:
        of = settings_of("llama", num_layers=num_layers, **depth)
        found = coordinates.measure_one(of, 4)
        return found.changes[0, -1, [-2, -1]]  # the last of the residual stream, and the logits

    scaled = {"depth_scaling": scaling, "base_depth": 2}
    flat, steep = change(8, **scaled) / change(2, **scaled), change(8) / change(2)
    assert np.all(np.abs(np.log(flat) / math.log(4)) < 0.3), flat
    assert steep[0] > 2.0, steep


def test_a_sharded_update_is_the_single_one() -> None:
    changes = {f"model.{name}": value for name, value in (BASE | {"base_head_dim": 2}).items()}
    changes |= {"model.depth_scaling": "linear", "model.base_depth": 1, "parallel.preset": "fsdp_tp"}
    # Without an epsilon that is large beside rounding, AdamW makes a whole step of the sign of what is zero.
    single, sharded = (small.train(changes, devices=count, steps=2, epsilon=1e-2) for count in (1, 4))
    assert_close(sharded[0].params, single[0].params)
    assert_close([row["loss"] for row in sharded[1]], [row["loss"] for row in single[1]])


# --- the way out, and refusals ----------------------------------------------------------------------------------------


def test_an_exported_model_gives_the_same_logits(tmp_path: Path) -> None:
    from tests.interop.originals import hf, torch

    made = small.model("gpt2", **WIDE, **BASE, depth_scaling="linear", base_depth=1, max_positions=12)
    params = small.jit(made.init)(jax.random.key(0))
    huggingface.save(tmp_path / "out", huggingface.of_core(made, "causal"), params)
    theirs = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = np.random.default_rng(1).integers(5, small.VOCAB, (2, 6))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    assert_close(logits(made, params), expected, 1e-4)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"parametrisation": "mup"}, "base_width"),
        ({"parametrisation": "mup", "base_width": 64}, "base_head_dim"),
        ({"depth_scaling": "sqrt"}, "base_depth"),
        ({"depth_scaling": "sqrt", "base_depth": 2, "norm_position": "post"}, "norm_position"),
        ({"depth_scaling": "linear", "base_depth": 2, "architecture": "lstm"}, "lstm"),
        ({"parametrisation": "mup", "base_width": 128, "norm_position": "post"}, "tied_embeddings"),
    ],
)
def test_what_no_rule_covers_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as caught:
        ModelSettings(**changes).check()
    assert_one_sentence(str(caught.value), named)


def test_plain_gradient_steps_are_refused() -> None:
    changes = {"optimizer.name": "sgd", "model.parametrisation": "mup", "model.base_width": 32}
    with pytest.raises(UserError) as caught:
        small.settings(changes)
    assert_one_sentence(str(caught.value), "optimizer.name=sgd", "model.parametrisation")
