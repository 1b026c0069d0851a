"""Plans: laws of the estimate, refusals, the search, the record and the page; a real child process that compiles."""

import dataclasses
import functools
import html.parser
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from research import config
from research.cli import main as command
from research.errors import UserError
from research.objectives import accounting
from research.parallel import chips
from research.plan import compiled, page, planning, refusal, roofline, search, topologies, verdict
from research.plan.planning import Plan
from tests import small

WIDE = {
    "model.embed_dim": 512,
    "model.num_layers": 4,
    "model.mlp_dim": 2048,
    "data.sequence_length": 256,
    "train.batch_size": 16,
    "model.compute_dtype": "bfloat16",
    "parallel.preset": "fsdp",
}


@functools.cache
def planned(topology: str = "v5e:2x2", slices: int = 1, **changes: Any) -> Plan:
    keys = WIDE | {name.replace("__", "."): value for name, value in changes.items()}
    return planning.plan(small.settings(keys), topologies.parse(topology, slices), compiles=False)


# --- topologies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "devices", "chip"),
    [("v5p:4x4x4", 64, "v5p"), ("v5e:16x16", 256, "v5e"), ("gpu:h100:8x4", 32, "h100"), ("h200:16", 16, "h200")],
)
def test_topologies_by_name(name: str, devices: int, chip: str) -> None:
    found = topologies.parse(name)
    assert (found.num_devices, found.chip.name) == (devices, chip)
    assert len({device.id for device in found.devices()}) == devices


@pytest.mark.parametrize("name", ["v9:2x2", "v5p", "v5p:4x4", "v5e:0x4", "v5e:axb", "gpu:h100", ""])
def test_unknown_topologies_are_refused(name: str) -> None:
    with pytest.raises(UserError) as caught:
        topologies.parse(name)
    small.assert_one_sentence(str(caught.value), "--topology")


def test_slices_belong_to_tpus() -> None:
    assert topologies.parse("v5e:2x2", 2).num_devices == 8
    for name, slices in (("gpu:h100:8x2", 2), ("v5e:2x2", 0)):
        with pytest.raises(UserError, match="--slices"):
            topologies.parse(name, slices)


def test_a_ring_carries_twice_what_a_line_does_and_a_network_least() -> None:
    def bandwidth(topology: str, slices: int = 1, axis: str = "fsdp", **changes: Any) -> tuple[str, float]:
        found = planned(topology, slices, train__batch_size=64, **changes)
        wire = topologies.wire(found.topology, found.assembly.mesh, (axis,))
        return wire.network, wire.bandwidth

    link = chips.CHIPS["v5e"].link_bandwidth
    assert bandwidth("v5e:4x4") == ("torus", 2 * link)  # two sides of four chips, neither of which wraps
    assert bandwidth("v5e:16x1") == ("torus", 2 * link)  # one ring
    assert bandwidth("v5e:4x1") == ("torus", link)
    assert bandwidth("v5p:4x4x4") == ("torus", 6 * chips.CHIPS["v5p"].link_bandwidth)
    slow = chips.CHIPS["v5e"].network_bandwidth
    assert bandwidth("v5e:2x2", 2, axis="replica", parallel__mesh__replica=2) == ("network", slow)
    assert bandwidth("gpu:h100:8x1") == ("node", chips.CHIPS["h100"].link_bandwidth)
    assert bandwidth("gpu:h100:8x2") == ("network", chips.CHIPS["h100"].network_bandwidth)


# --- the estimate -----------------------------------------------------------------------------------------------------


def test_flops_are_those_of_the_model() -> None:
    found = planned()
    account = accounting.account(found.settings)
    assert found.roofline.model_flops == pytest.approx(account.model_flops)
    # A kernel leaves out what the mask hides and computes scores again: on any number of devices the same.
    assert account.required_flops <= found.roofline.executed_flops <= 1.2 * account.model_flops
    assert planned("v5e:4x4").roofline.executed_flops == pytest.approx(found.roofline.executed_flops, rel=1e-6)


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "gpu:h100:4x1"])
def test_more_work_takes_longer_and_more_devices_less(topology: str) -> None:
    step = planned(topology).roofline.step_seconds
    assert planned(topology, model__num_layers=8).roofline.step_seconds > step
    assert planned(topology, train__batch_size=32).roofline.step_seconds > step
    assert (
        planned(topology, parallel__remat="full").roofline.compute_seconds > planned(topology).roofline.compute_seconds
    )
    larger = {"v5e:2x2": "v5e:4x4", "v5p:2x2x1": "v5p:2x2x2", "gpu:h100:4x1": "gpu:h100:8x1"}[topology]
    assert planned(larger).roofline.compute_seconds < planned(topology).roofline.compute_seconds
    assert 0 < planned(topology).roofline.utilisation <= 1


def test_a_faster_chip_is_faster_and_time_is_never_below_its_parts() -> None:
    slow, fast = planned("v5e:2x2").roofline, planned("v6e:2x2").roofline
    assert fast.step_seconds < slow.step_seconds
    for roof in (slow, fast):
        assert roof.step_seconds >= max(roof.compute_seconds, roof.memory_seconds, *roof.communication.values())


def test_rates_days_and_cost_agree() -> None:
    found = dataclasses.replace(planned(), price=3.0).record()["estimate"]
    assert found["tokens_per_step"] == 16 * 256
    assert found["tokens_per_second"] == pytest.approx(16 * 256 / found["step_seconds"])
    assert found["chip_hours"] == pytest.approx(4 * 20 * found["step_seconds"] / 3600)
    assert found["cost"] == pytest.approx(3 * found["chip_hours"])


@pytest.mark.parametrize("topology", ["v5e:2x2", "gpu:h100:4x1"])
def test_computing_again_and_offloading_are_never_free(topology: str) -> None:
    none = planned(topology).roofline
    for remat in ("full", "dots", "offload"):
        found = planned(topology, parallel__remat=remat).roofline
        assert found.step_seconds >= none.step_seconds and found.hbm_bytes >= none.hbm_bytes
        assert ("host" in found.communication) == (remat == "offload")


def test_windows_leave_out_what_they_hide_and_encoders_count() -> None:
    near = planned(model__attention_window=16, model__attention_period="l")
    assert near.roofline.executed_flops < planned().roofline.executed_flops
    both = planned(objective__name="span_corruption", model__architecture="encoder_decoder")
    encoder = both.assembly.objective.lengths(both.assembly.raw_length).encoder
    assert roofline.attention_flops(both.assembly) > 6 * 4 * 2 * 512 * encoder**2 * 16


def test_what_stores_weights_gathers_and_what_copies_them_adds_gradients() -> None:
    size = planned().assembly.count.parameters
    split = {(flow.kind, flow.axes): flow.bytes for flow in planned(parallel__preset="fsdp_sp").flows}
    assert split["reduce-scatter", ("fsdp", "sequence")] == pytest.approx(size * 4 * 3 / 4)
    assert not any(kind == "all-reduce" for kind, _ in split)
    experts = {"model__num_experts": 4, "parallel__mesh__expert": 2, "parallel__mesh__fsdp": 2}
    routed = planned(parallel__preset="fsdp", **experts)
    found = {(flow.kind, flow.axes): flow.bytes for flow in routed.flows}
    weights = routed.assembly.model.parameters().values()
    owned = sum(weight.size for weight in weights if "experts" in weight.dimensions)
    others = sum(weight.size for weight in weights) - owned
    assert found["reduce-scatter", ("fsdp",)] > 0 and ("all-to-all", ("expert",)) not in found
    assert found["all-reduce", ("expert",)] == pytest.approx(2 * 4 * others / 2 / 2)
    assert ("all-gather", ("fsdp",)) in found
    assert found["all-gather", ("fsdp",)] == pytest.approx(2 * 2 * (others + owned / 2) / 2)


def test_fsdp_gathers_twice_and_scatters_once_by_analysis() -> None:
    found = planned()
    size = found.assembly.count.parameters
    by_kind = {flow.kind: flow for flow in found.flows}
    assert by_kind["all-gather"].bytes == pytest.approx(2 * size * 2 * 3 / 4)
    assert by_kind["reduce-scatter"].bytes == pytest.approx(size * 4 * 3 / 4)


# --- what does not fit ------------------------------------------------------------------------------------------------

LARGE = {
    "model__embed_dim": 8192,
    "model__num_heads": 64,
    "model__mlp_dim": 28672,
    "model__num_layers": 24,
    "data__sequence_length": 2048,
    "tokenizer__vocab_size": 320,
}


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


def test_layouts_that_do_not_divide_are_refused() -> None:
    for changes in (
        {"train__batch_size": 6},
        {"parallel__mesh__fsdp": 3},
        {"model__embed_dim": 520, "model__num_heads": 1},
    ):
        with pytest.raises(UserError) as caught:
            planned("v5e:4x4", **changes)
        small.assert_one_sentence(str(caught.value))


@pytest.mark.parametrize("slices", [1, 2])
def test_an_axis_may_take_a_part_of_a_side_of_the_torus(slices: int) -> None:
    axes = {"parallel__mesh__tensor": 2, "parallel__mesh__replica": slices}
    found = planned("v5p:4x4x4", slices, parallel__preset="fsdp_tp", train__batch_size=256, **axes)
    mesh = found.assembly.mesh
    assert mesh.shape["tensor"] == 2 and mesh.shape["fsdp"] == 32 and mesh.size == 64 * slices
    chips = mesh.devices.reshape(-1, 2)
    near = [np.abs(np.subtract(a.coords, b.coords)).sum() for a, b in chips if a.slice_index == b.slice_index]
    assert len(near) == len(chips) and set(near) == {1}


@pytest.mark.parametrize(
    ("name", "mentioned"), [("gpu:h100:12", ["12 GPUs", "gpu:h100:4x3"]), ("gpu:v5e:2x2", ["gpu:v5e:2x2"])]
)
def test_what_is_no_topology_is_refused(name: str, mentioned: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        topologies.parse(name)
    small.assert_one_sentence(str(caught.value), *mentioned)


def test_compilers_that_are_not_here_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--no-compile"):
        compiled.check_compiler(topologies.parse("gpu:h100:8x1"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'isoflop\[tpu\]'"):
        compiled.check_compiler(topologies.parse("v5e:2x2"))


# --- the search -------------------------------------------------------------------------------------------------------


@functools.cache
def searched() -> search.Found:
    return search.search(
        planned("v5e:2x2", train__batch_size=256).settings, topologies.parse("v5e:2x2"), tell=lambda line: None
    )


def test_a_small_run_is_fastest_without_remat_and_in_one_batch() -> None:
    found = searched().ranked[0].plan
    best, tensor = found.settings, found.assembly.mesh.shape["tensor"]
    assert (best.parallel.remat, best.train.accumulation, tensor) == ("none", 1, 1)


def test_the_ranking_is_by_time_and_of_what_fits() -> None:
    found = searched()
    steps = [candidate.plan.roofline.step_seconds for candidate in found.ranked]
    assert steps == sorted(steps) and all(candidate.plan.fits for candidate in found.ranked)
    assert found.tried == found.indivisible + found.too_large + len(found.ranked)
    told = search.record(found)["ranked"][0]
    assert told["step_seconds"] == steps[0]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"parallel.mesh.data": 4, "parallel.mesh.fsdp": 1},
        {"parallel.preset": "fsdp_tp", "parallel.mesh.tensor": 4, "parallel.remat": "full"},
    ],
    ids=["nothing set", "data parallel", "tensor parallel"],
)
def test_a_described_layout_is_the_one_that_was_analysed(given: dict[str, Any]) -> None:
    settings = small.settings(WIDE | {"model.num_layers": 1, "train.batch_size": 4} | given)
    found = search.search(settings, topologies.parse("v5e:2x2"), tell=lambda line: None)
    shapes = set()
    for candidate in found.ranked[::3]:
        typed = config.default_config()
        for key in config.KEYS:
            config.override(typed, key, "none" if settings[key] is None else str(settings[key]))
        for word in search.describe(candidate.changes).split():
            name, _, value = word.removeprefix("--config.").partition("=")
            config.override(typed, name, value)
        assert config.to_settings(typed) == candidate.plan.settings
        shapes.add(tuple(candidate.plan.assembly.mesh.shape.values()))
    assert len(shapes) > 3
    assert all("mesh.replica" not in candidate.changes for candidate in found.ranked)


def test_a_run_that_must_be_cut_is_cut() -> None:
    settings = small.settings(
        WIDE
        | {name.replace("__", "."): value for name, value in LARGE.items()}
        | {"parallel.preset": "dp", "train.batch_size": 64}
    )
    found = search.search(settings, topologies.parse("v5p:4x4x4"), tell=lambda line: None)
    best = found.ranked[0].plan
    assert found.too_large and best.fits
    assert best.assembly.mesh.shape["fsdp"] * best.assembly.mesh.shape["tensor"] > 8


def test_a_search_that_nothing_divides_is_refused() -> None:
    settings = small.settings(WIDE | {"train.batch_size": 2, "model.embed_dim": 520, "model.num_heads": 1})
    with pytest.raises(UserError, match="no layout"):
        search.search(settings, topologies.parse("v5e:4x4"), tell=lambda line: None)


# --- the command ------------------------------------------------------------------------------------------------------

RECIPE = ["--config=configs/causal.py:tiny", "--config.model.num_layers=1", "--config.tokenizer.vocab_size=320"]
SHORT = [*RECIPE, "--config.model.embed_dim=32", "--config.data.sequence_length=32", "--config.parallel.preset=fsdp"]


class Page(html.parser.HTMLParser):
    """Counts elements, and notices what is left open."""

    VOID = ("meta", "br", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: dict[str, int] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_real_compiler_is_asked_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", *SHORT, "--topology=cpu:2", "--json", f"--output={tmp_path}/plan.html"]
    assert command.main(arguments) == 0
    first = capsys.readouterr()
    assert "compiling for cpu:2" in first.err
    record = json.loads(first.out.splitlines()[-1])
    given = sum(record["memory"]["arguments"].values())
    assert given == pytest.approx(record["memory"]["compiler"]["argument"], rel=0.03)
    assert record["flows_from"] == "compiler" and record["flows"][0]["axes"] == ["fsdp"]
    assert record["memory"]["compiler"]["temp"] > 0 and record["fits"] and record["unknown_loops"] == []

    assert command.main(arguments) == 0
    again = capsys.readouterr()
    assert "compiling" not in again.err
    assert json.loads(again.out.splitlines()[-1]) == record
    shown = Page((tmp_path / "plan.html").read_text(encoding="utf-8"))
    assert shown.open == [] and shown.seen["section"] == 5 and "script" not in shown.seen


def test_a_plan_of_gpus_is_analysis_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "plans" / "gpu.html"
    arguments = ["plan", *SHORT, "--topology=gpu:h100:8x1", "--price=2", "--search", "--json", f"--output={target}"]
    assert command.main(arguments) == 0
    out = capsys.readouterr()
    assert "analysis" in out.err
    record = json.loads(out.out.splitlines()[-1])
    assert not record["compiled"] and record["flows_from"] == "analysis" and record["estimate"]["cost"] > 0
    assert record["search"]["ranked"]
    shown = Page(target.read_text(encoding="utf-8"))
    assert shown.open == [] and shown.seen["section"] == 6


def test_a_run_that_does_not_fit_exits_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--config=configs/causal.py:70b", "--topology=v5e:4x4", "--no-compile", "--json"]
    assert command.main([*arguments, "--config.train.batch_size=16", "--config.parallel.preset=fsdp"]) == 1
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not record["fits"]
    small.assert_one_sentence(record["refusal"], "optimizer state")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--topology=v7:2x2"], "--topology"),
        (["--topology=v5e:2x2", "--no-compile", "--price=-1"], "--price"),
        (["--topology=v5e:2x2", "--no-compile", "--compiles=0"], "--compiles"),
        (["--topology=v5e:4x8", "--no-compile"], "train.batch_size"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["plan", *SHORT, *arguments]) == 2
    small.assert_one_sentence(capsys.readouterr().err.strip(), named)


def test_durations_read_well() -> None:
    assert [page.duration(seconds) for seconds in (0.0123, 3.44, 600.0, 2e4, 1e6)] == [
        "12.3 ms",
        "3.44 s",
        "10 min",
        "5.56 h",
        "11.6 days",
    ]
