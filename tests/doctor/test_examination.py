"""The laws hold on every recipe, family and type; what does not apply is said."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from research import config, doctor
from research.doctor import execution, findings, reduction, sharding, suite, targets, visibility
from research.doctor.findings import DOES_NOT_APPLY, FAILS, HOLDS
from research.errors import UserError
from research.settings import Settings
from research.settings.families import FAMILIES

RECIPES = (
    "causal",
    "masked",
    "prefix",
    "span_corruption",
    "fill_in_middle",
    "sentence_pairs",
    "seq2seq",
    "mixture",
)
THIN: dict[str, Any] = {
    "tokenizer.vocab_size": 320,
    "data.sequence_length": 32,
    "model.embed_dim": 32,
    "model.num_heads": 4,
    "model.num_layers": 1,
}
# What an objective, and not the way it is executed, decides.
ASKED = (visibility.FUTURE, visibility.TARGET, visibility.PACKING, targets.SPECIAL, targets.LOSS)


def recipe(name: str, changes: dict[str, Any] | None = None) -> Settings:
    """A recipe with a thin model, but its own choices."""
    loaded = config.load_recipe(f"configs/{name}.py:tiny")
    return reduction.changed(config.to_settings(loaded), THIN | (changes or {}))


def verdicts(report: doctor.Report) -> dict[str, set[str]]:
    """What was found of each law."""
    laws = {finding.law: set[str]() for finding in report.findings}
    for finding in report.findings:
        laws[finding.law].add(finding.verdict)
    return laws


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_asks_obeys_the_laws(name: str) -> None:
    report = doctor.examine(recipe(name), only=ASKED)
    assert report.holds, report.findings
    assert all(HOLDS in found for law, found in verdicts(report).items() if law != visibility.FUTURE)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_law_holds_on_every_recipe(name: str) -> None:
    loaded = config.load_recipe(f"configs/{name}.py:tiny")
    report = doctor.examine(config.to_settings(loaded))
    assert report.holds, report.findings
    assert not any(key.startswith(("model.", "data.", "tokenizer.")) for key in report.reduced)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_law_holds_on_every_family(family: str) -> None:
    reads = FAMILIES[family].get("architecture") == "encoder_decoder"
    loaded = config.load_recipe(f"configs/{'span_corruption' if reads else 'causal'}.py:{family}-tiny")
    period = len(FAMILIES[family].get("attention_period", "g"))
    changes = THIN | {"model.num_layers": max(2, period)}
    if "attention_period" in FAMILIES[family]:
        changes["model.attention_window"] = 5
    report = doctor.examine(reduction.changed(config.to_settings(loaded), changes))
    assert report.holds, report.findings


def test_bfloat16_has_tolerances_of_its_own() -> None:
    changes = {"model.compute_dtype": "bfloat16"}
    report = doctor.examine(recipe("causal", changes), only=[visibility.BACKENDS, visibility.FUTURE])
    assert report.holds, report.findings
    assert {f.tolerance for f in report.findings} == {findings.SAME["bfloat16"], findings.HIDDEN}


def test_experts_obey_the_laws_unless_they_drop_tokens() -> None:
    experts = {"model.num_experts": 4, "model.experts_per_token": 2, "model.compute_dtype": "bfloat16"}
    laws = [visibility.FUTURE, visibility.CACHE]
    report = doctor.examine(recipe("causal", experts), only=laws)
    assert verdicts(report) == {law: {HOLDS} for law in laws}
    # A rounding would send tokens elsewhere.
    assert report.subject["compute_dtype"] == "float32"
    assert report.reduced["model.compute_dtype"] == ("bfloat16", "float32")
    report = doctor.examine(recipe("causal", experts | {"model.expert_capacity": 1.0}), only=laws)
    assert verdicts(report) == {law: {DOES_NOT_APPLY} for law in laws}
    assert all("expert_capacity" in finding.quantity for finding in report.findings)


def test_baselines_say_what_does_not_apply() -> None:
    lstm = {"model.architecture": "lstm"}
    laws = [visibility.BACKENDS, visibility.PACKING, execution.SCAN, execution.REMAT]
    found = verdicts(doctor.examine(recipe("causal", lstm), only=laws))
    assert found == {law: {DOES_NOT_APPLY} for law in laws} | {visibility.PACKING: {HOLDS}}


def test_a_layout_that_does_not_divide_does_not_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    made = sharding.layouts(recipe("causal"))
    assert set(made) == {"dp", "fsdp", "tp", "fsdp_tp", "fsdp_tp_sp"}
    monkeypatch.setattr(sharding, "layouts", lambda settings: {"tp": made["tp"]})
    (found,) = doctor.examine(recipe("causal", {"model.num_heads": 4}), only=[sharding.SHARDED]).findings
    assert found.verdict == DOES_NOT_APPLY  # 4 heads over 8 devices
    assert "num_heads=4" in found.quantity


def test_experts_and_configured_meshes_are_layouts_too() -> None:
    changes = {"model.num_experts": 4, "parallel.mesh.sequence": 2, "parallel.preset": "fsdp"}
    made = sharding.layouts(recipe("causal", changes))
    assert made["dp, expert=2"]["parallel.mesh.expert"] == 2
    assert made["configured"]["parallel.mesh.sequence"] == 2
    assert made["configured"]["parallel.preset"] == "fsdp"


@pytest.mark.parametrize(("mesh", "count"), [({}, 4), ({"tensor": 2}, 4), ({"data": 7}, 7), ({"fsdp": 64}, 4)])
def test_as_many_devices_are_made_up_as_the_mesh_needs(mesh: dict[str, int], count: int) -> None:
    settings = recipe("causal", {f"parallel.mesh.{axis}": size for axis, size in mesh.items()})
    assert sharding.made_up_devices(settings) == count
    assert suite.examined(settings, jax.devices()[:1]).train.batch_size % count == 0


def test_a_mesh_that_is_not_one_of_the_devices_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match=r"parallel\.mesh\.data=7"):
        doctor.examine(recipe("causal", {"parallel.mesh.data": 7}), only=[visibility.FUTURE])


@pytest.mark.slow
def test_one_device_makes_up_others_in_a_process_of_its_own() -> None:
    elsewhere = sharding.Elsewhere(suite.examined(recipe("causal"), jax.devices()[:1]))
    try:
        found = list(elsewhere.findings())
    finally:
        elsewhere.stop()
    assert {finding.verdict for finding in found} == {HOLDS}
    assert len(found) == 4


def test_a_process_that_fails_is_not_taken_for_one_that_found_nothing() -> None:
    elsewhere = sharding.Elsewhere(recipe("causal", {"tokenizer.path": "/nowhere/tokenizer.json"}))
    try:
        with pytest.raises(RuntimeError, match="tokenizer"):
            list(elsewhere.findings())
    finally:
        elsewhere.stop()


# --- made smaller -----------------------------------------------------------------------------------------------------

LAPTOP = reduction.Budget(4e9, reduction.CPU_FLOPS)


def sized(size: str, name: str = "causal") -> Settings:
    """A recipe at a size, with the few rows of an examination."""
    loaded = config.load_recipe(f"configs/{name}.py:{size}")
    return reduction.prepared(config.to_settings(loaded), 1)


@pytest.mark.parametrize("size", ["tiny", "bert-tiny", "mixtral-tiny", "modernbert-tiny"])
def test_what_fits_stays_as_it_is(size: str) -> None:
    settings = sized(size)
    assert reduction.reduced(settings, LAPTOP) == settings


@pytest.mark.parametrize("size", ["125m", "7b", "70b", "gemma2-9b", "mixtral-8x7b", "modernbert-large", "t5-large"])
def test_what_does_not_fit_keeps_its_choices(size: str) -> None:
    kind = "span_corruption" if size.startswith("t5") else "causal"
    settings = sized(size, kind)
    small_one = reduction.reduced(settings, LAPTOP)
    estimate = reduction.cost(small_one)
    assert estimate.memory <= LAPTOP.memory
    assert estimate.work <= LAPTOP.work
    was, now = settings.model, small_one.model
    period = len(was.attention_period)
    assert now.num_layers == min(was.num_layers, 2 * period + was.num_layers % period)
    assert now.num_heads * was.kv_heads == now.kv_heads * was.num_heads
    shapes = {"num_layers", "num_encoder_layers", "embed_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"}
    shapes |= {"vocab_size", "attention_window"}
    for field in dataclasses.fields(was):
        if field.name not in shapes:
            assert getattr(now, field.name) == getattr(was, field.name), field.name
    if now.attention_window is not None:
        assert now.attention_window < small_one.data.sequence_length


def test_heads_stay_divisible() -> None:
    assert reduction.reduced(sized("7b"), LAPTOP, shards=8).model.kv_heads % 8 == 0


# --- the report -------------------------------------------------------------------------------------------------------


def test_what_is_not_a_number_fails() -> None:
    assert findings.measured("law", "", "", float("nan"), 1.0).verdict == FAILS
    assert findings.largest([np.array([0.0, float("nan")])]) == float("inf")
