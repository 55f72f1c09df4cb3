"""The report in a real browser: at the width of a desk and of a phone, light and dark, without a network."""

from __future__ import annotations

import html
import json
import subprocess
from pathlib import Path

import pytest

from tests.helpers.reported import results_of
from viz import report

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--hide-scrollbars", "--virtual-time-budget=5000", "--window-size=1400,900",
)  # fmt: skip
LOOK = """
<script>
addEventListener("load", () => {
  const wide = [...document.querySelectorAll("body *")].filter(e => {
    const box = e.getBoundingClientRect();
    return box.right > innerWidth + 0.5 && !e.parentElement.closest(".scroll, pre");
  });
  const style = getComputedStyle(document.body);
  parent.postMessage(JSON.stringify({
    width: innerWidth, page: document.documentElement.scrollWidth, wide: wide.map(e => e.outerHTML.slice(0, 80)),
    pictures: [...document.images].map(i => i.naturalWidth),
    shown: [...document.images].map(i => i.clientWidth),
    boxes: [...document.images].map(i => i.parentElement.clientWidth),
    paper: style.backgroundColor, ink: style.color,
    fetched: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
  }), "*");
});
</script>
"""
# A window has a least width, a frame has none.
FRAME = """<!doctype html><meta name="color-scheme" content="light dark">
<script>addEventListener("message", e => document.documentElement.setAttribute("data-seen", e.data));</script>
<iframe src="{page}" style="border:0;width:{width}px;height:900px"></iframe>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of 30 layers that measures itself; its policy lets our script run and nothing else more."""
    path = report(results_of("30 layers", steps=200).values(), tmp_path_factory.mktemp("browser") / "page.html")
    text = path.read_text(encoding="utf-8")
    text = text.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    path.write_text(text.replace("</body>", LOOK + "</body>"), encoding="utf-8")
    return path


def seen(chromium: str, page: Path, width: int, folder: Path, *flags: str) -> dict:
    """What the page finds of itself in a frame of that width."""
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(page=page.as_uri(), width=width))
    command = [chromium, *FLAGS, *flags, f"--user-data-dir={folder / 'profile'}", "--dump-dom", frame.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240)
    found = ran.stdout.partition('data-seen="')[2].partition('"')[0]
    assert found, ran.stderr[-2000:]
    return json.loads(html.unescape(found))


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(chromium, page, width, tmp_path):
    found = seen(chromium, page, width, tmp_path)
    assert found["width"] == width
    assert found["wide"] == []
    assert found["page"] == width
    assert len(found["pictures"]) == 6
    assert min(found["pictures"]) > 300
    assert found["fetched"] == []
    if width == 1280:
        assert all(shown <= box for shown, box in zip(found["shown"], found["boxes"], strict=True))
    else:
        assert min(found["shown"]) >= 600  # legible, and scrolled in its box
    assert (found["paper"], found["ink"]) == ("rgb(247, 247, 245)", "rgb(28, 33, 39)")


def test_dark_theme(chromium, page, tmp_path):
    found = seen(chromium, page, 1280, tmp_path, "--blink-settings=preferredColorScheme=0")
    assert (found["paper"], found["ink"]) == ("rgb(20, 23, 26)", "rgb(230, 232, 234)")
