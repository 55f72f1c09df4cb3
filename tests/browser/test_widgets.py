"""One test a widget in a real browser: the workbench in JupyterLab, its page without a kernel, the monitor."""

from __future__ import annotations

from pathlib import Path

import pytest

import viz
from tests.helpers.bench import BUILD, RANKS, START, WORK, built, edited, expected
from tests.helpers.jupyterlab import Lab, launched
from tests.helpers.reported import results_of, save
from tests.helpers.sensitivities import llama_sensitivity

pytestmark = pytest.mark.browser

MONITOR = """
import time, tlora, viz
from tests.helpers.adapted import adapted_model, token_rows
from transformers import TrainerCallback

class Slow(TrainerCallback):
    def on_step_end(self, *args, **kwargs):
        time.sleep(0.05)

monitor = viz.TrainingMonitor()
monitor.display()
options = {"batch_size": 4, "max_steps": 2000, "evaluation_limit": 0, "progress": False}
run = tlora.train(adapted_model(), token_rows(), callbacks=[monitor, Slow()], **options)
"""


def test_the_workbench_answers_drags_keys_and_tabs_while_a_cell_runs(server: str, chromium: str) -> None:
    """The others rebalance, the budget is exact, one drag is one step to undo, double click gives the module back."""
    with built(server, chromium, "quick.ipynb", BUILD.strip(), WORK) as bench:
        work = bench.lab.cell(WORK)
        work.locator(".jp-InputArea").click()
        bench.page.keyboard.press("Control+Enter")
        work.get_by_text("[*]:").wait_for()
        bench.drag(10, 40)
        bench.shows(edited({10: START[10] + 10}))
        assert "hand" in bench.module(10).get_attribute("class")
        for press, ranks in (("Undo", START), ("Redo", edited({10: START[10] + 10}))):
            bench.press(press)
            bench.shows(ranks)
        bench.module(10).dblclick()
        bench.shows(START)
        bench.view("directions")
        bench.root.locator("[data-tab=overlap]").click()
        assert bench.module(10).locator("text").text_content() != ""
        bench.view("allocation", "allocation")
        bench.root.get_by_text("Ranks by projection").wait_for()
        assert work.get_by_text("[*]:").is_visible()  # all that while the cell ran
        bench.press("uniform")  # which ends it
        work.get_by_text("[*]:").wait_for(state="detached")


def test_the_page_works_without_a_kernel_and_a_network(chromium: str, tmp_path: Path) -> None:
    """The slider gives at every step what `allocate` computes; the report has all panels; nothing is fetched."""
    viz.Workbench(llama_sensitivity(16), max_rank=64).page(tmp_path / "allocation.html")
    viz.report(save(results_of("30 layers"), tmp_path / "adapter"), tmp_path / "report.html")
    with launched(chromium) as browser:
        page = browser.new_context(offline=True, viewport={"width": 900, "height": 800}).new_page()
        said, fetched = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(f"file://{tmp_path / 'allocation.html'}")
        page.get_by_text("Rule and budget").click()
        slider = page.get_by_label("Temperature")
        slider.focus()
        for step in range(20, -1, -1):
            assert page.evaluate(RANKS) == expected(temperature=step / 20)
            slider.press("ArrowLeft")
        page.locator(".cell[data-k='8']").click()
        assert "layer 1 k_proj" in page.locator(".side").inner_text()
        page.get_by_role("tab", name="Sensitivity").click()
        page.locator(".cell[data-k='9']").hover()
        assert page.locator(".tip:not(.term)").inner_text().startswith("layer 1 v_proj")
        page.goto(f"file://{tmp_path / 'report.html'}")
        titles = []
        for stage in page.locator(".rail button").all():
            stage.click()
            titles += page.locator(".panel:not([hidden]) > summary").all_inner_texts()
        assert titles == ["Data", "Reproduce", "Spectra", "Sensitivity", "By projection", "Training", "Rank use"]
        page.locator("[data-stage=training]").click()
        assert page.locator("[data-panel=training] .chart path.curve").count() == 3
    assert said == []
    assert [url for url in fetched if not url.startswith(("file:", "blob:", "data:"))] == []


def test_the_monitor_draws_and_stops_training(lab: Lab) -> None:
    lab.write("monitor.ipynb", MONITOR.strip())
    cell = lab.cell("viz.TrainingMonitor(")
    cell.locator(".jp-InputArea").click()
    lab.page.keyboard.press("Control+Enter")
    stop = cell.get_by_role("button", name="Stop")
    stop.wait_for(timeout=120_000)
    cell.locator(".monitor .chart path.curve").first.wait_for(timeout=120_000)
    lab.page.wait_for_function("button => !button.disabled", arg=stop.element_handle(), timeout=120_000)
    stop.click()
    cell.get_by_text("Stopped after step").wait_for(timeout=120_000)
    cell.locator(".monitor .grid").first.wait_for(timeout=120_000)
    assert not lab.said()
