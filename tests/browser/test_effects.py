"""The panel "Side effects" on a page without a kernel: texts by set, and the slider over the adapter's scale."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

import tlora
import viz
from tests.helpers.jupyterlab import opened_file
from tests.helpers.results import base, calibration, effects, rescaling, subspaces

pytestmark = [pytest.mark.browser, pytest.mark.rest]


@pytest.fixture(scope="module", params=["light", "dark"])
def page(request: pytest.FixtureRequest, chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page in both themes; any error of its script fails."""
    bench = viz.Workbench(calibration(), subspaces(), effects=effects(), rescaling=rescaling(), rank=2)
    file = bench.page(tmp_path_factory.mktemp("page") / "effects.html", texts=True)
    with opened_file(chromium, file, request.param) as page:
        page.locator("[data-stage=answers]").click()
        yield page


def test_texts_of_one_set(page: Any) -> None:
    strips = page.locator("[data-panel=effects] .strip")
    frame = effects().to_frame()
    assert strips.count() == len(frame)
    page.locator("[data-panel=effects] .strips select").select_option("more")
    (row,) = frame.query("set == 'more'").itertuples()
    expect(page.locator("[data-panel=effects] .set")).to_have_text(
        [f"more {row.loss_change:+.2f}".replace("-", "\u2212")]
    )
    worst = page.locator("[data-panel=effects] .strip .token", has_text=row.lost_most.strip())
    assert "nats, from" in worst.first.get_attribute("title")
    page.locator("[data-panel=effects] .strips select").select_option("")


def test_the_slider_and_the_best_point_within_a_limit_write_an_adapter(page: Any, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found, code = rescaling(), page.locator("[data-panel=effects] .copied code")
    page.locator("[data-panel=effects] .rescaling [type=range]").fill("4")
    expect(page.locator("[data-panel=effects] .rescaling .finding")).to_contain_text("Scale 0.5")
    exec(code.text_content(), {"rescaling": found})
    adapted = tlora.load_adapter("milder", base())
    assert adapted.peft_config["default"].lora_alpha or adapted.peft_config["default"].alpha_pattern
    tlora.detach(adapted)
    for limit in (0.0, 0.1, 9.0):
        page.locator("[data-panel=effects] .rescaling [type=number]").fill(str(limit))
        page.locator("[data-panel=effects] .rescaling [type=number]").press("Enter")
        within = [point for point in found.points if found.lost(point) <= limit]
        best = min(within, key=lambda point: found.loss(point, "task"))
        expect(page.locator("[data-panel=effects] .rescaling .finding")).to_contain_text(best.label[1:])
        expect(page.locator("[data-panel=effects] .rescaling .finding")).to_contain_text("the lowest task loss")
    page.locator("[data-panel=effects] .rescaling select").select_option(label="layer 1")
    expect(code).to_contain_text("# without layer 1")
    page.locator("[data-panel=effects] .rescaling [type=range]").fill("0")
    expect(code).to_contain_text("nothing to write")


def test_axe_finds_nothing_serious(page: Any) -> None:
    found = Axe().run(page).response["violations"]
    assert not [each["id"] for each in found if each["impact"] in ("serious", "critical")]
