"""What does not fit, what does not divide, and what has no compiler: one sentence each, and what would fit."""

import pytest

from research.errors import UserError
from research.plan import compiled, refusal, search, topologies, verdict
from tests import small
from tests.plan.cases import LARGE, planned


def test_what_does_not_fit_names_the_largest_and_the_nearest_that_fits() -> None:
    found = planned("v5p:4x4x4", train__batch_size=256, **LARGE)
    assert not found.fits
    instead = search.nearest(found, compiles=False)
    assert instead is not None and instead.plan.fits
    assert len(instead.changes) == 1
    told = verdict.sentence(found, instead)
    small.assert_one_sentence(told, found.largest[0][0], search.describe(instead.changes))


def test_copies_of_the_weights_are_split_where_that_makes_it_fit() -> None:
    found = planned("v5p:4x4x4", train__batch_size=64, parallel__mesh__data=64, parallel__mesh__fsdp=1, **LARGE)
    assert not found.fits
    instead = search.nearest(found, compiles=False)
    assert instead is not None and instead.plan.fits
    assert instead.changes["parallel.mesh.fsdp"] == 64 and instead.plan.assembly.mesh.shape["fsdp"] == 64


def test_what_cannot_fit_says_so() -> None:
    found = planned("v5e:2x2", train__batch_size=4, **LARGE)
    assert search.nearest(found, compiles=False) is None
    assert "more devices" in verdict.sentence(found, None)


def test_layouts_that_do_not_divide_are_refused() -> None:
    for changes in (
        {"train__batch_size": 6},
        {"parallel__mesh__fsdp": 3},
        {"model__embed_dim": 520, "model__num_heads": 1},
    ):
        with pytest.raises(UserError) as caught:
            planned("v5e:4x4", **changes)
        small.assert_one_sentence(str(caught.value))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (81.71G) "
            "exceeds available HBM (15.75G).",
            (round(81.71 * 2**30), round(15.75 * 2**30), True, 0),
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 129.6G "
            "of 95.74G hbm. Exceeded hbm capacity by 33.86G.\n\nLargest program allocations in hbm:\n\n"
            "  1. Size: 64.00G\n"
            '     Operator: op_name="jit(step)/while/body/Block/attention/dot_general"\n'
            "     Shape: bf16[32,4,32,4096,4096]{4,3,2,1,0}\n     Unpadded size: 64.00G\n\n  2. Size: 1.00M\n"
            "     Shape: f32[512,512]{1,0}\n     XLA label: fusion.7\n",
            (round(129.6 * 2**30), round(95.74 * 2**30), False, 2),
        ),
    ],
)
def test_a_compilers_refusal_is_read(message: str, expected: tuple[int, int, bool, int]) -> None:
    found = refusal.read(message)
    assert abs(found.needed - expected[0]) <= 1 and abs(found.available - expected[1]) <= 1
    assert (found.temporaries, len(found.largest)) == expected[2:]
    if found.largest:
        assert found.largest[0].bytes == 64 * 2**30 and "attention" in found.largest[0].source


def test_compilers_that_are_not_here_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--no-compile"):
        compiled.check_compiler(topologies.parse("gpu:h100:8x1"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'isoflop\[tpu\]'"):
        compiled.check_compiler(topologies.parse("v5e:2x2"))
