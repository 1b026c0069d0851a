"""One suite for every update rule: by hand, by torch, downhill, traced numbers, decay, groups, bfloat16 moments."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research import trees
from research.errors import UserError
from research.optim import Hyper, learning_rate, optimizer
from research.optim.matrices import matrix
from research.optim.muon import orthogonal
from research.settings.families import FAMILIES
from research.settings.optimizer import NAMES
from tests import small
from tests.optim import cases
from tests.optim.cases import CASES, DECAYED, PARAMETERS, arrays, by_hand, gradients, hyper, rule, updated
from tests.small import VARIANTS, assert_close, assert_one_sentence, assert_same_bits

every_case = pytest.mark.parametrize("case", CASES)
every_rule = pytest.mark.parametrize("case", NAMES)


@every_case
def test_updates_are_those_of_the_algorithm_for_each_layer_and_expert_alone(case: str) -> None:
    of = rule(case)
    numbers = hyper(of, learning_rate=0.03)
    assert_close(updated(of, numbers)[0], by_hand(of, numbers))


@every_case
def test_what_is_stored_is_moments_of_the_weights_own_shapes_and_counts(case: str) -> None:
    _, state = updated(rule(case), hyper(rule(case)))
    for path, leaf in trees.flatten(state).items():
        owner = next((of for of in PARAMETERS if path.endswith(f"/{of}")), None)
        assert leaf.shape == () if owner is None else leaf.ndim == len(PARAMETERS[owner].shape), path
        assert owner is None or leaf.dtype == np.float32, path


# --- downhill -----------------------------------------------------------------------------------------------------

# Rates with which each rule makes way in twenty to forty updates.
RATE = {"adamw": 0.05, "sgd": 0.05, "rmsprop": 0.05, "lion": 0.05, "adafactor": 0.05, "muon": 0.1, "schedule_free": 0.1}


@every_rule
def test_it_goes_down_a_quadratic(case: str) -> None:
    of, goal = rule(case), arrays(7)
    numbers = hyper(of, learning_rate=RATE[case], weight_decay=0.0, clip_norm=100.0)
    made = optimizer(of, numbers, PARAMETERS)

    def bowl(params: Any) -> jax.Array:
        pairs = zip(*map(jax.tree.leaves, (params, goal)), strict=True)
        return sum((jnp.mean(jnp.square(a - b)) for a, b in pairs), start=jnp.zeros(()))

    @small.jit
    def run(params: Any) -> Any:
        def one(carry: Any, _: None) -> Any:
            value, gradient = jax.value_and_grad(bowl)(carry[0])
            change, state = made.update(gradient, carry[1], carry[0])
            return (optax.apply_updates(carry[0], change), state), value

        return jax.lax.scan(one, (params, made.init(params)), None, length=80)[1]

    values = np.asarray(run(arrays(0)))
    assert values[-1] < 0.2 * values[0], values[::10]


@pytest.fixture(scope="module")
def language() -> tuple[Any, Any]:
    """A small model, and the loss of the same few random tokens with its gradient, compiled once for all rules."""
    assembly, _ = small.trainer({"train.batch_size": 8})
    batch = {name: jnp.asarray(array[0]) for name, array in small.random_batch(assembly.settings, 0).items()}
    model, pattern = assembly.model, assembly.objective.pattern

    def loss(params: Any) -> jax.Array:
        terms = assembly.objective.terms(model, params, model.apply(params, batch, pattern=pattern), batch)
        return terms["loss"].sum / terms["loss"].weight

    return assembly, small.jit(jax.value_and_grad(loss))


@every_rule
def test_a_small_model_learns(case: str, language: tuple[Any, Any]) -> None:
    assembly, gradient_of = language
    of = rule(case)
    numbers = hyper(of, learning_rate=0.3 if of.name == "sgd" else 0.2 * RATE[case])
    made = optimizer(of, numbers, assembly.model.parameters())
    update = small.jit(made.update)
    params = small.state(assembly).params
    state, values = made.init(params), []
    for _ in range(12):
        value, gradient = gradient_of(params)
        change, state = update(gradient, state, params)
        params = optax.apply_updates(params, change)
        values.append(float(value))
    assert values[-1] < values[0] - 0.5, values


# --- traced numbers -----------------------------------------------------------------------------------------------

OTHER = {
    "learning_rate": 0.07,
    "weight_decay": 0.01,
    "clip_norm": 0.1,
    "warmup_steps": 1,
    "beta1": 0.5,
    "beta2": 0.5,
    "epsilon": 0.1,
    "momentum": 0.3,
    "muon_scale": 0.5,
}
ALWAYS = {"learning_rate", "weight_decay", "clip_norm", "warmup_steps"}
READS = {
    "adamw": {"beta1", "beta2", "epsilon"},
    "sgd": {"momentum"},
    "rmsprop": {"beta2", "epsilon"},
    "lion": {"beta1", "beta2"},
    "adafactor": set[str](),
    "muon": {"beta1", "beta2", "epsilon", "momentum", "muon_scale"},
    "schedule_free": {"beta1", "beta2", "epsilon"},
}


@every_case
def test_the_numbers_that_a_rule_reads_change_it_and_compile_nothing_anew(case: str) -> None:
    unread = {"final_fraction", "ema_decay", "dropout", "num_steps", "decay_steps"}  # under a constant schedule
    assert set(Hyper._fields) == {*OTHER, *unread}
    of = rule(case)
    before, _ = updated(of, hyper(of, learning_rate=0.03))
    cases.TRACES.clear()
    read = ALWAYS | READS[of.name] | ({"momentum"} if of.momentum is not None else set())
    for name in Hyper._fields:
        after, _ = updated(of, hyper(of, **{"learning_rate": 0.03} | {name: OTHER.get(name, 1)}))
        changed = max(np.abs(a - b).max() for _, (a, b) in small.zip_leaves(after, before))
        assert (changed > 1e-4) == (name in read), (name, changed)
    assert cases.TRACES == []


# --- what is common to all ----------------------------------------------------------------------------------------


@every_rule
def test_norms_and_biases_alone_are_not_decayed(case: str) -> None:
    of, params = rule(case), arrays(0)
    made = optimizer(of, hyper(of, learning_rate=0.1, weight_decay=0.5), PARAMETERS)
    change, _ = small.jit(made.update)(jax.tree.map(jnp.zeros_like, params), made.init(params), params)
    weights = trees.flatten(params)
    for path, leaf in trees.flatten(change).items():
        assert_close(leaf, -0.1 / 3 * 0.5 * DECAYED[PARAMETERS[path].kind] * weights[path], 1e-6)


@every_rule
def test_a_norm_that_is_known_changes_nothing(case: str) -> None:
    of, params, given = rule(case), arrays(0), gradients(4)
    made = optimizer(of, hyper(of), PARAMETERS)
    norm = optax.tree.norm(given)
    assert norm > 1.5  # it is clipped
    state = made.init(params)
    found = made.update(given, state, params, gradient_norm=norm)
    assert_same_bits(jax.device_get(found), jax.device_get(made.update(given, state, params)))
    half = made.update(given, state, params, gradient_norm=2 * norm)
    scaled = made.update(jax.tree.map(lambda leaf: leaf / 2, given), state, params, gradient_norm=norm)
    assert_close(half, scaled, 1e-6)


@every_rule
def test_groups_have_rates_of_their_own_and_frozen_weights_do_not_move(case: str) -> None:
    groups = "norm/scale=0,attention/query=0,layers/attention=0.5,^head=2"
    of = rule(case, groups=groups)
    numbers = hyper(of, clip_norm=100.0, learning_rate=0.03)
    whole, _ = updated(rule(case), numbers, steps=1)
    found, state = updated(of, numbers, steps=1)
    start = trees.flatten(arrays(0))
    frozen = {"layers/norm/scale", "layers/attention/query"}
    factors = {"layers/attention/out": 0.5, "head/table": 2.0} | dict.fromkeys(frozen, 0.0)
    for path, leaf in trees.flatten(found).items():
        usual = trees.flatten(whole)[path] - start[path]
        assert_close(leaf - start[path], factors.get(path, 1.0) * usual, 1e-6)
    later, _ = updated(of, numbers)
    for path in frozen:
        assert_same_bits(trees.flatten(later)[path], np.asarray(start[path]))
        assert not any(kept.endswith(path) for kept in trees.flatten(state))


def test_frozen_gradients_have_no_part_in_the_norm() -> None:
    of, params = rule("adamw", groups="^layers=0"), arrays(0)
    made = optimizer(of, hyper(of, clip_norm=0.5), PARAMETERS)
    large = {"layers": jax.tree.map(lambda leaf: 100.0 * leaf, gradients(3)["layers"])}
    state = made.init(params)
    few = made.update(gradients(3), state, params)
    many = made.update(gradients(3) | large, state, params)
    assert_same_bits(jax.device_get(many), jax.device_get(few))


@pytest.mark.parametrize(
    ("groups", "mentioned"),
    [
        ("head=0.5,hed=0.1", "hed=0.1"),
        ("layers=0.5,layers/mlp=0.1", "layers/mlp=0.1"),
        ("attention=0.5,.=0,head=1", "head=1"),
        (".=0", "freezes every weight"),
    ],
)
def test_groups_that_do_not_fit_the_weights_are_one_sentence(groups: str, mentioned: str) -> None:
    of = rule("adamw", groups=groups)
    with pytest.raises(UserError) as caught:
        optimizer(of, hyper(of), PARAMETERS)
    assert_one_sentence(str(caught.value), "optimizer.groups", mentioned)


# --- moments in bfloat16 ------------------------------------------------------------------------------------------

FIRST_MOMENTS = [case for case in CASES if case not in {"rmsprop", "adafactor", "schedule_free"}]


@pytest.mark.parametrize("case", FIRST_MOMENTS)
def test_first_moments_may_be_bfloat16_and_second_moments_never_are(case: str) -> None:
    full, half = rule(case), rule(case, state_dtype="bfloat16")
    numbers = hyper(full, learning_rate=0.03)
    expected, kept = updated(full, numbers)
    found, halved = updated(half, numbers)
    rounded = {path for path, leaf in trees.flatten(halved).items() if leaf.dtype == jnp.bfloat16}
    floats = {path for path, leaf in trees.flatten(kept).items() if leaf.ndim}
    assert rounded == {path for path in floats if not {"nu", "rows", "columns", "full"} & set(path.split("/"))}
    assert rounded and all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(found))
    for path, leaf in trees.flatten(halved).items():
        exact = trees.flatten(kept)[path]
        assert np.abs(leaf.astype(np.float32) - exact).max() <= 0.01 * np.abs(exact).max(), path
    if full.name != "lion":  # a rounded momentum may turn a sign
        start, end = trees.flatten(arrays(0)), trees.flatten(expected)
        for path, leaf in trees.flatten(found).items():
            assert np.abs(leaf - end[path]).max() <= 0.02 * np.abs(end[path] - start[path]).max(), path


def test_weights_in_bfloat16_have_moments_in_float32() -> None:
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), arrays(0))
    given = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), gradients(0))
    for case in CASES:
        made = optimizer(rule(case), hyper(rule(case)), PARAMETERS)
        state = made.init(params)
        change, after = jax.eval_shape(made.update, given, state, params)
        assert {leaf.dtype for leaf in jax.tree.leaves(change)} == {jnp.dtype("bfloat16")}
        kinds = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == kinds
        assert not any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(state))


# --- matrices -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*VARIANTS, *FAMILIES])
def test_every_kernel_of_every_model_is_a_matrix_a_layer_and_expert(name: str) -> None:
    parameters = small.model(name).parameters()
    found = {path: matrix(parameter) for path, parameter in parameters.items()}
    assert {path for path, axes in found.items() if axes is not None} == {
        path for path, parameter in parameters.items() if parameter.kind in {"kernel", "embedding", "head"}
    }
    for path, axes in found.items():
        if axes is not None:
            parameter = parameters[path]
            assert (*axes.stack, *axes.inputs, *axes.outputs) == tuple(range(len(parameter.shape))), path
            of_stack = [parameter.dimensions[axis] for axis in axes.stack]
            assert of_stack == [name for name in parameter.dimensions if name in {"layers", "experts"}], path


def test_muon_keeps_one_momentum_of_kernels_and_two_moments_of_all_else() -> None:
    parameters = small.model("mixtral").parameters()
    of = rule("muon")
    state = jax.eval_shape(optimizer(of, hyper(of), parameters).init, small.weights(small.model("mixtral")))
    paths = trees.flatten(state)
    for path, parameter in parameters.items():
        kept = [name for name in paths if name.endswith(f"/{path}")]
        assert len(kept) == (1 if parameter.kind == "kernel" else 2), path


@pytest.mark.parametrize("shape", [(8, 8), (3, 16, 8), (2, 3, 8, 16)])
def test_newton_schulz_brings_singular_values_near_one_and_keeps_the_frame(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = np.asarray(small.jit(lambda x: orthogonal(x, 5))(1e-3 * x))
    assert_close(found, np.asarray(small.jit(lambda x: orthogonal(x, 5))(1e3 * x)), 1e-4)  # whatever its size
    values = np.linalg.svd(found, compute_uv=False)
    assert values.min() > 0.3 and values.max() < 1.3
    left, _, right = np.linalg.svd(x, full_matrices=False)
    core = np.swapaxes(left, -1, -2) @ found @ np.swapaxes(right, -1, -2)
    diagonal = np.eye(core.shape[-1], dtype=bool)
    assert np.abs(core[..., ~diagonal]).max() < 1e-3
    assert not np.asarray(orthogonal(jnp.zeros(shape), 5)).any()


def test_updates_of_muon_have_the_root_mean_square_of_its_scale() -> None:
    of = rule("muon")
    made = optimizer(of, hyper(of, learning_rate=1.0, weight_decay=0.0, warmup_steps=0), PARAMETERS)
    change, _ = small.jit(made.update)(gradients(0), made.init(arrays(0)), arrays(0))
    for path, leaf in trees.flatten(change).items():
        if PARAMETERS[path].kind == "kernel":
            assert 0.1 < float(jnp.sqrt(jnp.mean(jnp.square(leaf)))) < 0.25, path


def test_second_moments_of_adafactor_are_rows_and_columns() -> None:
    parameters = small.model("llama").parameters()
    of = rule("adafactor")
    state = jax.eval_shape(optimizer(of, hyper(of), parameters).init, small.weights(small.model("llama")))
    shapes = {path.split("/", 1)[1]: leaf.shape for path, leaf in trees.flatten(state).items() if leaf.ndim}
    assert shapes["rows/layers/attention/query"] == (2, 16, 1, 1)
    assert shapes["columns/layers/attention/query"] == (2, 1, 4, 4)
    assert shapes["rows/embedding/tokens"] == (160, 1) and shapes["columns/head/table"] == (1, 16)
    assert shapes["full/layers/mlp_norm/scale"] == (2, 16) and "full/layers/mlp/up" not in shapes
    kept = sum(int(np.prod(shape)) for shape in shapes.values())
    assert kept < 0.12 * sum(parameter.size for parameter in parameters.values())


# --- others' rules ------------------------------------------------------------------------------------------------


def test_adamw_is_the_chain_that_it_always_was_to_the_bit() -> None:
    of = rule("adamw", schedule="cosine")
    numbers, params = hyper(of, learning_rate=0.03), arrays(0)
    decayed = trees.unflatten({path: DECAYED[parameter.kind] for path, parameter in PARAMETERS.items()})

    def run(numbers: Hyper, params: Any, given: Any) -> tuple[Any, Any]:
        chain = optax.chain(
            optax.clip_by_global_norm(numbers.clip_norm),
            optax.scale_by_adam(b1=numbers.beta1, b2=numbers.beta2, eps=numbers.epsilon),
            optax.add_decayed_weights(numbers.weight_decay, mask=decayed),
            optax.scale_by_learning_rate(lambda count: learning_rate("cosine", numbers, count)),
        )
        with jax.numpy_dtype_promotion("standard"):
            return cases.scanned(chain, params, given)

    expected = jax.device_get(small.jit(run)(numbers, params, cases.stacked()))
    found = updated(of, numbers)
    assert_same_bits(found[0], expected[0])
    assert list(trees.flatten(found[1])) == list(trees.flatten(expected[1]))
    assert_same_bits(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]))


def torch_updates(make: Any, shapes: Mapping[str, tuple[int, ...]], values: list[dict[str, np.ndarray]]) -> Any:
    import torch

    weights = {name: torch.nn.Parameter(torch.from_numpy(values[0][name].copy())) for name in shapes}
    rule = make(list(weights.values()))
    for gradient in values[1:]:
        for name, weight in weights.items():
            weight.grad = torch.from_numpy(gradient[name].copy())
        rule.step()
    return {name: weight.detach().numpy() for name, weight in weights.items()}


@pytest.mark.parametrize("name", ["adamw", "sgd", "sgd, nesterov", "rmsprop", "rmsprop, momentum", "muon"])
def test_rules_are_those_of_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    of = rule(name)
    n = {field: float(value) for field, value in hyper(of, learning_rate=0.03)._asdict().items()}
    of_torch = torch.optim
    make = {
        "adamw": lambda p: of_torch.AdamW(p, 0.03, (n["beta1"], n["beta2"]), n["epsilon"], weight_decay=0.1),
        "sgd": lambda p: of_torch.SGD(p, 0.03, momentum=0.9),
        "sgd, nesterov": lambda p: of_torch.SGD(p, 0.03, momentum=0.8, nesterov=True),
        "rmsprop": lambda p: of_torch.RMSprop(p, 0.03, n["beta2"], n["epsilon"]),
        "rmsprop, momentum": lambda p: of_torch.RMSprop(p, 0.03, n["beta2"], n["epsilon"], momentum=0.7),
        "muon": lambda p: of_torch.Muon(p, 0.03, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    }[name]
    kernels = {path: made for path, made in PARAMETERS.items() if path.startswith("layers/attention")}
    flat = {
        path: dataclasses.replace(made, shape=made.shape[1:], dimensions=made.dimensions[1:])
        for path, made in kernels.items()
    }
    decay = 0.1 if name in {"adamw", "muon"} else 0.0
    numbers = hyper(of, learning_rate=0.03, weight_decay=decay, clip_norm=1e9, warmup_steps=0)
    made, params = optimizer(of, numbers, flat), arrays(0, parameters=flat)
    values = [trees.flatten(arrays(seed, parameters=flat)) for seed in range(4)]
    matrices = [
        {path: np.asarray(leaf).reshape(flat[path].fan_in, flat[path].fan_out) for path, leaf in each.items()}
        for each in values
    ]
    expected = torch_updates(make, {path: leaf.shape for path, leaf in matrices[0].items()}, matrices)
    state, update = made.init(params), small.jit(made.update)
    for gradient in values[1:]:
        change, state = update(trees.unflatten(gradient), state, params)
        params = optax.apply_updates(params, change)
    found = {path: np.asarray(leaf).reshape(matrices[0][path].shape) for path, leaf in trees.flatten(params).items()}
    assert_close(found, expected, 2e-3 if name == "muon" else 1e-5)  # torch's Newton-Schulz is in bfloat16


def test_lion_is_that_of_optax() -> None:
    of = rule("lion")
    theirs, params = optax.lion(0.03, b1=0.9, b2=0.95, weight_decay=0.0), arrays(0)
    state = theirs.init(params)
    for step in range(cases.STEPS):
        change, state = theirs.update(gradients(step), state, params)
        params = optax.apply_updates(params, change)
    numbers = hyper(of, learning_rate=0.03, weight_decay=0.0, clip_norm=1e9, warmup_steps=0)
    assert_close(updated(of, numbers)[0], jax.device_get(params), 1e-6)
