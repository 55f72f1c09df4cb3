"""How long a person waits for a widget, in JupyterLab and a real browser.

    python -m benchmarks.speed.widgets --only map            # map and charts, the 224 modules of LLaMA-2-7B
    python -m benchmarks.speed.widgets --only attribution    # SmolLM2-135M, modules switched off, idle and in training

A delay is the time from the event of the pointer or the slider to the frame that shows its answer. The limits are 50 ms
(median) and 100 ms (95th percentile) for the map, 150 ms for the charts of a module, 500 ms while a cell runs, and 15
changes of rank a second while dragging; and a median of 1 s from a click on a module to what each token loses without
it. Scores, spectra and the adapter are random, in the shapes of the model: values do not change how long it takes.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.jupyterlab import Lab, opened, served

CLICKS = 30


BUILD = """
import torch, viz
from tests.helpers.sensitivities import llama_sensitivity
from tests.helpers.subspaces import random_subspaces
scores = llama_sensitivity(16)
workbench = viz.Workbench(scores, random_subspaces(scores, "wc", torch.Generator().manual_seed(0)))
workbench.display()
"""
BUSY = "import time\nuntil = time.monotonic() + 120\nwhile time.monotonic() < until: sum(range(10_000))"
WATCH = """() => {
    let began = null;
    window.arm = (type, what) => {
        began = null;
        window.delay = null;
        document.addEventListener(type, (event) => { began ??= event.timeStamp; }, {capture: true, once: true});
        const painted = () => requestAnimationFrame(() => setTimeout(() => {
            if (began !== null) window.delay ??= performance.now() - began;
        }));
        if (what === 'picture') {
            const seen = new MutationObserver(() => { seen.disconnect(); painted(); });
            seen.observe(document.querySelector('.tlora .module'), {subtree: true, childList: true});
        } else {
            const seen = new MutationObserver(() => { seen.disconnect(); painted(); });
            seen.observe(document.querySelector('.tlora svg'), {subtree: true, characterData: true, childList: true});
        }
    };
}"""
ATTRIBUTION = """
import tlora, viz
from benchmarks.speed.attribution import random_adapter
model, tokenizer = tlora.load_model("smollm2-135m")
task = tlora.load_task("data/smart_home", tokenizer)
calibration = tlora.calibrate(model, task.calibration(4), progress=False)
adapted = random_adapter(model)
attribution = tlora.attribute(adapted, task, limit=1, points=2, answers=False, progress=False)
workbench = viz.Workbench(calibration, attribution=attribution, adapted=adapted, task=task)
workbench.display()
"""
TRAIN = "tlora.train(adapted, task, max_steps=500, batch_size=4, evaluation_limit=0, learning_rate=1e-4)"
ANSWERED = """() => {
    window.delay = null;
    let began = null;
    document.addEventListener('pointerup', (event) => { began = event.timeStamp; }, {capture: true, once: true});
    const finding = document.querySelector('.attribution .finding');
    const seen = new MutationObserver(() => {
        if (began === null || !finding.textContent.includes(' costs ')) return;
        seen.disconnect();
        requestAnimationFrame(() => setTimeout(() => { window.delay = performance.now() - began; }));
    });
    seen.observe(finding, {childList: true, characterData: true, subtree: true});
}"""
RATE = """(k) => new Promise((done) => {
    let changes = 0;
    const seen = new MutationObserver(() => { changes++; });
    const text = document.querySelector(`.tlora .cell[data-k="${k}"] text`);
    seen.observe(text, {childList: true, characterData: true, subtree: true});
    setTimeout(() => { seen.disconnect(); done(changes); }, 3000);
})"""


@contextmanager
def browser_and_lab(name: str, *cells: str) -> Iterator[Lab]:
    """JupyterLab in a browser with a notebook of these cells."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    if chromium is None:
        raise SystemExit("no Chromium or Chrome on the PATH")
    with tempfile.TemporaryDirectory() as home, served(Path(home)) as address, opened(address, chromium) as lab:
        lab.write(name, *cells)
        yield lab


def in_the_browser() -> None:
    """Print the delays of the workbench."""
    with browser_and_lab("workbench.ipynb", BUILD.strip(), BUSY) as lab:
        lab.run("workbench.display()", 300)
        page = lab.page
        page.wait_for_selector(".tlora .module .chart", timeout=120_000)
        page.wait_for_timeout(3000)
        page.evaluate(WATCH)
        page.locator(".tlora").get_by_text("Rule and budget").click()
        slider = page.locator(".tlora").get_by_label("Temperature")
        centers = {k: _center(page.locator(f".tlora .cell[data-k='{k}']")) for k in range(0, 224, 11)}

        def turn(step: int) -> None:
            slider.press("ArrowLeft" if step // 10 % 2 == 0 else "ArrowRight")

        def pick(step: int) -> None:
            page.mouse.move(*centers[11 * (step % 20)])
            page.mouse.down()
            page.mouse.up()

        def pull(step: int) -> None:
            page.mouse.move(centers[110][0], centers[110][1] - 4 * (1 + step % 20))

        report("temperature, map", delays(page, "input", "map", turn), 50, 100)
        report("click, charts of the module", delays(page, "pointerdown", "picture", pick, 500), 150, 150)
        page.mouse.move(*centers[110])
        page.mouse.down()
        report("drag, map", delays(page, "pointermove", "map", pull), 50, 100)
        page.evaluate(f"void ({RATE})(110).then((changes) => {{ window.changes = changes; }})")
        began = time.monotonic()
        step = 0
        while time.monotonic() - began < 3:
            step += 1
            page.mouse.move(centers[110][0], centers[110][1] - 4 * (1 + step % 20))
        page.wait_for_function("window.changes !== undefined")
        page.mouse.up()
        print(f"{'changes of rank a second, dragging':36} {page.evaluate('window.changes') / 3:8.1f}    limit 15")
        lab.cell("until =").locator(".jp-InputArea").click()
        page.keyboard.press("Control+Enter")
        page.wait_for_timeout(1000)
        report("temperature, map, while a cell runs", delays(page, "input", "map", turn), 500, 500)


def switching() -> None:
    """Print the delays from a click on a module to the strip without it."""
    with browser_and_lab("attribution.ipynb", ATTRIBUTION.strip(), TRAIN) as lab:
        lab.run("workbench.display()", 900)
        lab.page.locator("[data-stage=answers]").click()
        cells = [k for k in range(210) if lab.page.locator(f".attribution .cell[data-k='{k}']").count()]
        random.Random(0).shuffle(cells)
        click_module(lab.page, cells.pop())  # the first one prepares the model
        report("click, strip", [click_module(lab.page, cells.pop()) for _ in range(CLICKS)], 1000, None)
        lab.cell("tlora.train").locator(".jp-InputArea").click()
        lab.page.keyboard.press("Control+Enter")
        lab.page.wait_for_timeout(5000)
        report("click, strip, training", [click_module(lab.page, cells.pop()) for _ in range(CLICKS)], None, None)


def click_module(page: Any, k: int) -> float:
    """Milliseconds from the click that switches a module off to the frame with the answer; then it is on again."""
    page.evaluate(ANSWERED)
    page.locator(f".attribution .cell[data-k='{k}']").click()
    page.wait_for_function("window.delay !== null", timeout=120_000)
    page.keyboard.press("Escape")
    return float(page.evaluate("window.delay"))


def _center(cell: Any) -> tuple[float, float]:
    box = cell.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def delays(page: Any, event: str, what: str, act: Any, pause: int = 150) -> list[float]:
    """Milliseconds from the event to the frame with the answer, of forty acts."""
    found = []
    for step in range(40):
        page.evaluate(f"arm('{event}', '{what}')")
        act(step)
        page.wait_for_function("window.delay !== null", timeout=30_000)
        found.append(float(page.evaluate("window.delay")))
        page.wait_for_timeout(pause)
    return found


def report(name: str, found: list[float], median: float | None, tail: float | None) -> None:
    """Print a line: median, 95th percentile and their limits."""
    low, high = np.percentile(found, [50, 95])
    limits = " and ".join(f"{limit:.0f}" for limit in (median, tail) if limit)
    print(f"{name:36} {low:8.0f} ms {high:6.0f} ms" + (f"    limits {limits} ms" if limits else ""), flush=True)


def main() -> None:
    """Print the load of the machine, then the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    for name in parser.parse_args().only:
        print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
        PARTS[name]()


PARTS = {"map": in_the_browser, "attribution": switching}


if __name__ == "__main__":
    main()
