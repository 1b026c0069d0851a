import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from research.scaling import report_cells as cells_of
from research.scaling import report_charts as charts
from research.scaling.report import write_report
from research.train import page as pages
from tests.pages import EVIL, Page
from tests.scaling import synthetic

DATA = '{"cells"'


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, list[dict[str, Any]]]:
    sweep, rows, *rest = synthetic.ladder()
    return Page(write_report(tmp_path_factory.mktemp("ladder"), sweep, rows, *rest)), rows


def bare(count: int = 1, **fields: Any) -> list[dict[str, Any]]:
    """Rows of cells that have not begun."""
    return [
        {"id": f"cell{n}", "name": f"cell {n}", "point": {"seed": n}, "state": "pending", **fields}
        for n in range(count)
    ]


def done(cell: str, objective: str, value: float, **fields: Any) -> dict[str, Any]:
    made = synthetic.row(cell, f"{objective} {cell}", {"objective.name": objective}, 1e6, 1e7, value)
    if objective == "masked":
        made |= {"bits_per_byte": None, "heldout_accuracy": 0.3, "baseline_accuracy": 0.05}
    return made | {"objective": objective} | fields


def shown(tmp_path: Path, rows: list[dict[str, Any]], **answers: Any) -> Page:
    return Page(write_report(tmp_path, {"question": "Which?"}, rows, {}, answers))


def table_rows(page: Page) -> list[str]:
    """Cells of the table in its order."""
    return [str(found["data-cell"]) for tag, found in page.elements if tag == "tr" and "data-cell" in found]


# --- what the page says -----------------------------------------------------------------------------------------------


def test_every_cell_stands_there_once_with_its_numbers(ladder: tuple[Page, list[dict[str, Any]]]) -> None:
    page, rows = ladder
    assert table_rows(page) == [row["id"] for row in rows]
    drawn = {cell["id"]: cell for cell in page.data(DATA)["cells"]}
    for row in rows:
        assert drawn[row["id"]]["y"] == row["bits_per_byte"]
        assert drawn[row["id"]]["flops"] == row["model_flops"]
        assert f"{row['bits_per_byte']:.4f}" in page.text
        assert page.count("a", href=f"cells/{row['id']}/report.html") == 1
    assert f"{len(rows)} of {len(rows)} cells done" in page.text
    assert f"{sum(row['core_hours'] for row in rows):.3g}" in page.text
    assert page.size < 7_000_000


def test_the_answer_comes_first_with_its_uncertainty_and_yardstick(ladder: tuple[Page, list[dict[str, Any]]]) -> None:
    page, _ = ladder
    order = (
        "How large should a model be",
        "0.46 to 0.51",
        "Yardstick: bits per byte, less is better",
        "Lowest bits per byte",
    )
    assert sorted(order, key=page.text.index) == list(order)


def test_estimates_refusals_predictions_and_verdicts_are_told(ladder: tuple[Page, list[dict[str, Any]]]) -> None:
    page, _ = ladder
    assert "0.3600 (0.3384 to 0.3816)" in page.text
    assert "N counts all parameters" in page.text
    assert "Not fitted: the runs have a floor that this form lacks" in page.text
    assert "1 of 2 measured inside the interval" in page.text
    assert "+0.0500outside" in page.text
    assert "−0.0120 (−0.0180 to −0.0060)" in page.text
    assert "inconclusive 9 more seeds would settle it" in page.text


def test_it_is_said_when_a_prediction_was_made_before_its_run(tmp_path: Path) -> None:
    sweep, rows, curves, answers, settings = synthetic.ladder(1)
    said = [{name: one[name] for name in ("cell", "low", "high")} for one in answers["predictions"]]
    answers["foretold"] = {"made": "2026-01-01T12:00:00Z", "predictions": said}
    text = Page(write_report(tmp_path, sweep, rows, curves, answers, settings)).text
    assert "stood in prediction.json on 2026-01-01T12:00:00Z, before these cells began" in text
    said[0]["low"] = 0.0
    text = Page(write_report(tmp_path, sweep, rows, curves, answers, settings)).text
    assert "prediction.json held other intervals: 1 of 2 inside them" in text
    said[1]["high"] = 9.9
    page = Page(write_report(tmp_path, sweep, rows, curves, answers | {"answer": ""}, settings))
    assert "prediction.json held other intervals: 2 of 2 inside them" in page.text
    assert "1 of 2 measured inside the interval" in page.text
    assert "2 of 2 held-out cells were measured inside the interval predicted for them" in page.text


def test_predictions_say_which_law_made_them_and_how_the_others_fared(tmp_path: Path) -> None:
    sweep, rows, curves, answers, settings = synthetic.ladder(1)
    hit, miss = answers["predictions"]
    first, second = (fit for fit in answers["fits"] if "refused" not in fit)
    answers["predictions"] = [one | {"by": first["name"]} for one in (hit, miss)]
    first["predictions"] = [one | {"inside": True} for one in (hit, miss)]
    second["predictions"] = [one | {"inside": one is hit} for one in (hit, miss)]
    text = Page(write_report(tmp_path, sweep, rows, curves, answers, settings)).text
    assert "scatter least about" in text and "inside would have been 1 of 2 by" in text


def test_every_chart_has_words_for_who_does_not_see_it(ladder: tuple[Page, list[dict[str, Any]]]) -> None:
    page, _ = ladder
    drawn = page.data(DATA)["charts"]
    what = [chart["what"] for chart in drawn]
    assert what == ["isoflop", "surface", "frontier", "frontier", "frontier", "heldout", "train"]
    labels = [found["aria-label"] for tag, found in page.elements if tag == "div" and found.get("role") == "img"]
    assert labels == [chart["words"] for chart in drawn]
    assert "at 3.00e13 FLOPs least at" in labels[0]
    assert page.count("div", role="img") == len(drawn)


def test_the_surface_is_the_law(ladder: tuple[Page, list[dict[str, Any]]]) -> None:
    surface = next(chart for chart in ladder[0].data(DATA)["charts"] if chart["what"] == "surface")["surface"]
    for row in (0, 20, 40):
        for column in (0, 20, 40):
            expected = synthetic.loss(surface["x"][column], surface["y"][row])
            assert surface["z"][row][column] == pytest.approx(expected, rel=1e-4)


def test_settings_are_what_all_share_and_what_differs(ladder: tuple[Page, list[dict[str, Any]]]) -> None:
    page, rows = ladder
    data = page.data(DATA)
    assert data["settings"][rows[0]["id"]] == rows[0]["point"]
    assert "3 settings that are the same in all cells" in page.text
    assert data["meanings"]["seed"]


def test_one_page_says_where_everything_came_from(ladder: tuple[Page, list[dict[str, Any]]]) -> None:
    page, _ = ladder
    for part in ("configs/causal.py:tiny", "ab12cd34", "c0ffee", "f7f8dfa789906501", "jax 0.10.2", "0, 1"):
        assert part in page.text
    assert "not the same in all cells" not in page.text


def test_what_is_not_the_same_in_all_cells_is_said(tmp_path: Path) -> None:
    rows = [done("a", "causal", 1.7), done("b", "causal", 1.8, commit="other", data_hash="another")]
    assert shown(tmp_path, rows).text.count("not the same in all cells") == 2


# --- yardsticks -------------------------------------------------------------------------------------------------------


def test_masked_and_causal_are_never_ranked_against_each_other(tmp_path: Path) -> None:
    rows = [done("a", "causal", 1.7), done("b", "causal", 1.8), done("c", "masked", 1.0), done("d", "masked", 1.1)]
    rows[0]["baseline_bits_per_byte"] = 2.0
    page = shown(tmp_path, rows)
    assert "ranked within a yardstick and never across" in page.text
    assert "bits per byte (2 cells); held-out loss of masked (2 cells)" in page.text
    assert "causal a has the lowest bits per byte" in page.text
    assert "masked c has the lowest held-out loss of masked" in page.text
    assert "+25.0% hits" in page.text and "−0.300 bits" in page.text  # from each one's own baseline
    kinds = {cell["kind"] for cell in page.data(DATA)["cells"]}
    assert kinds == {"bits_per_byte", "loss of masked"}


def test_a_loss_is_its_objectives_own_even_where_the_sweep_asks_for_it() -> None:
    cells = cells_of.read_cells({"yardstick": "heldout_loss"}, [done("a", "causal", 1.7), done("c", "prefix", 1.8)])
    assert [kind.key for kind in cells_of.kinds(cells)] == ["loss of causal", "loss of prefix"]


def test_a_cell_without_the_yardstick_is_not_another_kind() -> None:
    cells = cells_of.read_cells({}, [done("a", "causal", 1.7), done("b", "causal", 1.8, bits_per_byte=None)])
    assert [cell.kind.key for cell in cells] == ["bits_per_byte"] * 2
    assert [cell.measure for cell in cells] == [1.7, None]


def test_a_shared_probe_ranks_all(tmp_path: Path) -> None:
    rows = [done("a", "causal", 1.7, probe_accuracy=0.6), done("c", "masked", 1.0, probe_accuracy=0.7)]
    cells = cells_of.read_cells({"yardstick": "probe_accuracy"}, rows)
    (kind,) = cells_of.kinds(cells)
    assert kind.higher and [cell.id for cell in cells_of.ranked(cells, kind)] == ["c", "a"]


def compared() -> dict[str, Any]:
    """As `isoflop compare DIR --json` gives it, of the cells a and c."""

    def around(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.02, "high": value + 0.02}

    row = {"features": "last", "untrained": around(0.2), "over_untrained": around(0.2), "over_bag_of_tokens": around(0)}
    ranked = [
        {**row, "run": "c", "objective": "masked", "accuracy": around(0.45), "from_best": None},
        {**row, "run": "a", "objective": "causal", "accuracy": around(0.4), "from_best": around(-0.01)},
    ]
    shares = {"bag_of_tokens": around(0.3), "most_frequent": around(0.1)}
    probes = {"label": "package", "classes": ["numpy", "jax"], "ranked": ranked, **shares}
    baselines = [
        {"run": name, "objective": objective, "loss": 1.0, "unigram_loss": 4.0, "share_removed": 0.75}
        for name, objective in (("a", "causal"), ("c", "masked"))
    ]
    return {
        "yardsticks": ["probes", "baselines"],
        "reason": "a masked loss answers another question",
        "runs": [{"run": name, "workdir": f"/sweeps/x/cells/{name}"} for name in "ac"],
        "probes": probes,
        "baselines": {"rows": baselines},
    }


def test_objectives_are_ranked_by_what_they_share_where_that_was_measured(tmp_path: Path) -> None:
    rows = [done("a", "causal", 1.7), done("c", "masked", 1.0)]
    page = shown(tmp_path, rows, comparison=compared())
    assert "Yardstick: linear probes of frozen features and the distance from each one's own baselines" in page.text
    assert "masked c has the highest accuracy of linear probes, 45.0% (43.0% to 47.0%)" in page.text
    assert "not told apart from it: causal a" in page.text and "these losses are no ranking" in page.text
    assert page.count("tr", **{"data-compared": None}) == 6  # type: ignore[arg-type]
    assert json.loads((tmp_path / "answer.json").read_text())["comparison"] == compared()


def test_objectives_that_were_not_compared_come_with_the_command(tmp_path: Path) -> None:
    rows = [done("a", "causal", 1.7), done("c", "masked", 1.0)]
    assert "isoflop compare DIR" in shown(tmp_path, rows).text
    for keep, said in (("none", True), ("last", False)):
        page = Page(write_report(tmp_path, {"question": "?", "keep": keep}, rows, {}, {}))
        assert ("kept no checkpoints" in page.text) is said
    assert "isoflop compare" not in shown(tmp_path, rows[:1]).text


# --- groups -----------------------------------------------------------------------------------------------------------


def test_groups_are_budgets_sizes_and_what_was_varied() -> None:
    sweep, rows, *_ = synthetic.ladder()
    found = {way.key: way for way in cells_of.groupings(cells_of.read_cells(sweep, rows))}
    assert found["budget"].values == ("1e12 FLOPs", "3e12 FLOPs", "1e13 FLOPs", "3e13 FLOPs")
    assert len(found["parameters"].values) == len(synthetic.WIDTHS)
    assert "model.embed_dim" not in found  # groups as the parameters do
    assert found["seed"].values == ("0", "1")
    for way in found.values():
        assert len(way.of) == len(rows) and set(way.of) <= set(range(-1, len(way.values)))


# --- what is missing --------------------------------------------------------------------------------------------------


def test_without_a_sentence_the_answer_is_made_of_verdicts_laws_and_predictions(tmp_path: Path) -> None:
    sweep, rows, curves, answers, settings = synthetic.ladder(1)
    del answers["answer"]
    text = Page(write_report(tmp_path, sweep, rows, curves, answers, settings)).text
    for said in (
        "Against baseline, better: queries and keys normalised by −0.0120 (−0.0180 to −0.0060); worse: rate x 4",
        "inconclusive: weight decay 0 by +0.0030 (−0.0050 to +0.0110)",
        "isoflop: the optimum grows: parameters as C^0.490 (0.465 to 0.514)",
        "1 of 2 held-out cells were measured inside the interval predicted for them (95% intervals).",
    ):
        assert said in text


def test_seeds_of_one_setting_are_one_arm(tmp_path: Path) -> None:
    rows = [
        done(f"{rate}{seed}", "causal", value, point={"rate": rate, "seed": seed}, name=f"rate={rate} seed={seed}")
        for rate, seed, value in ((1, 0, 1.70), (1, 1, 1.80), (2, 0, 1.72), (2, 1, 1.74))
    ]
    text = shown(tmp_path, rows).text
    assert "rate=2 has the lowest bits per byte, 1.7300 (mean of 2 seeds), 0.0200 from the next" in text
    assert "seeds differ by up to 0.1000" in text
    assert "Nothing was fitted: all cells have one size" in text


def test_verdicts_that_were_refused_are_told(tmp_path: Path) -> None:
    rows = [done("a", "causal", 1.7), done("b", "causal", 1.8)]
    assert "No verdicts: seeds differ." in shown(tmp_path, rows, verdicts=[], verdicts_refused="seeds differ").text


@pytest.mark.parametrize(
    "rows", [[], bare(), bare(3), [done("a", "causal", 1.7)], [*bare(2), done("a", "causal", 1.7)]]
)
def test_a_sweep_that_has_hardly_begun(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    page = shown(tmp_path, rows)
    assert table_rows(page) == [row["id"] for row in rows]
    assert "No answer yet" in page.text
    assert "Nothing was fitted" in page.text
    assert page.size < 60_000  # nothing is drawn, so that plotly is left out


def test_failures_retries_and_refusals_are_told(tmp_path: Path) -> None:
    rows = [done("a", "causal", 1.7, attempts=3), *bare(1, state="failed", reason="out of memory", attempts=2)]
    sweep = {"question": "?", "refused": [{"name": "too wide", "reason": "does not divide"}]}
    page = Page(write_report(tmp_path, sweep, rows, {}, {}))
    for told in ("out of memory", "too wide", "does not divide", "1 of 2 cells done, 1 failed", "3 retries"):
        assert told in page.text
    assert page.count("span", **{"class": "status failed"}) == 1


def test_attempts_are_told_one_by_one(tmp_path: Path) -> None:
    began = {"started": "2026-01-01T10:00:00.123Z", "host": "node-3", "job": "sweep-1"}
    history = [
        {**began, "status": "died", "reason": "its process ended without a word", "reached": 120},
        {**began, "started": "2026-01-01T11:00:00.000Z", "status": "done", "reason": None, "reached": 4000},
    ]
    text = shown(tmp_path, [done("a", "causal", 1.7, attempts=2, history=history, core_hours=0.25)]).text
    assert "2026-01-01 10:00:00, node-3 sweep-1: died at update 120, its process ended without a word" in text
    assert "2026-01-01 11:00:00, node-3 sweep-1: done at update 4,000" in text
    assert "core-hours" in text and "0.25" in text


@pytest.mark.parametrize(
    ("tuning", "said"), [("the rate was tuned at width 32.", "tuned at width 32."), (None, "not stated.")]
)
def test_how_rates_were_chosen_stands_beside_the_answer(tmp_path: Path, tuning: str | None, said: str) -> None:
    sweep = {"question": "?"} | ({"tuning": tuning} if tuning else {})
    text = Page(write_report(tmp_path, sweep, [done("a", "causal", 1.7)], {}, {})).text
    assert (
        f"Learning rates and batch sizes: {said}" in text
        or f"Learning rates and batch sizes: the rate was {said}" in text
    )


def test_numbers_that_are_none_are_not_drawn(tmp_path: Path) -> None:
    rows = [done("a", "causal", math.nan, train_loss=math.inf), done("b", "causal", 1.8), done("c", "causal", 1.9)]
    curves = {"a": {"step": [1.0], "tokens_seen": [8.0], "loss": [math.nan], "heldout_step": [], "heldout_loss": []}}
    path = write_report(tmp_path, {"question": "?"}, rows, curves, {"fits": [{"name": "isoflop"}]})
    page = Page(path)
    json.loads(json.dumps(page.data(DATA), allow_nan=False))
    assert "nan" not in page.text.lower().replace("provenance", "")
    assert page.data(DATA)["cells"][0]["y"] is None
    assert "causal b has the lowest" in page.text


def test_names_bring_no_markup(tmp_path: Path) -> None:
    sweep, rows, curves, answers, settings = synthetic.ladder(1)
    for row in rows[:3]:
        row |= {
            "name": EVIL + row["id"],
            "state": EVIL,
            "reason": EVIL,
            "attempts": 2,
            "commit": EVIL,
            "point": {EVIL: EVIL},
        }
    answers |= {
        "answer": EVIL,
        "fits": [{"name": EVIL, "refused": EVIL}],
        "verdicts": [{"name": EVIL, "sentence": EVIL}],
    }
    answers["predictions"] = [{"cell": EVIL}]
    settings[rows[0]["id"]] = {EVIL: EVIL}
    sweep |= {"question": EVIL, "recipe": EVIL, "refused": [{"name": EVIL, "reason": EVIL}]}
    page = Page(write_report(tmp_path, sweep, rows, curves, answers, settings))
    assert page.count("script") == 3
    assert not page.count("img")
    assert page.text.count(EVIL) >= 12
    assert page.size < 7_000_000  # nor is its {{plotly}} filled in


def test_nothing_is_loaded_from_elsewhere(ladder: tuple[Page, list[dict[str, Any]]]) -> None:
    page, _ = ladder
    assert not [found for _, found in page.elements if {"src", "srcset"} & set(found)]
    links = [str(found["href"]) for _, found in page.elements if "href" in found]
    assert all(re.fullmatch(r"cells/\w+/report\.html|answer\.json|rows\.(json|csv)", link) for link in links)
    for name in ("report_template.html", "report.js"):
        assert not re.search(r"https?:|@import|url\(|fetch\(", (Path(charts.__file__).parent / name).read_text())


def test_the_same_arguments_give_the_same_bytes_and_the_answer_as_json(tmp_path: Path) -> None:
    first, second = (write_report(tmp_path / name, *synthetic.ladder(1)) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    answer = json.loads((tmp_path / "a" / "answer.json").read_text())
    assert answer["question"] == "How large should a model be for its compute?"
    assert answer["fits"] == synthetic.ladder(1)[3]["fits"]


def test_quantities() -> None:
    assert charts.scientific(3.2e15) == "3.20e15"
    assert charts.scientific(9.999e12) == "1.00e13"
    assert charts.scientific(0.0) == "0.00e0"
    assert charts.interval({"value": 1.0, "low": 0.5, "high": 1.5}) == "1.0000 (0.5000 to 1.5000)"
    assert charts.interval({"value": None}) == "–"
    assert pages.duration(5400.0) == "90 min"


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from tests.chromium import browser

    with browser() as found:
        yield found


READY = "document.documentElement.dataset.ready"
IDS = "[...document.querySelectorAll('#cell-table tbody tr:not([hidden])')].map(row => row.dataset.cell)"


def column(name: str) -> str:
    return f"[...document.querySelectorAll('#cell-table th button')].find(b => b.textContent === {name!r})"


def test_the_page_works_in_a_browser(tmp_path: Path, chromium: Any) -> None:
    sweep, rows, *rest = synthetic.ladder(1)
    rows[3]["name"] = "<b>bold</b> & <img src=x onerror=alert(1)>"
    rows[5] |= {"state": "failed", "bits_per_byte": None}
    chromium.open(write_report(tmp_path, sweep, rows, *rest), READY)
    plots = chromium("document.querySelectorAll('.plot').length")
    assert plots == chromium("document.querySelectorAll('.plot.js-plotly-plot').length") == 7
    assert chromium("document.querySelectorAll('.plot .contour').length") > 0
    assert chromium("document.documentElement.scrollWidth") <= 1400

    chromium(f"{column('bits per byte')}.click()")
    order = sorted(rows, key=lambda row: row["bits_per_byte"] or math.inf)  # what has none stands last, either way
    assert chromium(IDS) == [row["id"] for row in order]
    chromium(f"{column('bits per byte')}.click()")
    assert chromium(IDS) == [*[row["id"] for row in order[-2::-1]], rows[5]["id"]]

    filtered = "const f = document.getElementById('filter'); f.value = {!r}; f.dispatchEvent(new Event('input'))"
    chromium(f"{{ {filtered.format('128 1e+13')} }}")
    (only,) = [row["id"] for row in rows if "128 wide, 1e+13" in row["name"]]
    assert chromium(IDS) == [only]
    assert chromium("document.getElementById('count').textContent") == f"1 of {len(rows)} cells"
    chromium.wait("document.querySelector('[data-chart=\"5\"]').data.length === 1")  # the charts follow

    change = "const s = document.getElementById({!r}); s.value = {!r}; s.dispatchEvent(new Event('change'))"
    for side, row in (("left", rows[0]), ("right", rows[3])):
        chromium(f"{{ {change.format(side, row['id'])} }}")
    found = chromium("[...document.getElementById('difference-rows').rows].map(row => row.cells[0].textContent)")
    assert found == ["model.embed_dim", "model.num_heads", "train.num_steps", "measured"]
    assert chromium("document.getElementById('right-name').textContent") == rows[3]["name"]
    assert chromium.complaints == []


def test_colours_axes_darkness_and_paper(tmp_path: Path, chromium: Any) -> None:
    chromium.open(write_report(tmp_path, *synthetic.ladder(1)), READY, width=700, scheme="dark")
    assert chromium("document.documentElement.scrollWidth") <= 700  # half a window needs no scrolling
    assert chromium("getComputedStyle(document.body).backgroundColor") == "rgb(19, 23, 28)"
    curve = "document.querySelector('[data-chart=\"5\"]')"
    colors = f"new Set({curve}.data.map(trace => trace.line.color)).size"
    assert chromium(colors) == len(synthetic.BUDGETS)
    by_size = "const c = document.getElementById('colour'); c.value = '1'; c.dispatchEvent(new Event('change'))"
    chromium(f"{{ {by_size} }}")
    assert chromium(colors) == len(synthetic.WIDTHS)
    swatches = "new Set([...document.querySelectorAll('.swatch')].map(s => s.style.background)).size"
    assert chromium(swatches) == len(synthetic.WIDTHS)
    for name, title in (("flops", "model FLOPs"), ("seconds", "minutes of training"), ("step", "steps")):
        chromium(f"document.querySelector('[data-axis={name}]').click()")
        assert chromium(f"{curve}.layout.xaxis.title.text") == title
    paper = chromium.send("Page.printToPDF", printBackground=True)["data"]
    assert len(paper) > 50_000
    assert chromium("document.documentElement.classList.contains('printing')") is False
    assert chromium.complaints == []


@pytest.mark.parametrize("rows", [[], bare(), [done("a", "causal", 1.7), *bare(1, state="failed", reason=EVIL)]])
def test_a_page_with_little_on_it_works_too(tmp_path: Path, chromium: Any, rows: list[dict[str, Any]]) -> None:
    chromium.open(write_report(tmp_path, {"question": "?"}, rows, {}, {}), READY)
    assert chromium(IDS) == [row["id"] for row in rows]
    assert chromium.complaints == []
