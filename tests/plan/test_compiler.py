"""The program that a compiler is given."""

import re
from typing import Any

import pytest

from research.plan import compiler
from tests import small


def operations(**changes: Any) -> int:
    """Of the whole update, as StableHLO; definitions of functions and their returns included."""
    keys = {name.replace("__", "."): value for name, value in changes.items()}
    assembly, _ = small.trainer({"parallel.preset": "fsdp", **keys}, devices=8)
    return len(re.findall(r"\b(?:stablehlo|func|sdy|chlo)\.\w+", compiler.lowered(assembly).as_text()))


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_a_program_grows_with_depth_only_where_layers_are_unrolled(remat: str) -> None:
    sizes = [operations(parallel__layers="scan", parallel__remat=remat, model__num_layers=n) for n in (2, 12, 48)]
    assert sizes[0] == sizes[1] == sizes[2] > 500
    unrolled = [operations(parallel__layers="unroll", parallel__remat=remat, model__num_layers=n) for n in (2, 4)]
    assert unrolled[1] > 1.3 * unrolled[0]
