"""The dashboard in Chromium: what a reader sees and does."""

from __future__ import annotations

import csv
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Reader, opened
from test_dashboard import EVIL, big_page, entry, recipes, small_frames

from analysis.dashboard import build
from analysis.frames import frames

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium() -> str:
    """The machine's Chromium; CHROMIUM names another one."""
    named = os.environ.get("CHROMIUM")
    found = [named] if named else [path for path in map(shutil.which, NAMES) if path]
    if not found:
        pytest.skip(f"no Chromium: none of {', '.join(NAMES)} is installed (apt install chromium)")
    return found[0]


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium)
        yield started
        started.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dashboard") / "index.html"
    path.write_text(build(small_frames()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def opened_reader(browser: Any, page_file: Path) -> Iterator[Reader]:
    made = Reader(browser)
    made.open(page_file)
    yield made
    made.context.close()


@pytest.fixture
def reader(opened_reader: Reader) -> Iterator[Reader]:
    """The page of the small frames at first sight; it must not complain whatever is done to it."""
    opened_reader.again()
    yield opened_reader
    assert opened_reader.complaints == []


def test_the_page_opens_silently_and_asks_nobody(reader: Reader, page_file: Path) -> None:
    page = reader.page
    for figure in ("bits", "alpha", "depth", "roles"):
        reader.drawn(figure)
        assert page.locator(f"#{figure} .main-svg").count() > 0
    asked = {url for url in reader.requests if not url.startswith(("data:", "blob:", "about:"))}
    assert asked == {page_file.as_uri()}
    assert page.locator("#count").text_content() == "8 of 8 runs, 1 of them full precision"
    full = page.locator("tr.full")
    assert full.count() == 1 and "full precision" in full.inner_text()


def test_a_set_in_which_nothing_is_finite_says_so(browser: Any, tmp_path: Path) -> None:
    runs = [entry("a", perplexity=math.inf), entry("b", alpha=0.5, perplexity=math.nan)]
    path = tmp_path / "index.html"
    path.write_text(build(frames(runs)), encoding="utf-8")
    reader = Reader(browser)
    reader.open(path)
    for figure in ("bits", "alpha"):
        assert reader.drawn(figure) == set()
        note = reader.page.locator(f"#{figure}-note").text_content()
        assert "Nothing finite to draw. 2 runs diverged" in note
    assert reader.page.locator("td.best").count() == 0 and reader.complaints == []
    reader.context.close()


def test_figures_show_what_can_be_shown_and_say_what_not(reader: Reader, page_file: Path) -> None:
    page = reader.page
    assert reader.drawn("bits") == {"full", "a", "b", "e", EVIL}
    assert reader.drawn("depth") == {"a", "b", "c", "d", "e", EVIL}
    note = page.locator("#bits-note").text_content()
    assert note.startswith("4 runs; lower is better.")
    assert "2 runs diverged" in note and "1 run without this metric" in note
    line = page.evaluate(
        "document.getElementById('alpha').data.filter(t => t.mode === 'lines').map(t => [t.x, t.y])"
    )
    assert [[0, 0.5], [30, 20]] in line
    roles = page.evaluate("document.getElementById('roles').data.map(t => [t.x, t.y])")
    linear = 20 / 1e4 / 2  # run b; the second of its two blocks has twice the error of the first
    assert any(x and x[0] == "q_proj" and abs(y[0] - 1.5 * linear) < 1e-6 for x, y in roles)


def test_table_and_figures_follow_the_filters(reader: Reader, page_file: Path) -> None:
    page = reader.page
    alphas = page.locator("[data-facet=alpha] input").evaluate_all("all => all.map(a => a.value)")
    assert alphas == ["0", "0.25", "0.5", "auto"]
    page.locator("[data-facet=bits] input[value='3']").check()
    page.locator("[data-facet=method] input[value='RTN']").check()
    assert reader.drawn("bits") == {"full", "a", "b"}
    assert reader.names() == ["a", "b", "full"]
    assert reader.drawn("depth") == {"a", "b"}
    page.locator("#baseline").uncheck()
    assert reader.drawn("alpha") == {"a", "b"} and reader.names() == ["a", "b"]
    page.locator("#reset").click()
    page.locator("#search").fill("BITS=4 gptq")
    assert reader.drawn("bits") == {"full", "e", EVIL}
    page.locator("#search").fill("full precision")  # as it is shown; the record says "none"
    assert reader.names() == ["full"]
    page.locator("#search").fill("no such run")
    page.locator("#baseline").uncheck()
    page.wait_for_selector("text=No run passes these filters.")
    assert reader.drawn("bits") == set()


def test_the_stream_error_is_shown_of_runs_that_measured_it(reader: Reader) -> None:
    assert {"a", "b", "e"} <= reader.drawn("depth")
    reader.page.locator("#stream").select_option("relative_error_token")
    assert reader.drawn("depth") == {"a", "b"}
    drawn = reader.page.evaluate("document.getElementById('depth').data[0].y.slice(0, 2)")
    assert drawn == [2e-3, 4e-3]


def test_the_address_keeps_what_was_chosen(reader: Reader, page_file: Path) -> None:
    page = reader.page
    page.locator("[data-facet=alpha] input[value='0.5']").check()
    page.locator("#colour").select_option("bits")
    page.locator("#search").fill("gptq")
    page.wait_for_function(
        "() => location.hash.includes('gptq') && location.hash.includes('colour=bits')"
    )
    fragment = page.evaluate("location.hash")
    reader.open(page_file, fragment)
    assert reader.names() == ["broken", "full"]
    assert page.locator("#colour").input_value() == "bits"
    assert page.locator("[data-facet=alpha] input[value='0.5']").is_checked()


def test_numbers_sort_as_numbers_and_what_is_not_finite_stays_last(
    reader: Reader, page_file: Path
) -> None:
    page = reader.page
    head = page.locator("[data-sort='perplexity/x']")
    head.click()
    page.wait_for_selector("th[aria-sort=ascending]")
    last = ["∞", "NaN", "–"]
    assert reader.column("perplexity/x") == ["9.5", "10.12", "20", "30", "100", *last]
    page.locator("[data-sort='perplexity/x']").press("Enter")
    page.wait_for_selector("th[aria-sort=descending]")
    assert reader.column("perplexity/x") == ["100", "30", "20", "10.12", "9.5", *last]
    assert page.locator("tr[data-run=full] td[title='10.123456789012344']").count() == 1


def test_columns_can_be_chosen(reader: Reader, page_file: Path) -> None:
    page = reader.page
    assert page.locator("[data-sort='baseline']").count() == 0
    page.locator("#chooser").press("Enter")
    page.get_by_label("baseline", exact=True).check()
    page.wait_for_selector("[data-sort='baseline']")


def test_ticked_runs_are_the_ones_whose_curves_are_drawn(reader: Reader, page_file: Path) -> None:
    page = reader.page
    page.locator("tr[data-run=a] input").check()
    assert reader.drawn("depth") == {"a"}
    assert "a" in reader.drawn("bits") and "b" in reader.drawn("bits")
    page.locator("#unpick").click()
    assert reader.drawn("depth") == {"a", "b", "c", "d", "e", EVIL}


def test_a_run_shows_its_configuration_curves_and_command(reader: Reader, page_file: Path) -> None:
    page = reader.page
    reader.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("tr[data-run=b] .open").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#run[data-drawn=b]")
    assert page.locator("#run-title").text_content() == "b"
    assert page.locator("#command").text_content() == "python run.py bits=3"
    config = dict(
        page.locator("#config tr").evaluate_all(
            "rows => rows.map(r => [...r.cells].map(c => c.textContent))"
        )
    )
    assert config["method._target_"] == "rtn" and config["qep.damping"] == "1"
    depth = page.evaluate("document.getElementById('run-depth').data.map(t => t.y)")
    assert depth == [[0.001, 0.002], [0.001, 0.002]]  # the run at alpha 0 stands behind it
    linears = page.evaluate("document.getElementById('run-linears').data.map(t => t.name)")
    assert linears[0] == "q_proj" and len(linears) == 7
    page.locator("#copy").click()
    page.wait_for_selector("#copied:text('copied')")
    assert page.evaluate("navigator.clipboard.readText()") == "python run.py bits=3"
    page.keyboard.press("Escape")
    page.wait_for_selector("#run", state="hidden")
    page.locator("tr[data-run=broken]").click()
    page.wait_for_selector("text=ValueError: no such file")


def test_text_of_a_record_stays_text(reader: Reader, page_file: Path) -> None:
    page = reader.page
    reader.drawn("roles")
    page.locator("#colour").select_option("model")
    reader.drawn("bits")
    page.locator("#table tbody tr").filter(has_text="window.hurt").locator(".open").click()
    page.wait_for_selector("#run[data-drawn]")
    assert page.locator("#run-title").text_content() == EVIL
    assert page.evaluate("window.hurt") is None
    assert page.locator("img[src=x]").count() == 0
    page.evaluate("Plotly.Fx.hover('run-depth', [{curveNumber: 1, pointNumber: 0}])")
    page.wait_for_selector("#run-depth .hoverlayer .hovertext")
    assert "<img src=x" in page.locator("#run-depth .hoverlayer").text_content()
    page.evaluate(
        """() => { const script = document.createElement("script");
        script.textContent = "window.hurt = 1"; document.body.append(script) }"""
    )
    assert page.evaluate("window.hurt") is None  # the policy names the page's own scripts only
    assert "Content Security Policy" in reader.complaints.pop()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_narrow_window_in_both_schemes(
    browser: Any, page_file: Path, scheme: str
) -> None:
    narrow = Reader(browser, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    narrow.open(page_file)
    page = narrow.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    narrow.drawn("bits")
    ink, paper = page.evaluate(
        """[document.getElementById("bits").layout.font.color,
        getComputedStyle(document.body).backgroundColor]"""
    )
    lightness = [
        sum(int(ink[i : i + 2], 16) for i in (1, 3, 5)),
        sum(int(part) for part in re.findall(r"\d+", paper)),
    ]
    assert (lightness[0] < 200 and lightness[1] > 600) == (scheme == "light")
    assert (lightness[0] > 600 and lightness[1] < 200) == (scheme == "dark")
    narrow.context.close()


@pytest.fixture(scope="module")
def recipes_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "index.html"
    path.write_text(build(recipes()), encoding="utf-8")
    return path


@pytest.fixture
def compared(browser: Any, recipes_file: Path) -> Iterator[Reader]:
    """The page of runs that differ in settings."""
    made = Reader(browser, accept_downloads=True)
    made.open(recipes_file)
    yield made
    assert made.complaints == []
    made.context.close()


def test_settings_that_differ_are_columns_colours_filters_and_hover_texts(
    compared: Reader,
) -> None:
    page = compared.page
    assert compared.column("settings/method.outliers.fraction") == ["–", "0", "0.01", "–"]
    assert page.locator("[data-sort='settings/transform']").text_content() == "transform"
    assert page.locator("#colour").input_value() == "variant"
    legend = page.locator("#legend").text_content()
    assert "QuantEase (no outliers, no transform)" in legend
    assert "QuantEase (1 % outliers, no transform)" in legend
    compared.drawn("bits")
    colours, texts = page.evaluate(
        """[document.getElementById("bits").data, document.getElementById("bits").data].map((all, i) =>
        Object.fromEntries(all.filter(t => t.mode === "markers")
        .map(t => [t.customdata[0], i ? t.hovertext[0] : t.marker.color])))"""
    )
    assert len({colours[name] for name in ("plain", "sparse", "turned")}) == 3
    assert "1 % outliers · no transform" in texts["sparse"]
    assert "transform hadamard" in texts["turned"]
    page.locator("[data-facet='settings/method.outliers.fraction'] input[value='0.01']").check()
    assert compared.names() == ["full", "sparse"]


def test_ticked_runs_are_compared_side_by_side(compared: Reader, recipes_file: Path) -> None:
    page = compared.page
    assert page.locator("#comparing").is_hidden()
    for name in ("plain", "sparse"):
        page.locator(f"tr[data-run={name}] input").check()
    page.locator("#comparing").click()
    page.wait_for_selector("#compare[open]")

    def rows(table: str) -> dict[str, list[str]]:
        found = page.locator(f"#{table} tbody tr").evaluate_all(
            "rows => rows.map(r => [...r.cells].map(c => c.textContent))"
        )
        return {words: values for words, *values in found}

    assert rows("differences") == {"outliers fraction": ["0", "0.01"]}
    assert rows("outcomes")["perplexity/x"] == ["89", "30"]
    assert page.locator("#outcomes td.best").all_text_contents() == ["30"]
    page.wait_for_selector("#compare[data-drawn='plain sparse']")
    curves = page.evaluate(
        """document.getElementById("compare-depth").data
        .map(line => [line.name, line.hovertext[1], line.x, line.y, line.line.color])"""
    )
    assert [name for name, *_ in curves] == ["plain", "sparse"]
    assert all(f"<b>{name}</b>" in text and "block 1" in text for name, text, *_ in curves)
    assert all(line == [[0, 1], [1e-3, 2e-3]] for _, _, *line, _ in curves)
    assert len({colour for *_, colour in curves}) == 2
    fragment = page.evaluate("location.hash")
    page.keyboard.press("Escape")
    page.wait_for_selector("#compare", state="hidden")
    page.wait_for_function("() => document.activeElement.id === 'comparing'")
    # Written after the dialogue's end.
    page.wait_for_function("() => !location.hash.includes('compare=1')")
    compared.open(recipes_file, fragment)
    page.wait_for_selector("#compare[open]")
    assert rows("differences") == {"outliers fraction": ["0", "0.01"]}


def test_axes_are_free_and_stay_in_the_address(compared: Reader, recipes_file: Path) -> None:
    page = compared.page
    page.locator("#across").select_option("settings/method.outliers.fraction")
    page.locator("#up").select_option("bits_per_weight")
    assert compared.drawn("free") == {"plain", "sparse"}
    points = page.evaluate("document.getElementById('free').data.map(t => [t.x[0], t.y[0]])")
    assert sorted(points) == [[0, 3.03], [0.01, 3.03]]
    assert page.locator("#free-title").text_content() == "effective bits against outliers fraction"
    assert "2 runs without both" in page.locator("#free-note").text_content()
    compared.open(recipes_file, page.evaluate("location.hash"))
    assert compared.drawn("free") == {"plain", "sparse"}


def test_what_is_in_view_is_a_csv_file(compared: Reader, tmp_path: Path) -> None:
    page = compared.page
    page.locator("#search").fill("quantease")
    page.locator("#baseline").uncheck()
    assert compared.names() == ["plain", "sparse"]
    with page.expect_download() as started:
        page.locator("#csv").click()
    started.value.save_as(tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["plain", "sparse"]
    assert [float(row["perplexity/x"]) for row in rows] == [89.0, 30.0]
    assert rows[1]["settings/method.outliers.fraction"] == "0.01"
    assert rows[0]["command"] == "python run.py bits=3"
    harmless = page.evaluate("""['=1+1', '-1', '-x', 'a "b", c', 0.1, NaN, null].map(field)""")
    assert harmless == ["'=1+1", "-1", "'-x", '"a ""b"", c"', "0.1", "nan", ""]


def test_the_focus_goes_back_to_where_it_was(compared: Reader) -> None:
    page = compared.page
    page.locator("tr[data-run=sparse] .open").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#run[data-drawn=sparse]")
    page.keyboard.press("Escape")
    page.wait_for_selector("#run", state="hidden")
    page.wait_for_function("() => document.activeElement.closest('tr')?.dataset.run === 'sparse'")
    page.wait_for_function("() => !location.hash.includes('run=')")


def test_on_a_phone_the_name_stays_in_sight(browser: Any, recipes_file: Path) -> None:
    phone = Reader(browser, viewport={"width": 360, "height": 740})
    phone.open(recipes_file)
    page = phone.page
    page.locator("#scroller").evaluate("box => box.scrollLeft = 400")
    phone.settle()
    box = page.locator("#scroller").bounding_box()
    name = page.locator("tr[data-run=sparse] th").bounding_box()
    assert box["x"] <= name["x"] < box["x"] + 40 and name["width"] < 0.5 * 360
    room = box["x"] + box["width"] - name["x"] - name["width"]
    assert room > 0.4 * box["width"], "there is room for figures beside it"
    page.locator("tr[data-run=sparse]").scroll_into_view_if_needed()
    name = page.locator("tr[data-run=sparse] th").bounding_box()
    behind = page.evaluate(
        """([x, y]) => document.elementFromPoint(x, y).closest("th")?.textContent""",
        [name["x"] + 5, name["y"] + name["height"] / 2],
    )
    assert behind == "sparse"
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    phone.context.close()


def test_on_a_phone_names_that_begin_alike_are_told_apart(browser: Any, tmp_path: Path) -> None:
    names = [f"smollm2_135m-quantease-w3-a0.{i}-0123456{i}" for i in (1, 2)]
    path = tmp_path / "index.html"
    path.write_text(build(frames([entry(name) for name in names])), encoding="utf-8")
    phone = Reader(browser, viewport={"width": 390, "height": 844})
    phone.open(path)
    room = phone.page.locator("#table tbody th").evaluate_all(
        "cells => cells.map(cell => cell.clientWidth - cell.scrollWidth)"
    )
    assert phone.names() == names and room == [0, 0], "nothing of a name is cut off"
    phone.context.close()


@pytest.mark.parametrize(
    ("values", "ticks"),
    [([60, 150], None), ([13.1, 13.2], None), ([10, 51], [10, 20, 50]), ([0, 9], None)],
)
def test_an_axis_has_two_ticks_in_view_at_least(
    reader: Reader, values: list[float], ticks: list[float] | None
) -> None:
    axis = reader.page.evaluate("values => scale(values)", values)
    assert axis["type"] == ("linear" if ticks is None else "log")
    if ticks:
        low, high = values
        assert [tick for tick in axis["tickvals"] if low <= tick <= high] == ticks


def test_no_runs_is_a_page_without_complaints(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "none.html"
    path.write_text(build(frames([])), encoding="utf-8")
    empty = Reader(browser)
    empty.open(path)
    assert empty.names() == [] and empty.complaints == []
    assert empty.page.locator("text=No run passes these filters.").count() == 1
    empty.context.close()


def test_a_thousand_runs_open_in_three_seconds(chromium: str, tmp_path: Path) -> None:
    path = tmp_path / "many.html"
    path.write_text(big_page(), encoding="utf-8")
    took = opened(chromium, path, "1000 quantisation runs", tmp_path / "profile")
    print(f"1,000 runs: {took:.2f} s")
    assert took < 3.0
