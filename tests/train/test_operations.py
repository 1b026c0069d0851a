"""Operations of a compiled program, by part of the model and kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from research.errors import UserError
from research.train import operations
from research.train.operations import COLLECTIVES, COPIES, KERNELS, OTHER, PRODUCTS, Instruction


def compiled(function, *arguments):
    return operations.instructions(jax.jit(function).lower(*arguments).compile().as_text())


def test_products_are_found_inside_fusions_and_loops_with_the_scope_they_came_from() -> None:
    def model(weights, x):
        with jax.named_scope("attention"):
            x = jnp.tanh(x @ weights)
        with jax.named_scope("mlp"):
            x = jax.lax.scan(lambda x, _: (jnp.sin(x @ weights), None), x, None, length=3)[0]
        return jnp.sum(x)

    program = compiled(jax.grad(model), jnp.ones((64, 64)), jnp.ones((64, 64)))
    products = [one for one in program.values() if one.kind == PRODUCTS]
    assert {(one.part, one.backward) for one in products} == {
        ("attention", False),
        ("attention", True),
        ("MLP", False),
        ("MLP", True),
    }
    assert any(one.opcode == "while" for one in program.values())


def test_a_transposition_is_a_copy_and_a_sum_is_not() -> None:
    program = compiled(lambda x: (x.swapaxes(0, 1).reshape(-1), jnp.sum(x)), jnp.ones((8, 16, 4)))
    kinds = {one.kind for one in program.values()}
    assert COPIES in kinds and OTHER in kinds and PRODUCTS not in kinds


def test_collectives_are_their_own_kind() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh, PartitionSpec("data")))
    program = compiled(lambda x: jnp.sum(x, axis=0), x)
    assert any(one.kind == COLLECTIVES and one.opcode.startswith("all-reduce") for one in program.values())


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ('%gemm = f32[8]{0} custom-call(%a, %b), custom_call_target="__cublas$gemm"', PRODUCTS),
        ('%splash = (f32[8,2]{1,0:T(8,128)}, f32[]) custom-call(%a), custom_call_target="tpu_custom_call"', KERNELS),
        ("%gather = f32[8]{0} all-gather-start(%a), dimensions={0}", COLLECTIVES),
        ("%product = bf16[8,2]{1,0:T(8,128)(2,1)} convolution(%a, %b), dim_labels=bf_io->bf", PRODUCTS),
    ],
)
def test_what_other_platforms_write(line: str, kind: str) -> None:
    text = f"HloModule jit_step\n\nENTRY %main (a: f32[8]) -> f32[8] {{\n  {line}\n}}\n"
    (one,) = operations.instructions(text).values()
    assert one.kind == kind


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("jit(step)/jvp(Block)/attention/bghqk,bkgd->bqghd/dot_general", "attention"),
        ("jit(step)/transpose(jvp(Block))/cross_attention/dot_general", "attention"),
        ("jit(step)/jvp(Block)/attention_norm/mul", "attention norm"),
        ("jit(step)/jvp(Block)/mlp/mlp._project/dot_general", "MLP"),
        ("jit(step)/jvp(Block)/experts/dot_general", "experts"),
        ("jit(step)/jvp(head)/while/body/dot_general", "head"),
        ("jit(step)/jvp()/while/body/closed_call/dot_general", operations.REST_OF_MODEL),
        ("jit(step)/optimizer/mul", "optimizer"),
        ("jit(step)/mul", operations.REST_OF_UPDATE),
        ("", operations.UNNAMED),
    ],
)
def test_the_part_is_read_from_modules_and_scopes(path: str, part: str) -> None:
    assert Instruction("fusion", path, OTHER).part == part


def test_times_are_added_by_operation_and_a_loop_is_not_counted_besides_its_body() -> None:
    program = {
        "while.1": Instruction("while", "", OTHER),
        "dot.1": Instruction("dot", "jit(step)/jvp(Block)/mlp/dot_general", PRODUCTS),
        "copy.1": Instruction("copy", "jit(step)/jvp(Block)/mlp/mul", COPIES),
    }
    rows = operations.table([("while.1", 9.0), ("dot.1", 1.0), ("copy.1", 0.5), ("dot.1", 2.0), ("odd", 4.0)], program)
    assert [(row.name, row.calls, row.seconds) for row in rows] == [
        ("odd", 1, 4.0),
        ("dot.1", 2, 3.0),
        ("copy.1", 1, 0.5),
    ]
    parts = operations.grouped(rows)
    assert list(parts) == [operations.UNNAMED, "MLP"]
    assert parts["MLP"][PRODUCTS] == 3.0 and parts["MLP"][COPIES] == 0.5


def test_a_real_trace_names_the_operations_of_the_program(tmp_path) -> None:
    update = jax.jit(lambda x: jnp.tanh(x @ x) @ x).lower(jnp.ones((128, 128))).compile()
    x = jnp.asarray(np.eye(128, dtype=np.float32))
    with jax.profiler.trace(tmp_path):
        for _ in range(3):
            update(x).block_until_ready()
    text = update.as_text()
    name = text.split(",")[0].split()[1]
    rows = operations.table(operations.events(operations.read_trace(tmp_path), name), operations.instructions(text))
    products = [row for row in rows if row.kind == PRODUCTS]
    assert sum(row.calls for row in products) == 3 * len(products) > 0
    assert all(row.seconds > 0.0 for row in rows)
    assert not list(operations.events(operations.read_trace(tmp_path), "jit_another"))


def test_a_directory_without_a_trace_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="no trace"):
        operations.read_trace(tmp_path)
