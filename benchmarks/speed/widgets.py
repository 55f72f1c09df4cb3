"""How long a person waits for a widget, for the 224 modules of LLaMA-2-7B.

    python -m benchmarks.speed.widgets            # the workbench, in JupyterLab and a real browser
    python -m benchmarks.speed.widgets --kernel   # the explorers, from a value set to the bytes of the new picture

In the browser a delay goes from the event of the pointer or the slider to the frame that shows its answer; the limits
are 50 ms (median) and 100 ms (95th percentile) for the map, 150 ms for the picture of a module, 500 ms while a cell
runs, and 15 changes of rank a second while dragging. In the kernel, a figure is a median over the moves of one control:
time on the clock, and time of this process's CPU, which other work on the machine changes less; the limit is 100 ms.
Scores and spectra are drawn at random in the shapes of the model; what they hold does not change how long it takes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import viz
from tests.browser.conftest import opened, served
from tests.helpers.sensitivities import llama_sensitivity
from tlora.calibration.sensitivity import Sensitivity
from tlora.calibration.spectrum import Spectrum
from tlora.subspaces.subspaces import Subspaces

RANK = 64
LIMIT = 0.1


def spectrum(modules: Sensitivity, generator: np.random.Generator) -> Spectrum:
    """Power laws over all input dimensions; q, k and v share an input, and so do gate and up."""
    inputs = {n: n.replace("k_proj", "q_proj").replace("v_proj", "q_proj") for n in modules.names}
    inputs = {n: source.replace("up_proj", "gate_proj") for n, source in inputs.items()}
    widths = {n: d_in for n, (_, d_in) in modules.shapes.items()}
    once = {n: torch.arange(1, widths[n] + 1).float() ** -generator.uniform(0.5, 2) for n in set(inputs.values())}
    values = {n: once[source] for n, source in inputs.items()}
    traces = {n: float(v.sum()) for n, v in values.items()}
    return Spectrum(modules.targets, values, traces, widths, inputs, "covariance", modules.meta)


def subspaces(modules: Sensitivity, kind: str, generator: torch.Generator) -> Subspaces:
    """Random bases of rank 64; they are as wide as their rank is times four, for the explorers never look at them."""
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


def explorers() -> dict[str, tuple[Any, dict[str, list[Any]]]]:
    """Every explorer, and values to set control by control."""
    modules, generator = llama_sensitivity(), torch.Generator().manual_seed(0)
    wc, w, random = (subspaces(modules, kind, generator) for kind in ("wc", "w", "random"))
    by_kind = viz.SpectrumExplorer(spectrum(modules, np.random.default_rng(0)), wc, random)
    alignment = viz.AlignmentExplorer(wc, w, random, progress=False)
    return {
        "SpectrumExplorer": (
            by_kind,
            {
                "layer": list(range(1, 32)),
                "rank": list(range(9, 41)),
                "projection": ["k_proj", "o_proj", "down_proj"] * 4,
                "kind": ["wc", "random", "covariance"] * 4,
            },
        ),
        "AlignmentExplorer": (alignment, {"rank": list(range(9, 41)), "right": ["random", "w"] * 5}),
    }


def measured(explorer: Any, control: str, values: list[Any]) -> list[tuple[float, float]]:
    """Seconds on the clock and of the CPU for each value."""
    times = []
    for value in values:
        picture, wall, cpu = explorer.image.value, time.perf_counter(), time.process_time()
        explorer.controls[control].value = value
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
        assert explorer.image.value != picture, (control, value, explorer.message.value)
    return times


def in_the_kernel() -> None:
    """Print the times of the explorers."""
    torch.set_num_threads(1)
    print(f"{'widget':20} {'control':12} {'moves':>5} {'clock':>9} {'CPU':>9} {'slowest':>9}")
    slow = []
    for name, (explorer, moves) in explorers().items():
        for control, values in moves.items():
            times = measured(explorer, control, values)
            wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
            worst = max(wall for wall, _ in times)
            print(
                f"{name:20} {control:12} {len(times):5} {1e3 * wall:6.1f} ms {1e3 * cpu:6.1f} ms {1e3 * worst:6.1f} ms"
            )
            if wall > LIMIT:
                slow.append(f"{name} {control}")
    print("every median is within 100 ms" if not slow else f"beyond 100 ms: {', '.join(slow)}")


BUILD = """
import torch, viz
from benchmarks.speed.widgets import subspaces
from tests.browser.conftest import opened, served
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
            document.querySelector('.tlora .side img').addEventListener('load', painted, {once: true});
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
    with tempfile.TemporaryDirectory() as home, served(Path(home), 6) as address, opened(address, chromium) as lab:
        lab.write("workbench.ipynb", BUILD.strip(), BUSY)
        lab.run("workbench.display()", 300)
        page = lab.page
        page.wait_for_selector(".tlora .side img:not([hidden])", timeout=120_000)
        page.wait_for_timeout(3000)
        page.evaluate(WATCH)
        slider = page.locator(".tlora").get_by_label("Temperature")
        centres = {k: _centre(page.locator(f".tlora .cell[data-k='{k}']")) for k in range(0, 224, 11)}

        def turn(step: int) -> None:
            slider.press("ArrowLeft" if step // 10 % 2 == 0 else "ArrowRight")

        def pick(step: int) -> None:
            page.mouse.move(*centres[11 * (step % 20)])
            page.mouse.down()
            page.mouse.up()

        def pull(step: int) -> None:
            page.mouse.move(centres[110][0], centres[110][1] - 4 * (1 + step % 20))

        report("temperature, map", delays(page, "input", "map", turn), 50, 100)
        report("click, picture of the module", delays(page, "pointerdown", "picture", pick, 500), 150, 150)
        page.mouse.move(*centres[110])
        page.mouse.down()
        report("drag, map", delays(page, "pointermove", "map", pull), 50, 100)
        page.evaluate(f"void ({RATE})(110).then((changes) => {{ window.changes = changes; }})")
        began = time.monotonic()
        step = 0
        while time.monotonic() - began < 3:
            step += 1
            page.mouse.move(centres[110][0], centres[110][1] - 4 * (1 + step % 20))
        page.wait_for_function("window.changes !== undefined")
        page.mouse.up()
        print(f"{'changes of rank a second, dragging':36} {page.evaluate('window.changes') / 3:8.1f}    limit 15")
        lab.cell("until =").locator(".jp-InputArea").click()
        page.keyboard.press("Control+Enter")
        page.wait_for_timeout(1000)
        report("temperature, map, while a cell runs", delays(page, "input", "map", turn), 500, 500)


def _centre(cell: Any) -> tuple[float, float]:
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", action="store_true", help="time the explorers in the kernel")
    kernel = parser.parse_args().kernel
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    in_the_kernel() if kernel else in_the_browser()


if __name__ == "__main__":
    main()
