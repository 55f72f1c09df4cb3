"""How long a person waits for a widget, for the 224 modules of LLaMA-2-7B.

    python -m benchmarks.speed.widgets    # the workbench, in JupyterLab and a real browser

A delay is the time from the event of the pointer or the slider to the frame that shows its answer. The limits are 50 ms
(median) and 100 ms (95th percentile) for the map, 150 ms for the charts of a module, 500 ms while a cell runs, and 15
changes of rank a second while dragging. Scores and spectra are random, in the shapes of the model: their values do not
change how long it takes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.browser.conftest import opened, served
from tlora.calibration.sensitivity import Sensitivity
from tlora.subspaces.subspaces import Subspaces

RANK = 64


def subspaces(modules: Sensitivity, kind: str, generator: torch.Generator) -> Subspaces:
    """Random bases of rank 64; they are as wide as their rank is times four, for the workbench never looks at them."""
    bases = {n: torch.linalg.qr(torch.randn(4 * RANK, RANK, generator=generator)).Q.T for n in modules.names}
    falling = 1 / torch.arange(1, RANK + 1).float()
    each = lambda values: {n: values.clone() for n in bases}  # noqa: E731
    return Subspaces(
        targets=modules.targets,
        kind=kind,
        max_rank=RANK,
        bases=bases,
        singular_values=each(falling),
        numerical_rank=dict.fromkeys(bases, RANK),
        row_variance=each(falling),
        traces=dict.fromkeys(bases, float(2 * falling.sum())),
        fingerprints=each(torch.ones(16)),
        meta=modules.meta,
    )


BUILD = """
import torch, viz
from benchmarks.speed.widgets import subspaces
from tests.helpers.sensitivities import llama_sensitivity
scores = llama_sensitivity(16)
workbench = viz.Workbench(scores, subspaces(scores, "wc", torch.Generator().manual_seed(0)))
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
RATE = """(k) => new Promise((done) => {
    let changes = 0;
    const seen = new MutationObserver(() => { changes++; });
    const text = document.querySelector(`.tlora .cell[data-k="${k}"] text`);
    seen.observe(text, {childList: true, characterData: true, subtree: true});
    setTimeout(() => { seen.disconnect(); done(changes); }, 3000);
})"""


def in_the_browser() -> None:
    """Print the delays of the workbench."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    if chromium is None:
        raise SystemExit("no Chromium or Chrome on the PATH")
    with tempfile.TemporaryDirectory() as home, served(Path(home)) as address, opened(address, chromium) as lab:
        lab.write("workbench.ipynb", BUILD.strip(), BUSY)
        lab.run("workbench.display()", 300)
        page = lab.page
        page.wait_for_selector(".tlora .module .chart", timeout=120_000)
        page.wait_for_timeout(3000)
        page.evaluate(WATCH)
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


def report(name: str, found: list[float], median: float, tail: float) -> None:
    """Print a line: median, 95th percentile and their limits."""
    low, high = np.percentile(found, [50, 95])
    print(f"{name:36} {low:8.0f} ms {high:6.0f} ms    limits {median:.0f} and {tail:.0f} ms")


def main() -> None:
    """Print the load of the machine, then the times."""
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    in_the_browser()


if __name__ == "__main__":
    main()
