"""Train both in a real JupyterLab: at the first click, watched, stopped, changed meanwhile, and the winner saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.helpers.bench import Bench, built

pytestmark = [pytest.mark.browser, pytest.mark.rest]

BUILD = """
import tlora, viz, warnings
from tests.helpers.jobs import task
from tests.helpers.models import tiny_model
warnings.simplefilter("ignore")
model, requests = tiny_model("llama"), task()
calibration = tlora.calibrate(model, requests.calibration(8), progress=False)
subspaces = tlora.task_subspaces(model, calibration, max_rank=8, progress=False)
training = {"steps": 300, "seeds": [0], "learning_rate": 3e-3, "batch_size": 4}
workbench = viz.Workbench(calibration, subspaces, model=model, task=requests, training=training, rank=2)
adapted = tlora.attach(model, subspaces, workbench.allocation)
workbench.display()
"""
WORK = "import time\nwhile workbench.race is None: time.sleep(0.05)"
PRINT = "print(workbench.race.runs['kept'][0].steps, workbench.race.runs['new'][0].steps)"
STEP = (
    """name => Number(document.querySelector(`.tlora .arm[data-arm="${name}"]`)?.textContent"""
    """.match(/step (\\d+)/)?.[1] ?? 0)"""
)


@pytest.fixture
def bench(server: str, chromium: str) -> Iterator[Bench]:
    with built(server, chromium, "race.ipynb", BUILD.strip(), WORK, PRINT) as it:
        yield it


def test_both_are_trained_watched_stopped_and_saved(bench: Bench, tmp_path: Path) -> None:
    page, root = bench.page, bench.root
    steps = root.get_by_role("spinbutton", name="steps")
    steps.fill("4")
    bench.press("Train both")  # the first click, with an adapter on the model
    root.get_by_text("4 steps each at learning rate 0.003, about 10 seconds").wait_for(timeout=60_000)
    root.get_by_role("button", name="Save winner").wait_for(timeout=60_000)
    assert "uniform" in root.locator(".train .status").inner_text()
    assert root.locator(".answers tbody tr").count() == 6
    assert root.locator(".answers th[scope=col]").all_inner_texts()[-2:] == ["uniform", "kept"]
    steps.fill("1200")  # so that the first loss in between, after a quarter of them, comes after both are stopped
    bench.press("uniform")
    page.wait_for_function("[...document.querySelectorAll('.tlora .cell')].every(c => c.ariaLabel.includes('rank 2'))")
    bench.press("Train both")
    page.wait_for_function(f"({STEP})('kept') > 3", timeout=60_000)
    root.get_by_role("tab", name="Update, kept").click()  # on the map, as it trains
    before = bench.module(3).locator("text").text_content()
    page.wait_for_function(
        "old => document.querySelector(`.tlora .cell[data-k='3'] text`).textContent !== old", arg=before, timeout=30_000
    )
    expect(root.locator(".curves path")).to_have_count(4)
    work = bench.lab.cell(WORK)  # a cell that runs keeps nothing waiting
    work.locator(".jp-InputArea").click()
    page.keyboard.press("Control+Enter")
    work.get_by_text("[*]:").wait_for()
    bench.press("Stop kept")
    root.get_by_text(", stopped").wait_for(timeout=30_000)
    bench.press("by score")  # what comes after; what trains stays what it was
    page.wait_for_function("[...document.querySelectorAll('.tlora .cell')].some(c => !c.ariaLabel.includes('rank 2'))")
    page.wait_for_function(f"({STEP})('new') > ({STEP})('kept') + 5", timeout=60_000)
    assert root.get_by_role("button", name="Save winner").is_hidden()
    page.screenshot(path=tmp_path / "race.png")
    bench.press("Stop new")
    root.get_by_role("button", name="Save winner").wait_for(timeout=30_000)
    assert "not evaluated after the same number of steps" in root.locator(".train .status").inner_text()
    expect(root.locator(".train.past .other")).to_contain_text("other ranks than those that were trained")
    expect(root.locator(".arm[data-arm=new] .ranks")).to_contain_text("Every module gets rank 2")
    expect(root.locator(".races li")).to_have_count(2)  # both races, each with its two lines of Python
    expect(root.locator(".races code")).to_have_count(4)
    bench.press("Race 1")  # which is what the map shows again
    expect(root.locator(".train .status")).to_contain_text("uniform")
    expect(root.locator(".train.past")).to_have_count(0)
    expect(root.locator(".arm[data-arm=uniform] code")).to_contain_text("tlora.allocate(")
    expect(root.locator(".arm .outcome .loss")).to_have_count(2)
    bench.press("Race 2")
    expect(root.locator(".train .status")).to_contain_text("kept and new: not decided")
    bench.press("Compare what it shows")
    expect(root.locator(".train .status")).to_contain_text("uniform")
    bench.press("Undo")
    expect(root.locator(".train.past")).to_have_count(0)
    expect(root.locator(".train .status")).to_contain_text("kept and new: not decided")
    work.get_by_text("[*]:").wait_for(state="detached", timeout=30_000)
    bench.press("Save winner")
    root.get_by_text("Saved: tlora.load_adapter('workbench-winner', model)").wait_for(timeout=30_000)
    bench.lab.run(PRINT)
    a, b = map(int, bench.lab.printed(PRINT).split())
    assert 3 < a < b < 300
    assert bench.lab.errors == []
