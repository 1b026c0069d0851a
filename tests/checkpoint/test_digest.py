import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from research.checkpoint.digest import digests


def digest(array) -> str:
    return digests({"x": jnp.asarray(array)})["x"][0]


DTYPES = [
    "float32",
    "bfloat16",
    "float16",
    "float8_e4m3fn",
    "int32",
    "uint32",
    "int8",
    "uint8",
    "int4",
    "bool",
    "complex64",
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_changed_element_changes_the_digest(dtype):
    array = np.zeros((3, 5), jnp.dtype(dtype))
    seen = {digest(array)}
    for index in np.ndindex(array.shape):
        changed = array.copy()
        changed[index] = np.ones((), array.dtype)
        seen.add(digest(changed))
    assert len(seen) == 1 + array.size


def test_every_single_bit_counts():
    array = np.array([1.5, -2.25, 0.0], np.float32)
    flipped = {digest((array.view(np.uint32) ^ (np.uint32(1) << np.uint32(bit))).view(np.float32)) for bit in range(32)}
    assert len(flipped | {digest(array)}) == 33


def test_zero_and_minus_zero_differ():
    assert digest(np.zeros(1, np.float32)) != digest(-np.zeros(1, np.float32))


def test_swapped_and_moved_elements_are_seen():
    array = np.random.default_rng(0).normal(size=(6, 7)).astype(np.float32)
    moved = [array[::-1], array[:, ::-1], np.roll(array, 1, 0), np.roll(array, 1, 1), array.ravel()[::-1].reshape(6, 7)]
    swapped = array.copy()
    swapped[0, 1], swapped[1, 0] = array[1, 0], array[0, 1]
    assert len({digest(x) for x in [array, swapped, *moved]}) == 7


@pytest.mark.parametrize("spec", [("a", None), (None, "a"), ("a", "b"), (("a", "b"), None), (None, None)])
def test_independent_of_mesh(spec):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    array = np.random.default_rng(1).normal(size=(16, 8)).astype(ml_dtypes.bfloat16)
    sharded = jax.device_put(array, jax.NamedSharding(mesh, jax.P(*spec)))
    assert digest(sharded) == digest(array)


def test_finite_is_told_of_each_leaf():
    leaves = {
        "a": jnp.array([1.0, jnp.inf]),
        "b": jnp.array([jnp.nan], jnp.bfloat16),
        "c": jnp.ones(2),
        "d": jnp.ones(2, jnp.int32),
    }
    assert {path: finite for path, (_, finite) in digests(leaves).items()} == {
        "a": False,
        "b": False,
        "c": True,
        "d": True,
    }
