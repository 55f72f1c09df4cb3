"""The panel "Reads" on a page without a kernel: a module, a direction, a sample, by pointer and by key."""

from __future__ import annotations

import dataclasses
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

import viz
from tests.helpers.bench import built
from tests.helpers.jupyterlab import opened_file
from tests.helpers.results import activations, calibration, subspaces
from tlora.explanation.direction_activations_result import DirectionActivations
from viz.widgets.panels.reads import reading

pytestmark = [pytest.mark.browser, pytest.mark.rest]


BUILD = """
import viz
from tests.helpers.results import activations, calibration, subspaces
workbench = viz.Workbench(calibration(), subspaces(), activations=activations(), rank=2)
workbench.display()
"""


@pytest.fixture(scope="module", params=["light", "dark"])
def page(request: pytest.FixtureRequest, chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page in both themes; any error of its script fails."""
    bench = viz.Workbench(calibration(), subspaces(), activations=activations(), rank=2)
    file: Path = bench.page(tmp_path_factory.mktemp("page") / "reads.html", texts=True)
    with opened_file(chromium, file, request.param) as page:
        page.get_by_role("button", name="compare them").click()  # of the words on the card of the module
        yield page


def as_shown(k: int) -> DirectionActivations:
    """The activations of a module as rounded to a byte each, which changes the order of some tokens."""
    found, name, sent = activations(), calibration().names[k], reading(activations(), calibration().names, k)
    levels = np.frombuffer(b64decode(sent["values"]), np.int8).reshape(len(sent["scales"]), -1)
    z = torch.from_numpy(levels * np.array(sent["scales"])[:, None])[:-1]
    return dataclasses.replace(found, z=found.z | {name: z.unflatten(0, (len(found.kinds), -1)).half()})


def shows_ends(page: Any, k: int, kind: int, direction: int) -> None:
    """Both ends as the table of `DirectionActivations.top` has them."""
    found = as_shown(k)
    table = found.top(calibration().names[k], direction, k=5, kind=found.kinds[kind])
    cell = page.locator(f".reads .ends[data-row='{direction - 1}'][data-column='{kind}']")
    for place, end in enumerate("+-"):
        rows = table[table["end"] == end]
        line = cell.locator(".line").nth(place)
        counts = [int(text[1:]) for text in line.locator(".chip .times").all_text_contents()]
        tokens = line.locator(".token").all_text_contents()
        assert set(zip(tokens, counts, strict=True)) == set(zip(rows["token"], rows["count"], strict=True))
        assert tokens[0] == rows["token"].iloc[0]


def test_in_a_notebook_the_kernel_sends_the_module_that_is_selected(server: str, chromium: str) -> None:
    # first in this file: the other tests keep a browser open, and there can be one at a time
    with built(server, chromium, "reads.ipynb", BUILD.strip()) as bench:
        bench.view("directions", "reads")
        heading = bench.root.locator(".reads h3")
        for k in (6, 3):
            bench.module(k).click()
            target = calibration().targets[calibration().names[k]]
            expect(heading).to_have_text(f"layer {target.layer} {target.projection}")
        shows_ends(bench.page, 3, 1, 2)
        rank = bench.ranks()[3]
        bench.drag(3, 8)
        expect(bench.root.locator(".reads .cut")).to_contain_text(f"rank {rank + 2}:")
        bench.root.locator(".reads .ends").first.click()
        expect(bench.root.locator(".reads .sample")).to_have_count(3)
        bench.root.locator("[data-panel=reads] summary").click()
        expect(bench.root.locator(".reads")).to_have_count(0)
        assert not bench.lab.said()


def test_a_module_a_direction_and_a_sample(page: Any) -> None:
    heading = page.locator(".reads h3")
    for k in (5, 0):
        page.locator(f".cell[data-k='{k}']").click()
        target = calibration().targets[calibration().names[k]]
        expect(heading).to_have_text(f"layer {target.layer} {target.projection}")
        for kind in (0, 1):
            for direction in (1, 4):
                shows_ends(page, k, kind, direction)
    expect(page.locator(".reads .cut")).to_contain_text("rank")
    page.locator(".reads .ends[data-row='1'][data-column='0']").click()
    samples = page.locator(".reads .sample")
    expect(samples).to_have_count(3)
    strips = {n: "".join(activations().strip(n, calibration().names[0], 2)["token"]) for n in range(3)}
    assert samples.first.locator(".strip").text_content() in strips.values()
    folded = samples.nth(1).locator("button")
    expect(folded).to_have_attribute("aria-expanded", "false")
    folded.click()
    expect(samples.nth(1).locator("button")).to_have_attribute("aria-expanded", "true")


def test_keys_move_and_open(page: Any) -> None:
    page.locator(".reads .ends[data-row='0'][data-column='0']").focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
    focused = page.locator(".reads .ends:focus")
    expect(focused).to_have_attribute("data-key", "1 1")
    page.keyboard.press("Enter")
    expect(page.locator(".reads .ends:focus")).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("Enter")
    expect(page.locator(".reads .sample")).to_have_count(0)


def test_need_weighs_the_values(page: Any) -> None:
    page.locator(".cell[data-k='0']").click()
    page.get_by_role("button", name="read and needed").click()
    title = page.locator(".reads .chip").first.get_attribute("title")
    top = activations().top(calibration().names[0], 1, k=1, sign="+", need=True).iloc[0]
    assert float(title.split("up to +")[1]) == pytest.approx(top["value"], abs=0.05)
    page.get_by_role("button", name="z: read", exact=True).click()


def test_axe_finds_nothing_serious(page: Any) -> None:
    page.locator(".reads .ends[data-row='0'][data-column='1']").click()
    found = Axe().run(page).response["violations"]
    assert not [each["id"] for each in found if each["impact"] in ("serious", "critical")]
