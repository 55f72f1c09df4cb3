"""The workbench in JupyterLab, as a person uses it, with the 224 modules of LLaMA-2-7B."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import playwright.sync_api

import tlora
from tests.helpers.jupyterlab import Lab, opened
from tests.helpers.sensitivities import llama_sensitivity

BUILD = """
import torch, viz
from tests.helpers.sensitivities import llama_sensitivity
from tests.helpers.subspaces import random_subspaces
scores = llama_sensitivity(16)
one, other = (random_subspaces(scores, "wc", torch.Generator().manual_seed(seed)) for seed in (0, 1))
workbench = viz.Workbench(scores, one, other=other)
workbench.display()
"""
WORK = "import time\nwhile workbench.state.options.temperature > 0: time.sleep(0.001); sum(range(20_000))"
RANKS = "[...document.querySelectorAll('.tlora .cell')].sort((a, b) => a.dataset.k - b.dataset.k)" + (
    ".map((cell) => Number(cell.getAttribute('aria-label').match(/rank (\\d+)/)[1]))"
)


class Bench:
    """What a person does with the workbench."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.page = lab, lab.page
        self.root = lab.page.locator(".tlora")

    def ranks(self) -> list[int]:
        found: list[int] = self.page.evaluate(RANKS)
        return found

    def shows(self, ranks: list[int], seconds: float = 60) -> None:
        """Wait until the map shows these ranks."""
        try:
            self.page.wait_for_function(
                f"ranks => ranks.every((r, k) => r === {RANKS}[k])", arg=ranks, timeout=1000 * seconds
            )
        except playwright.sync_api.TimeoutError:
            assert self.ranks() == ranks  # says which of them differ

    def module(self, k: int) -> Any:
        return self.root.locator(f".cell[data-k='{k}']")

    def middle(self, k: int) -> tuple[float, float]:
        self.module(k).scroll_into_view_if_needed()
        box = self.module(k).bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def open(self, menu: str) -> None:
        """Open a menu by its word if it is closed."""
        word = self.root.locator("details.fold summary", has_text=menu)
        if word.locator("..").get_attribute("open") is None:
            word.click()

    def view(self, stage: str, panel: str = "") -> None:
        """Open the view of a stage, and a panel there that is closed."""
        self.root.locator(f"[data-stage={stage}]").click()
        if panel:
            self.root.locator(f"[data-panel={panel}]:not([open]) summary").click()

    def tabs(self) -> Iterator[Any]:
        """The tabs of the map, stage by stage; each view is opened."""
        for stage in ("spectra", "directions", "allocation"):
            self.view(stage)
            yield from self.root.locator("[data-tab]:not([hidden])").all()

    def press(self, name: str) -> None:
        self.root.get_by_role("button", name=name, exact=True).click()

    def drag(self, k: int, pixels: float, steps: int = 6) -> None:
        x, y = self.middle(k)
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x, y - pixels, steps=steps)
        self.page.mouse.up()

    def selected(self) -> list[int]:
        found: list[int] = self.page.evaluate(
            "[...document.querySelectorAll('.tlora .cell[aria-selected=true]')].map((cell) => Number(cell.dataset.k))"
        )
        return sorted(found)


@contextmanager
def built(server: str, chromium: str, name: str, *cells: str) -> Iterator[Bench]:
    """The workbench of a notebook of these cells, whose first one shows it, with the menu of its rule open."""
    with opened(server, chromium) as lab:
        lab.write(name, *cells)
        lab.run("workbench.display()", 240)
        lab.page.wait_for_selector(".tlora .cell", timeout=60_000)
        bench = Bench(lab)
        bench.open("Rule and budget")
        yield bench


def expected(**options: Any) -> list[int]:
    return list(tlora.allocate(llama_sensitivity(16), **({"rank": 8, "max_rank": 64} | options)).ranks.values())


def edited(ranks: dict[int, int]) -> list[int]:
    """The ranks after those of a few modules were set by hand."""
    names = llama_sensitivity().names
    allocation = tlora.allocate(llama_sensitivity(16), rank=8, max_rank=64)
    return list(allocation.edit({names[k]: rank for k, rank in ranks.items()}).ranks.values())


START = expected()
