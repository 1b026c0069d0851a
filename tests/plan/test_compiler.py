"""The program that a compiler is given."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from research.plan import compiled, compiler
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


def test_what_the_compiling_process_imports_decides_what_is_compiled_anew() -> None:
    asked = "import json, sys, research.plan.compiler; print(json.dumps([n for n in sys.modules]))"
    out = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout
    imported = {name.split(".", 1)[1].replace(".", "/") for name in json.loads(out) if name.startswith("research.")}
    counted = {name.removesuffix(".py").removesuffix("/__init__") for name in compiled.sources()}
    assert imported <= counted and "plan/trace" in imported
    assert not {"plan/roofline", "plan/weights", "plan/page", "cli/plan"} & counted
