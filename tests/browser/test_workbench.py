"""The workbench in a real JupyterLab and on its page without a kernel, by pointer and key, for 224 modules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

import viz
from tests.helpers.bench import BUILD, RANKS, START, WORK, Bench, built, edited, expected
from tests.helpers.sensitivities import llama_sensitivity
from viz.glossary import explanations

pytestmark = [pytest.mark.browser, pytest.mark.rest]

PRINT = "print(workbench.code('scores'))"
CONTRAST = """() => {
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const luminance = (color) => {
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
            .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    return Math.min(...[...document.querySelectorAll('.tlora .cell')].map((cell) => {
        const [a, b] = ['rect', 'text'].map((tag) => luminance(cell.querySelector(tag).getAttribute('fill')));
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }));
}"""


@pytest.fixture(scope="module")
def bench(server: str, chromium: str) -> Iterator[Bench]:
    """The workbench of a notebook, with nothing done yet."""
    with built(server, chromium, "workbench.ipynb", BUILD.strip(), WORK, PRINT) as it:
        yield it


@pytest.fixture(autouse=True)
def _start_over(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test leaves the allocation of the beginning, with one module selected."""
    yield
    if "bench" in request.fixturenames:
        it = request.getfixturevalue("bench")
        it.view("allocation")
        it.open("Rule and budget")
        it.press("as published")
        it.shows(START)
        it.module(0).click()


def test_hover_says_what_a_module_has_in_two_lines(bench: Bench) -> None:
    bench.page.mouse.move(*bench.middle(9))
    tip = bench.root.locator(".tip:not(.term)")
    tip.wait_for(state="visible")
    said = tip.inner_text()
    rank = bench.ranks()[9]
    assert said.splitlines() == ["layer 1 v_proj", f"Rank {rank}, by its score"]
    bench.page.mouse.move(2, 2)
    tip.wait_for(state="hidden")


def test_click_selects_and_shows_the_module(bench: Bench) -> None:
    bench.module(12).click()
    assert bench.selected() == [12]
    said = bench.root.locator(".side").inner_text()
    share = llama_sensitivity(16).to_frame()["share"][12]
    for part in (
        "layer 1 up_proj",
        f"Sensitivity {224 * share:.2g} × the mean",
        "of all scores",
        "95\u00a0% interval",
        "of the energy",
    ):
        assert part in said
    bench.root.get_by_text("More", exact=True).click()
    expect(bench.root.locator(".side .chart")).not_to_have_count(1)
    names = [chart.get_attribute("aria-label") for chart in bench.root.locator(".side .chart").all()]
    assert len(names) >= 3
    assert all("layer 1 up_proj" in name for name in names)


def test_stages_show_their_panels_one_at_a_time_and_what_runs_them(bench: Bench) -> None:
    """Through the rail: views, folded panels, and the line of Python of a stage that was not run, copied by a click."""
    panels, parts = bench.root.locator(".panel:not([hidden])"), bench.root.locator(".panel .part")
    shown = {}
    for stage in bench.root.locator(".rail button").all():
        stage.click()
        expect(stage).to_have_attribute("aria-current", "true")
        shown[stage.get_attribute("data-stage")] = panels.locator("> summary").all_inner_texts()
    others = {"spectra": [], "training": [], "answers": []}
    assert shown == {
        "data": ["Data"],
        "directions": ["Alignment"],
        "allocation": ["Sensitivity", "By projection"],
        **others,
    }
    missing = bench.root.locator(".missing")
    expect(missing).to_contain_text("answers=tlora.compare_answers(adapted, task)")
    bench.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    missing.get_by_role("button", name="Copy").click()
    expect(missing).to_contain_text("Copied")
    assert bench.page.evaluate("navigator.clipboard.readText()") == missing.locator("code").inner_text()
    bench.view("data")
    expect(parts.first).to_be_visible()  # the first panel is open where there is no map
    bench.view("allocation")
    expect(missing).to_be_hidden()
    expect(parts).to_have_count(0)
    for panel in panels.all():
        panel.locator("summary").click()
        expect(panel.locator(".part").first).to_be_visible()  # the kernel may take a moment
    assert bench.root.locator(".panel[open]").count() == 1
    panels.last.locator("summary").click()
    expect(parts).to_have_count(0)
    bench.view("directions", "alignment")
    finding = bench.root.locator(".panel .finding")
    before = finding.inner_text()
    bench.root.locator(".panel").get_by_role("slider", name="Rank").press("Home")
    expect(finding).not_to_have_text(before)


def test_a_click_that_is_not_quite_still_is_no_drag(bench: Bench) -> None:
    """Not even on a module that is left out; and something stays selected."""
    bench.press("q and v")
    bench.shows([28 if k % 7 in (0, 2) else 0 for k in range(224)])
    x, y = bench.middle(8)
    bench.page.mouse.move(x, y)
    bench.page.mouse.down()
    bench.page.mouse.move(x + 1, y)
    bench.page.mouse.up()
    bench.module(8).click(modifiers=["Control"])
    assert bench.selected() == [8]
    bench.module(10).click()
    assert bench.ranks()[8] == 0


def test_labels_and_shift_select_rows_and_columns(bench: Bench) -> None:
    bench.root.locator("[data-row='2']").first.click()
    assert bench.selected() == list(range(2, 224, 7))
    bench.root.locator("[data-column='5']").click()
    assert bench.selected() == list(range(35, 42))
    bench.module(3).click(modifiers=["Shift"])
    assert bench.selected() == list(range(3, 224, 7))
    bench.module(3).click()
    bench.module(10).click(modifiers=["Control"])
    assert bench.selected() == [3, 10]


def test_keys(bench: Bench) -> None:
    bench.module(0).click()
    for key, place in (("ArrowRight", 7), ("ArrowDown", 8), ("ArrowLeft", 1), ("ArrowUp", 0)):
        bench.page.keyboard.press(key)
        assert bench.selected() == [place]
    for key, ranks in (
        ("+", edited({0: START[0] + 1})),
        ("Alt+ArrowUp", edited({0: START[0] + 2})),
        ("-", edited({0: START[0] + 1})),
        ("Delete", START),
        ("Control+z", edited({0: START[0] + 1})),
        ("x", [0, *expected(exclude_modules=[llama_sensitivity().names[0]])]),
    ):
        bench.page.keyboard.press(key)
        bench.shows(ranks)
    bench.page.keyboard.press("Shift+ ")
    assert bench.selected() == list(range(0, 224, 7))
    assert bench.page.evaluate("document.querySelectorAll('.jp-Notebook .jp-Cell').length") == 3


def test_typing_in_a_control_does_not_reach_the_notebook(bench: Bench) -> None:
    floor = bench.root.get_by_role("spinbutton", name="min_rank")
    floor.click()
    for key in ("d", "d", "a", "b", "2"):
        bench.page.keyboard.press(key)
    assert bench.page.evaluate("document.querySelectorAll('.jp-Notebook .jp-Cell').length") == 3
    floor.fill("2")
    floor.press("Enter")
    bench.shows(expected(min_rank=2))
    floor.fill("9")
    floor.press("Enter")
    bench.root.get_by_text("min_rank and pinned ranks need 2,016 ranks").wait_for()
    assert bench.ranks() == expected(min_rank=2)
    assert floor.input_value() == "2"
    floor.fill("9")  # a second time
    floor.press("Enter")
    bench.page.wait_for_function("field => field.value === '2'", arg=floor.element_handle())
    floor.fill("")  # not zero
    floor.press("Enter")
    assert bench.ranks() == expected(min_rank=2)


def test_sliders_presets_tabs_and_the_line_of_python(bench: Bench) -> None:
    slider = bench.root.get_by_label("Temperature")
    slider.focus()
    slider.press("ArrowLeft")
    bench.shows(expected(temperature=0.95))
    others = ["k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    bench.press("q and v")
    bench.shows([28 if k % 7 in (0, 2) else 0 for k in range(224)])
    bench.lab.run(PRINT)
    assert "temperature=0.0" in bench.lab.printed(PRINT)
    assert all(f"'{name}'" in bench.lab.printed(PRINT) for name in others)
    bench.press("Keep")
    bench.press("uniform")
    bench.shows([8] * 224)
    bench.root.get_by_role("tab", name="Change").click()
    assert bench.module(0).locator("text").text_content() == "−20"
    bench.root.get_by_role("tab", name="Change").press("ArrowLeft")
    assert bench.root.get_by_role("tab", name="Rank").get_attribute("aria-selected") == "true"
    for tab in bench.tabs():
        tab.click()
        assert tab.get_attribute("aria-selected") == "true"
        assert bench.module(3).locator("text").text_content() != "" or tab.inner_text() == "Change"
    bench.root.get_by_role("tab", name="Rank").click()


@pytest.mark.parametrize("theme", ["Light", "Dark"])
@pytest.mark.parametrize(("width", "height"), [(900, 1000), (1280, 1000), (1366, 768)])
def test_it_fits_and_can_be_read(bench: Bench, theme: str, width: int, height: int, tmp_path: Path) -> None:
    page = bench.page
    page.set_viewport_size({"width": width, "height": height})
    page.evaluate(f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})")
    page.wait_for_function(f"document.body.dataset.jpThemeLight === '{str(theme == 'Light').lower()}'")
    page.wait_for_function(
        "(() => { const map = document.querySelector('.tlora .map');"
        " return map.firstChild.getAttribute('width') == Math.max(320, map.clientWidth); })()"
    )
    for tab in bench.tabs():
        tab.click()
        assert page.evaluate(CONTRAST) >= 4.5, tab.inner_text()
    bench.root.get_by_role("tab", name="Rank").click()
    assert page.evaluate(
        "(() => { const root = document.querySelector('.tlora'); return root.scrollWidth <= root.clientWidth; })()"
    )
    bench.root.get_by_text("Rule and budget").click()
    top, legend = bench.root.bounding_box()["y"], bench.root.locator(".legend").first.bounding_box()
    assert width < 1300 or legend["y"] + legend["height"] - top < height - 130  # JupyterLab's own bars
    page.screenshot(path=tmp_path / f"{theme}-{width}.png")


def test_after_a_reload_of_the_page_the_edits_are_there(bench: Bench) -> None:
    bench.drag(4, 40)
    ranks = edited({4: START[4] + 10})
    bench.shows(ranks)
    bench.page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    bench.page.wait_for_function("!window.jupyterapp.shell.currentWidget.context.model.dirty")
    bench.page.reload()
    bench.page.wait_for_selector(".tlora .cell", timeout=60_000)
    bench.shows(ranks)
    bench.drag(4, -8)
    bench.shows(edited({4: START[4] + 8}))


def test_every_word_has_its_sentence(bench: Bench) -> None:
    """By pointer and by key, in the words of the glossary."""
    words = bench.root.locator("[data-tab]:not([hidden]), .bar > .control, .fold th, .key > span")
    texts = [word.text_content() for word in words.all()]
    assert len(texts) > 15
    sentences = [word.get_attribute("aria-description") for word in words.all()]
    known = explanations().values()
    assert [t for t, sentence in zip(texts, sentences, strict=True) if sentence not in known] == []
    tip = bench.root.locator(".tip.term")
    for word in words.all()[:12]:
        word.hover()
        assert tip.text_content() == word.get_attribute("aria-description")
    bench.view("spectra")
    bench.root.get_by_role("tab", name="Energy").focus()
    expect(tip).to_have_text(explanations()["energy"])
    bench.page.keyboard.press("Escape")
    expect(tip).to_be_hidden()


def test_the_session_and_the_page_are_written(bench: Bench, tmp_path: Path) -> None:
    bench.drag(4, 40)
    ranks = edited({4: START[4] + 10})
    bench.shows(ranks)
    bench.open("Save and download")
    bench.root.get_by_role("button", name="Save session").click()
    bench.root.get_by_text("viz.Workbench.load('workbench-session') opens it again").wait_for(timeout=60_000)
    with bench.page.expect_download() as download:
        bench.press("Page")
    download.value.save_as(tmp_path / "allocation.html")
    with bench.page.expect_download() as picture:
        bench.press("SVG")
    picture.value.save_as(tmp_path / "allocation.svg")
    assert (tmp_path / "allocation.svg").read_text().count("<rect") > 224
    with bench.page.expect_download() as picture:
        bench.press("PNG")
    picture.value.save_as(tmp_path / "allocation.png")
    assert (tmp_path / "allocation.png").read_bytes().startswith(b"\x89PNG")
    context = bench.page.context.browser.new_context(offline=True)
    page = context.new_page()
    page.goto(f"file://{tmp_path / 'allocation.html'}")
    assert page.evaluate(RANKS) == ranks
    context.close()


def check_axe(page: Any, what: str) -> None:
    found = Axe().run(page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == [], what


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_can_be_used_by_everybody(bench: Bench, scheme: Any, tmp_path: Path) -> None:
    """Without a network, axe finds nothing serious on the page, whatever tab is open, and it fits a phone."""
    viz.Workbench(llama_sensitivity(16), max_rank=64, exclude_modules=[3]).page(tmp_path / "allocation.html")
    page = bench.page.context.browser.new_context(offline=True, color_scheme=scheme).new_page()
    page.goto(f"file://{tmp_path / 'allocation.html'}")
    stages, menus = page.locator(".rail button").all(), page.locator(".fold > summary").all()
    for button in [*stages, page.locator("[data-stage=allocation]"), *menus]:
        button.click()
        check_axe(page, button.inner_text())
    for tab in page.get_by_role("tab").all():
        tab.click()
        check_axe(page, tab.inner_text())
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_function("document.documentElement.scrollWidth <= 390")
    page.context.close()
