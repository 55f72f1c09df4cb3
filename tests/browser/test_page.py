"""The exported page computes what the kernel would: the same requests lead to the same allocations."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from playwright.sync_api import expect

import tlora
import viz
from tests.helpers.jupyterlab import launched
from tests.helpers.results import allocation, calibration, run
from tests.helpers.sensitivities import llama_sensitivity
from tests.helpers.sensitivities import sensitivity as by_hand
from viz.widgets.results import Results

pytestmark = [pytest.mark.browser, pytest.mark.rest]

SHAPES = [(64, 32), (16, 32), (32, 64)] * 4
TIED = by_hand([8.0, 1.0, 3.0, 4.0, 2.0, 6.0, 1.0, 1.0, 0.0, 4.0, 4.0, 0.3], SHAPES)


class Gradient(NamedTuple):
    """Directions as `tlora.allocate` reads them, with ties within and between modules."""

    kind: str
    shapes: dict[str, tuple[int, int]]
    singular_values: dict[str, torch.Tensor]


ENERGIES = [[float(max(9 - k - j // 2, 0)) for j in range(5 + k)] for k in range(len(TIED.names))]
GRADIENT = Gradient(
    "g", TIED.shapes, {n: torch.tensor(one).sqrt() for n, one in zip(TIED.names, ENERGIES, strict=True)}
)
WORKBENCHES: list[tuple[Any, dict[str, Any], int]] = [
    (TIED, {"rank": 4}, 150),
    (TIED, {"rank": 4, "budget": "parameters", "scaling": "allocated", "alpha": 6.5}, 100),
    (TIED, {"rank": 3, "min_rank": 0, "max_rank": 9, "pinned": {"layers.0.q_proj": 5}, "exclude_modules": [1]}, 100),
    (llama_sensitivity(16), {"rank": 8, "max_rank": 64}, 50),
    (TIED, {"rank": 4, "by": "captured", "min_rank": 0}, 100),
    (TIED, {"rank": 3, "by": "captured", "budget": "parameters", "adapt_scales": False}, 100),
]
MIXTURE = replace(
    TIED,
    targets={
        name: replace(target, part="experts", experts=4) if "down" in name else target
        for name, target in TIED.targets.items()
    },
)
WORKBENCHES += [
    (MIXTURE, {"rank": 4}, 60),
    (MIXTURE, {"rank": 4, "budget": "parameters"}, 60),
    (MIXTURE, {"rank": 4, "by": "captured", "min_rank": 0}, 60),
]
EXACT = ("ranks", "reasons", "most", "rank", "undo", "redo")


def workbench(scores: Any, options: dict[str, Any]) -> viz.Workbench:
    """One that begins with these arguments of `tlora.allocate`."""
    if "by" not in options:
        return viz.Workbench(scores, **options)
    allocation = tlora.allocate(scores, **options, subspaces=GRADIENT)
    return viz.Workbench.from_results(Results(sensitivity=scores, allocation=allocation))


def requests(modules: int, count: int) -> list[dict[str, Any]]:
    """Drags, several modules at once, sliders and steps back, sensible and not."""
    draw, made = random.Random(modules + count), []
    for i in range(count):
        some = draw.sample(range(modules), draw.choice([1, 1, 1, 2, 3]))
        call, args = draw.choice(
            [
                *[("set_rank", {"modules": some, "rank": draw.randint(1, 25)})] * 6,
                ("release", {"modules": some}),
                ("leave_out", {"modules": some}),
                ("set", {"rank": draw.randint(1, 10)}),
                ("set", {"temperature": draw.randint(0, 20) / 20}),
                (draw.choice(["undo", "redo"]), {}),
            ]
        )
        gesture = draw.choice([None, f"drag {i // 4}"]) if call.startswith("set") else None
        made.append({"call": call, "args": args, "gesture": gesture, "id": i})
    return made


def data_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(re.search(r"renderPage\((\{.*\}), document", path.read_text())[1])
    return found


@pytest.fixture(scope="module")
def page(chromium: str) -> Iterator[Any]:
    """A page of the browser; any error of a script fails."""
    with launched(chromium) as browser:
        page, errors = browser.new_page(), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
    assert not errors


@pytest.fixture(scope="module")
def script(page: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A page that has the script of an exported one."""
    file = viz.Workbench(TIED).page(tmp_path_factory.mktemp("page") / "page.html")
    file.write_text(re.sub(r"renderPage\(\{.*\}, document.*", "window.offline = offline;", file.read_text()))
    page.goto(file.as_uri())
    page.wait_for_function("() => Boolean(window.offline)")
    return page


@pytest.mark.parametrize(("scores", "options", "count"), WORKBENCHES)
def test_requests_have_the_answers_of_the_kernel(
    scores: Any, options: dict[str, Any], count: int, script: Any, tmp_path: Path
) -> None:
    """In all 500: ranks, what decided each of them, and scalings. Ties and refusals are among them."""
    it = workbench(scores, options)
    asked, refused = requests(len(it.names), count), 0
    answers = script.evaluate(
        "([data, asked]) => { const model = offline(data);"
        " return asked.map((one) => { model.send(one); return model.get('current'); }); }",
        [data_of(it.page(tmp_path / "page.html")), asked],
    )
    for request, answer in zip(asked, answers, strict=True):
        it._answer(it.widget, request, [])
        expected = it.widget.current
        assert {name: answer.get(name, 0) for name in EXACT} == {name: expected[name] for name in EXACT}, request
        for name in ("scalings", "ideals"):
            np.testing.assert_allclose(np.array(answer[name], float), np.array(expected[name], float), 6e-3)
        assert bool(answer.get("message")) == bool(expected.get("message")), request
        refused += bool(answer.get("message"))
        made = eval(answer["code"], {"tlora": tlora, "calibration": it, "allocation": it.kept})
        assert [made.ranks.get(name, 0) for name in it.names] == answer["ranks"]
    assert refused < 2 * count / 3
    assert (refused > 0) == (scores in (TIED, MIXTURE))


def test_the_costs_are_those_of_the_shapes(page: Any, tmp_path: Path) -> None:
    """Worked out by hand for LLaMA-2-7B: A uniform at rank 8, B at rank 16; LoRA at rank 32 is the published count."""
    it = viz.Workbench(llama_sensitivity(), temperature=0)
    it.set(rank=16)
    b = 32 * (4 * 4096 + 2 * 11008 + 4096)
    page.goto(it.page(tmp_path / "page.html").as_uri())
    page.get_by_text("Rule and budget").click()
    table = page.locator(".fold table")
    assert table.locator("tr", has_text="trainable").inner_text().split("\t")[1:3] == [f"{8 * b:,}", f"{16 * b:,}"]
    sizes = [f"{8 * 8 * b / 1e6:.3g} MB", f"{8 * 16 * b / 1e6:.3g} MB", "200 %"]
    assert table.locator("tr", has_text="AdamW").inner_text().replace("\xa0", " ").split("\t")[1:4] == sizes
    slider = page.get_by_role("slider", name="Rank")
    slider.fill("32")
    assert "79,953,920" in table.inner_text()
    assert "224 of 224 modules changed, 5,376 ranks more and 0 fewer" in page.locator(".moved").inner_text()


def test_a_run_of_other_ranks_is_not_on_the_map(page: Any, tmp_path: Path) -> None:
    parts = {"sensitivity": calibration().sensitivity, "run": run()}
    own = viz.Workbench.from_results(Results(**parts, allocation=allocation()))
    other = viz.Workbench(calibration(), run=run(), rank=4)
    used, words = page.get_by_role("tab", name="Rank used"), page.get_by_text("directions for 99 % of the update")
    refusal = page.get_by_text("trained with other ranks than these")
    for bench, shows in ((own, True), (other, False)):
        page.goto(bench.page(tmp_path / "page.html").as_uri())
        expect(used).to_be_visible(visible=shows)
        page.get_by_text("More", exact=True).click()
        expect(words).to_have_count(int(shows))
        expect(refusal).to_have_count(int(not shows))


def test_a_cell_is_dragged_on_a_page_of_any_width(page: Any, tmp_path: Path) -> None:
    it = viz.Workbench(llama_sensitivity(16), max_rank=64)
    ranks = "[...document.querySelectorAll('.cell')].map((c) => Number(c.ariaLabel.match(/rank (\\d+)/)[1]))"
    page.goto(it.page(tmp_path / "page.html").as_uri())
    for width in (1280, 900, 400):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")
        before = page.evaluate(ranks)
        cell = page.locator(".cell[aria-selected=true]")
        cell.scroll_into_view_if_needed()
        box = cell.bounding_box()
        page.mouse.move(box["x"] + 5, box["y"] + 5)
        page.mouse.down()
        page.mouse.move(box["x"] + 5, box["y"] + 65, steps=5)
        page.mouse.up()
        after = page.evaluate(ranks)
        assert sum(after) == 8 * 224
        assert min(a - b for a, b in zip(after, before, strict=True)) == -15
        assert sum(a > b for a, b in zip(after, before, strict=True)) > 10
        page.screenshot(path=tmp_path / f"{width}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.get_by_role("button", name="Undo").click()
        assert page.evaluate(ranks) == before
